"""What a serialized SentencePiece model says of itself, read from its bytes.

The sentencepiece package has no interface for these options, and its module of the protocol-buffers
format works with one version of that library alone; the format itself is simple and does not
change.
"""

import dataclasses
import struct
from typing import Any

UNIGRAM, BPE = 1, 2
NORMAL, USER_DEFINED = 1, 4

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True)
class Piece:
    """One id's text, its log-probability or minus its rank, and whether it is `NORMAL`."""

    text: str
    score: float
    type: int


@dataclasses.dataclass(frozen=True)
class Model:
    """The pieces and the options that decide which of them a text becomes."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    normalization_rule_name: str
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse(data: bytes) -> Model:
    """Reads a ModelProto (sentencepiece_model.proto); absent options have their defaults there."""
    model = _fields(data)
    trainer, normalizer = (_fields(model.get(i, [b""])[-1]) for i in (2, 3))
    return Model(
        pieces=tuple(_piece(_fields(piece)) for piece in model[1]),
        model_type=_last(trainer, 3, UNIGRAM),
        byte_fallback=bool(_last(trainer, 35, False)),
        treat_whitespace_as_suffix=bool(_last(trainer, 24, False)),
        normalization_rule_name=_last(normalizer, 1, b"").decode(),
        precompiled_charsmap=_last(normalizer, 2, b""),
        add_dummy_prefix=bool(_last(normalizer, 3, True)),
        remove_extra_whitespaces=bool(_last(normalizer, 4, True)),
        escape_whitespaces=bool(_last(normalizer, 5, True)),
    )


def _piece(fields: dict[int, list[Any]]) -> Piece:
    (score,) = struct.unpack("<f", _last(fields, 2, bytes(4)))
    return Piece(_last(fields, 1, b"").decode(), score, _last(fields, 3, NORMAL))


def _last(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    return fields[number][-1] if number in fields else default


def _fields(data: bytes) -> dict[int, list[Any]]:
    """The values of a message by the number of their field: integers, or bytes."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == _VARINT:
            value: int | bytes = varint()
        else:
            size = varint() if kind == _LENGTH else {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind]
            value = data[at : at + size]
            at += size
        found.setdefault(number, []).append(value)
    return found

"""Tokenizers trained here in the form that the `transformers` library loads."""

import base64
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.data.fast_tokenizer import FastTokenizer
from pretrain.data.sentencepiece_model import BPE, NORMAL, UNIGRAM, USER_DEFINED, Model, parse
from pretrain.data.tokenizer import SPECIAL_PIECES, AnyTokenizer, Tokenizer
from pretrain.data.tokenizer_files import template
from pretrain.errors import UserError

_SPACE = "\u2581"  # as SentencePiece spells it
_BREAK = "\x01"  # that nmt_nfkc deletes
_MARKS = "\\p{M}\u11a8-\u11c2\uff9e\uff9f"  # combining, last letters of Hangul, kana's voice marks
_TILDE, _FULL_TILDE = "\ufdd0", "\uff5e"


def export_tokenizer(
    tokenizer: AnyTokenizer, folder: str | Path, *, model_max_length: int | None = None
) -> None:
    """Writes a folder that ``AutoTokenizer.from_pretrained`` loads, with the same ids.

    Args:
      tokenizer: of either kind; the tokenizer of a Hugging Face checkpoint comes back as it was.
      folder: made where it does not exist.
      model_max_length: tokens that the model takes; None leaves what the tokenizer's files say.

    Raises:
      UserError: of a SentencePiece model, see `to_tokenizers_json`.
    """
    if isinstance(tokenizer, Tokenizer):
        document = json.loads(to_tokenizers_json(tokenizer))
        names = ("pad", "unk", "cls", "sep", "mask")
        config = {f"{n}_token": p for n, p in zip(names, SPECIAL_PIECES, strict=True)}
        config |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # Not token_type_ids: some models refuse them, and GPT-2 adds word embeddings for them.
            "model_input_names": ["input_ids", "attention_mask"],
        }
        tokenizer = FastTokenizer(document, config)
    if model_max_length is not None:
        config = {**tokenizer.config, "model_max_length": model_max_length}
        tokenizer = FastTokenizer(tokenizer.document, config)
    tokenizer.save(folder)


def to_tokenizers_json(tokenizer: Tokenizer) -> str:
    """The ``tokenizer.json`` of a SentencePiece tokenizer.

    Its ids are those of `tokenizer`, but for the rarest of texts: SentencePiece adds up float32
    scores, `tokenizers` float64, so that two almost equally likely segmentations of a unigram model
    can change places; and a letter with two marks that no composed letter has may compose with the
    second.

    Raises:
      UserError: on a model with an option that `tokenizers` lacks; `tokenizer.train` makes none.
    """
    model = parse(tokenizer.model)
    _check(model)
    _, unk, cls, sep, _ = SPECIAL_PIECES
    ids = {piece: i for i, piece in enumerate(SPECIAL_PIECES)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": piece, **flags, "special": True} for piece, i in ids.items()
        ],
        "normalizer": _sequence("normalizers", _normalizers(model)),
        "pre_tokenizer": _sequence("pretokenizers", _splits(model)) or None,
        "post_processor": template(
            [cls, None, sep], [cls, None, sep, None, sep], {cls: ids[cls], sep: ids[sep]}
        ),
        "decoder": _sequence(
            "decoders",
            [
                _replace({"String": _SPACE}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        ),
        "model": _model(model, ids[unk]),
    }
    return json.dumps(document, ensure_ascii=False)


def _check(model: Model) -> None:
    expected = {
        "model_type": (UNIGRAM, BPE),
        "byte_fallback": (True,),
        "treat_whitespace_as_suffix": (False,),
        "normalization_rule_name": ("nmt_nfkc", "identity"),
        "add_dummy_prefix": (True,),
        "escape_whitespaces": (True,),
    }
    for name, values in expected.items():
        if (found := getattr(model, name)) not in values:
            raise UserError(
                f"tokenizer: the SentencePiece option {name} is {found!r}, which cannot be "
                f"exported; expected {' or '.join(map(repr, values))}"
            )
    for piece in model.pieces:
        if piece.type == USER_DEFINED and len(piece.text) > 1:
            raise UserError(
                f"tokenizer: the user-defined symbol {piece.text!r} cannot be exported; expected "
                "symbols of one character"
            )


def _sequence(key: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", key: parts} if parts else {}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _split(pattern: dict[str, str], behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


# ----------------------------------------------------------------------------------- normalization


def _normalizers(model: Model) -> list[dict[str, Any]]:
    """SentencePiece's normalization in steps, white space spelt as in pieces."""
    steps = []
    if model.precompiled_charsmap:
        charsmap = base64.b64encode(model.precompiled_charsmap).decode()
        # SentencePiece replaces the longest match of its rules from the left. The library's own
        # reading of the same rules takes the shortest, and only in clusters of less than six bytes:
        # composing comes before, by NFKC, held off where SentencePiece has no rule that composes.
        steps += [
            _replace({"String": _FULL_TILDE}, _TILDE),  # NFKC changes it, SentencePiece does not
            _replace({"Regex": _uncomposed()}, _BREAK),
            {"type": "NFKC"},
            _replace({"String": _TILDE}, _FULL_TILDE),
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
        ]
    if model.remove_extra_whitespaces:
        steps += [_replace({"Regex": "^ +| +$"}, ""), _replace({"Regex": " +"}, " ")]
    return [*steps, {"type": "Prepend", "prepend": _SPACE}, _replace({"String": " "}, _SPACE)]


def _uncomposed() -> str:
    """A pattern of the places before combining characters that SentencePiece does not compose.

    Its rules spell characters fully decomposed or not at all. So nothing composes with a character
    that has a decomposition itself, nor two marks that follow each other in no decomposition;
    and NFKC would also put such marks into another order.
    """
    before = {"\u1680", "\u200c", "\u200d", _SPACE, "\uff9e", "\uff9f", "\ufffd"}
    allowed: dict[str, set[str]] = {}
    for code in (*range(0xA0, 0xD800), *range(0xE000, 0x20000)):
        char = chr(code)
        if len(unicodedata.normalize("NFKD", char)) > 1:
            before.add(char)
        if unicodedata.normalize("NFC", char) != char:
            continue
        parts = unicodedata.normalize("NFD", char)
        for first, second in itertools.pairwise(parts):
            if _is_mark(first) and _is_mark(second):
                allowed.setdefault(second, set()).add(first)
    pairs = (f"(?<=[{_ranges(firsts)}]){second}" for second, firsts in sorted(allowed.items()))
    return rf"(?<=[\p{{M}}{_ranges(before)}])(?=[{_MARKS}])(?!{'|'.join(pairs)})"


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def _ranges(chars: Iterable[str]) -> str:
    """The characters as the inside of a regular expression's class."""
    runs: list[list[str]] = []
    for char in sorted(chars):
        if runs and ord(char) == ord(runs[-1][1]) + 1:
            runs[-1][1] = char
        else:
            runs.append([char, char])
    return "".join(first if first == last else f"{first}-{last}" for first, last in runs)


# ------------------------------------------------------------------------------------ segmentation


def _model(model: Model, unk_id: int) -> dict[str, Any]:
    if model.model_type == UNIGRAM:
        vocab = [[piece.text, piece.score] for piece in model.pieces]
        return {"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": True}
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    normal = [p for p in model.pieces if p.type == NORMAL]
    merges = []
    for piece in sorted(normal, key=lambda p: (-p.score, ids[p.text])):
        text = piece.text
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        known = [(ids[a], ids[b], a, b) for a, b in splits if a in ids and b in ids]
        merges += [[a, b] for _, _, a, b in sorted(known)]
    return {
        "type": "BPE",
        "unk_token": SPECIAL_PIECES[unk_id],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": ids,
        "merges": merges,
    }


def _splits(model: Model) -> list[dict[str, Any]]:
    """Where no piece lies, so that what is between is tokenized on its own."""
    splits = []
    if model.remove_extra_whitespaces:
        splits.append(_split({"String": _SPACE}, "MergedWithNext"))
    splits += [_split({"String": p.text}) for p in model.pieces if p.type == USER_DEFINED]
    if model.model_type == UNIGRAM:
        # This model would find the pieces of special tokens and bytes in a text that spells them.
        normal = [p.text for p in model.pieces if p.type == NORMAL]
        texts = [list(text) for text in SPECIAL_PIECES]
        texts.append(["<", "0", "x", *2 * ["[0-9A-F]"], ">"])
        splits.append(_split({"Regex": "|".join(_cut(text, normal) for text in texts)}))
    return splits


def _cut(symbols: list[str], pieces: list[str]) -> str:
    """A pattern of a place inside of a text, given by patterns of its characters, that no piece
    goes across."""
    symbols = [s if len(s) > 1 else re.escape(s) for s in symbols]
    for i in range(1, len(symbols)):
        across = re.compile(symbols[i - 1] + symbols[i])
        if not any(across.search(piece) for piece in pieces):
            return f"(?<={''.join(symbols[:i])})(?={''.join(symbols[i:])})"
    raise UserError(
        f"tokenizer: its pieces cover {''.join(symbols)} without a gap, which cannot be exported; "
        "expected a vocabulary trained on text without it"
    )

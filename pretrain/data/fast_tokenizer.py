"""Tokenizers of Hugging Face checkpoints through the `tokenizers` library.

WordPiece (Schuster and Nakajima, 2012), byte-level BPE (Radford et al., 2019), Unigram (Kudo, 2018)
and BPE with byte fallback, whatever a ``tokenizer.json`` describes.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from pretrain.data import tokenizer_files as files
from pretrain.errors import UserError
from pretrain.files import to_json

_WHITE_SPACE = (" ", "\n", "\t", "\r", "\u2581")  # the last is SentencePiece's

is_in = files.is_in


class FastTokenizer:
    """A tokenizer of the `tokenizers` library; see `pretrain.data.tokenizer.AnyTokenizer`.

    Gives the ids that ``AutoTokenizer.from_pretrained(..., split_special_tokens=True)`` gives: the
    text "[SEP]" encodes to pieces and never to the special token. Nothing is cut or filled up,
    whatever the file says of truncation and padding.

    A tokenizer without a token of some kind uses another: for cls_id that of bos, eos or pad, for
    sep_id that of eos or else cls_id, for pad_id that of eos or else 0.
    """

    file_name = "tokenizer"

    def __init__(
        self, document: files.Document, config: files.Config, name: str = "this tokenizer"
    ):
        """Of the content of tokenizer.json and of tokenizer_config.json; ``name`` is for errors."""
        self.document, self.config = document, config
        try:
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(document))
        except Exception as error:  # the library raises no class of its own
            raise UserError(f"tokenizer.path: {name} is no tokenizer.json: {error}") from error
        self._backend.encode_special_tokens = True
        ids = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values()) + 1
        self.pieces: list[str] = [""] * self.vocab_size
        for piece, i in ids.items():
            self.pieces[i] = piece
        self._byte_level = '"ByteLevel"' in json.dumps(document.get("pre_tokenizer"))

        named = {key: ids.get(files.special_text(config, key)) for key in files.NAMED}
        bos, eos, unk, sep, pad, cls, mask = named.values()
        if all(i is None for i in (bos, eos, sep, pad, cls, mask)):
            raise UserError(
                f"tokenizer.path: {name} names no special token; expected them in "
                f"{files.CONFIG} or {files.SPECIAL} beside it, as AutoTokenizer does"
            )
        self.unk_id, self.mask_id = unk, mask
        self.mask_token = files.special_text(config, "mask_token") or ""
        self.cls_id: int = _first(cls, bos, eos, pad, sep, mask)
        self.sep_id: int = _first(sep, eos, self.cls_id)
        self.pad_id: int = _first(pad, eos, 0)
        self.prefix, self.suffix = self._template()
        special = {token["id"] for token in document["added_tokens"] if token["special"]}
        special |= {self.cls_id, self.sep_id, self.pad_id, *self.prefix, *self.suffix}
        self.special_ids = tuple(sorted(special | {i for i in named.values() if i is not None}))
        content = json.dumps([document, named], sort_keys=True)
        self.fingerprint: str = hashlib.sha256(content.encode()).hexdigest()

    @functools.cached_property
    def texts(self) -> list[str]:
        """`pieces`, those of byte-level BPE with characters in place of what spells their bytes."""
        if not self._byte_level:
            return self.pieces
        decoder = tokenizers.decoders.ByteLevel()
        return [decoder.decode([piece]) for piece in self.pieces]

    @property
    def word_start(self) -> np.ndarray:
        """Whether a piece begins a word or is a special token: bool ``[vocab_size]``.

        Of WordPiece those that continue none, else those whose text begins with white space.
        """
        inside = self.document["model"].get("continuing_subword_prefix")
        if inside:
            return np.array([not piece.startswith(inside) for piece in self.pieces])
        starts = np.array([text.startswith(_WHITE_SPACE) for text in self.texts])
        starts[list(self.special_ids)] = True
        return starts

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without any special token."""
        return self._backend.encode(_utf8(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text; the library takes its number of threads from the environment."""
        del num_threads
        texts = [_utf8(text) for text in texts]
        return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word on its own, as ``AutoTokenizer`` does with ``is_split_into_words``.

        Byte-level BPE reads each word with a space before it, as ``add_prefix_space`` asks for. A
        word of which normalization leaves nothing is one unknown piece.
        """
        if self._byte_level:
            words = [word if word[:1] in ("", " ") else f" {word}" for word in words]
        nothing = [_first(self.unk_id, self.pad_id)]
        return [ids or nothing for ids in self.encode_batch(words)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens have none."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: str | Path) -> None:
        """Writes the folder ``path`` so that `load` and ``AutoTokenizer`` read this tokenizer."""
        path = epath.Path(path)
        path.mkdir(parents=True, exist_ok=True)
        names = (*files.NAMED, "additional_special_tokens")
        special = {name: self.config[name] for name in names if self.config.get(name)}
        contents = {
            files.TOKENIZER: self.document,
            files.CONFIG: self.config,
            files.SPECIAL: special,
        }
        for name, content in contents.items():
            indent = None if name == files.TOKENIZER else 2
            text = to_json(content, indent=indent, ensure_ascii=False)
            (path / name).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "FastTokenizer":
        """Reads a tokenizer.json, or the folder of a checkpoint that holds

        - tokenizer.json, or vocab.txt (WordPiece), or vocab.json and merges.txt (byte-level BPE),
        - tokenizer_config.json, special_tokens_map.json: special tokens and options,
        - config.json: the kind of model, where tokenizer_config.json lacks it.
        """
        return cls(*files.read(path), name=str(path))

    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and behind one text."""
        for text in ("a", *self.pieces):  # the first that is not nothing to this tokenizer
            if self._backend.encode(text, add_special_tokens=False).ids:
                encoding = self._backend.encode(text)
                special = encoding.special_tokens_mask
                start = special.index(0)
                end = len(special) - special[::-1].index(0)
                return tuple(encoding.ids[:start]), tuple(encoding.ids[end:])
        return (), ()


def _first(*ids: int | None) -> Any:
    return next((i for i in ids if i is not None), None)


def _utf8(text: str) -> str:
    # JSON can hold half a surrogate pair, which UTF-8 cannot; it must not end a long run.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

"""SentencePiece tokenizers (Kudo and Richardson, 2018) with the special tokens of the field.

The first five ids are fixed: 0 ``[PAD]``, 1 ``[UNK]``, 2 ``[CLS]``, 3 ``[SEP]``, 4 ``[MASK]``. They
are control symbols: no text, not even the text "[MASK]", encodes to them. Characters that the
vocabulary lacks become their UTF-8 bytes, so that encoding loses nothing.
"""

import hashlib
import io
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
from etils import epath

from pretrain.data import fast_tokenizer
from pretrain.data.cache import make_once
from pretrain.errors import UserError

logger = logging.getLogger(__name__)

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODEL_TYPES = ("unigram", "bpe")
NORMALIZATIONS = ("nfkc", "identity")

# SentencePiece leaves out long sentences, so documents are cut, at white space where there is some.
_SENTENCE = re.compile(r"\S.{0,999}(?!\S)|\S.{0,999}", re.DOTALL)
_MAX_SENTENCE_BYTES = 4000


class AnyTokenizer(Protocol):
    """What `Tokenizer` and `pretrain.data.fast_tokenizer.FastTokenizer` have in common.

    Attributes:
      file_name: how a workdir calls the file or folder that `save` writes.
      vocab_size: every id is below it, those of added tokens too.
      pieces: every id's entry in the vocabulary.
      texts: what they spell, with "\u2581" for a space where the pieces have it.
      pad_id: of padding; it may be that of another token, since segment id 0 is what marks padding.
      cls_id, sep_id: first and last token of a document in a language model's rows.
      unk_id, mask_id: None where a tokenizer has none.
      mask_token: the text of `mask_id`, "" where there is none.
      special_ids: all ids that stand for no text, in order.
      prefix, suffix: ids that the tokenizer's own template puts around one text.
      fingerprint: hash of all that ids depend on.
    """

    file_name: str
    vocab_size: int
    pieces: list[str]
    texts: list[str]
    pad_id: int
    cls_id: int
    sep_id: int
    unk_id: int | None
    mask_id: int | None
    mask_token: str
    special_ids: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    fingerprint: str

    @property
    def word_start(self) -> np.ndarray:
        """Whether a piece begins a word or is a special token: bool ``[vocab_size]``."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without any special token."""

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text."""

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word on its own, at least one, as behind a space."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens have none."""

    def save(self, path: str | Path) -> None:
        """Writes what `load` reads."""


def load(path: str | Path) -> AnyTokenizer:
    """The tokenizer in a SentencePiece model file, a tokenizer.json or a folder.

    A folder is a Hugging Face checkpoint (`fast_tokenizer.FastTokenizer.load` says what it holds)
    or the workdir of a run.
    """
    path = epath.Path(path)
    if path.is_dir():
        inside = (path / name for name in (Tokenizer.file_name, "tokenizer"))
        if not fast_tokenizer.is_in(path) and (
            found := next((p for p in inside if p.exists()), None)
        ):
            return load(found)
    if path.is_dir() or path.suffix == ".json":
        return fast_tokenizer.FastTokenizer.load(path)
    return Tokenizer.load(path)


class Tokenizer:
    """A SentencePiece model whose first five ids are the special tokens above."""

    file_name = "tokenizer.model"
    pad_id, unk_id, cls_id, sep_id, mask_id = special_ids = tuple(range(len(SPECIAL_PIECES)))
    mask_token = SPECIAL_PIECES[mask_id]
    prefix, suffix = (cls_id,), (sep_id,)

    def __init__(self, model: bytes, name: str = "this model"):
        """`model` is a serialized SentencePiece model; `name` stands for it in error messages."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"tokenizer: {name} is not a SentencePiece model") from error
        self.model = model
        self.vocab_size: int = self._processor.vocab_size()
        self.pieces: list[str] = [self._processor.id_to_piece(i) for i in range(self.vocab_size)]
        self.texts = self.pieces
        found = tuple(self.pieces[: len(SPECIAL_PIECES)])
        if found != SPECIAL_PIECES or not self._processor.is_control(self.mask_id):
            raise UserError(
                f"tokenizer: {name} starts with the pieces {', '.join(found)}; expected "
                f"{', '.join(SPECIAL_PIECES)} (tools/tokenizer.py makes such a model; of that of a "
                "Hugging Face checkpoint, transformers.AutoTokenizer.from_pretrained(SRC_DIR)."
                "save_pretrained(NEW_DIR) makes a tokenizer.json)"
            )
        self.fingerprint: str = hashlib.sha256(model).hexdigest()

    @property
    def word_start(self) -> np.ndarray:
        """Whether a piece begins with white space or is a special token: bool ``[vocab_size]``."""
        starts = np.array([piece.startswith(("\u2581", "\n")) for piece in self.pieces])
        starts[list(self.special_ids)] = True
        return starts

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without any special token."""
        return self._processor.encode(_utf8(text))

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, by several threads."""
        return self._processor.encode([_utf8(text) for text in texts], num_threads=num_threads)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word on its own, its leading space included.

        A word of which normalization leaves nothing (a zero-width space, say) is one ``[UNK]``, so
        that every word has a first id to be labelled.
        """
        return [ids or [self.unk_id] for ids in self.encode_batch(words)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control symbols have none."""
        return self._processor.decode([int(i) for i in ids])

    def save(self, path: str | Path) -> None:
        """Writes the SentencePiece model file."""
        epath.Path(path).write_bytes(self.model)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a model file that `save` or ``tools/tokenizer.py`` wrote."""
        try:
            model = epath.Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError(
                f"tokenizer.path: {path} is not a file; expected a SentencePiece model"
            ) from error
        return cls(model, name=str(path))


def train(
    texts: Iterable[str],
    *,
    vocab_size: int,
    model_type: str = "unigram",
    normalization: str = "nfkc",
    max_sentences: int = 20_000,
    character_coverage: float = 0.9995,
    num_threads: int = 8,
) -> Tokenizer:
    """Trains a tokenizer; the same texts and settings always give the same bytes.

    Args:
      texts: documents of any length, cut into "sentences" of at most 1000 characters.
      vocab_size: number of pieces, the 5 special ones and the 256 bytes included.
      model_type: "unigram" (Kudo, 2018) or "bpe" (Sennrich et al., 2016; trains much faster).
      normalization: "nfkc" also makes every run of white space, line breaks included, one space;
        "identity" keeps the text as it is, so that `decode` gives it back exactly.
      max_sentences: train on a uniform sample of this many of them.
      character_coverage: share of the text's characters that get a piece of their own; the rest,
        the rarest, are spelt in bytes.
      num_threads: part of the result, as the threads' sums are rounded in their order, and
        therefore not taken from the machine.

    Raises:
      UserError: no text, an unknown setting, or a vocabulary size the corpus does not allow.
    """
    _check_choice("tokenizer.type", model_type, MODEL_TYPES)
    _check_choice("tokenizer.normalization", normalization, NORMALIZATIONS)
    sentences = _sample(
        (cut[0] for text in texts for cut in _SENTENCE.finditer(text)), max_sentences
    )
    if not sentences:
        raise UserError("tokenizer: found no text to train on")
    pad, unk, cls, sep, mask = SPECIAL_PIECES
    options: dict[str, Any] = {"normalization_rule_name": "nmt_nfkc"}
    if normalization == "identity":
        options = {
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "user_defined_symbols": ["\n"],
        }
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            num_threads=num_threads,
            byte_fallback=True,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            pad_id=Tokenizer.pad_id,
            unk_id=Tokenizer.unk_id,
            bos_id=Tokenizer.cls_id,
            eos_id=Tokenizer.sep_id,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=cls,
            eos_piece=sep,
            control_symbols=[mask],
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from error
    return Tokenizer(model.getvalue())


def cached(
    source: Any,
    *,
    vocab_size: int,
    model_type: str = "unigram",
    cache_dir: str | Path,
    **settings: Any,
) -> Tokenizer:
    """The tokenizer trained on `source`, from the cache when it has been trained before.

    `source` yields example dicts and has `name` and `fingerprint()`; `settings` are `train`'s. The
    cache is keyed by both, written atomically, and safe to share between processes.
    """
    settings = {"vocab_size": vocab_size, "model_type": model_type, **settings}
    key = json.dumps(["tokenizer 1", source.fingerprint(), settings], sort_keys=True)
    path = Path(cache_dir) / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]

    def make(building: Path) -> None:
        logger.info(
            "training a %s tokenizer of %d pieces on %s, once, into %s",
            model_type,
            vocab_size,
            source.name,
            path,
        )
        train(texts_of(source), **settings).save(building / Tokenizer.file_name)

    make_once(path, make)
    return Tokenizer.load(path / Tokenizer.file_name)


def texts_of(source: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The text of each example, whichever its task; words of tagged sentences joined by spaces."""
    for example in source:
        yield example["text"] if "text" in example else " ".join(example["tokens"])


def _utf8(text: str) -> bytes:
    # JSON can hold half a surrogate pair, which UTF-8 cannot; it must not end a long run.
    return text.encode("utf-8", "replace")


def _sample(sentences: Iterable[str], size: int) -> list[bytes]:
    """A uniform sample of at most `size` sentences, the same each time (reservoir sampling)."""
    rng = random.Random(0)
    sample: list[bytes] = []
    for count, sentence in enumerate(sentences):
        if count < size:
            sample.append(_utf8(sentence))
        elif (place := int(rng.random() * (count + 1))) < size:
            sample[place] = _utf8(sentence)
    return sample


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}: {value!r} is unknown; expected one of {', '.join(choices)}")


def _explained(error: RuntimeError, vocab_size: int) -> UserError:
    """SentencePiece's error in the user's terms."""
    text = str(error)
    if found := re.search(r"too high.*<= (\d+)", text):
        limit = f"is more than this corpus supports; expected at most {found[1]}"
    elif found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        limit = f"has no room for the bytes and characters; expected at least {found[1]}"
    else:
        return UserError(f"tokenizer: SentencePiece cannot train on this corpus: {text}")
    return UserError(f"tokenizer.vocab_size: {vocab_size} {limit}")

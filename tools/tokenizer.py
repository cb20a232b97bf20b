"""Trains a SentencePiece tokenizer on any source of text and writes its model file.

    python -m tools.tokenizer --source='books/*.txt' --vocab_size=16384 --output=books.model

Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK]; characters without a piece of their own become
bytes. A run uses the file through --config.tokenizer.path=books.model. (Without one, a run trains a
tokenizer on its own training data and keeps it in the cache, so this program is optional.)
"""

import itertools
import pathlib

from absl import flags

from pretrain import cli
from pretrain.data import sources, tokenizer
from pretrain.errors import UserError
from pretrain.files import check_new

_SOURCE = flags.DEFINE_string(
    "source", None, "What to train on: files, a glob, a URL or a named source (docs/data.md)."
)
_OUTPUT = flags.DEFINE_string("output", None, "Model file to write; it must not exist yet.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 8192, "Number of pieces, the 5 special ones and the 256 bytes included."
)
_MODEL_TYPE = flags.DEFINE_enum(
    "model_type", "unigram", tokenizer.MODEL_TYPES, "bpe trains about ten times faster."
)
_NORMALIZATION = flags.DEFINE_enum(
    "normalization",
    "nfkc",
    tokenizer.NORMALIZATIONS,
    "nfkc also makes each run of white space one space; identity keeps the text exactly.",
)
_COVERAGE = flags.DEFINE_float(
    "character_coverage", 0.9995, "Share of characters with a piece of their own; others are bytes."
)
_MAX_SENTENCES = flags.DEFINE_integer(
    "max_sentences",
    20_000,
    "Train on a uniform sample of at most so many texts of 1000 characters.",
)
_FORMAT = flags.DEFINE_string("format", "", "Format of the source; by default by its extension.")
_TEXT = flags.DEFINE_string("text", "text", "Column or key that holds the text.")
_DOCUMENT = flags.DEFINE_string(
    "document", "paragraph", "What a document of a text file is: paragraph, line or file."
)

COVERAGES = (0.98, 1.0)  # that SentencePiece accepts
_SHOWN_DOCUMENTS = 2000
_SHOWN_CHARACTERS = 200


def run() -> None:
    for flag in (_SOURCE, _OUTPUT):
        if not flag.value:
            raise UserError(f"--{flag.name}: missing; expected a value (see --help)")
    for flag in (_VOCAB_SIZE, _MAX_SENTENCES):
        if flag.value < 1:
            raise UserError(f"--{flag.name}: found {flag.value}, expected at least 1")
    low, high = COVERAGES
    if not low <= _COVERAGE.value <= high:
        raise UserError(
            f"--character_coverage: found {_COVERAGE.value}, expected from {low} to {high}"
        )
    output = pathlib.Path(_OUTPUT.value)
    check_new(output, "--output")
    source = sources.open_source(
        _SOURCE.value,
        task="lm",
        key="--source",
        format=_FORMAT.value,
        text=_TEXT.value,
        document=_DOCUMENT.value,
    )
    trained = tokenizer.train(
        tokenizer.texts_of(source),
        vocab_size=_VOCAB_SIZE.value,
        model_type=_MODEL_TYPE.value,
        normalization=_NORMALIZATION.value,
        character_coverage=_COVERAGE.value,
        max_sentences=_MAX_SENTENCES.value,
    )
    trained.save(output)
    texts = list(itertools.islice(tokenizer.texts_of(source), _SHOWN_DOCUMENTS))
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    num_tokens = sum(map(len, trained.encode_batch(texts)))
    sample = next((text for text in texts if trained.encode(text)), "")[:_SHOWN_CHARACTERS]
    print(f"wrote {output}: {_MODEL_TYPE.value}, {trained.vocab_size} pieces")
    print(
        f"{num_bytes / max(num_tokens, 1):.2f} bytes per token in the first {len(texts)} documents"
    )
    print(f"sample: {' '.join(trained.pieces[i] for i in trained.encode(sample))}")


if __name__ == "__main__":
    cli.main(run, __doc__)

"""What a finished run makes of raw text, from the command line or from standard input.

    python -m pretrain.predict --workdir=runs/classify "Returns the sum of two arrays."
    echo "See Array.reshape for details ." | python -m pretrain.predict --workdir=runs/ner
    python -m pretrain.predict --workdir=runs/bert-tiny "Return the [MASK] of the array."
    python -m pretrain.predict --workdir=runs/gpt-tiny --tokens=40 "Returns a new"

Each line is one text; each answer is one JSON object. A classifier gives probabilities, a tagger
the entities (split into words at spaces, punctuation apart), a masked language model the likeliest
pieces for each [MASK] ("\u2581" is the space before a word), a causal one a continuation, a
replaced-token detector each piece's probability of not being the original. An encoder-decoder that
learned from spans writes what each [MASK] stands for, one that learned infilling the whole text.
"""

import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pretrain import cli, evaluators, sequences, sharding, tasks
from pretrain.checkpoint import load_params
from pretrain.data.loader import Columns
from pretrain.data.tokenizer import AnyTokenizer
from pretrain.errors import UserError
from pretrain.files import to_json
from pretrain.models.encoder_decoder import EncoderDecoder, shift_right
from pretrain.models.heads import Discriminator, LanguageModel

MASK = "[MASK]"
_WORD = re.compile(r"\w+(?:[.'\u2019-]\w+)*|[^\w\s]")


def predict(
    workdir: pathlib.Path, texts: Sequence[str], *, top: int = 5, tokens: int = 32, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """One record a text; ``top`` candidates a mask, ``tokens`` sampled by a causal model."""
    for name, value in (("top", top), ("tokens", tokens)):
        if value < 1:
            raise UserError(f"--{name}: found {value}, expected at least 1")
    config, task = tasks.restore(workdir)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
    params, _ = load_params(workdir, mesh)
    if task.encoder.task in ("classify", "tag"):
        key = "tokens" if task.encoder.task == "tag" else "text"
        examples = [{key: _WORD.findall(t) if key == "tokens" else t} for t in texts]
        columns = Columns(task.encoder.encode(examples, "text"))
        task.splits["test"] = tasks.Split(columns, {}, examples)
        evaluator = evaluators.create(task, "test", mesh, 1)
        yield from evaluator.records(*evaluator.predict(params))
        return
    model, pieces, limit = task.objective.model, task.encoder.tokenizer, task.encoder.seq_len
    for text in texts:
        if task.encoder.task in ("mlm", "denoising"):
            yield {"text": text, "masks": fill(model, params, pieces, text, limit, top)}
        elif task.encoder.task == "rtd":
            yield {"text": text, "tokens": detect(model, params, pieces, text, limit)}
        elif task.encoder.task == "spans":
            vocab_size = model.trunk.config.vocab_size
            sentinels = sequences.sentinel_ids(config, pieces, vocab_size)
            yield {"text": text, "spans": recover(model, params, pieces, text, limit, sentinels)}
        elif task.encoder.task == "infilling":
            ids, _ = _read(pieces, text, limit, [pieces.mask_id] * limit)
            written = write(model, params, ids, limit, pieces.sep_id)
            known = [piece for piece in written if piece < pieces.vocab_size]
            yield {"text": text, "written": pieces.decode(known)}
        else:
            key, prefix = jax.random.key(seed), task.encoder.task == "prefix"
            continuation = sample(model, params, pieces, text, limit, tokens, key, prefix)
            yield {"text": text, "continuation": continuation}


def fill(
    model: LanguageModel, params: dict, pieces: AnyTokenizer, text: str, limit: int, top: int
) -> list[list[dict[str, Any]]]:
    """The ``top`` pieces with probabilities for each ``[MASK]`` of ``text``.

    A mask is a whole word with the space before it.
    """
    ids, masked = _read(pieces, text, limit, [pieces.mask_id] * limit)
    _check_masks(pieces, text, masked)
    logits = _mask_logits(model, params, ids, masked)[:, : pieces.vocab_size]
    probabilities = np.array(jax.nn.softmax(logits))
    return [
        [{"piece": pieces.pieces[i], "probability": float(row[i])} for i in np.argsort(-row)[:top]]
        for row in probabilities
    ]


def _mask_logits(
    model: LanguageModel, params: dict, ids: Sequence[int], masked: Sequence[int]
) -> jax.Array:
    """``[masks, V]``. A decoder writes the text: it reads its best piece for each earlier mask."""
    rows, written, logits = jnp.array([ids]), list(ids), []
    if not isinstance(model.trunk, EncoderDecoder):
        hidden = model.apply({"params": params}, rows)[0, np.array(masked)]
        return model.apply({"params": params}, hidden, method="logits")
    start = model.trunk.config.decoder_start_id
    for place in masked:
        before = shift_right(jnp.array([written]), jnp.ones_like(rows), start)
        hidden = model.apply({"params": params}, rows, decoder_tokens=before)[0, place]
        logits.append(model.apply({"params": params}, hidden, method="logits"))
        written[place] = int(logits[-1].argmax())
    return jnp.stack(logits)


def recover(
    model: LanguageModel,
    params: dict,
    pieces: AnyTokenizer,
    text: str,
    limit: int,
    sentinels: Sequence[int],
) -> list[str]:
    """What each ``[MASK]`` of ``text`` stands for, the likeliest piece at every step."""
    ids, masked = _read(pieces, text, limit, sentinels)
    _check_masks(pieces, text, masked)
    ids = ids if pieces.prefix else ids[1:]  # as in training
    spans: dict[int, list[int]] = {i: [] for i in sentinels[: len(masked)]}
    span: list[int] = []
    for piece in write(model, params, ids, limit, pieces.sep_id):
        span = spans.get(piece, []) if piece in sentinels else span
        span += [piece] if piece < pieces.vocab_size and piece not in sentinels else []
    return [pieces.decode(found) for found in spans.values()]


def write(
    model: LanguageModel, params: dict, ids: Sequence[int], count: int, end_id: int
) -> list[int]:
    """What a decoder makes of ``ids``, always the likeliest id, up to ``end_id`` or ``count``.

    Ids that are no pieces of a tokenizer may be among them.
    """
    rows, start = jnp.array([ids]), model.trunk.config.decoder_start_id

    @jax.jit
    def best(before, at):
        hidden = model.apply({"params": params}, rows, decoder_tokens=before)
        return model.apply({"params": params}, hidden[0, at], method="logits").argmax()

    before, written = np.full((1, count), start, np.int32), []
    for place in range(count):
        written.append(int(best(before, place)))
        if written[-1] == end_id:
            return written[:-1]
        before[0, place + 1 : place + 2] = written[-1]
    return written


def _read(
    pieces: AnyTokenizer, text: str, limit: int, mask_ids: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The ids of ``text``, its masks as ``mask_ids`` in turn, and the places of the masks."""
    *before, last = re.split("|".join(map(re.escape, _masks(pieces))), text)
    if len(before) > len(mask_ids):
        raise UserError(f"text: found {len(before)} masks, expected at most {len(mask_ids)}")
    ids, masked = [pieces.cls_id], []
    for part, mask_id in zip(before, mask_ids, strict=False):
        ids += pieces.encode(part.rstrip())
        masked.append(len(ids))
        ids.append(mask_id)
    ids += [*pieces.encode(last), pieces.sep_id]
    _check_length(ids, limit)
    return ids, masked


def _masks(pieces: AnyTokenizer) -> list[str]:
    return sorted({MASK, pieces.mask_token or MASK})


def _check_masks(pieces: AnyTokenizer, text: str, masked: Sequence[int]) -> None:
    if not masked:
        raise UserError(f"text: no {' or '.join(_masks(pieces))} in {text!r}")


def detect(
    model: Discriminator, params: dict, pieces: AnyTokenizer, text: str, limit: int
) -> list[dict[str, Any]]:
    """Each piece of ``text`` with the probability that it was put in place of another."""
    ids = [pieces.cls_id, *pieces.encode(text), pieces.sep_id]
    _check_length(ids, limit)
    logits = model.apply({"params": params}, jnp.array([ids]))[0, 1:-1]
    replaced = np.array(jax.nn.sigmoid(logits)).tolist()
    return [
        {"piece": pieces.pieces[i], "replaced": probability}
        for i, probability in zip(ids[1:-1], replaced, strict=True)
    ]


def _check_length(ids: Sequence[int], limit: int) -> None:
    if len(ids) > limit:
        raise UserError(f"text: {len(ids)} tokens, expected at most the {limit} of a row")


def sample(
    model: LanguageModel,
    params: dict,
    pieces: AnyTokenizer,
    text: str,
    limit: int,
    count: int,
    key: jax.Array,
    prefix: bool = False,
) -> str:
    """Samples up to ``count`` tokens behind ``text``, until the end of the document.

    The model sees the last ``limit`` tokens, those of the text in both directions if it is a
    ``prefix``.
    """
    ids = [pieces.cls_id, *pieces.encode(text)]
    start = len(ids)
    barred = np.array([i for i in pieces.special_ids if i != pieces.sep_id], np.int32)

    @jax.jit
    def next_id(row, at, given, key):
        seen = {"prefix": jnp.arange(limit)[None] < given} if prefix else {}
        hidden = model.apply({"params": params}, row[None], **seen)
        logits = model.apply({"params": params}, hidden[0, at], method="logits")
        logits = logits[: pieces.vocab_size].at[barred].set(-jnp.inf)
        return jax.random.categorical(key, logits)

    for step_key in jax.random.split(key, count):
        window = ids[-limit:]
        row = jnp.array(window + [pieces.pad_id] * (limit - len(window)))
        given = max(0, start - len(ids) + len(window))
        ids.append(int(next_id(row, len(window) - 1, given, step_key)))
        if ids[-1] == pieces.sep_id:
            break
    return pieces.decode(ids[start:])


def main(texts: Sequence[str]) -> None:
    values = flags.FLAGS
    if not texts and sys.stdin.isatty():
        print("reading texts, one a line, until Ctrl-D", file=sys.stderr)
    texts = texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise UserError("text: found none, expected arguments or lines on standard input")
    options = {"top": values.top, "tokens": values.tokens, "seed": values.seed}
    for record in predict(pathlib.Path(values.workdir), texts, **options):
        print(to_json(record, ensure_ascii=False))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
    flags.DEFINE_integer("top", 5, "Candidates for each mask.")
    flags.DEFINE_integer("tokens", 32, "Tokens to sample at most.")
    flags.DEFINE_integer("seed", 0, "Of sampling.")
    cli.main(main, __doc__, positional=True)

"""What a finished run makes of raw text, from the command line or from standard input.

    python -m pretrain.predict --workdir=runs/classify "Returns the sum of two arrays."
    echo "See Array.reshape for details ." | python -m pretrain.predict --workdir=runs/ner
    python -m pretrain.predict --workdir=runs/bert-tiny "Return the [MASK] of the array."
    python -m pretrain.predict --workdir=runs/gpt-tiny --tokens=40 "Returns a new"

Each line is one text; each answer is one JSON object. A classifier gives probabilities, a tagger
the entities (split into words at spaces, punctuation apart), a masked language model the likeliest
pieces for each [MASK] ("\u2581" is the space before a word), a causal one a continuation, a
replaced-token detector each piece's probability of not being the original.
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

from pretrain import cli, evaluators, sharding, tasks
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
    _, task = tasks.restore(workdir)
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
        else:
            key = jax.random.key(seed)
            yield {
                "text": text,
                "continuation": sample(model, params, pieces, text, limit, tokens, key),
            }


def fill(
    model: LanguageModel, params: dict, pieces: AnyTokenizer, text: str, limit: int, top: int
) -> list[list[dict[str, Any]]]:
    """The ``top`` pieces with probabilities for each ``[MASK]`` of ``text``.

    A mask is a whole word with the space before it.
    """
    masks = {MASK, pieces.mask_token}
    *before, last = re.split("|".join(map(re.escape, masks)), text)
    ids, masked = [pieces.cls_id], []
    for part in before:
        ids += pieces.encode(part.rstrip())
        masked.append(len(ids))
        ids.append(pieces.mask_id)
    ids += [*pieces.encode(last), pieces.sep_id]
    if not masked:
        raise UserError(f"text: no {' or '.join(sorted(masks))} in {text!r}")
    _check_length(ids, limit)
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
) -> str:
    """Samples up to ``count`` tokens behind ``text``, until the end of the document.

    The model sees the last ``limit`` tokens.
    """
    ids = [pieces.cls_id, *pieces.encode(text)]
    start = len(ids)
    barred = np.array([i for i in pieces.special_ids if i != pieces.sep_id], np.int32)

    @jax.jit
    def next_id(row, at, key):
        hidden = model.apply({"params": params}, row[None])
        logits = model.apply({"params": params}, hidden[0, at], method="logits")
        logits = logits[: pieces.vocab_size].at[barred].set(-jnp.inf)
        return jax.random.categorical(key, logits)

    for step_key in jax.random.split(key, count):
        window = ids[-limit:]
        row = jnp.array(window + [pieces.pad_id] * (limit - len(window)))
        ids.append(int(next_id(row, len(window) - 1, step_key)))
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

r"""Vectors of the lines of a text file, by a training run's or an imported backbone.

    python -m tools.embed --workdir=runs/minilm --input=texts.txt --output=vectors.npz
    python -m tools.embed --workdir=runs/bert-tiny --input=texts.txt --output=tokens.npz --tokens

One text a line, an empty line is an empty text. The file has `vectors [texts, D]` float32, in the
order of the lines. With `--tokens` it has `vectors [tokens, D]`, `ids [tokens]` and
`offsets [texts + 1]`: text i has the tokens offsets[i] to offsets[i + 1], special ones included.

A text longer than the model's positions is cut into windows, whose pooled vectors are averaged;
with `--tokens` it is an error.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from pretrain import cli, sharding, tasks
from pretrain.checkpoint import load_params
from pretrain.data import encoders, labels
from pretrain.errors import UserError
from pretrain.files import check_new, write_npz
from pretrain.models.families import FAMILIES
from pretrain.models.heads import pool
from pretrain.models.transformer import layer_outputs

POOLINGS = ("mean", "first", "last")
FINAL = -1  # after the final norm, where there is one
TEXTS_AT_A_TIME = 1000
SHORTEST = 16  # tokens a row is padded to


class Embedder:
    """A backbone with its tokenizer: texts to vectors.

    Args:
      workdir: of a training run or an import.
      layer: 0 the embeddings, 1 ... L the output of a layer, -1 the final hidden states.
      batch_size: rows at a time; rounded up to the number of devices.
      encoder: the encoder's states of an encoder-decoder; default: those that its heads read.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        layer: int = FINAL,
        batch_size: int = 32,
        encoder: bool = False,
    ):
        config = tasks.read_config(workdir)
        self.tokenizer = encoders.load(workdir).tokenizer
        if self.tokenizer is None:
            raise UserError(
                f"--workdir: {workdir} has no tokenizer; expected that of a transformer"
            )
        options = tasks.backbone_options(config, self.tokenizer)
        if encoder:
            if not hasattr(options, "reads"):
                raise UserError(f"--encoder: {workdir} holds no encoder-decoder; expected one")
            options = dataclasses.replace(options, reads="encoder")
        self._stack = getattr(options, "reads", "")  # of an encoder-decoder
        last = options.decoder_layers if self._stack == "decoder" else options.num_layers
        if not FINAL <= layer <= last:
            raise UserError(
                f"--layer: found {layer}, expected 0 (embeddings) to {last}, or {FINAL} for the "
                "final hidden states"
            )
        self.layer, self.longest = layer, options.max_positions
        self.backbone = FAMILIES[config.model.name].backbone(options)
        self.mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | {"data": -1})
        self.batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        self.params = load_params(workdir, self.mesh)[0]["trunk"]
        self._width = options.hidden_size
        self._hidden = jax.jit(self._apply)
        self._pooled = jax.jit(
            lambda params, rows, how: pool(self._apply(params, rows), rows["segment_ids"], how),
            static_argnums=2,
        )

    def _apply(self, params: dict, rows: dict[str, jax.Array]) -> jax.Array:
        """``[B, S, D]`` float32."""
        hidden, told = self.backbone.apply(
            {"params": params},
            rows["tokens"],
            segment_ids=rows["segment_ids"],
            mutable=["intermediates"],
        )
        told = told["intermediates"]
        told = told.get(self._stack, told)
        if self.layer == 0:
            (hidden,) = told["embedded"]
        elif self.layer != FINAL:
            hidden = layer_outputs(told)[self.layer - 1]
        return hidden.astype(jnp.float32)

    def texts(self, texts: Sequence[str], pooling: str = "mean") -> np.ndarray:
        """``[texts, D]``: pooled over the tokens of each text, special ones included."""
        parts = []
        for columns in self._columns(texts):
            vectors = np.zeros((columns["example"].max() + 1, self._width), np.float32)
            for rows, batch in self._batches(columns):
                found = np.asarray(self._pooled(self.params, batch, pooling))[: len(rows)]
                found = found * columns["weights"][rows, None]
                np.add.at(vectors, columns["example"][rows], found)
            parts.append(vectors)
        return np.concatenate(parts)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``vectors [tokens, D]``, ``ids [tokens]`` and ``offsets [texts + 1]``."""
        parts, ids, lengths = [], [], []
        for columns in self._columns(texts):
            windows = np.bincount(columns["example"])
            if (windows > 1).any():
                line = sum(map(len, lengths)) + int(np.argmax(windows > 1)) + 1
                raise UserError(
                    f"--input: line {line} has more than the {self.longest} tokens that the model "
                    "has positions for; expected shorter lines with --tokens"
                )
            real = columns["segment_ids"] > 0
            vectors = np.zeros((*real.shape, self._width), np.float32)
            for rows, batch in self._batches(columns):
                found = np.asarray(self._hidden(self.params, batch))[: len(rows)]
                vectors[rows, : found.shape[1]] = found
            parts.append(vectors[real])
            ids.append(columns["tokens"][real])
            lengths.append(real.sum(1))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        return np.concatenate(parts), np.concatenate(ids), offsets

    def _columns(self, texts: Sequence[str]) -> Iterator[labels.Columns]:
        """Texts as rows, `TEXTS_AT_A_TIME`."""
        if not texts:
            raise UserError("--input: found no lines, expected a text a line")
        starts = range(0, len(texts), TEXTS_AT_A_TIME)
        for start in tqdm.tqdm(starts, unit="k texts", disable=not sys.stderr.isatty()):
            examples = [{"text": text} for text in texts[start : start + TEXTS_AT_A_TIME]]
            needed = int(labels.row_lengths(examples, self.tokenizer).max())
            yield labels.encode_classification(
                examples,
                self.tokenizer,
                seq_len=self._row_length(needed),
                label_names=(),
                key="--input",
            )

    def _row_length(self, needed: int) -> int:
        """A power of two, at most the model's positions: few shapes to compile."""
        return min(self.longest, max(SHORTEST, 1 << (needed - 1).bit_length()))

    def _batches(self, columns: labels.Columns) -> Iterator[tuple[np.ndarray, dict]]:
        """Rows of about one length together: their indices, and the batch on the devices."""
        lengths = (columns["segment_ids"] > 0).sum(1)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            width = self._row_length(int(lengths[rows].max()))
            padded = np.resize(rows, self.batch_size)  # repeats rows of the last batch
            batch = {name: columns[name][padded, :width] for name in ("tokens", "segment_ids")}
            yield rows, sharding.to_global(batch, self.mesh)


def main() -> None:
    values = flags.FLAGS
    output = pathlib.Path(values.output)
    check_new(output, "--output")
    path = pathlib.Path(values.input)
    if not path.is_file():
        raise UserError(f"--input: no such file: {path}")
    if values.batch_size < 1:
        raise UserError(f"--batch_size: found {values.batch_size}, expected at least 1")
    texts = path.read_text(encoding="utf-8").split("\n")
    texts = [text.rstrip("\r") for text in (texts[:-1] if texts[-1] == "" else texts)]
    embedder = Embedder(
        pathlib.Path(values.workdir),
        layer=values.layer,
        batch_size=values.batch_size,
        encoder=values.encoder,
    )
    if values.tokens:
        vectors, ids, offsets = embedder.tokens(texts)
        write_npz(output, vectors=vectors, ids=ids, offsets=offsets)
    else:
        vectors = embedder.texts(texts, values.pooling)
        if values.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        write_npz(output, vectors=vectors)
    what = "tokens" if values.tokens else "texts"
    print(f"wrote {output}: {len(vectors):,} {what}, {vectors.shape[1]} numbers each")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a training run or an import.", required=True)
    flags.DEFINE_string("input", None, "Text file, one text a line (UTF-8).", required=True)
    flags.DEFINE_string("output", None, "New .npz file.", required=True)
    flags.DEFINE_enum("pooling", "mean", POOLINGS, "How a text's tokens become one vector.")
    flags.DEFINE_integer("layer", FINAL, "0: embeddings; 1 to L: a layer; -1: the last, normed.")
    flags.DEFINE_bool("tokens", False, "A vector a token instead of one a text.")
    flags.DEFINE_bool("normalize", False, "Texts' vectors of length 1.")
    flags.DEFINE_bool("encoder", False, "Of an encoder-decoder: the states of its encoder.")
    flags.DEFINE_integer("batch_size", 32, "Rows at a time.")
    cli.main(main, __doc__)

r"""Makes further texts of labelled ones, for a student whose teacher labels them.

    python -m tools.augment --workdir=runs/bert --input=train.tsv --text=0 --output=more.jsonl
    python -m pretrain.train --config=configs/distill.py:tinybert-outputs,teacher=runs/labels \
        --config.distill.transfer=more.jsonl ...

TinyBERT's data augmentation (Jiao et al. 2020): in each copy of a text every word is replaced, with
some probability, by one of its candidates. Those of a word that is a single piece are the likeliest
other words in its place, by a masked language model; those of a longer word are the words whose
embeddings are nearest to the mean of its pieces'. (The paper takes GloVe vectors for these, and
spares stop words.)
"""

import json
import pathlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from pretrain import cli, sharding, tasks
from pretrain.checkpoint import load_params
from pretrain.data import sources
from pretrain.data.words import WORD
from pretrain.errors import UserError
from pretrain.files import check_new, write_text

ROWS = 32  # masked at a time: of few shapes, so that few programs are compiled


class Augmenter:
    """Candidates for the words of a text, by a masked language model's run."""

    def __init__(self, workdir: pathlib.Path, candidates: int):
        _, task = tasks.restore(workdir)
        if task.objective.name != "mlm":
            raise UserError(
                f"--workdir: {workdir} was trained for {task.objective.name!r}, expected a masked "
                "language model"
            )
        self.count = candidates
        self.pieces, self.room = task.encoder.tokenizer, task.encoder.seq_len
        mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.local_devices()[:1])
        self.params, _ = load_params(workdir, mesh)
        table = np.asarray(self.params["trunk"]["word"]["embedding"])[: self.pieces.vocab_size]
        self.table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        text = np.array([any(c.isalnum() for c in piece) for piece in self.pieces.pieces])
        ordinary = self.pieces.word_start & text
        ordinary[list(self.pieces.special_ids)] = False
        self.words = np.flatnonzero(ordinary)  # pieces that begin a word, and may be one
        model = task.objective.model

        @jax.jit
        def logits(params, tokens, segment_ids, places):
            hidden = model.apply({"params": params}, tokens, segment_ids=segment_ids)
            hidden = jnp.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]
            return model.apply({"params": params}, hidden, method="logits")

        self._logits = logits

    def candidates(self, words: Sequence[str]) -> list[list[str]]:
        """For each word of a text, the best first; none for what lies behind the model's row."""
        pieces = self.pieces
        cut = pieces.encode_words(list(words))
        room = self.room - len(pieces.prefix) - len(pieces.suffix)
        ends = np.cumsum([len(ids) for ids in cut])
        inside = [ids for ids, end in zip(cut, ends, strict=True) if end <= room]
        row = [*pieces.prefix, *(i for ids in inside for i in ids), *pieces.suffix]
        starts = len(pieces.prefix) + np.concatenate([[0], ends]).astype(int)
        single = [i for i, ids in enumerate(inside) if len(ids) == 1]
        scores = np.zeros((len(words), len(self.words)), np.float32)
        scores[single] = self._in_place(row, starts[single])[:, self.words]
        for i, ids in enumerate(cut):
            if len(ids) > 1:
                scores[i] = self.table[self.words] @ self.table[ids].mean(0)
        found = []
        for i, (word, ids) in enumerate(zip(words, cut, strict=True)):
            known = len(ids) > 1 or i < len(inside)
            if not known or not any(c.isalnum() for c in word):
                found.append([])
                continue
            best = self.words[np.argsort(-scores[i], kind="stable")[: self.count + 1]]
            texts = [pieces.decode([int(piece)]).strip() for piece in best if [piece] != ids]
            found.append([text for text in texts if text and text != word][: self.count])
        return found

    def _in_place(self, row: list[int], places: np.ndarray) -> np.ndarray:
        """Logits ``[places, V]`` of the row with one place masked at a time."""
        tokens = np.full((len(places), self.room), self.pieces.pad_id, np.int32)
        tokens[:, : len(row)] = row
        tokens[np.arange(len(places)), places] = self.pieces.mask_id
        segment_ids = (np.arange(self.room) < len(row)).astype(np.int32)[None].repeat(ROWS, 0)
        found = [np.zeros((0, self.table.shape[0]), np.float32)]
        for start in range(0, len(places), ROWS):
            index = np.resize(np.arange(start, min(start + ROWS, len(places))), ROWS)
            logits = self._logits(self.params, tokens[index], segment_ids, places[index])
            found.append(np.asarray(logits)[: len(places) - start, : self.table.shape[0]])
        return np.concatenate(found)


def replaced(
    text: str, candidates: Sequence[Sequence[str]], share: float, rng: np.random.Generator
) -> str:
    """``text`` with each word, if it has ``candidates``, replaced with probability ``share``.

    What stands between words stays.
    """
    in_turn = iter(candidates)

    def choose(word: re.Match) -> str:
        options = next(in_turn)
        return str(rng.choice(options)) if options and rng.random() < share else word[0]

    return WORD.sub(choose, text)


def main() -> None:
    values = flags.FLAGS
    output = pathlib.Path(values.output)
    check_new(output, "--output")
    for name, least in (("copies", 1), ("candidates", 1)):
        if values[name].value < least:
            raise UserError(f"--{name}: found {values[name].value}, expected at least {least}")
    if not 0 < values.share <= 1:
        raise UserError(f"--share: found {values.share}, expected above 0 and at most 1")
    columns = {"text": values.text, "label": values.label}
    task = "classify" if values.label else "lm"
    source = sources.open_source(values.input, task=task, key="--input", **columns)
    augmenter = Augmenter(pathlib.Path(values.workdir), values.candidates)
    rng, lines = np.random.default_rng(values.seed), []
    for example in tqdm.tqdm(list(source), desc="augment", unit=" texts"):
        text = example["text"]
        found = augmenter.candidates(WORD.findall(text))
        copies = [replaced(text, found, values.share, rng) for _ in range(values.copies)]
        texts = dict.fromkeys([text, *copies])
        label = {"label": example["label"]} if values.label else {}
        if not label:  # the labelled data has the text already
            del texts[text]
        for text in texts:
            lines.append(json.dumps({"text": text, **label}, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))
    print(f"wrote {output}: {len(lines):,} texts")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a masked language model.", required=True)
    flags.DEFINE_string("input", None, "Texts: any source, see docs/data.md.", required=True)
    flags.DEFINE_string("output", None, "New JSON-lines file.", required=True)
    flags.DEFINE_string("text", "text", "Column of the text: its name, or its number.")
    flags.DEFINE_string(
        "label", "", "Column of the label: written too, and the text itself; '': copies alone."
    )
    flags.DEFINE_integer("copies", 20, "New texts of each text; equal ones count once.")
    flags.DEFINE_integer("candidates", 15, "That a word is replaced by.")
    flags.DEFINE_float("share", 0.4, "Of the words of a copy that are replaced.")
    flags.DEFINE_integer("seed", 0, "Of what is drawn.")
    cli.main(main, __doc__)

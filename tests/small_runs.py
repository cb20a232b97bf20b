"""Small data files, and the shipped configs at sizes that train in a moment."""

import pathlib
import random

from ml_collections import ConfigDict

from pretrain import config as configs
from pretrain.files import read_jsonl

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZERS = ROOT / "tests" / "golden" / "tokenizers"
CLASSES = {
    "animals": ["cat", "dog", "horse", "cow", "sheep", "goat", "bird", "fish", "mouse", "tiger"],
    "numbers": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    "plants": ["oak", "elm", "rose", "moss", "fern", "pine", "grass", "ivy", "lily", "palm"],
}
NAMES = {
    "PER": ["Ada", "Grace", "Alan", "Emmy", "Kurt"],
    "LOC": ["Paris", "Oslo", "Rome", "Delhi", "Lima"],
}
COMMON = ["the", "a", "of", "and", "sees", "near", "with", "from", "big", "new", "runs", "under"]
MODEL = {
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.num_heads": 2,
    "model.ffn_size": 32,
    "model.max_positions": 64,
    "tokenizer.vocab_size": 300,
}


def write_data(folder: pathlib.Path) -> None:
    """``corpus.txt``, and ``train`` and ``test`` with labels that words of the text decide."""
    rng = random.Random(0)
    vocabulary = [word for words in (*CLASSES.values(), *NAMES.values()) for word in words]

    def sentence(special):
        words = rng.choices(COMMON, k=rng.randint(4, 12))
        for word in special:
            words.insert(rng.randrange(len(words) + 1), word)
        return words

    documents = [" ".join(sentence(rng.choices(vocabulary, k=4))) for _ in range(150)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    for split, count in (("train", 60), ("test", 30)):
        rows = []
        for index in range(count):
            label = list(CLASSES)[index % len(CLASSES)]
            rows.append(f"{' '.join(sentence(rng.choices(CLASSES[label], k=2)))}\t{label}\n")
        (folder / f"{split}.tsv").write_text("".join(rows))
        lines = []
        for _ in range(count):
            tagged = {name: f"B-{kind}" for kind in NAMES for name in rng.choices(NAMES[kind])}
            lines += [f"{word} {tagged.get(word, 'O')}\n" for word in sentence(tagged)]
            lines.append("\n")
        (folder / f"{split}.conll").write_text("".join(lines))


def overrides(name: str, arg: str, data: pathlib.Path) -> dict:
    """What makes the shipped config ``name:arg`` small and local."""
    raw = dict.fromkeys(("bert", "gpt", "bart", "electra", "t5"), "txt")
    tagging = "ner" in (name, arg.split(",")[0]) or (name, arg) == ("linear", "crf")
    suffix = raw.get(name, "conll" if tagging else "tsv")
    changes = {"cache_dir": str(data / "cache"), "evals.batch_size": 16}
    if suffix == "txt":
        changes |= {"data.train": str(data / "corpus.txt")}
        changes |= {"data.validation": str(data / "corpus.txt")}
    else:
        changes |= {"data.train": str(data / f"train.{suffix}")}
        changes |= {
            f"data.{split}": str(data / f"test.{suffix}") for split in ("validation", "test")
        }
    if suffix == "tsv":
        changes |= {"data.text": "0", "data.label": "1"}
    if name == "linear":
        return changes | {"model.num_features": 2**12}
    if name == "bilstm":
        changes |= {"model.vocab_size": 100, "model.embedding_size": 8, "model.hidden_size": 16}
        changes |= {
            "model.dropout": 0.1,
            "train.seq_len": 16,
            "train.batch_size": 8,
            "train.budget": "12 steps",
        }
        return changes | {"optimizer.lr": 1e-2, "train.log_every": "1 steps"}
    changes |= MODEL | {"train.seq_len": 32, "train.batch_size": 8, "train.budget": "12 steps"}
    changes |= {"optimizer.lr": 1e-2, "train.log_every": "1 steps", "evals.every": "50%"}
    return changes if suffix == "txt" else changes | {"tokenizer.source": str(data / "corpus.txt")}


def config(name: str, data: pathlib.Path, arg: str = "", **changes) -> ConfigDict:
    """The config of a small run; ``changes`` are dotted keys with ``__`` for the dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    values = overrides(name, arg, data) | changes
    return configs.load(str(ROOT / "configs" / f"{name}.py"), arg or None, values)


def check_that_loss_falls(workdir: pathlib.Path) -> None:
    """Of a run that logs every step; of generator and discriminator, both."""
    records = [r for r in read_jsonl(workdir / "metrics.jsonl") if "train/loss" in r]
    for name in records[0].keys() & {"train/loss", "train/generator_loss"}:
        losses = [record[name] for record in records]
        first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
        assert last < first - 0.1, f"{name} of {workdir} does not fall: {losses}"

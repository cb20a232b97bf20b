"""From a config to what is trained: tokenizer or features, encoded splits, model and objective."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pretrain.config import Reader
from pretrain.data import cache, encoders, labels, sources, store, tokenizer
from pretrain.data.features import NgramFeatures
from pretrain.data.loader import Columns, Dataset
from pretrain.errors import UserError
from pretrain.models.heads import Classifier, LanguageModel, Tagger
from pretrain.models.layers import ACTIVATIONS
from pretrain.models.linear import HashedLinear
from pretrain.models.transformer import TransformerConfig
from pretrain.objectives.base import Objective
from pretrain.objectives.causal import CausalLM
from pretrain.objectives.labelled import Classification, Tagging
from pretrain.objectives.mlm import MaskedLM

LANGUAGE_MODELS = ("mlm", "causal")
VALIDATION_SEED = 0  # the held-out sample is the same for every seed of a study


@dataclasses.dataclass
class Split:
    """One part of the data, encoded.

    ``examples`` are the labelled examples it was made from, None for a token store.
    """

    dataset: Dataset
    about: dict[str, Any]  # name, fingerprint, number of examples
    examples: list[dict] | None = None


@dataclasses.dataclass
class Task:
    """What `pretrain.train` needs to know of a config's data and model."""

    objective: Objective
    encoder: encoders.TokenEncoder | encoders.FeatureEncoder
    splits: dict[str, Split]

    @property
    def tokens_per_row(self) -> float:
        """Mean number of real tokens (features, for linear models) in a training row."""
        train = self.splits["train"].dataset
        if isinstance(train, store.TokenStore):
            return train.stats.num_tokens / train.stats.num_rows
        sample = train[np.arange(min(len(train), 1000))]
        real = sample["segment_ids"] if "segment_ids" in sample else sample["values"]
        return float((real > 0).sum() / len(real))


def build(config: Reader) -> Task:
    """Reads, tokenizes and encodes the data of ``config``, and makes its model and objective."""
    where = pathlib.Path(config.cache_dir or cache.cache_dir()).expanduser()
    if config.objective.name in LANGUAGE_MODELS:
        return _language_model_task(config, where)
    if config.model.name == "linear":
        return _linear_task(config)
    return _labelled_task(config, where)


def _open(config: Reader, split: str, task: str) -> sources.Source | None:
    names = ("format", "text", "label", "tokens", "tags", "document")
    columns = {name: config.data[name] for name in names}
    spec = config.data[split]
    if not spec:
        return None
    return sources.open_source(
        spec, task="lm" if task in LANGUAGE_MODELS else task, key=f"data.{split}", **columns
    )


def _tokenizer(config: Reader, task: str, where: pathlib.Path) -> tokenizer.Tokenizer:
    options = dict(config.tokenizer)
    if config.init_from:
        return tokenizer.Tokenizer.load(pathlib.Path(config.init_from) / encoders.TOKENIZER)
    if options["path"]:
        return tokenizer.Tokenizer.load(options["path"])
    source = _open(config, "train", task)
    if options["source"]:
        source = sources.open_source(options["source"], task="lm", key="tokenizer.source")
    size, kind = options["vocab_size"], options["type"]
    return tokenizer.cached(source, vocab_size=size, model_type=kind, cache_dir=where)


def _transformer(config: Reader, pieces: tokenizer.Tokenizer, seq_len: int) -> TransformerConfig:
    fields = {f.name: config.model[f.name] for f in dataclasses.fields(TransformerConfig)}
    fields["vocab_size"] = fields["vocab_size"] or pieces.vocab_size
    model = TransformerConfig(**fields)
    if model.vocab_size < pieces.vocab_size:
        raise UserError(
            f"config.model.vocab_size: found {model.vocab_size}, expected at least the "
            f"tokenizer's {pieces.vocab_size} pieces"
        )
    if model.hidden_size % model.num_heads:
        raise UserError(
            f"config.model.num_heads: {model.num_heads} does not divide hidden_size "
            f"{model.hidden_size}"
        )
    if seq_len > model.max_positions:
        raise UserError(
            f"config.train.seq_len: rows of {seq_len} tokens are longer than the model's "
            f"model.max_positions {model.max_positions}"
        )
    choices = {
        "activation": tuple(ACTIVATIONS),
        "position": ("learned", "rotary"),
        "norm_position": ("post", "pre"),
        "dtype": ("float32", "bfloat16"),
    }
    for name, known in choices.items():
        if getattr(model, name) not in known:
            raise UserError(
                f"config.model.{name}: found {getattr(model, name)!r}, "
                f"expected one of {', '.join(known)}"
            )
    return model


def _language_model_task(config: Reader, where: pathlib.Path) -> Task:
    name, seq_len = config.objective.name, config.train.seq_len
    pieces = _tokenizer(config, name, where)
    model = LanguageModel(_transformer(config, pieces, seq_len))
    if model.config.causal != (name == "causal"):
        raise UserError(
            f"config.model.causal: found {model.config.causal} with objective.name {name!r}; "
            "expected true for causal and false for mlm"
        )
    splits = {}
    for split in ("train", "validation", "test"):
        source = _open(config, split, name)
        if source is not None:
            rows = store.build(
                source, pieces, seq_len=seq_len, cache_dir=where, packing=config.data.packing
            )
            about = {"name": source.name, "fingerprint": source.fingerprint()}
            splits[split] = Split(rows, about | dataclasses.asdict(rows.stats))
    if name == "mlm":
        options = config.objective
        objective = MaskedLM(
            model,
            mask_id=pieces.mask_id,
            num_special=pieces.num_special,
            mask_rate=options.mask_rate,
            mask_prob=options.mask_prob,
            random_prob=options.random_prob,
        )
    else:
        objective = CausalLM(model, config.objective.chunk_size)
    return Task(objective, encoders.TokenEncoder(pieces, name, (), seq_len), splits)


def _examples(config: Reader) -> dict[str, tuple[sources.Source, list[dict]]]:
    """The examples of each split that the config names, sampled as it says."""
    task, data = config.objective.name, config.data
    found = {}
    for split in ("train", "validation", "test"):
        source = _open(config, split, task)
        if source is None:
            continue
        examples = list(source)
        limits = {
            "train": (data.limit, config.seed),
            "validation": (data.validation_limit, VALIDATION_SEED),
        }
        limit, seed = limits.get(split, (0, 0))
        if limit and (split == "train" or limit < len(examples)):
            stratify = "label" if task == "classify" else None
            chosen = labels.subsample(examples, limit, seed, stratify, key=f"data.{split}")
            examples = [examples[i] for i in chosen]
        found[split] = source, examples
    return found


def _splits(
    found: dict[str, tuple[sources.Source, list[dict]]],
    encoder: encoders.TokenEncoder | encoders.FeatureEncoder,
) -> dict[str, Split]:
    return {
        split: Split(
            Columns(encoder.encode(examples, f"data.{split}")),
            {
                "name": source.name,
                "fingerprint": source.fingerprint(),
                "examples": len(examples),
            },
            examples,
        )
        for split, (source, examples) in found.items()
    }


def _labelled_objective(config: Reader, model, num_examples: int) -> Classification | Tagging:
    kind = {"classify": Classification, "tag": Tagging}[config.objective.name]
    return kind(model, config.objective.loss, config.objective.C, num_examples)


def _label_names(config: Reader, source: sources.Source, examples: list[dict]) -> list[str]:
    """Of all training data, also where a sample happens to lack a class."""
    return labels.label_names(source if config.data.limit else examples, config.objective.name)


def _labelled_task(config: Reader, where: pathlib.Path) -> Task:
    task = config.objective.name
    found = _examples(config)
    pieces = _tokenizer(config, task, where)
    names = _label_names(config, *found["train"])
    longest = [labels.row_lengths(examples, pieces).max() for _, examples in found.values()]
    seq_len = labels.fit_length(longest, config.train.seq_len)
    encoder = encoders.TokenEncoder(pieces, task, names, seq_len)
    model = _transformer(config, pieces, seq_len)
    head = {"num_classes": len(names), "head_dropout": config.objective.head_dropout}
    if task == "classify":
        if config.objective.pool not in ("first", "last", "mean", "pooler"):
            raise UserError(
                f"config.objective.pool: found {config.objective.pool!r}, "
                "expected first, last, mean or pooler"
            )
        model = Classifier(model, pool=config.objective.pool, **head)
    else:
        model = Tagger(model, **head)
    splits = _splits(found, encoder)
    return Task(_labelled_objective(config, model, len(found["train"][1])), encoder, splits)


def _linear_task(config: Reader) -> Task:
    task, model = config.objective.name, config.model
    found = _examples(config)
    source, examples = found["train"]
    names = _label_names(config, source, examples)
    ngrams = None
    if task == "classify":
        ngrams = NgramFeatures(model.num_features, (1, model.ngrams))
        ngrams.fit([example["text"] for example in examples])
    window = model.window if task == "tag" else 0
    encoder = encoders.FeatureEncoder(
        task, names, num_features=model.num_features, window=window, ngrams=ngrams
    )
    splits = _splits(found, encoder)
    encoder.seq_len = splits["train"].dataset[np.arange(1)]["features"].shape[1]
    head = HashedLinear(model.num_features, len(names))
    num_examples = int(_num_labels(splits["train"].dataset))
    return Task(_labelled_objective(config, head, num_examples), encoder, splits)


def _num_labels(dataset: Dataset) -> float:
    """Labels trained on: words of a tagged split, else texts."""
    rows = dataset[np.arange(len(dataset))]
    return rows["label_mask"].sum() if "label_mask" in rows else rows["weights"].sum()

"""From a config to what is trained: tokenizer or features, encoded splits, model and objective."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pretrain import masked, optim, sequences, small
from pretrain.config import COLUMNS, LANGUAGE_MODELS, SMALL_MODELS, Reader
from pretrain.data import cache, encoders, labels, sources, store, tokenizer
from pretrain.data.loader import Columns, Dataset
from pretrain.data.static_masks import StaticMasks
from pretrain.errors import UserError
from pretrain.files import read_json
from pretrain.models.families import FAMILIES, language_model
from pretrain.models.heads import POOLERS, POOLS, Classifier, Tagger
from pretrain.objectives.base import Objective
from pretrain.objectives.causal import CausalLM
from pretrain.objectives.denoising import Denoising
from pretrain.objectives.labelled import LOSSES, Classification, Tagging
from pretrain.schema import MODELS

CONFIG, RESULT = "config.json", "result.json"  # of a run, in its workdir
SPLITS = ("train", "validation", "test")
SAMPLED = 1000  # rows, where there is no exact count
VALIDATION_SEED = 0  # the held-out sample is the same for every seed of a study
Encoder = encoders.Encoder
Found = dict[str, tuple[sources.Source, list[dict]]]


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
    """What `pretrain.train` needs to know of a config's data and model.

    ``learner``: the objective that is trained, where it is more than the one that is evaluated.
    ``teacher``: the fingerprint of what it imitates, if anything.
    """

    objective: Objective
    encoder: Encoder
    splits: dict[str, Split]
    learner: Objective | None = None
    teacher: str = ""

    def __post_init__(self):
        self.learner = self.learner or self.objective

    @property
    def tokens_per_row(self) -> float:
        """Mean number of real tokens (features, for linear models) in a training row.

        Of a token store exactly, else of at most `SAMPLED` rows, evenly out of all.
        """
        train = self.splits["train"].dataset
        if isinstance(train, StaticMasks):
            train = train.rows
        if isinstance(train, store.TokenStore):
            return train.stats.num_tokens / train.stats.num_rows
        count = min(len(train), SAMPLED)
        sample = train[np.arange(count) * len(train) // count]
        real = sample["segment_ids"] if "segment_ids" in sample else sample["features"]
        return float((real > 0).sum() / len(real))

    @property
    def row_flops(self) -> float:
        """Floating-point operations of one evaluation of loss and gradient on a row."""
        sparse = isinstance(self.encoder, encoders.FeatureEncoder)
        seq_len = self.tokens_per_row if sparse else self.encoder.seq_len
        return self.learner.train_flops(seq_len)

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each split, of the tokenizer and of the teacher."""
        found = {name: split.about["fingerprint"] for name, split in self.splits.items()}
        pieces = self.encoder.tokenizer
        found |= {"tokenizer": pieces.fingerprint} if pieces is not None else {}
        return found | ({"teacher": self.teacher} if self.teacher else {})


def cache_dir(config: Reader) -> pathlib.Path:
    """Where tokenizers and token stores are kept."""
    return pathlib.Path(config.cache_dir or cache.cache_dir()).expanduser()


def build(config: Reader, pieces: tokenizer.AnyTokenizer | None = None) -> Task:
    """Reads, tokenizes and encodes the data of ``config``, and makes its model and objective.

    ``pieces``: a tokenizer in place of the one that the config names.
    """
    where = cache_dir(config)
    if config.objective.name in LANGUAGE_MODELS:
        encoder, splits = _token_stores(config, where)
        return Task(make_objective(config, encoder), encoder, splits)
    found = _examples(config)
    if config.model.name in SMALL_MODELS:
        examples = {split: examples for split, (_, examples) in found.items()}
        more = transfer(config)[1] if config.distill.transfer else []
        encoder = small.make_encoder(config, examples, _label_names(config, *found["train"]), more)
    else:
        pieces = pieces or _tokenizer(config, where, found["train"][0])
        encoder = _token_encoder(config, found, pieces)
    splits = {
        split: _encode_split(encoder, source, examples, f"data.{split}")
        for split, (source, examples) in found.items()
    }
    train = splits["train"].dataset
    if not encoder.seq_len:  # of linear models: features of a row, of all its words
        encoder.seq_len = int(np.prod(train[np.arange(1)]["features"].shape[1:]))
    share = (config.train.batch_size or len(train)) / len(train)
    return Task(make_objective(config, encoder, share), encoder, splits)


def read_config(workdir: pathlib.Path) -> Reader:
    """The resolved config of a training run, on whatever platform it is used now."""
    if not (workdir / CONFIG).is_file():
        raise UserError(f"--workdir: no {CONFIG} in {workdir}; expected that of a training run")
    config = ConfigDict(read_json(workdir / CONFIG))
    if "attention" in config.get("model", {}):
        config.model.attention = "auto"
    return Reader(config)


def restore(workdir: pathlib.Path) -> tuple[Reader, Task]:
    """The config and the task, without data, of a training run's workdir."""
    config, encoder = read_config(workdir), encoders.load(workdir)
    return config, Task(make_objective(config, encoder), encoder, {})


def make_objective(config: Reader, encoder: Encoder, share: float = 1.0) -> Objective:
    """The model of ``config`` with its loss; a batch is a ``share`` of the training set."""
    objective, name = config.objective, config.objective.name
    num_classes = len(encoder.label_names)
    if config.model.name in SMALL_MODELS:
        model = small.make_model(config, num_classes)
    else:
        options = backbone_options(config, encoder.tokenizer, encoder.seq_len)
        _check_objective(config, options)
        trunk = FAMILIES[config.model.name].backbone(options)
        if name == "classify":
            pool = pooling(config, options)
            model = Classifier(trunk, num_classes, pool, objective.head_dropout)
        elif name == "tag":
            model = Tagger(trunk, num_classes, objective.head_dropout, objective.pooler)
        elif name == "mlm":
            return masked.masked_lm(config, options, encoder.tokenizer)
        elif name == "rtd":
            return masked.replaced_token_detection(config, options, encoder.tokenizer)
        elif name in sequences.NAMES:
            return sequences.make_objective(config, options, encoder)
        else:
            model = language_model(config.model.name, options)
    if name == "denoising":
        masking = masked.masking(encoder.tokenizer, name)
        masking |= {key: objective[key] for key in ("mask_rate", "mask_prob", "random_prob")}
        return Denoising(model, **masking, chunk_size=objective.chunk_size)
    if name == "causal":
        return CausalLM(model, objective.chunk_size)
    _check(objective, "objective.loss", LOSSES)
    options = (model, objective.loss, objective.C, share if objective.C else 1.0)
    return Classification(*options) if name == "classify" else Tagging(*options, objective.crf)


def make_optimizer(config: Reader) -> optim.Descent | optim.LBFGS:
    """The optimizer of ``config``, for a model as wide as its own."""
    scales = "mup_base_width" in MODELS[config.model.name]
    ratio = backbone_options(config).width_ratio if scales else 1.0
    return optim.create(**config.optimizer, width_ratio=ratio)


def _check(section: Reader, key: str, known: Iterable[str]) -> None:
    found = section[key.split(".")[-1]]
    if found not in known:
        raise UserError(f"config.{key}: found {found!r}, expected one of {', '.join(known)}")


def _open(
    config: Reader, spec: str, key: str, columns: Mapping[str, str] | None = None
) -> sources.Source:
    task = config.objective.name
    options = {name: config.data[name] for name in COLUMNS[task]} | dict(columns or {})
    return sources.open_source(
        spec, task="lm" if task in LANGUAGE_MODELS else task, key=key, **options
    )


def _splits(config: Reader) -> Iterator[tuple[str, sources.Source]]:
    """The splits that the config names; training data there must be."""
    for split in SPLITS:
        if split == "train" or config.data[split]:
            yield split, _open(config, config.data[split], f"data.{split}")


def _tokenizer(
    config: Reader, where: pathlib.Path, train: sources.Source
) -> tokenizer.AnyTokenizer:
    options = config.tokenizer
    own = options.path or options.source
    if config.init_from and not (own and "vocab" in config.surgery.resize):
        if options.path:
            raise UserError(
                f"config.tokenizer.path: found {options.path!r} with init_from, whose tokenizer "
                "goes with its weights; expected '', or surgery.resize 'vocab'"
            )
        dict(options)  # configs name a source for runs from scratch: that run's counts as it
        return tokenizer.load(config.init_from)
    if options.path:
        return tokenizer.load(options.path)
    if config.distill.teacher and config.objective.name in LANGUAGE_MODELS:
        dict(options)  # both read the same pieces
        return tokenizer.load(config.distill.teacher)
    source = train
    if options.source:
        # Columns and formats of labelled files say nothing of a file of plain text.
        task = config.objective.name
        names = COLUMNS[task] if task in LANGUAGE_MODELS else ()
        settings = {name: config.data[name] for name in names}
        source = sources.open_source(options.source, task="lm", key="tokenizer.source", **settings)
    size, kind = options.vocab_size, options.type
    return tokenizer.cached(source, vocab_size=size, model_type=kind, cache_dir=where)


def backbone_options(
    config: Reader, pieces: tokenizer.AnyTokenizer | None = None, seq_len: int = 0
) -> Any:
    """The frozen options of the ``model`` section, checked against a tokenizer and rows' length."""
    kind = FAMILIES[config.model.name].options
    fields = {f.name: config.model[f.name] for f in dataclasses.fields(kind)}
    if pieces is not None:
        fields["vocab_size"] = fields["vocab_size"] or pieces.vocab_size
    options = kind(**fields)
    if pieces is not None and options.vocab_size < pieces.vocab_size:
        raise UserError(
            f"config.model.vocab_size: found {options.vocab_size}, expected at least the "
            f"tokenizer's {pieces.vocab_size} pieces"
        )
    if seq_len > options.max_positions:
        raise UserError(
            f"config.train.seq_len: rows of {seq_len} tokens are longer than the model's "
            f"model.max_positions {options.max_positions}"
        )
    return options


def _check_objective(config: Reader, options: Any) -> None:
    """`UserError` if the model cannot learn the objective."""
    family, name = config.model.name, config.objective.name
    if name == "none":
        raise UserError(
            "config.objective.name: found 'none', a model without a head; expected to start from "
            "it with init_from, or to take embeddings (tools.embed)"
        )
    known = FAMILIES[family].objectives
    if name in LANGUAGE_MODELS and name not in known:
        raise UserError(
            f"config.objective.name: found {name!r} with model.name {family!r}, expected "
            f"{' or '.join(known)}"
        )
    causal = name in ("causal", "prefix", "recurrent")
    if name in LANGUAGE_MODELS and options.causal != causal:
        raise UserError(
            f"config.model.causal: found {options.causal} with objective.name {name!r}; "
            f"expected {causal}"
        )
    unused = getattr(options, "mem_len", 0) and not (options.zero_memory or options.same_length)
    if name == "causal" and unused:
        raise UserError(
            f"config.model.mem_len: found {options.mem_len} with objective.name 'causal', whose "
            "rows have no memory, expected 0, or objective.name 'recurrent'"
        )


def pooling(config: Reader, options: Any) -> str:
    """How the classifier of ``config`` makes one vector of a row."""
    _check(config.objective, "objective.pool", ("", *POOLS))
    writes = options.causal or getattr(options, "reads", "") == "decoder"
    where = found = config.objective.pool or ("last" if writes else "first")
    if found == "pooler":
        where = POOLERS[options.pooler].position
    if options.causal and where == "first":
        raise UserError(
            f"config.objective.pool: found {found!r} with a causal model, whose first "
            "position sees nothing of the text; expected last or mean"
        )
    return found


def _token_stores(
    config: Reader, where: pathlib.Path
) -> tuple[encoders.TokenEncoder, dict[str, Split]]:
    found = dict(_splits(config))
    encoder = encoders.TokenEncoder(
        _tokenizer(config, where, found["train"]), config.objective.name, (), config.train.seq_len
    )
    splits = {
        split: _token_store(config, encoder, source, f"data.{split}")
        for split, source in found.items()
    }
    return encoder, splits


def _token_store(
    config: Reader, encoder: encoders.TokenEncoder, source: sources.Source, key: str
) -> Split:
    name = config.objective.name
    helper = sequences if name in sequences.NAMES else masked
    stream = name == "recurrent"
    rows = store.build(
        source,
        encoder.tokenizer,
        seq_len=helper.row_length(config, encoder.seq_len),
        cache_dir=cache_dir(config),
        packing=not stream and config.data.packing,
        stream=stream,
        key=key,
    )
    about = {"name": source.name, "fingerprint": source.fingerprint()}
    about |= {"examples": rows.stats.num_documents, **dataclasses.asdict(rows.stats)}
    if name in ("mlm", *sequences.NAMES):
        rows = helper.rows(config, rows, encoder)
    return Split(rows, about)


def _examples(config: Reader) -> Found:
    """The examples of each split that the config names, sampled as it says."""
    task, data = config.objective.name, config.data
    found = {}
    for split, source in _splits(config):
        examples = list(source)
        limits = {
            "train": (data.limit, config.seed),
            "validation": (data.validation_limit, VALIDATION_SEED),
        }
        limit, seed = limits.get(split, (0, 0))
        if limit and (split == "train" or limit < len(examples)):
            stratify = "label" if task == "classify" else None
            chosen = labels.subsample(examples, limit, seed, stratify)
            examples = [examples[i] for i in chosen]
        found[split] = source, examples
    return found


def transfer(config: Reader) -> tuple[sources.Source, list[dict]]:
    """The texts of ``distill.transfer``, of which only the teacher knows a label."""
    spec, name = config.distill.transfer, config.objective.name
    if name != "classify":
        raise UserError(
            f"config.distill.transfer: found {spec!r} with objective.name {name!r}, "
            "expected classify"
        )
    options = dict(format="", text=config.distill.transfer_text, document="paragraph")
    source = sources.open_source(spec, task="lm", key="distill.transfer", **options)
    return source, [{"text": example["text"]} for example in source]


def read_split(
    config: Reader, encoder: Encoder, spec: str, key: str, columns: Mapping[str, str]
) -> Split:
    """Any source, for a task that is there: read as ``config.data`` says but for ``columns``."""
    source = _open(config, spec, key, columns)
    if encoder.task in LANGUAGE_MODELS:
        return _token_store(config, encoder, source, key)
    return _encode_split(encoder, source, list(source), key)


def _encode_split(
    encoder: Encoder, source: sources.Source, examples: list[dict], key: str
) -> Split:
    """Examples of a source as columns; ``key`` is the config key named in errors."""
    about = {"name": source.name, "fingerprint": source.fingerprint(), "examples": len(examples)}
    return Split(Columns(encoder.encode(examples, key)), about, examples)


def _label_names(config: Reader, source: sources.Source, examples: list[dict]) -> list[str]:
    """Of all training data, also where a sample happens to lack a class."""
    return labels.label_names(source if config.data.limit else examples, config.objective.name)


def _token_encoder(
    config: Reader, found: Found, pieces: tokenizer.AnyTokenizer
) -> encoders.TokenEncoder:
    task = config.objective.name
    longest = [labels.row_lengths(examples, pieces).max() for _, examples in found.values()]
    seq_len = labels.fit_length(longest, config.train.seq_len)
    return encoders.TokenEncoder(pieces, task, _label_names(config, *found["train"]), seq_len)

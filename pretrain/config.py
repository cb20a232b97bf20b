"""The configuration: every key with its default and meaning, arguments, durations, unread keys.

A config file in ``configs/`` defines ``get_config(arg)``, starts from :func:`base` and overrides.
Sections whose keys depend on a choice (the model's family, the objective, the optimizer) come from
one table each, so that a resolved config holds no key that nothing reads.
"""

import hashlib
import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pretrain.errors import UserError
from pretrain.schema import (
    COLUMNS,
    LANGUAGE_MODELS,
    MODELS,
    OBJECTIVES,
    OPTIMIZERS,
    SMALL_MODELS,
)

CHOICES = ("model", "objective", "optimizer")  # sections whose keys depend on their ``name``
_UNSET = object()


def base(model: str = "transformer", objective: str = "mlm", optimizer: str = "adamw"):
    """All keys of a run with their defaults, for one choice of model, objective and optimizer."""
    config = ConfigDict()
    config.label = ""  # name shown in reports; "": made from the model and the objective
    config.seed = 0  # of initialisation, data order, sampling, corruption and dropout
    config.init_from = ""  # workdir of a finished run: its model, tokenizer and weights start this
    config.surgery = ConfigDict(  # on the weights of init_from, see docs/surgery.md
        dict(
            rules="",  # "regex -> new path; regex -> skip; regex -> fresh": the first match wins
            layers="",  # the source's layers that become 0, 1, ...: "0,2,4,7,9,11"
            tile=False,  # tile a smaller model's weights into this larger one, from the middle
            resize="",  # tables whose rows may be others: "vocab", "positions" or "vocab,positions"
            keep_model=False,  # this config's model section stands, not the source's; as with tile
        )
    )
    config.distill = ConfigDict(distillation())
    config.cache_dir = ""  # tokenizers and token stores; "": $PRETRAIN_CACHE or ~/.cache/pretrain

    config.model = ConfigDict({"name": model, **_choice("model", MODELS, model)})
    config.objective = ConfigDict(
        {"name": objective, **_choice("objective", OBJECTIVES, objective)}
    )
    config.optimizer = ConfigDict(
        {"name": optimizer, **_choice("optimizer", OPTIMIZERS, optimizer)}
    )

    config.tokenizer = ConfigDict(
        dict(
            path="",  # SentencePiece model, tokenizer.json or its folder; "": train one, once
            source="",  # what to train it on; "": data.train
            vocab_size=8192,
            type="unigram",  # "unigram" | "bpe"
        )
    )
    config.data = ConfigDict(
        dict(
            train="docstrings:corpus:train",  # a source, see docs/data.md
            validation="docstrings:corpus:validation",
            test="",  # "": no test scores
            format="",  # "": by the file's extension
            text="text",  # names (or indices) of the columns
            label="label",
            tokens="tokens",
            tags="tags",
            document="paragraph",  # what a document of a text file is: "paragraph", "line", "file"
            packing=True,  # language models: several documents a row, no attention across
            limit=0,  # labelled tasks: train on a nested random sample of this size; 0: all
            validation_limit=0,  # labelled tasks: as many held-out examples at most; 0: all
        )
    )
    config.train = ConfigDict(
        dict(
            budget="1000 steps",  # also examples, epochs, tokens, flops, seconds: "3 epochs";
            # tokens are those that the model reads, of an encoder-decoder the encoder alone
            batch_size=32,  # rows a step over all devices; 0: the whole training set
            seq_len=128,  # longest row, in tokens; labelled tasks use less if all fit in less
            accumulate=1,  # micro-batches summed into one update
            log_every="1%",  # metrics of a step into metrics.jsonl and TensorBoard
        )
    )
    config.evals = ConfigDict(
        dict(
            every="10%",  # of the budget, or a duration; the held-out scores of data.validation
            batch_size=64,
            batches=0,  # about so many batches, evenly out of data.validation; 0: all
        )
    )
    config.evals.probes = ConfigDict()  # name -> what `probe` gives
    config.checkpoint = ConfigDict(
        dict(
            every="300 seconds",  # any duration; also saved at the end and on SIGTERM
            keep=1,  # newest checkpoints kept
            best="",  # validation score whose best step is kept and reported; "": the last step
        )
    )
    config.mesh = ConfigDict(  # devices along each axis, see docs/sharding.md
        dict(
            slices=1,  # groups that a slower network joins: of a TPU as many as its slices
            data=-1,  # replicas in each of them; -1 (of one axis): all that is left
            fsdp=1,  # rows and parameters
            fsdp_y=1,  # the same over a second axis, for the other side of a TPU's torus
            tensor=1,  # heads, feed-forward width, vocabulary
            sequence=1,  # positions of a row
        )
    )
    _drop_unused(config)
    return config.lock()


def distillation() -> dict[str, Any]:
    """The section ``distill``: what a teacher adds to the objective, see docs/distillation.md."""
    return dict(
        teacher="",  # workdir of a finished run to imitate; "": none, and no other key is set
        task=1.0,  # weight of the objective's own loss
        logits=0.0,  # KL(teacher || student) of the outputs times temperature^2
        temperature=1.0,
        top_k=0,  # causal: so many of the teacher's outputs a position are kept on disk and read
        # back by row; 0: it runs beside the student. (Class probabilities are always kept.)
        all_positions=False,  # mlm: outputs at all real positions, not the masked ones alone
        transfer="",  # classify: a source of texts without labels that the teacher labels
        transfer_text="text",  # name (or index) of its column
        cosine=0.0,  # 1 - cosine of the last layers' hidden states
        embeddings=0.0,  # mean squared difference of what enters the first layer
        hidden=0.0,  # mean squared difference of what the layers pass on
        standardise=False,  # hidden states of mean 0 and variance 1 first (MobileBERT)
        mean=0.0,  # squared difference of hidden states' means over the width (MobileBERT)
        variance=0.0,  # and of their variances, absolute
        attention=0.0,  # KL(teacher || student) of the attention distributions (MobileBERT)
        attention_scores=0.0,  # mean squared difference before the softmax (TinyBERT)
        layers="",  # the teacher's layer, counted from 1 (surgery.layers: from 0), for each of the
        # student's; "": evenly
        projection="",  # of the student's states to the teacher's width: "" (equal widths),
        # "shared" by all layers (TinyBERT), or "layer": one for each
        relations=0.0,  # KL of self-attention relations of the last layer (MiniLM)
        relation_pairs="query-query,key-key,value-value",  # MiniLM 1: "query-key,value-value"
        relation_heads=0,  # heads that the vectors are cut into; 0: as many as attention has
        relation_layer=0,  # the teacher's, from 1; 0: its last
        progressive=0.0,  # first share of the budget in which the layers are learned one after
        # the other by their terms alone, those below frozen; the rest learns without these terms
    )


def defaults(config: ConfigDict) -> dict[str, Any]:
    """The leaves of `base` for the choices that a whole config has made; none for a section."""
    choices = [config.get(section, {}).get("name") for section in CHOICES]
    return flatten(base(*choices)) if all(choices) else {}


def probe(objective: str, source: str) -> ConfigDict:
    """A section of ``evals.probes``: a short fine-tuning of the live model.

    ``source`` has the splits ``train`` and ``validation``; 200 labels, 100 steps, every quarter.
    """
    whole = base(objective=objective)
    section = {name: whole[name].to_dict() for name in ("objective", "optimizer", "data")}
    section["data"] |= {"train": f"{source}:train", "validation": f"{source}:validation"}
    section["data"] |= {"limit": 200, "validation_limit": 300}
    section["optimizer"]["lr"] = 1e-3
    section["train"] = {"budget": "100 steps", "batch_size": 16, "seq_len": 64}
    section["evals"] = {"batch_size": whole.evals.batch_size}
    return ConfigDict(section | {"every": "25%"})


def probe_config(config: "Reader", name: str) -> "Reader":
    """A probe's section as the config of a labelled run with the model and seed of ``config``."""
    section = config.evals.probes[name]
    shared = {key: config._config[key] for key in ("model", "seed", "cache_dir")}
    whole = ConfigDict({**section._config, **shared, "init_from": ""})
    check(whole)
    return Reader(whole, section._prefix, config._read)


def _drop_unused(config: ConfigDict) -> None:
    """Removes the keys that this choice of model and objective has no use for."""
    for name in set().union(*COLUMNS.values()).difference(COLUMNS[config.objective.name]):
        del config.data[name]
    if config.objective.name in LANGUAGE_MODELS:
        if (name := config.model.name) in SMALL_MODELS:
            raise UserError(
                f"config.model.name: found {name!r} with objective.name {config.objective.name!r}, "
                "expected transformer"
            )
        del config.data.limit, config.data.validation_limit
        if config.objective.name == "recurrent":
            del config.data.packing  # one stream
    else:
        del config.evals.probes
        del config.data.packing
    if config.model.name in SMALL_MODELS:
        del config.tokenizer
        if config.objective.name == "tag":
            del config.objective.pooler
    if config.model.name == "linear":
        del config.train.seq_len, config.objective.head_dropout
        if config.objective.name == "classify":
            del config.objective.pool, config.model.window
        else:
            for name in MODELS["linear"].keys() - {"num_features", "window"}:
                del config.model[name]


def _choice(key: str, table: Mapping[str, dict], name: str) -> dict:
    if name not in table:
        raise UserError(f"config.{key}.name: found {name!r}, expected one of {', '.join(table)}")
    return table[name]


def parse_arg(arg: str | None, **defaults) -> ConfigDict:
    """Parses ``"small,seq=256,modern"``: typed by the defaults; the first unnamed is ``variant``.

    A bare name of a boolean key sets it. Unknown names and wrong types raise `UserError`.
    """
    values = dict(defaults)
    for index, part in enumerate(filter(None, (arg or "").split(","))):
        name, equals, text = part.partition("=")
        if not equals and index == 0 and "variant" in defaults and name not in defaults:
            name, text = "variant", part
        elif not equals and isinstance(defaults.get(name), bool):
            text = "true"
        if name not in defaults or not text:
            known = ", ".join(defaults)
            raise UserError(f"config argument {arg!r}: {part!r} is not one of {known}")
        values[name] = _parse_as(text, type(defaults[name]), f"config argument {name!r}")
    return ConfigDict(values)


def _parse_as(text: str, kind: type, what: str):
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{what}: found {text!r}, expected {kind.__name__}") from None


def variant(table: Mapping[str, Any], name: str) -> Any:
    """The entry of a config file's table of sizes; `UserError` lists the known ones."""
    if name not in table:
        raise UserError(f"config variant: found {name!r}, expected one of {', '.join(table)}")
    return table[name]


def load(path: str, arg: str | None = None, overrides: Mapping[str, Any] | None = None):
    """Runs ``get_config(arg)`` of a config file and sets dotted ``overrides``."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"config: no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    for key, value in (overrides or {}).items():
        set_key(config, key, value)
    return config


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one dotted key that must exist, with a value of the type it has."""
    *parents, leaf = key.split(".")
    section = config
    for name in parents:
        section = section.get(name) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or leaf not in section:
        raise UserError(f"config: unknown key {key!r}")
    old = section[leaf]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(old) is not type(value):
        raise UserError(f"config.{key}: found {value!r}, expected {type(old).__name__}")
    section[leaf] = value


AT_LEAST_ONE = (
    *("model.num_layers", "model.hidden_size", "model.num_heads", "model.ffn_size"),
    *("model.max_positions", "model.unroll", "model.global_every", "model.bottleneck_size"),
    *("model.min_ngrams", "model.min_char_ngrams", "model.min_count", "model.word_length"),
    *("model.num_ffns", "model.relative_buckets", "model.relative_distance", "model.div_val"),
    *("objective.chunk_size", "objective.mean_span", "objective.num_sentinels"),
    *("optimizer.memory", "train.accumulate", "evals.batch_size", "checkpoint.keep"),
)
NOT_NEGATIVE = (
    *("model.vocab_size", "model.type_vocab_size", "model.window", "objective.C"),
    *("model.embedding_size", "model.num_kv_heads", "model.head_size", "model.position_offset"),
    *("model.local_window", "model.num_decoder_layers", "model.decoder_start_id"),
    *("model.mup_base_width", "model.mup_base_head_size"),
    *("model.mem_len", "model.clamp_len", "model.ngrams", "model.char_ngrams"),
    *("objective.eval_mem_len", "objective.eval_clamp_len", "objective.discriminator_weight"),
    *("objective.static_masks", "objective.generator_size", "objective.generator_layers"),
    *("seed", "data.limit", "data.validation_limit", "train.batch_size", "evals.batches"),
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.clip", "optimizer.update_clip"),
    *(f"distill.{name}" for name in ("task", "logits", "top_k", "cosine", "embeddings", "hidden")),
    *(f"distill.{name}" for name in ("mean", "variance", "attention", "attention_scores")),
    *(f"distill.{name}" for name in ("relations", "relation_heads", "relation_layer")),
)
POSITIVE = (
    *("distill.temperature", "model.smoothing"),
    *("model.norm_eps", "model.outer_norm_eps", "model.rotary_base", "model.local_rotary_base"),
    *("optimizer.eps", "optimizer.tolerance", "optimizer.rms", "optimizer.layer_decay"),
)
DROPOUT = ("model.dropout", "model.attention_dropout", "objective.head_dropout")
SHARES = (
    *(*DROPOUT, "objective.short_rate", "distill.progressive", "optimizer.decay_rate"),
    *("optimizer.b1", "optimizer.b2", "optimizer.momentum", "optimizer.ema"),
)
RATES = ("objective.mask_rate", "objective.replace_rate")
PROBABILITIES = ("objective.mask_prob", "objective.random_prob")
UNIT = (*PROBABILITIES, "model.beta", "optimizer.end")
RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (AT_LEAST_ONE, lambda x: x >= 1, "at least 1"),
    (NOT_NEGATIVE, lambda x: x >= 0, "at least 0"),
    (POSITIVE, lambda x: x > 0, "more than 0"),
    (SHARES, lambda x: 0 <= x < 1, "from 0 to below 1"),
    (RATES, lambda x: 0 < x < 1, "above 0, below 1"),
    (UNIT, lambda x: 0 <= x <= 1, "from 0 to 1"),
    (("objective.noise_density",), lambda x: 0 < x <= 0.5, "above 0, to 0.5"),
)

SHOWN = 5  # differences that are told one by one


def check(config: ConfigDict) -> None:
    """`UserError` for a choice without its keys, or a number out of its range."""
    names = {section: config[section].name for section in CHOICES}
    whole = base(**names)
    for section in CHOICES:
        if other := sorted(set(config[section]) ^ set(whole[section])):
            chosen = ", ".join(f"{key}.name {name!r}" for key, name in names.items())
            raise UserError(
                f"config.{section}: its keys are not those of {chosen} ({', '.join(other[:SHOWN])} "
                "differ); choose it in the config file, which sets the keys that go with it"
            )
    leaves = flatten(config)
    for key, value in leaves.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key}: found {value}, expected a finite number")
    for keys, inside, expected in RANGES:
        for key in keys:
            if key in leaves and not inside(leaves[key]):
                raise UserError(f"config.{key}: found {leaves[key]}, expected {expected}")
    mask, random = (leaves.get(key, 0.0) for key in PROBABILITIES)
    if mask + random > 1 + 1e-9:
        raise UserError(
            f"config.objective.random_prob: found {random} with mask_prob {mask}, expected at most "
            "1 together"
        )
    loss = leaves.get("objective.loss", "softmax")
    if leaves.get("objective.crf") and loss != "softmax":
        raise UserError(f"config.objective.loss: found {loss!r} with crf, expected 'softmax'")
    if config.optimizer.name == "lbfgs":
        if loss == "hinge":
            raise UserError(
                "config.optimizer.name: found 'lbfgs' with objective.loss 'hinge', which has no "
                "gradient at its kinks; expected adamw, or objective.loss 'squared_hinge'"
            )
        wanted = {"train.batch_size": 0, "train.accumulate": 1, **dict.fromkeys(DROPOUT, 0.0)}
        for key, value in wanted.items():
            if leaves.get(key, value) != value:
                raise UserError(
                    f"config.{key}: found {leaves[key]}, expected {value}: the line search of "
                    "optimizer.name 'lbfgs' needs the same loss at every step"
                )
        if (name := config.objective.name) not in ("causal", "classify", "tag"):
            raise UserError(
                f"config.optimizer.name: found 'lbfgs' with objective.name {name!r}, whose loss "
                "changes with every step; expected adamw or another of "
                f"{', '.join(name for name in OPTIMIZERS if name not in ('adamw', 'lbfgs'))}"
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}} -> {"a.b": 1}``, sorted."""
    leaves = {}
    for key in sorted(config):
        value = config[key]
        nested = isinstance(value, Mapping | ConfigDict)
        leaves.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return leaves


def digest(config: ConfigDict) -> str:
    """SHA-256 (hex) of the resolved keys and values; where caches lie makes no difference."""
    leaves = {k: v for k, v in flatten(config).items() if k != "cache_dir"}
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``"key: old there, new here"`` for the leaves in which two configs differ, or the first."""
    # Where caches lie is no difference, and neither is the mesh: a run may go on on another one.
    a, b = flatten(old), flatten(new)
    keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    keys = [key for key in keys if key != "cache_dir" and not key.startswith("mesh.")]
    told = [f"{k}: {a.get(k)!r} there, {b.get(k)!r} here" for k in keys[:SHOWN]]
    return told + ([f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else [])


def inherit(
    config: ConfigDict, source: Mapping[str, Any], keep: Sequence[str] = ()
) -> tuple[ConfigDict, list[str]]:
    """A copy whose ``model`` is that of another run, ``source``, but for the keys in ``keep``.

    A key that the other run did not know yet has its default; keys that nobody knows are left out.
    Also names the keys that somebody had set: those whose value was neither the default nor the
    source's.
    """
    config = ConfigDict(config.to_dict())
    mine, default = config.model.to_dict(), MODELS[config.model.name]
    if source["name"] == mine["name"]:
        known, keys = default, list(mine)
    else:
        known = _choice("model", MODELS, source["name"])
        keys = ["name", *known]
    section = {k: source.get(k, known.get(k)) for k in keys}
    section |= {k: mine[k] for k in keep if k in mine and k in section}
    replaced = [
        f"model.{k}"
        for k, v in mine.items()
        if k not in keep and k != "name" and v not in (section.get(k, _UNSET), default.get(k, v))
    ]
    config.model = ConfigDict(section)
    return config, sorted(replaced)


class Duration(NamedTuple):
    """An amount of training: ``amount`` of ``unit``."""

    amount: float
    unit: str


UNITS = ("steps", "examples", "epochs", "tokens", "flops", "seconds", "%")


def duration(text: str, key: str) -> Duration:
    """Parses ``"3 epochs"``, ``"2e6 tokens"``, ``"10%"``; an error names the config key."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]+|%)\s*", str(text).lower())
    unit = match[2] if match else ""
    unit = unit if unit in UNITS else unit + "s"
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if unit not in UNITS or not amount > 0:
        raise UserError(
            f"config.{key}: found {text!r}, expected a positive number and one of "
            f'{", ".join(UNITS)}, such as "1000 steps"'
        )
    return Duration(amount, unit)


class Reader:
    """A read-only view of a ConfigDict that remembers which leaves were read."""

    def __init__(self, config: ConfigDict, prefix: str = "", read: set[str] | None = None):
        self._config, self._prefix = config, prefix
        self._read = set() if read is None else read

    def __getitem__(self, name: str) -> Any:
        value = self._config[name]
        if isinstance(value, ConfigDict):
            return Reader(value, f"{self._prefix}{name}.", self._read)
        self._read.add(f"{self._prefix}{name}")
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"config has no key {self._prefix}{name}") from None

    def keys(self) -> list[str]:
        return list(self._config.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def unread(self) -> list[str]:
        """Dotted keys below this one that are set, not left at the default, and nothing has read.

        Whether some are needed depends on others: with ``tokenizer.path`` none is trained.
        """
        default = defaults(self._config)
        return [
            f"{self._prefix}{leaf}"
            for leaf, value in flatten(self._config).items()
            if f"{self._prefix}{leaf}" not in self._read and value != default.get(leaf, _UNSET)
        ]

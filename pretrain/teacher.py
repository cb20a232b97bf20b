"""What a run with ``config.distill.teacher`` learns from: a finished run's model, frozen."""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import tempfile
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain import evaluators, processes, sharding, state, tasks
from pretrain.checkpoint import load_params
from pretrain.config import LANGUAGE_MODELS, Reader, distillation
from pretrain.data import encoders, labels
from pretrain.data.cache import make_once
from pretrain.data.loader import Batch, Columns, Dataset
from pretrain.errors import UserError
from pretrain.models.families import FAMILIES
from pretrain.models.heads import Encoder
from pretrain.objectives.base import Metrics, Objective
from pretrain.objectives.distill import Distilled, Terms
from pretrain.objectives.language import Language, in_chunks

logger = logging.getLogger(__name__)

KEY = "config.distill"
FORMAT = "teacher 1"  # change it whenever what is cached of the same teacher changes
STATES = ("transformer", "mobilebert")  # families whose layers tell their states
OUTPUTS = ("mlm", "causal", "denoising", "classify", "tag")  # objectives whose outputs are compared
VECTORS = ("query", "key", "value")
BY_LAYER = ("hidden", "mean", "variance", "attention", "attention_scores")
NEEDS = (  # options, and what they are of
    dict.fromkeys(("temperature", "top_k", "all_positions"), ("logits",))
    | dict.fromkeys(("relation_pairs", "relation_heads", "relation_layer"), ("relations",))
    | {"transfer_text": ("transfer",), "standardise": ("hidden",)}
    | {"layers": BY_LAYER, "progressive": BY_LAYER}
    | {"projection": ("cosine", "embeddings", "hidden", "mean", "variance")}
)


class States(Language):
    """A model without a head: it has states to teach, and no outputs."""

    name = "none"
    scores = ()

    def score(self, params: dict, output: Any, batch: Batch) -> Metrics:
        raise NotImplementedError("a model without a head has no loss")

    def predict(self, params: dict, batch: Batch) -> Metrics:
        raise NotImplementedError("a model without a head predicts nothing")

    def train_flops(self, seq_len: int) -> float:
        return 3.0 * self.model.trunk.forward_flops(seq_len)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A finished run: its task without data, and where its parameters are."""

    workdir: pathlib.Path
    config: Reader
    task: tasks.Task

    @property
    def objective(self) -> Objective:
        return self.task.objective

    def params(self, mesh: Mesh) -> dict:
        """Those that its objective has, sharded as a student's would be."""
        like = state.abstract_params(self.objective.init, mesh)
        params, _ = load_params(self.workdir, mesh, like=like)
        return {name: params[name] for name in like}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of its result, which has the times of a training or the digest of imported
        weights."""
        return hashlib.sha256((self.workdir / tasks.RESULT).read_bytes()).hexdigest()


def open_teacher(workdir: str) -> Teacher:
    """`UserError` unless ``workdir`` is that of a finished run."""
    folder = pathlib.Path(workdir)
    if not (folder / tasks.RESULT).is_file():
        raise UserError(f"{KEY}.teacher: {workdir!r} is no finished training run; expected one")
    config = tasks.read_config(folder)
    if config.objective.name != "none":
        return Teacher(folder, config, tasks.restore(folder)[1])
    encoder = encoders.load(folder)
    options = tasks.backbone_options(config, encoder.tokenizer)
    model = Encoder(FAMILIES[config.model.name].backbone(options), has_pooler=False)
    return Teacher(folder, config, tasks.Task(States(model), encoder, {}))


def attach(task: tasks.Task, config: Reader, mesh: Mesh) -> tuple[tasks.Task, dict]:
    """The task with a `learner` that imitates the teacher of ``config``, if it names one.

    Also returns the teacher's parameters, for every step; none where its outputs are on disk.
    """
    section = dict(config.distill)
    if not section["teacher"]:
        if unused := [k for k, v in distillation().items() if section[k] != v]:
            raise UserError(
                f"{KEY}.teacher: found '' with {KEY}.{unused[0]} {section[unused[0]]!r}, expected "
                "the workdir of a finished run"
            )
        return task, {}
    if task.objective.carries_memory or task.objective.name == "rtd":
        raise UserError(
            f"{KEY}.teacher: found {config.distill.teacher!r} with objective.name "
            f"{task.objective.name!r}, expected ''"
        )
    terms, layers, relation_layer = _terms(config)
    teacher = open_teacher(config.distill.teacher)
    labelled = task.objective.name not in LANGUAGE_MODELS
    cached = bool(terms.logits) and (labelled or config.distill.top_k > 0)
    live = terms.of_states or (bool(terms.logits) and not cached)
    if terms.of_states:
        _check_families(config, teacher)
    if live or not labelled:  # class probabilities alone need no common pieces
        _check_inputs(task, teacher)
    _check_outputs(terms, task, teacher, config.distill.top_k)
    if terms.of_states:
        layers, relation_layer = _check_states(terms, task, teacher, layers, relation_layer)
    splits, objective = dict(task.splits), task.objective
    if config.distill.transfer:
        splits["train"] = _with_transfer(task, config)
        if objective.C and config.train.batch_size:  # of more rows a batch is a smaller share
            share = config.train.batch_size / len(splits["train"].dataset)
            objective = dataclasses.replace(objective, share=share)
    if cached:
        make = _class_log_probs if labelled else _top_log_probs
        dataset = make(splits["train"], teacher, config, mesh)
        splits["train"] = dataclasses.replace(splits["train"], dataset=dataset)
    learner = Distilled(
        objective,
        teacher.objective if live else None,
        terms,
        layers,
        relation_layer,
        chunk_size=getattr(objective, "chunk_size", 64),
    )
    taught = dataclasses.replace(task, learner=learner, splits=splits, teacher=teacher.fingerprint)
    return taught, teacher.params(mesh) if live else {}


def _terms(config: Reader) -> tuple[Terms, tuple[int, ...], int]:
    """The terms, the teacher's layers (from 0; empty: evenly) and its layer of relations."""
    section = dict(config.distill)
    for name in ("teacher", "transfer", "transfer_text", "top_k"):
        del section[name]
    layers = _layers(section.pop("layers"))
    relation_layer = section.pop("relation_layer") - 1
    pairs = tuple(tuple(p.split("-")) for p in section["relation_pairs"].split(",") if p)
    if not pairs or any(len(p) != 2 or not set(p) <= set(VECTORS) for p in pairs):
        raise UserError(
            f"{KEY}.relation_pairs: found {section['relation_pairs']!r}, expected pairs of "
            f"{', '.join(VECTORS)} such as 'query-query,value-value'"
        )
    if section["projection"] not in ("", "shared", "layer"):
        raise UserError(
            f"{KEY}.projection: found {section['projection']!r}, expected '', shared or layer"
        )
    terms = Terms(**(section | {"relation_pairs": pairs}))
    if not (terms.logits or terms.of_states):
        raise UserError(
            f"{KEY}.teacher: found {config.distill.teacher!r} with no term that it could teach; "
            f"expected a weight above 0, as {KEY}.logits=1.0"
        )
    for name, needed in NEEDS.items():
        found = config.distill[name]
        if found != distillation()[name] and not any(config.distill[term] for term in needed):
            raise UserError(
                f"{KEY}.{name}: found {found!r}, which nothing reads without "
                f"{' or '.join(needed)}; expected {distillation()[name]!r}, or one of these set"
            )
    if terms.all_positions and (config.objective.name != "mlm" or config.distill.top_k):
        raise UserError(
            f"{KEY}.all_positions: found true, expected it with objective.name mlm alone: other "
            "outputs are compared at all positions as it is"
        )
    if terms.progressive and (terms.cosine or terms.embeddings or terms.relations):
        raise UserError(
            f"{KEY}.progressive: found {terms.progressive} with cosine, embeddings or relations, "
            "expected these to be 0: they are of no one layer"
        )
    if terms.progressive and not (terms.task or terms.logits):
        raise UserError(
            f"{KEY}.progressive: found {terms.progressive} with task 0 and logits 0, expected one "
            "of them above 0: the rest of the budget learns nothing else"
        )
    return terms, layers, relation_layer


def _layers(text: str) -> tuple[int, ...]:
    try:
        layers = tuple(int(part) - 1 for part in text.split(",") if part)
    except ValueError:
        layers = (-1,)
    if any(layer < 0 for layer in layers):
        raise UserError(
            f"{KEY}.layers: found {text!r}, expected a layer of the teacher for each of the "
            "student's, counted from 1, such as '3,6,9,12'"
        )
    return layers


def _check_outputs(terms: Terms, task: tasks.Task, teacher: Teacher, top_k: int) -> None:
    """`UserError` unless outputs can be compared, where any are."""
    if top_k and (not terms.logits or terms.of_states or task.objective.name != "causal"):
        raise UserError(
            f"{KEY}.top_k: found {top_k}, expected 0: of language models only 'causal', whose "
            "inputs never change, can have its outputs on disk, and only if no states are compared"
        )
    if not terms.logits:
        return
    ours, theirs = task.objective.name, teacher.config.objective.name
    if ours != theirs or ours not in OUTPUTS:
        raise UserError(
            f"{KEY}.logits: found {terms.logits} with objective.name {ours!r} and a teacher with "
            f"{theirs!r}, expected the same one of {', '.join(OUTPUTS)}"
        )
    if any(getattr(x, "crf", False) for x in (task.objective, teacher.objective)):
        raise UserError(
            f"{KEY}.logits: found {terms.logits} with objective.crf, expected it false in student "
            "and teacher: a random field has no probabilities word by word"
        )
    if ours not in LANGUAGE_MODELS:
        mine, others = task.encoder.label_names, teacher.task.encoder.label_names
        if mine != others:
            raise UserError(
                f"{KEY}.teacher: {teacher.workdir} has the labels {', '.join(others)}, expected "
                f"those of data.train in their order, {', '.join(mine)}"
            )
        return
    mine, others = (x.model.trunk.config.vocab_size for x in (task.objective, teacher.objective))
    if mine != others:
        raise UserError(
            f"{KEY}.logits: found a teacher of {others} pieces, expected model.vocab_size {mine}"
        )
    if top_k > mine:
        raise UserError(f"{KEY}.top_k: found {top_k}, expected at most the {mine} pieces")


def _check_inputs(task: tasks.Task, teacher: Teacher) -> None:
    """`UserError` unless the teacher can read the student's batches."""
    mine, theirs = task.encoder.tokenizer, teacher.task.encoder.tokenizer
    if mine is None or theirs is None or mine.fingerprint != theirs.fingerprint:
        raise UserError(
            f"{KEY}.teacher: {teacher.workdir} has another tokenizer than the student, expected "
            "the same (tokenizer.path), or only logits of a labelled task, which need none"
        )
    longest = teacher.objective.model.trunk.config.max_positions
    if task.encoder.seq_len > longest:
        raise UserError(
            f"config.train.seq_len: found rows of {task.encoder.seq_len} tokens, expected at most "
            f"the {longest} positions of {KEY}.teacher {teacher.workdir}"
        )
    ours, theirs = task.objective.name, teacher.config.objective.name
    if theirs not in ({ours, "mlm", "causal", "none"} if ours in LANGUAGE_MODELS else {ours}):
        raise UserError(
            f"{KEY}.teacher: {teacher.workdir} was trained for {theirs!r}, expected objective.name "
            f"{ours!r}, whose batches it can read"
        )


def _check_families(config: Reader, teacher: Teacher) -> None:
    """`UserError` unless student and teacher tell their states."""
    ours, theirs = "config.model.name", "the teacher's model.name"
    for key, source in ((ours, config), (theirs, teacher.config)):
        if (name := source.model.name) not in STATES:
            raise UserError(
                f"{KEY}: found terms that compare states with {key} {name!r}, which has "
                f"none to compare; expected {' or '.join(STATES)}, or {KEY}.logits alone"
            )


def _check_states(
    terms: Terms, task: tasks.Task, teacher: Teacher, layers: tuple[int, ...], relation_layer: int
) -> tuple[tuple[int, ...], int]:
    """`UserError` unless states can be compared; the teacher's layers, resolved."""
    ours, theirs = (x.model.trunk.config for x in (task.objective, teacher.objective))
    if not layers and not terms.by_layer:
        layers = (theirs.num_layers - 1,) * ours.num_layers  # no term asks
    elif not layers:
        if theirs.num_layers % ours.num_layers:
            raise UserError(
                f"{KEY}.layers: found '' for a student of {ours.num_layers} layers and a teacher "
                f"of {theirs.num_layers}, which do not divide evenly; expected a layer for each"
            )
        step = theirs.num_layers // ours.num_layers
        layers = tuple(range(step - 1, theirs.num_layers, step))
    if len(layers) != ours.num_layers or max(layers) >= theirs.num_layers:
        raise UserError(
            f"{KEY}.layers: found {','.join(str(i + 1) for i in layers)}, expected "
            f"{ours.num_layers} layers of the teacher's 1 to {theirs.num_layers}"
        )
    widths = ours.hidden_size, theirs.hidden_size
    compared = terms.hidden or terms.cosine or terms.embeddings
    if compared and widths[0] != widths[1] and not terms.projection:
        raise UserError(
            f"{KEY}.projection: found '' with a student {widths[0]} and a teacher {widths[1]} "
            "wide, expected shared or layer"
        )
    if terms.of_attention and ours.num_heads != theirs.num_heads:
        raise UserError(
            f"config.model.num_heads: found {ours.num_heads}, expected the teacher's "
            f"{theirs.num_heads} for {KEY}.attention and attention_scores"
        )
    if terms.progressive and not getattr(ours, "first_norm", True):
        raise UserError(f"{KEY}.progressive: expected a student with model.first_norm true")
    if terms.relations:
        _check_relations(terms, ours, theirs)
    if not -1 <= relation_layer < theirs.num_layers:
        raise UserError(
            f"{KEY}.relation_layer: found {relation_layer + 1}, expected 1 to {theirs.num_layers}, "
            "or 0 for the last"
        )
    return layers, relation_layer % theirs.num_layers


def _check_relations(terms: Terms, ours: Any, theirs: Any) -> None:
    for config in (ours, theirs):
        if (
            type(config) is not FAMILIES["transformer"].options
            or config.kv_heads < config.num_heads
        ):
            raise UserError(
                f"{KEY}.relations: expected student and teacher to be a transformer with as many "
                "heads of keys as of queries"
            )
        inner = config.num_heads * config.head_width
        if terms.relation_heads and inner % terms.relation_heads:
            raise UserError(
                f"{KEY}.relation_heads: {terms.relation_heads} does not divide a width of {inner}"
            )
    if not terms.relation_heads and ours.num_heads != theirs.num_heads:
        raise UserError(
            f"{KEY}.relation_heads: found 0 with {ours.num_heads} and {theirs.num_heads} heads, "
            "expected a number that divides both widths"
        )


def _with_transfer(task: tasks.Task, config: Reader) -> tasks.Split:
    """The training split with texts of which only the teacher knows a label."""
    train, (source, texts) = task.splits["train"], tasks.transfer(config)
    examples = [*train.examples, *texts]
    columns = task.encoder.encode(examples, "data.train")
    gold = columns["example"] < len(train.examples)
    about = train.about | {"transfer": source.name, "transfer_examples": len(texts)}
    digest = hashlib.sha256((about["fingerprint"] + source.fingerprint()).encode()).hexdigest()
    dataset = Columns(columns | {"gold": gold.astype(np.float32)})
    return tasks.Split(dataset, about | {"fingerprint": digest}, examples)


def _cached(where: pathlib.Path, content: list[Any], make: Any) -> dict[str, np.ndarray]:
    """Arrays by name, memory-mapped: made now, or found where the same were made before.

    All processes make them together, also those that have them.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, *content], sort_keys=True).encode()).hexdigest()
    folder = where / "teachers" / digest[:32]
    if processes.any_of(not folder.is_dir()):
        arrays = make()

        def save(building: pathlib.Path) -> None:
            for name, array in arrays.items():
                np.save(building / f"{name}.npy", array, allow_pickle=False)

        make_once(folder, save)
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def _class_log_probs(split: tasks.Split, teacher: Teacher, config: Reader, mesh: Mesh) -> Dataset:
    """The columns of ``split`` with the teacher's ``teacher_log_probs`` for each row.

    The teacher reads the examples in its own way: tokenizer and windows may be others.
    """
    encoder, tag = teacher.task.encoder, teacher.task.objective.name == "tag"
    size = config.evals.batch_size

    def make():
        logger.info("%s.teacher: reading %d examples", KEY, len(split.examples))
        columns = encoder.encode(split.examples, "data.train")
        part = tasks.Split(Columns(columns), split.about, split.examples)
        run = evaluators.Batches(teacher.objective, part, mesh, size)
        if not tag:
            scores = evaluators.ClassificationScores(run, encoder.label_names)
            return {"values": scores.predict(teacher.params(mesh))[1].astype(np.float32)}
        columns, log_probs = run.stacked(teacher.params(mesh))
        return {"values": labels.by_sentence(columns, log_probs)[0].astype(np.float32)}

    digest = hashlib.sha256(json.dumps(split.examples, sort_keys=True).encode()).hexdigest()
    values = _cached(tasks.cache_dir(config), [teacher.fingerprint, digest], make)["values"]
    columns = split.dataset.columns
    if tag:
        spread = labels.spread_words(columns, np.asarray(values))
    else:
        spread = np.asarray(values)[columns["example"]]
    return Columns(columns | {"teacher_log_probs": spread})


class WithTop(Dataset):
    """Rows of a token store with what a teacher holds likeliest at each position."""

    def __init__(self, rows: Dataset, ids: np.ndarray, log_probs: np.ndarray):
        self._rows, self._ids, self._log_probs, self.stats = rows, ids, log_probs, rows.stats

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        top = {"teacher_ids": self._ids[indices], "teacher_log_probs": self._log_probs[indices]}
        return self._rows[indices] | top


def _top_log_probs(split: tasks.Split, teacher: Teacher, config: Reader, mesh: Mesh) -> Dataset:
    """The rows of ``split`` with the ``top_k`` likeliest next pieces ``[n, S, k]`` and their
    log-probabilities, softened by ``temperature``."""
    rows, k, temperature = split.dataset, config.distill.top_k, config.distill.temperature
    size, cache = config.evals.batch_size, tasks.cache_dir(config)
    sharding.check_batch("evals.batch_size", size, mesh)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def top(params, batch):
        hidden = teacher.objective.forward(params, batch)
        logits = teacher.objective.logits_of(params, len(hidden))
        return in_chunks(
            lambda x: jax.lax.top_k(nn.log_softmax(logits(x) / temperature), k),
            (hidden,),
            teacher.objective.chunk_size,
        )

    def empty(dtype):  # on disk: memory may be too small
        with tempfile.TemporaryFile(dir=cache) as file:
            return np.memmap(file, dtype, "w+", shape=(len(rows), config.train.seq_len, k))

    def make():
        logger.info("%s.teacher: reading %d rows", KEY, len(rows))
        params = teacher.params(mesh)
        cache.mkdir(parents=True, exist_ok=True)
        log_probs, ids = empty(np.float32), empty(np.int32)
        for start in range(0, len(rows), size):
            indices = start + sharding.local_rows(mesh, size)
            batch = sharding.to_global(rows[np.minimum(indices, len(rows) - 1)], mesh)
            found = jax.device_get(top(params, batch))
            stop = min(start + size, len(rows))
            log_probs[start:stop], ids[start:stop] = (x[: stop - start] for x in found)
        return {"ids": ids, "log_probs": log_probs}

    content = [teacher.fingerprint, rows.path.name, k, temperature]
    arrays = _cached(cache, content, make)
    return WithTop(rows, arrays["ids"], arrays["log_probs"])

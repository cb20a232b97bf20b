"""Distillation: any objective, plus what a teacher's outputs, states and attention have to teach.

Each term is a mean over the positions of a row, and a row counts in it as much as it does in the
student's own loss: sums stay sums, whatever micro-batch or device a row lies in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.models.attention import SCORES
from pretrain.models.transformer import layer_outputs
from pretrain.objectives.base import Batch, Metrics, Objective
from pretrain.objectives.labelled import Labelled
from pretrain.objectives.language import Language, in_chunks

EXTRA = "distillation"  # top-level name of parameters that only the losses here need
HIDDEN = float(jnp.finfo(jnp.float32).min)  # a score that the attention mask hides


@dataclasses.dataclass(frozen=True)
class Terms:
    """Weights of the losses, and how they are taken: ``config.distill``, see its comments."""

    task: float
    logits: float
    temperature: float
    all_positions: bool
    cosine: float
    embeddings: float
    hidden: float
    standardise: bool
    mean: float
    variance: float
    attention: float
    attention_scores: float
    relations: float
    relation_pairs: tuple[tuple[str, str], ...]
    relation_heads: int
    projection: str
    progressive: float

    @property
    def by_layer(self) -> bool:
        """Whether any term compares layer with layer."""
        return any((self.hidden, self.mean, self.variance, self.attention, self.attention_scores))

    @property
    def of_states(self) -> bool:
        """Whether any term needs more of a teacher than its outputs."""
        return self.by_layer or any((self.cosine, self.embeddings, self.relations))

    @property
    def of_attention(self) -> bool:
        """Whether heads are compared with heads."""
        return any((self.attention, self.attention_scores))

    @property
    def sown(self) -> tuple[str, ...]:
        """The collections of a model that terms read."""
        scores = self.of_attention or self.relations
        return ("intermediates", SCORES) if scores else ("intermediates",)


@dataclasses.dataclass(frozen=True)
class Distilled(Objective):
    """``student``'s own objective with the terms of a teacher added.

    Attributes:
      teacher: its objective, run beside the student on the same corrupted batch, in evaluation
        mode; None where a batch brings what is needed: ``teacher_log_probs``, of classes
        ``[B, (S,) C]``, or of the likeliest pieces ``[B, S, k]`` with their ``teacher_ids``.
      layers: the teacher's layer, from 0, that each of the student's imitates.
      relation_layer: the teacher's layer whose relations the student's last one imitates.
      chunk_size: positions of a row whose logits exist at a time.
    """

    student: Objective
    teacher: Objective | None
    terms: Terms
    layers: tuple[int, ...]
    relation_layer: int
    chunk_size: int
    params: Any = dataclasses.field(default=None, compare=False)
    progress: Any = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.student.name

    @property
    def model(self) -> nn.Module:
        return self.student.model

    def init(self, key: jax.Array) -> dict:
        """The student's parameters and, under `EXTRA`, the projections to the teacher's width."""
        own, extra = jax.random.split(key)
        params = self.student.init(own)["params"]
        if self.terms.projection:
            config, width = self.model.trunk.config, self.teacher.model.trunk.config.hidden_size
            count = 1 if self.terms.projection == "shared" else 1 + len(self.layers)
            shape = (count, config.hidden_size, width)
            kernel = config.init_std * jax.random.normal(extra, shape)
            projection = {
                "kernel": nn.LogicallyPartitioned(kernel, (None, "embed", "embed_out")),
                "bias": nn.LogicallyPartitioned(jnp.zeros((count, width)), (None, "norm")),
            }
            params = {**params, EXTRA: {"projection": projection}}
        return {"params": params}

    def init_teacher(self, key: jax.Array) -> dict:
        return self.teacher.init(key) if self.teacher else super().init_teacher(key)

    def bind(self, teacher: dict, progress: jax.Array) -> Self:
        params = jax.lax.stop_gradient(teacher)
        return dataclasses.replace(self, params=params, progress=progress)

    def corrupt(self, batch: Batch, key: jax.Array) -> Batch:
        return self.student.corrupt(batch, key)

    def moving(self, params: dict) -> dict | None:
        """In the first stage of progressive transfer one layer alone; embeddings with the first."""
        if not self.terms.progressive:
            return None
        late, stage = self.progress >= self.terms.progressive, self._stage()

        def moves(path, x):
            names = [entry.key for entry in path]
            if names[:2] == ["trunk", "layers"]:
                here = jnp.arange(len(x)) == stage
            elif names[0] == EXTRA:  # one matrix for all, or the embeddings' and each layer's
                here = (jnp.arange(len(x)) == stage + 1) | (len(x) == 1)
            else:  # embeddings go with the first layer, what reads the last one waits
                here = (stage == 0) & (names[0] == "trunk") & (names[1] != "final_norm")
            return (late | here).reshape(-1, *[1] * (x.ndim - 1))

        return jax.tree_util.tree_map_with_path(moves, params)

    def penalty(self, params: dict) -> jax.Array | float:
        return self.student.penalty(model_params(params))

    def predict(self, params: dict, batch: Batch) -> jax.Array | Metrics:
        return self.student.predict(model_params(params), batch)

    def train_flops(self, seq_len: int) -> float:
        """Of the student's forward and backward pass and of the teacher's forward pass.

        Each of a model's logits counts once, whatever is computed again in the backward pass and
        for another term.
        """
        if not isinstance(self.student, Language):  # heads of classes are too small to count
            beside = self.teacher.train_flops(seq_len) / 3 if self.teacher else 0.0
            return self.student.train_flops(seq_len) + beside
        own = compared = self.student.num_predicted(seq_len)
        if not self.terms.logits:
            own, compared = own if self.terms.task else 0, 0
        elif self.terms.all_positions:
            own = compared = seq_len
        total = 3.0 * _forward_flops(self.student, seq_len, own)
        return total + (_forward_flops(self.teacher, seq_len, compared) if self.teacher else 0.0)

    def forward(self, params: dict, batch: Batch, **kwargs: Any) -> tuple[Any, dict]:
        """The student's output, and what its trunk tells of its states."""
        if not self.terms.of_states:
            return self.student.forward(model_params(params), batch, **kwargs), {}
        own = model_params(params)
        if (moving := self.moving(own)) is not None:
            held = jax.lax.stop_gradient(own)
            own = jax.tree.map(jnp.where, moving, own, held)
        return _told(self.student, own, batch, self.terms, **kwargs)

    def score(self, params: dict, output: tuple[Any, dict], batch: Batch) -> Metrics:
        """The student's metrics, ``loss`` the weighted sum, and each term by its name."""
        terms, own = self.terms, model_params(params)
        output, states = output
        # Rows without a gold label count in what the teacher says of them alone.
        gold = {"weights": batch["weights"] * batch["gold"]} if "gold" in batch else {}
        rows = self.student.row_weights(output, batch)
        total = rows.sum()
        loss, metrics = jnp.zeros(()), {}
        if terms.task:
            metrics = self.student.score(own, output, batch | gold)
            task = self.student.combined(metrics, batch)
            loss = terms.task * self._in_stage("task") * task
            metrics["task_loss"] = (task, self.student.row_weights(output, batch | gold).sum())
        found: dict[str, jax.Array] = {}
        theirs = None
        if self.teacher is not None:
            theirs, their_states = _told(self.teacher, self.params, batch, terms)
        if terms.logits:
            found["logits"] = self._divergence(own, output, theirs, batch)
        if terms.of_states:
            real = (batch["segment_ids"] > 0).astype(jnp.float32)
            project = self._projection(params)
            per_row = self._states(states, their_states, real, project)
            found |= {name: (rows * value).sum() for name, value in per_row.items()}
        for name, value in found.items():
            loss += getattr(terms, name) * self._in_stage(name) * value
        metrics["loss"] = (loss, total)
        return metrics | {f"distill/{name}": (value, total) for name, value in found.items()}

    def row_weights(self, output: tuple[Any, dict], batch: Batch) -> jax.Array:
        return self.student.row_weights(output[0], batch)

    def _in_stage(self, term: str) -> jax.Array | float:
        """1, or for progressive transfer 0 in the stage that does without the term."""
        if not self.terms.progressive:
            return 1.0
        late = (self.progress >= self.terms.progressive).astype(jnp.float32)
        return late if term in ("task", "logits") else 1.0 - late

    def _stage(self) -> jax.Array:
        """The layer that is learned now, in progressive transfer."""
        stage = (self.progress / self.terms.progressive * len(self.layers)).astype(jnp.int32)
        return jnp.minimum(stage, len(self.layers) - 1)

    def _layer_weights(self) -> jax.Array:
        """``[L]``: which layers' terms count."""
        index = jnp.arange(len(self.layers))
        if not self.terms.progressive:
            return jnp.ones(len(self.layers))
        return (index == self._stage()).astype(jnp.float32)

    def _divergence(self, own: dict, output: Any, theirs: Any, batch: Batch) -> jax.Array:
        """The sum of the divergences of the outputs, weighted as the student's own loss."""
        T = self.terms.temperature
        if isinstance(self.student, Labelled):
            values = divergence(batch["teacher_log_probs"], output, T)
            return (values * self.student.weights(batch)).sum()
        student, weights = self.student.predicted(output, batch)
        logits = self.student.logits_of(own, len(student))
        if self.teacher is None:
            values = in_chunks(
                lambda s, ids, log_probs: top_divergence(log_probs, ids, logits(s), T),
                (student, batch["teacher_ids"], batch["teacher_log_probs"]),
                self.chunk_size,
            )
            return (values * weights).sum()
        teacher, _ = self.teacher.predicted(theirs, batch)
        if self.terms.all_positions:
            rows = weights.sum(-1, keepdims=True)
            student, teacher = output, theirs
            real = (batch["segment_ids"] > 0).astype(jnp.float32)
            weights = rows * real / jnp.maximum(real.sum(-1, keepdims=True), 1.0)
        target = self.teacher.logits_of(self.params, len(teacher))
        values = in_chunks(
            lambda s, t: divergence(target(t), logits(s), T), (student, teacher), self.chunk_size
        )
        return (values * weights).sum()

    def _projection(self, params: dict) -> Callable[[jax.Array, int], jax.Array]:
        """Maps states of the student's layer (0: embeddings) to the teacher's width."""
        if not self.terms.projection:
            return lambda x, _: x
        found = params[EXTRA]["projection"]

        def project(x, layer):
            index = 0 if self.terms.projection == "shared" else layer
            bias = found["bias"][index].reshape((1,) * (x.ndim - 1) + (-1,))
            return jnp.einsum("bsd,de->bse", x, found["kernel"][index]) + bias

        return project

    def _states(
        self, ours: dict, theirs: dict, real: jax.Array, project: Callable
    ) -> dict[str, jax.Array]:
        """Of each row ``[B]``, the terms that compare states; layers are summed."""
        terms, found = self.terms, {}
        float32 = jnp.float32

        def average(values):  # [B, S] -> [B]
            return (values * real).sum(-1) / jnp.maximum(real.sum(-1), 1.0)

        def embedded(states):
            return states["intermediates"]["embedded"][0].astype(float32)

        if terms.embeddings:
            difference = project(embedded(ours), 0) - embedded(theirs)
            found["embeddings"] = average(jnp.square(difference).mean(-1))
        if terms.cosine or terms.by_layer:
            hidden = layer_outputs(ours["intermediates"]).astype(float32)
            teacher_hidden = layer_outputs(theirs["intermediates"]).astype(float32)
        if terms.cosine:
            found["cosine"] = average(
                1.0 - cosine(project(hidden[-1], len(self.layers)), teacher_hidden[-1])
            )
        if terms.of_attention:
            scores, their_scores = (
                layer_outputs(x[SCORES], "attention_scores") for x in (ours, theirs)
            )
        layer_weights = self._layer_weights()
        for index, theirs_index in enumerate(self.layers):
            each: dict[str, jax.Array] = {}
            if terms.hidden or terms.mean or terms.variance:
                mine = project(hidden[index], index + 1)
                each |= self._compare_hidden(mine, teacher_hidden[theirs_index])
            if terms.attention:
                values = attention_divergence(their_scores[theirs_index], scores[index])
                each["attention"] = values.mean(1)
            if terms.attention_scores:
                values = score_difference(their_scores[theirs_index], scores[index])
                each["attention_scores"] = values.mean(1)
            for name, values in each.items():
                found[name] = found.get(name, 0.0) + layer_weights[index] * average(values)
        if terms.relations:
            found["relations"] = average(self._relations(ours, theirs, real))
        return found

    def _compare_hidden(self, ours: jax.Array, theirs: jax.Array) -> dict[str, jax.Array]:
        """Differences of states ``[B, S, D]``, and of their moments: each ``[B, S]``.

        Squared, but for variances, as in MobileBERT's code.
        """
        terms, found = self.terms, {}
        if terms.mean:
            found["mean"] = jnp.square(ours.mean(-1) - theirs.mean(-1))
        if terms.variance:
            found["variance"] = jnp.abs(ours.var(-1) - theirs.var(-1))
        if terms.hidden:
            if terms.standardise:
                ours, theirs = standardised(ours), standardised(theirs)
            found["hidden"] = jnp.square(ours - theirs).mean(-1)
        return found

    def _relations(self, ours: dict, theirs: dict, real: jax.Array) -> jax.Array:
        """Divergences of self-attention relations ``[B, S]``, pairs summed, heads averaged."""
        mask = (real[:, None, :, None] * real[:, None, None, :]) > 0
        for states, layer in ((ours, -1), (theirs, self.relation_layer)):
            scores = layer_outputs(states[SCORES], "attention_scores")[layer]
            mask &= _visible(scores).any(1, keepdims=True)
        total = jnp.zeros(real.shape)
        for pair in self.terms.relation_pairs:
            scores = []
            for states, layer in ((ours, -1), (theirs, self.relation_layer)):
                vectors = [
                    layer_outputs(states["intermediates"], f"{name}_vectors")[layer]
                    for name in pair
                ]
                count = self.terms.relation_heads or vectors[0].shape[2]
                scores.append(relation_scores(*vectors, count, mask))
            total += attention_divergence(scores[1], scores[0]).mean(1)
        return total


def _forward_flops(objective: Language, seq_len: int, predicted: int) -> float:
    """Of a row of which so many positions get logits; where none do there may be no head."""
    model = objective.model
    if not predicted:
        return model.trunk.forward_flops(seq_len)
    return model.forward_flops(seq_len, predicted)


def model_params(params: dict) -> dict:
    """Those of the model itself."""
    return {name: value for name, value in params.items() if name != EXTRA}


def _told(
    objective: Objective, params: dict, batch: Batch, terms: Terms, **kwargs: Any
) -> tuple[Any, dict]:
    """Output, and what the trunk tells that ``terms`` read: by name of the collection."""
    output, told = objective.forward(params, batch, mutable=list(terms.sown), **kwargs)
    return output, {name: collection["trunk"] for name, collection in told.items()}


def divergence(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """``T^2 KL(teacher || student)`` of softened distributions (Hinton et al. 2015).

    Args: logits, or log-probabilities, ``[..., C]`` of both. Returns: ``[...]``, in nats.
    """
    ours, theirs = nn.log_softmax(student / temperature), nn.log_softmax(teacher / temperature)
    return temperature**2 * (jnp.exp(theirs) * (theirs - ours)).sum(-1)


def top_divergence(
    log_probs: jax.Array, ids: jax.Array, student: jax.Array, temperature: float
) -> jax.Array:
    """As `divergence`, where of the teacher only the likeliest pieces are known.

    All other pieces count as one, with the probability that is left.

    Args:
      log_probs: ``[..., k]``, of the teacher's distribution softened by ``temperature``.
      ids: ``[..., k]``, the pieces that they are of.
      student: logits ``[..., V]``.
    """
    student = student / temperature
    whole = nn.logsumexp(student, axis=-1)
    ours = jnp.take_along_axis(student, ids, axis=-1) - whole[..., None]
    known = (jnp.exp(log_probs) * (log_probs - ours)).sum(-1)
    # Of the student's other logits: one less the sum of the known would be all rounding.
    others = jnp.put_along_axis(student, ids, HIDDEN, axis=-1, inplace=False)
    left = 1.0 - jnp.exp(log_probs).sum(-1)
    enough = left > 1e-6  # else rounding too
    left = jnp.where(enough, left, 1.0)
    other = left * (jnp.log(left) + whole - nn.logsumexp(others, axis=-1))
    return temperature**2 * (known + jnp.where(enough, other, 0.0))


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """``[..., D], [..., D] -> [...]``."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / jnp.maximum(norms, 1e-9)


def standardised(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """``[..., D]`` with mean 0 and variance 1: a layer norm without scale and bias."""
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + eps)


def _visible(scores: jax.Array) -> jax.Array:
    return scores > HIDDEN / 2


def attention_divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(teacher || student) of attention over the keys that both see: ``-> [B, H, Q]``.

    Args: scores ``[B, H, Q, K]`` before the softmax.
    """
    seen = _visible(teacher) & _visible(student)
    ours, theirs = (nn.log_softmax(jnp.where(seen, x, HIDDEN)) for x in (student, teacher))
    return jnp.where(seen, jnp.exp(theirs) * (theirs - ours), 0.0).sum(-1)


def score_difference(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Mean squared difference of scores over the keys that both see: ``-> [B, H, Q]``."""
    seen = _visible(teacher) & _visible(student)
    squares = jnp.square(jnp.where(seen, teacher - student, 0.0))
    return squares.sum(-1) / jnp.maximum(seen.astype(jnp.float32).sum(-1), 1.0)


def relation_scores(a: jax.Array, b: jax.Array, count: int, mask: jax.Array) -> jax.Array:
    """Scaled products of vectors ``[B, S, H, d]``, their heads cut anew into ``count``.

    MiniLM (Wang et al. 2020; 2021). Returns: ``[B, count, S, S]``, masked.
    """
    a, b = (x.astype(jnp.float32).reshape(*x.shape[:2], count, -1) for x in (a, b))
    scores = jnp.einsum("bqhd,bkhd->bhqk", a, b) * a.shape[-1] ** -0.5
    return jnp.where(mask, scores, HIDDEN)

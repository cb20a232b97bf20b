"""Causal language modelling with segment memory (Transformer-XL; Dai et al. 2019)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.models.heads import LanguageModel
from pretrain.models.transformer_xl import next_memory
from pretrain.objectives.base import Batch, Metrics
from pretrain.objectives.causal import CausalLM

CONTINUED = 1  # segment id of the document that a row of a stream continues
_NOBODY = -1


@dataclasses.dataclass(frozen=True)
class RecurrentLM(CausalLM):
    """Predicts every next token, the states of the rows before in memory.

    Batches are those of a stream: row ``r`` of a batch continues row ``r`` of the one before, its
    first document, if it is one that goes on, has segment id 1, and ``next_token [B]`` is the one
    behind the row, -1 where the document ends with it. ``batch["memory"]`` holds ``states``
    ``[B, L, M, D]`` and ``open [B, M]``: whether a position is of the document that goes on. No
    position sees another document, nor what stands for memory before a stream's first row.

    ``loss`` and ``predict`` also give the memory for the next batch. ``held_out`` is the model with
    the memory, and the distances, of evaluation.
    """

    name: ClassVar[str] = "recurrent"
    carries_memory: ClassVar[bool] = True

    held_out: LanguageModel

    def __post_init__(self):
        for model in (self.model, self.held_out):
            cfg = model.trunk.config
            if not cfg.mem_len or cfg.zero_memory:
                raise UserError(
                    f"config.model.mem_len: found {cfg.mem_len} with zero_memory "
                    f"{cfg.zero_memory} and objective.name {self.name!r}, expected at least 1 and "
                    "False"
                )

    def initial_memory(self, rows: int, held_out: bool = False) -> dict[str, jax.Array]:
        cfg = (self.held_out if held_out else self.model).trunk.config
        shape = (rows, cfg.num_layers, cfg.mem_len, cfg.hidden_size)
        return {
            "states": jnp.zeros(shape, cfg.dtype),
            "open": jnp.zeros((rows, cfg.mem_len), bool),
        }

    def _run(self, params: dict, batch: Batch, **kwargs: Any) -> tuple[jax.Array, dict]:
        memory, segment_ids = batch["memory"], batch["segment_ids"]
        before = memory["states"].swapaxes(0, 1)
        owners = jnp.where(memory["open"], CONTINUED, _NOBODY)
        hidden, told = super().forward(
            params,
            batch,
            memory=before,
            memory_segment_ids=owners,
            mutable=["intermediates"],
            **kwargs,
        )
        kept = memory["open"].shape[1]
        states = next_memory(told["intermediates"]["trunk"], kept, before)
        last = segment_ids[:, -1:]
        owners = jnp.concatenate([owners, segment_ids], axis=1)[:, -kept:]
        return hidden, {"states": states.swapaxes(0, 1), "open": (owners == last) & (last > 0)}

    def forward(self, params: dict, batch: Batch, **kwargs: Any) -> jax.Array:
        return self._run(params, batch, **kwargs)[0]

    def loss(self, params: dict, batch: Batch, key: jax.Array):
        hidden, memory = self._run(params, batch, deterministic=False, rngs={"dropout": key})
        metrics = self.score(params, hidden, batch)
        return *metrics["loss"], metrics, memory

    def predict(self, params: dict, batch: Batch) -> tuple[Metrics, dict]:
        other = dataclasses.replace(self, model=self.held_out)
        hidden, memory = other._run(params, batch)
        return other.score(params, hidden, batch), memory

    def train_flops(self, seq_len: int) -> float:
        """Memory counts as filled."""
        cfg = self.model.trunk.config
        return 3.0 * self.model.forward_flops(seq_len, seq_len, held=cfg.mem_len)

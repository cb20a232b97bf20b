"""Adaptive input embedding and softmax of Transformer-XL (Baevski & Auli 2019; Grave et al. 2017).

The vocabulary is cut into clusters of ids, most frequent first. Rarer clusters have narrower
embeddings (``div_val``); the first holds a column for each of the others, so that
``p(id) = p(cluster) p(id | cluster)``.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.fsdp import copies
from pretrain.models.layers import Embed, product


class Projection(nn.Module):
    """A kernel ``[width, features]``, between hidden states and narrower embeddings."""

    width: int
    features: int
    init_std: float

    def setup(self):
        self.kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(
                nn.initializers.normal(self.init_std), ("embed", "embed_out")
            ),
            (self.width, self.features),
        )


class AdaptiveEmbed(nn.Module):
    """Embeddings ``[...] -> [..., D]``, times ``sqrt(D)``.

    An id outside the vocabulary is what it is to `Embed`.
    """

    config: Any  # TransformerXLConfig

    def setup(self):
        cfg = self.config
        self.table = [
            Embed(rows, width, axis="vocab", init_std=cfg.init_std, dtype=cfg.dtype)
            for rows, width in cfg.tables
        ]
        self.projection = [
            Projection(width, cfg.hidden_size, cfg.projection_init_std)
            for _, width in cfg.tables
            if cfg.projected
        ]

    def __call__(self, ids: jax.Array) -> jax.Array:
        cfg = self.config
        scale = cfg.hidden_size**0.5
        total = jnp.zeros((*ids.shape, cfg.hidden_size), cfg.dtype)
        last = len(self.table) - 1
        for index, table in enumerate(self.table):
            low, high = cfg.bounds[index], cfg.bounds[index + 1]
            # The ends are open: ids below and above the vocabulary reach a table, whose they are
            # not, so that `Embed` refuses them.
            inside = ((ids >= low) | (index == 0)) & ((ids < high) | (index == last))
            found = table(jnp.where(inside, ids - low, 0))
            if cfg.projected:
                kernel = self.projection[index].kernel.astype(cfg.dtype)
                kernel = copies(kernel, len(ids) if ids.ndim else 0, "embed", "embed_out")
                found = product(found, kernel)
            total = jnp.where(inside[..., None], found, total)
        return total * scale

    def weights(self) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Tables ``[rows, width]`` and projections ``[width, D]``, none where there are none."""
        tables = tuple(table.embedding for table in self.table)
        return tables, tuple(projection.kernel for projection in self.projection)


class Output(nn.Module):
    """The bias ``[rows]`` of a table's logits, and where it is not tied the kernel in its place."""

    rows: int
    width: int
    tied: bool
    init_std: float
    axis: str = "vocab"

    def setup(self):
        zeros, normal = nn.initializers.zeros, nn.initializers.normal(self.init_std)
        partitioned = nn.with_logical_partitioning
        self.bias = self.param("bias", partitioned(zeros, (self.axis,)), (self.rows,))
        if not self.tied:
            kernel = partitioned(normal, ("embed", self.axis))
            self.kernel = self.param("kernel", kernel, (self.width, self.rows))


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities ``[..., D] -> [..., V]`` of all ids, float32.

    The first cluster's softmax has a column for each of the others behind its own, in their order:
    cluster ``i`` at ``cutoffs[0] + i - 1``. Without clusters it is a plain softmax.
    """

    config: Any  # TransformerXLConfig

    def setup(self):
        cfg = self.config
        self.output = [Output(*table, cfg.tied, cfg.init_std) for table in cfg.tables]
        if self._clustered:
            count, width = cfg.num_clusters - 1, self._widths[0]
            self.clusters = Output(count, width, False, cfg.init_std, axis="classes")
        own = {"none": cfg.num_clusters, "all_but_first": 1, "all": 0}[cfg.tied_projections]
        self.projection = [
            Projection(cfg.hidden_size, width, cfg.projection_init_std)
            for width in self._widths[: own if cfg.projected else 0]
        ]

    @property
    def _clustered(self) -> bool:
        return self.config.num_clusters > 1

    @property
    def _widths(self) -> list[int]:
        """Of what each cluster's logits are made of."""
        tables = self.config.tables
        return [tables[min(i, len(tables) - 1)][1] for i in range(self.config.num_clusters)]

    def matrix(self, table: tuple[Sequence[jax.Array], Sequence[jax.Array]], rows: int) -> Any:
        """All that a call multiplies with, as `copies` for a batch of so many ``rows``.

        ``table``: `AdaptiveEmbed.weights`; its projections are those of clusters without their own.
        """
        dtype = self.config.dtype

        def made(x, *names):
            return copies(x.astype(dtype), rows, *names)

        tables, projections = table
        if self.config.tied:
            tables = [made(x, "vocab", "embed") for x in tables]
        else:
            tables = [made(x.kernel, "embed", "vocab") for x in self.output]
        return {
            "tables": tables,
            "projections": [made(x.kernel, "embed", "embed_out") for x in self.projection],
            "shared": [made(x, "embed", "embed_out") for x in projections],
            "clusters": made(self.clusters.kernel, "embed", "classes") if self._clustered else None,
        }

    def __call__(self, hidden: jax.Array, matrix: dict[str, Any]) -> jax.Array:
        """``matrix``: of the method of this name."""
        cfg = self.config
        tables, projections = matrix["tables"], matrix["projections"]
        hidden = hidden.astype(cfg.dtype)
        parts, columns = [], None
        for cluster in range(cfg.num_clusters):
            index = min(cluster, len(tables) - 1)
            table, bias = tables[index], self.output[index].bias
            if len(tables) == 1:
                start, end = cfg.bounds[cluster : cluster + 2]
                axis = -2 if cfg.tied else -1
                table = jax.lax.slice_in_dim(table, start, end, axis=axis)
                bias = bias[start:end]
            inner = hidden
            if cluster < len(projections):
                inner = product(hidden, projections[cluster])
            elif cfg.projected:
                inner = product(hidden, matrix["shared"][index], transposed=True)
            logits = product(inner, table, transposed=cfg.tied, dtype="float32")
            logits = logits + bias.reshape((1,) * (logits.ndim - 1) + (-1,))
            if cluster == 0 and self._clustered:
                others = product(inner, matrix["clusters"], dtype="float32")
                bias = self.clusters.bias.reshape((1,) * (others.ndim - 1) + (-1,))
                logits = jnp.concatenate([logits, others + bias], axis=-1)
            log_probs = nn.log_softmax(logits)
            if cluster == 0:
                columns = log_probs[..., cfg.bounds[1] :]
                log_probs = log_probs[..., : cfg.bounds[1]]
            else:
                log_probs = log_probs + columns[..., cluster - 1, None]
            parts.append(log_probs)
        return jnp.concatenate(parts, axis=-1)

    def forward_flops(self) -> int:
        """Of one position, all clusters computed."""
        cfg = self.config
        total = cfg.embedding_width * (cfg.num_clusters - 1)
        for cluster in range(cfg.num_clusters):
            width = self._widths[cluster]
            rows = cfg.bounds[cluster + 1] - cfg.bounds[cluster]
            total += width * rows + (cfg.hidden_size * width if cfg.projected else 0)
        return 2 * total

"""Adaptive input embedding and softmax of Transformer-XL (Baevski & Auli 2019; Grave et al. 2017).

The vocabulary is cut into clusters of ids, most frequent first. Rarer clusters have narrower
embeddings (``div_val``); the first holds a column for each of the others, so that
``p(id) = p(cluster) p(id | cluster)``.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.models.layers import Dense, Embed, product


class Projection(nn.Module):
    """The kernel ``[width, D]`` of an embedding that is narrower than the hidden states."""

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
                found = product(found, self.projection[index].kernel.astype(cfg.dtype))
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

    def setup(self):
        zeros, normal = nn.initializers.zeros, nn.initializers.normal(self.init_std)
        partitioned = nn.with_logical_partitioning
        self.bias = self.param("bias", partitioned(zeros, ("vocab",)), (self.rows,))
        if not self.tied:
            kernel = partitioned(normal, ("embed", "vocab"))
            self.kernel = self.param("kernel", kernel, (self.width, self.rows))


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities ``[..., D] -> [..., V]`` of all ids, float32.

    The first cluster's softmax has a column for each of the others behind its own, in their order:
    cluster ``i`` at ``cutoffs[0] + i - 1``. Without clusters it is a plain softmax.
    """

    config: Any  # TransformerXLConfig

    def matrix(self, table: Any, rows: int) -> Any:
        """`AdaptiveEmbed.weights`, which a call uses where weights are tied."""
        del rows
        return table

    @nn.compact
    def __call__(
        self, hidden: jax.Array, matrix: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
    ) -> jax.Array:
        cfg = self.config
        tables, projections = matrix
        outputs = [
            Output(rows, width, cfg.tied, cfg.init_std, name=f"output_{index}")
            for index, (rows, width) in enumerate(cfg.tables)
        ]
        hidden = hidden.astype(cfg.dtype)
        parts, columns = [], None
        for cluster in range(cfg.num_clusters):
            index = min(cluster, len(tables) - 1)
            start = cfg.bounds[cluster]
            rows = slice(0, None) if len(tables) > 1 else slice(start, cfg.bounds[cluster + 1])
            inner = hidden
            if cfg.projected:
                inner = self._project(hidden, cluster, projections[index])
            kernel = tables[index].T if cfg.tied else outputs[index].kernel
            logits = product(inner, kernel[:, rows].astype(cfg.dtype), dtype="float32")
            logits = logits + outputs[index].bias[rows].reshape((1,) * (logits.ndim - 1) + (-1,))
            if cluster == 0 and cfg.num_clusters > 1:
                others = Dense(
                    ("embed",), (cfg.num_clusters - 1,), ("classes",), init_std=cfg.init_std,
                    dtype=cfg.dtype, name="clusters",
                )(inner)  # fmt: skip
                logits = jnp.concatenate([logits, others.astype(jnp.float32)], axis=-1)
            log_probs = nn.log_softmax(logits)
            if cluster == 0:
                columns = log_probs[..., cfg.bounds[1] :]
                log_probs = log_probs[..., : cfg.bounds[1]]
            else:
                log_probs = log_probs + columns[..., cluster - 1, None]
            parts.append(log_probs)
        return jnp.concatenate(parts, axis=-1)

    def _project(self, hidden: jax.Array, cluster: int, projection: jax.Array) -> jax.Array:
        """``[..., D] -> [..., width]``: through the embedding's projection or one of its own."""
        cfg = self.config
        if cfg.tied_projections == "all" or (cluster and cfg.tied_projections == "all_but_first"):
            return product(hidden, projection.astype(cfg.dtype), transposed=True)
        return Dense(
            ("embed",), (projection.shape[0],), ("embed_out",), use_bias=False,
            init_std=cfg.projection_init_std, dtype=cfg.dtype, name=f"projection_{cluster}",
        )(hidden)  # fmt: skip

    def forward_flops(self) -> int:
        """Of one position, all clusters computed."""
        cfg = self.config
        total = cfg.embedding_width * (cfg.num_clusters - 1)
        for cluster in range(cfg.num_clusters):
            width = cfg.tables[min(cluster, len(cfg.tables) - 1)][1]
            rows = cfg.bounds[cluster + 1] - cfg.bounds[cluster]
            total += width * rows + (cfg.hidden_size * width if cfg.projected else 0)
        return 2 * total

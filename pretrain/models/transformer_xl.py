"""Transformer-XL (Dai et al. 2019): relative positions, segment memory, adaptive input.

As in the TensorFlow release and its port in Hugging Face's library, but for the initial scales of
norms, which are one here and drawn around it there. The adaptive softmax stands in ``adaptive.py``.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.models.adaptive import AdaptiveEmbed
from pretrain.models.attention import SCORES, attend, attention_scores
from pretrain.models.layers import Dense, LayerNorm, dropout
from pretrain.models.options import WITHOUT_NORM, Widths, check_choices, check_divides, check_least
from pretrain.models.transformer import count_pairs, rematerialised
from pretrain.sharding import constrain

CHOICES = {
    "tied_projections": ("all", "all_but_first", "none"),
    "pooler": WITHOUT_NORM,
}


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig(Widths):
    """Shape and options of a Transformer-XL; meanings and defaults stand in ``pretrain.schema``.

    A combination that makes no model is a `UserError`.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    embedding_size: int
    num_heads: int
    head_size: int
    ffn_size: int
    cutoffs: str
    div_val: int
    tied: bool
    tied_projections: str
    shared_biases: bool
    mem_len: int
    zero_memory: bool
    same_length: bool
    clamp_len: int
    norm_eps: float
    pooler: str
    init_std: float
    projection_init_std: float
    dropout: float
    attention_dropout: float
    dtype: str
    remat: str
    unroll: int

    def __post_init__(self):
        check_choices(self, CHOICES)
        check_least(self, div_val=1, mem_len=0, clamp_len=0)
        if self.hidden_size % 2:
            raise UserError(
                f"config.model.hidden_size: found {self.hidden_size}, expected an even number for "
                "the sines and cosines of relative positions"
            )
        if not self.head_size:
            check_divides(self, "num_heads", "hidden_size")
        parts = self.cutoffs.split(",") if self.cutoffs else []
        bounds = self.bounds if all(part.strip().isdecimal() for part in parts) else (0, 0)
        if any(low >= high for low, high in itertools.pairwise(bounds)):
            raise UserError(
                f"config.model.cutoffs: found {self.cutoffs!r}, expected '' or rising ids with "
                f'commas between, above 0 and below vocab_size {self.vocab_size}: "20000,40000"'
            )
        if not all(width for _, width in self.tables):
            raise UserError(
                f"config.model.div_val: found {self.div_val}, which leaves nothing of "
                f"embedding_size {self.embedding_width} for the last of {len(self.tables)} clusters"
            )
        if self.same_length and not self.mem_len:
            raise UserError(
                "config.model.same_length: found True with mem_len 0, so that no position would "
                "see any; expected False"
            )

    causal = True  # relative distances have no sign here
    max_positions = 2**31 - 1  # no table of positions

    @property
    def head_width(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def embedding_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def bounds(self) -> tuple[int, ...]:
        """First id of each cluster of the vocabulary, and the end of the last."""
        cutoffs = self.cutoffs.split(",") if self.cutoffs else []
        return (0, *(int(part) for part in cutoffs), self.vocab_size)

    @property
    def num_clusters(self) -> int:
        return len(self.bounds) - 1

    @property
    def tables(self) -> tuple[tuple[int, int], ...]:
        """Rows and width of each embedding table: one a cluster, or one for all of them."""
        if self.div_val == 1:
            return ((self.vocab_size, self.embedding_width),)
        return tuple(
            (high - low, self.embedding_width // self.div_val**i)
            for i, (low, high) in enumerate(itertools.pairwise(self.bounds))
        )

    @property
    def projected(self) -> bool:
        """Whether embeddings are projected to the hidden states' width."""
        return self.div_val > 1 or self.embedding_width != self.hidden_size


def relative_encodings(length: int, width: int, clamp_len: int) -> jax.Array:
    """``[sin | cos]`` of the distances ``length - 1 .. 0``: float32 ``[length, width]``.

    Distances above ``clamp_len`` count as it; 0: no limit.
    """
    distances = jnp.arange(length - 1, -1, -1, dtype=jnp.float32)
    if clamp_len:
        distances = jnp.minimum(distances, float(clamp_len))
    frequencies = 1.0 / 10_000 ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_shift(scores: jax.Array) -> jax.Array:
    """Scores by distance to scores by key: ``[B, H, Q, K]``, both.

    Column ``c`` of a row is distance ``K - 1 - c`` going in, key ``c`` coming out, where query
    ``i`` stands at place ``K - Q + i``. Keys after the query get scores of no meaning.
    """
    rows, heads, queries, keys = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return padded.reshape(rows, heads, keys + 1, queries)[:, :, 1:].reshape(scores.shape)


def memory_mask(segment_ids: jax.Array, memory_segment_ids: jax.Array, longest: int) -> jax.Array:
    """``[B, Q]``, ``[B, M]`` -> bool ``[B, 1, Q, M + Q]``: which keys (last) each query sees.

    Itself and earlier ones of its segment, ``longest`` in all at most (0: no limit).
    """
    keys = jnp.concatenate([memory_segment_ids, segment_ids], axis=1)
    mask = segment_ids[:, None, :, None] == keys[:, None, None, :]
    places = jnp.arange(keys.shape[1])
    distances = places[memory_segment_ids.shape[1] :, None] - places[None, :]
    near = distances >= 0
    if longest:
        near &= distances < longest
    return mask & near[None, None]


def relative_biases(module: nn.Module) -> tuple[jax.Array, jax.Array]:
    """The parameters u (of content) and v (of position) ``[H, d]``, added to queries."""
    cfg = module.config
    init = nn.with_logical_partitioning(nn.initializers.normal(cfg.init_std), ("heads", "kv"))
    shape = (cfg.num_heads, cfg.head_width)
    return tuple(module.param(name, init, shape) for name in ("content_bias", "position_bias"))


class RelativeAttention(nn.Module):
    """Attention by content and relative position: ``x [B, Q, D] -> [B, Q, D]``.

    ``((q + u) k + (q + v) W_r R) / sqrt(d)``; keys and values are of memory and ``x`` together.
    """

    config: TransformerXLConfig

    @nn.compact
    def __call__(self, x, memory, biases, encodings, mask, deterministic: bool):
        cfg = self.config

        def project(name, y):
            return Dense(
                ("embed",),
                (cfg.num_heads, cfg.head_width),
                ("heads", "kv"),
                use_bias=False,
                init_std=cfg.init_std,
                dtype=cfg.dtype,
                name=name,
            )(y)

        seen = x if memory is None else jnp.concatenate([memory, x], axis=1)
        query, key, value = project("query", x), project("key", seen), project("value", seen)
        relative = project("relative", encodings[None])[0].swapaxes(0, 1)
        of_content, of_position = (
            ((query + bias.astype(cfg.dtype)[None, None]) * cfg.head_width**-0.5).swapaxes(1, 2)
            for bias in (biases or relative_biases(self))
        )
        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        position = jnp.einsum(
            "bhqd,hkd->bhqk", of_position, relative, preferred_element_type=jnp.float32
        )
        scores = attention_scores(of_content, key) + relative_shift(position)
        context = attend(self, scores, value, mask, deterministic)
        return Dense(
            ("heads", "kv"),
            (cfg.hidden_size,),
            ("embed",),
            use_bias=False,
            init_std=cfg.init_std,
            dtype=cfg.dtype,
            name="out",
        )(context)


class FeedForward(nn.Module):
    """``W_out dropout(relu(W_in x))``: ``[B, S, D] -> [B, S, D]``."""

    config: TransformerXLConfig

    @nn.compact
    def __call__(self, x, deterministic: bool):
        cfg = self.config
        dense = dict(init_std=cfg.init_std, dtype=cfg.dtype)
        x = nn.relu(Dense(("embed",), (cfg.ffn_size,), ("mlp",), name="in", **dense)(x))
        x = dropout(x, cfg.dropout, None if deterministic else self.make_rng("dropout"))
        return Dense(("mlp",), (cfg.hidden_size,), ("embed",), name="out", **dense)(x)


class Block(nn.Module):
    """One layer: attention and feed-forward, each with a residual and a norm after it."""

    config: TransformerXLConfig

    @nn.compact
    def __call__(self, x, memory, biases, encodings, mask, deterministic: bool):
        cfg = self.config

        def add(y, name):
            y = dropout(y, cfg.dropout, None if deterministic else self.make_rng("dropout"))
            return LayerNorm(cfg.norm_eps, dtype=cfg.dtype, name=name)(x + y)

        attention = RelativeAttention(cfg, name="attention")
        x = add(attention(x, memory, biases, encodings, mask, deterministic), "attention_norm")
        x = add(FeedForward(cfg, name="ffn")(x, deterministic), "ffn_norm")
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


class TransformerXL(nn.Module):
    """Adaptive embeddings and a scan over layers: token ids, and memory, to hidden states."""

    config: TransformerXLConfig

    def setup(self):
        cfg = self.config
        self.word = AdaptiveEmbed(cfg)
        self.biases = relative_biases(self) if cfg.shared_biases else None
        self.layers = nn.scan(
            rematerialised(Block, cfg.remat, static_argnums=(6,)),
            variable_axes={"params": 0, "intermediates": 0, SCORES: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
            unroll=cfg.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        deterministic: bool = True,
        memory: jax.Array | None = None,
        memory_segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states ``[B, S, D]`` of ``tokens [B, S]``.

        ``segment_ids [B, S]``: 0 is padding, positions attend within equal ids (default: all one).
        ``positions`` and ``token_types`` have no effect: distances inside a segment are the same
        wherever in its row it stands, and there are no types.

        ``memory [L, B, M, D]``: what entered each layer at the M positions before these (see
        `next_memory`); no gradient flows into it. Default: `initial_memory`.
        ``memory_segment_ids [B, M]``: the segments that these positions belong to (default: the
        one that each row begins with); an id that no position has hides them.

        With ``mutable=["intermediates"]`` the model tells ``embedded [B, S, D]``, and every layer
        what it passes on, ``hidden [L, B, S, D]``; the collection `SCORES` is of the
        ``attention_scores [L, B, H, S, M + S]`` before the softmax.
        """
        del positions, token_types
        cfg, (rows, length) = self.config, tokens.shape
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if memory is None:
            memory = initial_memory(cfg, rows)
        held = 0 if memory is None else memory.shape[2]
        if memory is not None:
            expected = (cfg.num_layers, rows, held, cfg.hidden_size)
            if memory.shape != expected:
                raise ValueError(f"memory of shape {memory.shape}, expected {expected}")
            memory = jax.lax.stop_gradient(memory.astype(cfg.dtype))
        if memory_segment_ids is None:
            memory_segment_ids = jnp.broadcast_to(segment_ids[:, :1], (rows, held))

        def drop(x, by_row=True):
            key = None if deterministic else self.make_rng("dropout")
            return dropout(x, cfg.dropout, key, by_row)

        encodings = relative_encodings(held + length, cfg.hidden_size, cfg.clamp_len)
        encodings = drop(encodings.astype(cfg.dtype), by_row=False)
        mask = memory_mask(segment_ids, memory_segment_ids, cfg.mem_len if cfg.same_length else 0)
        x = constrain(drop(self.word(tokens)), "batch", "length", None)
        self.sow("intermediates", "embedded", x)
        x, _ = self.layers(x, memory, self.biases, encodings, mask, deterministic)
        return drop(x)

    def output_table(self) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Tables ``[rows, width]`` and projections ``[width, D]`` of the embedding."""
        return self.word.weights()

    def forward_flops(self, seq_len: int, held: int = 0) -> int:
        """Floating-point operations of the matrix products for one row of ``seq_len`` tokens.

        ``held``: positions of memory that the row is given. A multiply-add counts as two. Attention
        counts the pairs that see each other, as fused kernels do, in three products: by content, by
        position, and with the values. The projection of relative encodings is left out: it is of a
        batch and not of its rows.
        """
        cfg = self.config
        inner = cfg.num_heads * cfg.head_width
        held = held or (cfg.mem_len if cfg.zero_memory else 0)
        if cfg.same_length:
            pairs = seq_len * held if held else count_pairs(seq_len, cfg.mem_len - 1, causal=True)
        else:
            pairs = seq_len * held + count_pairs(seq_len, seq_len, causal=True)
        per_token = 4 * cfg.hidden_size * inner + 2 * cfg.hidden_size * cfg.ffn_size
        layer = seq_len * per_token + held * 2 * cfg.hidden_size * inner + 3 * pairs * inner
        width = sum(width for _, width in cfg.tables) if cfg.projected else 0
        return 2 * (cfg.num_layers * layer + seq_len * width * cfg.hidden_size)


def initial_memory(cfg: TransformerXLConfig, rows: int) -> jax.Array | None:
    """What stands before the first segment: nothing, or ``mem_len`` zero states (``zero_memory``).

    Zero states count in the softmax, which makes them other than none.
    """
    if not (cfg.zero_memory and cfg.mem_len):
        return None
    return jnp.zeros((cfg.num_layers, rows, cfg.mem_len, cfg.hidden_size), cfg.dtype)


def next_memory(intermediates: dict, mem_len: int, memory: jax.Array | None = None) -> jax.Array:
    """The memory for the segment that follows, ``[L, B, M, D]`` with ``M`` at most ``mem_len``.

    ``intermediates`` is what the model has told of a segment, ``memory`` what that one was given.
    """
    hidden = intermediates["layers"]["hidden"][0]
    entered = jnp.concatenate([intermediates["embedded"][0][None], hidden[:-1]])
    if memory is not None:
        entered = jnp.concatenate([memory.astype(entered.dtype), entered], axis=2)
    return jax.lax.stop_gradient(entered[:, :, max(0, entered.shape[2] - mem_len) :])

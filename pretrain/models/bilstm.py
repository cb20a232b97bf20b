"""Bidirectional LSTM over words and their characters (Lample et al. 2016; Ma & Hovy 2016)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.models.layers import dropout
from pretrain.models.options import Widths, check_choices, check_least

WORD_CHARACTERS = 256  # rows of the table of characters: `pretrain.data.words` makes bytes


@dataclasses.dataclass(frozen=True)
class BiLSTMConfig(Widths):
    """Options of the ``model`` section; see `pretrain.schema`."""

    vocab_size: int
    embedding_size: int
    num_layers: int
    hidden_size: int
    characters: str
    character_size: int
    dropout: float

    # What heads read of any trunk.
    init_std = 0.02
    dtype = "float32"
    remat = pooler = "none"

    def __post_init__(self):
        check_choices(self, {"characters": ("none", "cnn", "lstm")})
        check_least(self, vocab_size=2, embedding_size=1, hidden_size=2, character_size=2)
        for name in ("hidden_size", "character_size"):
            if (found := getattr(self, name)) % 2:
                raise UserError(
                    f"config.model.{name}: found {found}, expected an even number, for two "
                    "directions"
                )


def _named(init, *names: str):
    return nn.with_logical_partitioning(init, names)


def _table(rows: int, size: int, axis: str, name: str) -> nn.Embed:
    """Uniform with variance 1 / size (Ma & Hovy 2016)."""
    bound = (3.0 / size) ** 0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Embed(rows, size, embedding_init=_named(init, axis, "embed"), name=name)


def _bilstm(size: int, name: str) -> nn.Bidirectional:
    """``[B, S, D] -> [B, S, size]``, half of it from either direction.

    Parameters are those of the cells ``{name}_forward`` and ``{name}_backward``.
    """

    def direction(which: str) -> nn.RNN:
        cell = nn.OptimizedLSTMCell(
            size // 2,
            kernel_init=_named(nn.initializers.lecun_normal(), "embed", "mlp"),
            recurrent_kernel_init=_named(nn.initializers.orthogonal(), "embed", "mlp"),
            bias_init=_named(nn.initializers.zeros, "norm"),
            name=f"{name}_{which}",
        )
        return nn.RNN(cell)

    return nn.Bidirectional(direction("forward"), direction("backward"))


class CharacterEncoder(nn.Module):
    """Vectors of words from their characters: ``[N, W]``, 0 is padding, -> ``[N, D]``.

    "cnn": the largest of D filters over three characters each (Ma & Hovy 2016); "lstm": the last
    states of both directions (Lample et al. 2016).
    """

    config: BiLSTMConfig

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        size = self.config.character_size
        real = (ids > 0)[..., None]
        x = _table(WORD_CHARACTERS, size, "types", "table")(ids.astype(jnp.int32))
        x = jnp.where(real, x, 0.0)
        if self.config.characters == "cnn":
            near = [jnp.pad(x, ((0, 0), (1 - i, 1 + i), (0, 0)))[:, 1:-1] for i in (-1, 0, 1)]
            x = nn.Dense(
                size,
                kernel_init=_named(nn.initializers.lecun_normal(), "embed", "embed_out"),
                bias_init=_named(nn.initializers.zeros, "norm"),
                name="filters",
            )(jnp.concatenate(near, -1))
            return jnp.where(real, nn.tanh(x), -1.0).max(1)
        lengths = real[..., 0].sum(-1)
        x = _bilstm(size, "lstm")(x, seq_lengths=lengths)
        ends = jnp.maximum(lengths - 1, 0)[:, None, None]
        forward = jnp.take_along_axis(x[..., : size // 2], ends, axis=1)[:, 0]
        return jnp.concatenate([forward, x[:, 0, size // 2 :]], -1)


class BiLSTM(nn.Module):
    """Words ``tokens [B, S]`` -> hidden ``[B, S, D]``; the interface of `Transformer`.

    ``characters [B, S, W]`` are those of each word; without them words have none.
    """

    config: BiLSTMConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        characters: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        del token_types
        cfg = self.config

        def drop(x):
            return dropout(x, cfg.dropout, None if deterministic else self.make_rng("dropout"))

        x = _table(cfg.vocab_size, cfg.embedding_size, "vocab", "word_embedding")(tokens)
        if cfg.characters != "none":
            if characters is None:
                characters = jnp.zeros((*tokens.shape, 1), jnp.uint8)
            flat = characters.reshape(-1, characters.shape[-1])
            spelled = CharacterEncoder(cfg, name="characters")(flat)
            x = jnp.concatenate([x, spelled.reshape(*tokens.shape, -1)], -1)
        lengths = None if segment_ids is None else (segment_ids > 0).sum(-1)
        x = drop(x)
        for layer in range(cfg.num_layers):
            x = drop(_bilstm(cfg.hidden_size, f"lstm_{layer}")(x, seq_lengths=lengths))
        return x

    def forward_flops(self, seq_len: int) -> int:
        """Of one row, without the characters, which depend on the words."""
        cfg = self.config
        width, half = cfg.embedding_size, cfg.hidden_size // 2
        width += cfg.character_size if cfg.characters != "none" else 0
        flops = 0
        for _ in range(cfg.num_layers):
            flops += 2 * 2 * 4 * half * (width + half)  # two directions, four gates
            width = cfg.hidden_size
        return seq_len * flops

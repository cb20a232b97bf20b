"""Linear-chain conditional random fields over tags (Lafferty et al. 2001), in rows of sentences.

The score of a sentence's tags is the sum of the words' own scores (*emissions*, from any model),
of the transitions from each tag to the next, and of the first tag to start and the last to end
with. A row may hold several sentences, sub-words between words, padding, and a sentence that began
in the row before or goes on in the next: such a part is a chain without start, or without end.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Scores = dict[str, jax.Array]  # "transitions" [from, to], "start" [C], "end" [C]


class Chain(NamedTuple):
    """Where the words of a row stand, all [B, S] bool."""

    is_word: jax.Array
    is_first: jax.Array  # of its sentence
    is_last: jax.Array


def init_scores(num_classes: int) -> Scores:
    """Zeros, boxed with logical axis names."""

    def zeros(*names):
        return nn.LogicallyPartitioned(jnp.zeros((num_classes,) * len(names)), names)

    return {
        "transitions": zeros("classes", "classes"),
        "start": zeros("classes"),
        "end": zeros("classes"),
    }


def log_partition(scores: Scores, emissions: jax.Array, chain: Chain) -> jax.Array:
    """Log of the sum over all tag sequences of exp score: ``[B, S, C] -> [B]``.

    Its gradient with respect to the emissions are the tags' marginal probabilities.
    """

    def step(carry, inputs):
        forward, is_open, total = carry  # [B, C] scores of the chain up to here, by its last tag
        emission, is_word, is_first, is_last = inputs
        paths = forward[:, :, None] + scores["transitions"][None]
        before = jnp.where(is_open[:, None], jax.nn.logsumexp(paths, axis=1), 0.0)
        before = jnp.where(is_first[:, None], scores["start"][None], before)
        forward = jnp.where(is_word[:, None], emission + before, forward)
        closes = is_word & is_last
        ended = jax.nn.logsumexp(forward + scores["end"][None], axis=-1)
        total += jnp.where(closes, ended, 0.0)
        return (forward, (is_open | is_word) & ~closes, total), None

    rows, _, classes = emissions.shape
    first = (jnp.zeros((rows, classes)), jnp.zeros(rows, bool), jnp.zeros(rows))
    by_place = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (emissions, *chain))
    (forward, is_open, total), _ = jax.lax.scan(step, first, by_place)
    return total + jnp.where(is_open, jax.nn.logsumexp(forward, axis=-1), 0.0)


def path_score(scores: Scores, emissions: jax.Array, tags: jax.Array, chain: Chain) -> jax.Array:
    """Score of the ``tags [B, S]``: ``[B, S, C] -> [B]``."""
    is_word, is_first, is_last = chain
    own = jnp.take_along_axis(emissions, tags[..., None], axis=-1)[..., 0]
    own += jnp.where(is_first, scores["start"][tags], 0.0)
    own += jnp.where(is_last, scores["end"][tags], 0.0)

    # The tag of the word before, across the sub-words between; -1 where the row has none.
    place = jnp.broadcast_to(jnp.arange(tags.shape[1], dtype=jnp.int32)[None], tags.shape)
    last = jax.lax.cummax(jnp.where(is_word, place, -1), axis=1)
    before = jnp.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    linked = (before >= 0) & ~is_first
    from_tags = jnp.take_along_axis(tags, jnp.maximum(before, 0), axis=1)
    own += jnp.where(linked, scores["transitions"][from_tags, tags], 0.0)
    return jnp.where(is_word, own, 0.0).sum(-1)


def negative_log_likelihood(
    scores: Scores, emissions: jax.Array, tags: jax.Array, chain: Chain
) -> jax.Array:
    """Of the ``tags [B, S]``, summed over the sentences of each row: ``[B, S, C] -> [B]``."""
    return log_partition(scores, emissions, chain) - path_score(scores, emissions, tags, chain)

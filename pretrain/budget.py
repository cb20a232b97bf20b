"""How long training lasts and how often things recur, in any unit."""

import dataclasses
import math

from pretrain.config import duration
from pretrain.errors import UserError


@dataclasses.dataclass(frozen=True)
class Budget:
    """An amount of training: ``steps``, or else ``seconds`` of stepping."""

    steps: float | None
    seconds: float | None = None

    def spent(self, step: int, seconds: float) -> float:
        """How often it is spent: 0 at the start, 1 at its end, and on."""
        return step / self.steps if self.steps else seconds / self.seconds

    def progress(self, step: int, seconds: float) -> float:
        """Fraction spent, in [0, 1]."""
        return min(1.0, self.spent(step, seconds))

    def comparable(self, other: "Budget") -> bool:
        """Whether both are counted in steps, or both in seconds."""
        return (self.steps is None) == (other.steps is None)

    def share(self, whole: "Budget") -> float:
        """Of a `comparable` one, as a fraction."""
        return (self.steps or self.seconds) / (whole.steps or whole.seconds)


@dataclasses.dataclass(frozen=True)
class Units:
    """What a step is worth in every unit."""

    batch_size: int
    num_rows: int
    tokens_per_row: float
    flops_per_row: float

    def budget(self, text: str, key: str, whole: Budget | None = None) -> Budget:
        """Parses a duration of the config, in whole steps; ``%`` is of the ``whole``."""
        span = self.span(text, key, whole)
        return span if span.steps is None else Budget(max(1, math.ceil(span.steps - 1e-9)))

    def span(self, text: str, key: str, whole: Budget | None = None) -> Budget:
        """As `budget`, with fractions of a step."""
        amount, unit = duration(text, key)
        if unit == "seconds":
            return Budget(None, amount)
        if unit == "%" and whole is None:
            raise UserError(f"config.{key}: found {text!r}, but there is no whole of it")
        if unit == "%" and whole.steps is None:
            return Budget(None, amount / 100 * whole.seconds)
        if unit == "%":
            return Budget(amount / 100 * whole.steps)
        per_step = {
            "steps": 1.0,
            "examples": self.batch_size,
            "epochs": self.batch_size / self.num_rows,
            "tokens": self.batch_size * self.tokens_per_row,
            "flops": self.batch_size * self.flops_per_row,
        }
        return Budget(amount / per_step[unit])


class Periodic:
    """Says when a thing that recurs is due."""

    def __init__(self, every: Budget, step: int, seconds: float):
        self._every = every
        self._last = self._count(step, seconds)

    def _count(self, step: int, seconds: float) -> int:
        if self._every.steps:
            return step // self._every.steps
        return math.floor(seconds / self._every.seconds)

    def due(self, step: int, seconds: float) -> bool:
        """True once for every period that has passed."""
        count, last = self._count(step, seconds), self._last
        self._last = count
        return count > last

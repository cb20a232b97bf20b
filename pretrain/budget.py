"""How long training lasts and how often things recur, in any unit."""

import dataclasses
import math

from pretrain.config import duration
from pretrain.errors import UserError


@dataclasses.dataclass(frozen=True)
class Budget:
    """An amount of training: ``steps``, or else ``seconds`` of stepping."""

    steps: int | None
    seconds: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Fraction spent, in [0, 1]."""
        return min(1.0, step / self.steps if self.steps else seconds / self.seconds)


@dataclasses.dataclass(frozen=True)
class Units:
    """What a step is worth in every unit."""

    batch_size: int
    num_rows: int
    tokens_per_row: float
    flops_per_row: float

    def budget(self, text: str, key: str, whole: Budget | None = None) -> Budget:
        """Parses a duration of the config; ``%`` is of the ``whole``."""
        amount, unit = duration(text, key)
        if unit == "seconds":
            return Budget(None, amount)
        if unit == "%" and whole is None:
            raise UserError(f"config.{key}: found {text!r}, but there is no whole of it")
        if unit == "%" and whole.steps is None:
            return Budget(None, amount / 100 * whole.seconds)
        per_step = {
            "steps": 1.0,
            "examples": self.batch_size,
            "epochs": self.batch_size / self.num_rows,
            "tokens": self.batch_size * self.tokens_per_row,
            "flops": self.batch_size * self.flops_per_row,
            "%": 100.0 / whole.steps if whole is not None else math.nan,
        }
        return Budget(max(1, math.ceil(amount / per_step[unit] - 1e-9)))


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

"""Learning rates over a run: a warm-up, then a shape, both in any unit of training.

A schedule is a function of step and seconds on the host, and a step is told its rate: runs that
differ in it share one compiled step.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from pretrain.budget import Budget, Units
from pretrain.errors import UserError

KEYS = ("lr", "schedule", "warmup", "decay", "decay_shape", "end")  # of ``config.optimizer``
SCHEDULES = ("linear", "cosine", "inverse_sqrt", "wsd", "constant")
FALLS: dict[str, Callable[[float], float]] = {  # from 1 at 0 to 0 at 1
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "sqrt": lambda x: 1.0 - math.sqrt(x),  # Hägele et al. 2024; ModernBERT
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of a run of length ``whole``.

    It rises from 0 to ``lr`` over ``warmup``. "linear" and "cosine" then fall to ``end * lr`` at
    the end of the run; "wsd" (warm-up, stable, decay; Hu et al. 2024) stays and falls by
    ``decay_shape`` over the last ``decay``; "inverse_sqrt" (Vaswani et al. 2017) is
    ``lr * sqrt(warmup / spent)``, at least ``end * lr``; "constant" stays.

    Of a run and a warm-up of which one is counted in steps and the other in seconds, nobody knows
    beforehand where the one ends in the other: linear and cosine then fall from the start of the
    run, and the warm-up scales them (as in BERT's release, whatever the units).
    """

    lr: float
    name: str
    end: float
    whole: Budget
    warmup: Budget | None = None
    decay: Budget | None = None
    decay_shape: str = "linear"

    def __call__(self, step: int, seconds: float) -> float:
        """Rate of the update after ``step`` others and ``seconds`` of stepping."""
        warm = self.warmup.spent(step, seconds) if self.warmup else 1.0
        if self.name == "constant":
            scale = 1.0
        elif self.name == "inverse_sqrt":
            scale = max(self.end, 1.0 / math.sqrt(max(warm, 1.0)))
        else:
            spent, start = self.whole.progress(step, seconds), 0.0
            if self.name == "wsd":
                start = 1.0 - self.decay.share(self.whole)
            elif self.warmup and self.warmup.comparable(self.whole):
                start = self.warmup.share(self.whole)
            fallen = max(0.0, (spent - start) / (1.0 - start)) if start < 1.0 else 0.0
            fall = FALLS[self.decay_shape if self.name == "wsd" else self.name]
            scale = self.end + (1.0 - self.end) * fall(fallen)
        return self.lr * scale * min(1.0, warm)


def create(options: Mapping[str, Any], units: Units, whole: Budget) -> Callable[..., float]:
    """``(step, seconds) -> rate`` by ``config.optimizer``; a `UserError` names the wrong key.

    0 for an optimizer without a rate, which searches the length of its steps.
    """
    if "lr" not in options:
        return lambda *_: 0.0
    name, shape = options["schedule"], options["decay_shape"]
    _check("schedule", name, SCHEDULES)
    _check("decay_shape", shape, tuple(FALLS))
    if name != "wsd" and shape != "linear":
        raise UserError(
            f"config.optimizer.decay_shape: found {shape!r} with schedule {name!r}, expected "
            "'linear': other shapes are for 'wsd'"
        )
    if name == "constant" and options["end"]:
        raise UserError(
            f"config.optimizer.end: found {options['end']} with schedule 'constant', expected 0.0: "
            "it does not fall"
        )
    spans = {
        key: units.span(options[key], f"optimizer.{key}", whole) if options[key] else None
        for key in ("warmup", "decay")
    }
    warmup, decay = spans["warmup"], spans["decay"]
    if (name == "wsd") != (decay is not None):
        wanted = "how long the fall lasts" if name == "wsd" else "'', which is for 'wsd'"
        raise UserError(
            f"config.optimizer.decay: found {options['decay']!r} with schedule {name!r}, "
            f"expected {wanted}"
        )
    if name == "inverse_sqrt" and warmup is None:
        raise UserError(
            "config.optimizer.warmup: found '' with schedule 'inverse_sqrt', expected a duration: "
            "its length sets how fast the rate falls"
        )
    if decay is not None and not decay.comparable(whole):
        raise UserError(
            f"config.optimizer.decay: found {options['decay']!r}, expected "
            f"{'steps, tokens or such' if whole.steps else 'seconds'} or %, as of train.budget: "
            "where it begins is counted back from the end"
        )
    taken = sum(span.share(whole) for span in (warmup, decay) if span and span.comparable(whole))
    if taken > 1.0 + 1e-9:
        key = "warmup" if warmup is not None else "decay"
        also = f" and decay {options['decay']!r}" if decay is not None and key == "warmup" else ""
        raise UserError(
            f"config.optimizer.{key}: found {options[key]!r}{also}, longer than the run; expected "
            "less than train.budget, such as '10%'"
        )
    return Schedule(options["lr"], name, options["end"], whole, warmup, decay, shape)


def _check(key: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise UserError(
            f"config.optimizer.{key}: found {found!r}, expected one of {', '.join(known)}"
        )

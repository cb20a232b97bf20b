"""What a running loop counts, and what it shows and writes of itself."""

import dataclasses
import math
import pathlib
import time

import jax

from pretrain import metrics
from pretrain.budget import Budget, Periodic
from pretrain.errors import UserError
from pretrain.logs import Logs, Progress


@dataclasses.dataclass
class Counters:
    """What a run has spent and found so far; saved with every checkpoint."""

    tokens: float = 0.0
    examples: float = 0.0
    seconds: float = 0.0  # of stepping; compilation and evaluation excluded
    loss: float = math.nan  # of the last step that was read
    evaluations: float = 0.0  # of loss and gradient: one a step, more with a line search
    converged: bool = False
    best_score: float = math.nan
    best_step: int = 0


class Monitor:
    """Reads the metrics of each step one step late, when the device is busy with the next."""

    def __init__(
        self,
        workdir: pathlib.Path,
        counters: Counters,
        budget: Budget,
        log_every: Budget,
        step: int,
    ):
        self._workdir, self._counters, self._budget = workdir, counters, budget
        self._log_due = Periodic(log_every, step, counters.seconds)
        self._logs = Logs(workdir, step)
        self._progress = Progress(budget.progress(step, counters.seconds))
        self._pending: tuple[int, float, dict] | None = None
        self._rate_since = time.monotonic(), counters.tokens

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        self._logs.close()

    def stepped(self, step: int, values: dict) -> None:
        """Takes the metrics of the step just dispatched, reads those of the one before."""
        self.flush()
        self._pending = step, self._counters.tokens, values

    def flush(self) -> None:
        """Waits for the last step and reads its metrics."""
        if self._pending is None:
            return
        step, tokens, values = self._pending
        self._pending = None
        values = jax.device_get(values)
        if not values["loss"][1]:
            raise UserError(
                f"step {step}: nothing in the batch has a loss; expected text in which the "
                "objective finds something to predict (whole words need words that are short "
                "enough for objective.mask_rate)"
            )
        values = metrics.finalize(metrics.add({}, values))
        self._counters.loss = values["loss"]
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"training diverged: the loss is {values['loss']} at step {step} of "
                f"{self._workdir}, whose last checkpoint is kept; expected a finite one. "
                "Try a lower optimizer.lr or a longer optimizer.warmup"
            )
        self._counters.evaluations += values.get("evaluations", 1.0)
        self._counters.converged = bool(values.get("converged"))
        now, (then, tokens_then) = time.monotonic(), self._rate_since
        rate = (tokens - tokens_then) / max(now - then, 1e-9)
        if self._log_due.due(step, self._counters.seconds):
            self._rate_since = now, tokens
            self._write(step, tokens, "train", values | {"tokens_per_second": rate})
        self._progress.update(
            self._budget.progress(step, self._counters.seconds),
            f"step {step}  loss {values['loss']:.3f}  {rate / 1e3:.1f}k tokens/s",
        )

    def evaluated(self, step: int, scores: dict[str, float], prefix: str = "validation") -> None:
        """Shows and writes held-out scores of the live parameters."""
        self.flush()
        self._write(step, self._counters.tokens, prefix, scores)
        self._progress.note(f"step {step}  {prefix}: {_text(scores)}")
        self._rate_since = time.monotonic(), self._counters.tokens

    def finished(self, step: int, split: str, chosen: int, scores: dict[str, float]) -> None:
        """Shows the scores that the run ends with, of its ``chosen`` step."""
        self._progress.note(f"finished at step {step}; {split} at step {chosen}: {_text(scores)}")

    def _write(self, step: int, tokens: float, prefix: str, values: dict[str, float]) -> None:
        spent = {"train/tokens": tokens, "seconds": self._counters.seconds}
        self._logs.write(step, {f"{prefix}/{k}": v for k, v in values.items()} | spent)


def _text(scores: dict[str, float]) -> str:
    """The main scores; those of single types have a slash."""
    return "  ".join(f"{k} {v:.4g}" for k, v in scores.items() if "/" not in k)

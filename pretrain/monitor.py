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
    """Reads the metrics of each step one step late, when the device is busy with the next.

    ``flops``: of one evaluation of loss and gradient on a batch. ``peak``: FLOP/s of all devices,
    for the model FLOPs utilization (Chowdhery et al. 2022); None: they are unknown, there is none.
    ``tells``: shows and writes; one of several processes does.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        counters: Counters,
        budget: Budget,
        log_every: Budget,
        step: int,
        flops: float = 0.0,
        peak: float | None = None,
        tells: bool = True,
    ):
        self._flops, self._peak = flops, peak
        self._workdir, self._counters, self._budget = workdir, counters, budget
        self._log_due = Periodic(log_every, step, counters.seconds)
        self._logs = Logs(workdir, step) if tells else None
        self._progress = Progress(budget.progress(step, counters.seconds)) if tells else None
        self._pending: tuple[int, dict] | None = None
        self._rate_since = time.monotonic(), counters.tokens, counters.evaluations

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.close()
            self._logs.close()

    def stepped(self, step: int, values: dict) -> None:
        """Takes the metrics of the step just dispatched, reads those of the one before."""
        self.flush()
        self._pending = step, values

    def flush(self) -> None:
        """Waits for the last step and reads its metrics."""
        if self._pending is None:
            return
        step, values = self._pending
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
        self._counters.tokens += values.pop("tokens")
        self._counters.evaluations += values.get("evaluations", 1.0)
        self._counters.converged = bool(values.get("converged"))
        now, tokens = time.monotonic(), self._counters.tokens
        evaluations = self._counters.evaluations
        then, tokens_then, evaluations_then = self._rate_since
        elapsed = max(now - then, 1e-9)
        rates = {"tokens_per_second": (tokens - tokens_then) / elapsed}
        shown = f"{rates['tokens_per_second'] / 1e3:.1f}k tokens/s"
        if self._peak is not None:
            flops = (evaluations - evaluations_then) * self._flops
            rates["mfu"] = flops / (elapsed * self._peak)
            shown += f"  MFU {rates['mfu']:.1%}"
        if self._log_due.due(step, self._counters.seconds):
            self._rate_since = now, tokens, evaluations
            self._write(step, "train", values | rates)
        if self._progress is not None:
            self._progress.update(
                self._budget.progress(step, self._counters.seconds),
                f"step {step}  loss {values['loss']:.3f}  {shown}",
            )

    def evaluated(self, step: int, scores: dict[str, float], prefix: str = "validation") -> None:
        """Shows and writes held-out scores of the live parameters."""
        self.flush()
        self._write(step, prefix, scores)
        self._note(f"step {step}  {prefix}: {_text(scores)}")
        counters = self._counters
        self._rate_since = time.monotonic(), counters.tokens, counters.evaluations

    def finished(self, step: int, split: str, chosen: int, scores: dict[str, float]) -> None:
        """Shows the scores that the run ends with, of its ``chosen`` step."""
        self._note(f"finished at step {step}; {split} at step {chosen}: {_text(scores)}")

    def _note(self, text: str) -> None:
        if self._progress is not None:
            self._progress.note(text)

    def _write(self, step: int, prefix: str, values: dict[str, float]) -> None:
        if self._logs is not None:
            spent = {"train/tokens": self._counters.tokens, "seconds": self._counters.seconds}
            self._logs.write(step, {f"{prefix}/{k}": v for k, v in values.items()} | spent)


def _text(scores: dict[str, float]) -> str:
    """The main scores; those of single types have a slash."""
    return "  ".join(f"{k} {v:.4g}" for k, v in scores.items() if "/" not in k)

"""What a run tells: a progress bar or plain lines, TensorBoard files, and JSON lines."""

import pathlib
import sys
import time

import tqdm
from tensorboardX import SummaryWriter

from pretrain.files import read_jsonl, to_json, write_jsonl

SECONDS_BETWEEN_LINES = 10.0


class Logs:
    """Metrics of one run. On resuming at ``step``, records of later steps are dropped first."""

    def __init__(self, workdir: pathlib.Path, step: int):
        path = workdir / "metrics.jsonl"
        write_jsonl(path, [record for record in read_jsonl(path) if record["step"] <= step])
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(to_json({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def clock(seconds: float) -> str:
    """``3725 -> "1:02:05"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class Progress:
    """A bar on a terminal, else a plain line at most every ten seconds.

    Counts in percent of the budget, so that it serves every unit.
    """

    def __init__(self, done: float):
        self._start, self._first = time.monotonic(), done
        self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            form = "{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
            self._bar = tqdm.tqdm(total=1.0, initial=done, bar_format=form)

    def update(self, done: float, text: str) -> None:
        """``done``: fraction of the budget spent."""
        elapsed = time.monotonic() - self._start
        share = (done - self._first) or 1e-9
        text = f"{text}  eta {clock(elapsed * (1.0 - done) / share)}"
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(f"{100 * done:5.1f}%  {text}", flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

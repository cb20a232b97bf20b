"""Real programs of several processes on this machine, joined over gloo."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from tests import small_runs

DEVICES = 4  # of all processes together
HEARTBEAT = 15


class Group:
    """``python -m pretrain.train``, or another module, in ``count`` processes that find each other.

    A context: whoever still runs at its end is killed.
    """

    def __init__(self, count: int, arguments: Sequence[str], module: str = "pretrain.train"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
        command = [sys.executable, "-m", module, *arguments, f"--heartbeat={HEARTBEAT}"]
        command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
        self.processes = [
            subprocess.Popen(
                [*command, f"--process_id={index}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=small_runs.ROOT,
                env=env,
            )
            for index in range(count)
        ]

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for(self, happened: Callable[[], bool], seconds: float = 500) -> None:
        """Until it has, or one of the processes has ended."""
        last = time.monotonic() + seconds
        while not happened() and all(p.poll() is None for p in self.processes):
            assert time.monotonic() < last
            time.sleep(0.05)

    def ended(self, seconds: float = 500) -> tuple[list[int], list[str]]:
        """Exit codes and outputs of all."""
        last = time.monotonic() + seconds
        outputs = [p.communicate(timeout=last - time.monotonic())[0] for p in self.processes]
        return [p.returncode for p in self.processes], outputs

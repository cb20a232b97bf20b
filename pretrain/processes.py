"""Several JAX processes as one program: how they find each other, agree, and end together.

Alone, a process pays nothing for it: every function returns at once.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain.errors import UserError

logger = logging.getLogger(__name__)

PATIENCE = 48 * 3600  # seconds that a process waits while another makes token stores
GRACE = 5  # seconds for the others to tell their own errors before this process is gone
# XLA's errors begin with their kind; JAX raises them as this class of exceptions or another.
_LOST = re.compile("(UNAVAILABLE|DEADLINE_EXCEEDED|[A-Z_]+: .*(?i:gloo|nccl|coordination|barrier))")
_numbers = itertools.count()
FLAGS = ("coordinator", "num_processes", "process_id", "heartbeat")  # the arguments of `join`


def define_flags() -> None:
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, where neither Slurm nor a TPU pod tells."
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.")
    flags.DEFINE_integer(
        "heartbeat", 60, "Seconds of silence after which a process counts as dead, and all end."
    )


def join(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat: int = 60,
) -> None:
    """Joins the processes that the arguments, a Slurm step or a TPU pod name; else stays alone.

    Before the first use of a device. All but process 0 then say nothing but errors.

    Args:
      coordinator: ``host:port`` of process 0, which all can reach.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat: seconds without a sign of life after which a process counts as dead, and all end.
    """
    if heartbeat < 1:
        raise UserError(f"--heartbeat: found {heartbeat}, expected at least 1 second")
    method = _cluster()
    if coordinator or num_processes is not None or process_id is not None:
        _check_flags(coordinator, num_processes, process_id)
        method = "deactivate"
    if method is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is the loop's own
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            cluster_detection_method=method or None,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (ValueError, OSError) as error:
        if method:
            raise  # only a TPU need not be part of something
        logger.warning("found no pod around this TPU, going on as one process: %s", error)
    if jax.process_index():
        logging.getLogger("pretrain").setLevel(logging.ERROR)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def _check_flags(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    if not coordinator or num_processes is None or process_id is None:
        raise UserError(
            f"--coordinator: found {coordinator!r} with --num_processes={num_processes} and "
            f"--process_id={process_id}, expected all three or none"
        )
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise UserError(f"--coordinator: found {coordinator!r}, expected host:port of process 0")
    try:
        socket.getaddrinfo(coordinator.rpartition(":")[0].strip("[]"), None)
    except OSError as error:
        raise UserError(f"--coordinator: found {coordinator!r}: {error.strerror}") from None
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id: found {process_id} with --num_processes={num_processes}, expected "
            "0 to one less than the number of processes"
        )


def _cluster() -> str | None:
    """What JAX shall ask who the processes are: "slurm", "" for the TPU's own, None for nobody."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_NODELIST" in os.environ and tasks.isdigit() and int(tasks) > 1:
        return "slurm"
    return "" if "tpu" in _platforms().split(",") else None


def _platforms() -> str:
    return jax.config.jax_platforms or ""  # which JAX sets itself on a TPU VM


def refuse_several(program: str) -> None:
    """`UserError` where ``program``, which is one process, has been started in many."""
    slurm = _cluster() == "slurm"
    if slurm or several():
        count = os.environ["SLURM_NTASKS"] if slurm else jax.process_count()
        raise UserError(
            f"{program}: found {count} processes, expected one; pretrain.train trains a single "
            "run in several"
        )


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process writes the files and tells of the run."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Until all have come here, however long what they do by themselves may take.

    Data on a disk of their own, or programs to compile; an exchange of arrays has less patience
    (the first over gloo, half a minute).
    """
    key = f"pretrain/{what}/{next(_numbers)}"
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * PATIENCE)


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make`` gives in process 0, anything that JSON has, in all; its `UserError` too."""
    if not several():
        return make()
    told = None, None
    if first():
        try:
            told = None, make()
        except UserError as error:
            told = str(error), None
    text = json.dumps(told).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    size = 1024 * 2 ** max(0, (size - 1) // 1024).bit_length()  # few sizes: few programs
    padded = np.frombuffer(text.ljust(size) if first() else b" " * size, np.uint8)
    error, value = json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
    if error is not None:
        raise UserError(error)
    return value


def any_of(flag: bool) -> bool:
    """Whether it is true in any process."""
    if not several():
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def check_same(what: str, value: Any) -> None:
    """`UserError` unless ``value``, anything that JSON has, is the same in all, after a `wait`."""
    if not several():
        return
    wait(what)
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    _refuse(
        (found != found[:1]).any(axis=1),
        f"another {what} than process 0, expected the same command and data for all",
    )


def check_shared(folder: pathlib.Path) -> None:
    """`UserError` unless all see ``folder`` on one disk; makes it."""
    if not several():
        return

    def mark() -> str:  # a name that nobody has asked for: network disks remember what is not there
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".shared-", dir=folder)
        os.close(handle)
        return pathlib.Path(name).name

    marked = folder / from_first(mark)
    seen = multihost_utils.process_allgather(np.asarray(marked.exists()))
    if first():
        marked.unlink()
    _refuse(~seen, f"no {folder} that process 0 made, expected --workdir on a disk that all share")


def _refuse(which: np.ndarray, problem: str) -> None:
    if which.any():
        raise UserError(f"process {', '.join(map(str, np.flatnonzero(which)))} has {problem}")


class Agreement:
    """What all must know alike, asked in every step and told one step late, so that nobody waits.

    Called with whether this process was told to stop and the seconds that its step took; returns
    whether any was, and the seconds of process 0. Alone it gives back what it gets, at once.
    """

    def __init__(self):
        self._asked = None
        if several():
            devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
            self._mesh = Mesh(devices, ("process", "device"))
            whole = NamedSharding(self._mesh, PartitionSpec())
            self._most = jax.jit(lambda values: values.max(axis=0), out_shardings=whole)

    def __call__(self, stop: bool, seconds: float) -> tuple[bool, float]:
        if not several():
            return stop, seconds
        mine = np.array([[stop, seconds if first() else 0.0]], np.float32)
        rows = NamedSharding(self._mesh, PartitionSpec("process"))
        values = jax.make_array_from_process_local_data(rows, mine, (jax.process_count(), 2))
        before, self._asked = self._asked, settled(self._most(values))
        stop, seconds = (0, 0) if before is None else np.asarray(before)
        return bool(stop), float(seconds)


def settled(outputs: Any) -> Any:
    """``outputs``; on CPUs of several processes, when they are there.

    Two programs that exchange data over gloo must not run at once: each process may begin with
    another one, and all wait for ever (seen with two devices a process and JAX 0.10).
    """
    if several() and jax.default_backend() == "cpu":
        jax.block_until_ready(outputs)
    return outputs


def leave(code: int, error: BaseException | None = None) -> None:
    """Where there are others, ends this process at once, and thereby them; alone, returns.

    ``error``: what is still to be told. An ordinary exit would wait for the others, who wait for
    this one.
    """
    if not (jax.distributed.is_initialized() and several()):
        return
    if error is not None and _LOST.match(str(error)):
        print(
            f"error: process {jax.process_index()} lost another, which has ended or cannot be "
            f"reached ({str(error).splitlines()[0]}); the same command for all goes on from the "
            "last checkpoint",
            file=sys.stderr,
        )
    elif error is not None:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Process 0, at its end, takes the others with it, whatever they are still telling.
    with contextlib.suppress(Exception):
        ocp.multihost.get_barrier_sync_fn()(key="pretrain/end", timeout_ms=1000 * GRACE)
    os._exit(code)

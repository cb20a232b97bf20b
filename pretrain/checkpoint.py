"""Checkpoints: one thin layer on Orbax.

A checkpoint holds three items: ``params``, ``rest`` (step, optimizer state, memory) and ``meta``
(JSON: counters of the loop). Parameters alone can be read, on any mesh, by evaluation and by
fine-tuning; they are the moving average where a run keeps one, and ``rest`` then holds those that
it trains.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain.errors import UserError
from pretrain.state import TrainState

LAST, BEST = "checkpoints", "best"  # directories below a workdir


def _manager(directory: pathlib.Path, **options) -> ocp.CheckpointManager:
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(
        directory.absolute(),
        item_handlers=handlers,
        options=ocp.CheckpointManagerOptions(**options),
    )


class Checkpointer:
    """Saves asynchronously; a checkpoint appears under its step whole or not at all."""

    def __init__(self, directory: pathlib.Path, keep: int = 1):
        self._manager = _manager(
            directory,
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def has(self, step: int) -> bool:
        return step in self._manager.all_steps()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves under ``state.step``; does nothing if that step is there already."""
        step = int(state.step)
        if self.has(step):
            return
        rest = {"step": state.step, "opt_state": state.opt_state}
        if state.mean is not None:
            rest["trained"] = state.params
        if state.memory is not None:
            rest["memory"] = state.memory
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.scored),
                rest=ocp.args.StandardSave(rest),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, on the shardings of ``abstract``, and its ``meta``."""
        rest = {"step": abstract.step, "opt_state": abstract.opt_state}
        if abstract.mean is not None:
            rest["trained"] = abstract.params
        if abstract.memory is not None:
            rest["memory"] = abstract.memory
        restored = self._manager.restore(
            self.latest_step(),
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                rest=ocp.args.StandardRestore(rest),
                meta=ocp.args.JsonRestore(),
            ),
        )
        rest, params = restored["rest"], restored["params"]
        if "trained" in rest:
            rest["mean"], params = params, rest.pop("trained")
        return TrainState(params=params, **rest), restored["meta"]

    def discard_after(self, step: int) -> None:
        """Deletes later steps: a run that goes on from ``step`` makes them again."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees what saving needs."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:  # else for whom to wait may be gone
            self.close()


def load_params(
    workdir: str | pathlib.Path,
    mesh: Mesh,
    like: Any = None,
    directories: Sequence[str] = (BEST, LAST),
) -> tuple[dict, int]:
    """The parameters a finished run stands for, and their step: from the first of ``directories``.

    Without ``like`` every array lies whole on every device. With it (arrays or abstract ones), an
    array that has the path and shape of one of its leaves is restored on that leaf's sharding, and
    any other into host memory.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    layout = {path: (x.shape, x.sharding) for path, x in jax.tree_util.tree_leaves_with_path(like)}

    def leaf(path, x):
        shape, sharding = layout.get(path, (None, None)) if layout else (x.shape, replicated)
        if shape == x.shape:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)  # of the type that is wanted

    for name in directories:
        directory = pathlib.Path(workdir) / name
        if not directory.is_dir():
            continue
        with _manager(directory) as manager:
            step = manager.latest_step()
            if step is None:
                continue
            saved = manager.item_metadata(step)["params"].tree
            abstract = jax.tree_util.tree_map_with_path(leaf, saved)
            args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
            return manager.restore(step, args=args)["params"], step
    raise UserError(f"{workdir}: no checkpoint found; expected the workdir of a training run")

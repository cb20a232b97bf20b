"""Where derived data lie on disk, and how they get there whole or not at all."""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pretrain.files import write_text

ABANDONED = 86_400  # seconds without a change, after which a folder under construction is removed
_HASHES = "hashes.json"


def cache_dir() -> Path:
    """The folder for derived data: ``$PRETRAIN_CACHE``, else ``~/.cache/pretrain``."""
    configured = os.environ.get("PRETRAIN_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "pretrain"


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty sibling folder that becomes `path` when the block ends without an error.

    A reader therefore sees either nothing or everything. When another process has put its own
    `path` there in the meantime, that one stays and ours is removed: both hold the same content,
    because a path in the cache is named by the hash of what it was made from.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if time.time() - _last_change(other) > ABANDONED:  # its process was killed
            shutil.rmtree(other, ignore_errors=True)
    # mkdtemp makes the folder private; the cache may be shared, so restore the usual mode.
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    building.chmod(0o777 & ~_umask())
    try:
        yield building
        try:
            building.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """The folder `path`, whose contents ``make`` puts into one that gets its name when complete.

    Nothing happens where it is there. While one makes it others wait: processes on this machine,
    and on all that share the disk if it knows locks; without locks several make the same, one of
    which stays (`atomic_directory`). A lock ends with its process.
    """
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if not path.is_dir():
                with atomic_directory(path) as building:
                    make(building)
        finally:
            lock.unlink(missing_ok=True)  # whoever waits has it open


def _last_change(folder: Path) -> float:
    """When the folder or a file in it changed last; now, if it is going away."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return time.time()


def remembered(states: Mapping[str, str | None], compute: Callable[[str], str]) -> dict[str, str]:
    """``compute(name)`` for each name, from the cache where its state is what it was before.

    A name's state is anything that changes with its content; None: unknown, so never remembered.
    A cache that cannot be read or written, or a writer that comes between, only costs time.
    """
    path = cache_dir() / _HASHES
    known = _read(path)
    found, new = {}, {}
    for name, state in states.items():
        if state is not None and known.get(name, [None])[0] == state:
            found[name] = known[name][1]
        else:
            found[name] = compute(name)
            if state is not None:
                new[name] = [state, found[name]]
    if new:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(_read(path) | new))
    return found


def _read(path: Path) -> dict[str, list[str]]:
    try:
        known = json.loads(path.read_text("utf-8"))
        return {name: [state, value] for name, (state, value) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none, or no such table
        return {}


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

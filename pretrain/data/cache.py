"""Where derived data lie on disk, and how they get there whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

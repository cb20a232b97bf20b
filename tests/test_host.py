"""Memory that is freed and allocated again, seen from the kernel."""

import platform
import subprocess
import sys

import pytest

from tests import small_runs

PROGRAM = """
import resource, sys
import numpy as np
from pretrain import host

if sys.argv[1] == "keep":
    host.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def touch():
    before = faults()
    np.ones(2**23)  # 64 MiB
    return faults() - before
touch()
print(touch())
"""


def second_time(how: str) -> int:
    """Page faults of a 64 MiB block allocated when one of that size was just freed."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.check_output(command, cwd=small_runs.ROOT, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc")
def test_freed_memory_is_used_again():
    assert second_time("") > 30  # 32 huge pages, or 16384 small ones
    assert second_time("keep") < 10

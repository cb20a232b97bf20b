"""Memory that is freed and allocated again, seen from the kernel."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from pretrain import host
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


@pytest.mark.skipif(not host.CLEAR.exists(), reason="a kernel that resets peaks")
def test_the_peak_is_of_what_came_since_the_reset():
    big = np.ones(2**25)  # 256 MiB
    peak = host.peak_rss_bytes()
    assert peak > big.nbytes
    del big
    host.reset_peak_rss()
    assert host.peak_rss_bytes() < peak - 2**27


def second_time(how: str) -> int:
    """Page faults of a 64 MiB block allocated when one of that size was just freed."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.check_output(command, cwd=small_runs.ROOT, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc")
def test_freed_memory_is_used_again():
    assert second_time("") > 30  # 32 huge pages, or 16384 small ones
    assert second_time("keep") < 10

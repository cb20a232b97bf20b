"""The host's memory: how much was used at most, and what becomes of freed blocks."""

import contextlib
import ctypes
import pathlib
import platform
import resource

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def reset_peak_rss() -> None:
    """Lets `peak_rss_bytes` start anew; does nothing where the kernel has no such thing."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_rss_bytes() -> int:
    """The most memory that this process has held since `reset_peak_rss`, or since its start."""
    if STATUS.is_file():
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def keep_freed_memory() -> None:
    """Makes glibc's malloc reuse large blocks instead of giving them back to the kernel.

    On CPU, JAX allocates the temporaries of every step anew, hundreds of megabytes, and each page
    given back costs a page fault at its next use: a quarter of a train step of such a size. Only
    the main thread's heap can hold blocks above 64 MiB, so steps run in the thread that calls them.
    Call it before the first use of a device. Does nothing where malloc is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if platform.libc_ver()[0] == "glibc" and mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        import jax  # slow to import; programs ask for their help without it

        jax.config.update("jax_cpu_enable_async_dispatch", False)

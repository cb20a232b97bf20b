"""Every test sees 8 CPU devices and no implicit rank promotion."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import pytest

from pretrain import config as configs
from pretrain import record, train
from tests import small_runs

# Compiling is what most of the tests' time goes into: do it fast rather than well. Later versions
# lack the last two flags, and an unknown one is fatal. On a busy machine one of the eight devices
# may keep the others waiting: after 40 seconds the program would be aborted.
flags = ["--xla_backend_optimization_level=0"]
flags += ["--xla_cpu_collective_call_terminate_timeout_seconds=300"]
if jax.__version_info__ < (0, 11):
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Shares compiled programs between workers, the programs that tests start, and sessions.

    Not from jax 0.11 on: devices run the collectives of a program that was read from the cache in
    different orders, and wait for each other until it is aborted.
    """
    shared = jax.__version_info__ < (0, 11) and hasattr(config, "cache")
    folder = str(config.cache.mkdir("compiled")) if shared else ""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items() if folder else ():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real development data sets; tests that read it skip where it is absent."""
    here = pathlib.Path(__file__).resolve().parents[2]
    folder = pathlib.Path(os.environ.get("PRETRAIN_TEST_DATA", here / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no development data")
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder with the data of `tests.small_runs`."""
    folder = tmp_path_factory.mktemp("small_data")
    small_runs.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(
    small_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., pathlib.Path]:
    """``(name, arg, **changes)`` of `small_runs.config` -> workdir of the run, trained once.

    One that learns from text must have learned something: every test that asks for it sees that.
    """
    folder = tmp_path_factory.mktemp("small_runs")

    @functools.cache
    def trained(name: str, arg: str = "", **changes) -> pathlib.Path:
        workdir = folder / str(len(list(folder.iterdir())))
        config = small_runs.config(name, small_data, arg, **changes)
        train.train(config, workdir)
        if config.objective.name in configs.LANGUAGE_MODELS:
            small_runs.check_that_loss_falls(workdir)
        return workdir

    return trained


@pytest.fixture(autouse=True)
def strict_dtypes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models and objectives promote no type implicitly; optax does."""
    strict = request.path.parent.name in ("models", "objectives")
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """A compiled one takes hundreds of memory maps, and Linux allows a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def few_repeats() -> None:
    """Latency of small models needs no long series here."""
    record.WARMUP, record.REPEATS = 2, 5

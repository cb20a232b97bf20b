"""Every test sees 8 CPU devices, strict types and shapes, and a cache of its own."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real development data sets; tests that read it skip where it is absent."""
    here = pathlib.Path(__file__).resolve().parents[2]
    folder = pathlib.Path(os.environ.get("PRETRAIN_TEST_DATA", here / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no development data")
    return folder

"""Saving, and restoring onto other meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pretrain import optim, schema
from pretrain.checkpoint import BEST, LAST, Checkpointer, load_params
from pretrain.errors import UserError
from pretrain.state import TrainState
from pretrain.state import abstract as abstract_state
from tests import tiny


def make_state(step, mesh=None, axis=None, size=8):
    """Arrays that follow from the step, rows laid over a mesh axis."""
    sharding = NamedSharding(mesh or tiny.mesh(), PartitionSpec(axis))
    kernel = np.random.default_rng(step).normal(size=(size, 4)).astype(np.float32)
    params = {"dense": {"kernel": jax.device_put(kernel, sharding)}}
    moments = {"mu": jax.device_put(kernel * 2, sharding), "count": jnp.int32(step)}
    return TrainState(jnp.int32(step), params, moments)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def saved(folder, *steps, keep=1):
    checkpointer = Checkpointer(folder, keep)
    for step in steps:
        checkpointer.save(make_state(step), {"loss": step / 2, "best_score": float("nan")})
    checkpointer.close()


def test_a_state_comes_back_on_another_mesh(tmp_path):
    """Saved from one device, restored over eight, and back."""
    saved(tmp_path, 3)
    mesh = tiny.mesh(data=2, fsdp=4)
    like = make_state(0, mesh, "fsdp")
    state, meta = Checkpointer(tmp_path).restore(abstract(like))
    jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
    assert state.params["dense"]["kernel"].sharding == like.params["dense"]["kernel"].sharding
    assert meta["loss"] == 1.5 and np.isnan(meta["best_score"])

    wide = Checkpointer(tmp_path / "wide")
    wide.save(state, meta)
    wide.close()
    back, _ = Checkpointer(tmp_path / "wide").restore(abstract(make_state(0)))
    jax.tree.map(np.testing.assert_array_equal, back, make_state(3))


@pytest.mark.parametrize("name", sorted(schema.OPTIMIZERS.keys() - {"lbfgs"}))
def test_every_optimizers_state_comes_back(name, tmp_path):
    """And the average of the parameters, which is what others load, beside the parameters."""
    options = {"ema": 0.9, "freeze": ".*/word/.*", "offload": name == "lion"}
    optimizer = optim.create(name, **schema.OPTIMIZERS[name] | options)
    like = abstract_state(tiny.classification(), optimizer, tiny.mesh())
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jax.device_put(rng.uniform(0, 9, x.shape).astype(x.dtype), x.sharding), like
    )
    checkpointer = Checkpointer(tmp_path / LAST)
    checkpointer.save(state, {})
    restored, _ = checkpointer.restore(like)
    checkpointer.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    for x, want in zip(*map(jax.tree.leaves, (restored, like)), strict=True):
        assert x.sharding.is_equivalent_to(want.sharding, x.ndim)
        assert x.sharding.memory_kind == want.sharding.memory_kind
    loaded, _ = load_params(tmp_path, tiny.mesh())
    jax.tree.map(np.testing.assert_array_equal, loaded, state.mean)


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    """Though it is written while the next steps reuse its memory."""
    state = make_state(1, size=2**18)
    want = jax.device_get(jax.tree.map(jnp.copy, state.params))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state, {})
    step = jax.jit(lambda params: jax.tree.map(lambda x: -x, params), donate_argnums=0)
    params = state.params
    for _ in range(5):
        params = step(params)
    jax.block_until_ready(params)
    checkpointer.close()
    got, _ = load_params_of(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def load_params_of(folder):
    """`load_params` of a workdir whose last checkpoints are ``folder``."""
    workdir = folder.parent / f"{folder.name}-workdir"
    workdir.mkdir()
    (workdir / LAST).symlink_to(folder)
    return load_params(workdir, tiny.mesh())


def test_the_newest_are_kept_and_a_step_is_saved_once(tmp_path):
    saved(tmp_path, 1, 4, 4, 7, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "7"]
    assert Checkpointer(tmp_path).latest_step() == 7
    assert Checkpointer(tmp_path / "empty").latest_step() is None


def test_a_run_stands_for_its_best_step(tmp_path):
    saved(tmp_path / LAST, 9)
    params, step = load_params(tmp_path, tiny.mesh(data=8))
    assert step == 9
    jax.tree.map(np.testing.assert_array_equal, params, make_state(9).params)
    assert params["dense"]["kernel"].sharding.is_fully_replicated
    saved(tmp_path / BEST, 4)
    params, step = load_params(tmp_path, tiny.mesh())
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, params, make_state(4).params)


def test_parameters_lie_as_asked_for(tmp_path):
    """Those of equal path and shape; others in host memory. Nothing passes through one device."""
    saved(tmp_path / LAST, 9)
    saved(tmp_path / BEST, 4)
    mesh = tiny.mesh(fsdp=8)
    like = make_state(0, mesh, "fsdp").params
    for wanted in (like, abstract(like)):
        params, step = load_params(tmp_path, mesh, like=wanted)
        kernel = params["dense"]["kernel"]
        assert step == 4 and kernel.sharding == like["dense"]["kernel"].sharding
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 4)}
        jax.tree.map(np.testing.assert_array_equal, params, make_state(4).params)
    for other in (make_state(0, mesh, "fsdp", size=16).params, {"head": like["dense"]}):
        params, _ = load_params(tmp_path, mesh, like=other)
        assert isinstance(params["dense"]["kernel"], np.ndarray)
        jax.tree.map(np.testing.assert_array_equal, params, make_state(4).params)


def test_the_caller_can_name_the_directory(tmp_path):
    saved(tmp_path / LAST, 9)
    with pytest.raises(UserError, match="no checkpoint found"):
        load_params(tmp_path, tiny.mesh(), directories=(BEST,))
    saved(tmp_path / BEST, 4)
    assert load_params(tmp_path, tiny.mesh(), directories=(LAST,))[1] == 9


def test_no_checkpoint_is_a_clear_error(tmp_path):
    (tmp_path / LAST).mkdir()
    with pytest.raises(UserError, match="no checkpoint found; expected the workdir"):
        load_params(tmp_path, tiny.mesh())

"""What compiled programs say of their costs, against closed forms."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pretrain import costs, hlo

LAYERS, ROWS, WIDTH = 5, 4, 16
ONE_PRODUCT = 2 * ROWS * WIDTH * WIDTH


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def layers(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()


@functools.cache
def gradient_of_a_scan():
    return compiled(jax.grad(layers), (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH))


def without_trip_counts(text):
    """As the TPU compiler leaves it."""
    stripped = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", text)
    assert stripped != text
    return stripped


def test_a_scan_counts_every_layer():
    """Forward, and backward for the weights and for the inputs."""
    found = costs.costs(gradient_of_a_scan())
    assert found.flops == 3 * LAYERS * ONE_PRODUCT
    assert not found.unknown_loops and not found.cycles and not found.collectives


def test_trips_follow_from_the_counter():
    found = costs.costs(without_trip_counts(gradient_of_a_scan()))
    assert found.flops == 3 * LAYERS * ONE_PRODUCT and not found.unknown_loops


def test_a_loop_in_a_loop_whose_bounds_come_from_outside():
    def nested(x, w):
        outer = lambda _, x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ w), x)  # noqa: E731
        return jax.lax.fori_loop(2, 9, outer, x)

    text = without_trip_counts(compiled(nested, (ROWS, WIDTH), (WIDTH, WIDTH)))
    found = costs.costs(text)
    assert found.flops == 7 * 3 * ONE_PRODUCT and not found.unknown_loops


def test_a_loop_that_nobody_can_count_is_told():
    def until(x, w):
        return jax.lax.while_loop(lambda y: y.sum() < 1e9, lambda y: y @ w, x)

    found = costs.costs(compiled(until, (ROWS, WIDTH), (WIDTH, WIDTH)))
    assert found.flops == ONE_PRODUCT and len(found.unknown_loops) == 1


@pytest.mark.parametrize(
    "loop, trips",
    [
        ((0, 10, 3, "LT"), 4),
        ((0, 9, 3, "LE"), 4),
        ((10, 0, -3, "GT"), 4),
        ((9, 0, -3, "GE"), 4),
        ((0, 12, 4, "NE"), 3),
        ((12, 0, -4, "NE"), 3),
        ((5, 5, 1, "LT"), 0),
        ((0, 5, -1, "LT"), None),
    ],
)
def test_trips_of_a_counter(loop, trips):
    """As Python's ``range`` has them."""
    assert hlo._trips(*loop) == trips


def test_the_dearest_branch_counts():
    def either(flag, x, w):
        return jax.lax.cond(flag[0] > 0, lambda: x @ w @ w, lambda: x @ w)

    text = compiled(either, (1,), (ROWS, WIDTH), (WIDTH, WIDTH))
    assert "conditional(" in text
    assert costs.costs(text).flops == 2 * ONE_PRODUCT


FLOATS = 64 * 16  # of a whole array
WHOLE, SHARDS = P(), P("x")
ROUND = [(i, (i + 1) % 8) for i in range(8)]
COLLECTIVES = {  # on 8 devices: function, layouts, floats communicated, and of them on the wire
    "all-reduce": (lambda x: jax.lax.psum(x, "x"), SHARDS, WHOLE, FLOATS // 8, 2 * 7 / 8),
    "all-gather": (
        lambda x: jax.lax.all_gather(x, "x", tiled=True), SHARDS, WHOLE, FLOATS, 7 / 8
    ),
    "reduce-scatter": (
        lambda x: jax.lax.psum_scatter(x, "x", tiled=True), WHOLE, SHARDS, FLOATS, 7 / 8
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x, "x", 1, 0, tiled=True),
        *(SHARDS, P(None, "x"), FLOATS // 8, 7 / 8),
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "x", ROUND), SHARDS, SHARDS, FLOATS // 8, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_bytes_of_a_collective(kind):
    function, inside, outside, payload, share = COLLECTIVES[kind]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=inside, out_specs=outside, check_vma=False)
    found = costs.costs(compiled(mapped, (64, 16))).collectives
    assert found == {kind: costs.Traffic(1, 4 * payload, *[4 * payload * share] * 2)}


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def body(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(jnp.sin(x), "y"), None), x, length=6)[0]

    mapped = jax.shard_map(body, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    found = costs.costs(compiled(mapped, (64, 16))).collectives["all-reduce"]
    shard = 4 * FLOATS // 4
    assert (found.count, found.payload, found.wire) == (6, 6 * shard, 6 * shard)  # 2 * 1 / 2


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups={{0,1,2},{3,4,5}}, use_global_device_ids=true", 3),
        ("replica_groups=[16,8]<=[128], dimensions={0}", 8),
        ("replica_groups=[8,16]<=[16,8]T(1,0), dimensions={0}", 16),
        ("replica_groups=mesh['fsdp'=4,'tensor'=2]{'tensor'}, dimensions={0}", 2),
        ("replica_groups=mesh['fsdp'=4,'tensor'=2]{'fsdp','tensor'}", 8),
        ("replica_groups=mesh['fsdp'=8]{'fsdp':(2)4}", 4),
        ("replica_groups={}", 256),
        ("source_target_pairs={{0,1}}", 256),
    ],
)
def test_groups_are_written_in_many_ways(groups, size):
    assert costs.group_size(f", channel_id=1, {groups}", 256) == size


TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

%inner (param_0: bf16[8,16], param_1: bf16[16,32]) -> bf16[8,32] {
  %param_0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), \
dim_labels=bf_io->bf, backend_config={"window_config":{},"estimated_cycles":"999"}
}

%all-reduce-scatter.1 (param: f32[64]) -> f32[4] {
  %param = f32[64]{0:T(128)} parameter(0)
  %all-reduce.2 = f32[64]{0:T(128)} all-reduce(%param), channel_id=3, \
replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %dynamic-slice.1 = f32[4]{0:T(128)} dynamic-slice(%all-reduce.2, %param), \
dynamic_slice_sizes={4}
}

%body (arg: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %arg = (s32[]{:T(128)}, bf16[8,16]{1,0}, /*index=2*/bf16[16,32]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%arg), index=1
  %w = bf16[16,32]{1,0} get-tuple-element(%arg), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %fusion.1 = bf16[8,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%inner, \
metadata={op_name="jit(step)/dot
general"}, backend_config={"flag_configs":[],"estimated_cycles":"100"}
  %sum = bf16[8,16]{1,0} all-gather(%x), channel_id=1, replica_groups=[4,4]<=[16], dimensions={0}
  ROOT %out = (s32[], bf16[8,16], bf16[16,32]) tuple(%next, %x, %w)
}

%condition (arg.1: (s32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %arg.1 = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(24)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main.9 (p0: bf16[8,16], p1: bf16[16,32], p2: f32[64]) -> f32[4] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %p1 = bf16[16,32]{1,0} parameter(1)
  %p2 = f32[64]{0} parameter(2)
  %zero = s32[] constant(0)
  %init = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%zero, %p0, %p1)
  %while.1 = (s32[], bf16[8,16], bf16[16,32]) while(%init), condition=%condition, body=%body
  %copy.1 = bf16[8,16]{1,0} copy(%p0), backend_config={"estimated_cycles":"7"}
  %kernel.4 = bf16[8,16]{1,0} custom-call(%p0), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={ "xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/pallas_call"}
  %zeros = f32[64]{0} dynamic-update-slice(%p2, %p2, %zero)
  %all-reduce.5 = f32[64]{0} all-reduce(%zeros), channel_id=9, replica_groups={}, to_apply=%add
  ROOT %fusion.2 = f32[4]{0} fusion(%p2), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_tpu_text():
    """A scheduled program as libtpu writes one, cut down: what each rule makes of it."""
    found = costs.costs(TPU)
    assert found.cycles == 24 * 100 + 7  # not the stale ones within the fusion
    assert found.matmul_cycles == 24 * 100
    assert found.flops == 24 * 2 * 8 * 16 * 32
    assert found.kernels == {"tpu_custom_call:kernel": 1}
    gathered, scattered, reduced = 24 * 8 * 16 * 2, 64 * 4, 64 * 4
    assert found.collectives == {
        "all-gather": costs.Traffic(24, 4 * gathered, 3 * gathered, 3 * gathered),
        "reduce-scatter": costs.Traffic(1, scattered, scattered * 15 / 16, scattered * 15 / 16),
        costs.BY_ALL_REDUCE: costs.Traffic(1, reduced, reduced * 15 / 8, reduced * 15 / 8),
    }


GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

ENTRY %main (p0: bf16[8,16], p1: bf16[16,32]) -> bf16[8,32] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %p1 = bf16[16,32]{1,0} parameter(1)
  %attention.1 = (bf16[8,16]{1,0}, u8[0]{0}) custom-call(%p0, %p0, %p0), \
custom_call_target="__cudnn$fmhaScaleBiasSoftmax", backend_config={"cudnn_fmha_backend_config": \
{"bmm1_dot_dimension_numbers": {"lhs_contracting_dimensions": ["3"]}}}
  %context = bf16[8,16]{1,0} get-tuple-element(%attention.1), index=0
  %gemm.1 = (bf16[8,32]{1,0}, s8[64]{0}) custom-call(%context, %p1), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config": \
{"dot_dimension_numbers": {"lhs_contracting_dimensions": ["1"], "rhs_batch_dimensions": []}}}
  ROOT %result = bf16[8,32]{1,0} get-tuple-element(%gemm.1), index=0
}
"""


def test_gpu_text():
    """Products of libraries count; cuDNN's attention, which has dimensions too, is a kernel."""
    found = costs.costs(GPU)
    assert found.flops == 2 * 8 * 16 * 32 and not found.cycles
    assert found.kernels == {"__cudnn$fmhaScaleBiasSoftmax:attention": 1}


def brute_force(source, target, size, stride, pad, dilate, kernel_dilate):
    dilated = {i * dilate for i in range(source)}
    return sum(
        out * stride + k * kernel_dilate - pad in dilated
        for out in range(target)
        for k in range(size)
    )


@pytest.mark.parametrize(
    "window", [(7, 7, 3, 1, 1, 1, 1), (5, 9, 4, 1, 3, 2, 1), (8, 3, 2, 2, 0, 1, 3)]
)
def test_only_positions_on_real_input_count(window):
    assert costs._positions(*window) == brute_force(*window)

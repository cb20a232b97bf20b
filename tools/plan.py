r"""Memory, work and traffic of a train step on a TPU slice or GPUs that are not here.

    python -m tools.plan --config=configs/gpt.py:1b3,seq=2048 --topology=v5e:16x16 \
        --mesh=fsdp:16,fsdp_y:16 --batch_per_device=4 --remat=full --config.model.dtype=bfloat16
    python -m tools.plan --config=configs/gpt.py:1b3,seq=2048 --topology=h100:1x1x8 --mesh=fsdp:8
    python -m tools.plan --config=... --topology=v5e:4x4 --search

Compiles the step that training would run, ahead of time; nothing is allocated and no data are read.
The vocabulary is the config's. Exit code 1: it does not fit. docs/planning.md says how to read the
numbers, and what they leave out.

--search compiles every combination of --mesh, --remat and --batch_per_device, each of which can be
given several times then, or has values of its own, and prints the fastest that fit.
"""

import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

# Before JAX is imported: no accelerator is looked for, and several plans may run at a time.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
# Of any TPU: libtpu warns where it finds none. What it compiles for is --topology alone.
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"

from absl import flags
from ml_collections import ConfigDict, config_flags

from pretrain import blank, cli, plan, sharding
from pretrain.errors import UserError
from pretrain.files import write_json

MIB = 2**20
SHOWN = 10  # of a search
REMATS = ("none", "minimal_with_context", "minimal", "full")
BATCHES = tuple(2**n for n in range(8))


def configured(
    config: ConfigDict,
    target: plan.Target,
    mesh: str | None = None,
    batch: int | None = None,
    remat: str | None = None,
) -> ConfigDict:
    """A copy of ``config`` for the target, with what flags change; None: as it is."""
    config = ConfigDict(config.to_dict())
    if mesh is not None:
        config.mesh = ConfigDict(sharding.parse_mesh(mesh))
    if target.num_slices > 1:
        config.mesh.slices = target.num_slices
    if batch is not None:
        config.train.batch_size = batch * len(target.devices)
    if remat is not None:
        config.model.remat = remat
    return config


def report(found: plan.Plan, config: ConfigDict) -> str:
    """One plan, as lines."""
    chip, memory, costs = found.chip, found.memory, found.costs
    mesh = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items()) or "one device"
    hidden, exposed = found.step_seconds
    elsewhere = " outside of kernels" if costs.kernels else ""
    lines = [
        f"{config.label}: {found.num_params:,} parameters, {config.model.dtype} activations, "
        f"remat {found.remat}",
        f"{found.num_devices} x {chip.name}, mesh {mesh}; {found.batch_size} rows of "
        f"{config.train.seq_len} tokens; compiled in {found.compile_seconds:.0f} s",
        "Per device:",
        f"  arguments       {memory.arguments / MIB:12,.1f} MiB",
        f"  temporaries     {memory.temporaries / MIB:12,.1f} MiB",
        f"  peak            {memory.peak / MIB:12,.1f} MiB",
        f"  needed          {memory.needed / MIB:12,.1f} MiB of {chip.memory_bytes / MIB:,.0f}: "
        f"{'fits' if found.fits else 'DOES NOT FIT'}",
        f"  model FLOPs     {found.model_flops / 1e12:12,.3f} T",
        f"  compiled FLOPs  {costs.flops / 1e12:12,.3f} T, of matrix products{elsewhere}",
    ]
    if memory.host:
        lines.insert(-2, f"  on the host     {memory.host / MIB:12,.1f} MiB")
    if costs.cycles:
        lines.append(
            f"  cycles          {costs.cycles / 1e6:12,.1f} M, of matrix products "
            f"{costs.matmul_cycles / 1e6:,.1f} M; at {chip.clock_hz / 1e9:.2f} GHz "
            f"{1e3 * costs.cycles / chip.clock_hz:,.1f} ms"
        )
    for name, count in costs.kernels.items():
        lines.append(f"  not counted     {count:12,} x {name}")
    for name in costs.unknown_loops:
        lines.append(f"  counted once: the loop {name}")
    if costs.collectives:
        lines.append(
            f"  {'collectives':24}{'count':>8}{'payload MiB':>14}{'wire MiB':>12}{'exposed':>12}"
        )
    for name, traffic in sorted(costs.collectives.items()):
        sizes = f"{traffic.payload / MIB:14,.1f}{traffic.wire / MIB:12,.1f}"
        lines.append(f"  {name:24}{traffic.count:8,}{sizes}{traffic.synchronous / MIB:12,.1f}")
    uncounted = ", and what is not counted" if costs.kernels else ""
    lines += [
        f"Step at least {1e3 * hidden:,.1f} ms with collectives hidden behind work, "
        f"{1e3 * exposed:,.1f} ms with none hidden{uncounted}",
        f"MFU at most {found.mfu(hidden):.1%}, or {found.mfu(exposed):.1%}",
    ]
    return "\n".join(lines)


def candidates(target: plan.Target) -> list[str]:
    """Meshes that a search tries: FSDP, over the torus's sides too, replicas, and some tensor."""
    devices = len(target.devices) // target.num_slices
    last = [size for size in target.shape if size > 1][-1:]
    meshes = [f"fsdp:{devices}"] + [f"data:{devices}"] * (devices > 1)  # of one they are the same
    if target.chip.is_tpu and last and last != [devices]:
        meshes.insert(0, f"fsdp:{devices // last[0]},fsdp_y:{last[0]}")
    return meshes + [f"fsdp:{devices // n},tensor:{n}" for n in (2, 4) if devices % n == 0]


def trials(
    config: ConfigDict,
    target: plan.Target,
    meshes: Sequence[str],
    remats: Sequence[str],
    batches: Sequence[int],
) -> Iterator[tuple[str, plan.Plan | None]]:
    """Every combination, named, with its plan, or None where it does not fit.

    Batches grow until one does not fit. A mesh or a batch that goes with no such model is passed
    over, with the reason.
    """
    for mesh, remat in itertools.product(meshes, remats):
        for batch in sorted(batches):
            name = f"--mesh={mesh} --remat={remat} --batch_per_device={batch}"
            try:
                found = plan.make(configured(config, target, mesh, batch, remat), target)
            except UserError as error:
                print(f"{name}: {error}", flush=True)
                break
            except plan.TooLarge:
                found = None
            fits = found is not None and found.fits
            yield name, found if fits else None
            if not fits:
                break


def search(
    config: ConfigDict, target: plan.Target, meshes: Sequence[str] = (), **tried: Sequence
) -> list[tuple[str, plan.Plan]]:
    """Prints `trials`, and those that fit by their bound on MFU; also returns these."""
    fitting = []
    tried = {"remats": tried.get("remats") or REMATS, "batches": tried.get("batches") or BATCHES}
    for name, found in trials(config, target, meshes or candidates(target), **tried):
        print(f"{name}: {_summary(found) if found else 'does not fit'}", flush=True)
        fitting += [(name, found)] if found else []
    fitting.sort(key=lambda trial: -trial[1].mfu(trial[1].step_seconds[0]))
    print("\nThe fastest that fit:" if fitting else "\nNone fits.")
    for name, found in fitting[:SHOWN]:
        print(f"{name}: {_summary(found)}")
    return fitting


def _summary(found: plan.Plan) -> str:
    hidden, exposed = found.step_seconds
    kernels = sum(found.costs.kernels.values())
    return (
        f"{found.memory.needed / MIB:,.0f} MiB, {1e3 * hidden:,.1f} to {1e3 * exposed:,.1f} ms, "
        f"MFU at most {found.mfu(hidden):.1%} to {found.mfu(exposed):.1%}"
        + (f", not counted: {kernels:,} x kernels" if kernels else "")
    )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags, among ``values``."""
    config_flags.DEFINE_config_file(
        "config", None, "A config file and its argument behind a colon.", flag_values=values
    )
    about = {  # a type, its default, its meaning
        "topology": (flags.DEFINE_string, None, "v5e:16x16, v5p:4x4x8, h100:1x1x8, ..."),
        "num_slices": (flags.DEFINE_integer, 1, "TPU slices of this topology."),
        "mesh": (flags.DEFINE_multi_string, [], "fsdp:16,fsdp_y:16; by default config.mesh."),
        "batch_per_device": (flags.DEFINE_multi_integer, [], "Rows; by default of config.train."),
        "remat": (flags.DEFINE_multi_string, [], "By default config.model.remat."),
        "search": (flags.DEFINE_bool, False, "Compile all combinations, print the fastest."),
        "json": (flags.DEFINE_string, "", "File for the numbers."),
        "hlo": (flags.DEFINE_string, "", "File for the compiled program's text."),
    }
    for name, (define, default, meaning) in about.items():
        define(name, default, meaning, flag_values=values)
    flags.mark_flags_as_required(["config", "topology"], values)


def run() -> None:
    values = flags.FLAGS
    chosen = {name: values[name].value for name in ("mesh", "batch_per_device", "remat")}
    for name, found in chosen.items():
        if len(found) > 1 and not values.search:
            raise UserError(f"--{name}: found {len(found)} without --search, expected one")
    if values.search and values.hlo:
        raise UserError(f"--hlo: found {values.hlo!r} with --search, expected one of them")
    blank.check_has_rows(values.config)
    target = plan.target(values.topology, values.num_slices)
    meshes, batches, remats = chosen.values()
    if values.search:
        fitting = search(values.config, target, meshes, batches=batches, remats=remats)
        if values.json:
            numbers = [{"flags": name, **found.as_dict()} for name, found in fitting]
            write_json(pathlib.Path(values.json), numbers)
        sys.exit(0 if fitting else 1)
    config = configured(values.config, target, *(next(iter(x), None) for x in chosen.values()))
    try:
        found = plan.make(config, target)
    except plan.TooLarge as error:
        raise UserError(f"it does not fit {target.chip.name}: {error}") from None
    print(report(found, config))
    if values.hlo:
        pathlib.Path(values.hlo).write_text(found.text, encoding="utf-8")
    if values.json:
        write_json(pathlib.Path(values.json), {"label": config.label, **found.as_dict()})
    sys.exit(0 if found.fits else 1)


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)

"""Several processes, really started and killed, against one with as many devices."""

import json
import signal

import jax
import pytest

from pretrain import config as configs
from pretrain import processes, sharding, train
from pretrain.checkpoint import LAST
from pretrain.errors import UserError
from pretrain.files import read_json, read_jsonl
from pretrain.tasks import RESULT
from tests import groups, small_runs

TIMES = ("seconds", "train/tokens_per_second")
STEPS = 40  # of the run that is disturbed
LINEAR = str(small_runs.ROOT / "configs" / "linear.py")


@pytest.fixture
def four_devices(monkeypatch):
    """Runs of this process have as many devices as those of a group."""
    make, four = sharding.make_mesh, jax.devices()[: groups.DEVICES]
    monkeypatch.setattr(
        sharding, "make_mesh", lambda sizes, devices=None: make(sizes, devices or four)
    )


def last_logged(workdir):
    return max((r["step"] for r in read_jsonl(workdir / "metrics.jsonl")), default=0)


def assert_same_metrics(workdir, reference):
    """But for the clock and the order of floating-point sums."""
    found, expected = (read_jsonl(folder / "metrics.jsonl") for folder in (workdir, reference))
    assert [r.keys() for r in found] == [r.keys() for r in expected]
    for one, other in zip(found, expected, strict=True):
        for name in one.keys() - set(TIMES):
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), (name, one["step"])
        for name in ("step", "train/tokens"):
            assert one[name] == other[name]


def disturbed(data):
    often = {"train.budget": f"{STEPS} steps", "train.log_every": "1 steps"}
    often |= {"checkpoint.every": "4 steps", "evals.every": "50%"}
    return small_runs.overrides("linear", "fasttext", data) | often


def arguments(workdir, data):
    """Of the program that trains it."""
    settings = [f"--config.{key}={value}" for key, value in disturbed(data).items()]
    return [f"--config={LINEAR}:fasttext", f"--workdir={workdir}", *settings]


def runs(data, folder):
    """By name: one to be disturbed; fixed batches and a line search; memory, on a mesh of parts."""
    stream = {"data.train": str(data / "corpus.txt"), "data.validation": str(data / "corpus.txt")}
    stream |= {"cache_dir": str(data / "cache"), "train.batch_size": 4, "train.budget": "4 steps"}
    stream |= {"model.mem_len": 16, "train.seq_len": 16, "model.num_layers": 1, "seed": 1}
    stream |= {"model.hidden_size": 16, "model.ffn_size": 32, "tokenizer.vocab_size": 300}
    stream |= {"evals.batch_size": 8, "evals.batches": 2, "train.log_every": "1 steps"}
    stream |= {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2}
    made = {
        "fixed": small_runs.config("linear", data, "lr", train__budget="5 steps"),
        "memory": configs.load(LINEAR.replace("linear", "transformer_xl"), "tiny", stream),
        "refused": small_runs.config("linear", data, "fasttext", train__batch_size=6),
        "disturbed": configs.load(LINEAR, "fasttext", disturbed(data)),
    }
    listed = [[config.to_dict(), str(folder / name)] for name, config in made.items()]
    (folder / "runs.json").write_text(json.dumps(listed))
    return made


def assert_told(output):
    assert "lost another, which has ended" in output or "another task died" in output, output


def check_killed(workdir, data):
    """One of four is killed: the others end, and say why."""
    with groups.Group(4, arguments(workdir, data)) as group:
        group.wait_for(lambda: last_logged(workdir) >= 5)
        group.processes[2].send_signal(signal.SIGKILL)
        codes, outputs = group.ended()
    assert codes[2] == -signal.SIGKILL and 0 not in codes, outputs
    for output in outputs[:2] + outputs[3:]:
        assert_told(output)
    assert last_logged(workdir) < STEPS and not (workdir / RESULT).exists()


def check_terminated(folder):
    """Two train all runs, and go on with that of the four; one gets SIGTERM, both save and stop."""
    workdir = folder / "disturbed"
    begun = last_logged(workdir)
    with groups.Group(2, [f"--runs={folder / 'runs.json'}"], "tests.train_many") as group:
        group.wait_for(lambda: (folder / "memory" / RESULT).exists())
        group.wait_for(lambda: last_logged(workdir) > begun)
        group.processes[1].send_signal(signal.SIGTERM)
        codes, outputs = group.ended()
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    (saved,) = (int(path.name) for path in (workdir / LAST).iterdir())
    assert begun < last_logged(workdir) == saved < STEPS
    assert "refused: config.train.batch_size: 6 rows do not divide over" in outputs[0]
    assert f"continuing {workdir} at step " in outputs[0]
    assert f"SIGTERM: saved at step {saved}; the same command goes on" in outputs[0]
    assert "step" not in outputs[1] and "refused" not in outputs[1], "only the first tells"


@pytest.mark.usefixtures("four_devices")
def test_a_run_of_four_goes_on_as_two_and_ends_as_one(small_data, tmp_path):
    """Each step's loss, each score, is that of one process that nothing disturbed."""
    made = runs(small_data, tmp_path)
    workdir = tmp_path / "disturbed"
    check_killed(workdir, small_data)
    check_terminated(tmp_path)
    train.train(made["disturbed"], workdir)
    del made["refused"]
    for name, config in made.items():
        alone = train.train(config, tmp_path / "alone" / name)
        found = read_json(tmp_path / name / RESULT)
        assert_same_metrics(tmp_path / name, tmp_path / "alone" / name)
        assert alone["environment"].pop("processes") == 1
        assert found["environment"].pop("processes") == (1 if name == "disturbed" else 2)
        for part in ("data", "params", "selection", "config_hash"):
            assert found[part] == alone[part], part
        for split, scores in alone["scores"].items():
            assert found["scores"][split] == pytest.approx(scores, rel=2e-3), split
        for count in ("steps", "tokens", "examples", "flops"):
            assert found["train"][count] == alone["train"][count], count
        assert (found["latency_ms"] is None) == (alone["latency_ms"] is None) == (name == "memory")
        assert found["train"]["seconds"] > 0


def test_one_that_falls_silent_ends_the_other(small_data, tmp_path, monkeypatch):
    """It is stopped, its connections stand; awake again, it does not go on alone either."""
    monkeypatch.setattr(groups, "HEARTBEAT", 5)
    with groups.Group(2, arguments(tmp_path, small_data)) as group:
        group.wait_for(lambda: last_logged(tmp_path) >= 3)
        group.processes[1].send_signal(signal.SIGSTOP)
        group.processes[0].wait(timeout=60)  # JAX's own heartbeat has 100 seconds, gloo none
        group.processes[1].send_signal(signal.SIGCONT)
        codes, outputs = group.ended()
    assert 0 not in codes, outputs
    for output in outputs:
        assert_told(output)
    assert last_logged(tmp_path) < STEPS and not (tmp_path / RESULT).exists()


@pytest.mark.parametrize(
    "given, message",
    [
        (("host:1",), r"--coordinator: found 'host:1' with --num_processes=None .* all three"),
        (("", 2, 0), "expected all three or none"),
        (("host", 2, 0), "--coordinator: found 'host', expected host:port"),
        (("host.invalid:1", 2, 0), "--coordinator: found 'host.invalid:1': "),
        (
            ("localhost:1", 2, 2),
            "--process_id: found 2 with --num_processes=2, expected 0 to",
        ),
        (("", None, None, 0), "--heartbeat: found 0"),
    ],
    ids=str,
)
def test_flags_that_name_no_processes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        processes.join(*given)


def test_slurm_tells_how_many_there_are(monkeypatch):
    """A step of several tasks does; a batch script, and a step of one task, run alone."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *x, **y: asked.append((x, y)))
    monkeypatch.setenv("SLURM_NTASKS", "4")
    processes.join()
    assert not asked
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-4]")
    processes.join(heartbeat=7)
    ((address, count, index), options) = asked.pop()
    assert (address, count, index) == (None, None, None)
    assert options == {"cluster_detection_method": "slurm", "heartbeat_timeout_seconds": 7}
    with pytest.raises(UserError, match=r"pretrain\.study: found 4 processes, expected one"):
        processes.refuse_several("pretrain.study")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    processes.join()
    processes.refuse_several("pretrain.study")
    assert not asked


def test_a_tpu_without_a_pod_is_alone(monkeypatch, caplog):
    def nobody(*_, **options):
        assert options["cluster_detection_method"] is None
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    processes.join()
    monkeypatch.setattr(processes, "_platforms", lambda: "tpu,cpu")
    processes.join()
    assert "no pod around this TPU, going on as one process" in caplog.text


def test_alone_all_is_decided_at_once(tmp_path):
    agreement = processes.Agreement()
    assert agreement(True, 2.5) == (True, 2.5)
    assert agreement(False, 0.1 + 0.2) == (False, 0.1 + 0.2)
    assert processes.from_first(lambda: {"a": tmp_path}) == {"a": tmp_path}
    assert processes.any_of(True) and not processes.any_of(False)
    processes.check_shared(tmp_path / "new")
    assert not (tmp_path / "new").exists()

"""Speed, as ratios of things measured in turn in one run.

    python -m tools.bench
    python -m tools.bench --peer_python=/path/to/python    (with torch and transformers installed)
    python -m tools.bench --layers=12 --width=768

Each contestant is a process of its own that runs a block of steps when told; blocks alternate, so
that a machine whose speed drifts slows all alike. Reported: the median over rounds of the ratio
within a round.

  step    the masked-language-model train step of `configs/bert.py` with heads of 64 and an FFN
          four times as wide, 8192 pieces, batch 32 x 128, dropout 0.1, AdamW
  input   drawing the batches of that step from a token store
  peer    the same step by transformers' BertForMaskedLM in PyTorch, float32, fused AdamW
"""

import atexit
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from pretrain.errors import UserError

BATCH, SEQ, VOCAB, MASKED = 32, 128, 8192, 20
HEAD_SIZE, FFN_RATIO = 64, 4


def tokens() -> np.ndarray:
    """``[BATCH, SEQ]`` int32, none of them special."""
    return np.random.default_rng(0).integers(5, VOCAB, (BATCH, SEQ)).astype(np.int32)


def step_worker(layers: int, width: int) -> Callable[[], None]:
    """One update of ours, waited for."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from configs import bert
    from pretrain import host, optim, sharding, state
    from pretrain.models.families import language_model
    from pretrain.models.transformer import TransformerConfig
    from pretrain.objectives.mlm import MaskedLM

    host.keep_freed_memory()
    config = bert.get_config()
    shape = dict(vocab_size=VOCAB, num_layers=layers, hidden_size=width)
    shape |= dict(num_heads=width // HEAD_SIZE, ffn_size=FFN_RATIO * width)
    section = {k: v for k, v in config.model.items() if k != "name"} | shape
    model = language_model("transformer", TransformerConfig(**section))
    objective = MaskedLM(model, 4, tuple(range(5)), VOCAB, MASKED / SEQ, 0.8, 0.1)
    optimizer = optim.create(**config.optimizer)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    ids = tokens()
    positions = np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))
    batch = {"tokens": ids, "segment_ids": np.ones_like(ids), "positions": positions}
    shapes = state.shapes(batch)
    compiled = state.compile_train_step(objective, optimizer, mesh, 1, shapes)
    train_state = state.sharded_init(objective, optimizer, mesh, jax.random.key(0))
    replicated = NamedSharding(mesh, PartitionSpec())
    now = np.float32(0.5), np.float32(config.optimizer.lr)
    key, progress, lr = jax.device_put((jax.random.key(1), *now), replicated)
    batch = sharding.to_global(batch, mesh)

    def run() -> None:
        nonlocal train_state
        train_state, metrics = compiled.run(train_state, batch, key, progress, lr)
        jax.block_until_ready((train_state, metrics))

    return run


def peer_worker(layers: int, width: int) -> Callable[[], None]:
    """One update of transformers and PyTorch; imported from the peer's environment."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_SIZE,
        intermediate_size=FFN_RATIO * width,
    )
    model = BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    inputs = torch.from_numpy(tokens()).long()
    labels = torch.full_like(inputs, -100)
    labels[:, :MASKED] = inputs[:, :MASKED]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def input_worker(*_shape: int) -> Callable[[], None]:
    """One batch of the loader, from a token store of random words on disk."""
    from pretrain.data import store
    from pretrain.data import tokenizer as tokenizers
    from pretrain.data.loader import train_batches

    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bcdfghklmn" for b in ("and", "or", "ist", "ung", "ew", "att")]
    texts = [" ".join(rng.choice(words, 100)) for _ in range(4000)]

    class Source:
        name = "random words"

        def __iter__(self):
            return ({"text": text} for text in texts)

        def fingerprint(self) -> str:
            return "bench"

    pieces = tokenizers.train(texts, vocab_size=330)
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    rows = store.build(Source(), pieces, seq_len=SEQ, cache_dir=folder, progress=False)
    batches = train_batches(rows, batch_size=BATCH, seed=0, start_step=0, num_steps=2**40)
    return lambda: next(batches)


SERVE = "serve"  # first argument of a worker process
WORKERS = {"step": step_worker, "peer": peer_worker, "input": input_worker}


def serve(name: str, layers: str, width: str) -> None:
    """Runs as many steps as each line on standard input says; answers with seconds per step."""
    run = WORKERS[name](int(layers), int(width))
    for _ in range(3):
        run()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        for _ in range(count):
            run()
        print(json.dumps((time.perf_counter() - start) / count), flush=True)


class Contestant:
    """A worker process."""

    def __init__(self, python: str, name: str, layers: int, width: int):
        command = [python, "-m", "tools.bench", SERVE, name, str(layers), str(width)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def _read(self) -> float:
        line = self._process.stdout.readline()
        if not line:
            raise UserError("the worker ended; its error stands above")
        return json.loads(line)

    def seconds(self, count: int) -> float:
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare(layers: int, width: int, peer_python: str, num_rounds: int, steps: int) -> None:
    """Runs the rounds and prints the medians."""
    if min(layers, num_rounds, steps) < 1:
        raise UserError("--layers, --rounds, --steps: expected at least 1")
    if width < HEAD_SIZE or width % HEAD_SIZE:
        raise UserError(f"--width: found {width}, expected a multiple of {HEAD_SIZE}")
    if peer_python and shutil.which(peer_python) is None:
        raise UserError(f"--peer_python: {peer_python} is no program")
    pythons = {"step": sys.executable, "input": sys.executable}
    if peer_python:
        pythons["peer"] = peer_python
    contestants = {n: Contestant(python, n, layers, width) for n, python in pythons.items()}
    counts = {"step": steps, "peer": steps, "input": 50}
    rounds = [
        {name: contestant.seconds(counts[name]) for name, contestant in contestants.items()}
        for _ in range(num_rounds)
    ]
    for contestant in contestants.values():
        contestant.close()

    def median(ratio: Callable[[dict], float]) -> float:
        return statistics.median(ratio(r) for r in rounds)

    rows = BATCH * SEQ
    print(f"step   {1e3 * median(lambda r: r['step']):8.1f} ms  "
          f"{median(lambda r: rows / r['step']):8.0f} tokens/s")  # fmt: skip
    print(f"input  {100 * median(lambda r: r['input'] / r['step']):8.2f} % of the step")
    if peer_python:
        print(f"peer   {1e3 * median(lambda r: r['peer']):8.1f} ms  "
              f"{median(lambda r: rows / r['peer']):8.0f} tokens/s")  # fmt: skip
        print(f"step is {median(lambda r: r['peer'] / r['step']):.2f} times as fast as the peer")


def main() -> None:
    from absl import flags

    from pretrain import cli

    flags.DEFINE_integer("layers", 4, "Of the encoder.")
    flags.DEFINE_integer("width", 256, "Of the encoder, a multiple of 64.")
    flags.DEFINE_string("peer_python", "", "Python with torch and transformers; '': no peer.")
    flags.DEFINE_integer("rounds", 7, "Rounds of blocks.")
    flags.DEFINE_integer("steps", 3, "Train steps in a block.")
    values = flags.FLAGS
    cli.main(
        lambda: compare(
            values.layers, values.width, values.peer_python, values.rounds, values.steps
        ),
        __doc__,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:  # a peer's environment has none of our dependencies
        with contextlib.suppress(KeyboardInterrupt):  # the parent tells
            serve(*sys.argv[2:])
    else:
        main()

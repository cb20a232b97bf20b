"""The tokenizer program, run as users run it."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.data.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.tokenizer", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """JSON lines, gzipped, with the text under another key than the default."""
    rng = random.Random(0)
    syllables = ["ka", "lo", "mi", "tern", "sho", "bre", "nu", "dal"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for _ in range(300):
            file.write(json.dumps({"body": " ".join(rng.choices(words, k=20))}) + "\n")
    return path


def test_trains_and_then_refuses_to_overwrite(corpus, tmp_path):
    output = tmp_path / "a.model"
    flags = [f"--source={corpus}", "--text=body", "--vocab_size=330", f"--output={output}"]
    done = run(*flags, "--model_type=bpe")
    assert (done.returncode, done.stderr) == (0, "")
    trained = Tokenizer.load(output)
    assert trained.vocab_size == 330
    first, second, third = done.stdout.splitlines()
    assert first == f"wrote {output}: bpe, 330 pieces"
    with gzip.open(corpus, "rt") as file:
        texts = [json.loads(line)["body"] for line in file]
    ratio = sum(map(len, texts)) / sum(len(trained.encode(text)) for text in texts)
    assert second == f"{ratio:.2f} bytes per token in the first 300 documents"
    pieces = third.removeprefix("sample: ").split(" ")
    assert "".join(pieces).replace("\u2581", " ").strip() == texts[0][:200].strip()

    before = output.read_bytes()
    again = run(*flags, "--model_type=unigram")
    assert again.returncode == 1
    assert again.stderr == f"error: --output: {output} exists; expected a new file\n"
    assert output.read_bytes() == before


def test_vocabulary_too_large(corpus, tmp_path):
    output = tmp_path / "a.model"
    done = run(f"--source={corpus}", "--text=body", "--vocab_size=99999", f"--output={output}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: tokenizer.vocab_size: 99999 is more than this corpus")
    assert done.stderr.count("\n") == 1
    assert not output.exists()


def test_wrong_numbers_and_places(corpus, tmp_path):
    flags = [f"--source={corpus}", "--text=body", f"--output={tmp_path / 'a.model'}"]
    for flag, said in (
        ("--vocab_size=0", "--vocab_size: found 0, expected at least 1"),
        ("--character_coverage=2", "--character_coverage: found 2.0, expected from 0.98 to 1.0"),
        (f"--output={tmp_path}/no/a.model", f"--output: {tmp_path}/no is not a folder; expected"),
    ):
        done = run(*flags, flag)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {said}")


def test_a_wrong_column_names_the_flag(corpus, tmp_path):
    done = run(f"--source={corpus}", f"--output={tmp_path / 'a.model'}")
    assert done.returncode == 1 and done.stderr.endswith(": set --text to one of them\n")


def test_help_explains():
    done = run("--help")
    assert "python -m tools.tokenizer --source=" in done.stdout
    for flag in ("--source", "--vocab_size", "--model_type", "--output", "--format", "--document"):
        assert flag in done.stdout.replace("--[no]", "--")


def test_missing_source():
    done = run("--output=x.model")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: --source: missing")

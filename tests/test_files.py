"""JSON files, whole or not at all."""

import json
import math
import pathlib

import numpy as np
import pytest

from pretrain.files import read_json, read_jsonl, write_json, write_jsonl


def test_written_json_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, "é"], "a": None})
    assert read_json(tmp_path / "a.json") == {"b": [1, "é"], "a": None}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}


def test_a_failure_in_the_middle_leaves_no_part(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {"new": 1})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    """A strict reader takes the file; the rest is as it was."""

    def refuse(name):
        raise AssertionError(name)

    values = {"a": {"b": math.nan, "c": (1.5, -math.inf)}, "d": "NaN", "e": np.float64(math.inf)}
    wanted = {"a": {"b": None, "c": [1.5, None]}, "d": "NaN", "e": None}
    write_json(tmp_path / "a.json", values)
    write_jsonl(tmp_path / "a.jsonl", [values, {"f": "\u2028é"}])
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=refuse) == wanted
    assert read_jsonl(tmp_path / "a.jsonl") == [wanted, {"f": "\u2028é"}]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path) == []
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n" + '{"ste')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]

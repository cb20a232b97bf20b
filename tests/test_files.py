"""JSON files, whole or not at all."""

import json

import pytest

from pretrain.files import read_json, read_jsonl, write_json


def test_written_json_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, "é"], "a": None})
    assert read_json(tmp_path / "a.json") == {"b": [1, "é"], "a": None}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path) == []
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n" + '{"ste')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]

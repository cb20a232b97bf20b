"""Folders of the cache appear whole or not at all, whoever else builds them."""

import os
import threading
import time
from pathlib import Path

import pytest

from pretrain.data.cache import atomic_directory, cache_dir, make_once, remembered


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x"
    monkeypatch.delenv("PRETRAIN_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "pretrain"


def test_appears_whole(tmp_path):
    target = tmp_path / "deep" / "made"
    with atomic_directory(target) as building:
        (building / "a").write_text("content")
        assert not target.exists()
    assert (target / "a").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["made"]


def test_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "made") as building:
        (building / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_others_wait_for_the_first(tmp_path):
    """Who comes later finds what was made; after an error, the next one makes it."""
    target, found = tmp_path / "made", []

    def unneeded(_):
        raise AssertionError("made twice")

    def later():
        make_once(target, unneeded)
        found.append((target / "x").read_text())

    waiting = threading.Thread(target=later)

    def fail(_):
        raise RuntimeError

    def make(building):
        waiting.start()
        waiting.join(timeout=0.2)
        assert waiting.is_alive() and not found
        (building / "x").write_text("whole")

    with pytest.raises(RuntimeError):
        make_once(target, fail)
    make_once(target, make)
    waiting.join(timeout=60)
    later()
    assert found == ["whole", "whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_first_of_two_builders_wins(tmp_path):
    target = tmp_path / "made"
    with atomic_directory(target) as second:
        (second / "a").write_text("second")
        with atomic_directory(target) as first:
            (first / "a").write_text("first")
    assert (target / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_what_killed_builds_left_is_removed_after_a_day(tmp_path):
    def left(name, folder_days, file_days):
        folder = tmp_path / name
        folder.mkdir()
        for path, days in ((folder / "a", file_days), (folder, folder_days)):
            if path != folder:
                path.write_text("half")
            os.utime(path, (time.time() - days * 86_400,) * 2)
        return folder

    old, fresh = left(".made.1.tmp", 2, 2), left(".made.2.tmp", 0.5, 2)
    growing, other = left(".made.3.tmp", 2, 0.5), left(".made2.1.tmp", 2, 2)
    with atomic_directory(tmp_path / "made"):
        assert not old.exists()
    assert fresh.exists() and growing.exists() and other.exists()


def test_values_are_remembered_by_state(monkeypatch, tmp_path):
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "deep" / "cache"))
    computed = []

    def get(**states):
        computed.clear()
        return remembered(states, lambda name: computed.append(name) or f"{name} {states[name]}")

    assert get(a="1", b=None) == {"a": "a 1", "b": "b None"} and computed == ["a", "b"]
    assert get(b=None, a="1") == {"b": "b None", "a": "a 1"} and computed == ["b"]
    assert get(a="2", c="1") == {"a": "a 2", "c": "c 1"} and computed == ["a", "c"]
    assert get(a="2", c="1") and computed == []
    (path,) = (tmp_path / "deep" / "cache").iterdir()
    for broken in ("{", "[]", '{"a": 1}', '{"a": [1, 2, 3]}'):
        path.write_text(broken)
        assert get(a="2") == {"a": "a 2"} and computed == ["a"]
    assert get(a="2") and computed == []


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRETRAIN_CACHE", str(tmp_path / "file" / "cache"))
    assert remembered({"a": "1"}, lambda _: "value") == {"a": "value"}

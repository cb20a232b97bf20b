"""Folders of the cache appear whole or not at all, whoever else builds them."""

from pathlib import Path

import pytest

from pretrain.data.cache import atomic_directory, cache_dir


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


def test_the_first_of_two_builders_wins(tmp_path):
    target = tmp_path / "made"
    with atomic_directory(target) as second:
        (second / "a").write_text("second")
        with atomic_directory(target) as first:
            (first / "a").write_text("first")
    assert (target / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]

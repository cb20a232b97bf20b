"""Every file format: the examples it gives, and the one clear error for what is broken."""

import gzip
import json
import zlib

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from pretrain.data.sources import open_source
from pretrain.errors import UserError


def examples(path, task="lm", **settings):
    return list(open_source(str(path), task=task, **settings))


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: str | bytes):
        path = tmp_path / name
        content = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


def test_documents_of_text(put):
    path = put("a.txt", "\ufeffone\ntwo\r\n \t\n\n\nthree\u2028still three\n")
    three = "three\u2028still three"
    assert examples(path) == [{"text": "one\ntwo"}, {"text": three}]
    assert examples(path, document="line") == [{"text": t} for t in ("one", "two", three)]
    (whole,) = examples(path, document="file")
    assert whole["text"] == f"one\ntwo\n \t\n\n\n{three}\n"


def test_globs_are_sorted_and_urls_work(put):
    put("b.txt", "second")
    path = put("a.txt.gz", "first")
    assert examples(path.parent / "*.txt*") == [{"text": "first"}, {"text": "second"}]
    with fsspec.open("memory://store/c.txt", "wb") as file:
        file.write(b"third\n\nfourth")
    assert examples("memory://store/*.txt") == [{"text": "third"}, {"text": "fourth"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_json_lines(put, name):
    rows = [{"text": "x\n", "label": "p"}, {"text": "", "label": 3}, {"text": "z", "label": True}]
    path = put(name, "\n".join(map(json.dumps, rows)) + "\n\n")
    assert examples(path, "classify") == [
        {"text": "x\n", "label": "p"},
        {"text": "", "label": "3"},
        {"text": "z", "label": "true"},
    ]
    assert examples(path) == [{"text": "x\n"}, {"text": "z"}]  # nothing to learn from no text


def test_json_lines_with_tags(put):
    path = put("a.jsonl", '{"words": ["a", "b", "c"], "ner": ["I-X", "I-Y", "B-Y"]}\n')
    (example,) = examples(path, "tag", tokens="words", tags="ner")
    assert example == {"tokens": ["a", "b", "c"], "tags": ["B-X", "B-Y", "B-Y"]}


def test_csv_quotes_and_tsv_does_not(put):
    path = put("a.csv", 'label,text\npos,"a ""b"",\nc"\n\nneg,d\n')
    expected = [{"text": 'a "b",\nc', "label": "pos"}, {"text": "d", "label": "neg"}]
    assert examples(path, "classify") == expected
    path = put("a.tsv", 'a "b\t1\n"c\t0\n')
    expected = [{"text": 'a "b', "label": "1"}, {"text": '"c', "label": "0"}]
    assert examples(path, "classify", text="0", label="1") == expected


def test_several_text_columns_are_joined(put):
    path = put("a.csv", "title,body,class\nx,y,1\n")
    (example,) = examples(path, "classify", text="title,body", label="class")
    assert example == {"text": "x y", "label": "1"}


def test_parquet(tmp_path):
    table = pa.table({"t": ["x", "y"], "l": [0, 1], "w": [["a"], []], "g": [["B-X"], []]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    assert examples(path, "classify", text="t", label="l")[1] == {"text": "y", "label": "1"}
    assert examples(path, "tag", tokens="w", tags="g") == [{"tokens": ["a"], "tags": ["B-X"]}]
    with pytest.raises(UserError, match=r"no column 'text'; found 't', 'l', 'w', 'g': set data\.t"):
        examples(path)


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": ["x"] * 5000}), path)
    whole = path.read_bytes()
    for damaged in (whole[:-30], b"PAR1" + b"\xff" * 100 + whole[104:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.parquet: broken Parquet: [^\n]+\Z"):
            examples(path)


def test_format_overrides_the_extension(put):
    assert examples(put("a.log", "x"), format="text") == [{"text": "x"}]
    assert examples(put("a.txt", '{"text": "x"}'), format="jsonl") == [{"text": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "lm", r"a\.jsonl:2: broken JSON"),
        ("a.json", "[\n{}]", "lm", r"a\.json:1: broken JSON.*one object a line"),
        ("a.jsonl", "3\n", "lm", r"a\.jsonl:1: expected one JSON object a line, found '3'"),
        (
            "a.jsonl",
            '{"body": 1, "id": 2}',
            "lm",
            r":1: no column 'text'; found 'body', 'id': set ",
        ),
        ("a.jsonl", '{"text": 7}', "lm", r":1: 'text' is 7; expected text"),
        ("a.jsonl", '{"text": "", "label": null}', "classify", r":1: 'label' is null"),
        (
            "a.jsonl",
            '{"tokens": "a", "tags": []}',
            "tag",
            r":1: 'tokens' is \"a\"; expected a list",
        ),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}', "tag", r":1: 1 tokens but 0 tags"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["PER"]}', "tag", r":1: bad tag 'PER'"),
        ("a.csv", 'text,label\nx,1\n"y,1\n', "classify", r"a\.csv:3: broken CSV"),
        ("a.csv", "text,label\nx,1\n\ny\n", "classify", r"a\.csv:4: 1 columns; expected 2"),
        ("a.csv", "text,label\nx,\n", "classify", r"a\.csv:2: 'label' is empty"),
        ("a.tsv", "sentence\tlabel\n", "classify", r":1: no column 'text'; found 'sentence', 'la"),
        ("a.txt", b"fine\n\xff\n", "lm", r"a\.txt:2: not UTF-8"),
        ("a.txt", "x", "classify", r"read as text, which has no examples.*data\.format to one of"),
        ("a.dat", "x", "lm", r"cannot tell the format of .*a\.dat.*set data\.format"),
        ("a.parquet", "x", "lm", r"a\.parquet: broken Parquet"),
        (
            "a.csv",
            "text,text,label\nx,y,1\n",
            "classify",
            r":1: more than one column is named",
        ),
        ("a.conll", b"a O\n\xff O\n", "tag", r"a\.conll:2: not UTF-8"),
        ("a.conll", "", "tag", r"a\.conll: holds no examples"),
        ("a.conll", "a O\nb\n", "tag", r"a\.conll:2: found 'b'; expected a token"),
    ],
)
def test_broken_input(put, name, content, task, message):
    with pytest.raises(UserError, match=message):
        examples(put(name, content), task)


def test_broken_gzip(put):
    path = put("a.txt.gz", "line\n" * 10000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"a\.txt\.gz:\d+: cannot be read further"):
        examples(path)
    path.write_bytes(b"plain text")
    with pytest.raises(UserError, match=r"a\.txt\.gz:1: cannot be read further"):
        examples(path)
    path.write_bytes(whole[:12] + bytes([whole[12] ^ 0xFF]) + whole[13:])
    with pytest.raises((UserError, zlib.error)) as caught:
        examples(path)
    assert caught.type is UserError


def test_bad_settings(put):
    path = put("a.txt", "x")
    with pytest.raises(UserError, match=r"data\.document=page: expected one of paragraph, line"):
        examples(path, document="page")
    with pytest.raises(UserError, match=r"data\.format=yaml: expected one of text, jsonl"):
        examples(path, format="yaml")

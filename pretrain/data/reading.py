"""What the readers of the different kinds of sources share."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pretrain.errors import UserError

TASKS = ("lm", "classify", "tag")


@dataclass(frozen=True)
class Request:
    """What the caller of `sources.open_source` wants; the fields are its arguments."""

    task: str
    key: str
    format: str
    text: str
    label: str
    tokens: str
    tags: str
    document: str

    @property
    def text_columns(self) -> list[str]:
        return [name.strip() for name in self.text.split(",")]

    @property
    def columns(self) -> list[str]:
        """The columns that an example needs."""
        if self.task == "tag":
            return [self.tokens, self.tags]
        return self.text_columns + ([self.label] if self.task == "classify" else [])

    def setting(self, name: str) -> str:
        """The config key, or beside a flag the flag, that holds another setting: "data.text"."""
        if self.key == "tokenizer.source":  # a labelled task has no keys for it
            return f"--{name} of tools.tokenizer"
        if self.key == "distill.transfer":  # likewise, but for its own name of the column
            return f"{self.key}_{name}" if name == "text" else f"the ending of {self.key}"
        return f"--{name}" if self.key.startswith("--") else f"data.{name}"


class Located(dict):
    """A labelled example that knows where it stands: its label may turn out unknown later."""

    __slots__ = ("_lines", "_where")

    def __init__(self, example: dict, where: str, lines: Sequence[int] = ()):
        """`where` is "file:line" or the like, or a file with the line of each word in `lines`."""
        super().__init__(example)
        self._where, self._lines = where, lines

    def where(self, word: int = 0) -> str:
        """The place of the example, or of one of its words."""
        return f"{self._where}:{self._lines[word]}" if self._lines else self._where


@dataclass(frozen=True)
class Reading:
    """How to get at the examples of a source, and what its content is identified by."""

    examples: Callable[[], Iterator[dict]]
    identity: Callable[[], str]


def to_example(record: dict, request: Request, where: str) -> dict | None:
    """The example in a record (column -> value), or None if there is nothing to learn from in it.

    A labelled one is `Located`.

    Args:
        record: holds every one of `request.columns`.
        where: "file:line" or the like, for messages.

    Raises:
        UserError: if a value has the wrong type, or words and tags do not pair up.
    """
    if request.task == "tag":
        tokens = _strings(record[request.tokens], request.tokens, where)
        tags = _strings(record[request.tags], request.tags, where)
        if len(tokens) != len(tags):
            raise UserError(f"{where}: {len(tokens)} tokens but {len(tags)} tags")
        tags = to_iob2(tags, where)
        return Located({"tokens": tokens, "tags": tags}, where) if tokens else None
    texts = []
    for column in request.text_columns:
        value = record[column]
        if not isinstance(value, str):
            raise UserError(f"{where}: {column!r} is {_shown(value)}; expected text")
        texts.append(value)
    text = " ".join(texts)
    if request.task == "lm":
        return {"text": text} if text.strip() else None
    label = record[request.label]
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        if not isinstance(label, bool):
            raise UserError(f"{where}: {request.label!r} is {_shown(label)}; expected a label")
        label = json.dumps(label)
    if label == "":
        raise UserError(f"{where}: {request.label!r} is empty; expected a label")
    return Located({"text": text, "label": str(label)}, where)


def check_columns(found: list[str], request: Request, where: str) -> None:
    """Raises UserError unless each column that the task needs is among those `found`, once."""
    settings = {
        request.label: "label",
        request.tokens: "tokens",
        request.tags: "tags",
    }
    for column in request.columns:
        if found.count(column) > 1:
            raise UserError(f"{where}: more than one column is named {column!r}")
        if column not in found:
            setting = request.setting(settings.get(column, "text"))
            raise UserError(
                f"{where}: no column {column!r}; found {', '.join(map(repr, found)) or 'none'}: "
                f"set {setting} to one of them"
            )


def to_iob2(tags: list[str], where: str) -> list[str]:
    """Tags of one sentence in IOB1, IOB2, IOBES, BIOES or BILOU as IOB2.

    An entity begins where conlleval and seqeval see one begin: at B, S or U, and at an I, E or L
    that does not go on an entity of its type.
    """
    result = []
    open_type = None  # type of the entity that the next tag may go on
    for tag in tags:
        if tag == "O":
            open_type = None
            result.append(tag)
            continue
        prefix, _, kind = tag.partition("-")
        if prefix not in ("B", "I", "E", "S", "L", "U") or not kind:
            raise UserError(
                f"{where}: bad tag {tag!r}; expected O, or one of B- I- E- S- L- U- and a type"
            )
        inside = prefix in ("I", "E", "L") and kind == open_type
        result.append(f"{'I' if inside else 'B'}-{kind}")
        open_type = None if prefix in ("E", "L", "S", "U") else kind
    return result


def first_line(error: Exception) -> str:
    """A foreign error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _strings(values: object, column: str, where: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: {column!r} is {_shown(values)}; expected a list of strings")
    return values


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

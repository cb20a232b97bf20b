"""CoNLL column files: one token a line, its tag in the last column, blank lines between sentences.

Columns are separated by TABs if the line has one, else by spaces. Tags may be IOB1, IOB2, IOBES,
BIOES or BILOU and come out as IOB2.
"""

import re
from collections.abc import Iterable, Iterator

from pretrain.data.reading import Located, to_iob2
from pretrain.errors import UserError

_BLANK = " \t\r"  # other white space can be a token in text from the web


def sentences(lines: Iterable[tuple[int, str]], path: str) -> Iterator[dict]:
    """Yields {"tokens", "tags"} for each sentence in numbered lines.

    Raises:
        UserError: with "path:line" for a line without a tag column or with a bad tag.
    """
    tokens: list[str] = []
    tags: list[str] = []
    numbers: list[int] = []
    for number, line in lines:
        columns = _columns(line)
        if not columns or columns[0] == "-DOCSTART-":
            if tokens:
                yield Located({"tokens": tokens, "tags": to_iob2(tags, path)}, path, numbers)
                tokens, tags, numbers = [], [], []
            continue
        if len(columns) < 2 or not _is_tag(columns[-1]):
            if line.startswith("#"):
                continue  # a comment; a hashtag's line has a tag like any other's
            raise UserError(
                f"{path}:{number}: found {line!r}; expected a token and, in the last column, a tag "
                "(O, or one of B- I- E- S- L- U- and a type)"
            )
        tokens.append(columns[0])
        tags.append(columns[-1])
        numbers.append(number)
    if tokens:
        yield Located({"tokens": tokens, "tags": to_iob2(tags, path)}, path, numbers)


def _columns(line: str) -> list[str]:
    line = line.rstrip(_BLANK)
    if "\t" in line:  # the Broad Twitter Corpus has a token that is empty: "\tO"
        return [column.strip(" ") for column in re.split(r"\t+", line)]
    return [column for column in line.split(" ") if column]


def _is_tag(text: str) -> bool:
    return re.fullmatch(r"O|[BIESLU]-.+", text) is not None

"""A page of text, tables and pictures, rendered as Markdown and as one self-contained HTML file.

A page is a list of blocks, and both renderers are functions of that list. All text is plain text:
the renderers escape it. The HTML file loads nothing: its style is inline and its images are base64.
"""

import base64
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

DASH = "\N{EN DASH}"  # where a table has no figure
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Heading:
    """Level 1 is the title of the page."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``style`` is "" | "lede" | "small" | "notice"."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Bullets:
    """An unordered list; an item is a text, or a text with the texts below it."""

    items: Sequence[str | tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Cell:
    """A table cell with a second, quieter line, and whether it is the best of its column."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """``rows`` hold strings or Cells. The first ``text_columns`` are names, the others figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    text_columns: int = 1


@dataclass(frozen=True)
class Figure:
    """A PNG that also lies as ``file`` beside the page."""

    file: str
    png: bytes
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Details:
    """Blocks that HTML shows on demand."""

    summary: str
    blocks: Sequence["Block"]


Block = Heading | Text | Bullets | Table | Figure | Code | Details


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown; figures are links to the files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Text(text, style):
            return f"> {_escape(text)}" if style == "notice" else _escape(text)
        case Bullets(items):
            return "\n".join(_markdown_item(item) for item in items)
        case Figure(file, _, caption):
            return f"![{_escape(caption)}]({file})\n\n{_escape(caption)}"
        case Code(text):
            return f"```\n{text}\n```"
        case Details(summary, inner):
            return f"### {_escape(summary)}\n\n" + to_markdown(inner).rstrip()
        case Table(columns, rows, caption, text_columns):
            rule = ["---"] * text_columns + ["---:"] * (len(columns) - text_columns)
            lines = [[_escape(c) for c in columns], rule]
            lines += [[_markdown_cell(c) for c in row] for row in rows]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return f"{_escape(caption)}\n\n{table}" if caption else table


def _markdown_item(item: str | tuple[str, Sequence[str]]) -> str:
    text, below = (item, ()) if isinstance(item, str) else item
    return "\n".join([f"- {_escape(text)}", *(f"  - {_escape(t)}" for t in below)])


def _markdown_cell(cell: str | Cell) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    text = f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text)
    return f"{text} {_escape(cell.detail)}".rstrip()


def _escape(text: str) -> str:
    """Keeps text from acting as markup; intervals in brackets and inner underscores stay as is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|]|(?<!\w)_|_(?!\w)|\](?=[(\[]))", r"\\\1", text)


def to_html(blocks: Sequence[Block], title: str) -> str:
    """One HTML file without external requests."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text, style):
            return f'<p class="{style or "text"}">{html.escape(text)}</p>'
        case Bullets(items):
            return _html_list(items)
        case Figure(_, png, caption):
            data, caption = base64.b64encode(png).decode(), html.escape(caption)
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Details(summary, inner):
            body = "\n".join(_html(b) for b in inner)
            return f"<details><summary>{html.escape(summary)}</summary>\n{body}\n</details>"
        case Table(columns, rows, caption, text_columns):
            head = "".join(
                f'<th scope="col"{_kind(i, text_columns)}>{html.escape(c)}</th>'
                for i, c in enumerate(columns)
            )
            body = "\n".join(
                f"<tr>{''.join(_html_cell(c, i, text_columns) for i, c in enumerate(row))}</tr>"
                for row in rows
            )
            caption = f'<p class="caption">{html.escape(caption)}</p>' if caption else ""
            table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
            return f'{caption}<div class="scroll">{table}</div>'


def _html_list(items: Sequence[str | tuple[str, Sequence[str]]]) -> str:
    lines = []
    for item in items:
        text, below = (item, ()) if isinstance(item, str) else item
        lines.append(f"<li>{html.escape(text)}{_html_list(below) if below else ''}</li>")
    return f"<ul>{''.join(lines)}</ul>"


def _html_cell(cell: str | Cell, column: int, text_columns: int) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    text = html.escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.best else text
    detail = f"<small>{html.escape(cell.detail)}</small>" if cell.detail else ""
    tag = "td" if column else 'th scope="row"'
    return f"<{tag}{_kind(column, text_columns)}>{text}{detail}</{tag[:2]}>"


def _kind(column: int, text_columns: int) -> str:
    return "" if column < text_columns else ' class="num"'


def number(value: float | None, digits: int = 3) -> str:
    """Fixed point, or a dash where there is no finite value."""
    missing = value is None or not math.isfinite(value)
    return DASH if missing else f"{value:.{digits}f}".replace("-", MINUS)


def quantity(value: float | None, unit: str = "", base: int = 1000) -> str:
    """``1310720 -> "1.31 M"``; with ``"B"`` and base 1024 ``"1.25 MiB"``."""
    if value is None or not math.isfinite(value):
        return DASH
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = 0
    while abs(value) >= 0.9995 * base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    whole = not power and float(value).is_integer()
    digits = 0 if whole else max(0, 3 - len(str(int(abs(value)))))
    prefix = prefixes[power] + ("i" if base == 1024 and power else "")
    return f"{value:.{digits}f} {prefix}{unit}".strip()


def duration(seconds: float | None) -> str:
    """``0.31 s``, ``14.2 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 99.95:
        return f"{seconds:.1f} s" if seconds >= 9.995 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plural(n: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


STYLE = """
:root { color-scheme: light; --ink: #1d2530; --quiet: #5b6675; --line: #dfe4ea; --tint: #f5f7fa;
  --accent: #0b62a8; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .75rem; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 3rem 0 .75rem; padding-top: 1rem;
  border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .4rem; }
p, ul { margin: .5rem 0 .9rem; max-width: 46rem; }
ul { padding-left: 1.2rem; } li { margin: .35rem 0; }
li ul { color: var(--quiet); font-size: .92rem; margin: .2rem 0 .6rem; }
.lede { font-size: 1.2rem; color: var(--quiet); line-height: 1.45; }
.small, .caption { color: var(--quiet); font-size: .875rem; }
.caption { margin: 1.5rem 0 .4rem; max-width: none; }
.notice { background: #fff6e0; border-left: 4px solid #d98e04; padding: .7rem 1rem;
  max-width: none; }
figure { margin: 1.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: .875rem; margin-top: .4rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: 400; }
thead th { color: var(--quiet); font-weight: 600; vertical-align: bottom;
  border-bottom: 1.5px solid var(--ink); }
tbody th { position: sticky; left: 0; background: #fff; min-width: 8rem; }
.num { text-align: right; white-space: nowrap; }
thead .num { white-space: normal; }
td small { display: block; color: var(--quiet); font-size: .78rem; }
strong { font-weight: 700; }
td strong { color: var(--accent); }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; color: var(--accent); }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; } h1 { font-size: 1.5rem; } .lede { font-size: 1.05rem; }
  th, td { padding: .4rem .5rem; } }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure, tr, pre { break-inside: avoid; } h2, h3, .caption { break-after: avoid; }
  .scroll { overflow: visible; } tbody th { position: static; } }
"""

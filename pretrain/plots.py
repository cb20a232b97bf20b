"""The pictures of a study: functions of its comparison that return PNG bytes.

Most colours are Okabe and Ito's, which readers with colour-blindness tell apart. One colour is one
encoder, lighter from scratch; dashes say the kind too: solid pretrained, dashed from scratch,
dotted linear.
"""

import functools
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pretrain.comparison import (
    Row,
    Task,
    counterpart,
    finished,
    is_pretraining,
    median,
    metric_name,
    pretraining_cost,
    sign,
    size_pairs,
)
from pretrain.page import quantity

# Sky blue is the last: a lighter blue is close to it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#1d2530", "#8C6BB1", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = {
    "pretrained": "-",
    "distilled": (0, (4, 1, 1, 1)),
    "scratch": (0, (5, 2)),
    "linear": (0, (1, 1.4)),
}
LINES = ("-", (0, (1, 1.4)), (0, (5, 2)))  # of pretraining, where colours come round again
DPI = 150
BANDED = 4  # with more models than these, bands of intervals would hide each other
MIN_SPAN = 0.1  # of a score axis, so that a hair's breadth does not look like a gulf
INK, QUIET, LINE = "#1d2530", "#5b6675", "#dfe4ea"
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


class Style(NamedTuple):
    """How a model looks in every picture of a page."""

    colour: str
    marker: str
    line: str | tuple = "-"  # of pretraining alone: elsewhere it tells a model's kind


def styles(tasks: Sequence[Task], rows: Sequence[Row]) -> dict[str, Style]:
    """A style for every model, and for every pretraining run that of the model made from it."""
    look: dict[str, Style] = {}
    fresh = map(_style, itertools.count())
    for task in tasks:
        twins = {twin: m.name for m in task.kind("pretrained") if (twin := counterpart(task, m))}
        for name in sorted(task.models, key=lambda n: n in twins):  # twins behind all others
            if name not in look and name in twins:
                twin = look[twins[name]]
                look[name] = twin._replace(colour=_lighter(twin.colour))
            elif name not in look:
                look[name] = next(fresh)
    for row in finished(rows):
        if row["init_from"] and row["model"] in look:
            look.setdefault(row["init_from"], look[row["model"]])
    for row in filter(is_pretraining, finished(rows)):
        if row["name"] not in look:
            look[row["name"]] = next(fresh)
    return look


def _style(index: int) -> Style:
    turn, place = divmod(index, len(COLOURS))
    marker = MARKERS[(place + turn) % len(MARKERS)]
    return Style(COLOURS[place], marker, LINES[turn % len(LINES)])


def _lighter(colour: str) -> str:
    """A third of the way to white."""
    return "#" + "".join(f"{(2 * int(colour[i : i + 2], 16) + 255) // 3:02x}" for i in (1, 3, 5))


def _styled(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    """Draws under `SETTINGS` and leaves the caller's as they are."""

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> bytes:
        import matplotlib

        with matplotlib.rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return styled


@_styled
def learning_curves(task: Task, look: Mapping[str, Style]) -> bytes:
    """Test score against the number of labels: mean, 95 % interval and every seed, a line a model.

    The frame follows the scores of the seeds: an interval from two or three seeds may leave it.
    """
    figure, axes = _figure(7.6, max(4.4, 0.26 * len(task.models) + 0.8))  # room for their names
    lines, values = {}, []
    for name, model in task.models.items():
        labels = [n for n in task.labels if (name, n) in task.test]
        scores = [task.score(name, n) for n in labels]
        means, style = [s.mean for s in scores], look[name]
        if len(task.models) <= BANDED:
            axes.fill_between(
                labels,
                [s.low for s in scores],
                [s.high for s in scores],
                color=style.colour,
                alpha=0.11,
                linewidth=0,
            )
        axes.plot(
            labels,
            means,
            color=style.colour,
            marker=style.marker,
            markersize=6,
            markerfacecolor=style.colour if model.kind == "pretrained" else "white",
            linestyle=DASHES[model.kind],
            linewidth=2,
        )
        for n in labels:
            seeds = list(task.test[name, n].values())
            values += seeds
            axes.plot([n] * len(seeds), seeds, ".", color=style.colour, markersize=4, alpha=0.55)
        lines[name] = (labels[-1], means[-1])
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05
    axes.set_ylim(low - pad, high + pad)
    _log_x(axes, task.labels)
    axes.set_xlabel("labelled training examples")
    axes.set_ylabel(f"test {metric_name(task.metric)}")
    _label_lines(axes, lines, look)
    return _png(figure)


@_styled
def score_versus_cost(
    tasks: Sequence[Task], rows: Sequence[Row], labels: Mapping[str, int], look: Mapping[str, Style]
) -> bytes:
    """Test score against training seconds (pretraining included) and latency, a row a task.

    Args:
        tasks: the labelled tasks.
        rows: the whole table, where the runs that the others start from are found.
        labels: for each task, the label count at which its models are compared.
        look: a style for each model.
    """
    by_name = {row["name"]: row for row in rows}
    figure, grid = _figure(9.2, 3.3 * len(tasks) + 0.5, rows=len(tasks), columns=2)
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    handles: dict[str, Any] = {}
    for task, (train, serve) in zip(tasks, grid, strict=True):
        for name in task.ranking(labels[task.name]):
            score, style = task.score(name, labels[task.name]), look[name]
            runs = task.at_labels(name, labels[task.name])
            filled = style.colour if task.models[name].kind == "pretrained" else "white"
            error = [[score.mean - score.low], [score.high - score.mean]] if score.n > 1 else None
            for axes, cost in (
                (train, median([_training_seconds(r, by_name) for r in runs])),
                (serve, median([r.get("latency_ms.p50") for r in runs])),
            ):
                if cost is not None:
                    handles[name] = axes.errorbar(
                        cost,
                        score.mean,
                        yerr=error,
                        color=style.colour,
                        marker=style.marker,
                        markerfacecolor=filled,
                        markeredgewidth=1.8,
                        markersize=8,
                        elinewidth=1,
                        linestyle="none",
                    )
        train.set_title(f"{task.name}, {labels[task.name]:,} labels")
        train.set_ylabel(f"test {metric_name(task.metric)}")
        for axes, text in (
            (train, "training seconds, pretraining included"),
            (serve, "latency at batch 1, ms"),
        ):
            axes.set_xlabel(text)
            _log_cost(axes)
            axes.margins(y=0.12)
        low, high = train.get_ylim()
        if high - low < MIN_SPAN and sign(task.metric) > 0:
            train.set_ylim((low + high - MIN_SPAN) / 2, (low + high + MIN_SPAN) / 2)
        serve.set_ylim(train.get_ylim())
    for name, handle in handles.items():
        handle.set_label(name)
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return _png(figure)


@_styled
def score_versus_size(tasks: Sequence[Task]) -> bytes:
    """Mean test score against parameters, a panel a task, a colour for each label count.

    Lines join the models that `size_pairs` holds against each other.
    """
    figure, grid = _figure(9.2, 3.9, columns=len(tasks))
    for task, axes in zip(tasks, np.ravel(grid), strict=True):
        sizes: dict[int, str] = {}
        joined = [(smaller, larger) for larger, smaller in size_pairs(task)]
        named = "pretrained" if task.kind("pretrained") else "scratch"  # the lines of the legend
        for kind in ("pretrained", "scratch"):
            for labels, colour, marker in zip(
                task.labels, itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False
            ):
                models = [m for m in task.kind(kind) if (m.name, labels) in task.test]
                sizes |= {m.other: quantity(m.other) for m in models}
                pairs = [pair for pair in joined if all(m in models for m in pair)]
                alone = [(m,) for m in models if not any(m in pair for pair in pairs)]
                for index, line in enumerate([*pairs, *alone]):
                    axes.plot(
                        [m.other for m in line],
                        [task.score(m.name, labels).mean for m in line],
                        color=colour,
                        marker=marker,
                        markerfacecolor=colour if kind == "pretrained" else "white",
                        linestyle=DASHES[kind],
                        label=f"{labels:,} labels" if kind == named and not index else None,
                    )
        axes.set_xscale("log")
        axes.set_xticks(list(sizes), list(sizes.values()))
        axes.minorticks_off()
        axes.set_title(task.name)
        axes.set_xlabel("parameters outside the embedding")
        axes.set_ylabel(f"test {metric_name(task.metric)}")
        axes.legend(frameon=False, fontsize=9)
    return _png(figure)


@_styled
def pretraining_curves(rows: Sequence[Row], look: Mapping[str, Style]) -> bytes:
    """Validation loss against tokens seen, with the unigram entropy that a model must get below."""
    figure, axes = _figure(7.6, 4.0)
    entropies = set()
    for row in rows:
        if not is_pretraining(row) or not row.get("curve"):
            continue
        _, tokens, losses = zip(*row["curve"], strict=True)
        style = look[row["name"]]
        axes.plot(
            tokens,
            losses,
            color=style.colour,
            linestyle=style.line,
            linewidth=2,
            marker=style.marker,
            markersize=5,
            markevery=math.ceil(len(losses) / 12),
            label=row["name"],
        )
        if row.get("data.unigram_entropy") is not None:
            entropies.add(round(row["data.unigram_entropy"], 3))
    for entropy in sorted(entropies):
        axes.axhline(entropy, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.annotate(
            f"unigram entropy {entropy:.2f}",
            (0.99, entropy),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=QUIET,
            fontsize=9,
        )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x else "0")
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("held-out loss, nats")
    axes.legend(
        frameon=False, labelcolor="linecolor", fontsize=9.5, loc="upper left", bbox_to_anchor=(1, 1)
    )
    return _png(figure)


@_styled
def loss_versus_rate(panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> bytes:
    """Held-out loss against the learning rate, a panel a title, a line a model, its best filled."""
    figure, grid = _figure(4.4 * len(panels), 3.8, columns=len(panels))
    losses = [x for lines in panels.values() for line in lines.values() for x in line.values()]
    low, high = min(losses), max(losses)
    for (title, lines), axes in zip(panels.items(), np.ravel(grid), strict=True):
        for index, (name, line) in enumerate(lines.items()):
            style = _style(index)
            best = min(line, key=line.get)
            look = dict(color=style.colour, marker=style.marker, markersize=7)
            axes.plot(list(line), list(line.values()), **look, markerfacecolor="white", label=name)
            axes.plot([best], [line[best]], **look, linestyle="none")
        axes.set_xscale("log", base=2)
        rates = sorted(set().union(*(line for group in panels.values() for line in group.values())))
        axes.set_xticks(rates, [f"{rate:.1e}" for rate in rates], rotation=45, fontsize=8)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axes.set_title(title)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("held-out loss, nats")
        axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """A figure without pyplot's global state, and its axes: one, or an array of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, grid[0, 0] if grid.size == 1 else grid


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _label_lines(axes, ends: Mapping[str, tuple[float, float]], look: Mapping[str, Style]) -> None:
    """Names each line at the right edge, spread so that no two names overlap."""
    if not ends:
        return
    low, high = axes.get_ylim()
    height = axes.get_figure().get_figheight() * 0.8 * 72  # of the axes, in points, about
    step = min(15 / height, 1 / len(ends))
    order = sorted(ends, key=lambda name: ends[name][1])
    wanted = [min(1.0, max(0.0, (ends[name][1] - low) / (high - low))) for name in order]
    for name, place in zip(order, spread(wanted, step), strict=True):
        axes.annotate(
            name,
            ends[name],
            xytext=(1.035, place),
            textcoords="axes fraction",
            va="center",
            color=look[name].colour,
            fontsize=9.5,
            annotation_clip=False,
            arrowprops=dict(
                arrowstyle="-",
                color=look[name].colour,
                linewidth=0.7,
                alpha=0.6,
                relpos=(0, 0.5),
                shrinkA=2,
                shrinkB=4,
            ),
        )


def spread(places: Sequence[float], step: float) -> list[float]:
    """Ascending places from 0 to 1 moved as little as needed to lie at least ``step`` apart.

    Neighbours that would touch become a block centred on the mean of what they wanted (pool
    adjacent violators), as far as it stays between 0 and 1. All must fit there.
    """
    blocks: list[tuple[float, int]] = []  # (mean of place - index * step, members)
    for index, place in enumerate(places):
        start, size = place - index * step, 1
        while blocks and blocks[-1][0] > start:
            other, members = blocks.pop()
            start = (start * size + other * members) / (size + members)
            size += members
        blocks.append((start, size))
    starts = [start for start, size in blocks for _ in range(size)]
    last = 1 - (len(places) - 1) * step
    return [min(max(start, 0.0), last) + index * step for index, start in enumerate(starts)]


def _log_x(axes, ticks: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 2, ticks[0] * 2)


def _log_cost(axes) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low), 4.0)
    axes.set_xlim(middle / half / 1.15, middle * half * 1.15)
    decades = math.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()


def _training_seconds(row: Row, by_name: Mapping[str, Row]) -> float | None:
    before = pretraining_cost(row, by_name)
    own = row.get("train.seconds")
    return None if before is None or own is None else before["seconds"] + own

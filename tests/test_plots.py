"""The pictures: what they are made of, beside being PNGs of the right size."""

import itertools
import struct

import pytest
from matplotlib.axes import Axes

from pretrain import comparison, plots
from tests import study_table


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


@pytest.fixture(scope="module")
def rows():
    return study_table.table()


@pytest.fixture
def drawn(monkeypatch):
    """The lines that the pictures draw."""
    lines = []
    plot = Axes.plot

    def record(self, x, y, *args, **kwargs):
        lines.append((list(x), list(y), kwargs))
        return plot(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    return lines


def test_learning_curve_draws_the_mean_of_every_model(rows, drawn):
    task = comparison.tasks(rows)[0]
    png = plots.learning_curves(task, plots.styles([task], rows))
    assert size(png) == (7.6 * plots.DPI, pytest.approx(4.4 * plots.DPI, abs=1))
    lines = [(x, y) for x, y, options in drawn if options.get("linewidth") == 2]
    x, y = lines[0]
    assert x == [50, 200, 1000]
    assert y == pytest.approx([(0.42 + 0.51 + 0.54) / 3, (0.57 + 0.58 + 0.60) / 3, 0.68])
    assert len(lines) == 4


def test_learning_curve_names_each_of_many_models_within_the_frame(rows, monkeypatch):
    places = []

    def record(self, text, xy, **options):  # noqa: ARG001
        places.append(options["xytext"][1])

    monkeypatch.setattr(Axes, "annotate", record)
    made = study_table.task_row
    names = [f"tiny encoder, number {i}" for i in range(18)]
    many = [
        made(study_table.CLASSES, name, 100, 0, 0.9 - 0.001 * i) for i, name in enumerate(names)
    ]
    comparison.select(many)
    task = comparison.tasks([*rows, *many])[1]
    png = plots.learning_curves(task, plots.styles([task], rows))
    height = size(png)[1] / plots.DPI
    assert len(places) == len(task.models) == 22
    assert min(places) >= 0 and max(places) <= 1
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert min(gaps) * 0.8 * height * 72 >= 14.9  # points, for letters of 9.5


def test_pretraining_curve_is_the_table_s(rows, drawn):
    png = plots.pretraining_curves(rows, plots.styles([], rows))
    assert size(png)[0] == 7.6 * plots.DPI
    x, y, _ = drawn[0]
    assert [[a, b] for a, b in zip(x, y, strict=True)] == [p[1:] for p in rows[0]["curve"]]
    assert len(drawn) == 2


def test_cost_plot_counts_pretraining(rows, monkeypatch):
    seen = {}
    errorbar = Axes.errorbar

    def record(self, x, y, **kwargs):
        seen.setdefault(kwargs["color"], []).append(x)
        return errorbar(self, x, y, **kwargs)

    monkeypatch.setattr(Axes, "errorbar", record)
    tasks = comparison.tasks(rows)[:1]
    look = plots.styles(tasks, rows)
    png = plots.score_versus_cost(tasks, rows, {tasks[0].name: 200}, look)
    assert size(png)[0] == pytest.approx(9.2 * plots.DPI, abs=1)
    # Made-up table: 155 s of pretraining, 6 s of fine-tuning at 200 labels; 1.9 ms latency.
    assert seen[look[study_table.PRETRAINED].colour] == pytest.approx([161.0, 1.9])
    assert seen[look[study_table.SCRATCH].colour] == pytest.approx([6.0, 1.9])


def test_size_plot_draws_a_line_for_each_label_count_and_start(rows, drawn):
    png = plots.score_versus_size(comparison.tasks(rows)[:1])
    assert size(png)[0] == pytest.approx(9.2 * plots.DPI, abs=1)
    assert len(drawn) == 6  # at 50, 200 and 1,000 labels
    pretrained, scratch = [(x, y) for x, y, o in drawn if o["color"] == plots.COLOURS[1]]  # 200
    sizes = [other for _, other in study_table.PARAMETERS.values()]
    assert pretrained[0] == sizes and scratch[0] == sizes[:1]
    assert pretrained[1] == pytest.approx([(0.57 + 0.58 + 0.60) / 3, (0.53 + 0.55 + 0.58) / 3])


def test_rates_plot_fills_the_best_of_every_line(drawn):
    small, large = {1e-3: 3.0, 2e-3: 2.5, 4e-3: 2.9}, {1e-3: 2.2, 2e-3: 2.3}
    png = plots.loss_versus_rate({"muP": {"1M": small, "15M": large}, "standard": {"1M": small}})
    assert size(png)[0] == pytest.approx(8.8 * plots.DPI, abs=1)
    lines, best = drawn[::2], drawn[1::2]
    assert [dict(zip(x, y, strict=True)) for x, y, _ in lines] == [small, large, small]
    assert [(x, y) for x, y, _ in best] == [([2e-3], [2.5]), ([1e-3], [2.2]), ([2e-3], [2.5])]


def test_styles_tell_models_apart_and_pair_what_belongs_together(rows):
    look = plots.styles(comparison.tasks(rows), rows)
    pretrained, scratch = look[study_table.PRETRAINED], look[study_table.SCRATCH]
    assert pretrained.marker == scratch.marker and pretrained.colour != scratch.colour
    assert look["mlm-tiny"] == pretrained and look["mlm-small"] == look[study_table.SMALL]
    models = [m for task in comparison.tasks(rows) for m in task.models]
    assert len({look[m] for m in models}) == len(set(models))
    many = [study_table.pretraining_row("tiny", 1.0, 4.0) | {"name": f"{i}"} for i in range(20)]
    look = plots.styles([], many).values()
    assert len(set(look)) == len({(style.colour, style.line) for style in look}) == 20


def test_spread_moves_labels_apart_and_no_further():
    assert plots.spread([0.1, 0.5, 0.9], 0.2) == [0.1, 0.5, 0.9]
    assert plots.spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert plots.spread([0.3, 0.3, 0.3, 0.9], 0.1) == pytest.approx([0.2, 0.3, 0.4, 0.9])
    # Two blocks that grow into each other become one around their common centre.
    assert plots.spread([0.5, 0.5, 0.62], 0.1) == pytest.approx([0.44, 0.54, 0.64])
    # A block at the edge stays within the frame, and what lies beside it makes room.
    assert plots.spread([0.5, 0.95, 1.0, 1.0], 0.2) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert plots.spread([0.0, 0.0, 0.9], 0.3) == pytest.approx([0.0, 0.3, 0.9])
    assert plots.spread([], 0.1) == []

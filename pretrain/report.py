"""The page of a study: a function of its flat table, its title, question and notes.

What the page says in words is derived here from the figures, favourable or not.
"""

import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pretrain import plots
from pretrain.comparison import (
    Model,
    Row,
    Task,
    ancestors,
    comparisons,
    finished,
    is_pretraining,
    median,
    metric_name,
    num_labels,
    pretraining_cost,
    size_pairs,
    tasks,
    word_loss,
)
from pretrain.files import write_text
from pretrain.findings import answers, missing, pretraining_findings, signed, task_findings
from pretrain.page import (
    DASH,
    Block,
    Bullets,
    Cell,
    Code,
    Details,
    Figure,
    Heading,
    Table,
    Text,
    duration,
    number,
    plural,
    quantity,
    to_html,
    to_markdown,
)
from pretrain.stats import Interval

QUESTIONS = {
    "pretraining": "pretrained / scratch",
    "distillation": "distilled / not",
    "size, pretrained": "larger / smaller",
    "size, scratch": "larger / smaller",
    "linear": "pretrained / best linear",
}
MEANINGS = {  # of metrics that not every reader knows
    "f1": " Entity F1: harmonic mean of precision and recall of whole entities, place and type.",
    "macro_f1": " Macro F1: mean over classes of the harmonic mean of precision and recall.",
    "mcc": " MCC: Matthews correlation of predicted and true classes, 0 at chance.",
}
_SPLITS = ("validation", "test")
_COST_COLUMNS = (
    "Model",
    "Parameters",
    "Pretraining",
    "Labels",
    "Training",
    "Step memory",
    "Latency p50",
)


def write(
    workdir: pathlib.Path,
    rows: Sequence[Row],
    *,
    title: str,
    question: str = "",
    notes: Sequence[str] = (),
    command: str = "",
) -> None:
    """Writes ``report.md``, ``report.html`` and the PNG plots into ``workdir``."""
    blocks = build(rows, title=title, question=question, notes=notes, command=command)
    for block in blocks:
        if isinstance(block, Figure):
            (workdir / block.file).write_bytes(block.png)
    write_text(workdir / "report.md", to_markdown(blocks))
    write_text(workdir / "report.html", to_html(blocks, title))


def build(
    rows: Sequence[Row],
    *,
    title: str,
    question: str = "",
    notes: Sequence[str] = (),
    command: str = "",
) -> list[Block]:
    """The blocks of the page."""
    labelled = tasks(rows)
    pretraining = [r for r in finished(rows) if is_pretraining(r)]
    look = plots.styles(labelled, rows)
    blocks: list[Block] = [Heading(title, 1)]
    blocks += [Text(question, "lede")] if question else []
    blocks += [Text(_summary(rows, labelled), "small")]
    blocks += [Text(text, "notice") for text in missing(rows)]
    blocks += _answers(labelled, rows)
    for index, task in enumerate(labelled):
        blocks += _task(task, index, look)
    blocks += _size(labelled)
    blocks += _pretraining(pretraining, look)
    blocks += _costs(labelled, rows, look)
    blocks += _method(labelled, rows, notes)
    blocks += _provenance(rows, command)
    return blocks


def _summary(rows: Sequence[Row], labelled: Sequence[Task]) -> str:
    models = {name for task in labelled for name in task.models}
    seconds = sum(r.get("train.seconds") or 0 for r in rows)
    return (
        f"{plural(len(finished(rows)), 'finished run')} of {len(rows)}; "
        f"{plural(len(labelled), 'task')}, {plural(len(models), 'model')}; "
        f"{duration(seconds)} of training in all."
    )


def _answers(labelled: Sequence[Task], rows: Sequence[Row]) -> list[Block]:
    if not labelled:
        return [Text("No labelled task has a test score yet, so nothing is compared.")]
    return [Heading("In short"), Bullets(answers(labelled, rows))]


def _task(task: Task, index: int, look: Mapping[str, plots.Style]) -> list[Block]:
    name = metric_name(task.metric)
    best = {n: task.ranking(n)[0] for n in task.labels}
    rows = [
        [model, *(_score_cell(task.score(model, n), best[n] == model) for n in task.labels)]
        for model in task.models
    ]
    bands = ""
    if len(task.models) <= plots.BANDED:
        bands = ", bands 95 % intervals of the mean (cut off at the frame where seeds are few)"
    taught = "; dash-dotted: distilled" if task.kind("distilled") else ""
    blocks: list[Block] = [
        Heading(task.name),
        Figure(
            f"learning-{index + 1}.png",
            plots.learning_curves(task, look),
            f"Test {name} of {task.name} by number of labelled examples. Solid: pretrained; "
            f"dashed: from scratch; dotted: linear{taught}. Lines are means, dots seeds{bands}.",
        ),
        Bullets(task_findings(task)),
        Table(
            ["Model", *(f"{n:,} labels" for n in task.labels)],
            rows,
            f"Test {name}: mean [95 % interval], number of seeds n. Bold: highest mean."
            f"{MEANINGS.get(task.metric, '')}",
        ),
    ]
    if made := comparisons(task):
        cells = {(c.question, c.a, c.b, c.labels): _gain_cell(c.gain) for c in made}
        lines = dict.fromkeys((c.question, c.a, c.b) for c in made)
        blocks.append(
            Table(
                ["Comparison", "Model", "Against", *(f"{n:,} labels" for n in task.labels)],
                [
                    [QUESTIONS[line[0]], *line[1:]]
                    + [cells.get((*line, n), Cell(DASH)) for n in task.labels]
                    for line in lines
                ],
                f"Paired differences in test {name} (same seeds, same samples); positive: the "
                f"model is better than the one it is held against. ▲ the whole interval is above "
                f"0, ▼ below 0, = it includes 0; without a mark: one seed.",
                text_columns=3,
            )
        )
    return blocks


def _gain_cell(made: Interval) -> Cell:
    mark = {"better": "▲ ", "worse": "▼ ", "undecided": "= "}.get(made.verdict, "")
    return Cell(mark + signed(made.mean), _bounds(made, signed))


def _score_cell(score: Interval | None, best: bool) -> Cell:
    return Cell(DASH) if score is None else Cell(number(score.mean), _bounds(score, number), best)


def _bounds(made: Interval, show: Callable[[float], str]) -> str:
    bounds = f"[{show(made.low)}, {show(made.high)}] " if made.n > 1 else ""
    return f"{bounds}n={made.n}"


def _size(labelled: Sequence[Task]) -> list[Block]:
    sized = [task for task in labelled if size_pairs(task)]
    if not sized:
        return []
    caption = (
        "Mean test score against parameters outside the embedding. Solid, filled: pretrained; "
        "dashed, hollow: from scratch. The tables of paired differences above have the intervals."
    )
    return [Heading("Size"), Figure("size.png", plots.score_versus_size(sized), caption)]


def _pretraining(runs: Sequence[Row], look: Mapping[str, plots.Style]) -> list[Block]:
    if not runs:
        return []
    blocks: list[Block] = [Heading("Pretraining")]
    if any(r.get("curve") for r in runs):
        blocks.append(
            Figure(
                "pretraining.png",
                plots.pretraining_curves(runs, look),
                "Loss on held-out text against tokens seen (of replaced-token detection: its "
                "generator's). The dashed line is the unigram entropy: the loss of guessing every "
                "word piece by its frequency.",
            )
        )
    if sentences := pretraining_findings(runs):
        blocks.append(Bullets(sentences))
    columns = {
        "Run": lambda r: r["name"],
        "Objective": lambda r: r["objective"],
        "Seed": lambda r: str(r["seed"]),
        "Parameters": lambda r: quantity(r.get("params.total")),
        "Tokens": lambda r: quantity(r.get("train.tokens")),
        "FLOPs": lambda r: quantity(r.get("train.flops")),
        "Time": lambda r: duration(r.get("train.seconds")),
        "Loss": lambda r: number(word_loss(r, "scores.validation.")),
        "Masked accuracy": lambda r: number(r.get("scores.validation.masked_accuracy")),
        "Unigram entropy": lambda r: number(r.get("data.unigram_entropy")),
    }
    caption = (
        "Scores on held-out text; loss and entropy in nats a predicted word piece; of "
        "replaced-token detection the loss is the generator's. Masked accuracy: share of hidden "
        "word pieces guessed right. FLOPs: arithmetic operations of training, estimated from the "
        "shapes."
    )
    cells = [[show(r) for show in columns.values()] for r in runs]
    return [*blocks, Table(list(columns), cells, caption, text_columns=2)]


def _costs(
    labelled: Sequence[Task], rows: Sequence[Row], look: Mapping[str, plots.Style]
) -> list[Block]:
    if not labelled:
        return []
    by_name = {row["name"]: row for row in rows}
    common = {task.name: _meeting_place(task) for task in labelled}
    blocks: list[Block] = [
        Heading("What it costs"),
        Figure(
            "cost.png",
            plots.score_versus_cost(labelled, rows, common, look),
            "Test score against training time (left) and latency of one example (right). Up and to "
            "the left is better. Filled markers: pretrained.",
        ),
    ]
    for task in labelled:
        teachers = "; of distilled models without the teacher's" if task.kind("distilled") else ""
        body = []
        for model in task.models.values():
            labels = max(n for n in task.labels if (model.name, n) in task.test)
            body.append(_cost_row(model, labels, task.at_labels(model.name, labels), by_name))
        blocks.append(
            Table(
                _COST_COLUMNS,
                body,
                f"{task.name}: costs at the most labels that the model was trained on, medians "
                f"over seeds{teachers}. Latency: text to prediction, one example at a time; median "
                f"and 95th percentile.",
            )
        )
    return blocks


def _meeting_place(task: Task) -> int:
    """The label count with most models, then with most seeds, then with most labels."""
    return max(
        task.labels,
        key=lambda n: (
            len(task.ranking(n)),
            sum(len(task.at_labels(m, n)) for m in task.models),
            n,
        ),
    )


def _cost_row(
    model: Model, labels: int, runs: Sequence[Row], by_name: Mapping[str, Row]
) -> list[str | Cell]:
    before = [c for r in runs if (c := pretraining_cost(r, by_name))]
    tokens, flops, seconds = (
        median([c[k] for c in before]) for k in ("tokens", "flops", "seconds")
    )
    spent = Cell(duration(seconds), f"{quantity(tokens)} tokens, {quantity(flops, 'FLOP')}")
    memory = [m for r in runs if (m := r.get("train.step_memory_bytes")) is not None]
    p50, p95 = (median([r.get(f"latency_ms.{p}") for r in runs]) for p in ("p50", "p95"))
    return [
        model.name,
        Cell(
            quantity(model.embedding + model.other),
            f"{quantity(model.embedding)} embedding + {quantity(model.other)} other",
        ),
        spent if tokens else DASH,
        f"{labels:,}",
        Cell(
            duration(median([r.get("train.seconds") for r in runs])),
            quantity(median([r.get("train.flops") for r in runs]), "FLOP"),
        ),
        quantity(max(memory, default=None), "B", base=1024),
        DASH if p50 is None else Cell(f"{number(p50, 2)} ms", f"p95 {number(p95, 2)} ms"),
    ]


def _pretrained_once(labelled: Sequence[Task], rows: Sequence[Row]) -> bool:
    """Whether all seeds of a model start from one run, for every model that starts from any."""
    by_name = {row["name"]: row for row in rows}
    roots: dict[tuple[str, str], set[str]] = {}
    for task in labelled:
        for row in task.rows:
            if start := row["init_from"]:
                chain = ancestors(row, by_name)
                root = chain[-1]["name"] if chain else start
                roots.setdefault((task.name, row["model"]), set()).add(root)
    return bool(roots) and all(len(found) == 1 for found in roots.values())


def _method(labelled: Sequence[Task], rows: Sequence[Row], notes: Sequence[str]) -> list[Block]:
    count = sum(c.gain.n > 1 for task in labelled for c in comparisons(task))
    items = [
        *notes,
        "Intervals are 95 % Student t over seeds. They cover the choice of the labelled sample and "
        "the randomness of training on it, not the choice of the test examples.",
    ]
    if _pretrained_once(labelled, rows):
        items.append(
            "Each pretraining ran once and all seeds start from it: the intervals of pretrained "
            "models leave out its randomness."
        )
    chosen = [r for r in rows if r.get("selection.metric")]
    held_out = {r["data.validation.examples"] for r in chosen if r.get("data.validation.examples")}
    if held_out:
        items.append(
            f"Encoders keep their best step by a validation set of at most {max(held_out):,} "
            f"further labelled examples, which do not count among the labels. Of several linear "
            f"models, that with the best validation score is held against the encoders."
        )
    if peak := max((r.get("train.peak_rss_bytes") or 0 for r in rows), default=0):
        items.append(
            f"Step memory is what the compiled train step needs: parameters, optimizer state, "
            f"batch and temporaries. The whole process held at most {peak / 2**30:.1f} GiB."
        )
    if count:
        items.append(
            f"The tables hold {plural(count, 'paired interval')}, not corrected for their number: "
            f"about one in twenty would miss 0 by chance."
        )
    searched = [r for r in rows if r.get("candidates", 0) > 1]
    if searched:
        items.append(
            f"Hyperparameters were chosen on validation data among candidates that share model, "
            f"task, labels and seed; test scores played no part. The costs are those of the chosen "
            f"runs; all candidates together took "
            f"{duration(sum(r.get('train.seconds') or 0 for r in searched))}."
        )
    else:
        items.append(
            "Every run was the only candidate for its model, task, number of labels and seed: no "
            "hyperparameter was chosen among these runs."
        )
    compile_seconds = sum(r.get("train.compile_seconds") or 0 for r in rows)
    if compile_seconds:
        items.append(
            f"Training times are without evaluation and without compilation, which took "
            f"{duration(compile_seconds)} in all."
        )
    blocks: list[Block] = [Heading("How it was measured"), Bullets(items)]
    if searched:
        body = [
            [
                *(r["model"], r["task"], f"{num_labels(r):,}"),
                *(str(r["seed"]), str(r["candidates"]), r["name"]),
            ]
            for r in searched
            if r["selected"]
        ]
        columns = ["Model", "Task", "Labels", "Seed", "Candidates", "Chosen on validation data"]
        table = Table(columns, body, text_columns=2)
        blocks.append(Details("Candidates and choices", [table]))
    return blocks


def _environment(row: Row) -> str:
    """Machine and main versions; those of the packages that texts came from are in the table."""
    start = "environment."
    other = (f"{start}docstrings.", f"{start}revision")  # no other machine
    facts = {
        key.removeprefix(start).removeprefix("packages."): value
        for key, value in row.items()
        if key.startswith(start) and not key.startswith(other)
    }
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _provenance(rows: Sequence[Row], command: str) -> list[Block]:
    done = finished(rows)
    blocks: list[Block] = [Heading("Where it comes from")]
    sources: dict[tuple, set[int]] = {}
    for row in done:
        for split in ("train", "validation", "test"):
            if name := row.get(f"data.{split}.name"):
                source = (row["task"], split, name, row.get(f"data.{split}.fingerprint") or "")
                size = row.get(f"data.{split}.examples") or row.get(f"data.{split}.num_documents")
                sources.setdefault(source, set()).add(size or 0)
    if sources:
        blocks.append(
            Table(
                ["Task", "Split", "Source", "Fingerprint", "Examples"],
                [
                    [task, split, name, mark[:12], ", ".join(f"{n:,}" for n in sorted(sizes))]
                    for (task, split, name, mark), sizes in sources.items()
                ],
                "Data, with the first digits of the SHA-256 of their content.",
                text_columns=4,
            )
        )
    places = Counter(_environment(row) for row in done)
    if len(places) > 1:
        warning = (
            f"The runs come from {len(places)} environments; times do not compare across them."
        )
        blocks.append(Text(warning, "notice"))
    blocks += [
        Text(f"Environment of {plural(n, 'run')}: {text}.", "small")
        for text, n in places.items()
        if text
    ]
    revisions = Counter(r for row in done if (r := row.get("environment.revision")))
    if revisions:
        made = ", ".join(f"{name} ({plural(n, 'run')})" for name, n in revisions.items())
        blocks.append(Text(f"Revision of the code: {made}.", "small"))
    if command:
        blocks += [Text("The command that makes this page:"), Code(command)]
    body = [
        [
            r["name"],
            r["status"],
            r["key"][:8],
            f"{r['candidates']}{', chosen' if r['candidates'] > 1 and r['selected'] else ''}",
            *(number(r.get(f"scores.{s}.{r.get('metric')}")) for s in _SPLITS),
            duration(r.get("train.seconds")),
        ]
        for r in rows
    ]
    table = (
        "The whole table lies beside this page as results.jsonl, with the version of every package "
        "whose docstrings were read."
        if any("environment.docstrings.content_hash" in row for row in done)
        else "The whole table lies beside this page as results.jsonl."
    )
    columns = ["Run", "State", "Key", "Candidates", "Validation", "Test", "Training time"]
    runs = Details(f"All {len(rows)} runs", [Table(columns, body, text_columns=3)])
    return [*blocks, runs, Text(table, "small")]

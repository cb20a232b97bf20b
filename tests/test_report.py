"""The page: figures equal hand-computed ones, sentences follow the data, text is escaped."""

import re
from html.parser import HTMLParser

import pytest

from pretrain import comparison, findings, page, plots, report
from tests import study_table
from tests.study_table import CLASSES, NER, PRETRAINED, SCRATCH

T2 = 4.303  # Student's t, 97.5 %, 2 degrees of freedom, from a printed table


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Pictures are slow to draw and test_plots has them."""
    for name in ("learning_curves", "score_versus_cost", "score_versus_size", "pretraining_curves"):
        monkeypatch.setattr(plots, name, lambda *_: b"PNG")


def make(rows, **options):
    blocks = report.build(rows, title="Title", **options)
    return page.to_markdown(blocks), page.to_html(blocks, "Title")


def task_of(scores):
    rows = study_table.table(scores)
    return comparison.tasks(rows)[0], rows


def sentences(task):
    flat = []
    for item in findings.task_findings(task):
        flat += [item] if isinstance(item, str) else [item[0], *item[1]]
    return "\n".join(flat)


def pair(pretrained, scratch, labels=200, metric_task=NER):
    return {
        (metric_task, PRETRAINED): {labels: pretrained},
        (metric_task, SCRATCH): {labels: scratch},
    }


def test_scores_and_intervals_equal_those_by_hand():
    markdown, html = make(study_table.table())
    # Seeds .42 .51 .54: mean .49, standard deviation sqrt(.0078 / 2) = .062450,
    # half the interval 4.303 * .062450 / sqrt(3) = .15514.
    assert "| tiny encoder, pretrained | **0.490** [0.335, 0.645] n=3 |" in markdown
    assert "<strong>0.490</strong><small>[0.335, 0.645] n=3</small>" in html
    assert "**0.680** n=1" in markdown  # one seed: no interval


def test_paired_differences_equal_those_by_hand():
    task, _ = task_of(study_table.SCORES)
    made = next(c for c in comparison.comparisons(task) if c.labels == 50)
    # .42 - .27, .51 - .28, .54 - .30 = .15 .23 .24: mean .206667, deviation .049329.
    half = T2 * 0.049329 / 3**0.5
    assert made.gain == pytest.approx((0.206667, 0.206667 - half, 0.206667 + half, 3), abs=1e-4)


@pytest.mark.parametrize(
    "pretrained, scratch, verdict, counts",
    [
        ((0.60, 0.62, 0.64), (0.40, 0.43, 0.44), "better at 200 labels (+0.197)", (1, 0, 0)),
        (
            (0.40, 0.43, 0.44),
            (0.60, 0.62, 0.64),
            f"worse at 200 labels ({page.MINUS}0.197)",
            (0, 1, 0),
        ),
        ((0.40, 0.50, 0.60), (0.50, 0.40, 0.55), "undecided at 200 labels (+0.017)", (0, 0, 1)),
        ((0.90,), (0.10,), "one seed, which decides nothing, at 200 labels (+0.800)", (0, 0, 0)),
    ],
)
def test_sentences_follow_the_data(pretrained, scratch, verdict, counts):
    task, rows = task_of(pair(pretrained, scratch))
    assert f"“{PRETRAINED}” against “{SCRATCH}”: {verdict}." in sentences(task)
    better, worse, undecided = counts
    answer = findings.answers([task], rows)[0]
    assert f"better in {better}, worse in {worse}, undecided in {undecided}" in answer
    assert ("one seed in 1" in answer) == (len(pretrained) == 1)
    best = PRETRAINED if sum(pretrained) > sum(scratch) else SCRATCH
    assert f"highest mean entity F1 is that of “{best}”" in sentences(task)


def test_answers_count_comparisons_and_span_differences():
    scores = {k: {n: v for n, v in by.items() if n < 1000} for k, by in study_table.SCORES.items()}
    rows = study_table.table(scores)
    text = findings.answers(comparison.tasks(rows), rows)
    # NER .206667 at 50 and .16 at 200 labels; classes .03 and .0266667 at 100 and 500.
    assert "4 comparisons: better in 3, worse in 0, undecided in 1" in text[0]
    assert "+0.160 to +0.207 entity F1" in text[0] and "+0.027 to +0.030 accuracy" in text[0]
    assert text[1].startswith("Size, with pretraining: the larger model against the next smaller")
    assert f"{page.MINUS}0.033 to {page.MINUS}0.030 entity F1" in text[1]
    everything = study_table.table()  # with 1,000 labels one seed gained .104, and .013
    more = findings.answers(comparison.tasks(everything), everything)
    assert more[0].partition("Mean")[2] == text[0].partition("Mean")[2] != ""
    assert "2 pretraining runs, each 2 min 35 s to 7 min 00 s" in text[-2]


def test_one_size_leaves_the_question_of_size_open():
    task, rows = task_of(pair((0.5, 0.6), (0.4, 0.5)))
    text = "\n".join(findings.answers([task], rows))
    assert "what size buys is unknown" in text
    assert "Linear models" not in text and "from scratch: " not in text


def test_page_never_says_significant():
    markdown, _ = make(study_table.table())
    assert "significan" not in markdown.lower()


def test_lower_is_better_turns_the_comparison():
    row = dict(labels=10, status="finished", objective="classify", architecture="transformer")
    rows = [
        row
        | dict(name=f"{m}{s}", model=m, task="T", seed=s, init_from="")
        | {"params.other": size, "selection.metric": "perplexity"}
        | {"scores.test.perplexity": v, "scores.validation.perplexity": v}
        for m, size, values in (("small", 1, (9.0, 8.0)), ("large", 9, (5.0, 4.0)))
        for s, v in enumerate(values)
    ]
    comparison.select(rows)
    (task,) = comparison.tasks(rows)
    assert task.ranking(10) == ["large", "small"]
    (made,) = comparison.comparisons(task)
    assert (made.a, made.b, made.gain.mean, made.gain.verdict) == ("large", "small", 4.0, "better")


def test_best_linear_model_is_chosen_on_validation():
    rows = [
        study_table.task_row(CLASSES, PRETRAINED, 100, 0, 0.5),
        study_table.task_row(
            CLASSES, "logistic regression", 100, 0, 0.9, **{"scores.validation.accuracy": 0.1}
        ),
        study_table.task_row(
            CLASSES, "linear SVM", 100, 0, 0.2, **{"scores.validation.accuracy": 0.8}
        ),
    ]
    comparison.select(rows)
    (task,) = comparison.tasks(rows)
    assert comparison.best_linear(task, 100) == "linear SVM"


def test_size_is_compared_within_one_kind_only():
    task, _ = task_of(study_table.SCORES)
    pairs = [(a.name, b.name) for a, b in comparison.size_pairs(task)]
    assert pairs == [(study_table.SMALL, PRETRAINED)]
    worse = f"worse at 50 and 200 labels ({page.MINUS}0.033, {page.MINUS}0.030)"
    assert f"“{study_table.SMALL}” against “{PRETRAINED}”: {worse}" in sentences(task)


def test_size_is_compared_within_networks_of_one_name():
    """Two kinds of network from scratch, equally large in each of three sizes."""
    row = dict(labels=10, seed=0, task="T", init_from="", status="finished", objective="classify")
    names = [f"{size} {kind}, from scratch" for kind in ("encoder", "t5") for size in "abc"]
    rows = [
        row
        | dict(name=name, model=name, architecture="transformer")
        | {"params.other": 10 ** " abc".index(name[0]), "scores.test.accuracy": 0.5}
        for name in names
    ]
    comparison.select(rows)
    (task,) = comparison.tasks(rows)
    pairs = {(a.name, b.name) for a, b in comparison.size_pairs(task)}
    assert pairs == {(names[i + 1], names[i]) for i in (0, 1, 3, 4)}


def test_a_distilled_models_cost_has_what_it_started_from():
    scores = {(NER, PRETRAINED): {50: (0.5,)}}
    taught = study_table.task_row(NER, PRETRAINED, 50, 0, 0.6, teacher="x")
    rows = [*study_table.table(scores), taught | {"name": "taught", "model": "taught"}]
    comparison.select(rows)
    markdown, _ = make(rows)
    row = next(x for x in markdown.splitlines() if x.startswith("| taught |") and "TFLOP" in x)
    assert "2 min 35 s" in row, "as the pretrained model's"
    assert "of distilled models without the teacher's" in markdown


def test_distilled_models_are_held_against_linear_ones():
    taught = study_table.task_row(NER, PRETRAINED, 50, 0, 0.6, teacher="x")
    linear = study_table.task_row(NER, study_table.LINEAR, 50, 0, 0.4)
    rows = [taught | {"model": "taught"}, linear]
    comparison.select(rows)
    (task,) = comparison.tasks(rows)
    (made,) = comparison.comparisons(task)
    assert (made.question, made.a, made.b) == ("linear", "taught", study_table.LINEAR)
    assert made.gain.mean == pytest.approx(0.2)


def test_costs_are_medians():
    """One run that the machine kept waiting tells nothing of what a model costs."""
    rows = study_table.table({(NER, PRETRAINED): {50: (0.5, 0.5, 0.5)}})
    rows[-1] |= {"train.seconds": 1e6, "latency_ms.p50": 1e6}
    lines = make(rows)[0].splitlines()
    (row,) = [x for x in lines if x.startswith(f"| {PRETRAINED} |") and "TFLOP" in x]
    assert f"| {page.duration(rows[-2]['train.seconds'])} " in row and "| 1.90 ms " in row


def test_losses_of_every_kind_should_be_low():
    for name in ("loss", "generator_loss", "masked_loss", "pair_loss", "validation/perplexity"):
        assert comparison.sign(name) == -1
    assert comparison.sign("masked_accuracy") == 1


def test_the_loss_of_unseen_pieces_is_what_is_held_against_their_entropy():
    values = {"x/loss": 4.5, "x/masked_loss": 5.9}
    assert comparison.word_loss(values, "x/") == 5.9
    assert comparison.word_loss({"x/loss": 0.3, "x/generator_loss": 4.1}, "x/") == 4.1
    assert comparison.word_loss({"x/loss": 4.5}, "x/") == 4.5


def test_missing_counterparts_are_admitted():
    text = sentences(task_of({(NER, PRETRAINED): {50: (0.5, 0.6)}})[0])
    assert "what pretraining gave there is unknown" in text
    assert "no other model was run there" in text
    assert "linear" not in text


def test_cost_follows_the_chain_of_starts():
    first, second = study_table.pretraining_row("tiny", 100.0, 5.0, 1000), {}
    second = first | {"name": "more", "init_from": "mlm-tiny", "train.seconds": 7.0}
    tuned = study_table.task_row(NER, PRETRAINED, 50, 0, 0.5, init_from="more")
    by_name = {r["name"]: r for r in (first, second, tuned)}
    cost = comparison.pretraining_cost(tuned, by_name)
    assert cost["seconds"] == 107.0 and cost["tokens"] == 2000
    assert comparison.pretraining_cost(first, by_name)["seconds"] == 0
    assert comparison.pretraining_cost(tuned, {tuned["name"]: tuned}) is None


def test_cost_table():
    markdown, _ = make(study_table.table())
    # 6 * 396544 parameters * 3.6e6 tokens = 8.565e12; 41e6 bytes / 2^20 = 39.1.
    assert "| 2 min 35 s 3.60 M tokens, 8.57 TFLOP | 1,000 |" in markdown
    assert "| 39.1 MiB | 1.90 ms p95 2.40 ms |" in markdown
    assert "1.45 M 1.05 M embedding + 397 k other" in markdown


@pytest.mark.parametrize(
    "loss, words",
    [
        (4.01, "2.80 below guessing by word-piece frequency (6.81)"),
        (6.42, "hardly left that plateau"),
        (6.90, "no better than guessing by word-piece frequency"),
    ],
)
def test_pretraining_loss_is_judged_against_the_unigram_entropy(loss, words):
    (text,) = findings.pretraining_findings([study_table.pretraining_row("tiny", 1.0, loss)])
    assert words in text
    row = study_table.pretraining_row("tiny", 1.0, 0.3) | {"scores.validation.generator_loss": loss}
    (text,) = findings.pretraining_findings([row])
    assert words in text and "loss of its generator" in text


def test_the_validation_set_is_that_of_labelled_runs():
    """Not the held-out documents of pretraining, which selects nothing."""
    text, _ = make(study_table.table())
    assert "a validation set of at most 300 further" in text and "2,331" not in text


def test_one_pretraining_of_all_seeds_is_told_only_where_it_is_so():
    said = "Each pretraining ran once and all seeds start from it"
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5)))
    assert said in make(rows)[0]
    assert said not in make(study_table.table({(NER, SCRATCH): {200: (0.4, 0.5)}}))[0]
    again = rows[0] | {"name": "mlm-tiny-again", "init_from": "mlm-tiny"}
    tuned = next(r for r in rows if r["model"] == PRETRAINED and r["seed"] == 1)
    tuned["init_from"] = "mlm-tiny-again"
    assert said in make([*rows, again])[0], "goes back to the same run"
    again["init_from"] = ""
    assert said not in make([*rows, again])[0], "each seed has its own"


def test_candidates_are_counted():
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5)))
    assert "Every run was the only candidate for its model" in make(rows)[0]
    other = study_table.task_row(NER, PRETRAINED, 200, 0, 0.99, name="lr-2")
    rows.append(other | {"scores.validation.f1": 0.01})
    comparison.select(rows)
    markdown, _ = make(rows)
    assert re.search(r"\| 200 \| 0 \| 2 \| ner-tiny-encoder-pretrained-200-s0 \|", markdown)
    assert "0.990" not in markdown.split("## How it was measured")[0]


def test_unfinished_failed_and_unscored_runs_are_named():
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5)))
    blank = dict(model="M", task=NER, labels=9, seed=0, init_from="", key="0" * 64)
    rows.append(blank | dict(name="waiting", status="pending"))
    rows.append(blank | dict(name="broken", status="failed", error="RuntimeError: <b>boom</b>"))
    unscored = study_table.task_row(NER, PRETRAINED, 300, 0, 0.5, name="untested")
    del unscored["scores.test.f1"]
    rows.append(unscored)
    comparison.select(rows)
    markdown, html = make(rows)
    assert "1 run not finished: waiting." in markdown
    assert "1 run failed: broken." in markdown
    assert "Left out for want of a test score: untested." in markdown
    assert "&lt;b&gt;boom" in html and "<b>boom" not in html


@pytest.mark.parametrize("rows", [[], [study_table.pretraining_row("tiny", 1.0, 4.0)]])
def test_a_page_without_scores_says_so(rows):
    comparison.select(rows)
    assert "nothing is compared" in make(rows)[0]


def test_two_test_sets_are_admitted():
    rows = study_table.table()
    assert "different test sets" not in make(rows)[0]
    other = next(r for r in rows if r["task"] == NER)
    other["data.test.fingerprint"] = "00" * 32
    assert f"{NER}: the runs were scored on 2 different test sets" in make(rows)[0]


def test_two_environments_are_admitted():
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5)))
    rows[-1]["environment.cpu_count"] = 64
    assert "2 environments; times do not compare" in make(rows)[0]
    assert "environments; times" not in make(rows[:-1])[0]


def test_revisions_of_the_code_are_named():
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5)))
    assert "Revision" not in make(rows)[0]  # as of an installed package
    for row in rows:
        row["environment.revision"] = "0123abc"
    rows[-1]["environment.revision"] = "0123abc-dirty"
    markdown, _ = make(rows)
    assert f"0123abc ({len(rows) - 1} runs), 0123abc-dirty (1 run)" in markdown
    assert "environments; times" not in markdown


def test_versions_of_documented_packages_are_left_to_the_table():
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5)))
    rows[-1] |= {
        "environment.docstrings.content_hash": "cb" * 32,
        "environment.docstrings.versions.six": "1.17.0",
    }
    markdown, _ = make(rows)
    assert "1.17.0" not in markdown and "the version of every package" in markdown
    assert "environments; times" not in markdown  # other texts are no other machine
    assert "flax 0.12.8" in markdown


class Tags(HTMLParser):
    """Balance of tags, and every address that the page names."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_escaped_and_self_contained():
    attack = "<script>alert('x')</script> & \"quotes\""
    rows = study_table.table(pair((0.5, 0.6), (0.4, 0.5), metric_task=NER))
    for row in rows:
        row["task"] = attack if row["task"] == NER else row["task"]
        row["model"] += " <img src=x>"
        row["environment.python"] = attack
        row["data.train.name"] = attack
    comparison.select(rows)
    _, html = make(rows, question=attack, notes=(attack,), command=f"echo {attack}")
    assert "<script" not in html and "<img src=x>" not in html
    assert html.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quotes") > 8
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.addresses and all(a.startswith("data:image/png;base64,") for a in tags.addresses)
    assert "url(" not in html and "@import" not in html


def test_markdown_cells_cannot_break_the_table():
    table = page.Table(["a", "b"], [["x|y", "*z*\n<b>"], ["macro_f1", "_i_ [1, 2]"]])
    lines = page.to_markdown([table]).splitlines()
    assert lines[1:] == [
        "| --- | ---: |",
        "| x\\|y | \\*z\\* &lt;b> |",
        "| macro_f1 | \\_i\\_ [1, 2] |",
    ]


def test_files_are_written_with_the_command(tmp_path):
    command = "python -m pretrain.study --config=c.py --workdir=w"
    report.write(tmp_path, study_table.table(), title="A & B", command=command)
    names = {p.name for p in tmp_path.iterdir()}
    pictures = {"learning-1.png", "learning-2.png", "size.png", "pretraining.png", "cost.png"}
    assert names == {"report.md", "report.html"} | pictures
    markdown = (tmp_path / "report.md").read_text()
    assert f"```\n{command}\n```" in markdown
    assert pictures == set(re.findall(r"\]\(([\w.-]+\.png)\)", markdown))
    assert "<title>A &amp; B</title>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "text, expected",
    [
        (page.quantity(1310720), "1.31 M"),
        (page.quantity(999_700), "1.00 M"),
        (page.quantity(397_000), "397 k"),
        (page.quantity(12), "12"),
        (page.quantity(41_000_000, "B", base=1024), "39.1 MiB"),
        (page.quantity(None), page.DASH),
        (page.duration(0.314), "0.31 s"),
        (page.duration(14.23), "14.2 s"),
        (page.duration(185), "3 min 05 s"),
        (page.duration(7800), "2 h 10 min"),
        (page.number(-0.0314), f"{page.MINUS}0.031"),
        (page.number(float("nan")), page.DASH),
    ],
)
def test_numbers_are_written_for_readers(text, expected):
    assert text == expected

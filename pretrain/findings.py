"""What the figures of a study show, in sentences derived from them, favourable or not."""

from collections.abc import Sequence

from pretrain.comparison import (
    Comparison,
    Row,
    Task,
    comparisons,
    finished,
    gain,
    is_pretraining,
    median,
    metric_name,
    word_loss,
)
from pretrain.page import duration, number, plural, quantity
from pretrain.stats import Interval

# A loss within this fraction of the unigram entropy has learnt little beyond word frequencies.
PLATEAU = 0.1
VERDICTS = {
    "better": "interval above 0",
    "worse": "interval below 0",
    "undecided": "interval includes 0",
    "one seed": "one seed, no interval",
}
QUESTIONS = {  # title, who is held against whom, the sentence where there is nothing to compare
    "pretraining": (
        "Pretraining",
        "the pretrained model against the same model from scratch",
        "Pretraining: no model was run both pretrained and from scratch on the same seeds, so what "
        "pretraining buys is unknown.",
    ),
    "distillation": (
        "Distillation",
        "the model with a teacher against the same model without",
        "",
    ),
    "size, pretrained": (
        "Size, with pretraining",
        "the larger model against the next smaller",
        "Size: no two pretrained models of different size were run, so what size buys is unknown.",
    ),
    "size, scratch": (
        "Size, from scratch",
        "the larger model against the next smaller",
        "",
    ),
    "linear": (
        "Linear models",
        "the pretrained or distilled model against the best linear one (chosen on validation data)",
        "",
    ),
}


def missing(rows: Sequence[Row]) -> list[str]:
    """What a reader must know is not on the page."""
    texts = []
    for status, words in (("failed", "failed"), ("pending", "not finished")):
        absent = [r for r in rows if r["status"] == status]
        if absent:
            names = ", ".join(r["name"] for r in absent[:8]) + (" …" if len(absent) > 8 else "")
            texts.append(f"Incomplete: {plural(len(absent), 'run')} {words}: {names}.")
            texts += [f"{r['name']}: {r['error']}" for r in absent if r.get("error")]
    unscored = [
        r["name"]
        for r in finished(rows)
        if not is_pretraining(r) and r["selected"] and r.get(f"scores.test.{r['metric']}") is None
    ]
    if unscored:
        texts.append(f"Left out for want of a test score: {', '.join(unscored)}.")
    scored: dict[str, set[str]] = {}
    for row in finished(rows):
        if not is_pretraining(row):
            scored.setdefault(row["task"], set()).add(row.get("data.test.fingerprint"))
    texts += [
        f"{task}: the runs were scored on {len(found)} different test sets and do not compare; "
        "run those of one state of the data again in a new folder."
        for task, found in scored.items()
        if len(found) > 1
    ]
    return texts


def answers(labelled: Sequence[Task], rows: Sequence[Row]) -> list[str]:
    """The study's question answered over all tasks, one sentence or two a question."""
    made = [(task, c) for task in labelled for c in comparisons(task)]
    sentences = []
    for question, (title, who, nothing) in QUESTIONS.items():
        here = [c for _, c in made if c.question == question]
        if not here:
            sentences += [nothing] if nothing else []
            continue
        verdicts = [c.gain.verdict for c in here]
        counts = ", ".join(
            f"{word} in {verdicts.count(word)}"
            for word in ("better", "worse", "undecided", "one seed")
            if word != "one seed" or word in verdicts
        )
        ranges = "; ".join(
            f"{task.name} {_range(task, question)}"
            for task in labelled
            if any(t is task and c.question == question for t, c in made)
        )
        sentences.append(
            f"{title}: {who}, {plural(len(here), 'comparison')}: {counts}. "
            f"Mean differences: {ranges}."
        )
    if price := _price(labelled, rows):
        sentences.append(price)
    if any(c.gain.n > 1 for _, c in made):
        sentences.append(
            "Better or worse, on these test examples: the whole 95 % interval of the paired "
            "difference over seeds lies above or below 0. Undecided: it includes 0, and the runs "
            "do not tell."
        )
    return sentences


def _range(task: Task, question: str) -> str:
    """Of the differences over several seeds, or where there are none of those of one."""
    made = [c.gain for c in comparisons(task) if c.question == question]
    gains = [gain.mean for gain in made if gain.n > 1] or [gain.mean for gain in made]
    low, high = signed(min(gains)), signed(max(gains))
    return f"{low if low == high else f'{low} to {high}'} {metric_name(task.metric)}"


def _price(labelled: Sequence[Task], rows: Sequence[Row]) -> str:
    """Seconds of pretraining and of labelled training, side by side."""
    before = [r["train.seconds"] for r in finished(rows) if is_pretraining(r)]
    if not before:
        return ""
    span = dict.fromkeys((duration(min(before)), duration(max(before))))
    each = "" if len(before) == 1 else "each "
    parts = [f"Price: {plural(len(before), 'pretraining run')}, {each}{' to '.join(span)}"]
    for kind, name in (("pretrained", "fine-tuning"), ("linear", "training a linear model")):
        seconds = median(
            row.get("train.seconds")
            for task in labelled
            for row in task.rows
            if task.models[row["model"]].kind == kind
        )
        parts += [f"{name} {duration(seconds)} in the median"] if seconds else []
    return "; ".join(parts) + "."


def task_findings(task: Task) -> list[str | tuple[str, list[str]]]:
    """Sentences about one labelled task; where there are several models, each has its own below."""
    made = comparisons(task)
    sentences: list[str | tuple[str, list[str]]] = []
    for question, (title, who, _) in QUESTIONS.items():
        groups: dict[str, list[Comparison]] = {}
        for c in made:
            if c.question == question:
                groups.setdefault(c.a, []).append(c)
        if len(groups) == 1:
            ((name, mine),) = groups.items()
            others = " or ".join(dict.fromkeys(quoted(c.b) for c in mine))
            sentences.append(f"{title}: {quoted(name)} against {others}: {_tally(mine)}")
        elif groups:
            lines = [f"{quoted(name)}: {_tally(mine)}" for name, mine in groups.items()]
            sentences.append((f"{title}: {who}.", lines))
    alone = [
        quoted(m.name)
        for m in task.kind("pretrained")
        if not any(c.a == m.name and c.question == "pretraining" for c in made)
    ]
    if alone:
        sentences.append(
            f"No model like {', '.join(alone)} was trained from scratch on the same seeds, so "
            f"what pretraining gave there is unknown."
        )
    return sentences + [
        _best_sentence(task, n) for n in dict.fromkeys((task.labels[0], task.labels[-1]))
    ]


def _tally(made: Sequence[Comparison]) -> str:
    """``better at 50 and 200 labels (+0.207, +0.160); undecided at 1,000 labels (+0.003).``"""
    parts = []
    for verdict in VERDICTS:
        here = [c for c in made if c.gain.verdict == verdict]
        if here:
            *first, last = [f"{c.labels:,}" for c in here]
            counts = f"{', '.join(first)} and {last}" if first else last
            gains = ", ".join(signed(c.gain.mean) for c in here)
            words = "one seed, which decides nothing," if verdict == "one seed" else verdict
            parts.append(f"{words} at {counts} labels ({gains})")
    return "; ".join(parts) + "."


def _best_sentence(task: Task, labels: int) -> str:
    names = task.ranking(labels)
    score = task.score(names[0], labels)
    sentence = (
        f"With {labels:,} labels the highest mean {metric_name(task.metric)} is that of "
        f"{quoted(names[0])}, {bracketed(score, number)} ({plural(score.n, 'seed')}); "
    )
    if len(names) == 1:
        return f"{sentence}no other model was run there."
    sentence += f"{quoted(names[1])} follows with {number(task.score(names[1], labels).mean)}, "
    lead = gain(task, names[0], names[1], labels)
    paired = f"paired difference {bracketed(lead)} ({VERDICTS[lead.verdict]})" if lead else ""
    sentence += paired or "on other seeds"
    absent = ", ".join(quoted(m) for m in task.models if m not in names)
    return sentence + (f"; not run there: {absent}." if absent else ".")


def pretraining_findings(rows: Sequence[Row]) -> list[str]:
    """How far each pretraining run got below guessing by frequency."""
    sentences = []
    for row in filter(is_pretraining, finished(rows)):
        loss, entropy = word_loss(row, "scores.validation."), row.get("data.unigram_entropy")
        if loss is None or entropy is None:
            continue
        below = entropy - loss
        whose = " of its generator" if "scores.validation.generator_loss" in row else ""
        if below <= 0:
            words = f"no better than guessing by word-piece frequency ({number(entropy, 2)})"
        elif below < PLATEAU * entropy:
            words = (
                f"only {number(below, 2)} below guessing by word-piece frequency "
                f"({number(entropy, 2)}): it has hardly left that plateau"
            )
        else:
            words = (
                f"{number(below, 2)} below guessing by word-piece frequency ({number(entropy, 2)})"
            )
        sentences.append(
            f"{quoted(row['name'])}: held-out loss{whose} {number(loss, 2)} nats after "
            f"{quantity(row['train.tokens'])} tokens, {words}."
        )
    return sentences


def quoted(name: str) -> str:
    """Names of models and runs stand in quotes, since they may hold commas."""
    return f"“{name}”"


def signed(value: float) -> str:
    """With its sign, also where it is a plus."""
    return ("+" if value >= 0 else "") + number(value)


def bracketed(made: Interval, show=signed) -> str:
    """``mean [low, high]``, or the mean alone where there is one seed."""
    bounds = f" [{show(made.low)}, {show(made.high)}]" if made.n > 1 else ""
    return show(made.mean) + bounds

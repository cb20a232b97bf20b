"""What the figures of a study show, in sentences derived from them, favourable or not."""

from collections.abc import Sequence

from pretrain.comparison import (
    Comparison,
    Interval,
    Row,
    Task,
    comparisons,
    counterpart,
    finished,
    gain,
    is_pretraining,
    mean,
    metric_name,
    pretraining_cost,
)
from pretrain.page import duration, number, plural, quantity

# A loss within this fraction of the unigram entropy has learnt little beyond word frequencies.
PLATEAU = 0.1
VERDICTS = {
    "better": "interval above 0",
    "worse": "interval below 0",
    "not separated": "interval includes 0",
    "one seed": "one seed, no interval",
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
    return texts


def task_findings(task: Task) -> list[str | tuple[str, list[str]]]:
    """Sentences about one labelled task; with some, those of single label counts below."""
    made = comparisons(task)
    sentences: list[str | tuple[str, list[str]]] = []
    for model in task.kind("pretrained"):
        mine = [c for c in made if c.a == model.name and c.question == "pretraining"]
        if mine:
            head = f"{quoted(model.name)} against {quoted(counterpart(task, model))}: "
            below = [pretraining_sentence(task, c) for c in mine]
            sentences.append((head + _tally(mine, "pretraining"), below))
        else:
            sentences.append(
                f"{quoted(model.name)}: no model of its size was trained from scratch on the same "
                f"seeds, so what pretraining gave it is unknown."
            )
        linear = [c for c in made if c.a == model.name and c.question == "linear"]
        if linear:
            sentences.append(
                f"{quoted(model.name)} against the best linear model (chosen on validation data): "
                f"{_tally(linear, 'the pretrained model')}"
            )
    for a, b in dict.fromkeys((c.a, c.b) for c in made if c.question == "size"):
        mine = [c for c in made if (c.a, c.b, c.question) == (a, b, "size")]
        sizes = [quantity(task.models[m].other) for m in (a, b)]
        sentences.append(
            f"Size: {quoted(a)} ({sizes[0]} parameters outside the embedding) against "
            f"{quoted(b)} ({sizes[1]}): {_tally(mine, 'the larger')}"
        )
    sentences += [_best_sentence(task, n) for n in dict.fromkeys((task.labels[0], task.labels[-1]))]
    return sentences


def _tally(made: Sequence[Comparison], subject: str) -> str:
    """``pretraining is ahead at 50 and 200 labels (+0.207, +0.160; interval above 0); ...``."""
    words = {
        "better": f"{subject} is ahead at {{}} labels ({{}}; interval above 0)",
        "worse": f"{subject} is behind at {{}} labels ({{}}; interval below 0)",
        "not separated": "undecided at {} labels ({}; interval includes 0)",
        "one seed": "a single seed at {} labels ({}), which decides nothing",
    }
    parts = []
    for verdict, text in words.items():
        here = [c for c in made if c.gain.verdict == verdict]
        if here:
            counts = " and ".join(
                filter(
                    None, (", ".join(f"{c.labels:,}" for c in here[:-1]), f"{here[-1].labels:,}")
                )
            )
            parts.append(text.format(counts, ", ".join(signed(c.gain.mean) for c in here)))
    return "; ".join(parts) + "."


def pretraining_sentence(task: Task, made: Comparison) -> str:
    """One comparison of a pretrained model with the same one from scratch."""
    ours, theirs = (number(task.score(m, made.labels).mean) for m in (made.a, made.b))
    start = f"At {made.labels:,} labels: {metric_name(task.metric)} {ours} against {theirs}; "
    if made.gain.verdict == "one seed":
        return (
            f"{start}a difference of {signed(made.gain.mean)} from one seed. Without an interval "
            f"this says nothing about another seed."
        )
    seeds = f"{bracketed(made.gain)} over {made.gain.n} paired seeds"
    if made.gain.verdict == "not separated":
        return f"{start}difference {seeds}. The interval includes 0: the runs do not decide."
    word = "helps" if made.gain.verdict == "better" else "hurts"
    return f"{start}pretraining {word}: {seeds}. The interval excludes 0."


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


def cost_findings(labelled: Sequence[Task], rows: Sequence[Row]) -> list[str]:
    """What pretraining reached and what it cost beside fine-tuning."""
    sentences = []
    for row in finished(rows):
        if not is_pretraining(row):
            continue
        loss = row.get("scores.validation.loss")
        sentence = (
            f"{quoted(row['name'])}: {quantity(row['train.tokens'])} tokens in "
            f"{duration(row['train.seconds'])}, held-out loss {number(loss, 2)} nats"
        )
        entropy = row.get("data.unigram_entropy")
        if loss is not None and entropy is not None:
            below = entropy - loss
            if below <= 0:
                sentence += f", no better than guessing by word frequency ({number(entropy, 2)})"
            elif below < PLATEAU * entropy:
                sentence += (
                    f", only {number(below, 2)} below the unigram entropy of {number(entropy, 2)}: "
                    f"it has hardly left that plateau"
                )
            else:
                sentence += f", {number(below, 2)} below the unigram entropy {number(entropy, 2)}"
        sentences.append(sentence + ".")
    by_name = {row["name"]: row for row in rows}
    for task in labelled:
        for model in task.kind("pretrained"):
            runs = [r for r in task.rows if r["model"] == model.name]
            costs = [c for r in runs if (c := pretraining_cost(r, by_name))]
            tuning = mean([r.get("train.seconds") for r in runs])
            if costs and tuning:
                before = mean([c["seconds"] for c in costs])
                sentences.append(
                    f"{task.name}, {quoted(model.name)}: pretraining took {duration(before)} for "
                    f"{quantity(mean([c['tokens'] for c in costs]))} tokens, a fine-tuning run "
                    f"{duration(tuning)} on average: as long as {before / tuning:.3g} of these."
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

"""Many training runs, one comparison.

    python -m pretrain.study --config=configs/quickstart.py --workdir=runs/quickstart

A study config lists runs; each is an ordinary training run in a folder of its own, named after the
hash of what it computes. Finished runs are reused and unfinished ones go on, so the same command
continues an interrupted study. Everything known about the runs is one flat table,
``results.jsonl``; the page (``report.html``, ``report.md``, PNG plots) is a function of it.
"""

import hashlib
import pathlib
import re
import shlex
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

import pretrain.config
from pretrain import cli, comparison, host, page, report, results
from pretrain.comparison import Row
from pretrain.errors import Interrupt, UserError
from pretrain.files import read_json

# What a run may take from another one of the study, and the config key that gets its workdir.
PARENTS = {"init_from": "init_from", "teacher": "distill.teacher"}


@dataclass(frozen=True)
class Run:
    """One entry of ``runs`` in a study config."""

    name: str  # unique; names the folder
    config: str  # such as "configs/ner.py"
    arg: str = ""  # argument of its get_config
    overrides: Mapping[str, Any] = field(default_factory=dict)  # dotted keys
    init_from: str = ""  # name of the run that it starts from
    teacher: str = ""  # name of the run that it imitates
    model: str = ""  # line of the comparison; "": the name
    task: str = "pretraining"
    labels: int = 0  # labelled examples; 0: all
    seed: int = 0  # pairs runs of different models

    @property
    def parents(self) -> dict[str, str]:
        """Names of other runs, by the field of this one that holds them."""
        return {key: getattr(self, key) for key in PARENTS if getattr(self, key)}

    def load(self, folders: Mapping[str, pathlib.Path] | None = None) -> ConfigDict:
        """The resolved training config; ``folders``: those of its parents, by field."""
        overrides = dict(self.overrides)
        overrides |= {PARENTS[key]: str(folder) for key, folder in (folders or {}).items()}
        return pretrain.config.load(self.config, self.arg or None, overrides)


@dataclass(frozen=True)
class Planned:
    """A run with its identity: what it computes, not where or when."""

    run: Run
    key: str
    folder: pathlib.Path
    folders: Mapping[str, pathlib.Path]  # of its parents, by field

    def result(self) -> dict | None:
        """The contents of ``result.json``, or None where the run is not finished."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            return read_json(path)
        except ValueError as error:
            raise UserError(
                f"{path}: broken result ({error}); delete it and the run goes on"
            ) from error


def parse_runs(entries: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Checks the ``runs`` of a study config and puts each run behind the one it starts from."""
    known = {f.name for f in fields(Run)}
    runs: dict[str, Run] = {}
    for index, entry in enumerate(entries):
        entry = dict(entry)
        where = f"runs[{index}]"
        if unknown := sorted(entry.keys() - known):
            raise UserError(f"{where}: unknown key {unknown[0]!r}, expected {', '.join(known)}")
        for key in ("name", "config"):
            if not entry.get(key):
                raise UserError(f"{where}.{key}: missing, expected a string")
        run = Run(**{"model": entry["name"], **entry})
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run.name):
            raise UserError(
                f"{where}.name: found {run.name!r}, expected letters, digits, '.', '_', '-'"
            )
        if run.name in runs:
            raise UserError(f"{where}.name: {run.name!r} names two runs, expected unique names")
        runs[run.name] = run
    return _topological(runs)


def _topological(runs: Mapping[str, Run]) -> list[Run]:
    """Each behind its parents, otherwise in the given order."""
    ordered: dict[str, Run] = {}

    def visit(run: Run, chain: tuple[str, ...]) -> None:
        if run.name in chain:
            names = " -> ".join([*chain[chain.index(run.name) :], run.name])
            raise UserError(f"runs: init_from goes in a circle: {names}")
        for key, name in run.parents.items():
            if name not in runs:
                raise UserError(
                    f"runs[{run.name}].{key}: no run is named {name!r}, "
                    f"expected one of {', '.join(runs)}"
                )
            visit(runs[name], (*chain, run.name))
        ordered.setdefault(run.name, run)

    for run in runs.values():
        visit(run, ())
    return list(ordered.values())


def plan(runs: Sequence[Run], workdir: pathlib.Path) -> list[Planned]:
    """Keys and folders of ordered runs.

    A key hashes the resolved config and the keys of the run's parents, so that a changed
    pretraining run changes all that stands on it, while the place of the workdir changes nothing.
    """
    planned: dict[str, Planned] = {}
    names: dict[str, str] = {}
    for run in runs:
        try:
            digest = pretrain.config.digest(run.load())
        except UserError as error:
            raise UserError(f"study run {run.name!r}: {error}") from error
        parents = {key: planned[name] for key, name in run.parents.items()}
        stands_on = "".join(f"{key} {parent.key}\n" for key, parent in parents.items())
        key = hashlib.sha256(f"{digest}\n{stands_on}".encode()).hexdigest()
        if key in names:
            raise UserError(
                f"runs: {names[key]!r} and {run.name!r} have equal configs, "
                f"expected different ones (is an override of the seed missing?)"
            )
        names[key] = run.name
        folder = workdir / "runs" / f"{run.name}-{key[:8]}"
        folders = {key: parent.folder for key, parent in parents.items()}
        planned[run.name] = Planned(run, key, folder, folders)
    return list(planned.values())


def choose(planned: Sequence[Planned], only: str) -> list[Planned]:
    """The runs whose name matches a regular expression, with those that they start from."""
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UserError(f"--only: {only!r} is no regular expression: {error}") from error
    wanted = {p.run.name for p in planned if pattern.search(p.run.name)}
    if not wanted:
        raise UserError(f"--only: no run matches {only!r}")
    for entry in reversed(planned):  # children stand behind what they start from
        if entry.run.name in wanted:
            wanted.update(entry.run.parents.values())
    return [p for p in planned if p.run.name in wanted]


def make_row(entry: Planned, error: str = "") -> Row:
    """The run's line of the flat table as its folder says; with ``error``, of a failed run."""
    run, result = entry.run, None if error else entry.result()
    labels = dict(
        name=run.name,
        model=run.model,
        task=run.task,
        labels=run.labels,
        seed=run.seed,
        init_from=run.init_from,
        teacher=run.teacher,
        key=entry.key,
        folder=entry.folder.name,
    )
    if result:
        return results.finished_row(labels, result, entry.folder / "metrics.jsonl")
    return labels | ({"status": "failed", "error": error} if error else {"status": "pending"})


def execute(planned: Sequence[Planned], chosen: Sequence[Planned], workdir: pathlib.Path) -> None:
    """Runs what is not finished, writing the table after each run.

    A failed run leaves out those that start from it. The others go on, and in the end `UserError`
    tells what failed.
    """
    from pretrain import train

    workdir.mkdir(parents=True, exist_ok=True)
    rows = {p.run.name: make_row(p) for p in planned}
    results.write(workdir, list(rows.values()))
    spent: dict[str, float] = {}
    failures: dict[str, str] = {}
    for number, entry in enumerate(chosen, 1):
        name, started = entry.run.name, time.monotonic()
        reused = rows[name]["status"] == "finished"
        if missing := [p for p in entry.run.parents.values() if p in failures]:
            failures[name] = f"{name!r} needs {missing[0]!r}"
            continue
        if not reused:
            try:
                train.train(entry.run.load(entry.folders), entry.folder)
                Interrupt.check()
                rows[name] = make_row(entry)
                if rows[name]["status"] != "finished":
                    raise UserError("ended without a result.json (stopped early?)")
            except Exception as error:
                Interrupt.check()
                reason = str(error)
                if not isinstance(error, UserError):
                    traceback.print_exc()
                    reason = f"{type(error).__name__}: {error}"
                rows[name] = make_row(entry, reason)
                failures[name] = f"{name!r} failed in {entry.folder}: {reason}"
            results.write(workdir, list(rows.values()))
        spent[name] = time.monotonic() - started
        took = "reused" if reused else page.duration(spent[name])
        left = _time_left(chosen[number:], rows, spent)
        print(f"[{number}/{len(chosen)}] {name}  {_score(rows[name])}  {took}{left}", flush=True)
    if failures:
        raise UserError(
            f"study run {'; '.join(failures.values())} (the same command goes on from here)"
        )


def _score(row: Row) -> str:
    if row["status"] == "failed":
        return "failed"
    value = row.get(f"scores.validation.{row['metric']}")
    return "no score" if value is None else f"{row['metric']} {value:.3f}"


def _time_left(todo: Sequence[Planned], rows: Mapping[str, Row], spent: Mapping[str, float]) -> str:
    """From the mean duration of finished runs of the same model and task, else of all."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for row in comparison.finished(rows.values()):
        measured = (row.get("train.seconds") or 0.0) + (row.get("train.compile_seconds") or 0.0)
        group = seconds.setdefault((row["model"], row["task"]), [])
        group.append(max(spent.get(row["name"], 0.0), measured))
    waiting = [p.run for p in todo if rows[p.run.name]["status"] != "finished"]
    if not waiting or not seconds:
        return ""
    overall = np.mean([s for group in seconds.values() for s in group])
    left = sum(np.mean(seconds.get((r.model, r.task), overall)) for r in waiting)
    return f"  (about {page.duration(left)} left)"


def build_report(study: ConfigDict, workdir: pathlib.Path, command: str) -> None:
    """Writes the page of the table in ``workdir``."""
    report.write(
        workdir,
        results.read(workdir),
        title=study.get("title", "Study"),
        question=study.get("question", ""),
        notes=tuple(study.get("notes", ())),
        command=command,
    )
    print(f"report: {workdir / 'report.html'}")


def run_study(
    study: ConfigDict, workdir: pathlib.Path, *, only: str = "", command: str = ""
) -> None:
    """Runs a study, or its runs that match ``only``, and writes its page.

    Where a run fails, the page of what is there is written before `UserError` is raised.
    """
    planned = plan(parse_runs(study.runs), workdir)
    chosen = choose(planned, only)
    try:
        execute(planned, chosen, workdir)
    except UserError:
        if (workdir / results.FILE).exists():
            build_report(study, workdir, command)
        raise
    build_report(study, workdir, command)


def command_line() -> str:
    """The command that makes the whole page, whatever part of it this process was asked for."""
    config = flags.FLAGS["config"]
    parts = ["python", "-m", "pretrain.study"]
    parts.append(f"--config={config_flags.get_config_filename(config)}")
    overrides = config_flags.get_override_values(config)
    parts += [f"--config.{key}={value}" for key, value in overrides.items()]
    return shlex.join([*parts, f"--workdir={flags.FLAGS.workdir}"])


def main() -> None:
    """Runs, lists or only reports, as the flags say."""
    values = flags.FLAGS
    study, workdir = values.config, pathlib.Path(values.workdir)
    if values.report_only:
        build_report(study, workdir, command_line())
    elif values.list:
        for entry in plan(parse_runs(study.runs), workdir):
            state = "finished" if entry.result() else "to do"
            start = "".join(f"  {key} {name}" for key, name in entry.run.parents.items())
            print(f"{entry.key[:8]}  {state:8}  {entry.run.name}{start}")
    else:
        from pretrain import processes

        host.keep_freed_memory()
        processes.refuse_several("pretrain.study")
        run_study(study, workdir, only=values.only, command=command_line())


if __name__ == "__main__":
    cli.define_config_flags()
    flags.DEFINE_bool("list", False, "Only list the runs with their state.")
    flags.DEFINE_string("only", "", "Only runs whose name matches this regular expression.")
    flags.DEFINE_bool("report_only", False, "Only write the page again, from results.jsonl.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(main, __doc__)

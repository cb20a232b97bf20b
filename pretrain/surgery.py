"""Surgery on the weights of another run: rename, leave out, take layers, tile, resize.

Each array of the new model comes from one of the source by an index along every dimension: the
layers that it takes, the heads that it repeats, the rows of a table that it keeps. Where the index
is `FRESH` the source has nothing and the initial value stays.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from pretrain import sharding
from pretrain.errors import UserError
from pretrain.trees import Names, flatten

FRESH = -1
TABLES = {"vocab": "vocab_size", "positions": "max_positions"}  # dimension: key of config.model
NOT_TILED = (*TABLES, "types", "classes", "layers")
STACK, FIRST = "layers", "first_layer"  # scanned layers; layer 0 where it stands by itself

Flat = dict[str, Any]  # arrays by path: trunk/layers/attention/query/kernel
Index = np.ndarray | None  # of the source, along one dimension; None: all, in order


class Rule(NamedTuple):
    """``regex -> new path`` or ``regex -> skip`` on the source's paths, ``-> fresh`` on the new."""

    text: str
    pattern: re.Pattern[str]
    action: str  # "skip", "fresh", or the new path with group references

    def apply(self, match: re.Match[str]) -> str:
        """The new path of an array of the source, or "skip"."""
        try:
            return match.expand(self.action)
        except (re.error, IndexError) as error:
            raise UserError(f"config.surgery.rules: '{self.text}': {error}") from None


@dataclass(frozen=True)
class Surgery:
    """``config.surgery``, parsed."""

    rules: tuple[Rule, ...] = ()
    layers: tuple[int, ...] = ()
    tile: bool = False
    resize: tuple[str, ...] = ()
    keep_model: bool = False


def parse(
    rules: str = "",
    layers: str = "",
    tile: bool = False,
    resize: str = "",
    keep_model: bool = False,
) -> Surgery:
    """The keys of ``config.surgery``, checked: `UserError` for what is malformed."""
    numbers = [part.strip() for part in layers.split(",")] if layers.strip() else []
    if not all(re.fullmatch("[0-9]+", part) for part in numbers):
        raise UserError(
            f"config.surgery.layers: found {layers!r}, expected numbers such as '0,2,4,7,9,11'"
        )
    tables = tuple(part.strip() for part in resize.split(",")) if resize.strip() else ()
    if unknown := [name for name in tables if name not in TABLES]:
        raise UserError(
            f"config.surgery.resize: found {unknown[0]!r}, expected {', '.join(TABLES)} or "
            f"'{','.join(TABLES)}'"
        )
    texts = [text.strip() for text in re.split(r"[;\n]", rules) if text.strip()]
    return Surgery(
        tuple(_rule(text) for text in texts), tuple(map(int, numbers)), tile, tables, keep_model
    )


def _rule(text: str) -> Rule:
    sides = [side.strip() for side in text.split("->")]
    if len(sides) != 2 or not all(sides):
        raise UserError(
            f"config.surgery.rules: found '{text}', expected 'regex -> new path', 'regex -> skip' "
            "or 'regex -> fresh', with ';' between rules"
        )
    try:
        return Rule(text, re.compile(sides[0]), sides[1])
    except re.error as error:
        raise UserError(f"config.surgery.rules: '{text}': {error}") from None


class Loaded(NamedTuple):
    """An array of the new model with values of the source."""

    path: str
    sources: tuple[str, ...]  # paths of the source
    size: int  # how many of its numbers are the source's
    notes: dict[str, str]  # what was done to it, by kind


@dataclass(frozen=True)
class Report:
    """What came of it. Every array of the new model and of the source is named."""

    origin: str
    size: int  # numbers in the new model
    layers: list[str]
    loaded: list[Loaded]
    fresh: list[str]
    left: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        """A line for each array."""
        lines = [f"from {self.origin}:", *self.layers]
        for path, _, _, notes in self.loaded:
            told = "; ".join(f"{kind} {note}" for kind, note in notes.items())
            lines.append(f"loaded  {path}{': ' * bool(told)}{told}")
        for kind in ("fresh", "left", "skipped"):
            lines += [f"{kind:7} {path}" for path in getattr(self, kind)]
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """A few lines, long lists shortened."""
        size = sum(entry.size for entry in self.loaded)
        lines = [f"loaded {len(self.loaded)} arrays, {size:,} of {self.size:,} parameters"]
        lines += self.layers
        for kind in dict.fromkeys(kind for entry in self.loaded for kind in entry.notes):
            told = [f"{e.path} {e.notes[kind]}" for e in self.loaded if kind in e.notes]
            lines.append(f"{kind} {len(told)}: {_shortened(told)}")
        for kind in ("fresh", "left", "skipped"):
            if paths := getattr(self, kind):
                lines.append(f"{kind} {len(paths)}: {_shortened(paths)}")
        return "\n  ".join([f"from {self.origin}:", *lines])


def _shortened(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def tiled(new: int, old: int) -> np.ndarray:
    """``[new]``: the old positions stand in the middle and go on, wrapped around, to both sides.

    ``tile_weights_from_middle``, by which ModernBERT-large starts from base (Warner et al. 2024).
    """
    return (np.arange(new) - (new - old) // 2) % old


def stretched(new: int, old: int) -> list[int]:
    """The old layer from which each of the ``new`` layers starts: ``round(i * old / new)``.

    As in ModernBERT and Gopher (Rae et al. 2021), but never beyond the last one.
    """
    return [min(round(i * old / new), old - 1) for i in range(new)]


def transplant(
    params: Any,
    source: Any,
    surgery: Surgery | None = None,
    *,
    origin: str,
    names: Mapping[str, Names] | None = None,
    rows: Mapping[str, np.ndarray] | None = None,
) -> tuple[Any, Report]:
    """``params`` with what ``surgery`` makes of the arrays of ``source``.

    Args:
      params: the new model's, initialised: nested dicts of arrays on their shardings.
      source: the other model's. An array that is taken as it is may lie on devices; others are
        worked on in host memory, one by one.
      origin: the source's name in messages.
      names: of the dimensions, by path of ``params``; one without a name cannot be resized.
      rows: by "vocab" or "positions", the source's row for each row of the new tables, or `FRESH`,
        as for all rows beyond; by default row 0 for row 0, and so on.

    Raises:
      UserError: a rule without effect, two arrays for one path, layers that are not there, a shape
        that differs where no key allows it, or nothing in common.
    """
    target, surgery = flatten(params), surgery or Surgery()
    given = _given(flatten(source), target, surgery.rules, origin)
    graft = _Graft(target, given, surgery, origin, names or {}, rows or {})
    leaves, loaded, fresh = [], [], []
    for path, initial in target.items():
        leaf, entry = graft.leaf(path, initial)
        leaves.append(leaf)
        if entry is None:
            fresh.append(path)
        else:
            loaded.append(entry)
    if not loaded:
        raise UserError(f"config.init_from: {origin} has no array in common with this model")
    used = {name for entry in loaded for name in entry.sources}
    left = [name for name in given.was.values() if name not in used]
    size = sum(leaf.size for leaf in leaves)
    report = Report(origin, size, graft.told(), loaded, fresh, left, given.skipped)
    return jax.tree.unflatten(jax.tree.structure(params), leaves), report


class _Given(NamedTuple):
    """The source's arrays as the rules leave them."""

    arrays: Flat  # by new path
    was: dict[str, str]  # their path in the source, by new path
    skipped: list[str]
    kept: set[str]  # paths of the new model that stay fresh


def _given(source: Flat, target: Flat, rules: Sequence[Rule], origin: str) -> _Given:
    """Applies the rules: the first that matches decides, of a path that "fresh" would match too."""
    given, rule_of = _Given({}, {}, [], set()), {}
    made: list[list[str]] = [[] for _ in rules]  # paths that each rule decides on
    for old, array in source.items():
        path, number = old, len(rules)
        for i, rule in enumerate(rules):
            if rule.action != "fresh" and (match := rule.pattern.fullmatch(old)):
                path, number = rule.apply(match), i
                made[i].append(path)
                break
        if path == "skip":
            given.skipped.append(old)
            continue
        if path in given.arrays:
            rule = rules[min(number, rule_of[path])]
            raise UserError(
                f"config.surgery.rules: '{rule.text}' puts both {given.was[path]} and {old} of "
                f"{origin} at {path}; expected one of them"
            )
        given.arrays[path], given.was[path], rule_of[path] = array, old, number
    for path in target:
        for i, rule in enumerate(rules[: rule_of.get(path, len(rules))]):
            if rule.action == "fresh" and rule.pattern.fullmatch(path):
                made[i].append(path)
                given.kept.add(path)
                break
    for rule, paths in zip(rules, made, strict=True):
        if not paths:
            whose, known = ("this model", target) if rule.action == "fresh" else (origin, source)
            raise UserError(
                f"config.surgery.rules: '{rule.text}' matches no array of {whose}, or none that "
                f"the rules before it leave; found {_shortened(known, 6)}"
            )
        if rule.action not in ("skip", "fresh") and target.keys().isdisjoint(paths):
            raise UserError(
                f"config.surgery.rules: '{rule.text}' makes {_shortened(paths)}, which this model "
                f"lacks; expected some of {_shortened(target, 6)}"
            )
    return given


class _Place(NamedTuple):
    """A path among layers: ``parent/layers/rest`` or ``parent/first_layer/rest``."""

    parent: str
    kind: str
    rest: str

    def path(self, kind: str) -> str:
        return "/".join(filter(None, (self.parent, kind, self.rest)))


def _place(path: str) -> _Place | None:
    parts = path.split("/")
    for i, part in enumerate(parts[:-1]):
        if part in (STACK, FIRST):
            return _Place("/".join(parts[:i]), part, "/".join(parts[i + 1 :]))
    return None


class _Layers(NamedTuple):
    depth: int
    alone: bool  # layer 0 stands by itself, the stack begins with layer 1


def _layers(arrays: Flat) -> dict[str, _Layers]:
    """The layers of each parent."""
    places = [(place, array) for path, array in arrays.items() if (place := _place(path))]
    alone = {place.parent for place, _ in places if place.kind == FIRST}
    sizes = {place.parent: array.shape[0] for place, array in places if place.kind == STACK}
    return {k: _Layers(n + (k in alone), k in alone) for k, n in sizes.items()}


class _Part(NamedTuple):
    """Where an array of the new model comes from."""

    sources: tuple[str, ...]  # paths, after the rules
    array: Any
    layers: Index = None  # for each layer of the new array; None: the array stands for itself
    single: bool = False  # the new array is one layer, without their dimension


class _Graft:
    """Makes each array of the new model; see `transplant`."""

    def __init__(
        self,
        target: Flat,
        given: _Given,
        surgery: Surgery,
        origin: str,
        names: Mapping[str, Names],
        rows: Mapping[str, np.ndarray],
    ):
        self.target, self.given, self.surgery, self.origin = target, given, surgery, origin
        self.names, self.rows = names, rows
        self.here, self.there = _layers(target), _layers(given.arrays)
        self.chosen = {
            parent: self.choose(parent, there, self.here[parent].depth)
            for parent, there in self.there.items()
            if parent in self.here
        }
        if surgery.layers and not self.chosen:
            raise UserError(
                f"config.surgery.layers: {origin} has layers in {_shortened(self.there) or 'none'},"
                f" this model in {_shortened(self.here) or 'none'}; expected one path"
            )

    def choose(self, parent: str, there: _Layers, want: int) -> list[int]:
        """The source's layer for each of a parent's ``want`` layers."""
        numbers = self.surgery.layers
        if numbers and max(numbers) >= there.depth:
            raise UserError(
                f"config.surgery.layers: found {max(numbers)}, expected 0 to {there.depth - 1}: "
                f"{parent}/{STACK} of {self.origin} has {there.depth} layers"
            )
        taken = list(numbers or range(there.depth))
        if self.surgery.tile and want > len(taken):
            return [taken[i] for i in stretched(want, len(taken))]
        if want == len(taken):
            return taken
        if numbers:
            raise UserError(
                f"config.surgery.layers: found {len(taken)} layers, expected {want}, as many as "
                f"{parent}/{STACK} has in this model"
            )
        repeat = ", config.surgery.tile would repeat some" if want > there.depth else ""
        raise UserError(
            f"config.init_from: {parent}/{STACK} has {there.depth} layers in {self.origin}, "
            f"expected {want}; config.surgery.layers would choose among them{repeat}"
        )

    def told(self) -> list[str]:
        """Which layers are taken, where it is not all of them in order."""
        lines = []
        for parent, taken in self.chosen.items():
            every = range(self.there[parent].depth)
            if taken != list(every):
                left = ", ".join(str(i) for i in every if i not in taken) or "none"
                taken = ", ".join(map(str, taken))
                lines.append(f"layers of {parent}: {taken} of {len(every)}; left: {left}")
        return lines

    def find(self, path: str) -> _Part | None:
        """The source of one array of the new model, if it has any."""
        arrays, place = self.given.arrays, _place(path)
        if place is None or place.parent not in self.chosen:
            return _Part((path,), arrays[path]) if path in arrays else None
        here, there = self.here[place.parent], self.there[place.parent]
        taken = np.array(self.chosen[place.parent])
        if here.alone == there.alone and np.array_equal(taken, np.arange(there.depth)):
            return _Part((path,), arrays[path]) if path in arrays else None
        single = place.kind == FIRST
        wanted = taken[:1] if single else taken[int(here.alone) :]
        # The rows of one array are the layers from `start` on: a layer 0 that stands by itself
        # goes in front of the stack, and may lack what the others have (the first norm).
        first, stack = (p if (p := place.path(k)) in arrays else "" for k in (FIRST, STACK))
        first = first if 0 in wanted else ""
        stack = stack if wanted.any() or not there.alone else ""
        if not first and not stack:
            return None
        start = int(there.alone and not first)
        array = arrays[stack] if stack else np.asarray(arrays[first])[None]
        if first and stack:
            rows = np.asarray(arrays[first])[None], np.asarray(array)
            if rows[0].shape[1:] != rows[1].shape[1:]:
                raise self.mismatch(path, rows[1].shape)
            array = np.concatenate(rows)
        wanted = np.where(wanted - start < len(array), wanted - start, FRESH)
        return _Part(tuple(filter(None, (first, stack))), array, wanted, single)

    def leaf(self, path: str, initial: Any) -> tuple[Any, Loaded | None]:
        """The new value of an array and what there is to tell; None where it stays as it is."""
        part = None if path in self.given.kept else self.find(path)
        if part is None or (part.layers is not None and part.layers.max() == FRESH):
            return initial, None
        sources = tuple(self.given.was[p] for p in part.sources)
        notes = {"renamed": f"from {' and '.join(sources)}"} if sources != part.sources else {}
        names, want = self.names.get(path, (None,) * initial.ndim), initial.shape
        if part.single:
            names, want = ("layers", *names), (1, *want)
        have = part.array.shape
        if len(have) != len(want):
            raise self.mismatch(path, have)
        indices = [
            self.along(path, part, name, axis, new, notes)
            for axis, (name, new) in enumerate(zip(names, want, strict=True))
        ]
        array = part.array
        if part.single or any(index is not None for index in indices):
            before = sharding.to_host(initial).reshape(want)
            array = _taken(sharding.to_host(array), indices, before).reshape(initial.shape)
        array = sharding.place(array.astype(initial.dtype), initial.sharding)
        sizes = (n if i is None else (i != FRESH).sum() for i, n in zip(indices, want, strict=True))
        return array, Loaded(path, sources, int(math.prod(sizes)), notes)

    def along(
        self, path: str, part: _Part, name: str | None, axis: int, new: int, notes: dict[str, str]
    ) -> Index:
        """The index along one dimension, of size ``new``."""
        have = part.array.shape
        old = have[axis]
        if axis == 0 and part.layers is not None:
            lacking = np.flatnonzero(part.layers == FRESH) + self.here[_place(path).parent].alone
            if lacking.size:
                notes["partly fresh"] = f"layer {', '.join(map(str, lacking))}"
            return part.layers
        if name in self.surgery.resize:
            known = self.rows.get(name, np.arange(min(old, new)))
            if len(known) > new:
                raise UserError(
                    f"config.surgery.resize: {path} holds {new} of {len(known)} rows; expected "
                    "the source's tokenizer for a vocabulary in parts"
                )
            index = np.full(new, FRESH)
            index[: len(known)] = known
            if not np.array_equal(index, np.arange(old)):
                kept = (index != FRESH).sum()
                notes["resized"] = f"from {have}: {kept} rows loaded, {new - kept} fresh"
                return index
        elif self.surgery.tile and name == "heads":
            index = self.heads(path, have, axis, new)
            if not np.array_equal(index, np.arange(old)):
                notes["tiled"] = f"from {have}"
                return index
        elif self.surgery.tile and new > old and name not in NOT_TILED:
            notes["tiled"] = f"from {have}"
            return tiled(new, old)
        elif old != new:
            raise self.mismatch(path, have, name, new > old)
        return None

    def heads(self, path: str, have: tuple[int, ...], axis: int, new: int) -> np.ndarray:
        """Whole heads; those of queries that share a head of keys stay with it."""
        old, keys = have[axis], (have[axis], new)
        *parent, kind, _ = path.split("/")
        if kind in ("query", "out"):
            key = "/".join([*parent, "key", "kernel"])
            part = self.find(key) if key in self.target else None
            if part is not None:
                keys = (part.array.shape[-2], self.target[key].shape[-2])
        groups = (old // keys[0], new // keys[1])
        if keys[1] < keys[0] or groups[1] < groups[0]:
            raise self.mismatch(path, have, "heads")
        outer, inner = tiled(keys[1], keys[0]), tiled(groups[1], groups[0])
        return (outer[:, None] * groups[0] + inner[None, :]).reshape(-1)

    def mismatch(
        self, path: str, have: tuple[int, ...], name: str | None = None, larger: bool = False
    ) -> UserError:
        if name in TABLES:
            hint = f"config.surgery.resize={name} would allow it"
        elif larger and name not in NOT_TILED:
            hint = "config.surgery.tile would allow it"
        else:
            hint = f"config.surgery.rules='{path} -> fresh' would leave it out"
        want = self.target[path].shape
        return UserError(
            f"config.init_from: {path} is {have} in {self.origin}, expected {want}; {hint}"
        )


def _taken(array: np.ndarray, indices: Sequence[Index], initial: np.ndarray) -> np.ndarray:
    """``array`` at the indices along each dimension, and ``initial`` where one is `FRESH`."""
    for axis, index in enumerate(indices):
        if index is not None:
            array = np.take(array, np.maximum(index, 0), axis)
    for axis, index in enumerate(indices):
        if index is not None:
            fresh = (slice(None),) * axis + (index == FRESH,)
            array[fresh] = initial[fresh]
    return array

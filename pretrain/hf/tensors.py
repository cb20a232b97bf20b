"""How an array of ours and a tensor of a Hugging Face checkpoint are the same numbers.

A family declares its tensors as a list of `Tensor`; reading and writing a checkpoint are two loops
over that list. Paths of ours are joined by slashes: ``trunk/layers/ffn/in/kernel``.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

Shape = tuple[int, ...]

VECTORS = ("bias", "scale")  # leaves that checkpoints keep flat, whatever our shape


@dataclasses.dataclass(frozen=True)
class Layout:
    """A matrix. Ours: ``inputs`` contracted axes, then the others; theirs: two-dimensional."""

    inputs: int = 1
    transposed: bool = True  # theirs is [out, in], as torch.nn.Linear has it, else [in, out]


LINEAR, LINEAR_2 = Layout(), Layout(inputs=2)  # LINEAR_2: from [heads, kv], as attention/out is
CONV1D, CONV1D_2 = Layout(1, False), Layout(2, False)  # of GPT-2
SAME = None  # a table, or a vector of any shape of ours


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor by name.

    Attributes:
      theirs: its name in a checkpoint with a head, ``{}`` where a layer's index stands. Our arrays
        then have the layers as leading axes, one for each ``{}``.
      ours: the paths whose concatenation along the output axis it is, mostly one.
      layout: of a matrix; `SAME` for the rest.
      first: index of the layer that is the first of our stack.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout | None = SAME
    first: int = 0

    def indexed(self, shapes: Sequence[Shape]) -> Iterator[tuple[str, Shape]]:
        """Each name in a checkpoint and its index into our arrays; ``shapes`` are theirs."""
        for index in np.ndindex(shapes[0][: self.num_stacked]):
            layers = (index[0] + self.first, *index[1:]) if index else ()
            yield self.theirs.format(*layers), index

    @property
    def num_stacked(self) -> int:
        """Leading axes of our arrays that count layers."""
        return self.theirs.count("{}")

    def their_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Of one tensor in a checkpoint, from the ``shapes`` of our whole arrays."""
        parts = [shape[self.num_stacked :] for shape in shapes]
        if self.layout is not None:
            rows = math.prod(parts[0][: self.layout.inputs])
            columns = sum(math.prod(part[self.layout.inputs :]) for part in parts)
            return (columns, rows) if self.layout.transposed else (rows, columns)
        if len(parts) > 1 or self.ours[0].rpartition("/")[2] in VECTORS:
            return (sum(map(math.prod, parts)),)
        return parts[0]

    def to_ours(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """The parts of one tensor of a checkpoint, shaped as slices of our whole arrays."""
        if self.layout is not None and self.layout.transposed:
            array = array.T
        inputs = self.layout.inputs if self.layout else 0
        parts = [shape[self.num_stacked :] for shape in shapes]
        if len(parts) == 1:
            return [array.reshape(parts[0])]
        widths = [math.prod(part[inputs:]) for part in parts]
        pieces = np.split(array, np.cumsum(widths)[:-1], axis=-1)
        return [piece.reshape(part) for piece, part in zip(pieces, parts, strict=True)]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """One tensor of a checkpoint from slices of our arrays, contiguous."""
        if self.layout is not None:
            rows = math.prod(arrays[0].shape[: self.layout.inputs])
            array = np.concatenate([x.reshape(rows, -1) for x in arrays], axis=-1)
            return np.ascontiguousarray(array.T if self.layout.transposed else array)
        if len(arrays) > 1 or self.ours[0].rpartition("/")[2] in VECTORS:
            return np.concatenate([x.reshape(-1) for x in arrays])
        return np.ascontiguousarray(arrays[0])


def _paths(ours: str | Sequence[str], leaf: str) -> tuple[str, ...]:
    return tuple(f"{path}/{leaf}" for path in ([ours] if isinstance(ours, str) else ours))


def linear(
    theirs: str, ours: str | Sequence[str], layout: Layout = LINEAR, first: int = 0
) -> list[Tensor]:
    """The weight and the bias of a dense layer (of several, where theirs fuses them)."""
    return [
        Tensor(f"{theirs}.weight", _paths(ours, "kernel"), layout, first),
        Tensor(f"{theirs}.bias", _paths(ours, "bias"), SAME, first),
    ]


def norm(theirs: str, ours: str, first: int = 0) -> list[Tensor]:
    """The weight and the bias of a norm."""
    return [
        Tensor(f"{theirs}.weight", _paths(ours, "scale"), SAME, first),
        Tensor(f"{theirs}.bias", _paths(ours, "bias"), SAME, first),
    ]

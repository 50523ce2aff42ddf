"""Which axis of a stored array is which: what a file states of them is honoured or refused, for every format alike.

A reader hands over the shape and the names that its file states, and gets a :class:`Layout`: where z, y and x lie, and
which index of every other axis is taken. Axes of length 1 are dropped wherever they stand. Channels and time points
are chosen, never guessed, and never taken for sections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.stored import StoredArray

SPACE = ("z", "y", "x")
_SPELLINGS = {
    spelling: axis
    for axis, spellings in {
        "z": "z slice slices section sections plane planes depth",
        "y": "y row rows",
        "x": "x column columns col cols",
        "c": "c ch channel channels s sample samples rgb colour color",
        "t": "t time frame frames timepoint timepoints",
        "": "dim axis unknown none",
    }.items()
    for spelling in spellings.split()
}
_WORDS = {"c": ("channels", "--channel"), "t": ("time points", "--time")}


@dataclass(frozen=True)
class Choice:
    """What to take of a file that holds more than one stack, or does not say what it holds.

    Attributes:
        axes: names of the stored axes, the slowest first, of z, y, x, c (channels) and t (time); they win over those
            that the file states. Axes of length 1 may be left out.
        channel: which channel, from 0.
        time: which time point, from 0.
        series: which image of a TIFF or a folder of images, by number from 0 or by name; which dataset of an HDF5.
        pattern: which files of a folder are sections, as in ``s_*.tif``.
        nodata: value of voxels that were not measured; chunks that are read as such may be missing.
        labels: whether voxels are labels of objects instead of grey values.

    Raises:
        InputError: axes that do not hold each of z, y and x once.
    """

    axes: str | None = None
    channel: int | None = None
    time: int | None = None
    series: str | None = None
    pattern: str | None = None
    nodata: float | None = None
    labels: bool = False

    def __post_init__(self) -> None:
        axes = (self.axes or "zyx").lower()
        if set(axes) - set("zyxct") or len(set(axes)) < len(axes) or not set("zyx") <= set(axes):
            raise InputError(
                f"axes {self.axes!r} are not known; expected z, y and x once each, the slowest first, and c or t for "
                f"channels and time points where there are such, as in zyx, xyz or tczyx."
            )

    def index(self, axis: str) -> int | None:
        """The channel or time point that is chosen, if any."""
        return {"c": self.channel, "t": self.time}.get(axis)


NOTHING_CHOSEN = Choice()


@dataclass(frozen=True)
class Layout:
    """How a stored array is one stack.

    Attributes:
        names: of the stored axes: ``z``, ``y``, ``x``, ``c``, ``t``, or ``""`` for one of length 1 without a name.
        shape: of the stored array.
        fixed: index of each axis that is not z, y or x, by position.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    fixed: dict[int, int] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int, int]:
        """Positions of z, y and x among the stored axes."""
        z, y, x = (self.names.index(axis) for axis in SPACE)
        return (z, y, x)

    def zyx(self, values: Sequence[Any]) -> list[Any]:
        """One value for each stored axis, or for each stored axis of space, as those of z, y and x."""
        if len(values) == len(self.shape):
            return [values[place] for place in self.order]
        spatial = [name for name in self.names if name in SPACE]
        return [values[spatial.index(axis)] for axis in SPACE]

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        z, y, x = self.zyx(self.shape)
        return (z, y, x)

    @property
    def is_plain(self) -> bool:
        """Whether the array is z, y, x as it lies, but for axes of length 1."""
        return list(self.order) == sorted(self.order) and all(self.shape[place] == 1 for place in self.fixed)

    def index(self, box: Box) -> tuple[slice | int, ...]:
        """A box as the index of the stored array that reads it."""
        parts: list[slice | int] = [self.fixed.get(place, 0) for place in range(len(self.shape))]
        for place, part in zip(self.order, box, strict=True):
            parts[place] = part
        return tuple(parts)

    def turn(self, voxels: np.ndarray) -> np.ndarray:
        """What :meth:`index` read, as (z, y, x)."""
        stored = sorted(self.order)
        return voxels.transpose([stored.index(place) for place in self.order])

    def take(self, voxels: np.ndarray) -> np.ndarray:
        """The stack, as a view of the whole stored array."""
        whole = tuple(slice(0, length, 1) for length in self.shape_zyx)
        return self.turn(voxels[self.index((whole[0], whole[1], whole[2]))])

    def stored(
        self, dtype: np.dtype, chunks: Sequence[int], read: Callable[[tuple[slice | int, ...]], np.ndarray]
    ) -> StoredArray:
        """The stack on disk; ``chunks`` are those of the stored array, and ``read`` takes an index of it."""
        z, y, x = self.zyx(chunks)
        return StoredArray(self.shape_zyx, dtype, (z, y, x), partial(_read, self, read))


def lay_out(
    shape: Sequence[int], names: Sequence[str | None] | None, name: str, choice: Choice = NOTHING_CHOSEN
) -> Layout:
    """Where z, y and x lie in a stored array.

    Args:
        shape: of the stored array.
        names: of its axes, as the file states them; ``None`` if it does not. One of several without a name holds the
            sections if no other does.
        name: what messages call the array.
        choice: what the user chose.

    Raises:
        InputError: no single stack; the message lists the axes, and says which option chooses.
    """
    shape = tuple(map(int, shape))
    if choice.axes is not None:
        known = _as_chosen(choice.axes.lower(), shape, name)
    elif names is not None and len(names) != len(shape):
        raise InputError(
            f"{name} states {len(names)} axes, {', '.join(map(str, names))}, and has shape {shape}. "
            f"Say which is which, as in --axes zyx."
        )
    else:
        known = [axis_of(one) for one in names or [None] * len(shape)]
        known = known if any(known) else _unnamed(shape)
    unnamed = [place for place, axis in enumerate(known) if not axis and shape[place] > 1]
    if len(unnamed) == 1 and "z" not in known and {"y", "x"} <= set(known):
        known[unnamed[0]] = "z"
    _drop_repeated(known, shape)
    _check_space(known, shape, names, name)
    fixed = {
        place: _chosen_index(axis, length, known, shape, name, choice)
        for place, (axis, length) in enumerate(zip(known, shape, strict=True))
        if axis not in SPACE
    }
    for axis, (words, option) in _WORDS.items():
        if choice.index(axis) not in (None, 0) and axis not in known:
            raise InputError(f"{name} has no {words} ({_described(known, shape)}); leave out {option}.")
    return Layout(tuple(known), shape, fixed)


def axis_of(name: str | None) -> str:
    """``z``, ``y``, ``x``, ``c`` or ``t`` for a name of an axis, ``""`` for none, and other names as they are."""
    plain = re.sub(r"\^$", "", (name or "").strip().casefold())
    stem = re.sub(r"^(phony_)?(dim|axis)_?\d*$", "", plain)
    return _SPELLINGS.get(stem, stem)


def _as_chosen(axes: str, shape: tuple[int, ...], name: str) -> list[str]:
    long = [place for place, length in enumerate(shape) if length > 1]
    if len(axes) == len(shape):
        return list(axes)
    if len(axes) != len(long):
        raise InputError(f"{name} has shape {shape}; expected as many axes as --axes {axes} names.")
    known = [""] * len(shape)
    for place, axis in zip(long, axes, strict=True):
        known[place] = axis
    return known


def _unnamed(shape: tuple[int, ...]) -> list[str]:
    """Names of axes that have none: the last three that are left without axes of length 1 are z, y, x."""
    places = list(range(len(shape)))
    while len(places) > 3 and (ones := [place for place in places if shape[place] == 1]):
        last = places[-1]
        # an axis behind x is one of colours; else those before z go first
        places.remove(ones[0] if ones[0] == places[0] else last if last in ones else ones[0])
    known = [""] * len(shape)
    if len(places) == 3:
        for place, axis in zip(places, SPACE, strict=True):
            known[place] = axis
    return known


def _drop_repeated(known: list[str], shape: tuple[int, ...]) -> None:
    """Of several axes of one name, those of length 1 do not count."""
    for axis in set(known) - {""}:
        places = [place for place, other in enumerate(known) if other == axis]
        for place in places if len(places) > 1 else []:
            if shape[place] == 1 and known.count(axis) > 1:
                known[place] = ""


def _check_space(known: list[str], shape: tuple[int, ...], names: Sequence[str | None] | None, name: str) -> None:
    found = _described([str(one) for one in names] if names and any(names) else known, shape)
    if all(known.count(axis) == 1 for axis in SPACE):
        return
    stacked = next((axis for axis in ("c", "t") if axis in known and shape[known.index(axis)] > 1), None)
    if "z" not in known and stacked and {"y", "x"} <= set(known):
        words = _WORDS[stacked][0]
        as_sections = "".join("z" if axis == stacked else axis for axis in known if axis)
        raise InputError(
            f"{name} has {shape[known.index(stacked)]} {words} and no sections ({found}); expected one grey-value "
            f"stack z, y, x. If they are sections that were saved as {words}, say so with --axes {as_sections}."
        )
    long_axes = sum(length > 1 for length in shape)
    few = "" if len(shape) > 2 else " Give the whole stack, or the folder that holds all sections."
    examples = {4: "czyx and --channel 0", 5: "tczyx, --channel 0 and --time 0"}
    remedy = few or f" Say which axis is which: --axes {examples.get(long_axes, 'zyx')}."
    raise InputError(f"{name} has {found}; expected one grey-value stack z, y, x.{remedy}")


def _chosen_index(axis: str, length: int, known: list[str], shape: tuple[int, ...], name: str, choice: Choice) -> int:
    chosen = choice.index(axis)
    words, option = _WORDS.get(axis, ("", ""))
    if chosen is not None and not 0 <= chosen < length:
        raise InputError(f"{name} has {length} {words}, numbered from 0; {option} {chosen} is none of them.")
    if chosen is not None:
        return chosen
    if length == 1:
        return 0
    found = _described(known, shape)
    if not words:
        raise InputError(
            f"{name} has an axis {axis or 'without a name'} of length {length} ({found}); expected one grey-value "
            f"stack z, y, x. Say which axis is which with --axes, or save one stack alone."
        )
    listed = ", ".join(map(str, range(min(length, 12)))) + (", ..." if length > 12 else "")
    flat = shape[known.index("z")] == 1
    hint = " If they are sections, say so with --axes." if flat else ""
    raise InputError(
        f"{name} has {length} {words} ({found}); expected one grey-value stack z, y, x. "
        f"Choose one with {option} N, of {listed}.{hint}"
    )


def _described(names: Sequence[str], shape: tuple[int, ...]) -> str:
    """``axes c, z, y, x and shape (2, 6, 20, 14)``"""
    listed = ", ".join(one or "(unnamed)" for one in names) if any(names) else "(unnamed)"
    return f"axes {listed} and shape {shape}"


def _read(layout: Layout, read: Callable[[tuple[slice | int, ...]], np.ndarray], box: Box) -> np.ndarray:
    return layout.turn(read(layout.index(box)))

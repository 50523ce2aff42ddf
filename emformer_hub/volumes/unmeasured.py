"""Voxels that were not measured: "no data" values, masks, and constant margins such as an alignment leaves.

Masks are made for one box at a time, so that the mask of a whole stack is never in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.boxes import Box, evenly_spaced, middle, numbers, shape_of
from emformer_hub.volumes.stored import StoredArray

HUGE = 1e30
"""No grey value is as large; programs write this or the largest float where there are no data."""
_MARKS = {"i": (-32768,), "f": (-32768.0, -9999.0)}
"""Values that stand for no data where they lie far below all others, by kind of dtype."""
MIN_PADDING = 4
"""Side, in voxels, of the smallest square of the margins' value that counts as margin."""
_LOOKED_AT = 16  # sections whose corners are examined
_CORNER = 256  # side of a corner in voxels
_CELLS = 48  # cells along each side of the grid on which the largest measured box is searched for
_STEP, _STRAY = 0.5, 0.1
"""What tells a margin from tissue that is merely saturated, where it ends. Beyond a margin the image begins at once:
voxels differ from its value by at least ``_STEP`` of what voxels elsewhere do, and at most a share ``_STRAY`` of them
has it. Beyond saturated tissue, grey values fade in, with noise."""


def not_measured(voxels: np.ndarray, hidden: np.ndarray | None = None) -> tuple[np.ndarray, float] | None:
    """Find voxels that hold NaN, infinity, a huge number or a "no data" value, and what the first of them holds.

    Args:
        voxels: any shape.
        hidden: bool, of the same shape; True for voxels to ignore.

    Returns:
        A mask, and the value; ``None`` if all voxels may have been measured.
    """
    if voxels.dtype.kind == "f":
        if voxels.dtype == np.float16:  # knows no huge numbers
            broken = ~np.isfinite(voxels)
        else:
            with np.errstate(invalid="ignore"):
                broken = ~(np.abs(voxels) < HUGE)
        broken = broken if hidden is None else broken & ~hidden
        if broken.any():
            return broken, float(voxels[broken][0])
    for mark in _MARKS.get(voxels.dtype.kind, ()):
        found = voxels == mark
        others = voxels[~found if hidden is None else ~(found | hidden)]
        found = found if hidden is None else found & ~hidden
        if found.any() and others.size:
            lowest, highest = float(others.min()), float(others.max())
            if lowest - mark > 2 * max(highest - lowest, 1.0):
                return found, float(mark)
    return None


def hidden_voxels(data: Any, name: str, nodata: float | None = None, measured: Any = None) -> StoredArray | None:
    """Mask of the voxels that hold the "no data" value or lie outside a mask, bool ``(z, y, x)``, True for these.

    Args:
        data: ``(z, y, x)``, an array or on disk; the mask of a masked array counts, too.
        name: what messages call it.
        nodata: the "no data" value, which may be NaN. If it is 1e30 or more, every value from there on counts.
        measured: ``(z, y, x)``, or ``(1, y, x)`` for all sections: nonzero where voxels were measured.

    Raises:
        InputError: the dtype has no such value, or the mask has another shape.
    """
    of_array = mask_of(data)
    if nodata is None and measured is None and of_array is None:
        return None
    dtype = np.dtype(data.dtype)
    if nodata is not None and dtype.kind in "iu" and not _fits(nodata, dtype):
        raise InputError(f"{name} holds {dtype} voxels, none of which can be {nodata:g}. Is --nodata right?")
    if measured is not None and tuple(measured.shape) not in (tuple(data.shape), (1, *data.shape[1:])):
        raise InputError(
            f"the mask of {name} has shape {tuple(measured.shape)}; expected {tuple(data.shape)}, as the stack has, or "
            f"one section of it for all."
        )
    chunks = getattr(data, "chunks", (1, *data.shape[1:]))
    read = partial(_read_hidden, data, nodata, measured, of_array)
    return StoredArray(tuple(data.shape), np.dtype(bool), chunks, read)


def mask_of(data: Any) -> np.ndarray | None:
    """The mask of a masked array; ``None`` for one that hides nothing, and for anything else."""
    return None if np.ma.getmask(data) is np.ma.nomask else np.ma.getmaskarray(data)


def _fits(value: float, dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max


def _read_hidden(data: Any, nodata: float | None, measured: Any, of_array: np.ndarray | None, box: Box) -> np.ndarray:
    hidden = np.zeros(shape_of(box), bool)
    if of_array is not None:
        hidden |= of_array[box]
    if measured is not None:
        part = np.asarray(measured[box if len(measured) == len(data) else (slice(0, 1), *box[1:])])
        hidden |= (part == 0) | (part != part)
    if nodata is not None:
        for section, z in zip(hidden, numbers(box[0]), strict=True):
            section |= _marked(np.ma.getdata(np.asanyarray(data[z, box[1], box[2]])), nodata)
    return hidden


def _marked(voxels: np.ndarray, mark: float) -> np.ndarray:
    if math.isnan(mark):
        return np.isnan(voxels)
    if abs(mark) >= HUGE and voxels.dtype != np.float16:
        return voxels >= HUGE if mark > 0 else voxels <= -HUGE
    return voxels == np.asarray(mark).astype(voxels.dtype)


def margin_value(data: Any, hidden: StoredArray | None = None) -> float | None:
    """The value of the constant margins of a stack, whose sections may be shifted or turned; ``None`` if it has none.

    The corners of up to 16 sections are examined. A constant corner is a margin if the image beyond it begins at once;
    beyond tissue that is merely saturated, grey values fade in.

    Args:
        data: ``(z, y, x)``, an array or on disk.
        hidden: as :func:`hidden_voxels` returns it; corners where it begins are not examined.
    """
    if min(data.shape[1:]) < 2 * MIN_PADDING:
        return None
    chunks = getattr(data, "chunks", data.shape)
    corners: list[tuple[np.ndarray, float]] = []
    middles, looked_at = [], evenly_spaced(data.shape[0], _LOOKED_AT)
    for z in looked_at:
        # a chunk that is a whole section is decoded once
        section = data if tuple(chunks[1:]) != tuple(data.shape[1:]) else np.asanyarray(data[z])[None]
        at = z if section is data else 0
        middles.append(np.ma.getdata(np.asanyarray(section[at, *middle(data.shape[1:], (_CORNER, _CORNER))])))
        for y, x in product(*map(_ends, data.shape[1:])):
            corner = np.ma.getdata(np.asanyarray(section[at, y, x]))
            outermost = tuple(slice(-MIN_PADDING, None) if end.start else slice(MIN_PADDING) for end in (y, x))
            if hidden is not None and hidden[z, *outermost].any():  # the same of the section and of its corner
                continue
            square = corner[outermost]
            if (square == square.flat[0]).all() and np.isfinite(square.flat[0]):
                corners.append((corner, float(square.flat[0])))
    if not corners:
        return None
    (value, count), *_ = Counter(value for _, value in corners).most_common(1)
    beyond, others = [], []
    for voxels, found in (*corners, *((one, value) for one in middles)):
        if found == value:
            margin = in_margin(voxels, value)
            near, away = (
                _grown(margin, 3),
                np.abs(np.where(np.isfinite(voxels), voxels, value).astype(np.float64) - value),
            )
            beyond.append(away[near & ~margin])
            others.append(away[~near])
    unlike, usual = np.concatenate(beyond), np.concatenate(others)
    if not usual.size:
        return None  # one grey value everywhere: there is no image that a margin could surround
    if not unlike.size:  # no margin ends within a corner: a blank section, or wide margins in each
        return value if count >= len(looked_at) else None
    fades_in = np.median(unlike) < _STEP * np.median(usual) or (unlike == 0).mean() > _STRAY
    return None if fades_in else value


def _ends(length: int) -> list[slice]:
    """Both ends of an axis; the second does not start at 0."""
    side = min(_CORNER, length // 2)
    return [slice(0, side), slice(length - side, length)]


def in_margin(section: np.ndarray, value: float) -> np.ndarray:
    """Where a section ``(y, x)`` is margin: in a square of ``MIN_PADDING`` voxels a side that hold the value.

    What lies outside the section counts as margin.
    """
    rim = MIN_PADDING - 1
    within = np.pad(section == value, rim, constant_values=True)
    for axis in (0, 1):
        within = _all_of_run(within, axis)
    for axis in (0, 1):
        within = ~_all_of_run(~within, axis)
    return within


def _all_of_run(mask: np.ndarray, axis: int) -> np.ndarray:
    """Where ``MIN_PADDING`` successive elements, this one first, are True; shorter by ``MIN_PADDING - 1``."""
    length = mask.shape[axis] - MIN_PADDING + 1
    runs = [mask[(slice(None),) * axis + (slice(k, k + length),)] for k in range(MIN_PADDING)]
    return np.logical_and.reduce(runs)


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    for axis in (0, 1):
        padded = np.pad(mask, [(steps, steps) if axis == a else (0, 0) for a in (0, 1)])
        length = mask.shape[axis]
        mask = np.logical_or.reduce([padded.take(range(k, k + length), axis) for k in range(2 * steps + 1)])
    return mask


def margins(data: Any, value: float) -> StoredArray:
    """Mask of the margins that hold a value, bool ``(z, y, x)``, made one section at a time."""
    chunks = getattr(data, "chunks", (1, *data.shape[1:]))
    return StoredArray(tuple(data.shape), np.dtype(bool), chunks, partial(_read_margins, data, value))


def _read_margins(data: Any, value: float, box: Box) -> np.ndarray:
    rim = MIN_PADDING - 1
    z, *yx = box
    wide = [
        slice(max(0, part.start - rim), min(length, part.stop + rim))
        for part, length in zip(yx, data.shape[1:], strict=True)
    ]
    inside = tuple(
        slice(part.start - around.start, part.stop - around.start, part.step)
        for part, around in zip(yx, wide, strict=True)
    )
    sections = (np.ma.getdata(np.asanyarray(data[number, wide[0], wide[1]])) for number in numbers(z))
    found = [in_margin(section, value)[inside] for section in sections]
    return np.stack(found) if found else np.zeros(shape_of(box), bool)


def unmeasured_in(data: Any, hidden: StoredArray | None = None) -> StoredArray | None:
    """Mask of all voxels that were not measured, bool ``(z, y, x)``: hidden ones and constant margins.

    Args:
        data: ``(z, y, x)``, an array or on disk.
        hidden: as :func:`hidden_voxels` returns it.

    Returns:
        ``None`` if every voxel may have been measured.
    """
    hidden = hidden_voxels(data, "the stack") if hidden is None else hidden
    value = margin_value(data, hidden)
    if value is None or hidden is None:
        return hidden if value is None else margins(data, value)
    return StoredArray(hidden.shape, hidden.dtype, hidden.chunks, partial(_read_either, hidden, margins(data, value)))


def _read_either(one: StoredArray, other: StoredArray, box: Box) -> np.ndarray:
    return one[box] | other[box]


def filled(data: Any, unmeasured: StoredArray) -> StoredArray:
    """A stack whose unmeasured voxels are replaced by likely ones, so that it can be judged as a whole.

    They take the value that the nearest of 3 sections on either side has there, or else the median of their section. A
    section of which nothing was measured stays as it is.
    """
    return StoredArray(
        tuple(data.shape), np.dtype(data.dtype), unmeasured.chunks, partial(_read_filled, data, unmeasured)
    )


def _read_filled(data: Any, unmeasured: StoredArray, box: Box) -> np.ndarray:
    z, *yx = box
    voxels = np.array(np.ma.getdata(np.asanyarray(data[z, yx[0], yx[1]])))
    for section, number in zip(voxels, numbers(z), strict=True):
        left = unmeasured[number, yx[0], yx[1]]
        if left.all() or not left.any():
            continue
        median = np.median(section[~left])
        for away in (-1, 1, -2, 2, -3, 3):
            if left.any() and 0 <= number + away < data.shape[0]:
                known = left & ~unmeasured[number + away, yx[0], yx[1]]
                section[known] = np.ma.getdata(np.asanyarray(data[number + away, yx[0], yx[1]]))[known]
                left = left & ~known
        section[left] = median
    return voxels


def measured_box(unmeasured: StoredArray, box: Box) -> Box:
    """The largest box within another in which every voxel was measured; an empty one if there is none.

    Args:
        unmeasured: mask of the voxels that were not measured, bool ``(z, y, x)``.
        box: where to search. Sides of more than 48 voxels are divided into 48 steps.
    """
    steps = [max(1, -(-(part.stop - part.start) // _CELLS)) for part in box]
    lengths = [part.stop - part.start for part in box]
    blocked = np.zeros([-(-length // step) for length, step in zip(lengths, steps, strict=True)], bool)
    for number in range(lengths[0]):
        section = np.asarray(unmeasured[box[0].start + number, box[1], box[2]])
        for axis in (0, 1):
            section = np.logical_or.reduceat(section, np.arange(0, section.shape[axis], steps[axis + 1]), axis)
        blocked[number // steps[0]] |= section
    z, y, x = (
        slice(part.start + cell.start * step, min(part.stop, part.start + cell.stop * step))
        for part, cell, step in zip(box, _largest(blocked), steps, strict=True)
    )
    return (z, y, x)


def _largest(blocked: np.ndarray) -> Box:
    """The largest box without a blocked cell."""
    best, place = 0, (slice(0, 0), slice(0, 0), slice(0, 0))
    areas = [_rectangle(layer)[0] for layer in blocked]  # several layers share no larger rectangle than each has
    for depth in range(len(blocked), 0, -1):
        for first in range(len(blocked) - depth + 1):
            layers = slice(first, first + depth)
            if depth * min(areas[layers]) > best:
                area, rows, columns = _rectangle(np.logical_or.reduce(blocked[layers]))
                if depth * area > best:
                    best, place = depth * area, (layers, rows, columns)
    return place


def _rectangle(blocked: np.ndarray) -> tuple[int, slice, slice]:
    """Area, rows and columns of the largest rectangle without a blocked cell; of equal ones the first."""
    best, place = 0, (slice(0, 0), slice(0, 0))
    height = np.zeros(blocked.shape[1] + 1, int)  # free cells up to this row; the last column is a sentinel
    for row, cells in enumerate(blocked):
        height[:-1] = (height[:-1] + 1) * ~cells
        open_: list[tuple[int, int]] = []  # first column and height of the rectangles still open
        for column, high in enumerate(height.tolist()):
            begin = column
            while open_ and open_[-1][1] >= high:
                begin, tall = open_.pop()
                if tall * (column - begin) > best:
                    best = tall * (column - begin)
                    place = (slice(row - tall + 1, row + 1), slice(begin, column))
            open_.append((begin, high))
    return best, *place

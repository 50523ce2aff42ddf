"""Constant padding at the sides of a stack, the same in each section: cut off before anything is done, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.stored import StoredArray, cropped
from emformer_hub.volumes.unmeasured import MIN_PADDING

SHORTEST_TISSUE = 16  # voxels


def padding_value(section: np.ndarray) -> Any:
    """The grey value that most of the corners of a section ``(y, x)`` have."""
    corners = [section[y, x].item() for y in (0, -1) for x in (0, -1)]
    return max(corners, key=corners.count)


class Padding(NamedTuple):
    """Constant voxels at the sides of a stack, the same in each section.

    Attributes:
        rows, columns: that hold tissue in some section.
        value: of all voxels outside of these.
    """

    rows: slice
    columns: slice
    value: float

    def crop(self, volume: Any) -> Any:
        """The tissue of a volume ``(z, y, x)``: a view of an array, or voxels on disk."""
        return cropped(volume, (slice(0, volume.shape[0]), self.rows, self.columns))


def framed(inside: Any, shape_yx: Sequence[int], padding: Padding, value: float) -> StoredArray:
    """A volume ``(z, rows, columns)`` of tissue within constant voxels of a value, as one of these rows and columns."""
    shape = (int(inside.shape[0]), int(shape_yx[0]), int(shape_yx[1]))
    chunks = getattr(inside, "chunks", (1, *shape[1:]))
    return StoredArray(shape, inside.dtype, chunks, partial(_read_framed, inside, padding, value))


def _read_framed(inside: Any, padding: Padding, value: float, box: Box) -> np.ndarray:
    whole = np.full([part.stop - part.start for part in box], value, inside.dtype)
    starts = (0, padding.rows.start, padding.columns.start)
    source, target = [], []
    for part, start, length in zip(box, starts, inside.shape, strict=True):
        first, stop = max(part.start, start), max(part.start, start, min(part.stop, start + length))
        source.append(slice(first - start, stop - start))
        target.append(slice(first - part.start, stop - part.start))
    whole[tuple(target)] = inside[tuple(source)]
    return whole[tuple(slice(None, None, part.step) for part in box)]


def tissue(volume: Any) -> Padding | None:
    """Where a stack is more than constant padding.

    The section in the middle says whether there may be padding; then all sections are looked at.

    Args:
        volume: ``(z, y, x)``, an array or on disk.

    Returns:
        ``None`` if there is no padding, or hardly anything else.
    """
    middle = np.asarray(volume[len(volume) // 2])
    value = padding_value(middle)
    rows, columns = _inside(middle != value)
    height, width = middle.shape
    if max(rows.start, height - rows.stop, columns.start, width - columns.stop) < MIN_PADDING:
        return None
    top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
    for z in range(len(volume)):
        section = np.asarray(volume[z]) != value
        if not section.any():
            continue
        rows, columns = _inside(section)
        top, bottom = min(top, rows.start), max(bottom, rows.stop)
        left, right = min(left, columns.start), max(right, columns.stop)
        if max(top, height - bottom, left, width - right) < MIN_PADDING:
            return None
    if min(bottom - top, right - left) < SHORTEST_TISSUE:
        return None
    return Padding(slice(top, bottom), slice(left, right), value)


def _inside(different: np.ndarray) -> tuple[slice, slice]:
    """The smallest box that holds all that is True; all of it if nothing is."""
    if not different.any():
        return slice(0, different.shape[0]), slice(0, different.shape[1])
    (rows,), (columns,) = np.nonzero(different.any(axis=1)), np.nonzero(different.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)

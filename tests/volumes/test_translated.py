"""Sections that are moved as they are read: every voxel comes from where it was, or is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import Volume, open_volume, read_volume, translated, write_volume
from emformer_hub.volumes.unmeasured import hidden_voxels

SHAPE = (5, 12, 9)
STACK = np.random.default_rng(0).integers(1, 200, SHAPE).astype(np.uint16)
MOVES = ((0.0, 0.0), (2.4, -3.0), (-11.0, 8.0), (5.6, 0.0), (-1.0, 1.0))


def moved(stack: np.ndarray, outside: int) -> np.ndarray:
    """The stack with its sections moved, voxel by voxel."""
    found = np.full_like(stack, outside)
    for z, y, x in np.ndindex(*SHAPE):
        to_y, to_x = y + round(MOVES[z][0]), x + round(MOVES[z][1])
        if 0 <= to_y < SHAPE[1] and 0 <= to_x < SHAPE[2]:
            found[z, to_y, to_x] = stack[z, y, x]
    return found


def parts(length: int) -> st.SearchStrategy[slice]:
    return st.builds(slice, st.integers(0, length - 1), st.integers(0, length), st.integers(1, 3))


@given(st.tuples(*map(parts, SHAPE)))
def test_any_box_holds_what_the_whole_does(box: tuple[slice, slice, slice]) -> None:
    marked = STACK.copy()
    marked[2, 3:5] = 7
    volume = Volume(marked, None, "", hidden=hidden_voxels(marked, "stack", nodata=7))
    found = translated(volume, MOVES, "stack")
    assert found.hidden is not None
    np.testing.assert_array_equal(found.data[box], moved(marked, 0)[box])
    np.testing.assert_array_equal(found.hidden[box], moved((marked == 7).astype(np.uint8), 1).astype(bool)[box])


@pytest.mark.parametrize("name", ["stack.tif", "stack.ome.zarr", "stack.h5"])
def test_files_are_opened_and_read_alike(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, STACK, VoxelSize(40, 4, 4))
    opened = open_volume(tmp_path / name, translations=MOVES)
    read = read_volume(tmp_path / name, translations=MOVES)
    assert opened.voxel_size == VoxelSize(40, 4, 4) and isinstance(read.data, np.ndarray)
    np.testing.assert_array_equal(opened.data[:], moved(STACK, 0))
    np.testing.assert_array_equal(read.data, moved(STACK, 0))
    assert opened.hidden is not None and read.hidden is not None
    np.testing.assert_array_equal(opened.hidden[:], moved(STACK, 0) == 0)
    np.testing.assert_array_equal(read.hidden[:], moved(STACK, 0) == 0)


def test_translations_that_do_not_fit_are_refused() -> None:
    volume = Volume(STACK, None, "")
    with pytest.raises(InputError, match=r"shape \(4, 2\); expected \(5, 2\)"):
        translated(volume, MOVES[:4], "stack.tif")
    with pytest.raises(InputError, match="section 3 of stack"):
        translated(volume, (*MOVES[:3], (12.0, 0.0), (0.0, 0.0)), "stack.tif")
    with pytest.raises(InputError, match="section 1"):
        translated(volume, (MOVES[0], (np.nan, 0.0), *MOVES[2:]), "stack.tif")

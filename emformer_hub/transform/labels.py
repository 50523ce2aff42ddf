"""Labels of objects on the other grid: each voxel takes the label of the nearest section or plane."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.transform.grids import Grids, Target
from emformer_hub.volumes import StoredArray, Volume, translated, write_volume
from emformer_hub.volumes.boxes import Box, check_region

_PLANES_AT_ONCE = 64
"""Sections or planes that are read at once: the depth of a chunk, so that few are read twice."""


@dataclass(frozen=True, eq=False)
class CarriedLabels:
    """Labels on the grid that they are carried to, read box by box from where they come from.

    Args:
        labels: ``(z, y, x)`` on the grid that they come from.
        grids: the two grids, of known shapes.
        to: grid that they are carried to.
    """

    labels: np.ndarray | StoredArray
    grids: Grids
    to: Target

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape on the grid that they are carried to, ``(z, y, x)``."""
        shape = self.grids.shape_of(self.to)
        assert shape is not None
        return shape

    def __getitem__(self, box: Box) -> np.ndarray:
        """Labels in a box; 0 where a stack lies outside of the region that was reconstructed."""
        start, numbers = self.grids.start, self._nearest
        labels = np.zeros([part.stop - part.start for part in box], self.labels.dtype)
        if self.to == "isotropic":
            z, (y, x) = (
                numbers[box[0]] + start[0],
                (_moved(part, n) for part, n in zip(box[1:], start[1:], strict=True)),
            )
            self._read(labels, z, y, x)
            return labels
        shape = (len(numbers), *self.labels.shape[1:])
        inside = [
            slice(max(part.start, n), max(min(part.stop, n + length), part.start, n))
            for part, n, length in zip(box, start, shape, strict=True)
        ]
        z, y, x = (_moved(part, -n) for part, n in zip(inside, start, strict=True))
        there = tuple(_moved(part, -whole.start) for part, whole in zip(inside, box, strict=True))
        self._read(labels[there], numbers[z], y, x)
        return labels

    @cached_property
    def _nearest(self) -> np.ndarray:
        """The nearest section of each plane, or plane of each section, counted from where the region begins.

        Of two that are as near, it is the later one.
        """
        region, geometry = self.grids.region, self.grids.inside
        assert self.grids.shape_zyx is not None
        sections = self.grids.shape_zyx[0] if region is None else region[0].stop - region[0].start
        planes = geometry.num_planes(sections)
        to_planes = self.to == "isotropic"
        positions = geometry.plane_positions(planes) if to_planes else geometry.section_positions(sections)
        return np.clip(np.floor(positions + 0.5 + 1e-9), 0, (sections if to_planes else planes) - 1).astype(np.int64)

    def _read(self, labels: np.ndarray, z: np.ndarray, y: slice, x: slice) -> None:
        """Fill an array with sections or planes of these numbers, which ascend."""
        begin = 0
        while begin < len(z):
            end = int(np.searchsorted(z, z[begin] + _PLANES_AT_ONCE))
            read = self.labels[int(z[begin]) : int(z[end - 1]) + 1, y, x]
            labels[begin:end] = read[z[begin:end] - z[begin]]
            begin = end


def carry_labels(
    volume: Volume[np.ndarray | StoredArray],
    name: str,
    output: str | os.PathLike[str],
    grids: Grids,
    to: Target,
    *,
    overwrite: bool = False,
    ome_zarr: str = "0.5",
) -> None:
    """Write labels on the other grid, a part at a time.

    Args:
        volume: labels, as ``open_labels`` returns them.
        name: what messages call them.
        output: path; the suffix chooses the format, as for ``create_volume``.
        grids, to: as for :func:`~emformer_hub.transform_file`.
        overwrite, ome_zarr: as for ``create_volume``.

    Raises:
        InputError: the labels do not lie on the grid that they come from; or as ``create_volume``.
    """
    grids = _known(volume, name, grids, to)
    moves = None if grids.translations is None else np.array(grids.translations)
    if moves is not None and to == "isotropic":
        volume = translated(volume, moves.tolist(), name)
    carried = CarriedLabels(volume.data, grids, to)
    size, first = grids.lengths_of(to)
    chunks = (_PLANES_AT_ONCE, *carried.shape[1:])
    data = StoredArray(carried.shape, np.dtype(volume.data.dtype), chunks, carried.__getitem__)
    if moves is not None and to == "stack":
        data = translated(replace(volume, data=data, hidden=None), (-moves).tolist(), name).data
    write_volume(output, data, size, translation_nm=first, overwrite=overwrite, ome_zarr=ome_zarr, labels=True)


def _known(volume: Volume[np.ndarray | StoredArray], name: str, grids: Grids, to: Target) -> Grids:
    """Grids with all lengths and shapes; those that are not known are taken from the labels.

    Raises:
        InputError: the labels have another shape than the grid that they come from, or no voxel size is stated.
    """
    here: Target = "stack" if to == "isotropic" else "isotropic"
    shape, geometry = volume.data.shape, grids.inside
    if grids.voxel_size is None and volume.voxel_size is not None:
        size = volume.voxel_size
        if to == "isotropic":
            grids = replace(grids, voxel_size=size, first_nm=volume.translation_nm or grids.first_nm)
        else:
            size = size.with_z(float(f"{size.z * geometry.factor:.12g}"))
            first = geometry.section_origin(size, volume.translation_nm or geometry.plane_origin(size))
            grids = replace(grids, voxel_size=size, first_nm=first)
    if grids.shape_zyx is None:
        if to == "stack" and grids.region is not None:
            raise InputError(
                f"{name} covers a part of a stack, of which the shape is not known; give --record, the path of the "
                f"reconstruction."
            )
        depth = shape[0] if to == "isotropic" else geometry.num_sections(shape[0])
        grids = replace(grids, shape_zyx=(depth, *shape[1:]))
    if grids.region is not None and grids.shape_zyx is not None:
        check_region(grids.region, grids.shape_zyx, "the stack")
    if grids.shape_zyx is not None:
        grids.geometry.check_sections(grids.shape_zyx[0], "the stack")
    expected = grids.shape_of(here)
    if shape != expected:
        raise InputError(
            f"{name} has shape {shape} (z, y, x); expected {expected}, as the {_WORDS[here]} has, to be carried to the "
            f"{_WORDS[to]}. Is --to right, and is it the whole volume?"
        )
    return grids


_WORDS: dict[Target, str] = {"stack": "stack", "isotropic": "isotropic volume"}


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + int(by), part.stop + int(by))

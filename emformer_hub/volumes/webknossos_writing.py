"""Data sets of WEBKNOSSOS as they are written: one layer in .wkw files, with its magnifications (extra ``wkw``).

Files are not compressed: LZ4 would make electron micrographs an eighth smaller, but takes whole files, and
parts of a volume need not fill them. A file holds 256 voxels along each axis, in blocks of 32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box, boxes, shape_of
from emformer_hub.volumes.ome_zarr import coarsened, pyramid
from emformer_hub.volumes.webknossos import PROPERTIES
from emformer_hub.volumes.writer import first_voxel

WKW_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")
WKW_LABELS = ("uint8", "uint16", "uint32", "uint64")
_BLOCK, _BLOCKS = 32, 8  # voxels in a block, and blocks in a file, along each axis
_SIDE = _BLOCK * _BLOCKS
_CLASSES = {"float32": "float", "float64": "double"}
"""Data types that WEBKNOSSOS calls by another name."""


@dataclass(frozen=True)
class WebknossosWriter:
    """A layer of WEBKNOSSOS in the making; one process writes at a time, as parts share blocks.

    Attributes:
        layer: folder of the layer.
        shape: ``(z, y, x)``.
        dtype: data type of its voxels.
        first: voxel of the data set that the layer begins with, ``(z, y, x)``.
        magnifications: of each level, along z, y and x, the finest first.
        labels: whether voxels are labels.
    """

    layer: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    first: tuple[int, int, int]
    magnifications: tuple[tuple[int, int, int], ...]
    labels: bool
    part_zyx: tuple[int, int, int] = (_SIDE, _SIDE, _SIDE)

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write a box; raises ``OSError`` if the disk refuses."""
        self._write(0, [side.start + at for side, at in zip(box, self.first, strict=True)], voxels)

    def finish(self) -> None:
        """Make the other magnifications, each from the one before, a part at a time.

        A voxel of them is the mean of those that lie in it, counted from the first of the data set; where the layer
        begins or ends within one, of those of the layer.
        """
        for level in range(1, len(self.magnifications)):
            finer, target = self._bounds(level - 1), self._bounds(level)
            steps = [a // b for a, b in zip(self.magnifications[level], self.magnifications[level - 1], strict=True)]
            for part in boxes(shape_of(target), self.part_zyx):
                place = [side.start + whole.start for side, whole in zip(part, target, strict=True)]
                wanted = [slice(at * n, (at + k) * n) for at, k, n in zip(place, shape_of(part), steps, strict=True)]
                there = [
                    slice(max(side.start, whole.start), min(side.stop, whole.stop))
                    for side, whole in zip(wanted, finer, strict=True)
                ]
                missing = [(side.start - whole.start, 0) for side, whole in zip(there, wanted, strict=True)]
                voxels = np.pad(self._read(level - 1, there), missing, mode="edge")
                self._write(level, place, coarsened(voxels, steps, labels=self.labels))

    def _bounds(self, level: int) -> list[slice]:
        """The voxels of a level that hold some of the layer, counted from the first of the data set."""
        return [
            slice(at // n, -(-(at + length) // n))
            for at, length, n in zip(self.first, self.shape, self.magnifications[level], strict=True)
        ]

    def _folder(self, level: int) -> str:
        return str(self.layer / folder_of(self.magnifications[level]))

    def _write(self, level: int, place: Sequence[int], voxels: np.ndarray) -> None:
        import wkw

        try:
            with wkw.Dataset.open(self._folder(level)) as opened:
                opened.write(tuple(reversed(place)), np.asfortranarray(voxels.T, self.dtype))
        except wkw.wkw.WKWException as error:
            raise OSError(str(error)) from error

    def _read(self, level: int, box: Sequence[slice]) -> np.ndarray:
        import wkw

        with wkw.Dataset.open(self._folder(level)) as opened:
            starts, sides = [part.start for part in box], shape_of(box)
            return np.asarray(opened.read(tuple(reversed(starts)), tuple(reversed(sides)))[0].T)


def create(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
    *,
    labels: bool = False,
) -> WebknossosWriter:
    """Make a data set with one layer, ``color`` or ``segmentation``, full of zeros, with all its magnifications.

    WEBKNOSSOS places a layer by whole voxels, none before the first: where it lies otherwise, the nearest place is
    taken, and a warning is logged.
    """
    import wkw

    levels = pyramid(shape_zyx, voxel_size, translation_nm)
    magnifications = []
    for level in levels:
        z, y, x = (round(a / b) for a, b in zip(level.voxel_size, voxel_size.zyx, strict=True))
        magnifications.append((z, y, x))
    first = first_voxel(translation_nm, voxel_size, "WEBKNOSSOS", least=0)
    name = "segmentation" if labels else "color"
    layer = path / name
    layer.mkdir(parents=True)
    for magnification in magnifications:
        header = wkw.Header(dtype.type, block_len=_BLOCK, file_len=_BLOCKS)
        wkw.Dataset.create(str(layer / folder_of(magnification)), header).close()
    depth, height, width = shape_zyx
    described = {
        "id": {"name": path.name.strip(".").split(".")[0], "team": ""},
        "scale": {"factor": list(reversed(voxel_size.zyx)), "unit": "nanometer"},
        "dataLayers": [
            {
                "name": name,
                "category": name,
                "boundingBox": {"topLeft": list(reversed(first)), "width": width, "height": height, "depth": depth},
                "dataFormat": "wkw",
                "mags": [
                    {
                        "mag": list(reversed(magnification)),
                        "path": f"./{name}/{folder_of(magnification)}",
                        "cubeLength": _SIDE,
                        "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3},
                    }
                    for magnification in magnifications
                ],
                "numChannels": 1,
                "elementClass": _CLASSES.get(dtype.name, dtype.name),
            }
        ],
        "version": 1,
    }
    (path / PROPERTIES).write_text(json.dumps(described, indent=2) + "\n")
    return WebknossosWriter(layer, shape_zyx, dtype, first, tuple(magnifications), labels)


def folder_of(magnification: tuple[int, int, int]) -> str:
    """Name of the folder of a magnification along z, y and x: ``1``, or ``4-4-1``, x first."""
    return str(magnification[0]) if len(set(magnification)) == 1 else "-".join(map(str, reversed(magnification)))

"""N5 and Neuroglancer precomputed as they are written: in parts, with a pyramid of levels (extra ``remote``)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box, boxes
from emformer_hub.volumes.kvstore import import_tensorstore
from emformer_hub.volumes.n5_precomputed import FINEST, N5
from emformer_hub.volumes.ome_zarr import Level, coarsened, pyramid
from emformer_hub.volumes.writer import first_voxel

CHUNK_ZYX = (64, 64, 64)
"""Voxels in a file: a quarter of a megabyte of 8-bit voxels, which is what Neuroglancer asks for at once."""
_PART_VOXELS = 2**24  # at most, in whole chunks
N5_VERSION = "2.5.0"
PRECOMPUTED_DTYPES = ("uint8", "uint16", "int16", "float32")
N5_DTYPES = (*PRECOMPUTED_DTYPES, "float64")
PRECOMPUTED_LABELS = ("uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class LevelsWriter:
    """An image with levels in the making; parts of it may be written in any order, by several processes at once.

    Attributes:
        shape: ``(z, y, x)``.
        dtype: data type of its voxels.
        part_zyx: sides of a part: several chunks, of one file each.
        levels: description of each level for TensorStore, JSON, the finest first.
        labels: whether voxels are labels, of which coarser levels hold one in eight instead of means.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    part_zyx: tuple[int, int, int]
    levels: tuple[str, ...]
    labels: bool = False

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write a box of whole parts of the finest level; raises ``OSError`` if the disk refuses."""
        _write(self.levels[0], box, voxels)

    def finish(self) -> None:
        """Make the other levels, each from the one before, a part at a time."""
        for finer, coarser in zip(self.levels, self.levels[1:], strict=False):
            source, target = _array(finer), _array(coarser)
            steps = [2 if a > b else 1 for a, b in zip(source.shape, target.shape, strict=True)]
            for part in boxes(target.shape, self.part_zyx):
                seen = tuple(slice(side.start * n, side.stop * n) for side, n in zip(part, steps, strict=True))
                clipped = tuple(slice(a.start, min(a.stop, n)) for a, n in zip(seen, source.shape, strict=True))
                voxels = np.asarray(source[clipped].read().result())
                _write(coarser, part, coarsened(voxels, steps, labels=self.labels))


def create_precomputed(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
    *,
    chunk_zyx: tuple[int, int, int] = CHUNK_ZYX,
    labels: bool = False,
) -> LevelsWriter:
    """Make a Neuroglancer precomputed image, uncompressed, full of zeros, with all its levels.

    Precomputed places an image by whole voxels: where its first voxel lies otherwise, the nearest place is taken, and a
    warning is logged.
    """
    levels, specs = pyramid(shape_zyx, voxel_size, translation_nm), []
    offsets = first_voxel(translation_nm, voxel_size, "precomputed")
    for level in levels:
        factors = [round(a / b) for a, b in zip(level.voxel_size, voxel_size.zyx, strict=True)]
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path.absolute()}/"},
            "multiscale_metadata": {
                "type": "segmentation" if labels else "image",
                "data_type": dtype.name,
                "num_channels": 1,
            },
            "scale_metadata": {
                "key": "_".join(f"{length:.12g}" for length in reversed(level.voxel_size)),
                "size": list(reversed(level.shape)),
                "resolution": list(reversed(level.voxel_size)),
                "voxel_offset": [round(n / by) for n, by in zip(reversed(offsets), reversed(factors), strict=True)],
                "chunk_size": list(reversed(chunk_zyx)),
                "encoding": "raw",
            },
        }
        specs.append(_create(spec))
    return _writer(levels, dtype, specs, chunk_zyx, labels)


def create_n5(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
    *,
    chunk_zyx: tuple[int, int, int] = CHUNK_ZYX,
    labels: bool = False,
) -> LevelsWriter:
    """Make an N5 container, whose arrays ``s0``, ``s1``, … are the levels of one image, full of zeros.

    Voxel size and place stand in ``transform``, as at Janelia, and the size in ``pixelResolution``, as Fiji and
    BigDataViewer read it.
    """
    levels, specs = pyramid(shape_zyx, voxel_size, translation_nm), []
    factors = [
        [round(a / b) for a, b in zip(reversed(level.voxel_size), reversed(voxel_size.zyx), strict=True)]
        for level in levels
    ]
    resolution = {"unit": "nm", "dimensions": list(reversed(voxel_size.zyx))}
    path.mkdir()
    _add(
        path / N5, {"n5": N5_VERSION, "scales": factors, "downsamplingFactors": factors, "pixelResolution": resolution}
    )
    for number, level in enumerate(levels):
        folder = path / f"{FINEST[0]}{number}"
        layout = {
            "dimensions": list(reversed(level.shape)),
            "blockSize": list(reversed(_chunk(level, chunk_zyx))),
            "dataType": dtype.name,
            "compression": {"type": "gzip", "level": 1, "useZlib": False},
        }
        spec: dict[str, Any] = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"}}
        _create({**spec, "metadata": layout})
        transform = {
            "axes": ["z", "y", "x"],
            "ordering": "C",
            "scale": list(level.voxel_size),
            "translate": list(level.translation),
            "units": ["nm"] * 3,
        }
        size = {"unit": "nm", "dimensions": list(reversed(level.voxel_size))}
        _add(folder / N5, {"transform": transform, "pixelResolution": size, "downsamplingFactors": factors[number]})
        specs.append(json.dumps({**spec, "metadata": layout, "assume_metadata": True}))
    return _writer(levels, dtype, specs, chunk_zyx, labels)


def _writer(
    levels: Sequence[Level], dtype: np.dtype, specs: Sequence[str], chunk_zyx: tuple[int, int, int], labels: bool
) -> LevelsWriter:
    sides = _chunk(levels[0], chunk_zyx)
    at_once = max(1, round((_PART_VOXELS / math.prod(sides)) ** (1 / 3)))
    z, y, x = (at_once * side for side in sides)
    return LevelsWriter(levels[0].shape, dtype, (z, y, x), tuple(specs), labels)


def _chunk(level: Level, chunk_zyx: tuple[int, int, int]) -> list[int]:
    return [min(length, side) for length, side in zip(level.shape, chunk_zyx, strict=True)]


def _add(file: Path, attributes: dict[str, Any]) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | attributes, indent=2) + "\n")


def _create(spec: dict[str, Any]) -> str:
    """Make a level; return the description that opens it."""
    tensorstore = import_tensorstore(spec["kvstore"]["path"])
    try:
        tensorstore.open({**spec, "create": True, "open": True}).result()
    except ValueError as error:  # of the disk too
        raise OSError(str(error)) from error
    return json.dumps(spec)


def _write(level: str, box: Box, voxels: np.ndarray) -> None:
    """Write a box chunk by chunk, and wait for all of them even if one fails: none may be written afterwards."""
    array = _array(level)[box]
    inside = boxes(voxels.shape, _array(level).chunk_layout.write_chunk.shape)
    written = [array.translate_to[0, 0, 0][chunk].write(np.ascontiguousarray(voxels[chunk])) for chunk in inside]
    errors = [error for one in written if (error := one.exception()) is not None]
    if errors:
        raise OSError(str(errors[0])) from errors[0]


@lru_cache(maxsize=64)
def _array(level: str) -> Any:
    """A level as ``(z, y, x)``, counted from 0, opened once in a process."""
    spec = json.loads(level)
    tensorstore = import_tensorstore(spec["kvstore"]["path"])
    array = tensorstore.open({**spec, "open": True}, read=True, write=True).result().T
    if array.ndim == 4:  # precomputed has channels
        array = array[0]
    return array[tensorstore.d[:].translate_to[0]]

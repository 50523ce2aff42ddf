"""Layers of napari as stacks, and stacks and results as layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.volumes import StoredArray, Volume
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.volume import stated_voxel_size, to_nanometres, zyx_nanometres

if TYPE_CHECKING:
    from napari.layers import Image, Shapes

    from emformer_hub.reconstruction.settings import OpenStack

LayerData = tuple[Any, dict[str, Any], str]
"""Data, keyword arguments and kind of a layer, as napari's readers return them."""

AXES, UNITS = ("z", "y", "x"), ("nanometer",) * 3
TRIAL = 64
"""Most voxels of a trial along an axis in which a shape has no extent: sections, for a rectangle drawn on one."""
ORIGIN = "emformer_hub"
"""Key of a layer's metadata: the file that it shows, as :class:`Shown`."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a layer was made of.

    Attributes:
        path: path or address of the file.
        voxels: voxels of the file, as they are read.
        data: the array of them that was handed to napari.
    """

    path: str
    voxels: np.ndarray | StoredArray
    data: Any


def finest(layer: Image) -> Any:
    """Voxels of a layer; of one with several levels, those of the finest."""
    return layer.data[0] if layer.multiscale else layer.data


def as_dask(stored: np.ndarray | StoredArray) -> Any:
    """Voxels as napari slices them: those on disk as a dask array, whose chunks are those of the file."""
    if isinstance(stored, np.ndarray):
        return stored
    import dask.array

    return dask.array.from_array(stored, chunks=stored.chunks, name=False, asarray=False)


def voxel_size_of(layer: Image) -> VoxelSize | None:
    """Voxel size that the scale and units of a layer state; ``None`` if a unit is no length, as ``pixel``."""
    return stated_voxel_size(list(layer.scale[-3:]), [str(unit) for unit in layer.units[-3:]])


def state_voxel_size(layer: Image, size: VoxelSize) -> None:
    """Give a layer the voxel size that its user states, in nm, so that results lie over it."""
    more = layer.ndim - 3
    layer.units = (*layer.units[:more], *UNITS)
    layer.scale = (*layer.scale[:more], *size.zyx)


def stack_of(layer: Image, size: VoxelSize | None) -> OpenStack:
    """The stack that a layer shows: the file that it was opened from, or else its voxels.

    Args:
        layer: image; leading axes of length 1 are left out.
        size: voxel size, nm, if it is known.

    Raises:
        InputError: the layer is no grey-value stack with z, y, x as its last axes.
    """
    from emformer_hub.reconstruction.settings import OpenStack

    if layer.rgb:
        raise InputError(
            f"layer {layer.name!r} is a colour image; expected grey values. Right-click it and choose Split RGB, then "
            f"take one channel."
        )
    data = finest(layer)
    if data.ndim < 3 or any(length > 1 for length in data.shape[:-3]):
        raise InputError(
            f"layer {layer.name!r} has shape {tuple(data.shape)}; expected one grey-value stack (z, y, x). For several "
            f"channels or time points, right-click it and choose Split Stack, then take one of the layers."
        )
    labels = tuple(str(label).lower() for label in layer.axis_labels[-3:])
    if set(labels) == set(AXES) and labels != AXES:
        raise InputError(
            f"layer {layer.name!r} has its axes in the order {', '.join(labels)}; expected z, y, x, sections first. "
            f"Open the file through this plugin, which reads its axes, or transpose the array."
        )
    turned = np.asarray(layer.rotate), np.asarray(layer.affine.linear_matrix)
    if np.any(layer.shear) or not all(np.allclose(matrix, np.eye(layer.ndim)) for matrix in turned):
        raise InputError(
            f"layer {layer.name!r} is rotated, sheared or scaled in the viewer, where results could not lie over it. "
            f"Open the file again, and transform the results afterwards."
        )
    place = zyx_nanometres(list(layer.translate[-3:]), [str(unit) for unit in layer.units[-3:]])
    if size is None or place is None:
        place = (0.0, 0.0, 0.0)
    shown = layer.metadata.get(ORIGIN)
    if isinstance(shown, Shown) and shown.data is data:
        return OpenStack(shown.path, Volume(shown.voxels, size, "layer", place))
    return OpenStack(layer.name, Volume(_voxels(data), size, "layer", place), stored=False)


def _voxels(data: Any) -> np.ndarray | StoredArray:
    """Voxels of a layer as the library reads them: an array, or one that is read box by box."""
    for _ in range(data.ndim - 3):
        data = data[0]
    dtype = np.dtype(data.dtype).newbyteorder("=")
    if isinstance(data, np.ndarray):
        return data.astype(dtype, copy=False)
    planes, rows, columns = data.shape
    z, y, x = getattr(data, "chunksize", None) or getattr(data, "chunks", None) or (1, rows, columns)
    return StoredArray((planes, rows, columns), dtype, (int(z), int(y), int(x)), partial(_computed, data, dtype))


def _computed(data: Any, dtype: np.dtype, box: Box) -> np.ndarray:
    return np.asarray(data[box]).astype(dtype, copy=False)


def interpolated(data: np.ndarray | StoredArray, geometry: SectionModel) -> StoredArray:
    """Bicubic interpolation of sections along z, float32 ``(planes, y, x)``, computed where it is looked at."""
    sections, height, width = data.shape
    shape = (geometry.num_planes(sections), height, width)
    chunk = (min(shape[0], 64), min(height, 128), min(width, 128))
    return StoredArray(shape, np.dtype(np.float32), chunk, partial(_interpolate, data, geometry))


def _interpolate(data: np.ndarray | StoredArray, geometry: SectionModel, box: Box) -> np.ndarray:
    from emformer_hub.interpolation import interpolation_matrix

    z, y, x = box
    weights = interpolation_matrix(geometry.plane_positions(z.stop - z.start, z.start), data.shape[0], "cubic")
    used = np.flatnonzero(weights.any(axis=0))
    first, last = int(used[0]), int(used[-1]) + 1
    planes = np.tensordot(weights[:, first:last], np.asarray(data[first:last, y, x], np.float32), axes=1)
    return planes[:: z.step or 1]


def region_of(shapes: Shapes, layer: Image) -> Box:
    """Part of a layer's stack that shapes enclose, in its voxels: the selected shapes, or else all of them.

    Along an axis in which the shapes have no extent, as z for a rectangle drawn on a section, it is the ``TRIAL``
    voxels around them.

    Raises:
        InputError: there is no shape, or it lies beside the stack.
    """
    chosen = sorted(shapes.selected_data) or range(len(shapes.data))
    if not chosen:
        raise InputError(
            f"layer {shapes.name!r} holds no shape; draw a rectangle around the part to try, or choose none."
        )
    corners = np.concatenate([np.asarray(shapes.data[number]) for number in chosen])
    drawn = min(3, shapes.ndim)
    world = np.array([shapes.data_to_world(corner) for corner in corners])[:, -drawn:]
    units = [_units_per(*pair) for pair in zip(shapes.units[-drawn:], layer.units[-drawn:], strict=True)]
    missing = layer.ndim - drawn
    world = np.concatenate([np.zeros((len(world), missing)), world * units], axis=1)
    places = np.array([layer.world_to_data(point) for point in world])[:, -3:]
    box = []
    for axis, length in enumerate(finest(layer).shape[-3:]):
        low, high = (float(limit) for limit in (places[:, axis].min(), places[:, axis].max()))
        if axis < 3 - drawn:  # shapes of a plane state nothing along z
            low = high = (length - 1) / 2
        if high - low < 1:
            begin = int(np.clip(round((low + high) / 2) - TRIAL // 2, 0, max(0, length - TRIAL)))
            box.append(slice(begin, min(length, begin + TRIAL)))
        else:
            box.append(slice(max(0, int(np.floor(low + 0.5))), min(length, int(np.ceil(high + 0.5)))))
        if low > length - 0.5 or high < -0.5 or box[-1].start >= box[-1].stop:
            raise InputError(
                f"the shapes of {shapes.name!r} lie beside layer {layer.name!r} along {AXES[axis]}; draw them on it."
            )
    return (box[0], box[1], box[2])


def _units_per(own: Any, other: Any) -> float:
    """Factor from one unit of length to another; 1 if either is none, as ``pixel``: napari then ignores units."""
    length, of_other = to_nanometres(1.0, str(own)), to_nanometres(1.0, str(other))
    return 1.0 if length is None or of_other is None else length / of_other

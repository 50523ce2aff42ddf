"""Voxel size and position as attributes of an array state them: funlib, gunpowder, CREMI, Fiji, N5 tools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.axes import SPACE, Layout, axis_of
from emformer_hub.volumes.volume import Stated, stated_voxel_size, zyx_nanometres

_LENGTHS = ("resolution", "voxel_size", "pixelResolution", "scale")
"""Attributes with the size of a voxel along each axis."""
_IN_MICROMETRES = "element_size_um"  # of Fiji and ilastik
_IN_NANOMETRES = ("resolution", "voxel_size")
"""Attributes in nm where no unit stands beside them in HDF5 and Zarr, as CREMI, funlib and gunpowder have it."""
_OFFSETS = ("offset", "translation")
_OF_SEGMENTATIONS = ("image-label", "isLabelMultiset")
"""Attributes that only segmentations have."""


def stated_by(attributes: Mapping[str, Any], layout: Layout, *, reverse: bool = False) -> Stated:
    """What attributes state about the lengths of an array; of two that differ, neither is believed.

    Args:
        attributes: of the array.
        layout: of its axes, which give attributes their order.
        reverse: N5 lists them the other way round, x first, unless axes stand beside them.
    """
    sizes: dict[str, tuple[VoxelSize, list[str | None]]] = {}
    hint = ""
    for name in (_IN_MICROMETRES, "transform", *_LENGTHS):
        lengths, units = _lengths(attributes, name, layout, reverse)
        if lengths is None:
            continue
        size = stated_voxel_size(lengths, units)
        if size is not None:
            sizes[name] = (size, units)
        elif None in units or "" in units:
            hint = f"{name} is {','.join(f'{length:g}' for length in lengths)} (z,y,x) without a unit"
    if not sizes:
        return Stated(hint=hint)
    source, (size, _) = next(iter(sizes.items()))
    differing = [name for name, (other, _) in sizes.items() if not _close(size, other)]
    if differing:
        return Stated(hint=f"{source} is {size}, and {differing[0]} is {sizes[differing[0]][0]}")
    return Stated(
        size, source, _translation(attributes, layout, reverse, {name: one[1] for name, one in sizes.items()})
    )


def is_segmentation(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes say that voxels are names of objects instead of grey values."""
    ome, cellmap, paintera = (_mapping(attributes.get(name)) for name in ("ome", "cellmap", "painteraData"))
    return (
        any(name in attributes or name in ome for name in _OF_SEGMENTATIONS)
        or "annotation" in cellmap
        or paintera.get("type") == "label"
        or any(isinstance(kind := attributes.get(name), str) and kind == "segmentation" for name in ("type", "kind"))
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _lengths(
    attributes: Mapping[str, Any], name: str, layout: Layout, reverse: bool
) -> tuple[list[float] | None, list[str | None]]:
    """Lengths along z, y, x and their units; no lengths if the attribute has none for these axes."""
    found = attributes.get(name)
    nothing: tuple[None, list[str | None]] = (None, [None] * 3)
    if found is None:
        return nothing
    if name == "transform":
        return _transform(found, "scale", layout) if isinstance(found, Mapping) else nothing
    units: Any = attributes.get("units", attributes.get("unit"))
    if isinstance(found, Mapping):
        units = found.get("unit", found.get("units", units))
        found = found.get("dimensions")
    lengths = _numbers(found)
    if name == _IN_MICROMETRES:
        units = "um"
        if lengths is None or (list(layout.order) != sorted(layout.order) and len(set(lengths)) > 1):
            return nothing  # of z, y, x, or of the stored axes?
    elif units is None and name in _IN_NANOMETRES and not reverse:
        units = "nm"
    lengths_zyx = _along(lengths, layout, reverse)
    if lengths_zyx is None:
        return nothing
    if units is None or isinstance(units, str):
        return lengths_zyx, [units] * 3
    listed = [str(unit) for unit in np.atleast_1d(units).tolist()]
    along = _along(listed, layout, reverse)
    return lengths_zyx, [None] * 3 if along is None else along


def _transform(transform: Mapping[str, Any], name: str, layout: Layout) -> tuple[list[float] | None, list[str | None]]:
    """``transform`` of N5 and Zarr at Janelia: ``axes``, ``scale``, ``translate`` and ``units`` in one order."""
    axes = [axis_of(str(axis)) for axis in transform.get("axes", [])]
    lengths, units = _numbers(transform.get(name)), transform.get("units")
    if lengths is None or len(lengths) != len(axes) or not set(SPACE) <= set(axes):
        return None, [None] * 3
    if isinstance(units, str):
        units = [units] * len(axes)
    if not isinstance(units, Sequence) or len(units) != len(axes):
        units = [None] * len(axes)
    places = [axes.index(axis) for axis in SPACE]
    return [lengths[place] for place in places], [units[place] for place in places]


def _translation(
    attributes: Mapping[str, Any], layout: Layout, reverse: bool, units: Mapping[str, list[str | None]]
) -> tuple[float, float, float] | None:
    """The position in the unit of the size; without a size in nm or a unit of its own, it is in no known unit."""
    if "transform" in units:
        places, own = _transform(attributes["transform"], "translate", layout)
        return zyx_nanometres(places, own) if places is not None else (0.0, 0.0, 0.0)
    known = [name for name in units if name != _IN_MICROMETRES]
    for name in _OFFSETS if known else ():
        at = _along(_numbers(attributes.get(name)), layout, reverse)
        if at is not None and np.isfinite(at).all():
            return zyx_nanometres(at, units[known[0]])
    return None


def _along(values: list[Any] | None, layout: Layout, reverse: bool) -> list[Any] | None:
    """Values of the stored axes, or of those of space, as those of z, y, x; ``None`` for another number of them."""
    if values is None or len(values) not in (3, len(layout.shape)):
        return None
    return layout.zyx(values[::-1] if reverse else values)


def _numbers(values: Any) -> list[float] | None:
    """Numbers with the digits that they were written with: 0.004, not the 0.004000000189989805 of a float32."""
    found = np.atleast_1d(values) if values is not None else np.empty(0)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iuf":
        return None
    return [float(str(number)) for number in found]


def _close(one: VoxelSize, other: VoxelSize) -> bool:
    """Whether sizes are the same but for the rounding of another unit."""
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(one.zyx, other.zyx, strict=True))

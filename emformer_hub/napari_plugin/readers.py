"""Files as layers: every format of ``open_volume``, lazily, and what lies beside a reconstruction."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.files import record_path
from emformer_hub.napari_plugin.layers import AXES, ORIGIN, UNITS, LayerData, Shown, as_dask
from emformer_hub.volumes import StoredArray, Volume, open_volume
from emformer_hub.volumes.phantom import sample_stack
from emformer_hub.volumes.remote import is_url

log = logging.getLogger(__name__)

UNSURE = {
    "colormap": {"colors": [[1, 0.25, 0, 0], [1, 0.25, 0, 0.9]], "name": "uncertainty"},
    "blending": "translucent",
}
"""Look of uncertainty: the larger it is, the more opaque."""
CONFIDENT = {
    "colormap": {"colors": [[0.1, 0.1, 0.6, 0.6], [0.1, 0.1, 0.6, 0]], "name": "confidence"},
    "blending": "translucent",
    "contrast_limits": (0, 1),
    "visible": False,
}
"""Look of confidence: voxels that are not confident are covered."""


def get_reader(path: str | list[str]) -> Callable[[Any], list[LayerData]] | None:
    """The function that napari calls to read a path; ``None`` for several paths at once."""
    return layers_of if isinstance(path, str) else None


def layers_of(path: str | os.PathLike[str], name: str | None = None) -> list[LayerData]:
    """A volume as a layer; for a reconstruction, also its uncertainty and confidence as layers of their own.

    Args:
        path: path or address of a volume, in any format of ``open_volume``. Voxels stay on disk.
        name: name of the layer; default: that of the file.

    Raises:
        InputError: the path holds no volume.
    """
    name = name or plain_name(path)
    layers = [layer_of(open_volume(path), name, path)]
    for what, look in (("uncertainty", UNSURE), ("confident", CONFIDENT)):
        beside = _beside(path, what)
        if beside is not None:
            layers.append(layer_of(open_volume(beside), f"{name} {what}", beside, **look))
    return layers


def layer_of(
    volume: Volume[np.ndarray | StoredArray], name: str, path: str | os.PathLike[str] | None = None, **look: Any
) -> LayerData:
    """A volume as an image layer with its voxel size, its place and its axes; ``path`` is where it was opened from."""
    levels = [as_dask(volume.data), *map(as_dask, [] if path is None else _coarser(path))]
    keywords: dict[str, Any] = {"name": name, "axis_labels": AXES, "contrast_limits": _limits(levels[-1]), **look}
    if volume.voxel_size is not None:
        keywords |= {"scale": volume.voxel_size.zyx, "units": UNITS, "translate": volume.translation_nm}
    elif volume.lateral_nm is not None or volume.hint:
        log.warning(volume.ask(name))
    if path is not None:
        keywords["metadata"] = {ORIGIN: Shown(os.fspath(path), volume.data, levels[0])}
    return (levels if len(levels) > 1 else levels[0], keywords, "image")


def plain_name(path: str | os.PathLike[str]) -> str:
    """Name of a file or folder without its suffixes: ``/data/stack.ome.zarr`` -> ``stack``."""
    name = os.fspath(path).rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
    return name.removesuffix(".gz").rsplit(".", 1)[0].removesuffix(".ome") or name


def sample() -> list[LayerData]:
    """A synthetic stack, to try the panels with."""
    stack, size = sample_stack()
    keywords = {"name": "neuropil", "scale": size.zyx, "units": UNITS, "axis_labels": AXES}
    return [(stack, keywords, "image")]


def _beside(path: str | os.PathLike[str], what: str) -> Path | None:
    """Another output of the run that made a volume, where its record says or in the same folder."""
    if is_url(path):
        return None
    with suppress(OSError, ValueError, LookupError, TypeError):
        stated = Path(json.loads(record_path(Path(path)).read_text())[what])
        for place in (Path(path).with_name(stated.name), stated):
            if place.exists():
                return place
    return None


def _coarser(address: str | os.PathLike[str]) -> Iterator[StoredArray]:
    """The coarser levels of an OME-Zarr on this machine, as far as they can be read; other formats have none."""
    path = Path(address)
    if is_url(address) or not path.is_dir():
        return
    described: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        described = json.loads((path / "zarr.json").read_text()).get("attributes", {}).get("ome", {})
    with suppress(OSError, ValueError):
        described = described or json.loads((path / ".zattrs").read_text())
    multiscales = described.get("multiscales") or []
    if len(multiscales) != 1:
        return
    axes = "".join(axis["name"] for axis in multiscales[0].get("axes", []) if isinstance(axis, dict))
    try:
        for level in multiscales[0]["datasets"][1:]:
            opened = open_volume(path / level["path"], axes=axes or None)
            if isinstance(opened.data, StoredArray):
                yield opened.data
    except InputError as error:
        log.warning("%s: coarser levels are left out: %s", path, error)


def _limits(data: Any) -> tuple[float, float]:
    """Grey levels shown as black and white: percentiles of the middle section of the coarsest level."""
    middle = np.asarray(data[data.shape[0] // 2], np.float32)
    middle = middle[np.isfinite(middle)]
    black, white = np.percentile(middle, [0.5, 99.5]) if middle.size else (0.0, 1.0)
    return float(black), float(white) if white > black else float(black) + 1.0

"""BigDataViewer: an XML file that names the HDF5 or N5 beside it, what is in it, and the size of a voxel. Read only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes import hdf5, n5_precomputed
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice
from emformer_hub.volumes.checks import not_read
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size

_LOADERS = {"bdv.hdf5": "hdf5", "bdv.n5": "n5"}


class _Setup(NamedTuple):
    """An image: a channel, angle or tile; lengths are those along x, y, z."""

    number: int
    name: str
    lengths: list[float]
    unit: str | None


def is_bigdataviewer(path: Path) -> bool:
    """Whether a file is the XML of BigDataViewer."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".xml" and b"<SpimData" in file.read(4096)


def open_volume(path: Path, choice: Choice = NOTHING_CHOSEN) -> Volume[np.ndarray | StoredArray]:
    """Open the finest level of an image that an XML describes, as it was recorded: its registration is not applied.

    Args:
        path: of the XML.
        choice: of the image (``series``, by number or name, or ``channel``, its number) and of the time point.

    Raises:
        InputError: not that format, several images or time points without a choice, or no HDF5 or N5.
    """
    try:
        root = ElementTree.parse(path).getroot()
        setups = [_setup(found) for found in root.iterfind("SequenceDescription/ViewSetups/ViewSetup")]
        times = _times(root)
        loader = root.find("SequenceDescription/ImageLoader")
        kind = "" if loader is None else str(loader.get("format"))
        file = None if loader is None or kind not in _LOADERS else loader.find(_LOADERS[kind])
        base = (root.findtext("BasePath") or ".").strip()
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise not_read(
            path, error, f"{path} is no XML of BigDataViewer ({error}). Was it copied completely?"
        ) from error
    if file is None or not (file.text or "").strip():
        raise InputError(
            f"{path} names images of the kind {kind or 'none'}; expected HDF5 or N5. Save it in Fiji as OME-TIFF, or "
            f"as HDF5 with Plugins > BigDataViewer > Export."
        )
    setup, time = _chosen(setups, choice, path), _time(times, choice, path)
    named = (file.text or "").strip()
    stored = Path(named) if file.get("type") == "absolute" else path.parent / base / named
    if not stored.exists():
        raise InputError(f"{path} names {stored}, which does not exist. Put both into one folder.")
    rest = Choice(choice.axes)
    volume: Volume[StoredArray]
    if kind == "bdv.hdf5":
        volume = hdf5.open_volume(stored, f"t{time:05}/s{setup.number:02}/0/cells", rest)
    else:
        volume = n5_precomputed.open_volume(stored / f"setup{setup.number}/timepoint{time}/s0", rest)
    size = stated_voxel_size(setup.lengths[::-1], [setup.unit] * 3) if len(setup.lengths) == 3 else None
    hint = "" if size else f"its voxelSize is {setup.lengths} (x,y,z) in unit {setup.unit}"
    return dataclasses.replace(volume, voxel_size=size, source="BigDataViewer XML" if size else "", hint=hint)


def _setup(found: ElementTree.Element) -> _Setup:
    lengths = [float(number) for number in (found.findtext("voxelSize/size") or "").split()]
    name = (found.findtext("name") or "").strip()
    return _Setup(int(found.findtext("id") or 0), name, lengths, found.findtext("voxelSize/unit"))


def _times(root: ElementTree.Element) -> list[int]:
    """Numbers of the time points, as a range or a list such as ``0,2-4``."""
    found = root.find("SequenceDescription/Timepoints")
    if found is None:
        return [0]
    if found.get("type") == "range":
        return [*range(int(found.findtext("first") or 0), int(found.findtext("last") or 0) + 1)]
    numbers: list[int] = []
    for part in (found.findtext("integerpattern") or "0").split(","):
        first, _, last = part.strip().partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _chosen(setups: list[_Setup], choice: Choice, path: Path) -> _Setup:
    wanted = choice.series if choice.series is not None else choice.channel
    found = [setup for setup in setups if wanted is None or str(wanted) in (str(setup.number), setup.name)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{setup.number} ({setup.name})" if setup.name else str(setup.number) for setup in setups)
    raise InputError(f"{path} holds {len(setups)} images: {listed or 'none'}. Choose one, as in --series 0.")


def _time(times: list[int], choice: Choice, path: Path) -> int:
    if choice.time in times:
        return int(choice.time or 0)
    if choice.time is None and len(times) == 1:
        return times[0]
    listed = ", ".join(map(str, times[:12])) + (", ..." if len(times) > 12 else "")
    raise InputError(f"{path} holds {len(times)} time points: {listed}. Choose one, as in --time {times[0]}.")

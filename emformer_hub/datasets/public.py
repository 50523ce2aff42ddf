"""Public volumes of electron microscopy: what exists, where, at which voxel size; and reading a part of one.

The records are data, ``public.json``. Each names the source of its facts (``source``); a licence for which no
statement was found is ``null``, never guessed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import boxes, open_volume
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import check_dtype

MAX_VOXELS = 2**30
"""Most voxels to fetch at once: a gigabyte of 8-bit data."""
IN_PARTS = ("precomputed", "n5", "zarr")
"""Formats that are read in parts."""
FILES = {"hdf5": ".h5", "tiff": ".tif"}
"""Formats that are downloaded whole, and the suffixes of their files."""
TIMEOUT_S = 60
PART_SIDE = 256
"""Voxels along each side of a request: a slow network then takes more requests, not one that exceeds its time limit."""


@dataclass(frozen=True)
class PublicVolume:
    """A public volume.

    Attributes:
        name: name to fetch it by.
        title, specimen, modality: what it shows, and how it was imaged.
        voxel_size: nm, ``(z, y, x)``.
        format: ``precomputed``, ``n5``, ``zarr`` (read in parts), ``hdf5`` or ``tiff`` (downloaded whole).
        url: address of the finest level, ``https://``, ``gs://`` or ``s3://``.
        dataset: path within an HDF5 file.
        licence: as stated by its owners; ``None`` if no statement was found.
        citation: what to cite.
        page: web page of its owners, or of those who show it.
        source: source of these facts.
    """

    name: str
    title: str
    specimen: str
    modality: str
    voxel_size: tuple[float, float, float]
    format: str
    url: str
    dataset: str | None
    licence: str | None
    citation: str
    page: str
    source: str

    def __post_init__(self) -> None:
        if self.format not in (*IN_PARTS, *FILES):
            raise ValueError(f"{self.name}: format is {self.format!r}; expected {', '.join((*IN_PARTS, *FILES))}.")
        object.__setattr__(self, "voxel_size", VoxelSize(*self.voxel_size).zyx)


def public_volumes() -> dict[str, PublicVolume]:
    """All records by name."""
    records = json.loads(Path(__file__).with_suffix(".json").read_text())
    return {record["name"]: PublicVolume(**record) for record in records}


def fetch(volume: PublicVolume, region: Box | None = None) -> np.ndarray:
    """Read a part of a public volume, ``(z, y, x)``, in its own dtype.

    Args:
        volume: the volume.
        region: part to read, in the coordinates of the store, as its viewer shows them; default: all, if it has at most
            2^30 voxels.

    Raises:
        InputError: this machine is offline, the volume cannot be reached or read, or the region lies outside of it; the
            message says what to do.
    """
    from huggingface_hub.constants import is_offline_mode

    by_hand = f"On another machine, get it from {volume.page}, copy it here, and give its path."
    if is_offline_mode():
        raise InputError(f"{volume.title} is not on this machine, and it is offline. {by_hand}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = _read(volume, _downloaded(volume, Path(folder)) if volume.format in FILES else volume.url, region)
    except _Unreachable as error:
        raise InputError(f"{volume.title} cannot be read from {volume.url}: {error} {by_hand}") from error
    check_dtype(data.dtype, volume.title)
    return data


class _Unreachable(Exception):
    """The volume, or a part of it, cannot be reached; the message says why."""


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # InputError is a ValueError
        raise _Unreachable(str(error).splitlines()[0][:300]) from error


def _read(volume: PublicVolume, place: str, region: Box | None) -> np.ndarray:
    """Read a part of a volume from an address, or from a file on this machine."""
    with _reaching():
        stack = open_volume(place)
    first = (0, 0, 0)
    if volume.format == "precomputed" and stack.voxel_size is not None and stack.translation_nm is not None:
        z, y, x = (
            round(at / length - 0.5) for at, length in zip(stack.translation_nm, stack.voxel_size.zyx, strict=True)
        )
        first = (z, y, x)
    chosen = _within(volume, region, [(at, at + length) for at, length in zip(first, stack.data.shape, strict=True)])
    starts = [part.start - at for part, at in zip(chosen, first, strict=True)]
    voxels = np.empty([part.stop - part.start for part in chosen], stack.data.dtype)
    for box in boxes(voxels.shape, (PART_SIDE,) * 3):
        where = tuple(slice(start + part.start, start + part.stop) for start, part in zip(starts, box, strict=True))
        with _reaching():
            voxels[box] = stack.data[where]
    return voxels


def _downloaded(volume: PublicVolume, folder: Path) -> str:
    """Download a whole file; return the path to open."""
    import httpx

    path = folder / f"{volume.name}{FILES[volume.format]}"
    try:
        with (
            httpx.stream("GET", volume.url, follow_redirects=True, timeout=TIMEOUT_S) as response,
            path.open("wb") as file,
        ):
            response.raise_for_status()
            for piece in response.iter_bytes():
                file.write(piece)
    except (httpx.HTTPError, OSError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise _Unreachable(f"{said}. Is there a network?") from error
    return f"{path}:/{volume.dataset}" if volume.dataset else str(path)


def _within(volume: PublicVolume, region: Box | None, bounds: list[tuple[int, int]]) -> Box:
    z, y, x = (slice(first, last) for first, last in bounds)
    chosen = region or (z, y, x)
    there = ",".join(f"{first}:{last}" for first, last in bounds)
    if any(part.start < first or part.stop > last for part, (first, last) in zip(chosen, bounds, strict=True)):
        wanted = ",".join(f"{part.start}:{part.stop}" for part in chosen)
        raise InputError(f"region {wanted} is not all there: {volume.title} is {there} (z, y, x).")
    if math.prod(part.stop - part.start for part in chosen) > MAX_VOXELS:
        raise InputError(
            f"{volume.title} is {there} (z, y, x); at most {MAX_VOXELS / 2**30:g} gigavoxel is fetched at once. Give "
            f"--roi Z0:Z1,Y0:Y1,X0:X1."
        )
    return chosen

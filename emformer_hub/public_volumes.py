"""Public volumes of electron microscopy: what there is, where, of which voxel size, and reading a part of one.

The records are data, ``public_volumes.json``. Each says where its facts were read (``source``); a licence that was not
found stated is ``null``, never guessed.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import Region, VoxelSize
from emformer_hub.volumes import read_volume
from emformer_hub.volumes.checks import check_dtype

MAX_VOXELS = 2**30
"""The most that is fetched at once: a gigabyte of 8-bit voxels."""
DRIVERS = {"precomputed": "neuroglancer_precomputed", "n5": "n5", "zarr": "zarr"}
"""Formats that are read in parts, and TensorStore's names for them."""
FILES = {"hdf5": ".h5", "tiff": ".tif"}
"""Formats that are downloaded whole, and the suffixes of their files."""
TIMEOUT_S = 60


@dataclass(frozen=True)
class PublicVolume:
    """One record.

    Attributes:
        name: what it is fetched by.
        title, specimen, modality: what it shows, and how it was imaged.
        voxel_size: nm, ``(z, y, x)``.
        format: ``precomputed``, ``n5``, ``zarr`` (read in parts), ``hdf5`` or ``tiff`` (downloaded whole).
        url: of the finest level, ``https://``, ``gs://`` or ``s3://``.
        dataset: within an HDF5 file.
        licence: as its owners state it; ``None`` if no statement was found.
        citation: what to cite.
        page: where its owners, or those who show it, say more.
        source: where these facts were read.
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
        if self.format not in {**DRIVERS, **FILES}:
            raise ValueError(f"{self.name}: format is {self.format!r}; expected {', '.join({**DRIVERS, **FILES})}.")
        object.__setattr__(self, "voxel_size", VoxelSize(*self.voxel_size).zyx)


def public_volumes() -> dict[str, PublicVolume]:
    """All records by name."""
    records = json.loads(Path(__file__).with_suffix(".json").read_text())
    return {record["name"]: PublicVolume(**record) for record in records}


def fetch(volume: PublicVolume, region: Region | None = None) -> np.ndarray:
    """Read a part of a public volume, ``(z, y, x)``, in its own dtype.

    Args:
        volume: the record.
        region: in the coordinates of the store, as its viewer shows them; all of it if it has at most 2^30 voxels.

    Raises:
        InputError: offline, not to be reached, gone, not allowed, or a region outside; it says what to do.
    """
    from huggingface_hub.constants import is_offline_mode

    by_hand = f"On another machine, get it from {volume.page}, copy it here, and give its path."
    if is_offline_mode():
        raise InputError(f"{volume.title} is not on this machine, and it is offline. {by_hand}")
    try:
        data = _downloaded(volume, region) if volume.format in FILES else _read(volume, region)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{volume.title} cannot be read from {volume.url}: {str(error).splitlines()[0][:300]}. Is there a network? "
            f"{by_hand}"
        ) from error
    check_dtype(data.dtype, volume.title)
    return data


def _read(volume: PublicVolume, region: Region | None) -> np.ndarray:
    try:
        import tensorstore
    except ImportError as error:
        raise InputError(f"{volume.title} needs TensorStore; run: pip install 'emformer-hub[remote]'") from error
    spec: dict[str, Any] = {
        "driver": DRIVERS[volume.format],
        "kvstore": volume.url,
        "context": {
            "aws_credentials": {"type": "anonymous"},
            "http_request_retries": {"max_retries": 4},
            "s3_request_retries": {"max_retries": 4},
            "gcs_request_retries": {"max_retries": 4},
        },
    }
    store = tensorstore.open(spec, open=True, read=True).result(TIMEOUT_S)
    if volume.format == "precomputed":
        store = store[..., 0]
    if volume.format != "zarr":  # both number their axes x, y, z
        store = store.T
    first, last = store.domain.inclusive_min, store.domain.exclusive_max
    chosen = _within(volume, region, list(zip(first, last, strict=True)))
    return np.ascontiguousarray(store[chosen].read().result())


def _downloaded(volume: PublicVolume, region: Region | None) -> np.ndarray:
    import httpx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{volume.name}{FILES[volume.format]}"
        try:
            with httpx.stream("GET", volume.url, follow_redirects=True, timeout=TIMEOUT_S) as response:
                response.raise_for_status()
                with path.open("wb") as file:
                    for piece in response.iter_bytes():
                        file.write(piece)
        except httpx.HTTPError as error:
            raise OSError(str(error) or type(error).__name__) from error
        data = read_volume(f"{path}:/{volume.dataset}" if volume.dataset else path).data
        chosen = _within(volume, region, [(0, length) for length in data.shape])
        return np.array(data[chosen])  # the file goes


def _within(volume: PublicVolume, region: Region | None, bounds: list[tuple[int, int]]) -> Region:
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

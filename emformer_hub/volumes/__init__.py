"""Volumes on disk, one module per format: ``read_volume`` and ``write_volume`` for whole ones, ``open_volume`` and
``create_volume`` for those that are larger than memory.

In: TIFF stacks (multi-page, ImageJ, OME, BigTIFF), folders of TIFF or PNG sections, OME-Zarr 0.4 and 0.5, Zarr arrays,
HDF5 datasets, MRC, N5, Neuroglancer precomputed; of these, folders also at an address (``s3://``, ``https://``,
``gs://``, ``hf://``). Out: OME-TIFF, folders of TIFF sections, OME-Zarr 0.4 and 0.5 (also into buckets), HDF5, MRC, N5,
Neuroglancer precomputed, WEBKNOSSOS. Axes are z, y, x; lengths are nm. Voxel sizes are read, never guessed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.files import replacing
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import (
    arrays,
    bigdataviewer,
    dm,
    foreign,
    hdf5,
    mrc,
    n5_precomputed,
    slices,
    tensorstore_writing,
    tiff,
    webknossos,
    webknossos_writing,
    zarr_reading,
)
from emformer_hub.volumes.axes import Choice
from emformer_hub.volumes.boxes import boxes
from emformer_hub.volumes.checks import check_dtype, check_mask, check_volume
from emformer_hub.volumes.ome_zarr import OMEZarrWriter, is_zarr
from emformer_hub.volumes.output import (
    HDF5_SUFFIXES,
    LEVELS_SUFFIXES,
    MRC_SUFFIXES,
    N5_SUFFIXES,
    PRECOMPUTED_SUFFIXES,
    SLICES_SUFFIXES,
    TIFF_SUFFIXES,
    WKW_SUFFIXES,
    ZARR_SUFFIXES,
    check_chunks,
    check_output,
    check_writable,
)
from emformer_hub.volumes.remote import Remote, is_url, place, plain_address, replacing_remote
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.translated import Translations, translated
from emformer_hub.volumes.unmeasured import hidden_voxels
from emformer_hub.volumes.volume import Volume
from emformer_hub.volumes.writer import VolumeWriter

__all__ = [
    "StoredArray",
    "Volume",
    "VolumeWriter",
    "boxes",
    "check_mask",
    "check_output",
    "check_volume",
    "create_volume",
    "open_labels",
    "open_volume",
    "read_volume",
    "translated",
    "with_hidden",
    "write_volume",
]

Voxels = TypeVar("Voxels", bound=np.ndarray | StoredArray)

_CREATE: dict[str, Callable[..., VolumeWriter]] = {
    suffix: create
    for suffixes, create in (
        (TIFF_SUFFIXES, tiff.create),
        (HDF5_SUFFIXES, hdf5.create),
        (MRC_SUFFIXES, mrc.create),
        (SLICES_SUFFIXES, slices.create),
        (ZARR_SUFFIXES, OMEZarrWriter.create),
        (N5_SUFFIXES, tensorstore_writing.create_n5),
        (PRECOMPUTED_SUFFIXES, tensorstore_writing.create_precomputed),
        (WKW_SUFFIXES, webknossos_writing.create),
    )
    for suffix in suffixes
}
"""What makes an empty volume, by the suffix of its name."""


def read_volume(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    series: str | None = None,
    pattern: str | None = None,
    nodata: float | None = None,
    mask: str | os.PathLike[str] | None = None,
    translations: Translations | None = None,
) -> Volume[np.ndarray]:
    """Read a volume and the voxel size that its file states.

    The format is told by content, not by suffix. Voxels keep their dtype: uint8, uint16, int16, float16, float32 or
    float64, in native byte order; signed bytes of MRC become int16. A TIFF that is uncompressed, contiguous and in
    native byte order is memory-mapped read-only; anything else is loaded. Axes are those that the file states, else
    z, y, x; axes of length 1 are dropped wherever they stand.

    Args:
        path: a TIFF stack, a folder of TIFF or PNG sections (natural order), an OME-Zarr image, a Zarr array, N5,
            Neuroglancer precomputed, MRC, or HDF5; ``stack.h5:/path/in/file`` names the dataset if the file holds
            several volumes. Zarr, N5 and precomputed also as ``s3://``, ``https://``, ``gs://`` or ``hf://datasets/...``.
        axes: names of the stored axes, the slowest first, such as ``"xyz"`` or ``"tczyx"``; they win over the file's.
        channel: which channel, from 0, of a file that has several.
        time: which time point, from 0.
        series: which image, dataset or array of a file or folder that holds several, by number or name.
        pattern: which files of a folder are sections, such as ``"s_*.tif"``.
        nodata: value of voxels that were not measured, which may be NaN; ``hidden`` of the volume says where they are.
        mask: a volume of the same shape, or one section for all, in any of the formats: nonzero where there is
            something to look at; ``hidden`` holds the others.
        translations: by how much each section is moved along y and x, in voxels, to align the stack; rounded to whole
            ones. What enters the frame is 0 and ``hidden``.

    Returns:
        The volume, data ``(z, y, x)``; ``voxel_size`` is ``None`` if z, y or x is missing or in an unknown unit.

    Raises:
        InputError: the path is missing, unreadable, truncated, or does not hold one grey-value stack; or the mask or
            the translations do not fit it.
    """
    volume = _opened(path, Choice(axes, channel, time, series, pattern, nodata))
    data = volume.data[:] if isinstance(volume.data, StoredArray) else volume.data
    loaded = Volume(data, volume.voxel_size, volume.source, volume.translation_nm, volume.lateral_nm, volume.hint)
    found = with_hidden(loaded, path, nodata, mask)
    if translations is None:
        return found
    moved = translated(found, translations, str(path))
    return dataclasses.replace(found, data=moved.data[:], hidden=moved.hidden)


def open_volume(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    series: str | None = None,
    pattern: str | None = None,
    nodata: float | None = None,
    mask: str | os.PathLike[str] | None = None,
    translations: Translations | None = None,
) -> Volume[np.ndarray | StoredArray]:
    """As ``read_volume``, for volumes that may be larger than memory: voxels stay on disk until ``data`` is sliced.

    ``docs/formats.md`` says which formats that holds for; compressed TIFF and folders of sections are decoded as they
    are sliced. Voxels that turn out to be damaged raise ``InputError`` then.
    """
    volume = with_hidden(_opened(path, Choice(axes, channel, time, series, pattern, nodata)), path, nodata, mask)
    return volume if translations is None else translated(volume, translations, str(path))


def open_labels(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    series: str | None = None,
    pattern: str | None = None,
) -> Volume[np.ndarray | StoredArray]:
    """As ``open_volume``, for labels of objects, 0 for none: whole numbers of 8 to 64 bits, segmentations included.

    Chunks of Zarr, N5 and precomputed that are missing hold no object. Colours that show labels are left out.

    Raises:
        InputError: as ``read_volume``, and for voxels that are not whole numbers.
    """
    return _opened(path, Choice(axes, channel, time, series, pattern, nodata=0, labels=True))


def with_hidden(
    volume: Volume[Voxels],
    path: str | os.PathLike[str],
    nodata: float | None = None,
    mask: str | os.PathLike[str] | None = None,
) -> Volume[Voxels]:
    """The volume that was read from a path, with the voxels hidden that hold a mark or lie outside of a mask."""
    measured = None if mask is None else _opened(mask, Choice()).data
    return dataclasses.replace(volume, hidden=hidden_voxels(volume.data, str(path), nodata, measured))


def _opened(path: str | os.PathLike[str], choice: Choice) -> Volume[np.ndarray | StoredArray]:
    path = plain_address(path)
    if is_url(path):
        return _open_folder(Remote(os.fspath(path)), choice)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, choice)
    file, dataset = hdf5.split_address(path)
    if not file.exists():
        raise InputError(
            f"{path} does not exist; expected a TIFF stack, a folder of sections, an OME-Zarr, HDF5, or MRC. "
            f"Is the path right?"
        )
    if choice.pattern is not None:
        raise InputError(f"{path} is a file; --pattern chooses files of a folder. Leave it out.")
    if not file.is_file():
        raise InputError(
            f"{path} is a pipe or a device; expected a file, in which one can go back. Save what comes out of it first."
        )
    if dataset is not None or hdf5.is_hdf5(file):
        return hdf5.open_volume(file, dataset, choice)
    if tiff.is_tiff(file):
        return tiff.open_volume(file, choice)
    if mrc.is_mrc(file):
        return mrc.open_volume(file, choice)
    if dm.is_dm(file):
        return dm.open_volume(file, choice)
    if bigdataviewer.is_bigdataviewer(file):
        return bigdataviewer.open_volume(file, choice)
    kind = arrays.kind_of(file)
    if kind is not None:
        return arrays.open_volume(file, kind, choice)
    raise foreign.named(file)


def _open_folder(place: Path | Remote, choice: Choice) -> Volume[StoredArray]:
    if is_zarr(place):
        return zarr_reading.open_volume(place, choice)
    if n5_precomputed.is_n5_or_precomputed(place):
        return n5_precomputed.open_volume(place, choice)
    if isinstance(place, Remote):
        raise InputError(
            f"{place} is not an OME-Zarr, Zarr array, N5 or precomputed image, or does not exist. Is the address "
            f"right? Other formats are read from this machine only: download the file first."
        )
    if webknossos.is_webknossos(place):
        return webknossos.open_volume(place, choice)
    other = foreign.named_folder(place)
    if other is not None:
        raise other
    return slices.open_volume(place, choice)


@contextmanager
def create_volume(
    path: str | os.PathLike[str] | Remote,
    shape_zyx: Sequence[int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    *,
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    overwrite: bool = False,
    ome_zarr: str = "0.5",
    labels: bool = False,
    chunk_zyx: Sequence[int] | None = None,
) -> Iterator[VolumeWriter]:
    """Write a volume that need not fit into memory, box by box; it appears under ``path`` when the block ends well.

        with create_volume("out.ome.zarr", shape, dtype, voxel_size) as writer:
            for box in boxes(shape, writer.part_zyx):
                writer.write(box, voxels_of(box))

    Args:
        path: its suffix chooses the format. ``.ome.zarr`` or ``.zarr``: OME-Zarr with a pyramid of levels.
            ``.ome.tif``, ``.ome.tiff``, ``.tif`` or ``.tiff``: OME-TIFF that ImageJ reads without plugins too (up to
            4 GB). ``.h5`` or ``.hdf5``: HDF5. ``.mrc``: MRC. ``.n5``, ``.precomputed`` or ``.wkw``: N5,
            Neuroglancer precomputed or WEBKNOSSOS, with a pyramid. None: a folder with one TIFF for each section.
            OME-Zarr also in a bucket, as ``s3://`` or ``gs://``.
        shape_zyx: of the volume.
        dtype: uint8, uint16, int16, float16 (float32 in TIFF; not in N5, precomputed and WEBKNOSSOS), float32 or
            float64 (not in MRC and precomputed). Of labels, uint8 to uint64 and int8 to int64; 64 bits not in TIFF
            and MRC.
        voxel_size: nm.
        translation_nm: ``(z, y, x)`` position of the first voxel's centre, nm.
        overwrite: replace an existing output, once the new one is complete; in a bucket, before the new one begins.
        ome_zarr: version of OME-Zarr: ``"0.5"``, or ``"0.4"`` for older viewers.
        labels: whether voxels are labels of objects; where the format knows segmentations, it becomes one.
        chunk_zyx: sides of a chunk, (z, y, x), in OME-Zarr, N5, precomputed and HDF5; default: what viewers like.

    Raises:
        InputError: as ``check_output``; no 3-D shape; a dtype that the format has not; or the disk refuses.
    """
    path = place(path)
    check_output(path, overwrite)
    if len(shape_zyx) != 3 or min(shape_zyx) < 1:
        raise InputError(f"data for {path} have shape {tuple(shape_zyx)}; expected (z, y, x), each at least 1.")
    dtype = np.dtype(dtype).newbyteorder("=")
    check_dtype(dtype, f"data for {path}", labels=labels)
    suffix = path.suffix.lower()
    create = partial(_CREATE[suffix], version=ome_zarr) if suffix in ZARR_SUFFIXES else _CREATE[suffix]
    if labels:
        check_writable(path, dtype, labels=True)
        create = partial(create, labels=True) if suffix in LEVELS_SUFFIXES else create
    if chunk_zyx is not None:
        create = partial(create, chunk_zyx=check_chunks(path, chunk_zyx))
    with replacing(path) if isinstance(path, Path) else replacing_remote(path) as partly:
        writer = create(partly, tuple(shape_zyx), dtype, voxel_size, translation_nm)
        yield writer
        writer.finish()


def write_volume(
    path: str | os.PathLike[str] | Remote,
    data: np.ndarray | StoredArray,
    voxel_size: VoxelSize,
    *,
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    overwrite: bool = False,
    ome_zarr: str = "0.5",
    labels: bool = False,
    chunk_zyx: Sequence[int] | None = None,
) -> None:
    """Write a volume; it appears under ``path`` only when it is complete.

    Args:
        path, voxel_size, translation_nm, overwrite, ome_zarr, labels, chunk_zyx: as for :func:`create_volume`.
        data: ``(z, y, x)``; voxels that are on disk are read and written a part at a time.

    Raises:
        InputError: as :func:`create_volume`.
    """
    with create_volume(
        path,
        data.shape,
        data.dtype,
        voxel_size,
        translation_nm=translation_nm,
        overwrite=overwrite,
        ome_zarr=ome_zarr,
        labels=labels,
        chunk_zyx=chunk_zyx,
    ) as writer:
        for box in boxes(data.shape, writer.part_zyx):
            writer.write(box, np.asarray(data[box]))

"""MRC volumes, as IMOD and most programs of electron tomography write them (MRC2014; Cheng et al. 2015).

Lengths in the header are in ångström and have the six digits of a float32. Bytes (mode 0) are signed in MRC2014 and
unsigned in most volumes of cells: IMOD's stamp in the header says which, and is written with 8-bit volumes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.contiguous import ContiguousWriter, open_contiguous
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size, zyx_nanometres

_HEADER = 1024  # bytes
_MAP_AT, _MAP = 208, b"MAP"
_STAMP_AT, _STAMP = 152, 1146047817  # imodStamp and, behind it, imodFlags: IMOD's mrc_format.txt
_SIGNED = 1  # flag: bytes are signed
_BYTES = 0  # mode
_SUFFIXES = (".mrc", ".mrcs", ".rec", ".st", ".ali", ".preali", ".map", ".ccp4")
_LONGEST = 2**24  # no side, and no extended header in bytes, is longer
_HIGHEST_MODE = 101
MODES = {"uint8": 0, "int16": 1, "uint16": 6, "float16": 12, "float32": 2}
"""Voxels that MRC holds, and their numbers in its header."""
_UNSET = (0.1, 0.1, 0.1)  # nm; what programs put when they were given no voxel size
_READ_ERRORS = (ValueError, OSError)  # what mrcfile raises on damaged data


def is_mrc(path: Path) -> bool:
    """Whether a file has the signature of MRC, or else its suffix."""
    with path.open("rb") as file:
        file.seek(_MAP_AT)
        return file.read(len(_MAP)) == _MAP or path.suffix.lower() in _SUFFIXES


def open_volume(path: Path, choice: Choice = NOTHING_CHOSEN) -> Volume[StoredArray]:
    """Open an MRC volume of either byte order; voxels stay on disk. Signed bytes are read as int16.

    The byte order is the one that makes sense of the header: machine stamps are wrong in files of SerialEM and missing
    in old ones. The voxel size is that of the header, unless it is 1 Å, which stands for none; the position is its
    origin. Axes are those of ``mapc``, ``mapr`` and ``maps``.

    Raises:
        InputError: not MRC, truncated, several volumes, a bad dtype, bytes of which nothing says whether they are
            signed, or mrcfile is not installed.
    """
    import_extra("mrcfile", "mrc", f"{path} is MRC")
    try:
        header = _header(path)
        stored = _stored_dtype(header, path)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise not_read(
            path, error, f"{path} cannot be read as MRC ({error}). Is it one, copied completely, and not compressed?"
        ) from error
    dtype = np.dtype(np.int16) if stored == np.int8 else stored.newbyteorder("=")
    check_dtype(dtype, str(path), labels=choice.labels)
    shape = (int(header.nz), int(header.ny), int(header.nx))
    offset = _HEADER + int(header.nsymbt)
    needed, size = offset + math.prod(shape) * stored.itemsize, path.stat().st_size
    if min(shape) < 1 or size < needed:
        raise InputError(
            f"{path} is truncated or damaged: it has {size} bytes, and {needed} are needed. Copy it again."
        )
    layout = lay_out(shape, _axes(header), str(path), choice)
    data = open_contiguous(path, offset, shape, stored, dtype)
    if not layout.is_plain:
        data = layout.stored(dtype, data.chunks, data.__getitem__)
    return Volume(data, *_voxel_size(header), _origin(header))


def _header(path: Path) -> Any:
    """The header in the byte order that makes sense of it.

    Raises:
        ValueError: neither does.
    """
    from mrcfile.dtypes import HEADER_DTYPE

    with path.open("rb") as file:
        raw = file.read(_HEADER)
    if len(raw) < _HEADER:
        raise ValueError(f"it has {len(raw)} bytes; a header has {_HEADER}")
    for order in "<>":
        header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order)).reshape(()).view(np.recarray)
        if _is_plausible(header):
            return header
    raise ValueError("neither byte order makes sense of its header")


def _is_plausible(header: Any) -> bool:
    sides = [int(header[name]) for name in ("nx", "ny", "nz")]
    order = [int(header[name]) for name in ("mapc", "mapr", "maps")]
    return (
        all(0 < side < _LONGEST for side in sides)
        and 0 <= int(header.mode) <= _HIGHEST_MODE
        and (sorted(order) == [1, 2, 3] or order == [0, 0, 0])
        and 0 <= int(header.nsymbt) < _LONGEST
    )


def _axes(header: Any) -> list[str]:
    """Which axis sections, rows and columns lie along."""
    order = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    return ["xyz"[axis - 1] for axis in order] if all(order) else ["z", "y", "x"]


def _stored_dtype(header: Any, path: Path) -> np.dtype:
    from mrcfile.utils import data_dtype_from_header, spacegroup_is_volume_stack

    if spacegroup_is_volume_stack(header.ispg) and header.nz != header.mz:
        raise InputError(f"{path} holds {header.nz // header.mz} volumes; expected one. Save one of them alone.")
    dtype = data_dtype_from_header(header)
    return dtype if dtype != np.int8 or _are_signed(header, path) else np.dtype(np.uint8)


def _are_signed(header: Any, path: Path) -> bool:
    """Whether the bytes of mode 0 are signed: as IMOD's stamp has it, else as their range in the header has."""
    stamp, flags = np.frombuffer(header.tobytes(), header.mode.dtype, 2, _STAMP_AT)
    if stamp == _STAMP:
        return bool(flags & _SIGNED)
    lowest, highest = float(header.dmin), float(header.dmax)
    if lowest < highest and (lowest < 0) != (highest > 127):
        return lowest < 0
    if 0 <= lowest < highest:
        return False  # up to 127, signed and unsigned bytes are the same
    raise InputError(
        f"{path} holds bytes, and nothing in its header says whether they are signed. Save it again, for example with "
        f"IMOD: `newstack -mode 6 {path.name} words.mrc`."
    )


def _voxel_size(header: Any) -> tuple[VoxelSize | None, str]:
    angstrom = [
        float(f"{cell / intervals:.6g}") if intervals > 0 else 0.0
        for cell, intervals in ((float(header.cella[axis]), int(header[f"m{axis}"])) for axis in "zyx")
    ]
    size = stated_voxel_size(angstrom, ["angstrom"] * 3)
    return (None, "") if size is None or size.zyx == _UNSET else (size, "MRC header")


def _origin(header: Any) -> tuple[float, float, float] | None:
    origin = [float(f"{float(header.origin[axis]):.6g}") for axis in "zyx"]
    return zyx_nanometres(origin, ["angstrom"] * 3) if np.isfinite(origin).all() and any(origin) else None


@dataclass(frozen=True)
class MRCWriter(ContiguousWriter):
    """An MRC volume in the making; other processes may write at the same time."""

    def finish(self) -> None:
        """Put range, mean and deviation of the voxels into the header, by which programs choose their contrast."""
        import mrcfile

        voxels = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        lowest, highest, total, squares = np.inf, -np.inf, 0.0, 0.0
        for section in voxels:
            values = section.astype(np.float64)
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            total, squares = total + values.sum(), squares + np.square(values).sum()
        mean = total / voxels.size
        with mrcfile.mmap(self.path, "r+") as mrc:
            mrc.header.dmin, mrc.header.dmax, mrc.header.dmean = lowest, highest, mean
            mrc.header.rms = np.sqrt(max(0.0, squares / voxels.size - mean**2))


def create(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
) -> MRCWriter:
    """Make an MRC volume, full of zeros.

    Raises:
        InputError: MRC has no such voxels.
    """
    import mrcfile

    if dtype.name not in MODES:
        raise InputError(
            f"MRC has no {dtype} voxels, only {', '.join(MODES)}. Write .ome.zarr instead, or convert the input."
        )
    with mrcfile.new_mmap(path, shape_zyx, mrc_mode=MODES[dtype.name]) as mrc:
        mrc.set_volume()
        mrc.voxel_size = tuple(10 * length for length in reversed(voxel_size.zyx))
        mrc.header.origin = tuple(10 * place for place in reversed(translation_nm))
        mrc.header.dmin, mrc.header.dmax, mrc.header.dmean, mrc.header.rms = 0, -1, -2, -1  # MRC2014: not known yet
    if MODES[dtype.name] == _BYTES:
        with path.open("r+b") as file:
            file.seek(_STAMP_AT)
            file.write(struct.pack("=2i", _STAMP, 0))
    return MRCWriter(path, _HEADER, shape_zyx, dtype)

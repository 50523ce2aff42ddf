"""What a reader hands over, and the conversion of length units that every format needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.stored import StoredArray

Voxels_co = TypeVar("Voxels_co", bound=np.ndarray | StoredArray, covariant=True)

# Casefolded spellings, so that Å (U+00C5, U+212B) and µ (U+00B5, U+03BC) each arrive as one letter. OME-XML writes
# symbols, OME-Zarr UDUNITS-2 names, ImageJ what the user typed.
_NANOMETRES_PER = {
    spelling: nanometres
    for nanometres, spellings in (
        (1e-3, "pm picometer picometre"),
        (0.1, "\u00e5 angstrom \u00e5ngstr\u00f6m"),
        (1.0, "nm nanometer nanometre nanometers nanometres"),
        (1e3, "\u03bcm um micron microns micrometer micrometre micrometers micrometres"),
        (1e6, "mm millimeter millimetre"),
        (1e7, "cm centimeter centimetre"),
        (1e9, "m meter metre"),
    )
    for spelling in spellings.split()
}


SMALLEST_NM, LARGEST_NM = 0.5, 10_000.0
"""Sides of voxels that stacks of electron micrographs have."""


@dataclass(frozen=True, eq=False)
class Volume(Generic[Voxels_co]):
    """A stack of sections and what its file says about it.

    Attributes:
        data: ``(z, y, x)``, native byte order, the file's dtype and values; a read-only memory map where possible.
            From ``open_volume`` it may be a :class:`StoredArray`, whose slices are arrays.
        voxel_size: nm; ``None`` if the file does not state all three lengths in a known unit.
        source: where ``voxel_size`` came from: "OME-XML", "ImageJ metadata", "multiscales",
            "element_size_um", "resolution" and others; "" if nowhere.
        translation_nm: ``(z, y, x)`` position of the first voxel's centre in nm; ``None`` if the file has none.
        lateral_nm: ``(y, x)`` size of a pixel in nm, where a microscope or camera states no more than that.
        hint: what else the file says of lengths, such as numbers without a unit; "" if nothing.
        hidden: mask of the voxels that were not measured, by a mark of no data or a mask, bool ``(z, y, x)``; ``None``
            if neither was given.
    """

    data: Voxels_co
    voxel_size: VoxelSize | None
    source: str
    translation_nm: tuple[float, float, float] | None = None
    lateral_nm: tuple[float, float] | None = None
    hint: str = ""
    hidden: StoredArray | None = None

    def ask(self, name: str) -> str:
        """The message for a volume ``name`` that states no voxel size, and so needs one."""
        if self.lateral_nm is not None:
            y, x = self.lateral_nm
            return (
                f"{name} states pixels of {y:g},{x:g} nm (y,x; {self.hint}), and not how far its sections are apart; "
                f"give the section spacing in nm, as in --voxel-size 40, or all of --voxel-size Z,Y,X."
            )
        said = f" ({self.hint})" if self.hint else ""
        return f"{name} states no voxel size{said}; give --voxel-size Z,Y,X in nm, as in --voxel-size 40,4,4."


class Stated(NamedTuple):
    """What metadata say about lengths; fields as in :class:`Volume`, in its order."""

    voxel_size: VoxelSize | None = None
    source: str = ""
    translation_nm: tuple[float, float, float] | None = None
    lateral_nm: tuple[float, float] | None = None
    hint: str = ""


def check_plausible(size: VoxelSize, name: str) -> None:
    """Raise ``InputError`` if a voxel of an electron micrograph is never so small or so large."""
    for axis, length in zip("zyx", size.zyx, strict=True):
        if length < SMALLEST_NM or length > LARGEST_NM:
            finer = length < SMALLEST_NM
            unit, factor = ("micrometres", 1e3) if finer else ("picometres or ångström", 0.1)
            meant, said = (",".join(f"{float(f'{one * by:.12g}'):.12g}" for one in size.zyx) for by in (factor, 1.0))
            raise InputError(
                f"the voxel size of {name} is {size}, of which {axis} is {'finer' if finer else 'coarser'} than "
                f"electron micrographs of cells have it ({SMALLEST_NM:g} nm to {LARGEST_NM / 1000:g} µm); were {unit} "
                f"meant? That would be --voxel-size {meant}. If it is right, state the unit: --voxel-size "
                f"{said}nm."
            )


def to_nanometres(length: float, unit: str | None) -> float | None:
    """``(4, "µm") -> 4000.0``; ``None`` if the unit is missing, unknown, or "pixel"."""
    # ImageJ writes the micro sign as the six characters \u00B5
    spelling = (unit or "").strip().casefold().replace("\\u00b5", "\u03bc")
    nanometres = _NANOMETRES_PER.get(spelling)
    if nanometres is None:
        return None
    # floats such as 0.004 * 1000 carry no more digits than the file: 4.0, not 4.000000000000001
    return float(f"{length * nanometres:.15g}")


def zyx_nanometres(lengths: Sequence[float], units: Sequence[str | None]) -> tuple[float, float, float] | None:
    """Three lengths z, y, x in nm; ``None`` if one of them has no known unit."""
    z, y, x = (to_nanometres(length, unit) for length, unit in zip(lengths, units, strict=True))
    return None if z is None or y is None or x is None else (z, y, x)


def stated_voxel_size(lengths: Sequence[float], units: Sequence[str | None]) -> VoxelSize | None:
    """The voxel size that three lengths z, y, x state; ``None`` if a unit is unknown or a length is not positive."""
    zyx = zyx_nanometres(lengths, units)
    return VoxelSize(*zyx) if zyx and all(math.isfinite(length) and length > 0 for length in zyx) else None

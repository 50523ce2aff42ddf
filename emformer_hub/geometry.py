"""How sections sample tissue: voxel sizes and the one description of section geometry.

Conventions, fixed here for the whole package:

* Axes are ``z, y, x``; ``z`` is the section axis. Lengths are nanometres, unless a name says otherwise.
* ``factor`` s is the anisotropy factor, input section spacing / output plane spacing: any real number from 1 to 16.
* Section ``i`` owns the slab ``[i*s, (i+1)*s)``, in units of output planes. A stack of ``n`` sections becomes
  ``round(n*s)`` planes over the same physical extent; plane ``k`` covers ``[k, k+1)``, its centre is at ``k + 0.5``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError, check_number

FACTOR_MIN, FACTOR_MAX = 1.0, 16.0
_UNITS = {"nm": 1.0, "um": 1e3, "\u00b5m": 1e3, "\u03bcm": 1e3, "A": 0.1, "\u00c5": 0.1}


@dataclass(frozen=True)
class VoxelSize:
    """Edge lengths of a voxel in nanometres, in the order z, y, x.

    Raises:
        InputError: a length is not a positive, finite number.
    """

    z: float
    y: float
    x: float

    def __post_init__(self) -> None:
        for axis, length in zip("zyx", self.zyx, strict=True):
            check_number(f"voxel size along {axis}", length)
            if not (math.isfinite(length) and length > 0):
                raise InputError(
                    f"voxel size along {axis} is {length} nm; expected a positive number, as in 40,4,4 (z,y,x)."
                )

    @classmethod
    def parse(cls, text: str) -> VoxelSize:
        """``"40,4,4"`` and ``"0.04,0.004,0.004um"`` -> ``VoxelSize(40, 4, 4)`` (nm, z,y,x)."""
        unit = unit_of(text)
        parts = text.strip().removesuffix(unit).split(",")
        try:
            z, y, x = (float(f"{float(part) * _UNITS.get(unit, 1.0):.15g}") for part in parts)
        except ValueError:
            raise InputError(
                f"voxel size {text!r} is not three numbers; expected Z,Y,X in nm, as in 40,4,4, or with another unit, "
                f"as in 0.04,0.004,0.004um."
            ) from None
        return cls(z, y, x)

    @property
    def zyx(self) -> tuple[float, float, float]:
        return (self.z, self.y, self.x)

    @property
    def lateral(self) -> float:
        """Geometric mean of y and x: the voxel edge that isotropic output takes by default (nm)."""
        return math.sqrt(self.y * self.x)

    def factor_to(self, target_z: float | None = None) -> float:
        """Anisotropy factor between these sections and planes ``target_z`` nm apart (default: the lateral size).

        Raises:
            InputError: the factor is outside 1-16, with what that usually means.
        """
        target = self.lateral if target_z is None else target_z
        if not (math.isfinite(target) and target > 0):
            raise InputError(f"target plane spacing is {target} nm; expected a positive number.")
        factor = self.z / target
        if factor < FACTOR_MIN:
            raise InputError(
                f"z ({self.z:g} nm) is finer than the target spacing ({target:g} nm): factor {factor:.3g} is below 1. "
                f"Voxel sizes are given as Z,Y,X; is the order right? Otherwise there is nothing to restore along z."
            )
        return check_factor(factor)

    def with_z(self, z: float) -> VoxelSize:
        return VoxelSize(z, self.y, self.x)

    def __str__(self) -> str:
        return f"{self.z:g},{self.y:g},{self.x:g} nm (z,y,x)"


def unit_of(text: str) -> str:
    """The unit that a length ends in, ``nm``, ``um`` or ``A`` (ångström); "" if it has none."""
    return next((unit for unit in _UNITS if text.strip().endswith(unit)), "")


def recut_origin(
    size: VoxelSize, new_size: VoxelSize, first: tuple[float, float, float] | None = None
) -> tuple[float, float, float]:
    """Centre of the first voxel (z, y, x; nm) once the same extent along z is cut into voxels of another size.

    Args:
        size, new_size: voxel sizes before and after.
        first: centre of the first voxel before; default: the origin.
    """
    z, y, x = first or (0.0, 0.0, 0.0)
    return (z + (new_size.z - size.z) / 2, y, x)


def check_factor(factor: float) -> float:
    """Return ``factor`` if it is a real number from 1 to 16, else raise ``InputError``."""
    check_number("anisotropy factor", factor)
    if not (math.isfinite(factor) and FACTOR_MIN <= factor <= FACTOR_MAX):
        raise InputError(
            f"anisotropy factor is {factor:g}; expected {FACTOR_MIN:g} to {FACTOR_MAX:g}. "
            f"Choose another target spacing (--target-nm) or factor (--factor)."
        )
    return float(factor)


def section_weights(positions: Sequence[float], num_sections: int, factor: float, thickness: float) -> np.ndarray:
    """The part of the matrix A whose sections lie within these planes, float64 ``(sections, planes)``.

    Rows sum to one (:meth:`SectionModel.matrix`); those of sections that lack more than half a plane are zero, because
    the planes say too little of them.

    Args:
        positions: centres of planes ``1 / factor`` apart, in section coordinates: ``i`` is the centre of section ``i``.
        num_sections: how many there are.
        factor: planes per section.
        thickness: imaged fraction of the section spacing, in (0, 1].
    """
    centres = np.asarray(positions, np.float64)
    sections = np.arange(num_sections)[:, None]
    stop = np.minimum(centres + 0.5 / factor, sections + thickness / 2)
    start = np.maximum(centres - 0.5 / factor, sections - thickness / 2)
    return whole_weights(factor * (stop - start).clip(min=0), factor * thickness)


def whole_weights(overlap: np.ndarray, depth: float | np.ndarray) -> np.ndarray:
    """Weights of planes in sections from how much of each plane lies in each section, float64 ``(sections, planes)``.

    Args:
        overlap: ``(sections, planes)``, in planes.
        depth: imaged depth of the sections, in planes; a number or ``(sections, 1)``. Those of which more than half a
            plane is missing get no weights.
    """
    overlap = np.where(overlap < 1e-6, 0.0, overlap)
    covered = overlap.sum(axis=1, keepdims=True)
    whole = covered > depth - 0.5 - 1e-6
    return np.where(whole, overlap / covered.clip(min=1e-6), 0.0)


@dataclass(frozen=True, eq=False)
class Rows:
    """Sections as the network sees them: rows at equal steps, the centre of row ``i`` at ``i``.

    Attributes:
        factor, thickness: planes per row and imaged fraction, as the network is told.
        positions: centres of planes among the rows, float64 ``(planes,)``.
        sections: for each row, the section that it holds, -1 for a lost one; ``None`` where the rows are the sections.
        wide: planes within gaps that are too wide to be predicted, bool ``(planes,)``; ``None`` if there are none.
    """

    factor: float
    thickness: float
    positions: np.ndarray
    sections: np.ndarray | None = None
    wide: np.ndarray | None = None

    def fill(self, sections: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Sections and the mask of what was not measured of them, with lost ones between, which are masked."""
        if self.sections is None:
            return sections, mask
        lost = self.sections < 0
        masked = np.zeros((len(sections), 1, 1), bool) if mask is None else mask
        return sections[self.sections], masked[self.sections] | lost[:, None, None]

    def place(self, sections: slice) -> slice | np.ndarray:
        """The rows that hold some of the sections."""
        if self.sections is None:
            return sections
        return np.flatnonzero((self.sections >= sections.start) & (self.sections < sections.stop))


@dataclass(frozen=True)
class SectionModel:
    """How a stack of sections samples the isotropic signal: a sparse row-stochastic matrix, sections x planes.

    Section ``i`` is the mean of the signal over ``[i*s + o, i*s + o + t*s]``, in planes.

    Args:
        factor: s, output planes per section; real, 1 to 16.
        thickness: t, the imaged fraction of the section spacing, in (0, 1]. 1 is a physical section seen through its
            whole thickness (ssTEM, array tomography); 1/s is a block face one plane deep (FIB-SEM, SBF-SEM).
        offset: o, where the imaged part begins within the slab, in planes; ``None`` centres it, ``(1 - t) * s / 2``.

    Raises:
        InputError: a value is out of range, or the imaged part would leave the slab.
    """

    factor: float
    thickness: float = 1.0
    offset: float | None = None

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_number("section thickness", self.thickness)
        if self.offset is not None:
            check_number("section offset", self.offset)
        if not 0 < self.thickness <= 1:
            raise InputError(
                f"section thickness is {self.thickness:g}; expected a fraction of the section spacing in (0, 1]: "
                f"1 for sections seen through (ssTEM), towards 1/factor for block faces (FIB-SEM, SBF-SEM)."
            )
        slack = (1 - self.thickness) * self.factor
        if self.offset is None:
            object.__setattr__(self, "offset", slack / 2)
        elif not -1e-9 <= self.offset <= slack + 1e-9:
            raise InputError(
                f"section offset is {self.offset:g} planes; expected 0 to {slack:g} at factor {self.factor:g} "
                f"and thickness {self.thickness:g}."
            )

    @property
    def centre(self) -> float:
        """Centre of the imaged part within the slab, in section spacings: 0.5 unless an offset was given."""
        assert self.offset is not None
        return self.offset / self.factor + self.thickness / 2

    def plane_size(self, section_size: VoxelSize) -> VoxelSize:
        """Voxel size of the planes (nm) that sections of this voxel size become."""
        return section_size.with_z(section_size.z / self.factor)

    def plane_origin(
        self, section_size: VoxelSize, first_section: tuple[float, float, float] | None = None
    ) -> tuple[float, float, float]:
        """Centre of the first voxel of the planes (z, y, x; nm): planes begin at the face where the sections begin.

        Args:
            section_size: voxel size of the sections.
            first_section: centre of the first voxel of the sections; default: the origin.
        """
        return recut_origin(section_size, self.plane_size(section_size), first_section)

    def section_origin(
        self, section_size: VoxelSize, first_plane: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """Centre of the first voxel of the sections (z, y, x; nm): the inverse of :meth:`plane_origin`."""
        return recut_origin(self.plane_size(section_size), section_size, first_plane)

    def num_planes(self, num_sections: int) -> int:
        """Planes that ``num_sections`` sections become: ``round(n * s)``, halves up."""
        return math.floor(num_sections * self.factor + 0.5 + 1e-9)

    def num_sections(self, num_planes: int) -> int:
        """The most sections that ``num_planes`` planes hold: the inverse of ``num_planes``."""
        sections = math.floor((num_planes + 0.5) / self.factor) + 1
        while sections > 0 and self.num_planes(sections) > num_planes:
            sections -= 1
        return sections

    def plane_positions(self, num_planes: int, first_plane: int = 0) -> np.ndarray:
        """Centres of planes in section coordinates (section ``i`` has its centre at ``i``), float64 ``(planes,)``."""
        return self.to_sections(np.arange(first_plane, first_plane + num_planes))

    def section_positions(self, num_sections: int) -> np.ndarray:
        """Centres of sections in plane coordinates (plane ``k`` has its centre at ``k``), float64 ``(sections,)``."""
        return self.to_planes(np.arange(num_sections))

    def to_sections(self, planes: np.ndarray) -> np.ndarray:
        """Section coordinates of positions in plane coordinates, any shape; both have centres at whole numbers."""
        return (planes + 0.5) / self.factor - self.centre

    def to_planes(self, sections: np.ndarray) -> np.ndarray:
        """Plane coordinates of positions in section coordinates: the inverse of :meth:`to_sections`."""
        return (sections + self.centre) * self.factor - 0.5

    def sections_of(self, num_planes: int, first_plane: int = 0) -> np.ndarray:
        """The sections in whose slabs planes have their centres, int64 ``(planes,)``."""
        return np.floor((np.arange(first_plane, first_plane + num_planes) + 0.5) / self.factor).astype(np.int64)

    def first_plane(self, section: int) -> int:
        """The plane that the slab of a section begins in."""
        return math.floor(section * self.factor)

    @property
    def even(self) -> SectionModel:
        """The same sections, all as far apart as they are on average."""
        return self

    @property
    def slabs_hold_whole_planes(self) -> bool:
        """Whether no plane lies in two slabs."""
        return self.factor % 1 == 0

    def part(self, sections: slice) -> SectionModel:
        """Geometry of some sections alone; raises ``InputError`` if there are no such sections."""
        return self

    def check_sections(self, num_sections: int, name: str) -> None:
        """Raise ``InputError`` unless this can be the geometry of a stack of so many sections, called ``name``."""

    def check_gaps(self, masked: np.ndarray) -> None:
        """Raise ``InputError`` if sections that are lost and those that are masked leave too few around them.

        Args:
            masked: bool ``(sections,)``.
        """

    def distance(self, section: int) -> float:
        """From the centre of the first section to that of another, in section spacings."""
        return section

    def planes_of(self, sections: slice) -> slice:
        """Planes in the slabs of some sections."""
        return slice(self.first_plane(sections.start), self.num_planes(sections.stop))

    def sections_around(self, planes: slice) -> slice:
        """Sections whose slabs some planes touch."""
        return slice(math.floor(planes.start / self.factor), math.ceil(planes.stop / self.factor))

    def sections_within(self, planes: slice) -> slice:
        """Sections whose slabs lie within some planes; empty if there are none."""
        first, last = math.ceil(planes.start / self.factor), math.floor(planes.stop / self.factor)
        return slice(first, max(first, last))

    def least_planes(self, num_rows: int) -> int:
        """Planes that any so many neighbouring rows hold at least."""
        return math.floor(num_rows * self.factor)

    def row(self, section: int) -> int:
        """The row that a section is, counted from the first of the stack (:class:`Rows`)."""
        return section

    def rows(self, sections: slice, planes: slice) -> Rows:
        """What the network sees of some sections, and where some planes lie among them."""
        positions = self.plane_positions(planes.stop - planes.start, planes.start) - sections.start
        return Rows(self.factor, self.thickness, positions)

    def weights(self, planes: slice, sections: slice, among: slice) -> np.ndarray:
        """The part of A that lies within some planes, float64 ``(sections, planes)`` (:func:`section_weights`).

        Args:
            planes: planes.
            sections: sections that the network sees.
            among: place among these of the sections that are wanted.
        """
        positions = self.rows(sections, planes).positions - among.start
        return section_weights(positions.tolist(), among.stop - among.start, self.factor, self.thickness)

    def lost(self, planes: slice) -> np.ndarray | None:
        """True for planes of lost sections, bool ``(planes,)``; ``None`` if no section is lost."""
        return None

    def wide(self, planes: slice) -> np.ndarray | None:
        """True for planes of so many lost sections that they cannot be predicted; ``None`` if there are none."""
        return None

    def gaps(self) -> list[dict[str, Any]]:
        """Where sections are lost: ``{"after": section, "sections": number, "planes": [first, stop], "wide": bool}``.

        Planes of wide gaps are interpolated, and none of them counts as confident.
        """
        return []

    def matrix(self, num_sections: int, first_section: int = 0) -> np.ndarray:
        """The matrix A, float64 ``(sections, planes)``; rows sum to one, clipped to the extent of the planes.

        Its part from a section and that section's first plane on, if ``first_section`` is given.
        """
        assert self.offset is not None
        end = self.num_planes(num_sections)
        planes = np.arange(self.first_plane(first_section), end)
        start = np.arange(first_section, num_sections)[:, None] * self.factor + self.offset
        stop = np.minimum(start + self.thickness * self.factor, end)
        start = np.minimum(start, end - 1e-6)
        overlap = np.clip(np.minimum(stop, planes + 1) - np.maximum(start, planes), 0, None)
        overlap[overlap < 1e-9 * overlap.max(axis=1, keepdims=True)] = 0
        return overlap / overlap.sum(axis=1, keepdims=True)

    def degrade(self, volume: np.ndarray) -> np.ndarray:
        """Sections as this geometry would image them: ``(planes, ...) -> (sections, ...)``, float32.

        Planes beyond the last whole section are left out. Raises ``InputError`` if not one section fits.
        """
        sections = self.num_sections(volume.shape[0])
        if sections == 0:
            raise InputError(
                f"{volume.shape[0]} planes do not hold one section at factor {self.factor:g}; give a longer volume."
            )
        weights = self.matrix(sections).astype(np.float32)
        degraded = np.empty((sections, *volume.shape[1:]), np.float32)
        for row, weight in enumerate(weights):  # the matrix is sparse: touch only the planes of one section at a time
            (used,) = np.nonzero(weight)
            planes = volume[used[0] : used[-1] + 1].astype(np.float32)
            degraded[row] = np.tensordot(weight[used[0] : used[-1] + 1], planes, axes=1)
        return degraded

"""Sections at positions and of thicknesses of their own: geometry of stacks that are not evenly spaced."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .errors import InputError
from .geometry import FACTOR_MAX, FACTOR_MIN, Rows, SectionModel, VoxelSize, check_factor, whole_weights

ZPositions = Sequence[tuple[float, float]]
"""Centre and thickness of each section, nm."""

OVERLAP = 0.01
"""By how much of their distance neighbouring sections may overlap: what rounding makes of sections that touch."""
SPACING = 0.01
"""By how much a stated spacing may lie outside of the listed ones: what rounding makes of it."""
NEAR = 3
"""Spacings on either side of one that say how far apart sections are there."""
MOST_LOST = 10
"""Most sections that may be lost in a row."""
MOST_CROWDED, CROWD = 3, 7
"""Of lost sections, at most 3 of 7 neighbours are predicted, as of masked ones: wider gaps are not learnt."""
LEAST_ROOM = 0.65
"""Room for a lost section, in usual spacings beyond the usual space: more than uneven milling leaves."""
OCTAVES, FRACTIONS = 0.5, 0.25
"""Steps in which the network is told that sections of a block are further apart, and thicker, than those of the stack:
so coarse that jitter makes none, and blocks of other sizes give the same, and fine enough for new milling steps."""
MOST_DEVIATIONS = 2.5
"""Largest deviation of a simulated thickness, in standard deviations."""


@dataclass(frozen=True)
class UnevenSections(SectionModel):
    """How sections sample the isotropic signal whose positions and thicknesses are listed.

    A slab ends half way between the face of its section and that of the next one. Where the space between two faces
    has room for sections that are lost, the network sees those as masked; all other numbers of sections count those
    that are there. Planes of lost sections are predicted where at most 3 of 7 neighbours are lost, else interpolated.
    Positions between listed ones are interpolated, slab by slab.

    Args:
        factor: planes per section by the voxel size of the stack; 1 to 16.
        centres: centres of the sections, in planes from the face that the planes begin at.
        depths: imaged depths of the sections, in planes.
        extent: where the last slab ends, in planes.

    Raises:
        InputError: a slab is thinner than a plane, or more than 10 sections are lost in a row.
    """

    thickness: float = field(init=False)
    offset: float = field(init=False)
    centres: tuple[float, ...] = ()
    depths: tuple[float, ...] = ()
    extent: float = 0.0

    def __post_init__(self) -> None:
        check_factor(self.factor)
        slabs = np.diff(self._bounds)
        thickness = float(np.clip(np.median(np.array(self.depths) / slabs), 1 / self.factor, 1))
        object.__setattr__(self, "thickness", thickness)
        object.__setattr__(self, "offset", (1 - thickness) * self.factor / 2)
        thinnest = int(slabs[1:-1].argmin()) + 1 if len(slabs) > 2 else 0
        if slabs[thinnest] < FACTOR_MIN - 1e-6:
            raise InputError(
                f"section {thinnest} has {slabs[thinnest]:.2g} planes to itself; expected at least one. Choose a finer "
                f"spacing of the planes (--target-nm)."
            )
        longest = int(self._num_lost.argmax())
        if self._num_lost[longest] > MOST_LOST:
            raise InputError(
                f"by their positions, {self._num_lost[longest]} sections are lost after section {longest}; expected at "
                f"most {MOST_LOST}. Are the positions in nm? Reconstruct the parts of the stack on either side by "
                f"themselves, with --roi."
            )

    @classmethod
    def of(cls, z_positions: ZPositions, plane_nm: float, factor: float | None = None) -> UnevenSections:
        """Geometry of listed sections.

        Args:
            z_positions: centre and thickness of each section, nm.
            plane_nm: spacing of the output planes.
            factor: planes per section by the voxel size of the stack; default: the median of the spacings.

        Raises:
            InputError: :func:`check_z_positions` fails, or as the class.
        """
        listed = np.array(check_z_positions(z_positions)) / plane_nm
        spacing = float(np.median(np.diff(listed[:, 0])))
        return cls._between_faces(spacing if factor is None else factor, listed[:, 0], listed[:, 1])

    @classmethod
    def _between_faces(cls, factor: float, centres: np.ndarray, depths: np.ndarray) -> UnevenSections:
        """Sections between half a usual space before the first face and behind the last one."""
        edge = float(np.median(_spaces(centres, depths))) / 2
        start, stop = centres[0] - depths[0] / 2 - edge, centres[-1] + depths[-1] / 2 + edge
        return cls(factor, tuple((centres - start).tolist()), tuple(depths.tolist()), float(stop - start))

    def listed(self, plane_nm: float) -> tuple[tuple[float, float], ...]:
        """Centre and thickness of each section, nm, from the face that the planes begin at."""
        return tuple((c * plane_nm, d * plane_nm) for c, d in zip(self.centres, self.depths, strict=True))

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def _bounds(self) -> np.ndarray:
        """Where slabs begin, and the last one ends, ``(sections + 1,)``."""
        centres, depths = np.array(self.centres), np.array(self.depths)
        inner = (centres[:-1] + depths[:-1] / 2 + centres[1:] - depths[1:] / 2) / 2
        return np.concatenate([[0.0], inner, [self.extent]])

    @cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds and centres of slabs in planes, and in section coordinates."""
        return _interleaved(self._bounds, np.array(self.centres))

    @cached_property
    def _num_lost(self) -> np.ndarray:
        """Number of sections that are lost between each section and the next."""
        centres = np.array(self.centres)
        spaces, spacings = _spaces(centres, np.array(self.depths)), np.diff(centres)
        excess = (spaces - _usual(spaces)) / _usual(spacings)
        return np.maximum(np.floor(excess + 1 - LEAST_ROOM), 0).astype(np.int64)

    @cached_property
    def _row_sections(self) -> np.ndarray:
        """The section of each row, -1 where it is lost."""
        after = np.append(self._num_lost, 0)
        return np.concatenate([[section, *(-1,) * lost] for section, lost in enumerate(after)]).astype(np.int64)

    @cached_property
    def _lost_rows(self) -> np.ndarray:
        return self._row_sections < 0

    @cached_property
    def _wide_rows(self) -> np.ndarray:
        return _crowded(self._lost_rows)

    @cached_property
    def _section_rows(self) -> np.ndarray:
        """The row of each section."""
        return np.flatnonzero(~self._lost_rows)

    @cached_property
    def _row_bounds(self) -> np.ndarray:
        """Where rows begin, and the last one ends, in planes, ``(rows + 1,)``; lost ones share the space evenly."""
        centres, depths = np.array(self.centres), np.array(self.depths)
        half = _usual(_spaces(centres, depths)) / 2
        upper, lower = centres[:-1] + depths[:-1] / 2 + half, centres[1:] - depths[1:] / 2 - half
        bounds = [self._bounds[:1]]
        for number, lost in enumerate(self._num_lost):
            between = np.linspace(upper[number], lower[number], lost + 1) if lost else self._bounds[[number + 1]]
            bounds.append(between)
        return np.concatenate([*bounds, self._bounds[-1:]])

    @cached_property
    def _row_knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds and centres of rows in planes, and in row coordinates."""
        bounds = self._row_bounds
        centres = (bounds[:-1] + bounds[1:]) / 2
        centres[self._section_rows] = self.centres
        return _interleaved(bounds, centres)

    @property
    def even(self) -> SectionModel:
        return SectionModel(self.factor, self.thickness)

    @property
    def slabs_hold_whole_planes(self) -> bool:
        return False

    @property
    def centre(self) -> float:
        return 0.5

    def part(self, sections: slice) -> SectionModel:
        start, stop, _ = sections.indices(len(self))
        if (start, stop) == (0, len(self)):
            return self
        if not (sections.stop or stop) == stop >= start + 2:
            raise InputError(
                f"the part begins with section {start} and ends before {sections.stop}; expected at least 2 of the "
                f"{len(self)} sections, from 0, whose positions are listed."
            )
        return self._between_faces(self.factor, np.array(self.centres[start:stop]), np.array(self.depths[start:stop]))

    def halves(self, scale: float) -> list[UnevenSections]:
        """Geometries of the even and of the odd sections, whose planes lie at the same positions.

        Args:
            scale: planes of the result in one of this geometry; they are as many times thinner.
        """
        centres, depths = (tuple(value * scale for value in values) for values in (self.centres, self.depths))
        count = len(self) // 2 * 2
        return [
            UnevenSections(2 * self.factor * scale, centres[k:count:2], depths[k:count:2], self.extent * scale)
            for k in (0, 1)
        ]

    def check_sections(self, num_sections: int, name: str) -> None:
        if num_sections != len(self):
            raise InputError(
                f"{name} has {num_sections} sections, and there are {len(self)} positions (--z-positions); expected "
                f"one for each. List sections that are there only: those that are lost need no line."
            )

    def check_gaps(self, masked: np.ndarray) -> None:
        missing = self._lost_rows.copy()
        missing[self._section_rows] = masked
        crowded = _crowded(missing)[self._section_rows] & masked
        if self._lost_rows.any() and crowded.any():
            raise InputError(
                f"section {int(crowded.argmax())} is masked, and by their positions sections are lost next to it: more "
                f"than {MOST_CROWDED} of {CROWD} neighbours are missing, which cannot be predicted from what is around "
                f"them. Leave the masked section out of the stack and of the list, so that it is lost too."
            )

    def plane_origin(
        self, section_size: VoxelSize, first_section: tuple[float, float, float] | None = None
    ) -> tuple[float, float, float]:
        """As of even sections, but for the first section, which stays where it is."""
        z, y, x = first_section or (0.0, 0.0, 0.0)
        return (z + (0.5 - self.centres[0]) * self.plane_size(section_size).z, y, x)

    def section_origin(
        self, section_size: VoxelSize, first_plane: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        z, y, x = first_plane
        return (z - (0.5 - self.centres[0]) * self.plane_size(section_size).z, y, x)

    def distance(self, section: int) -> float:
        return (self.centres[section] - self.centres[0]) / self.factor

    def num_planes(self, num_sections: int) -> int:
        return math.floor(float(self._bounds[min(num_sections, len(self))]) + 0.5 + 1e-9)

    def num_sections(self, num_planes: int) -> int:
        return int(np.searchsorted(np.floor(self._bounds[1:] + 0.5 + 1e-9), num_planes, "right"))

    def to_sections(self, planes: np.ndarray) -> np.ndarray:
        return _piecewise(planes + 0.5, *self._knots)

    def to_planes(self, sections: np.ndarray) -> np.ndarray:
        return _piecewise(sections, *self._knots[::-1]) - 0.5

    def sections_of(self, num_planes: int, first_plane: int = 0) -> np.ndarray:
        centres = np.arange(first_plane, first_plane + num_planes) + 0.5
        return np.searchsorted(self._bounds, centres, "right").clip(1, len(self)) - 1

    def first_plane(self, section: int) -> int:
        return math.floor(self._bounds[section])

    def sections_around(self, planes: slice) -> slice:
        first = int(np.searchsorted(self._bounds, planes.start, "right")) - 1
        return slice(max(first, 0), min(int(np.searchsorted(self._bounds, planes.stop, "left")), len(self)))

    def sections_within(self, planes: slice) -> slice:
        first = int(np.searchsorted(self._bounds[:-1], planes.start - 1e-9, "left"))
        return slice(first, max(first, int(np.searchsorted(self._bounds[1:], planes.stop + 1e-9, "right"))))

    def least_planes(self, num_rows: int) -> int:
        bounds = self._row_bounds
        if not 0 < num_rows < len(bounds) - 1:
            return math.floor(num_rows * self.factor)
        return math.floor(float((bounds[num_rows:] - bounds[:-num_rows]).min()))

    def row(self, section: int) -> int:
        return int(self._section_rows[section])

    def rows(self, sections: slice, planes: slice) -> Rows:
        first, last = self.row(sections.start), self.row(sections.stop - 1)
        positions = _piecewise(np.arange(planes.start, planes.stop) + 0.5, *self._row_knots) - first
        bounds, held = self._row_bounds, self._row_sections[first : last + 1]
        octaves = math.log2((bounds[last + 1] - bounds[first]) / len(held) / self.factor)
        factor = float(np.clip(self.factor * 2 ** _stepwise(octaves, OCTAVES), FACTOR_MIN, FACTOR_MAX))
        imaged = np.array(self.depths[sections]) / np.diff(bounds)[self._section_rows[sections]]
        thicker = _stepwise(float(imaged.mean()) - self.thickness, FRACTIONS)
        thickness = float(np.clip(self.thickness + thicker, 1 / factor, 1))
        within = np.where(held < 0, -1, held - sections.start)
        return Rows(factor, thickness, positions, within, self.wide(planes))

    def weights(self, planes: slice, sections: slice, among: slice) -> np.ndarray:
        wanted = slice(sections.start + among.start, sections.start + among.stop)
        depths = np.array(self.depths[wanted])[:, None]
        return whole_weights(self._overlap(np.arange(planes.start, planes.stop), wanted), depths)

    def matrix(self, num_sections: int, first_section: int = 0) -> np.ndarray:
        planes = np.arange(self.first_plane(first_section), self.num_planes(num_sections))
        overlap = self._overlap(planes, slice(first_section, num_sections))
        overlap[overlap < 1e-9 * overlap.max(axis=1, keepdims=True)] = 0
        return overlap / overlap.sum(axis=1, keepdims=True)

    def lost(self, planes: slice) -> np.ndarray | None:
        return self._planes_of_rows(self._lost_rows, planes)

    def wide(self, planes: slice) -> np.ndarray | None:
        return self._planes_of_rows(self._wide_rows, planes)

    def gaps(self) -> list[dict[str, Any]]:
        found = []
        for after in np.flatnonzero(self._num_lost).tolist():
            first, lost = self.row(after) + 1, int(self._num_lost[after])
            start, stop = (math.ceil(self._row_bounds[row] - 0.5) for row in (first, first + lost))
            wide = bool(self._wide_rows[first])
            found.append({"after": after, "sections": lost, "planes": [start, stop], "wide": wide})
        return found

    def _planes_of_rows(self, chosen: np.ndarray, planes: slice) -> np.ndarray | None:
        """True for planes whose centres lie in chosen rows; ``None`` if no row is chosen."""
        if not chosen.any():
            return None
        centres = np.arange(planes.start, planes.stop) + 0.5
        return chosen[np.searchsorted(self._row_bounds, centres, "right").clip(1, len(chosen)) - 1]

    def _overlap(self, planes: np.ndarray, sections: slice) -> np.ndarray:
        """How much of each plane some sections image, ``(sections, planes)``; those at the end within the planes."""
        centres, half = (np.array(values[sections])[:, None] for values in (self.centres, self.depths))
        half = half / 2
        end = self.num_planes(len(self))
        start, stop = np.minimum(centres - half, end - 1e-6), np.minimum(centres + half, end)
        return (np.minimum(stop, planes + 1) - np.maximum(start, planes)).clip(min=0)


def check_z_positions(z_positions: ZPositions, name: str = "z_positions") -> tuple[tuple[float, float], ...]:
    """Check a list of centres and thicknesses of sections, nm, and return it as plain numbers.

    Args:
        z_positions: ``(sections, 2)``.
        name: what messages call it; the path, usually.

    Raises:
        InputError: not two finite numbers a section, fewer than two sections, centres that do not increase, a thickness
            that is not positive, or sections that overlap. The message says where.
    """
    try:
        listed = np.asarray(z_positions, np.float64)
    except (TypeError, ValueError):
        listed = np.empty(0)
    if listed.ndim != 2 or listed.shape[1] != 2 or len(listed) < 2:
        raise InputError(
            f"{name} has shape {listed.shape}; expected (sections, 2), the centre and the thickness of each section in "
            f"nm, of two sections or more."
        )

    def refuse(broken: Any, expected: str) -> None:
        if broken.any():
            section = int(broken.argmax())
            centre, thickness = listed[section]
            raise InputError(
                f"{name}: section {section}, counted from 0, has its centre at {centre:g} nm and is {thickness:g} nm "
                f"thick; expected {expected}."
            )

    refuse(~np.isfinite(listed).all(axis=1), "finite numbers")
    refuse(listed[:, 1] <= 0, "a thickness above 0, that of what is imaged")
    spacings = np.diff(listed[:, 0], prepend=-np.inf)
    refuse(spacings <= 0, "centres that increase from section to section, in the order of the stack")
    spaces = _spaces(*listed.T)
    overlap = np.append(False, spaces < -OVERLAP * spacings[1:])
    refuse(overlap, "sections that do not overlap the one before; thickness is at most their distance")
    return tuple((float(centre), float(thickness)) for centre, thickness in listed)


def check_spacing(z_positions: ZPositions, voxel_size: VoxelSize) -> None:
    """Raise ``InputError`` if no two neighbours of a stack are as far apart as its voxel size says."""
    spacings = np.diff(np.array(check_z_positions(z_positions))[:, 0])
    low, middle, high = (float(value) for value in np.quantile(spacings, (0, 0.5, 1)))
    if not low * (1 - SPACING) <= voxel_size.z <= high * (1 + SPACING):
        raise InputError(
            f"the voxel size says that sections are {voxel_size.z:g} nm apart, and by their positions they are "
            f"{low:.4g} to {high:.4g} nm apart. Are the positions in nm? If they are right, give the usual spacing: "
            f"--voxel-size {middle:.4g},{voxel_size.y:g},{voxel_size.x:g}."
        )


def jittered(geometry: SectionModel, num_sections: int, jitter: float, seed: int) -> UnevenSections:
    """Sections of random thickness whose mean is that of an even geometry, of which the planes are as many.

    Args:
        geometry: geometry of the even sections; the imaged fraction of each slab is its thickness.
        num_sections: number of sections.
        jitter: standard deviation of the slabs' thickness, as a fraction of its mean; up to 0.3.
        seed: seed of the random numbers.

    Raises:
        InputError: fewer than two sections, or some get thinner than a plane.
    """
    if num_sections < 2:
        raise InputError(f"the volume holds {num_sections} sections; thicknesses differ of two or more (--jitter).")
    deviations = np.random.default_rng(seed).standard_normal(num_sections)
    slabs = 1 + jitter * deviations.clip(-MOST_DEVIATIONS, MOST_DEVIATIONS)
    bounds = np.array(list(itertools.accumulate(slabs / slabs.mean() * geometry.factor, initial=0.0)))
    centres, depths = (bounds[:-1] + bounds[1:]) / 2, np.diff(bounds) * geometry.thickness
    extent = float(bounds[-1])
    return UnevenSections(geometry.factor, tuple(centres.tolist()), tuple(depths.tolist()), extent)


def _spaces(centres: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Distances between the faces of neighbouring sections."""
    return np.diff(centres) - (depths[:-1] + depths[1:]) / 2


def _usual(values: np.ndarray) -> np.ndarray:
    """Median of each value and its neighbours, :data:`NEAR` on either side, of as many at the ends."""
    width = 2 * NEAR + 1
    if len(values) <= width:
        return np.full(len(values), np.median(values))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)
    return np.pad(medians, NEAR, "edge")


def _crowded(missing: np.ndarray) -> np.ndarray:
    """True for missing rows with more than 3 missing ones among any 7 neighbours that they are one of."""
    counts = np.convolve(missing, np.ones(CROWD), "full")  # of the rows up to each, and after the last
    near = np.lib.stride_tricks.sliding_window_view(counts > MOST_CROWDED, CROWD)
    return missing & near.any(axis=1)


def _stepwise(value: float, step: float) -> float:
    """The nearest whole number of steps."""
    return round(value / step) * step


def _interleaved(bounds: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds and centres in ascending order, and their places: centres at whole numbers, bounds half way between."""
    knots = np.empty(len(bounds) + len(centres))
    knots[::2], knots[1::2] = bounds, centres
    return knots, (np.arange(len(knots)) - 1) / 2


def _piecewise(values: np.ndarray, knots: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Places of values by straight lines between knots, which continue beyond the first and the last."""
    piece = np.searchsorted(knots, values, "right").clip(1, len(knots) - 1) - 1
    slope = np.diff(places) / np.diff(knots)
    return places[piece] + (values - knots[piece]) * slope[piece]

"""Sections that are left out of a stack, alone or in a row, and what the others say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _anisotropic import STACKS

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.inspection import measure_displacements, translations_of
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction import Reconstruction
from emformer_hub.volumes import Volume, read_volume, translated
from emformer_hub.volumes.boxes import middle
from emformer_hub.volumes.translated import check_translations

EVERY = 10
"""Sections from the beginning of one gap to that of the next."""
OFFSETS = (1, 4, 7)
"""Where the first gap begins: one pass for each."""
REAL = ("sstem_cremi", "sbem_cdeep3m")
DEGRADED, DEGRADED_SECTIONS = "fibsem_fib25_b", SectionModel(8)


@dataclass(frozen=True)
class Sections:
    """A stack of which sections can be left out: ``(sections, y, x)``, and how they sample tissue."""

    name: str
    data: np.ndarray
    geometry: SectionModel


def lateral_middle(volume: np.ndarray, side: int) -> np.ndarray:
    """At most ``side`` rows and columns, from the middle of the plane."""
    return volume[middle(volume.shape, (len(volume), side, side))]


def read_truth(folder: Path, name: str, side: int) -> np.ndarray:
    return lateral_middle(read_volume(folder / f"{name}.tif").data, side)


def degraded(truth: np.ndarray, geometry: SectionModel) -> np.ndarray:
    """Sections of an isotropic truth, as a microscope would store them: in its dtype."""
    return to_dtype(geometry.degrade(truth), truth.dtype)


def stacks(folder: Path, side: int, names: tuple[str, ...] = REAL, *, aligned: bool = False) -> Iterator[Sections]:
    """Real stacks, the middle of them; ``aligned``: after each, also as ``--align translation`` moves it."""
    for name in names:
        stack = STACKS[name]
        (data,) = stack.read(folder)
        yield Sections(name, lateral_middle(data, side), stack.geometry)
        moves = measured_moves(data, name) if aligned else ()
        if np.any(moves):
            read = translated(Volume(data, None, ""), moves, name)
            assert read.hidden is not None
            if lateral_middle(read.hidden[:], side).any():
                raise InputError(f"{name} moves by more than its margin around {side} voxels; give a smaller --side.")
            yield Sections(f"{name}, aligned", lateral_middle(read.data[:], side), stack.geometry)


def measured_moves(stack: np.ndarray, name: str) -> tuple[tuple[int, int], ...]:
    """By how much ``--align translation`` moves each section along y and x, whole voxels."""
    return check_translations(translations_of(measure_displacements(stack)), stack.shape, name)


def gaps(depth: int, length: int) -> Iterator[np.ndarray]:
    """Masks ``(sections,)`` with gaps of so many sections, one in every ten, that leave the first and the last."""
    for offset in OFFSETS:
        mask = np.zeros(depth, bool)
        for start in range(offset, depth - length, EVERY):
            mask[start : start + length] = True
        if mask.any():
            yield mask


def ends(depth: int, length: int) -> np.ndarray:
    """A mask of the first and the last sections, so many of each."""
    mask = np.zeros(depth, bool)
    mask[:length] = mask[-length:] = True
    return mask


def interpolated(data: np.ndarray, mask: np.ndarray, cubic: bool) -> np.ndarray:
    """The masked sections by interpolation between the others, at the centres of sections: ``(masked, y, x)``.

    A straight line through the nearest ones, or the polynomial through the two nearest on either side (three of them,
    or two, near the ends). Beyond the last one it is repeated.
    """
    measured = np.flatnonzero(~mask)
    filled = []
    for place in np.flatnonzero(mask):
        below, above = measured[measured < place], measured[measured > place]
        reach = 2 if cubic else 1
        nodes = np.concatenate([below[-reach:], above[:reach]])
        if not (len(below) and len(above)):
            nodes = np.concatenate([below[-1:], above[:1]])
        others = [np.delete(nodes, i) for i in range(len(nodes))]
        weights = [float(np.prod((place - rest) / (node - rest))) for node, rest in zip(nodes, others, strict=True)]
        filled.append(np.tensordot(weights, data[nodes].astype(np.float64), axes=1))
    return to_dtype(np.stack(filled), data.dtype)


def as_imaged(planes: np.ndarray, geometry: SectionModel, mask: np.ndarray) -> np.ndarray:
    """The masked sections, cut from a reconstruction: ``(masked, y, x)``, float32."""
    return geometry.degrade(planes)[mask]


def intervals(done: Reconstruction, probability: float, mask: np.ndarray) -> np.ndarray:
    """Half-widths of the masked sections, ``(masked, y, x)``: planes of one section err together."""
    return as_imaged(done.half_width(probability), done.geometry, mask)

"""Smooth curves that a section has and its neighbours lack, however faint: numpy and scipy only, without thresholds.

A crack or a fold is long and bends little. Its line profile is averaged along short segments, in many directions, and
compared with that of the neighbours in nearly the same direction: membranes that cross it, there or here, do not hide
it. The deviations are then added up from segment to segment, each of which may turn a little against the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import cycle

import numpy as np

STRIP = 512
"""Rows that are looked at together: there is a map for each direction, and memory is not to grow with the section."""
LONGEST = 6
"""Segments that a curve is followed to either side of a place, its own included."""


@dataclass(frozen=True)
class Curves:
    """What to look for; lengths are voxels of the images.

    Attributes:
        length: length of a segment.
        sigma: smoothing across a segment.
        around: sigma of the background across it, which is subtracted.
        directions: directions of segments, evenly spaced over half a turn; from one segment to the next, a curve turns
            by one of them at most.
        reach: half the side of the surroundings of a place over which the range of the neighbours is taken.
        usual: deviation that a curve must exceed on average.
        most: deviation above which a segment counts no more.
    """

    length: int
    sigma: float
    around: float
    directions: int
    reach: int
    usual: float
    most: float


def curves_outside(here: np.ndarray, first: np.ndarray, second: np.ndarray, curves: Curves) -> np.ndarray:
    """Largest sum of deviations along a curve through each place, below and above the range of two other images.

    Args:
        here, first, second: images ``(y, x)``, laid over each other.
        curves: what to look for.

    Returns:
        ``(2, y, x)``, float32, at least 0: too dark, too bright. The sum is over segments.
    """
    found = np.zeros((2, *here.shape), np.float32)
    for rows, inner, own in _strips(here.shape[0], (LONGEST + 1) * curves.length + 4 * round(curves.around)):
        found[:, own] = _outside(here[rows], first[rows], second[rows], curves)[:, inner]
    return found


def _strips(height: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """Rows to look at; those among them that are kept; and where they lie in the image."""
    for top in range(0, height, STRIP):
        bottom, start = min(height, top + STRIP), max(0, top - margin)
        yield slice(start, min(height, bottom + margin)), slice(top - start, bottom - start), slice(top, bottom)


def _outside(here: np.ndarray, first: np.ndarray, second: np.ndarray, curves: Curves) -> np.ndarray:
    own, *others = (_profiles(image, curves) for image in (here, first, second))
    maps = []
    for profiles, around in ((own, np.minimum(*others)), (-own, -np.maximum(*others))):
        gain = np.empty_like(profiles)
        for kept, profile, lowest in zip(gain, profiles, _of_three(around, np.minimum), strict=True):
            lowest = _lowest_around(lowest, 2 * curves.reach + 1).clip(max=0)
            kept[:] = (lowest - profile).clip(0, curves.most) - np.float32(curves.usual)
        ahead = _followed(gain, curves.length)
        through = ahead[: len(gain)] + ahead[len(gain) :] - gain
        maps.append(np.where(gain > 0, through, 0).max(axis=0))
    return np.stack(maps)


def _profiles(image: np.ndarray, curves: Curves) -> np.ndarray:
    """Mean along a segment of the deviation from the background across it, ``(directions, y, x)``."""
    from scipy import fft

    margin = [min(curves.length, side - 1) for side in image.shape]
    padded = np.pad(image, [(part, part) for part in margin], mode="reflect")
    shape = tuple(fft.next_fast_len(side, real=True) for side in padded.shape)
    spectrum = fft.rfft2(padded, shape)
    inner = tuple(slice(part, part + side) for part, side in zip(margin, image.shape, strict=True))
    return np.stack([fft.irfft2(spectrum * filtered, shape)[inner] for filtered in _filters(shape, curves)])


@lru_cache(maxsize=4)
def _filters(shape: tuple[int, ...], curves: Curves) -> np.ndarray:
    """Spectra of the segments: Gaussians of the variance of a line that long, differences of Gaussians across it."""
    y, x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    along = curves.length / 12**0.5
    found = []
    for angle in _angles(curves.directions):
        forward, aside = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
        line, thin, thick = (
            np.exp(-2 * (np.pi * sigma * frequency) ** 2)
            for sigma, frequency in ((along, forward), (curves.sigma, aside), (curves.around, aside))
        )
        found.append(line * (thin - thick))
    return np.array(found, np.float32)


def _followed(gain: np.ndarray, length: int) -> np.ndarray:
    """Largest sum along a curve that begins at each place in each direction, its own segment included.

    ``gain`` is ``(directions, y, x)`` for half a turn, as a segment has no sense; the sum is for a whole turn.
    """
    rows, columns = gain.shape[1:]
    moves = [
        (_overlap(round(length * np.sin(angle)), rows), _overlap(round(length * np.cos(angle)), columns))
        for angle in _angles(len(gain), 2 * len(gain))
    ]
    best, before = np.concatenate([gain, gain]), np.empty((len(moves), rows, columns), gain.dtype)
    for _ in range(LONGEST - 1):
        best, before = before, best
        for total, own, further, move in zip(best, cycle(gain), _of_three(before, np.maximum), moves):
            (top, lower), (left, right) = move
            total[:] = own
            total[top, left] += further[lower, right].clip(min=0)
    return best


def _angles(half_turn: int, count: int | None = None) -> np.ndarray:
    return np.arange(count or half_turn) * np.pi / half_turn


def _overlap(by: int, side: int) -> tuple[slice, slice]:
    """Places that have another one ``by`` voxels further on, and those others."""
    return slice(max(0, -by), max(0, min(side, side - by))), slice(max(0, by), max(0, min(side, side + by)))


def _of_three(profiles: np.ndarray, extreme: np.ufunc) -> Iterator[np.ndarray]:
    """For each direction, the extreme over it and the two beside it, around the turn."""
    for number, own in enumerate(profiles):
        found = extreme(profiles[number - 1], own)
        yield extreme(found, profiles[(number + 1) % len(profiles)], out=found)


def _lowest_around(image: np.ndarray, size: int) -> np.ndarray:
    """Minimum over squares of ``size`` x ``size`` places."""
    image = np.pad(image, size // 2, mode="edge")
    for _ in range(2):
        count = len(image) - size + 1
        image = reduce(np.minimum, (image[by : by + count] for by in range(size))).T
    return image

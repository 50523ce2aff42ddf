"""Fourier shell correlation: the spatial frequency up to which two volumes agree, overall and by direction.

The correlation of the Fourier coefficients of two volumes within a shell of equal frequency is 1 where they agree and
0 where they are unrelated (Harauz & van Heel, Optik 73, 1986; thresholds: van Heel & Schatz, J. Struct. Biol. 151,
2005). Restricted to a cone around one direction it measures resolution in that direction, which is what anisotropic
volumes need (sectioned FSC: Koho et al., Nat. Commun. 10:3103, 2019; conical FSC: Diebolder et al., J. Struct. Biol.
190, 2015).

It ignores amplitude: blur without noise does not lower the correlation. It measures which detail is *right*, not how
strong it is, and complements PSNR and SSIM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize

Direction = Literal["z", "y", "x", "lateral"]

HALF_ANGLE = math.radians(30)
SHORTEST_SIDE = 8


@dataclass(frozen=True)
class FSCCurve:
    """Correlation over frequency; three arrays ``(shells,)``.

    Attributes:
        frequency: centres of the shells, 1/nm, evenly spaced, without zero, up to the Nyquist frequency itself.
        correlation: Fourier shell correlation, -1 to 1.
        counts: Fourier coefficients in the shell (both halves of each conjugate pair).
    """

    frequency: np.ndarray
    correlation: np.ndarray
    counts: np.ndarray


def fsc(a: np.ndarray, b: np.ndarray, voxel_size: VoxelSize, *, axis: Direction | None = None) -> FSCCurve:
    """Fourier shell correlation of two volumes ``(z, y, x)`` of equal shape and any scale of grey levels.

    The mean is subtracted from both, and a Hann window fades them out towards the faces, so that opposite faces do not
    make an edge. Shells lie in physical frequency, so voxels may be anisotropic and the volume need not be a cube. The
    width of a shell is 1 / extent, for the shortest extent along the axes concerned; the last shell is at the lowest of
    their Nyquist frequencies, beyond which no whole shell exists.

    A cone averages over its directions. Detail that ends at one frequency along z ends up to 15 % higher at the rim of
    the cone (1 / cos 30), so the resolution along z is, if anything, too fine by less than that.

    Args:
        voxel_size: of both volumes.
        axis: ``None`` for whole shells; ``z``, ``y`` or ``x`` for the part within 30 degrees of that axis; ``lateral``
            for the part within 30 degrees of the y, x plane.

    Raises:
        InputError: the shapes differ, a side is under 8 voxels, a volume is constant or has values that are not finite,
            or the axis is unknown.
    """
    return _correlate(_spectrum(a, b), _spectrum(b, a), a.shape, voxel_size, axis)


def resolution(curve: FSCCurve, threshold: float = 0.5) -> float:
    """Resolution in nm: one over the frequency at which the correlation first falls below ``threshold``.

    The crossing is interpolated linearly. Use 0.5 against a truth, 0.143 (1/7) between halves of the data, each of
    which is noisier than the whole (Rosenthal & Henderson, J. Mol. Biol. 333, 2003). A curve that never crosses gives
    the limit of the sampling, two voxels; one that starts below the threshold gives its first shell, which is the
    extent of the volume.
    """
    below = curve.correlation < threshold
    if not below.any():
        return float(1 / curve.frequency[-1])
    first = int(np.argmax(below))
    if first == 0:
        return float(1 / curve.frequency[0])
    high, low = curve.correlation[first - 1], curve.correlation[first]
    share = (high - threshold) / (high - low)
    return float(1 / (curve.frequency[first - 1] + share * (curve.frequency[first] - curve.frequency[first - 1])))


def directional_resolution(
    a: np.ndarray, b: np.ndarray, voxel_size: VoxelSize, threshold: float = 0.5
) -> dict[str, float]:
    """Resolution in nm along z, laterally and over whole shells: ``{"z", "lateral", "all"}``. See ``fsc``."""
    spectra = _spectrum(a, b), _spectrum(b, a)
    directions: dict[str, Direction | None] = {"z": "z", "lateral": "lateral", "all": None}
    return {
        name: resolution(_correlate(*spectra, a.shape, voxel_size, axis), threshold)
        for name, axis in directions.items()
    }


def check_pair(a: np.ndarray, b: np.ndarray, shortest_side: int) -> None:
    """Raise ``InputError`` unless both are volumes of equal shape with finite values, no side under a minimum."""
    if a.ndim != 3 or b.ndim != 3:
        raise InputError(f"volumes have shapes {a.shape} and {b.shape}; expected three axes (z, y, x).")
    if a.shape != b.shape:
        advice = "Crop both to the same extent."
        if a.shape[1:] == b.shape[1:]:
            planes = min(a.shape[0], b.shape[0])
            advice = (
                f"Only z differs: sections become round(n * factor) planes, and those that fill no section are left "
                f"out. If both begin at the same face, compare a[:{planes}] with b[:{planes}]."
            )
        raise InputError(f"volumes have different shapes, {a.shape} and {b.shape} (z, y, x). {advice}")
    if min(a.shape) < shortest_side:
        raise InputError(f"volumes have shape {a.shape}; expected at least {shortest_side} voxels along each axis.")
    for volume in (a, b):
        if volume.dtype.kind not in "uif":
            raise InputError(f"volume has dtype {volume.dtype}; expected grey levels, integer or float.")
        if volume.dtype.kind == "f" and not np.isfinite(volume).all():
            raise InputError("volume has values that are not finite (NaN or infinite); fill or crop them first.")


def _spectrum(volume: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Half spectrum of a volume without its mean, under a Hann window; complex64 ``(z, y, x // 2 + 1)``."""
    check_pair(volume, partner, SHORTEST_SIDE)
    if volume.min() == volume.max():
        raise InputError(f"volume is {volume.flat[0]} throughout; there is nothing to correlate.")
    windows = [np.hanning(side + 2)[1:-1].astype(np.float32) for side in volume.shape]
    weighted_mean = volume
    for window in reversed(windows):
        weighted_mean = weighted_mean @ (window / window.sum())
    centred = volume.astype(np.float32) - np.float32(weighted_mean)
    for axis, window in enumerate(windows):
        centred *= window.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.fft.rfftn(centred)


def _correlate(
    a: np.ndarray, b: np.ndarray, shape_zyx: tuple[int, ...], voxel_size: VoxelSize, axis: Direction | None
) -> FSCCurve:
    """Sum half spectra over shells, one z frequency at a time so that no array of frequencies is needed."""
    members: dict[Direction | None, list[int]] = {None: [0, 1, 2], "z": [0], "y": [1], "x": [2], "lateral": [1, 2]}
    if axis not in members:
        raise InputError(f"axis {axis!r} is unknown; choose z, y, x, lateral, or None for whole shells.")
    nyquist = min(0.5 / voxel_size.zyx[member] for member in members[axis])
    extent = min(shape_zyx[member] * voxel_size.zyx[member] for member in members[axis])
    shells = math.floor(extent * nyquist + 1e-6)
    if shells == 0:
        raise InputError(
            f"the volume is {extent:g} nm along its shortest side, less than two voxels of its coarsest axis "
            f"({0.5 / nyquist:g} nm); give a larger volume, or check the voxel size {voxel_size}."
        )

    kz = np.fft.fftfreq(shape_zyx[0], voxel_size.z)
    ky = np.fft.fftfreq(shape_zyx[1], voxel_size.y)[:, None]
    kx = np.fft.rfftfreq(shape_zyx[2], voxel_size.x)
    twins = np.full(len(kx), 2.0)  # rfft keeps one of each conjugate pair; kx = 0 and an even Nyquist have no twin
    twins[0] = 1
    if shape_zyx[2] % 2 == 0:
        twins[-1] = 1

    sums = np.zeros((4, shells + 2))  # cross, power of a, power of b, count; shell 0 and all beyond the last are unused
    for plane, frequency_z in enumerate(kz):
        squares = np.broadcast_arrays(frequency_z**2, ky**2, kx**2)
        squared = squares[0] + squares[1] + squares[2]
        along = sum(squares[member] for member in members[axis])
        inside = along >= math.cos(HALF_ANGLE) ** 2 * squared
        shell = np.rint(np.sqrt(squared[inside]) * (shells / nyquist)).astype(np.int64)
        np.minimum(shell, shells + 1, out=shell)
        weight = np.broadcast_to(twins, squared.shape)[inside]
        u, v = a[plane][inside], b[plane][inside]
        for row, value in enumerate(((u * v.conj()).real, np.abs(u) ** 2, np.abs(v) ** 2, 1.0)):
            sums[row] += np.bincount(shell, weights=value * weight, minlength=shells + 2)

    cross, power_a, power_b, counts = sums[:, 1:-1]
    power = np.sqrt(power_a * power_b)
    correlation = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    return FSCCurve(np.linspace(0, nyquist, shells + 1)[1:], correlation, counts.astype(np.int64))

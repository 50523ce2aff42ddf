"""Fidelity to a known truth: PSNR, SSIM by orientation, and the resolution up to which detail is right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.measurement.fsc import check_pair, directional_resolution
from emformer_hub.volumes.boxes import evenly_spaced

SSIM_SIGMA = 1.5
SSIM_REACH = 5
"""Half of the 11-voxel window that sigma 1.5 implies (Wang et al. 2004)."""
SSIM_PLANES = 64
FSC_THRESHOLD = 0.5

ORIENTATIONS = {"xy": 0, "xz": 1, "yz": 2}
"""Plane orientation -> the axis (z, y, x) it is perpendicular to."""


def psnr(truth: np.ndarray, estimate: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio of a volume ``(z, y, x)`` in dB: ``10 log10(data_range^2 / MSE)``.

    The mean squared error is computed over the whole volume, in float64. Infinite if both volumes are equal.

    Args:
        data_range: the peak, in grey levels of both volumes: 255 for uint8, 1.0 for values scaled to 0-1.

    Raises:
        InputError: the shapes differ, values are not finite, or the range is not positive.
    """
    _check(truth, estimate, data_range, shortest_side=1)
    squares = 0.0
    for true_plane, plane in zip(truth, estimate, strict=True):
        squares += float(np.square(true_plane.astype(np.float64) - plane).sum())
    return math.inf if squares == 0 else 10 * math.log10(data_range**2 * truth.size / squares)


def ssim(truth: np.ndarray, estimate: np.ndarray, data_range: float) -> dict[str, float]:
    """Structural similarity (Wang et al., IEEE Trans. Image Process. 13(4), 2004): ``{"3d", "xy", "xz", "yz"}``.

    Gaussian window of sigma 1.5, population covariance, as ``skimage.metrics.structural_similarity`` computes it.
    ``3d`` is the index of the whole volume with a 3-D window. The others are means over planes of one orientation, at
    most 64 evenly spaced ones; ``xz`` and ``yz`` are those in which missing axial resolution shows.

    Raises:
        InputError: as for ``psnr``, a side is under 11 voxels, or scikit-image is not installed.
    """
    _check(truth, estimate, data_range, shortest_side=2 * SSIM_REACH + 1)
    result = {"3d": _ssim_volume(truth, estimate, data_range)}
    for name, axis in ORIENTATIONS.items():
        result[name] = plane_ssim(np.moveaxis(truth, axis, 0), np.moveaxis(estimate, axis, 0), data_range)
    return result


def plane_ssim(truth: np.ndarray, estimate: np.ndarray, data_range: float) -> float:
    """Mean structural similarity of the planes of two volumes ``(planes, rows, columns)``; as in ``ssim``.

    Raises:
        InputError: as for ``psnr``, rows or columns are under 11, or scikit-image is not installed.
    """
    _check(truth, estimate, data_range, shortest_side=1)
    planes = evenly_spaced(len(truth), SSIM_PLANES)
    return float(np.mean([_ssim(truth[plane], estimate[plane], data_range) for plane in planes]))


def evaluate(reconstruction: np.ndarray, truth: np.ndarray, voxel_size: VoxelSize) -> dict[str, Any]:
    """Measure a reconstruction against its truth, both ``(z, y, x)``; returns a dictionary ready for JSON.

    The data range is that of the truth's dtype for integers (255 for uint8), and its maximum - minimum for floats. A
    float reconstruction is assumed to have the grey-level scale of the truth.

    Returns:
        ``{"psnr_db", "ssim": {"3d", "xy", "xz", "yz"}, "fsc": {"resolution_nm": {"z", "lateral", "all"}, "threshold"},
        "shape_zyx", "voxel_size_nm"}``; see ``psnr``, ``ssim`` and ``directional_resolution``.

    Raises:
        InputError: the shapes differ (the message says how to crop), two integer dtypes differ, or as for the single
            measures.
    """
    check_pair(reconstruction, truth, shortest_side=2 * SSIM_REACH + 1)
    if reconstruction.dtype.kind != "f" and reconstruction.dtype != truth.dtype:
        raise InputError(
            f"reconstruction is {reconstruction.dtype} and truth is {truth.dtype}, so their grey levels are on "
            f"different scales; convert one of them first."
        )
    data_range = grey_range(truth)
    return {
        "psnr_db": psnr(truth, reconstruction, data_range),
        "ssim": ssim(truth, reconstruction, data_range),
        "fsc": {
            "resolution_nm": directional_resolution(truth, reconstruction, voxel_size, FSC_THRESHOLD),
            "threshold": FSC_THRESHOLD,
        },
        "shape_zyx": list(truth.shape),
        "voxel_size_nm": list(voxel_size.zyx),
    }


def grey_range(truth: np.ndarray) -> float:
    """The peak of ``psnr``: the range of an integer dtype (255 for uint8), maximum - minimum of floats."""
    if truth.dtype.kind == "f":
        return float(truth.max()) - float(truth.min())
    limits = np.iinfo(truth.dtype)
    return float(limits.max) - float(limits.min)


def _check(truth: np.ndarray, estimate: np.ndarray, data_range: float, shortest_side: int) -> None:
    check_pair(truth, estimate, shortest_side)
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"data range is {data_range:g}; expected the positive span of grey levels, as 255 for uint8.")


def _ssim_volume(truth: np.ndarray, estimate: np.ndarray, data_range: float) -> float:
    """3-D SSIM in slabs of z, which bounds memory. The index leaves out a border of the window's reach: slabs that
    overlap by it give exactly the value of the whole volume."""
    depth, total = truth.shape[0], 0.0
    for start in range(SSIM_REACH, depth - SSIM_REACH, SSIM_PLANES):
        stop = min(start + SSIM_PLANES, depth - SSIM_REACH)
        slab = slice(start - SSIM_REACH, stop + SSIM_REACH)
        total += (stop - start) * _ssim(truth[slab], estimate[slab], data_range)
    return total / (depth - 2 * SSIM_REACH)


def _ssim(truth: np.ndarray, estimate: np.ndarray, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            truth.astype(np.float64),
            estimate.astype(np.float64),
            data_range=data_range,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
    )

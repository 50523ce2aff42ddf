"""Synthetic neuropil: an isotropic volume with known truth, for tests, examples and smoke runs without any download.

Construction, in voxels of about 8 nm:

1. Space is divided among *neurites*: tubes (lines of random place, direction and calibre) and boutons or spines (short
   segments). A voxel belongs to the neurite with the smallest distance minus calibre (an additively weighted Voronoi
   tessellation), measured in coordinates that smooth noise has displaced, so that tubes bend, swell and shrink.
2. Membranes lie where the two smallest distances are equal. The gap between the two, divided by its gradient, is the
   distance to the membrane to first order, which gives every membrane the same width.
3. Mitochondria are ellipsoids around the axis of the thicker neurites, cut off short of the membrane, with an outer
   membrane and cristae across the axis. Vesicles are small shells in clusters. Both follow the bent axis.
4. Grey levels (cytoplasm about 170, membranes about 80) with a tint for each neurite, mottled and granular texture, a
   slight blur (the probe) and white noise. Nothing distinguishes one axis from another.

Steps 1 to 3 run at half resolution, where all the fields are smooth, and are interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolation_matrix

PROFILES_PER_AREA = 1 / 1000
"""Neurite profiles in a plane, per square voxel: a mean profile of about 30 voxels, 250 nm, across."""

CYTOPLASM, MEMBRANE, MITOCHONDRION, CRISTA, LUMEN = 172.0, 76.0, 114.0, 80.0, 195.0
MEMBRANE_HALF_WIDTH = 1.5
NOISE = 8.0
FAR = 1e3
SAMPLE_FACTOR = 5


def neuropil(shape_zyx: tuple[int, int, int] = (160, 160, 160), seed: int = 0) -> np.ndarray:
    """Isotropic synthetic neuropil, uint8 ``(z, y, x)``, the same for the same shape and seed.

    A few seconds and under 400 MB for 160^3 voxels on one core; the time grows with volume times surface.

    Raises:
        InputError: a side is shorter than 16 voxels.
    """
    if len(shape_zyx) != 3 or min(shape_zyx) < 16:
        raise InputError(f"phantom shape is {tuple(shape_zyx)}; expected three sides z, y, x of at least 16 voxels.")
    rng = np.random.default_rng(seed)
    half_shape = tuple(-(-side // 2) + 1 for side in shape_zyx)
    points = np.stack(np.meshgrid(*(2.0 * np.arange(side, dtype=np.float32) for side in half_shape), indexing="ij"))
    for wavelength, amplitude in ((110, 14), (40, 4.5), (16, 0.8)):
        points += amplitude * np.stack([_smooth_noise(rng, half_shape, wavelength / 2) for _ in range(3)])

    neurites = _draw_neurites(rng, shape_zyx)
    owner, gap = _tessellate(points, neurites)
    depth_half = _distance_to_membrane(gap)
    inside_half, along_half = _mitochondria(rng, points, neurites, owner, depth_half)

    depth, inside, along = (_double(field, shape_zyx) for field in (depth_half, inside_half, along_half))
    tint = _double(rng.normal(0, 9, len(neurites)).astype(np.float32)[owner], shape_zyx)

    mottle = 12 * _smooth_noise(rng, shape_zyx, 6) + 7 * _smooth_noise(rng, shape_zyx, 14)
    grey = CYTOPLASM + tint + mottle
    _add_vesicles(rng, grey, owner, depth_half)

    wall = 1.2 * _smooth_noise(rng, shape_zyx, 10)
    cristae = np.cos(2 * np.pi * (along + 1.5 * wall) / 7.0)
    matrix = MITOCHONDRION + 0.5 * mottle + (CRISTA - MITOCHONDRION) * np.clip(cristae, -0.5, 1)
    in_mitochondrion = _step(inside)
    grey += in_mitochondrion * (matrix - grey)
    grey += np.exp(-((inside / 1.3) ** 2)) * 0.8 * (CRISTA - grey)

    in_membrane = _step(MEMBRANE_HALF_WIDTH + 0.25 * wall - depth)
    grey += in_membrane * (MEMBRANE + 0.5 * mottle - grey)

    grey = _blur(grey) + NOISE * rng.standard_normal(shape_zyx, np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def sample_stack() -> tuple[np.ndarray, VoxelSize]:
    """A stack to try things with: 20 sections of 128 x 128 voxels, uint8 ``(z, y, x)``, of 40 x 8 x 8 nm."""
    truth = neuropil((20 * SAMPLE_FACTOR, 128, 128), seed=7)
    sections = SectionModel(SAMPLE_FACTOR).degrade(truth)
    return np.clip(np.rint(sections), 0, 255).astype(np.uint8), VoxelSize(8 * SAMPLE_FACTOR, 8, 8)


@dataclass(frozen=True)
class _Neurites:
    """Axes of the neurites, float32: centre and unit direction ``(n, 3)``; half length and calibre ``(n,)``, voxels."""

    centre: np.ndarray
    direction: np.ndarray
    half_length: np.ndarray
    calibre: np.ndarray

    def __len__(self) -> int:
        return len(self.centre)

    def locate(self, index: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance of ``points`` ``(3, ...)`` from the axis of one neurite, and their place along it, in voxels."""
        offset = points - self.centre[index].reshape(3, *[1] * (points.ndim - 1))
        along = np.tensordot(self.direction[index], offset, axes=1)
        squared = np.einsum("i...,i...->...", offset, offset)
        beyond = np.clip(along, -self.half_length[index], self.half_length[index])
        return np.sqrt(np.maximum(squared - (2 * along - beyond) * beyond, 0)), along


def _draw_neurites(rng: np.random.Generator, shape_zyx: tuple[int, int, int]) -> _Neurites:
    """Tubes and short segments, at a density that does not depend on the shape."""
    shape = np.array(shape_zyx) + 40.0  # the displaced coordinates reach a little beyond the volume
    surface = 2 * (shape[0] * shape[1] + shape[1] * shape[2] + shape[2] * shape[0])
    # isotropic lines: profiles per area = half their length per volume; the mean chord is 4 V / S (Cauchy)
    tubes = round(2 * PROFILES_PER_AREA * surface / 4 * 0.7)
    boutons = round(shape.prod() / 45.0**3)
    count = tubes + boutons
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    half_length = np.concatenate([np.full(tubes, np.inf), rng.uniform(0, 14, boutons)])
    calibre = np.concatenate([2 + rng.gamma(1.0, 6.0, tubes), rng.uniform(6, 16, boutons)])
    centre = rng.uniform(-20, shape - 20, (count, 3))
    return _Neurites(*(part.astype(np.float32) for part in (centre, direction, half_length, calibre)))


def _tessellate(points: np.ndarray, neurites: _Neurites) -> tuple[np.ndarray, np.ndarray]:
    """The nearest neurite of each point, int, and by how much it is nearer than the second (voxels)."""
    nearest = np.full(points.shape[1:], FAR, np.float32)
    second = nearest.copy()
    owner = np.zeros(points.shape[1:], np.int32)
    for index in range(len(neurites)):
        distance = neurites.locate(index, points)[0] - neurites.calibre[index]
        owner[distance < nearest] = index
        np.minimum(second, np.maximum(nearest, distance), out=second)
        np.minimum(nearest, distance, out=nearest)
    return owner, second - nearest


def _distance_to_membrane(gap: np.ndarray) -> np.ndarray:
    """First-order distance to where ``gap``, on the half grid, is zero: ``gap / |grad gap|``, in voxels.

    Central differences vanish on the crease itself, so the slope is the largest in the neighbourhood.
    """
    slope = np.sqrt(sum(part**2 for part in np.gradient(gap, 2.0)))
    for axis in range(3):
        padded = np.pad(slope, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=axis)
        slope = windows.max(axis=-1)
    return gap / np.maximum(slope, 0.5)


def _mitochondria(
    rng: np.random.Generator, points: np.ndarray, neurites: _Neurites, owner: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signed depth inside mitochondria (voxels, negative outside) and the place along their axis (voxels)."""
    inside, along_axis = np.full(owner.shape, -FAR, np.float32), np.zeros(owner.shape, np.float32)
    roomiest = np.zeros(len(neurites), np.float32)
    np.maximum.at(roomiest, owner.ravel(), depth.ravel())
    for index in np.flatnonzero((roomiest > 9) & (rng.random(len(neurites)) < 0.55)).tolist():
        distance, along = neurites.locate(index, points)
        radius = min(rng.uniform(0.5, 0.75) * roomiest[index], 14)
        own = owner == index
        core = along[own & (depth > 0.8 * radius)]
        if core.size == 0:
            continue
        half_length = radius * rng.uniform(1.2, 3)
        ellipsoid = radius * (1 - np.sqrt((distance / radius) ** 2 + ((along - rng.choice(core)) / half_length) ** 2))
        clear_of_membrane = np.where(own, depth, -depth) - 4
        candidate = np.minimum(ellipsoid, clear_of_membrane)
        along_axis = np.where(candidate > inside, along, along_axis)
        inside = np.maximum(inside, candidate)
    return inside, along_axis


def _add_vesicles(rng: np.random.Generator, grey: np.ndarray, owner: np.ndarray, depth: np.ndarray) -> None:
    """Draw clusters of vesicles, 40 nm shells with a bright lumen, into ``grey``, clear of the membranes."""
    reach = np.arange(-4, 5)
    radius = np.sqrt(reach[:, None, None] ** 2 + reach[:, None] ** 2 + reach**2)
    shell = np.exp(-(((radius - 2.4) / 0.9) ** 2)).astype(np.float32)
    lumen = _step(1.6 - radius).astype(np.float32)
    roomy = np.argwhere(depth > 6)
    clusters = round(grey.size / 45**3)
    for seed_point in rng.permutation(roomy)[:clusters]:
        cluster = owner[tuple(seed_point)]
        offsets = rng.normal(0, 7, (rng.integers(40, 120), 3))
        drawn = np.empty((0, 3), int)
        for centre in np.rint(2 * seed_point + offsets).astype(int):
            low, high = centre - 4, centre + 5
            if (low < 0).any() or (high > grey.shape).any():
                continue
            if owner[tuple(centre // 2)] != cluster or depth[tuple(centre // 2)] < 4.5:
                continue
            if (((drawn - centre) ** 2).sum(axis=1) < 6**2).any():
                continue
            drawn = np.vstack([drawn, centre])
            patch = grey[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            patch += shell * 0.8 * (MEMBRANE - patch) + lumen * (LUMEN - patch) * 0.5


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], wavelength: float) -> np.ndarray:
    """Smooth random field of about unit variance, float32: white noise on a grid of half a wavelength, interpolated."""
    spacing = wavelength / 2
    field = rng.standard_normal([int(side / spacing) + 2 for side in shape], np.float32)
    for axis, side in enumerate(shape):
        positions = np.arange(side) / spacing
        matrix = interpolation_matrix(positions, field.shape[axis], "cubic")
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field / field.std())


def _double(field: np.ndarray, shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """A field on the half grid, linearly interpolated to every voxel."""
    for axis, side in enumerate(shape_zyx):
        matrix = interpolation_matrix(np.arange(side) / 2, field.shape[axis], "linear")
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _blur(volume: np.ndarray) -> np.ndarray:
    """Binomial 1-2-1 smoothing along the three axes: a Gaussian of sigma 0.7 voxels."""
    for axis in range(3):
        padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, here, after = (np.take(padded, range(k, k + volume.shape[axis]), axis) for k in range(3))
        volume = (before + 2 * here + after) / 4
    return volume


def _step(signed_distance: np.ndarray) -> np.ndarray:
    """0 to 1 across one voxel around zero: the share of a voxel that lies inside."""
    return np.clip(signed_distance + 0.5, 0, 1)

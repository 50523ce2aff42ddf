"""What other instruments, and the damage that sections meet, make of a training clip."""

from __future__ import annotations

import math

import numpy as np

from emformer_hub.training.ranges import SamplingRanges


def seen_by_another_instrument(
    clip: np.ndarray, ranges: SamplingRanges, axes: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Another sharpness, curve of grey values, contrast and brightness; of sections and target alike.

    Args:
        clip: ``(frames, rows or planes, columns)``, normalised.
        ranges: how often what is done.
        axes: axes along which the instrument is softer or sharper.
        rng: source of chance.
    """
    if rng.random() < ranges.blur:
        clip = smoothed(clip, rng.uniform(0, 0.25), axes)
    elif ranges.sharpen and rng.random() < ranges.sharpen:
        clip = smoothed(clip, rng.uniform(-0.15, 0), axes)
    if ranges.tone and rng.random() < ranges.tone:
        clip = _another_tone(clip, rng)
    if rng.random() < ranges.contrast:
        clip = clip * np.float32(np.exp(rng.normal(0, 0.2))) + np.float32(rng.normal(0, 0.2))
    if rng.random() < ranges.invert:
        clip = -clip
    return clip


def _another_tone(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A monotone curve of normalised grey values: a gamma bends it, an equalisation spreads its middle."""
    if rng.random() < 0.5:
        bend = np.float32(rng.uniform(-0.4, 0.4))
        return np.expm1(bend * clip.clip(-4, 4)) / bend if abs(bend) > 1e-3 else clip
    share = np.float32(rng.uniform(0, 1))  # tanh(0.8 x) is within 2 % of the distribution function of a Gaussian
    return (1 - share) * clip + share * np.float32(math.sqrt(3)) * np.tanh(np.float32(0.8) * clip)


def unit_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance, white in half of the cases, else smooth along some of the axes."""
    noise = rng.standard_normal(shape, np.float32)
    if rng.random() < 0.5:
        along = tuple(axis for axis in range(3) if rng.random() < 0.5)
        noise = smoothed(noise, rng.uniform(0, 0.25), along)
        noise /= noise.std()
    return noise


def smoothed(clip: np.ndarray, share: float, axes: tuple[int, ...]) -> np.ndarray:
    """Each voxel takes this fraction from either neighbour along these axes (gives, below 0); borders repeat."""
    for axis in axes:
        padded = np.pad(clip, [(int(axis == a),) * 2 for a in range(clip.ndim)], mode="edge")
        before, after = (np.take(padded, range(k, k + clip.shape[axis]), axis) for k in (0, 2))
        clip = (1 - 2 * share) * clip + share * (before + after)
    return clip.astype(np.float32)


def damaged(sections: np.ndarray, ranges: SamplingRanges, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the microscope adds to ``(frames, rows, columns)``; rows are sections, and each is hit on its own.

    Returns:
        The sections, and the variance of the noise in each; infinite where something else makes it another image.
    """
    frames, rows, columns = sections.shape
    added = np.zeros(rows)
    if rng.random() < ranges.noise:
        strength = rng.uniform(0, ranges.noise_max)
        sections = sections + np.float32(strength) * rng.standard_normal(sections.shape, np.float32)
        added += strength**2
    if rng.random() < ranges.jump:
        hit = rng.random((rows,)) < 0.2
        added[hit] = np.inf
        gain = np.exp(hit * rng.normal(0, 0.15, hit.shape))[:, None]
        brightness = (hit * rng.normal(0, 0.2, hit.shape))[:, None]
        sections = (sections * gain + brightness).astype(np.float32)
    if rng.random() < ranges.charging:
        along_frames, along_columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in (frames, columns))
        for row in np.flatnonzero(rng.random(rows) < 0.2):
            added[row] = np.inf
            slope, bend = rng.normal(0, 0.3, (2, 2)).astype(np.float32)
            across_frames = (slope[0] * along_frames + bend[0] * np.square(along_frames))[:, None]
            sections[:, row] += across_frames + slope[1] * along_columns + bend[1] * np.square(along_columns)
    if rng.random() < ranges.jitter:
        for row in np.flatnonzero(rng.random(rows) < 0.2):
            added[row] = np.inf
            sections[:, row] = np.roll(sections[:, row], int(rng.choice([-1, 1])), axis=-1)
    return sections, added

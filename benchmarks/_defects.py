"""Defects as they happen to sections, planted into measured ones: random in size, place and strength, from a seed.

Every function takes the stack ``(z, y, x)``, the number of a section and a generator, and returns the spoilt section in
float64, on the grey levels of the stack; the caller rounds and clips as a microscope would. Strengths are in spreads:
the robust standard deviation of the section. Each docstring gives the ranges.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

Defect = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def black(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """A section that was lost and filled with 0."""
    return np.zeros(stack.shape[1:])


def blank(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """One grey level throughout, anywhere in the range of the stack."""
    return np.full(stack.shape[1:], rng.integers(1, 256) / 255 * float(stack.max()))


def duplicate(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """The section before or after in its place; half of the time imaged anew: with noise of 0.02 to 0.1 spreads and
    brightness and contrast changed by up to 3 %."""
    copy = stack[z + rng.choice([-1, 1])].astype(float)
    if rng.random() < 0.5:
        copy = copy.mean() + (copy - copy.mean()) * rng.uniform(0.97, 1.03)
        copy = copy + rng.normal(0, rng.uniform(0.02, 0.1) * _spread(copy), copy.shape)
    return copy


def blurred(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """Out of focus: a Gaussian of 2 to 4 voxels; the noise of the detector, 0 to 0.2 spreads, stays."""
    section = stack[z].astype(float)
    noise = rng.normal(0, rng.uniform(0, 0.2) * _spread(section), section.shape)
    return ndimage.gaussian_filter(section, rng.uniform(2, 4)) + noise


def brightness(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """Brighter or darker by 0.7 to 1.5 spreads."""
    section = stack[z].astype(float)
    return section + rng.choice([-1, 1]) * rng.uniform(0.7, 1.5) * _spread(section)


def contrast(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """Contrast multiplied or divided by 1.6 to 2.2, around the mean."""
    section = stack[z].astype(float)
    return section.mean() + (section - section.mean()) * rng.uniform(1.6, 2.2) ** rng.choice([-1, 1])


def shifted(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """Moved by 12 to 30 voxels in any direction, rims mirrored."""
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(12, 30)
    by = np.rint(length * np.array([np.sin(angle), np.cos(angle)]))
    return ndimage.shift(stack[z].astype(float), by, order=0, mode="mirror")


def fold(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """A dark band 6 to 20 voxels wide that crosses the section, bent by up to a twentieth of its side; tissue on one
    side is pulled under it by its width. Through twice or three times the tissue, 0.3 to 0.6 of the light is left."""
    across, _ = _across_curve(stack.shape[1:], rng)
    width = rng.uniform(6, 20)
    section = stack[z].astype(float)
    grey = float(np.quantile(section, 0.001))
    y, x = np.mgrid[: section.shape[0], : section.shape[1]].astype(float)
    step = width * ndimage.gaussian_filter((across > 0).astype(float), 2)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(across, 2))
    pulled = ndimage.map_coordinates(section, [y + step * slope_y, x + step * slope_x], order=1, mode="mirror")
    inside = _soft_step(width / 2 - np.abs(across), 1.5)
    left = rng.uniform(0.3, 0.6)
    floor = min(grey, 0.0) if section.min() >= 0 else grey
    return floor + (pulled - floor) * (1 - inside * (1 - left))


def charging(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """A bright or dark cloud with smooth edges: an ellipse, half axes 20 to 60 voxels, 1.5 to 3 spreads at its peak."""
    height, width = stack.shape[1:]
    section = stack[z].astype(float)
    y, x = np.mgrid[:height, :width].astype(float)
    centre_y, centre_x = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width
    angle, (long, short) = rng.uniform(0, np.pi), np.sort(rng.uniform(20, 60, 2))[::-1]
    u = (y - centre_y) * np.sin(angle) + (x - centre_x) * np.cos(angle)
    v = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    radius = np.sqrt((u / long) ** 2 + (v / short) ** 2)
    cloud = _soft_step(1 - radius, 0.25)
    return section + rng.choice([-1, 1]) * rng.uniform(1.5, 3) * _spread(section) * cloud


def crack(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """A line of bare resin 2 to 6 voxels wide and half a side to a whole side long, bent; as bright or as dark as the
    extreme 0.1 % of the section, or up to one spread beyond."""
    section = stack[z].astype(float)
    height, width = section.shape
    across, along = _across_curve(section.shape, rng)
    length = rng.uniform(0.5, 1.0) * min(height, width)
    start = rng.uniform(-0.5, 0.5) * (min(height, width) - length) - length / 2
    taper = _soft_step(along - start, 3) * _soft_step(start + length - along, 3)
    inside = _soft_step(rng.uniform(2, 6) / 2 - np.abs(across), 0.7) * taper
    beyond = rng.uniform(0, 1) * _spread(section)
    level = np.quantile(section, 0.999) + beyond if rng.random() < 0.5 else np.quantile(section, 0.001) - beyond
    return section + inside * (level - section)


def grey_curve(stack: np.ndarray, z: int, rng: np.random.Generator) -> np.ndarray:
    """Another curve of grey values: a power of 0.55 to 0.7, or its inverse, over the range of the section."""
    section = stack[z].astype(float)
    low, high = float(section.min()), float(section.max())
    return low + (high - low) * ((section - low) / max(high - low, 1e-6)) ** (
        rng.uniform(0.55, 0.7) ** rng.choice([-1, 1])
    )


def drifting(stack: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The whole stack as it ages: contrast falls by a quarter to a half from the first section to the last, brightness
    rises by 1 to 2 spreads, and halfway, contrast falls once more, by a fifth, for good."""
    last = len(stack) - 1
    spread, fall, rise = _spread(stack[0]), rng.uniform(0.25, 0.5), rng.uniform(1, 2)
    aged = []
    for z, section in enumerate(stack.astype(float)):
        contrast = (1 - fall * z / last) * (0.8 if 2 * z > last else 1.0)
        aged.append(section.mean() + (section - section.mean()) * contrast + rise * spread * z / last)
    return as_stored(np.stack(aged), stack.dtype)


DEFECTS: dict[str, tuple[Defect, str]] = {
    "black": (black, "missing"),
    "one grey level": (blank, "missing"),
    "duplicate": (duplicate, "duplicate"),
    "blurred": (blurred, "blurred"),
    "brightness": (brightness, "brightness"),
    "contrast": (contrast, "contrast"),
    "shifted": (shifted, "shifted"),
    "fold": (fold, "damaged"),
    "charging": (charging, "damaged"),
    "crack": (crack, "damaged"),
}
"""Name -> what plants it, and the flag that it should raise."""
HARMLESS: dict[str, set[str]] = {
    "lost": {"distant"},
    "thick": {"distant", "contrast", "blurred", "duplicate"},
    "grey curve": {"brightness", "contrast"},
}
"""Name -> flags any of which names it; none is damage. ``lost`` takes a section out,
so that the next one is too far away; ``thick`` puts the mean of two sections in the place of both."""


def plant(stack: np.ndarray, z: int, name: str, rng: np.random.Generator) -> np.ndarray:
    """The section as the microscope would store it with the defect: in the dtype of the stack."""
    return as_stored(DEFECTS[name][0](stack, z, rng), stack.dtype)


def plant_all(
    stack: np.ndarray, chosen: dict[int, str], rng: np.random.Generator
) -> tuple[np.ndarray, dict[int, tuple[str, bool]]]:
    """A copy of a stack with what is chosen for each section, any of ``DEFECTS`` and ``HARMLESS``, planted.

    Returns:
        The copy, and for the number that each planted section has in it, the name and whether it changed at all.
    """
    sections: list[np.ndarray] = []
    planted: dict[int, tuple[str, bool]] = {}
    skipped = False
    for z, section in enumerate(stack):
        name = chosen.get(z)
        if name is not None:
            planted[len(sections)] = name, True
        if skipped or name == "lost":
            skipped = False
        elif name == "thick":
            sections.append(as_stored((section.astype(float) + stack[z + 1]) / 2, stack.dtype))
            skipped = True
        elif name == "grey curve":
            sections.append(as_stored(grey_curve(stack, z, rng), stack.dtype))
        elif name is not None:
            sections.append(plant(stack, z, name, rng))
            planted[len(sections) - 1] = name, bool((sections[-1] != section).any())
        else:
            sections.append(section)
    return np.stack(sections), planted


def as_stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values as the microscope would store them, in the dtype of the stack."""
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(dtype)


def _spread(section: np.ndarray) -> float:
    low, high = np.quantile(section, [0.25, 0.75])
    return float(high - low) / 1.349


def _soft_step(inside: np.ndarray, softness: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(inside / softness)


def _across_curve(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance from a slightly bent line through the inner half of a section, and the place along it; voxels."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(float)
    angle = rng.uniform(0, np.pi)
    y -= height / 2 + rng.uniform(-0.25, 0.25) * height
    x -= width / 2 + rng.uniform(-0.25, 0.25) * width
    along, across = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
    side = min(height, width)
    bend = rng.uniform(-0.05, 0.05) * side * np.sin(2 * np.pi * along / (rng.uniform(0.6, 1.5) * side) + angle)
    return across - bend, along

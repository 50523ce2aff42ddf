"""What a reconstruction is worth on a user's own stack, without a ground truth: ``audit_stack``.

What is known of a stack is held back and compared with what the network makes of the rest: whole sections, and every
so many columns of its sharp plane. What cannot be held back is asked to agree with itself.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emformer_hub.devices import choose_device
from emformer_hub.errors import InputError
from emformer_hub.geometry import Region, SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate, interpolation_matrix
from emformer_hub.measurement.consistency import consistency_residual
from emformer_hub.measurement.fsc import fsc, resolution
from emformer_hub.model_folder import fingerprint
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.runner import Reconstruction, reconstruct
from emformer_hub.reconstruction.sections import predict_section
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.checks import check_region, check_volume

SECTIONS, SIDE = 48, 256
"""At most so many sections and so many rows and columns in their middle are audited."""
LEFT_OUT = 12
"""Sections that are held back, one at a time, evenly spread."""
FRAMES = 16
"""Sections whose sharp plane is degraded."""
PROBABILITIES = (0.5, 0.8, 0.95)
LEAST_SECTIONS, LEAST_SIDE = 6, 64
MAP_BLOCK = 16
"""Voxels a side of the blocks of the error map."""
VERDICTS = ("good", "take care", "do not use")


@dataclass(frozen=True)
class Verdict:
    """What one look at a stack says.

    Attributes:
        item: what was looked at.
        verdict: one of ``VERDICTS``.
        figure: what was measured, with its unit.
        thresholds: of ``good`` and of ``take care``, in words.
        reason: a sentence.
    """

    item: str
    verdict: str
    figure: str
    thresholds: str
    reason: str


@dataclass(frozen=True, eq=False)
class Audit:
    """What :func:`audit_stack` found.

    Attributes:
        facts: what was audited, and how; fit for JSON.
        figures: what was measured, by item; fit for JSON.
        verdicts: one an item.
        pictures: what the report draws: arrays by name.
    """

    facts: dict[str, Any]
    figures: dict[str, Any]
    verdicts: list[Verdict]
    pictures: dict[str, np.ndarray] = field(repr=False)

    def report(self) -> dict[str, Any]:
        """All but the pictures, fit for JSON."""
        return {"verdicts": [vars(verdict) for verdict in self.verdicts], "figures": self.figures, "facts": self.facts}


def audit_stack(
    stack: np.ndarray | StoredArray,
    sections: SectionModel,
    voxel_size: VoxelSize,
    *,
    model: str = "emformer-small",
    region: Region | None = None,
    name: str = "the stack",
    device: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Audit:
    """Measure what can be measured of a reconstruction on the stack itself.

    Args:
        stack: ``(sections, y, x)``; its middle is audited: at most 48 sections of 256 x 256 voxels.
        sections: how it samples tissue.
        voxel_size: of the stack, nm.
        model: by name.
        region: audit the middle of this part instead.
        name: of the stack, for messages and the report.
        device: what computes.
        progress: told what is being looked at.

    Raises:
        InputError: fewer than 6 sections or 64 voxels a side, no contrast, values that are not finite, or an argument
            is unusable.
    """
    begin = time.time()
    seconds: dict[str, float] = {}
    z, y, x = region or tuple(slice(0, length) for length in stack.shape)
    check_region((z, y, x), stack.shape, name)
    box = _middle((z, y, x))
    crop = np.asarray(stack[box])
    check_auditable(crop.shape, name)
    check_volume(crop, name)
    network, processor = EMformerModel.from_pretrained(model), EMformerProcessor.from_pretrained(model)
    network.to(device=choose_device(device))
    statistics = processor.measure(stack)
    grey = float(statistics.std)
    figures: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}

    def look(what: str, function: Callable[[], Any]) -> Any:
        progress(what)
        start = time.time()
        result = function()
        seconds[what] = round(time.time() - start, 2)
        return result

    normal = statistics.normalise(crop)
    figures["left_out"], pictures["left_out_map"] = look(
        "sections left out", lambda: left_out(network, normal, sections, grey)
    )
    figures["in_plane"] = look("sharp plane", lambda: in_plane(crop, sections, network, processor, device))
    settings: dict[str, Any] = {"factor": sections.factor, "thickness": sections.thickness, "offset": sections.offset}
    settings |= {"model": network, "device": device, "progress": False}
    made: Reconstruction = look("reconstruction", lambda: reconstruct(crop, ensemble=2, **settings))
    one: Reconstruction = look("one orientation", lambda: reconstruct(crop, ensemble=1, **settings))
    other: Reconstruction = look("other orientation", lambda: reconstruct(crop.swapaxes(1, 2), ensemble=1, **settings))
    tile = tuple(max(least, length // 2 // 16 * 16) for least, length in zip((20, 48, 48), crop.shape, strict=True))
    tiled: Reconstruction = look("tiles", lambda: reconstruct(crop, ensemble=1, tile_zyx=tile, **settings))
    size = voxel_size.with_z(voxel_size.z / sections.factor)
    figures["isotropy"] = look(
        "spectra", lambda: isotropy(made.volume, one.volume, other.volume.swapaxes(1, 2), size, voxel_size.z)
    )
    residual = look("agreement", lambda: consistency_residual(made.volume, crop, sections))
    figures["consistency"] = {"rms": residual.rms, "relative_rms": residual.rms / grey, "maximum": residual.maximum}
    figures["seams"] = seams(one.volume, tiled.volume, grey)
    pictures |= {
        "input": crop,
        "interpolation": interpolate(crop, sections, "cubic"),
        "reconstruction": made.volume,
        "uncertainty": made.uncertainty,
    }
    facts = {
        "stack": name,
        "shape_zyx": list(stack.shape),
        "region": [[part.start, part.stop] for part in box],
        "voxel_size_nm": list(voxel_size.zyx),
        "plane_size_nm": list(size.zyx),
        "factor": sections.factor,
        "thickness": sections.thickness,
        "model": model,
        "weights_sha256": fingerprint(network),
        "version": importlib.metadata.version("emformer-hub"),
        "grey_levels_std": grey,
        "seconds": seconds | {"all": round(time.time() - begin, 2)},
    }
    return Audit(facts, figures, judge(figures, crop), pictures)


def left_out(
    network: EMformerModel, stack: np.ndarray, sections: SectionModel, grey: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Errors of sections that are held back, one at a time, beside interpolation between the others.

    Args:
        stack: ``(sections, y, x)``, float32, standard deviations from the mean.
        grey: levels in a standard deviation.

    Returns:
        ``{"section": [...], "network": [...], "linear": [...], "cubic": [...]}`` (RMS errors, grey levels), the gains
        over both in dB, and a map of the gain over linear, dB, in blocks of 16 x 16 voxels.
    """
    inner = np.arange(1, len(stack) - 1)
    chosen = inner[np.unique(np.linspace(0, len(inner) - 1, min(LEFT_OUT, len(inner))).round().astype(int))]
    errors: dict[str, list[np.ndarray]] = {"network": [], "linear": [], "cubic": []}
    for z in chosen:
        errors["network"].append(predict_section(network, stack, int(z), sections) - stack[z])
        linear = 0.5 * (stack[z - 1] + stack[z + 1])
        errors["linear"].append(linear - stack[z])
        inside = 2 <= z <= len(stack) - 3  # the polynomial of degree 3 through the two neighbours on either side
        cubic = (4 * (stack[z - 1] + stack[z + 1]) - stack[z - 2] - stack[z + 2]) / 6 if inside else linear
        errors["cubic"].append(cubic - stack[z])
    squares = {name: np.stack([np.square(error) for error in values]) for name, values in errors.items()}
    figures: dict[str, Any] = {"section": chosen.tolist()}
    for name, values in squares.items():
        figures[name] = (np.sqrt(values.mean(axis=(1, 2))) * grey).round(4).tolist()
    for name in ("linear", "cubic"):
        figures[f"gain_over_{name}_db"] = _decibel(squares[name].mean(), squares["network"].mean())
    return figures, 10 * np.log10(_blocks(squares["linear"].mean(0)) / _blocks(squares["network"].mean(0)))


def in_plane(
    crop: np.ndarray,
    sections: SectionModel,
    network: EMformerModel,
    processor: EMformerProcessor,
    device: str | None,
) -> dict[str, Any]:
    """Degrade the sharp plane as sections do, along x, restore it, and compare with what was there.

    Each section is restored by itself with its rows as frames, which is harder than the real task: there, frames of
    both orientations are sharp.

    Returns:
        ``{"gain_over_bicubic_db", "psnr_db", "coverage": {"0.5": share, ...}}``; empty if the plane is too small.
    """
    import torch

    count = sections.num_sections(crop.shape[2])
    if count < 4:
        return {}
    statistics = processor.measure(crop)
    chosen = np.unique(np.linspace(0, len(crop) - 1, min(FRAMES, len(crop))).round().astype(int))
    truth = statistics.normalise(crop[chosen].transpose(2, 0, 1)[: sections.num_planes(count)])  # x, section, y
    degraded = sections.degrade(truth)
    positions = sections.plane_positions(len(truth))
    target, errors, scales = [], [], []
    dev = choose_device(device)
    with torch.inference_mode():
        for frame in range(truth.shape[1]):
            clip = torch.from_numpy(degraded[:, frame].copy())[None, None].to(dev)
            out = network(clip, sections.factor, positions=positions, thickness=sections.thickness)
            errors.append(out.reconstruction[0, 0].float().cpu().numpy() - truth[:, frame])
            scales.append(math.sqrt(2) * out.scale[0, 0].float().cpu().numpy())
            target.append(truth[:, frame])
    matrix = interpolation_matrix(positions, len(degraded), "cubic")
    cubic = np.tensordot(matrix, degraded, axes=1).transpose(1, 0, 2) - np.stack(target)
    error, scale = np.stack(errors), np.stack(scales)
    span = float(np.ptp(np.stack(target)))
    return {
        "gain_over_bicubic_db": _decibel(np.square(cubic).mean(), np.square(error).mean()),
        "psnr_db": _decibel(span**2, float(np.square(error).mean())),
        "coverage": coverage(error, scale, [processor.interval(p, sections) for p in PROBABILITIES]),
    }


def coverage(error: np.ndarray, deviation: np.ndarray, multiples: Sequence[float]) -> dict[str, float]:
    """Which share of errors lies within so many stated standard deviations, by the probability that it is meant for."""
    pairs = zip(PROBABILITIES, multiples, strict=True)
    return {f"{p:g}": round(float((np.abs(error) <= multiple * deviation).mean()), 4) for p, multiple in pairs}


def isotropy(
    volume: np.ndarray, first: np.ndarray, second: np.ndarray, size: VoxelSize, spacing_nm: float
) -> dict[str, Any]:
    """Power along z over power along x in four bands of frequency, and up to where two passes agree.

    Args:
        volume: ``(planes, y, x)``.
        first, second: the same by one orientation of the network each. They see the same sections: where they disagree,
            detail is the network's own; where they agree, it need not be right.
        size: of a voxel, nm.
        spacing_nm: of the sections.

    Returns:
        ``{"bands_per_nm": [...], "power_ratio": [...], "judged": bands, "agreement_nm": {"z": , "lateral": }}``; a
        ratio of 1 is isotropic. Judged are the first bands, which hold wavelengths beyond a section spacing: finer
        ones hold mostly noise along x, which is not to be made up along z.
    """
    nyquist = 0.5 / max(size.z, size.x)
    edges = nyquist * np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    powers = [_power(volume, axis, length, edges) for axis, length in ((0, size.z), (2, size.x))]
    cones: dict[str, Any] = {"z": "z", "lateral": "lateral"}
    agreement = {name: round(resolution(fsc(first, second, size, axis=axis), 0.5), 3) for name, axis in cones.items()}
    ratio = [round(float(z / x), 4) if x > 0 else None for z, x in zip(*powers, strict=True)]
    judged = max(1, int((1 / edges[:-1] > spacing_nm).sum()))
    return {"bands_per_nm": edges.tolist(), "power_ratio": ratio, "judged": judged, "agreement_nm": agreement}


def seams(whole: np.ndarray, tiled: np.ndarray, grey: float) -> dict[str, float]:
    """How far a reconstruction in small tiles is from one in few: RMS and greatest difference, grey levels, and RMS in
    standard deviations of the stack."""
    difference = whole.astype(np.float32) - tiled.astype(np.float32)
    rms = float(np.sqrt(np.square(difference).mean()))
    return {"rms": rms, "maximum": float(np.abs(difference).max()), "relative_rms": rms / grey}


def judge(figures: dict[str, Any], crop: np.ndarray) -> list[Verdict]:
    """A verdict for each item that was measured."""
    found = figures["left_out"]
    gain = min(found["gain_over_linear_db"], found["gain_over_cubic_db"])
    verdicts = [
        Verdict(
            "sections left out",
            _grade(gain, 0.3, 0.0),
            f"{gain:+.2f} dB over the better interpolation",
            "good from +0.3 dB, take care from 0 dB",
            "Sections that were held back are predicted better than by interpolation."
            if gain >= 0.3
            else "Sections that were held back are hardly predicted better than by interpolation: adapt the model.",
        )
    ]
    plane = figures["in_plane"]
    if plane:
        gain = plane["gain_over_bicubic_db"]
        apart = max(abs(share - float(p)) for p, share in plane["coverage"].items())
        verdicts += [
            Verdict(
                "sharp plane, degraded",
                _grade(gain, 0.3, 0.0),
                f"{gain:+.2f} dB over bicubic",
                "good from +0.3 dB, take care from 0 dB",
                "Detail of this stack that was taken away along x is restored better than by interpolation."
                if gain >= 0.3
                else "Detail taken away along x is hardly restored better than by interpolation: adapt the model.",
            ),
            Verdict(
                "intervals",
                _grade(-apart, -0.06, -0.15),
                ", ".join(f"{float(p):.0%}: {share:.1%}" for p, share in plane["coverage"].items()),
                "good within 6 points, take care within 15",
                "Stated intervals hold the share of errors that they should."
                if apart <= 0.06
                else "Stated intervals hold another share of errors than they should: calibrate, or widen them.",
            ),
        ]
    bands = figures["isotropy"]["power_ratio"][: figures["isotropy"]["judged"]]
    ratios = [ratio for ratio in bands if ratio]
    worst = max((abs(math.log2(ratio)) for ratio in ratios), default=math.inf)
    verdicts.append(
        Verdict(
            "isotropy of spectra",
            _grade(-worst, -1.0, -3.0),
            "axial over lateral power " + ", ".join(f"{ratio:.2f}" for ratio in ratios),
            "good within a factor of 2 in every band of wavelengths from the section spacing on, take care within 8",
            "Planes carry about as much detail along z as along x."
            if worst <= 1
            else "Detail along z is weaker or stronger than along x: thin structures across z may be missing.",
        )
    )
    relative = figures["consistency"]["relative_rms"]
    verdicts.append(
        Verdict(
            "agreement with the sections",
            _grade(-relative, -0.1, -0.3),
            f"{figures['consistency']['rms']:.2f} grey levels RMS, {relative:.1%} of a standard deviation",
            "good to 10 %, take care to 30 %",
            "Sections cut from the result are those measured, or nearly."
            if relative <= 0.1
            else "Sections cut from the result differ from those measured: use --consistent.",
        )
    )
    step = figures["seams"]["relative_rms"]
    verdicts.append(
        Verdict(
            "seams",
            _grade(-step, -0.02, -0.1),
            f"{figures['seams']['rms']:.3f} grey levels RMS between small tiles and large",
            "good to 2 % of a standard deviation, take care to 10 %",
            "Where blocks meet does not show." if step <= 0.02 else "Where blocks meet may show: use larger tiles.",
        )
    )
    saturated = float(((crop == crop.min()) | (crop == crop.max())).mean())
    values = len(np.unique(crop[:: max(1, len(crop) // 8)]))
    verdicts.append(
        Verdict(
            "grey levels",
            "do not use" if values < 8 else _grade(-saturated, -0.02, -0.2),
            f"{saturated:.1%} at the darkest or brightest level, {values} levels",
            "good to 2 % saturated, take care to 20 %, of 8 levels or more",
            "The input is an image of grey levels."
            if values >= 8 and saturated <= 0.02
            else "Much of the input is black, white, or one of a few levels: export it again.",
        )
    )
    return verdicts


def _grade(value: float, good: float, care: float) -> str:
    return VERDICTS[0] if value >= good else VERDICTS[1] if value >= care else VERDICTS[2]


def _decibel(larger: float, smaller: float) -> float:
    """10 log10 of a ratio; 99 where there is no error at all."""
    return round(min(99.0, 10 * math.log10(max(larger, 1e-12) / max(smaller, 1e-12))), 3)


def _blocks(errors: np.ndarray) -> np.ndarray:
    rows, columns = (side // MAP_BLOCK for side in errors.shape)
    cut = errors[: rows * MAP_BLOCK, : columns * MAP_BLOCK]
    return cut.reshape(rows, MAP_BLOCK, columns, MAP_BLOCK).mean(axis=(1, 3)) + 1e-6


def _power(volume: np.ndarray, axis: int, length: float, edges: np.ndarray) -> np.ndarray:
    """Mean power of lines along an axis in bands of frequency, 1/nm."""
    lines = np.moveaxis(volume.astype(np.float32), axis, -1)
    lines = (lines - lines.mean(axis=-1, keepdims=True)) * np.hanning(lines.shape[-1] + 2)[1:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(lines))).mean(axis=(0, 1)) / lines.shape[-1]
    frequency = np.fft.rfftfreq(lines.shape[-1], length)
    inside = [(frequency >= low) & (frequency < high) for low, high in itertools.pairwise(edges)]
    return np.array([power[band].mean() if band.any() else 0.0 for band in inside])


def _middle(region: Region) -> Region:
    z, y, x = (
        slice(
            part.start + (part.stop - part.start - min(part.stop - part.start, most)) // 2,
            part.start + (part.stop - part.start + min(part.stop - part.start, most)) // 2,
        )
        for part, most in zip(region, (SECTIONS, SIDE, SIDE), strict=True)
    )
    return (z, y, x)


def check_auditable(shape: tuple[int, ...], name: str) -> None:
    """Raise ``InputError`` unless a stack, or a part of one, of this shape can be audited."""
    if len(shape) != 3 or shape[0] < LEAST_SECTIONS or min(shape[1:]) < LEAST_SIDE:
        raise InputError(
            f"{name} has shape {shape} (sections, y, x); an audit needs at least {LEAST_SECTIONS} sections of "
            f"{LEAST_SIDE} x {LEAST_SIDE} voxels."
        )

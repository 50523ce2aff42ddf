"""Holds back what is known of a stack, and compares it with what the network predicts from the rest.

Two experiments serve the audit, the report on a training run, the demo page and the benchmarks: leaving sections out,
one at a time or a few apart, and degrading the sharp plane as sections are degraded along z.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emformer_hub.devices import choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolation_matrix
from emformer_hub.measurement import plane_ssim
from emformer_hub.measurement.fidelity import SSIM_REACH
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import Mode
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.blocks import Plan, make_plan
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.volumes.boxes import block_means, evenly_spaced

LEFT_OUT = 12
"""Number of sections that are held back, evenly spaced."""
APART = 4
"""Least distance between two sections that are held back in the same pass."""
TILE_SIDE = 224
"""Rows and columns that the network sees at once, the same on every machine."""
FRAMES = 16
"""Number of sections whose sharp plane is degraded."""
PROBABILITIES = (0.5, 0.8, 0.95)
MAP_BLOCK = 16
"""Side of the blocks of the error map, voxels."""
AVERAGED = 4
"""Side of the blocks whose mean error is set against their stated uncertainty: noise is much smaller in their means."""
WINDOW = 12
"""Number of sections from which :func:`predict_section` predicts one, itself included, as in training clips."""
ORIENTATIONS = (((1, 0, 2), (1, 0, 2)), ((2, 0, 1), (1, 2, 0)))
"""A stack (z, y, x) as a clip whose frames run along y, or along x, and the way back."""


def passes(depth: int, unfit: Sequence[int] = ()) -> list[np.ndarray]:
    """Choose the sections to hold back, pass by pass: at most 12, evenly spaced, never the first or last, and none that
    is unfit or next to an unfit one.

    Raises:
        InputError: there are no three sound sections in succession.
    """
    inner = np.array([z for z in range(1, depth - 1) if not {z - 1, z, z + 1}.intersection(unfit)], int)
    if not len(inner):
        raise InputError(
            f"{len(unfit)} of {depth} sections are missing, copied, out of focus or of another place, and no three "
            f"others are in succession; an audit holds sections back and needs some. Replace them, or choose another "
            f"part with --roi; `emformer-hub inspect` shows them."
        )
    chosen = inner[evenly_spaced(len(inner), LEFT_OUT)]
    closest = int(np.diff(chosen).min(initial=APART))
    turns = math.ceil(APART / closest)
    return [chosen[turn::turns] for turn in range(turns)]


def left_out(restorer: Restorer, stack: np.ndarray, unfit: Sequence[int] = ()) -> tuple[dict[str, Any], np.ndarray]:
    """Hold sections back, and measure the errors of prediction, of interpolation, and of the stated intervals.

    Args:
        restorer: restorer of the stack.
        stack: ``(sections, y, x)``.
        unfit: numbers of the unfit sections.

    Returns:
        What :func:`left_out_errors` returns, with ``"coverage": {"0.5": fraction, ...}``, or ``None`` for weights that
        were not calibrated on masked voxels.
    """
    groups = passes(len(stack), unfit)
    predictions = [predict_sections(restorer, stack, hidden) for hidden in groups]
    hidden = np.concatenate(groups)
    order = np.argsort(hidden)
    hidden = hidden[order]
    predicted, deviation = (np.concatenate(parts)[order] for parts in zip(*predictions, strict=True))
    figures, gains = left_out_errors(stack, hidden, predicted, restorer.geometry)
    processor, geometry = restorer.processor, restorer.geometry
    figures["coverage"] = None
    if calibrated_on_masked(processor, restorer.mode):
        multiples = [processor.interval(p, geometry, True, restorer.mode) for p in PROBABILITIES]
        figures["coverage"] = coverage(predicted - stack[hidden], deviation, multiples)
    return figures, gains


def plan_of(shape: tuple[int, ...], restorer: Restorer) -> Plan:
    """Divide a stack into blocks, the same on every machine, and not along z."""
    depth, rows, columns = shape
    tile = (depth, TILE_SIDE, TILE_SIDE)
    return make_plan((depth, rows, columns), restorer.geometry, restorer.network.config, tile)


def predict_sections(restorer: Restorer, stack: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predict sections by masking them, as they would be cut from the reconstruction, with their stated deviation.

    Args:
        restorer: restorer of the stack.
        stack: ``(sections, y, x)``.
        hidden: numbers of sections.

    Returns:
        Two arrays ``(hidden, y, x)``, float32, grey levels. Planes of one section err together, so its deviation is the
        mean of theirs.
    """
    geometry = restorer.geometry
    plan = plan_of(stack.shape, restorer)
    weights = geometry.matrix(len(stack))[hidden].astype(np.float32)
    mask = np.zeros((len(stack), 1, 1), bool)
    mask[hidden] = True
    result = np.empty((2, len(hidden), *stack.shape[1:]), np.float32)
    for block in plan.blocks():
        planes, *place = block.output
        imaged = weights[:, planes].any(axis=0)
        restored = restorer.restore(stack[block.input], block, mask[block.z.input])
        for whole, part in zip(result, restored, strict=True):
            whole[:, *place] = np.tensordot(weights[:, planes][:, imaged], part[imaged].astype(np.float32), axes=1)
    predicted, deviation = result
    return predicted, deviation


def window_around(hidden: int, depth: int) -> slice:
    """The 12 sections of a stack that section ``hidden`` is predicted from, itself included; all of a lower stack."""
    first = min(max(hidden - WINDOW // 2, 0), max(depth - WINDOW, 0))
    return slice(first, first + WINDOW)


@torch.inference_mode()
def restore_clip(network: EMformerModel, clip: np.ndarray, geometry: SectionModel, **options: Any) -> np.ndarray:
    """Restore a clip in one pass, in the precision that is faster on the device of the network.

    Args:
        network: network, on the device that computes.
        clip: ``(frames, sections, columns)``, float32, standard deviations from the mean.
        geometry: how the sections sample tissue.
        options: further arguments of the network; tensors on its device.

    Returns:
        ``(frames, planes, columns)``, float32, in the units of the clip.
    """
    device = network.device
    half = choose_precision("auto", device) == torch.bfloat16
    sections = torch.from_numpy(np.ascontiguousarray(clip)).to(device)[None]
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        out = network(sections, geometry.factor, thickness=geometry.thickness, **options)
    return out.reconstruction[0].float().cpu().numpy()


def predict_section(network: EMformerModel, stack: np.ndarray, hidden: int, geometry: SectionModel) -> np.ndarray:
    """Predict section ``hidden`` of a stack from the sections around it; its own voxels are never looked at.

    The section is masked. The planes that it images are restored, in both orientations, and averaged as it averages
    them: a thick section is compared with a thick section.

    Args:
        network: network, on the device that computes.
        stack: ``(sections, y, x)``, float32, standard deviations from the mean; 12 around the hidden one are used.
        hidden: number of the section.
        geometry: how the sections sample tissue.

    Returns:
        ``(y, x)``, float32, in the units of the stack.
    """
    window = window_around(hidden, len(stack))
    around, place = stack[window], hidden - window.start
    weights = geometry.matrix(len(around))[place]
    positions = geometry.plane_positions(len(weights))[weights > 0]
    mask = torch.zeros(1, 1, len(around), 1, dtype=torch.bool, device=network.device)
    mask[:, :, place] = True
    passes = [
        restore_clip(network, around.transpose(axes), geometry, positions=positions, section_mask=mask).transpose(back)
        for axes, back in ORIENTATIONS
    ]
    return np.tensordot(weights[weights > 0], np.mean(passes, axis=0), axes=1).astype(np.float32)


def left_out_gain(
    network: EMformerModel, stack: np.ndarray, geometry: SectionModel, hidden: Iterable[int] | None = None
) -> tuple[float, np.ndarray]:
    """Gain of the network over the mean of both neighbours, in dB, on sections that are left out.

    Args:
        network, stack, geometry: as for :func:`predict_section`.
        hidden: the sections that are left out, one at a time; default: all but the first and the last.

    Returns:
        The gain, and the errors of the predicted sections, ``(hidden, y, x)`` in the units of the stack.
    """
    numbers = np.arange(1, len(stack) - 1) if hidden is None else np.array(list(hidden))
    predicted = np.stack([predict_section(network, stack, int(number), geometry) for number in numbers])
    gain = float(left_out_errors(stack, numbers, predicted)[0]["gain_over_linear_db"])
    return gain, predicted - stack[numbers]


def left_out_errors(
    stack: np.ndarray, hidden: np.ndarray, predicted: np.ndarray, geometry: SectionModel | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Errors of predicted sections, and of interpolation between their neighbours.

    Args:
        stack: ``(sections, y, x)``.
        hidden: numbers of the sections, ``(n,)``, ascending.
        predicted: their predictions, ``(n, y, x)``.
        geometry: how the sections sample tissue; default: evenly.

    Returns:
        ``{"section": [...], "network": [...], "linear": [...], "cubic": [...]}`` (RMS errors, grey levels), the gains
        over both in dB, and a map of the gain over linear, dB, in blocks of 16 x 16 voxels.
    """
    squares: dict[str, list[np.ndarray]] = {"network": [], "linear": [], "cubic": []}
    places = None if geometry is None or geometry is geometry.even else geometry.section_positions(len(stack))
    for z, section in zip(hidden, predicted, strict=True):
        truth = stack[z].astype(np.float32)
        linear, cubic = _between(stack, int(z)) if places is None else _between_uneven(stack, int(z), places)
        for name, values in (("network", section), ("linear", linear), ("cubic", cubic)):
            squares[name].append(np.square(values - truth))
    figures: dict[str, Any] = {"section": hidden.tolist()}
    for name, values in squares.items():
        figures[name] = [_five_digits(math.sqrt(square.mean())) for square in values]
    mean = {name: np.mean(values, axis=0) for name, values in squares.items()}
    for name in ("linear", "cubic"):
        figures[f"gain_over_{name}_db"] = decibel(mean[name].mean(), mean["network"].mean())
    least = 1e-6 * float(stack.var())
    linear, network = (block_means(mean[name], (MAP_BLOCK, MAP_BLOCK)) + least for name in ("linear", "network"))
    return figures, 10 * np.log10(linear / network)


def _between(stack: np.ndarray, z: int) -> tuple[np.ndarray, np.ndarray]:
    """A section by the line through its neighbours, and by the polynomial of degree 3 through two on either side."""
    near, middle = stack[max(0, z - 2) : z + 3].astype(np.float32), min(z, 2)
    linear = (near[middle - 1] + near[middle + 1]) / 2
    return linear, (4 * (near[1] + near[3]) - near[0] - near[4]) / 6 if len(near) == 5 else linear


def _between_uneven(stack: np.ndarray, z: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same where sections lie at these places."""
    polynomials: list[np.ndarray] = []
    for reach in (1, 2):
        near = [other for other in range(z - reach, z + reach + 1) if other != z]
        if near[0] < 0 or near[-1] >= len(stack):
            polynomials.append(polynomials[0])
            continue
        at = places[near]
        weights = [np.prod((places[z] - np.delete(at, i)) / (at[i] - np.delete(at, i))) for i in range(len(near))]
        polynomials.append(np.tensordot(np.array(weights, np.float32), stack[near].astype(np.float32), axes=1))
    linear, cubic = polynomials
    return linear, cubic


@dataclass(frozen=True)
class Restored:
    """Sharp planes, degraded and restored, in standard deviations; all ``(frames, planes, columns)``.

    Attributes:
        target: the sharp planes.
        error, cubic_error: errors of the network and of cubic interpolation.
        scale: Laplace scale that the network states.
    """

    target: Tensor
    error: Tensor
    scale: Tensor
    cubic_error: Tensor

    def gain(self, planes: np.ndarray | slice = slice(None)) -> float:
        """Gain over cubic interpolation on some of the planes, dB."""
        return psnr_gain(self.error[:, planes], self.cubic_error[:, planes])


def psnr_gain(error: Tensor, baseline_error: Tensor) -> float:
    """Gain in dB: by how much the mean squared error lies below the baseline's."""
    return float(10 * torch.log10(baseline_error.square().mean() / error.square().mean()))


@torch.inference_mode()
def restore_degraded(
    network: EMformerModel,
    degraded: np.ndarray,
    target: np.ndarray,
    geometry: SectionModel,
    device: torch.device,
    *,
    together: bool,
    **options: Any,
) -> Restored:
    """Restore planes that were degraded, and compare them with the sharp ones and with cubic interpolation.

    Args:
        network: network, on ``device``.
        degraded: ``(frames, rows, columns)``, float32, standard deviations from the mean.
        target: the same, sharp: ``(frames, planes, columns)``.
        geometry: how the rows were cut from the planes.
        device: device that computes.
        together: whether frames are neighbours that the network sees at once, or seen one by one.
        options: further arguments of the network.
    """
    clips, sharp = (torch.from_numpy(clip.astype(np.float32)).to(device) for clip in (degraded, target))
    positions = geometry.plane_positions(sharp.shape[1])
    outputs = [
        network(clip[None], geometry.factor, positions=positions, thickness=geometry.thickness, **options)
        for clip in ([clips] if together else clips.split(1))
    ]
    matrix = torch.from_numpy(interpolation_matrix(positions, clips.shape[1], "cubic")).to(device)
    return Restored(
        sharp,
        torch.cat([output.reconstruction[0] for output in outputs]) - sharp,
        torch.cat([output.scale[0] for output in outputs]),
        matrix @ clips - sharp,
    )


def in_plane(crop: np.ndarray, restorer: Restorer) -> dict[str, Any]:
    """Degrade the sharp plane as evenly spaced sections do, along x, restore it, and compare with what was there.

    Each section is restored by itself with its rows as frames, which is harder than the real task: there, frames of
    both orientations are sharp.

    Returns:
        ``{"gain_over_bicubic_db", "psnr_db", "ssim", "bicubic_ssim", "coverage": {"0.5": fraction, ...}, "averages",
        "section": [...], "network": [...]}``, with the range of the sharp planes as the peak of PSNR and SSIM, what
        :func:`certainty` says of means of 4 x 4 voxels, and the RMS error of each section, grey levels; empty if the
        plane is too small.
    """
    geometry, processor, network = restorer.geometry.even, restorer.processor, restorer.network
    count = geometry.num_sections(crop.shape[2])
    if count < 4:
        return {}
    chosen = evenly_spaced(len(crop), FRAMES)
    sharp = crop[chosen].transpose(2, 0, 1)[: geometry.num_planes(count)]  # x, section, y
    truth = restorer.statistics.normalise(sharp)
    degraded, target = (part.transpose(1, 0, 2) for part in (geometry.degrade(truth), truth))
    mode = restorer.mode
    found = restore_degraded(network, degraded, target, geometry, restorer.device, together=False, mode=mode)
    error, cubic_error, scale = (part.float().cpu().numpy() for part in (found.error, found.cubic_error, found.scale))
    span, grey = float(np.ptp(target)), restorer.statistics.std
    multiples = [processor.interval(p, geometry, mode=mode) for p in PROBABILITIES]
    figures: dict[str, Any] = {
        "gain_over_bicubic_db": decibel(np.square(cubic_error).mean(), np.square(error).mean()),
        "psnr_db": decibel(span**2, float(np.square(error).mean())),
        "coverage": coverage(error, math.sqrt(2) * scale, multiples),
        "averages": certainty(grey * error, scale, (1, AVERAGED, AVERAGED)),
        "section": chosen,
        "network": [_five_digits(grey * math.sqrt(np.square(one).mean())) for one in error],
    }
    if min(target.shape[1:]) > 2 * SSIM_REACH:
        figures["ssim"] = round(plane_ssim(target, target + error, span), 4)
        figures["bicubic_ssim"] = round(plane_ssim(target, target + cubic_error, span), 4)
    return figures


def coverage(error: np.ndarray, deviation: np.ndarray, multiples: Sequence[float]) -> dict[str, float]:
    """Fraction of errors within these multiples of the stated deviation, by the probability that each is meant for."""
    pairs = zip(PROBABILITIES, multiples, strict=True)
    return {f"{p:g}": round(float((np.abs(error) <= multiple * deviation).mean()), 4) for p, multiple in pairs}


def certainty(error: np.ndarray, stated: np.ndarray, sides: Sequence[int]) -> dict[str, float]:
    """Mean absolute error of all averages over blocks, and of the half of them for which least uncertainty is stated.

    Noise of the truth is part of the error of every voxel, everywhere alike, and hides where the rest is small; in
    averages it is not. An uncertainty that says where errors are small makes the second figure smaller than the first.

    Args:
        error: signed.
        stated: uncertainty, in any unit; same shape.
        sides: sides of the blocks, voxels.

    Returns:
        ``{"error", "certain_error"}``, in the unit of ``error``.
    """
    errors, uncertain = np.abs(block_means(error, sides)), block_means(stated, sides)
    certain = uncertain <= np.median(uncertain)
    return {"error": _five_digits(errors.mean()), "certain_error": _five_digits(errors[certain].mean())}


def calibrated_on_masked(processor: EMformerProcessor, mode: Mode) -> bool:
    """Whether the weights' intervals of masked voxels were measured, rather than taken from those of the others."""
    quantiles = processor.error_quantiles[mode]
    return any(quantiles[f"masked_{name}"] != quantiles[name] for name in ("full_thickness", "single_plane"))


def decibel(larger: float, smaller: float) -> float:
    """10 log10 of a ratio; 99 where there is no error at all."""
    return round(min(99.0, 10 * math.log10(max(larger, 1e-12) / max(smaller, 1e-12))), 3)


def _five_digits(value: float) -> float:
    return float(f"{value:.5g}")

"""What a reconstruction is worth on a user's own stack, without a ground truth: ``audit_stack``.

What is known of a stack is held back and compared with what the network makes of the rest: whole sections, and every so
many columns of its sharp plane. What cannot be held back is asked to agree with itself.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from emformer_hub.audit.agreement import alignment, halves_agree, isotropy, seams
from emformer_hub.audit.held_back import in_plane, left_out, plan_of
from emformer_hub.audit.second_opinion import Rival, second_opinion
from emformer_hub.audit.statement import statement
from emformer_hub.audit.verdicts import Verdict, judge
from emformer_hub.devices import choose_device, choose_precision, dtype_name
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.inspection.sections import Inspection, inspect_stack
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement.consistency import consistency_residual
from emformer_hub.modes import DEFAULT_MODE, Mode
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import ModelOnce
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import Box, check_region, middle, within
from emformer_hub.volumes.checks import check_volume
from emformer_hub.volumes.unmeasured import measured_box, unmeasured_in

SECTIONS, SIDE, CORE = 64, 512, 256
"""Largest part of a stack in which sections are held back (sections; rows and columns), and side of its middle, where
everything else is measured. An audit of this size takes some minutes on two cores."""
LEAST_SECTIONS, LEAST_SIDE = 6, 64
ENSEMBLE = 2


@dataclass(frozen=True, eq=False)
class Audit:
    """Result of :func:`audit_stack`.

    Attributes:
        facts: what was audited, and how; ready for JSON.
        figures: measurements by item; ready for JSON.
        verdicts: one per item.
        pictures: arrays for the pictures of the report, by name.
    """

    facts: dict[str, Any]
    figures: dict[str, Any]
    verdicts: list[Verdict]
    pictures: dict[str, np.ndarray] = field(repr=False)

    def report(self) -> dict[str, Any]:
        """Verdicts, figures, facts and a paragraph for a methods section, ready for JSON; the pictures are left out."""
        return {
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "figures": self.figures,
            "facts": self.facts,
            "statement": statement(self.facts, self.figures),
        }


def audit_stack(
    stack: np.ndarray | StoredArray,
    geometry: SectionModel,
    voxel_size: VoxelSize,
    *,
    model: str | ModelOnce = "emformer-small",
    against: str | ModelOnce | SectionModel | None = None,
    mode: Mode = DEFAULT_MODE,
    region: Box | None = None,
    hidden: StoredArray | None = None,
    name: str = "the stack",
    device: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Audit:
    """Measure, on the stack itself, how far its reconstruction can be trusted.

    Args:
        stack: ``(sections, y, x)``; only its middle is audited: at most 64 sections of 512 x 512 voxels for sections
            that are held back, and of 256 x 256 for everything else.
        geometry: how the sections of the stack sample tissue.
        voxel_size: voxel size of the stack, nm.
        model: name of a bundled model, a folder or a Hub id; or a
            :class:`~emformer_hub.reconstruction.settings.ModelOnce`.
        against: second opinion: another model, or how the same sections sample planes at another factor. It predicts
            what the first one does, and both are compared (:mod:`~emformer_hub.audit.second_opinion`).
        mode: what becomes of the noise of the sections.
        region: audit the middle of this part instead.
        hidden: mask of voxels that were not measured, bool ``(z, y, x)``. Neither they nor constant margins count in
            the brightness and contrast of the stack, and the audit keeps to where all sections were measured.
        name: name of the stack for messages and the report.
        device: device to compute on.
        progress: called with the name of each step.

    Raises:
        InputError: fewer than 6 sections or 64 voxels a side, or that were measured throughout, no contrast, values
            that are not finite, nothing between sections (factor 1), or an argument is unusable.
    """
    begin = time.time()
    seconds: dict[str, float] = {}
    z, y, x = region or tuple(slice(0, length) for length in stack.shape)
    check_region((z, y, x), stack.shape, name)
    for sampled in (geometry, against):
        if isinstance(sampled, SectionModel):
            sampled.check_sections(stack.shape[0], name)
    unmeasured = unmeasured_in(stack, hidden)
    box = _measured_middle((z, y, x), unmeasured, geometry, name)
    wide = _auditable(stack, box, geometry, name)
    core = _middle(box, CORE)
    crop = wide[within(core, box)]
    check_volume(crop, f"the middle of {name}")
    model, where = ModelOnce.of(model), choose_device(device)
    statistics = model.processor.measure(stack, unmeasured)
    geometry = geometry.part(box[0])
    restorer = Restorer(model.network, model.processor, geometry, statistics, ENSEMBLE, where, mode=mode)
    rival = None
    if against is not None:
        rival = Rival.of(against, model, restorer, box[0], lambda one: one.processor.measure(stack, unmeasured))
    figures: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}

    def look(what: str, function: Callable[[], Any]) -> Any:
        progress(what)
        start = time.time()
        result = function()
        seconds[what] = round(time.time() - start, 2)
        return result

    figures["alignment"] = look("alignment", lambda: alignment(wide))
    inspection = look("quality of sections", lambda: inspect_stack(crop))
    figures["quality"] = _quality(inspection, core[0].start)
    figures["left_out"], pictures["left_out_map"] = look(
        "sections left out", lambda: left_out(restorer, wide, inspection.flagged)
    )
    figures["in_plane"] = look("sharp plane", lambda: in_plane(crop, restorer))
    volume, uncertainty = look("reconstruction", lambda: restorer.restore_all(crop, plan_of(crop.shape, restorer)))
    size = geometry.plane_size(voxel_size)
    figures["isotropy"] = look("spectra", lambda: isotropy(volume, size, voxel_size.z))
    figures["halves"] = look("halves", lambda: halves_agree(restorer, crop, voxel_size))
    figures["consistency"] = look("agreement", lambda: _consistency(volume, crop, restorer))
    figures["seams"] = look("seams", lambda: seams(restorer, crop))
    pictures |= {"input": crop, "interpolation": interpolate(crop, geometry, "cubic")}
    pictures |= {"reconstruction": volume, "uncertainty": uncertainty}
    if rival is not None:
        both = (restorer, rival, wide, crop, inspection.flagged, figures, pictures)
        look("second opinion", lambda: second_opinion(*both))
    facts = {
        "stack": name,
        "shape_zyx": list(stack.shape),
        "left_out_region": _listed(box),
        "region": _listed(core),
        "voxel_size_nm": list(voxel_size.zyx),
        "plane_size_nm": list(size.zyx),
        **_computed_by(model, restorer),
        "grey_levels_std": statistics.std,
        "seconds": seconds | {"all": round(time.time() - begin, 2)},
    }
    return Audit(facts, figures, judge(figures, crop), pictures)


def _quality(inspection: Inspection, first: int) -> dict[str, Any]:
    """Number of sections, and the flags of those that have any, by their numbers in the stack."""
    flagged = {str(first + one.section): list(one.flags) for one in inspection.sections if one.flags}
    return {"sections": len(inspection.sections), "flagged": flagged}


def _consistency(volume: np.ndarray, crop: np.ndarray, restorer: Restorer) -> dict[str, float]:
    """Difference between sections cut from a reconstruction and the measured ones."""
    residual = consistency_residual(volume, crop, restorer.geometry)
    relative = residual.rms / restorer.statistics.std
    return {"rms": residual.rms, "relative_rms": relative, "maximum": residual.maximum}


def _computed_by(model: ModelOnce, restorer: Restorer) -> dict[str, Any]:
    """Geometry, model, device and versions."""
    return {
        "factor": restorer.geometry.factor,
        "thickness": restorer.geometry.thickness,
        "model": model.name,
        "mode": restorer.mode,
        "ensemble": restorer.ensemble,
        "device": str(restorer.device),
        "precision": dtype_name(choose_precision("auto", restorer.device)),
        "weights_sha256": model.fingerprint,
        "version": importlib.metadata.version("emformer-hub"),
        "torch": torch.__version__.partition("+")[0],
    }


def _listed(box: Box) -> list[list[int]]:
    return [[part.start, part.stop] for part in box]


def _measured_middle(region: Box, unmeasured: StoredArray | None, geometry: SectionModel, name: str) -> Box:
    """The middle of a region, or of what was measured of it throughout."""
    box = _middle(region, SIDE)
    if unmeasured is None or not unmeasured[box].any():
        return box
    box = _middle(measured_box(unmeasured, _middle(region, 2 * SIDE)), SIDE)
    shape = tuple(part.stop - part.start for part in box)
    check_auditable(shape, geometry, f"what was measured of {name} throughout")
    return box


def _auditable(stack: np.ndarray | StoredArray, box: Box, geometry: SectionModel, name: str) -> np.ndarray:
    """Read a box, and check that it can be audited."""
    voxels = np.asarray(stack[box])
    check_auditable(voxels.shape, geometry, name)
    check_volume(voxels, name)
    return voxels


def _middle(region: Box, side: int) -> Box:
    """At most 64 sections of ``side`` x ``side`` voxels around the middle of a box."""
    lengths = [part.stop - part.start for part in region]
    z, y, x = (
        slice(part.start + inner.start, part.start + inner.stop)
        for part, inner in zip(region, middle(lengths, (SECTIONS, side, side)), strict=True)
    )
    return (z, y, x)


def check_auditable(shape: tuple[int, ...], geometry: SectionModel, name: str) -> None:
    """Raise ``InputError`` unless a stack, or a part of one, of this shape and sampling can be audited."""
    if len(shape) != 3 or shape[0] < LEAST_SECTIONS or min(shape[1:]) < LEAST_SIDE:
        raise InputError(
            f"{name} has shape {shape} (sections, y, x); an audit needs at least {LEAST_SECTIONS} sections of "
            f"{LEAST_SIDE} x {LEAST_SIDE} voxels. Give the whole stack, or a larger part of it; is z the first axis?"
        )
    if geometry.factor == 1:
        raise InputError(
            f"{name} has sections as far apart as the planes that are asked for (factor 1), so there is nothing to "
            f"restore between them. Is its voxel size right?"
        )

"""The main job in memory: an anisotropic volume in, an isotropic volume and its uncertainty out."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from emformer_hub.devices import choose_device
from emformer_hub.errors import InputError, check_number
from emformer_hub.geometry import SectionModel
from emformer_hub.loading import load_model
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import DEFAULT_MODE, Mode, check_mode
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.blocks import Plan, make_plan
from emformer_hub.reconstruction.gaps import Seen, hidden_and_kept, put_back, sections_of_planes
from emformer_hub.reconstruction.memory import choose_tile
from emformer_hub.reconstruction.restorer import Restorer, check_ensemble
from emformer_hub.uncertainty import half_width, sure
from emformer_hub.volumes.checks import check_mask, check_stack, check_volume
from emformer_hub.volumes.padding import Padding, framed, tissue
from emformer_hub.volumes.unmeasured import hidden_voxels, margin_value, margins, mask_of

log = logging.getLogger(__name__)


PROGRESS_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.3g}/{total_fmt} blocks [{elapsed}<{remaining}]"
"""Progress in blocks and fractions of a block."""


@dataclass(frozen=True)
class Reconstruction:
    """An isotropic volume and its uncertainty.

    Attributes:
        volume: voxels, ``(round(sections * factor), y, x)``, in the dtype of the input.
        uncertainty: standard deviation of each voxel's error, from the network's own estimate and the spread of its
            passes; same shape, float32, intensity units of the input.
        geometry: how the sections of the input sample tissue.
        processor: processor of the weights, which holds the calibration of their uncertainty.
        mask: voxels of the input that were predicted from their surroundings, bool ``(sections, y, x)``, if any; those
            of margins and of gaps that are too wide stayed as they were, with uncertainty 0.
        mode: what became of the noise of the sections.
    """

    volume: np.ndarray
    uncertainty: np.ndarray
    geometry: SectionModel
    processor: EMformerProcessor
    mask: np.ndarray | None = None
    mode: Mode = DEFAULT_MODE

    @property
    def factor(self) -> float:
        """Output planes per section."""
        return self.geometry.factor

    def half_width(self, probability: float) -> np.ndarray:
        """Largest distance of the truth from each voxel with this probability, float32, intensity units.

        ``volume - half_width(0.95)`` to ``volume + half_width(0.95)`` holds 95 % of the true intensities, on tissue
        like that of the weights' calibration.

        Raises:
            InputError: a probability outside 0 to 0.99.
        """
        measured, masked = (
            self.processor.interval(probability, self.geometry, masked, self.mode) for masked in (False, True)
        )
        sections = self.geometry.sections_of(len(self.uncertainty))
        if self.mask is not None:
            sections = sections.clip(max=len(self.mask) - 1)
        lost = self.geometry.lost(slice(0, len(self.uncertainty)))
        return half_width(self.uncertainty, (measured, masked), self.mask, sections, lost)

    def confident(self, probability: float, tolerance: float) -> np.ndarray:
        """Mask of the voxels within a tolerance of the truth with at least this probability, bool, shape of the volume.

        Args:
            probability: probability from 0 to 0.99.
            tolerance: largest error, in grey levels of the volume.

        Raises:
            InputError: a probability outside that range, or a tolerance that is not a positive number.
        """
        check_number("tolerance", tolerance)
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise InputError(f"tolerance is {tolerance:g} grey levels; expected a positive number, as in 10.")
        return sure(self.half_width(probability), tolerance, self.geometry.wide(slice(0, len(self.volume))))


def reconstruct(
    volume: np.ndarray,
    *,
    factor: float | None = None,
    geometry: SectionModel | None = None,
    model: str | EMformerModel = "emformer-small",
    thickness: float = 1.0,
    offset: float | None = None,
    ensemble: int = 2,
    device: str | torch.device | None = None,
    precision: str = "auto",
    tile_zyx: tuple[int, int, int] | None = None,
    memory: float | None = None,
    mask: np.ndarray | None = None,
    mode: Mode = DEFAULT_MODE,
    progress: bool | Callable[[float, int], None] = True,
) -> Reconstruction:
    """Turn an anisotropic volume into an isotropic one.

    Args:
        volume: ``(sections, y, x)``, 8-bit, 16-bit or float; may be memory-mapped. At least 4 sections. Constant
            padding at its sides, also of single sections, stays as it is, and does not count in its brightness and
            contrast. Voxels that a masked array (``numpy.ma``) hides are predicted from their neighbours, in gaps of at
            most 3 of 7 sections; within wider ones they stay as they are.
        factor: section spacing over output plane spacing, any real number from 1 to 16.
        geometry: instead of ``factor``, ``thickness`` and ``offset``: how the sections sample tissue, as for sections
            that are not evenly spaced (:class:`~emformer_hub.UnevenSections`).
        model: name of a bundled model, a folder, a Hub id, or a loaded model. A loaded model moves to the device; its
            processor is read from where its weights came from, and is the default one if they were not loaded.
        thickness: imaged fraction of the section spacing, in (0, 1]: 1 for physical sections (ssTEM), 1/factor for
            block faces (FIB-SEM, SBF-SEM).
        offset: where the imaged part begins within a section's slab, in output planes; default: centred.
        ensemble: passes to average: 1 (one orientation), 2 (both), 4, 8, 16 (and mirrored along z, columns, frames).
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` (NVIDIA, AMD), ``"xpu"`` (Intel), ``"mps"`` (Apple), one of several
            GPUs such as ``"cuda:1"``, or a torch device; default: a GPU if there is one.
        precision: ``"auto"`` (bfloat16 products where the device is faster in it), ``"float32"`` or ``"bfloat16"``.
        tile_zyx: the most that the network sees at once, (sections, y, x); default: what ``memory`` has room for.
        memory: gigabytes that blocks may take up, on a GPU of its memory; default: half of what is free, at most 8.
            Voxels differ by less than a grey level where the volume is divided in another way.
        mask: bad voxels, bool: ``(sections,)`` for whole sections, or ``(sections, y, x)`` for local damage. The
            network predicts them from their surroundings; their values, NaN included, are never used. At most 3
            sections in a row, and 3 of 7 neighbours, also at the ends of the stack.
        mode: what becomes of the noise of the sections. ``"clean"`` leaves it out: what is expected of the tissue.
            ``"faithful"`` keeps it: the same, corrected as little as can be, so that sections cut from the result as
            ``thickness`` says are those of the input, but for rounding (:func:`~emformer_hub.projection.project`).
        progress: whether to show a progress bar on a terminal; or a function that is called again and again with the
            number of finished blocks, with a fraction of the next one, and the number of all blocks.

    Returns:
        The volume with its uncertainty.

    Raises:
        InputError: the volume or an argument is unusable; the message says why and what to do.
    """
    volume = np.asanyarray(volume)
    check_stack(volume.shape, volume.dtype, "the volume")
    geometry = _chosen_geometry(factor, geometry, thickness, offset)
    geometry.check_sections(len(volume), "the volume")
    mask = None if mask is None else check_mask(mask, volume.shape)
    geometry.check_gaps(np.zeros(len(volume), bool) if mask is None else np.asarray(mask.all(axis=(1, 2))))
    padding = tissue(volume)
    if padding is not None:
        inside = reconstruct(
            padding.crop(volume),
            geometry=geometry,
            model=model,
            ensemble=ensemble,
            device=device,
            precision=precision,
            tile_zyx=tile_zyx,
            memory=memory,
            mask=None if mask is None else padding.crop(mask),
            mode=mode,
            progress=progress,
        )
        return _within_padding(inside, padding, volume.shape[1:])
    hidden, kept = _not_measured(volume, mask)
    volume = np.ma.getdata(volume)
    check_volume(volume, "the volume", hidden)
    check_ensemble(ensemble)
    check_mode(mode)
    if not (isinstance(progress, bool) or callable(progress)):
        raise InputError(f"progress is {progress!r}; expected True, False, or a function of finished and all blocks.")
    network, processor = _loaded(model)
    z, y, x = volume.shape
    on = choose_device(device)
    tile_zyx = tile_zyx or choose_tile(
        (z, y, x), geometry, network.config, on, memory=memory, voxel_bytes=volume.dtype.itemsize
    )
    plan = make_plan((z, y, x), geometry, network.config, tile_zyx)
    statistics = processor.measure(volume, hidden)
    restorer = Restorer(network, processor, geometry, statistics, ensemble, on, precision, mode)
    result = _restore_all(restorer, volume, plan, hidden, progress)
    if kept is not None:
        sections = sections_of_planes(geometry, slice(0, len(result[0])), len(volume) - 1)
        put_back([*result], [None, 0.0], Seen(volume, None, kept), sections)
        hidden = None if hidden is None else hidden & ~kept
    return Reconstruction(*result, geometry, processor, hidden, mode)


def _chosen_geometry(
    factor: float | None, geometry: SectionModel | None, thickness: float, offset: float | None
) -> SectionModel:
    """The geometry itself, or an even one by its numbers; raises ``InputError`` for both, and for neither."""
    if geometry is None:
        if factor is None:
            raise InputError("anisotropy factor is None, a NoneType; expected a number, as in 4, or else a geometry.")
        return SectionModel(factor, thickness, offset)
    if not isinstance(geometry, SectionModel):
        raise InputError(f"geometry is {geometry!r}; expected SectionModel or UnevenSections, or give a factor.")
    if factor is not None or thickness != 1 or offset is not None:
        raise InputError("the geometry states factor, thickness and offset; give it alone, or these.")
    return geometry


def _within_padding(inside: Reconstruction, padding: Padding, shape_yx: tuple[int, ...]) -> Reconstruction:
    """The reconstruction of a stack, from that of the tissue within its constant padding."""
    return dataclasses.replace(
        inside,
        volume=framed(inside.volume, shape_yx, padding, padding.value)[:],
        uncertainty=framed(inside.uncertainty, shape_yx, padding, 0.0)[:],
        mask=None if inside.mask is None else framed(inside.mask, shape_yx, padding, False)[:],
    )


def _restore_all(
    restorer: Restorer, volume: np.ndarray, plan: Plan, mask: np.ndarray | None, progress: bool | Callable
) -> tuple[np.ndarray, np.ndarray]:
    """All blocks of a plan, with a progress bar or with calls of a function."""
    bar = tqdm(
        total=len(plan),
        desc="reconstruct",
        bar_format=PROGRESS_BAR,
        disable=None if progress is True else True,  # None: shown on a terminal only
    )

    def count(done: float) -> None:
        bar.update(done - bar.n)
        if callable(progress):
            progress(done, len(plan))

    with bar:
        return restorer.restore_all(volume, plan, mask, count)


def _not_measured(volume: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Voxels that are not used, by a mask, a masked array or because they are a margin; and those that are kept."""
    value = margin_value(volume, hidden_voxels(volume, "the volume"))
    margin = None if value is None else margins(volume, value)[:]
    of_array = mask_of(volume)
    if of_array is not None:
        mask = of_array if mask is None else of_array | mask
    elif margin is None:
        return mask, None  # which has no wide gaps
    return hidden_and_kept(mask, margin if margin is None or mask is None else margin & ~mask)


def _loaded(model: str | EMformerModel) -> tuple[EMformerModel, EMformerProcessor]:
    """A network and its processor, from a name or from a network that is loaded already."""
    return (model, _processor_beside(model)) if isinstance(model, EMformerModel) else load_model(model)


def _processor_beside(model: EMformerModel) -> EMformerProcessor:
    """The processor beside the files that weights were loaded from; the default one if there are none any more."""
    if not model.name_or_path:
        return EMformerProcessor()
    try:
        return EMformerProcessor.from_pretrained(model.name_or_path, revision=model.hub_revision, local_files_only=True)
    except InputError as error:
        log.warning("intervals are those of the default processor: %s", error)
        return EMformerProcessor()

"""What the page in the browser does, without the page: check, reconstruct and fine-tune an upload within limits."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emformer_hub.app.checking import Flagged, flagged
from emformer_hub.app.choices import align_of, aligned, geometry_from, sampling_of
from emformer_hub.app.losses import Losses
from emformer_hub.app.notes import noted
from emformer_hub.app.views import Views
from emformer_hub.app.words import AS_THEY_ARE, KEPT, LISTED, METHODS
from emformer_hub.audit.held_back import left_out
from emformer_hub.devices import choose_device
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.inspection import inspect_stack
from emformer_hub.reconstruction import Reconstruction, reconstruct_file
from emformer_hub.reconstruction.aligned import moves_in_words
from emformer_hub.reconstruction.job import measure_stack
from emformer_hub.reconstruction.repair import Repair, repair_of
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import ModelOnce, OpenStack
from emformer_hub.training.on_stack import finetune_on
from emformer_hub.volumes import Volume, check_volume, read_volume, write_volume
from emformer_hub.volumes.boxes import Box, check_region, evenly_spaced, middle, parse_region, shape_of
from emformer_hub.volumes.grey import grey_text
from emformer_hub.volumes.phantom import sample_stack
from emformer_hub.volumes.unmeasured import measured_box

HIDDEN_SIDE, LEAST_SIDE, PASSES = 128, 16, 2
"""Most and least side of the sections that are left out in turn to see whether the model helps, and passes averaged."""
WORTH_IT = 0.1
"""dB over the mean of both neighbours from which on the page says that the model helps."""
TELLING = 0.02
"""Finished fraction from which on the time left is told, and held against the limit."""

Progress = Callable[[float, str], None]
"""A function that is called with the fraction done and the current step; it may raise :class:`Stopped`."""


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Args:
        mvoxels: largest result, in millions of voxels.
        minutes: longest reconstruction, as estimated from its first block.
    """

    mvoxels: float = 64.0
    minutes: float = 15.0

    def check_size(self, shape_zyx: tuple[int, ...], command: str) -> None:
        """Raise ``InputError`` for a result that is too large, naming the command that has no limit."""
        size = math.prod(shape_zyx) / 1e6
        if size > self.mvoxels:
            raise InputError(
                f"the result would be {_times(shape_zyx)} voxels, {size:,.0f} million; this page makes at most "
                f"{self.mvoxels:g} million. Give a smaller part, or run: {command}"
            )

    def check_time(self, seconds: float, command: str) -> None:
        """Raise ``InputError`` for a reconstruction that would take too long."""
        if seconds > 60 * self.minutes:
            raise InputError(
                f"this would take about {seconds / 60:.0f} minutes here; this page computes for at most "
                f"{self.minutes:g}. Give a smaller part, or run: {command}"
            )


class Stopped(Exception):
    """The user stopped the work."""


def read_upload(paths: list[str]) -> Volume[np.ndarray]:
    """Read a volume from one file, or from one file per section in natural order of their names."""
    if not paths:
        raise InputError("there is no stack yet; drop a file, or take the sample.")
    if len(paths) == 1:
        return read_volume(paths[0])
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            (Path(folder) / Path(path).name).symlink_to(path)
        return read_volume(folder)


def described(volume: Volume[np.ndarray]) -> str:
    """Describe a volume in one line."""
    stated = f"voxel size {volume.voxel_size}, from {volume.source}" if volume.voxel_size else "no voxel size stated"
    return f"{_times(volume.data.shape)} voxels (z, y, x), {volume.data.dtype}; {stated}"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def make_sample(folder: Path) -> Path:
    """Write a synthetic stack of 20 sections of 128 x 128 voxels of 40 x 8 x 8 nm; return its path."""
    path = folder / "sample.ome.tif"
    stack, size = sample_stack()
    write_volume(path, stack, size, overwrite=True)
    return path


def opened(paths: list[str]) -> OpenStack:
    """The upload as a stack that is only here, checked.

    Raises:
        InputError: there is none, or it is unusable.
    """
    volume = read_upload(paths)
    name = Path(paths[0]).name.split(".")[0]
    check_volume(volume.data, name)
    return OpenStack(name, volume, stored=False)


def stated_size(voxel_size: str) -> VoxelSize:
    """The voxel size that was given, nm; raises ``InputError`` if there is none."""
    if not voxel_size.strip():
        raise InputError("the voxel size is missing; give Z,Y,X in nm, section spacing first, as in 40,4,4.")
    return VoxelSize.parse(voxel_size)


class Checked(NamedTuple):
    """What an inspection found: the flagged sections, remarks on the whole, and what a repair would replace."""

    rows: list[Flagged]
    remarks: list[str]
    sections: int
    repair: Repair


def check(paths: list[str], voxel_size: str, *, progress: Progress) -> Checked:
    """Inspect an upload.

    Args:
        paths: files of the upload.
        voxel_size: ``Z,Y,X`` in nm, which may be empty.
        progress: called again and again.

    Raises:
        InputError: the upload cannot be inspected.
    """
    stack = opened(paths).volume
    size = stated_size(voxel_size) if voxel_size.strip() else stack.voxel_size
    inspection = inspect_stack(
        stack.data,
        hidden=stack.hidden,
        voxel_size=size,
        progress=lambda done, steps: progress(done / steps, "Checking"),
    )
    progress(1, "Outlining damage")
    repair = repair_of(inspection)
    return Checked(flagged(inspection, repair), list(inspection.stack.remarks), len(inspection.sections), repair)


class Request(NamedTuple):
    """A reconstruction, in the words of the page.

    Attributes:
        paths: files of the upload.
        voxel_size: ``Z,Y,X`` in nm.
        sections: ``THROUGH``, ``FACE`` or ``LISTED``.
        model: a published name, or the folder of a model.
        noise: a key of ``KEPT``.
        region: part of the stack, ``Z0:Z1,Y0:Y1,X0:X1``, or nothing for all of it.
        repair: what is predicted from its neighbours, of the stack as it is uploaded.
        positions: file that lists where sections lie, if they are ``LISTED``.
        align: ``AS_THEY_ARE``, ``BY_MEASURED`` or ``BY_LISTED``.
        translations: file that lists how sections are moved, if they are moved ``BY_LISTED``.
    """

    paths: list[str]
    voxel_size: str
    sections: str
    model: str
    noise: str
    region: str = ""
    repair: Repair = Repair()
    positions: str | None = None
    align: str = AS_THEY_ARE
    translations: str | None = None


def run(
    request: Request, *, limits: Limits, device: str, folder: Path, progress: Progress
) -> tuple[Views, str, list[Path]]:
    """Reconstruct an upload, or a part of it, to the lateral voxel size.

    Args:
        request: what, and how.
        limits: limits of size and time.
        device: as for ``reconstruct``.
        folder: folder for the files to download.
        progress: called again and again.

    Returns:
        Views, figures as Markdown, and two OME-TIFF files to download: the volume and its uncertainty.

    Raises:
        InputError: the upload or a field is unusable, or a limit is exceeded.
    """
    stack = opened(request.paths)
    size, shape, name = stated_size(request.voxel_size), stack.volume.data.shape, stack.path
    sampling, mode = sampling_of(request.sections, size.factor_to(), request.positions), KEPT[request.noise]
    whole = geometry_from(size, sampling)
    whole.check_sections(shape[0], name)
    region = parse_region(request.region) if request.region.strip() else None
    if region is not None:
        check_region(region, shape, name)
    box: Box = region or (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    geometry, align = whole.part(box[0]), align_of(request.align, request.translations)
    command = _command(request, sampling["thickness"])
    depth, *sides = shape_of(box)
    limits.check_size((geometry.num_planes(depth), *sides), command)
    model = ModelOnce(request.model)

    def show_aligning(done: int, sections: int) -> None:
        progress(0, f"Aligning: {done} of {sections} sections")

    with noted() as notes:
        stack, repair = aligned(stack, align, request.repair, show_aligning)
        if align is not None:
            notes.append(f"{name}: {moves_in_words(stack)}")
        progress(0, "Reconstructing")
        begin = time.monotonic()

        def show(done: float, count: int) -> None:
            passed, fraction = time.monotonic() - begin, done / count
            if fraction >= TELLING:
                limits.check_time(passed / fraction, command)
                progress(fraction, f"Reconstructing: about {passed * (1 / fraction - 1):.0f} s left")

        files = [folder / f"{name}_{what}.ome.tif" for what in ("isotropic", "uncertainty")]
        reconstruct_file(
            stack,
            files[0],
            uncertainty=files[1],
            overwrite=True,
            progress=show,
            voxel_size=size,
            **sampling,
            model=model,
            mode=mode,
            device=device,
            region=region,
            repair=repair,
        )
        seconds = time.monotonic() - begin
    made, sure = (read_volume(file).data for file in files)
    result = Reconstruction(made, sure, geometry, model.processor, _replaced(stack, repair, box), mode)
    progress(1, "Hiding sections, to see whether the model helps")
    statistics = measure_stack(stack, model.processor)
    restorer = Restorer(model.network, model.processor, whole, statistics, PASSES, choose_device(device), mode=mode)
    gain = _gain_where_sections_are_hidden(restorer, stack, box, repair)
    within = float(np.median(result.half_width(0.95)[evenly_spaced(len(made), 32)]))
    planes_size = geometry.plane_size(size)
    said = "\n\n".join([_figures(made.shape, planes_size, seconds, gain, within), *notes])
    return Views(np.asarray(stack.volume.data[box]), result, planes_size), said, files


def _replaced(stack: OpenStack, repair: Repair, box: Box) -> np.ndarray | None:
    """Voxels of a box that were predicted from their surroundings: repaired or hidden ones, bool; ``None`` if none."""
    hidden, repaired = stack.volume.hidden, repair.mask(box)
    if hidden is None:
        return repaired
    return hidden[box] if repaired is None else hidden[box] | repaired


def _command(request: Request, thickness: float) -> str:
    """The command that does the same without limits."""
    chosen = f" --roi {request.region.strip()}" if request.region.strip() else ""
    sections = ",".join(map(str, request.repair.reasons))
    chosen += f" --repair {'auto' if request.repair.damage else sections}" if sections else ""
    if align := align_of(request.align, request.translations):
        chosen += f" --align {Path(align).name}"
    listed = request.positions if request.sections == LISTED else None
    sampled = f"--z-positions {Path(listed).name}" if listed else f"--thickness {thickness:.4g}"
    return (
        f"emformer-hub reconstruct {Path(request.paths[0]).name} isotropic.ome.zarr --voxel-size "
        f"{request.voxel_size.strip()} {sampled} --model {request.model} --mode {KEPT[request.noise]}{chosen}"
    )


def _gain_where_sections_are_hidden(restorer: Restorer, stack: OpenStack, box: Box, repair: Repair) -> float | None:
    """Gain over the mean of both neighbours, dB, for good sections spread over a part, in the middle of the plane.

    ``None`` if no section is good and has good neighbours.
    """
    inner = middle(shape_of(box), (box[0].stop, HIDDEN_SIDE, HIDDEN_SIDE))
    z, y, x = (slice(side.start + part.start, side.start + part.stop) for side, part in zip(box, inner, strict=True))
    if stack.volume.hidden is not None:
        z, y, x = measured_box(stack.volume.hidden, (z, y, x))
    depth, *sides = shape_of((z, y, x))
    bad = {number - z.start for number in repair.reasons}
    if min(sides) < LEAST_SIDE or not any(bad.isdisjoint(range(one - 1, one + 2)) for one in range(1, depth - 1)):
        return None
    part = dataclasses.replace(restorer, geometry=restorer.geometry.part(z))
    figures, _ = left_out(part, np.asarray(stack.volume.data[z, y, x]), [one for one in bad if 0 <= one < depth])
    return float(figures["gain_over_linear_db"])


def _figures(shape: tuple[int, ...], size: VoxelSize, seconds: float, gain: float | None, within: float) -> str:
    said = "No good section has good neighbours, so that whether the model helps was not measured."
    if gain is not None:
        closer = "closer to what was measured" if gain > 0 else "farther from what was measured"
        helps = "The model helps on this stack."
        verdict = helps if gain > WORTH_IT else "Look closely before you trust it on this stack."
        said = (
            f"**{gain:+.1f} dB.** Sections hidden from the model were predicted {closer} than by the mean of both "
            f"neighbours. {verdict}"
        )
    return (
        f"{said}\n\n{_times(shape)} voxels of {size}, in {seconds:.0f} s. The interval that holds the truth with a "
        f"probability of 95 % is ±{grey_text(within, 3)} grey levels wide at half of the voxels."
    )


class Tuned(NamedTuple):
    """A model adapted to an upload: its folder, whether it helped, and all of it in one file to download."""

    folder: Path
    report: str
    archive: Path


def tune(
    paths: list[str],
    voxel_size: str,
    base: str,
    method: str,
    minutes: float,
    *,
    limits: Limits,
    folder: Path,
    progress: Callable[[float, str, Losses], None],
    steps: int | None = None,
) -> Tuned:
    """Adapt a model to an upload.

    Args:
        paths: files of the upload.
        voxel_size: ``Z,Y,X`` in nm.
        base: a published name.
        method: a key of ``METHODS``.
        minutes: how long to train.
        limits: limits of time.
        folder: folder that the model becomes a folder in.
        progress: called with the fraction done, the current step and the losses; may raise :class:`Stopped`.
        steps: so many steps instead.

    Raises:
        InputError: the upload or a field is unusable, or a limit is exceeded.
    """
    stack, size = opened(paths), stated_size(voxel_size)
    if not 0 < minutes <= limits.minutes:
        raise InputError(
            f"this page trains for more than 0 and at most {limits.minutes:g} minutes, not {minutes:g}. For longer, "
            f"run: emformer-hub finetune {Path(paths[0]).name} --minutes {minutes:g} --base {base} --output-dir model"
        )
    output, number = folder / f"{stack.path}-tuned", 2
    while output.exists():
        output, number = folder / f"{stack.path}-tuned-{number}", number + 1
    losses = Losses()
    progress(0, "Loading the model and measuring the stack", losses)

    def show(record: dict[str, float]) -> None:
        losses.add(record["loss"])
        progress(min(1.0, record["done"]), f"Step {record['step']:.0f}: loss {record['loss']:.3f}", losses)

    try:
        report = finetune_on(
            stack,
            size,
            output,
            base=base,
            method=METHODS[method],
            length={"steps": steps} if steps else {"minutes": minutes},
            progress=show,
        )
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
    archive = output.with_name(f"{output.name}.zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(output.iterdir()):
            if file.is_file():  # what a run resumes from lies in a folder
                packed.write(file, f"{output.name}/{file.name}")
    return Tuned(output, report, archive)

"""Commands that measure: a stack as it is, what a reconstruction is worth, and how near it is to a truth."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.cli.inputs import aligned, check_different, said_of, sections_bar, shape_text, with_voxel_size
from emformer_hub.cli.options import (
    ALIGN,
    DEVICE,
    FACTOR,
    FACTOR_REQUIRED,
    INPUT,
    MODE,
    MODEL,
    OME_ZARR,
    OUTPUT,
    OVERWRITE,
    PATH,
    TARGET_NM,
    THICKNESS,
    VOXEL_SIZE,
    Z_POSITIONS,
    check_one_target,
    geometry_of,
    json_file,
    read_listed,
    reading,
    roi,
)
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize, recut_origin
from emformer_hub.modes import Mode

if TYPE_CHECKING:
    import numpy as np

    from emformer_hub.inspection import Inspection, Spacings
    from emformer_hub.reconstruction.settings import ModelOnce, OpenStack
    from emformer_hub.volumes import StoredArray, Volume
    from emformer_hub.volumes.boxes import Box
    from emformer_hub.volumes.remote import Remote


@click.command("inspect")
@click.argument("stack", type=INPUT)
@reading
@VOXEL_SIZE
@json_file("Also write all flags and scores to this file.")
@click.option("--picture", metavar="FILE.png", type=PATH, help="Also draw the scores and the flagged sections.")
@click.option(
    "--translations",
    metavar="FILE.csv",
    type=PATH,
    help="Also write the translations that undo jitter and drift, for `reconstruct --align`.",
)
@click.option(
    "--displacements",
    metavar="FILE.npz",
    type=PATH,
    help="Also write how each section is displaced place by place, a flow field for SOFIMA.",
)
@click.option(
    "--z-positions",
    metavar="FILE.csv",
    type=PATH,
    help="Also measure how far sections lie apart, and write where they lie, for `reconstruct --z-positions`.",
)
@THICKNESS
@OVERWRITE
def inspect_command(
    stack: Path | str,
    reading: dict[str, Any],
    voxel_size: str | None,
    json_path: Path | None,
    picture: Path | None,
    translations: Path | None,
    displacements: Path | None,
    z_positions: Path | None,
    thickness: float,
    overwrite: bool,
) -> None:
    """Find the sections of a STACK that are unfit, say why, and describe the stack as a whole.

    Flags sections that are missing, copied, blurred, damaged (folds, cracks, charging), shifted, unlike their
    neighbours, far from the one before, or different in brightness or contrast. Reports alignment, noise, and the
    factor that the sections suggest. Lengths are in voxels if the voxel size is not known. --thickness goes with
    --z-positions.
    """
    from emformer_hub.files import check_file, replacing
    from emformer_hub.inspection.picture import quality_picture
    from emformer_hub.inspection.sections import inspect_stack
    from emformer_hub.volumes import open_volume

    outputs = [path for path in (json_path, picture, translations, displacements, z_positions) if path is not None]
    check_different(stack, *outputs)
    for path in outputs:
        check_file(path, overwrite)
    suffixes = (
        (picture, ".png", "pictures"),
        (displacements, ".npz", "displacements"),
        (translations, ".csv", "translations"),
        (z_positions, ".csv", "positions of sections"),
    )
    for wanted, suffix, kind in suffixes:
        if wanted is not None and wanted.suffix.lower() != suffix:
            raise InputError(f"{str(wanted)!r} does not end in {suffix}; {kind} are written so.")
    size: VoxelSize | None
    if z_positions is not None:
        volume, size = with_voxel_size(stack, voxel_size, partial(open_volume, **reading))
        geometry = geometry_of(size, None, None, thickness)  # checked before the work
    elif thickness != 1:
        raise click.UsageError("--thickness goes with --z-positions FILE.csv, into which it is written.")
    else:
        volume = open_volume(stack, **reading)
        size = volume.voxel_size if voxel_size is None else VoxelSize.parse(voxel_size)
    with sections_bar("inspect") as progress:
        inspection = inspect_stack(volume.data, voxel_size=size, hidden=volume.hidden, progress=progress)
    spacings = None
    if z_positions is not None and size is not None:
        spacings = _write_positions(volume, size.z, geometry, inspection, z_positions)
    if json_path is not None:
        with replacing(json_path) as unfinished:
            unfinished.write_text(json.dumps(inspection.report(spacings), indent=2, allow_nan=False) + "\n")
    if picture is not None:
        with replacing(picture) as unfinished:
            quality_picture(unfinished, inspection, volume.data)
    if translations is not None or displacements is not None:
        _write_displacements(volume, translations, displacements)
    for line in inspection.report_lines(spacings):
        click.echo(line)


def _write_displacements(volume: Volume, translations: Path | None, displacements: Path | None) -> None:
    """Measure how sections are displaced, and write what is asked for."""
    from emformer_hub.inspection.displacements import measure_displacements, translations_of
    from emformer_hub.volumes.translated import write_translations

    with sections_bar("align") as progress:
        found = measure_displacements(volume.data, volume.hidden, progress)
    if displacements is not None:
        found.save(displacements)
    if translations is not None:
        write_translations(translations, translations_of(found))


def _write_positions(
    volume: Volume, spacing_nm: float, geometry: SectionModel, inspection: Inspection, path: Path
) -> Spacings:
    """Measure how far sections lie apart, and write where they lie."""
    from emformer_hub.inspection.quality import UNFIT
    from emformer_hub.inspection.spacing import measure_spacings
    from emformer_hub.z_positions import write_z_positions

    unfit = [section.section for section in inspection.sections if UNFIT.intersection(section.flags)]
    with sections_bar("spacing") as progress:
        found = measure_spacings(volume.data, geometry.factor, hidden=volume.hidden, unfit=unfit, progress=progress)
    write_z_positions(path, found.z_positions(spacing_nm, geometry.thickness))
    return found


@click.command("audit")
@click.argument("stack", type=INPUT)
@click.option(
    "--output", default="audit.html", show_default=True, type=PATH, help="The report; its JSON goes next to it."
)
@reading
@VOXEL_SIZE
@TARGET_NM
@FACTOR
@THICKNESS
@Z_POSITIONS
@ALIGN
@MODEL
@click.option(
    "--against", metavar="MODEL", help="Compare with a second opinion: another model, by name, folder or Hub id."
)
@click.option(
    "--against-factor", type=float, metavar="F", help="Or with the same model at another factor, above 1 to 16."
)
@MODE
@DEVICE
@roi("Audit this part.  [default: the middle]")
@OVERWRITE
def audit_command(
    stack: Path | str,
    output: Path,
    reading: dict[str, Any],
    voxel_size: str | None,
    target_nm: float | None,
    factor: float | None,
    thickness: float,
    z_positions: Path | None,
    align: str | None,
    model: str,
    against: str | None,
    against_factor: float | None,
    mode: Mode,
    device: str,
    roi: Box | None,
    overwrite: bool,
) -> None:
    """Measure on a STACK itself how far its reconstruction can be trusted, and write a report.

    Sections are held back and predicted, the sharp plane is degraded and restored, and each figure gets a verdict. Of
    a large stack, only the middle 64 sections of 512 x 512 voxels are examined. A second opinion predicts the same,
    and the report says which of both is nearer, if the difference stands out from that between sections.
    """
    from emformer_hub.audit import check_report
    from emformer_hub.reconstruction.settings import OpenStack
    from emformer_hub.volumes import open_volume

    check_one_target(target_nm, factor, z_positions, thickness)
    if against is not None and against_factor is not None:
        raise click.UsageError("--against and --against-factor exclude each other: one second opinion at a time.")
    check_different(stack, output)
    check_report(output, overwrite)
    volume, size = with_voxel_size(stack, voxel_size, partial(open_volume, **reading))
    opened = aligned(OpenStack(str(stack), volume, reading), align)
    listed = read_listed(z_positions)
    geometry = geometry_of(size, target_nm, factor, thickness, z_positions=listed)
    second: str | SectionModel | None = against
    if against_factor is not None:
        second = geometry_of(size, None, against_factor, thickness, z_positions=listed)
    audit(opened, output, size, geometry, model, mode, roi, device, second)


def audit(
    stack: OpenStack,
    page: Path,
    size: VoxelSize,
    geometry: SectionModel,
    model: str | ModelOnce,
    mode: Mode,
    roi: Box | None,
    device: str,
    against: str | SectionModel | None = None,
) -> None:
    """Audit a stack, write the report, and print the verdicts."""
    from tqdm import tqdm

    from emformer_hub.audit import audit_stack, write_report

    with tqdm(desc="audit", bar_format="{desc}: {postfix} [{elapsed}]", disable=None) as bar:
        found = audit_stack(
            stack.volume.data,
            geometry,
            size,
            model=model,
            against=against,
            mode=mode,
            region=roi,
            hidden=stack.volume.hidden,
            name=stack.path.rstrip("/").rsplit("/", 1)[-1],
            device=device,
            progress=bar.set_postfix_str,
        )
    write_report(found, page)
    with said_of(page):
        for one in found.verdicts:
            click.echo(f"{one.verdict:<10}  {one.item}: {one.figure}")
        click.echo(f"{page}: the report")


@click.command("evaluate")
@click.argument("reconstruction", type=INPUT)
@click.argument("truth", type=INPUT)
@reading
@VOXEL_SIZE
@json_file("Also write the figures to this file.")
@OVERWRITE
def evaluate_command(
    reconstruction: Path | str,
    truth: Path | str,
    reading: dict[str, Any],
    voxel_size: str | None,
    json_path: Path | None,
    overwrite: bool,
) -> None:
    """Compare a RECONSTRUCTION with an isotropic TRUTH: PSNR, SSIM, and resolution by Fourier shell correlation.

    Options that choose what is read apply to TRUTH. The voxel size is read from the truth, or from the reconstruction
    if the file of the truth states none.
    """
    from emformer_hub.files import check_file, replacing
    from emformer_hub.measurement import evaluate
    from emformer_hub.volumes import read_volume

    if json_path is not None:
        check_different(reconstruction, json_path)
        check_different(truth, json_path)
        check_file(json_path, overwrite)
    estimate = read_volume(reconstruction)
    reference, size = with_voxel_size(truth, voxel_size, partial(read_volume, **reading), otherwise=estimate.voxel_size)
    planes = estimate.data.shape[0]
    extra = reference.data.shape[0] - planes
    if 0 < extra < 16:  # degrade leaves out planes that do not fill a section
        click.echo(f"{truth} has {extra} planes more than {reconstruction}; comparing the first {planes}.", err=True)
    true = reference.data[:planes] if 0 < extra < 16 else reference.data
    box = _measured_part(reference, true.shape, str(truth))
    figures = evaluate(estimate.data[box] if estimate.data.shape == true.shape else estimate.data, true[box], size)
    if json_path is not None:
        with replacing(json_path) as unfinished:
            psnr = figures["psnr_db"] if math.isfinite(figures["psnr_db"]) else None  # JSON knows no infinity
            unfinished.write_text(json.dumps({**figures, "psnr_db": psnr}, indent=2) + "\n")
    resolution, ssim = figures["fsc"]["resolution_nm"], figures["ssim"]
    click.echo(f"PSNR            {figures['psnr_db']:.2f} dB")
    click.echo(
        f"SSIM            3-D {ssim['3d']:.4f}   xy {ssim['xy']:.4f}   xz {ssim['xz']:.4f}   yz {ssim['yz']:.4f}"
    )
    click.echo(
        f"FSC resolution  z {resolution['z']:.1f} nm   lateral {resolution['lateral']:.1f} nm   "
        f"(threshold {figures['fsc']['threshold']:g})"
    )


def _measured_part(volume: Volume, shape_zyx: tuple[int, int, int], name: str) -> Box:
    """The largest box in which all of a truth was measured; said if it is not everything."""
    from emformer_hub.volumes.unmeasured import measured_box, unmeasured_in

    z, y, x = (slice(0, length) for length in shape_zyx)
    unmeasured = unmeasured_in(volume.data, volume.hidden)
    if unmeasured is None:
        return (z, y, x)
    box = measured_box(unmeasured, (z, y, x))
    part = ",".join(f"{side.start}:{side.stop}" for side in box)
    click.echo(f"{name} was measured throughout in {part} (z, y, x) only; comparing that part.", err=True)
    return box


@click.command("degrade")
@click.argument("truth", type=INPUT)
@click.argument("output", metavar="OUT", type=OUTPUT)
@reading
@VOXEL_SIZE
@FACTOR_REQUIRED
@THICKNESS
@click.option(
    "--jitter",
    type=click.FloatRange(0, 0.3, min_open=True),
    metavar="J",
    help="Let sections differ in thickness, with this standard deviation, as a fraction of their spacing: up to 0.3. "
    "Where they lie is written to OUT.z-positions.csv.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the jitter.")
@OME_ZARR
@OVERWRITE
def degrade_command(
    truth: Path | str,
    output: Path | Remote,
    reading: dict[str, Any],
    voxel_size: str | None,
    factor: float,
    thickness: float,
    jitter: float | None,
    seed: int,
    ome_zarr: str,
    overwrite: bool,
) -> None:
    """Simulate anisotropy: image an isotropic volume in sections."""
    from emformer_hub.files import check_file
    from emformer_hub.processing_emformer import to_dtype
    from emformer_hub.uneven import jittered
    from emformer_hub.volumes import check_output, check_volume, read_volume, write_volume
    from emformer_hub.volumes.unmeasured import unmeasured_in
    from emformer_hub.z_positions import write_z_positions

    check_different(truth, output)
    check_output(output, overwrite)
    positions = None
    if jitter is not None:
        if not isinstance(output, Path):
            raise click.UsageError("--jitter writes the positions beside OUT; give OUT as a path on this machine.")
        positions = output.with_name(f"{output.name}.z-positions.csv")
        check_file(positions, overwrite)
    geometry = SectionModel(factor, thickness)
    volume, size = with_voxel_size(truth, voxel_size, partial(read_volume, **reading))
    unmeasured = unmeasured_in(volume.data, volume.hidden)
    check_volume(volume.data, str(truth), unmeasured)
    sections = geometry.num_sections(volume.data.shape[0])
    section_size = size.with_z(size.z * factor)
    where = recut_origin(size, section_size, volume.translation_nm)
    uneven = None if jitter is None else jittered(geometry, sections, jitter, seed)
    if uneven is not None:
        geometry, where = uneven, uneven.section_origin(section_size, volume.translation_nm or (0.0, 0.0, 0.0))
    degraded = to_dtype(geometry.degrade(volume.data), volume.data.dtype)
    _keep_unmeasured(volume, unmeasured, geometry, degraded)
    write_volume(output, degraded, section_size, translation_nm=where, overwrite=overwrite, ome_zarr=ome_zarr)
    if positions is not None and uneven is not None:
        write_z_positions(positions, uneven.listed(size.z))
    left_out = volume.data.shape[0] - geometry.num_planes(len(degraded))
    with said_of(output):
        click.echo(
            f"{output}: {shape_text(degraded)} {degraded.dtype}, {section_size}"
            + (f"; the last {left_out} planes do not fill a section and were left out" if left_out else "")
        )


def _keep_unmeasured(
    volume: Volume[np.ndarray], unmeasured: StoredArray | None, geometry: SectionModel, degraded: np.ndarray
) -> None:
    """Leave voxels of sections as they are, in place, where a plane that they are the mean of was not measured."""
    if unmeasured is None:
        return
    for section, weights in zip(degraded, geometry.matrix(len(degraded)), strict=True):
        for plane in reversed(weights.nonzero()[0].tolist()):
            hidden = unmeasured[plane]
            section[hidden] = volume.data[plane][hidden]

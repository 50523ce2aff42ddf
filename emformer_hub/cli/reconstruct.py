"""The main command: an anisotropic stack in, an isotropic volume out."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.cli.assess import audit
from emformer_hub.cli.inputs import aligned, check_different, said_of, shape_text, with_voxel_size
from emformer_hub.cli.options import (
    ALIGN,
    CHUNKS,
    DEVICES,
    FACTOR,
    INPUT,
    MODE,
    MODEL,
    OFFSET,
    OME_ZARR,
    OUTPUT,
    OVERWRITE,
    PRECISION,
    TARGET_NM,
    THICKNESS,
    TILE_ZYX,
    VOXEL_SIZE,
    Z_POSITIONS,
    check_one_target,
    geometry_of,
    read_listed,
    reading,
    roi,
)
from emformer_hub.errors import InputError
from emformer_hub.machine import num_cpus

if TYPE_CHECKING:
    from emformer_hub.geometry import SectionModel, VoxelSize
    from emformer_hub.modes import Mode
    from emformer_hub.reconstruction.parts import Scheduler
    from emformer_hub.reconstruction.settings import FileSettings, OpenStack
    from emformer_hub.volumes import Volume
    from emformer_hub.volumes.boxes import Box
    from emformer_hub.volumes.remote import Remote


@click.command("reconstruct")
@click.argument("input_path", metavar="INPUT", type=INPUT)
@click.argument("output", metavar="OUTPUT", type=OUTPUT)
@reading
@VOXEL_SIZE
@TARGET_NM
@FACTOR
@MODEL
@THICKNESS
@OFFSET
@Z_POSITIONS
@ALIGN
@click.option("--ensemble", type=int, default=2, show_default=True, help="Passes to average: 1, 2, 4, 8 or 16.")
@click.option("--uncertainty", type=OUTPUT, help="Also write the standard deviation of each voxel's error, float32.")
@click.option(
    "--confidence-mask",
    type=float,
    metavar="P",
    help="Also write OUTPUT.confident: 1 where the error is below half a standard deviation with probability P.",
)
@click.option(
    "--repair",
    default="none",
    show_default=True,
    metavar="none|auto|LIST",
    help="Predict bad sections from their neighbours: those that `inspect` flags, or a list such as 3,7-9, from 0.",
)
@MODE
@DEVICES
@PRECISION
@TILE_ZYX
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory to compute in, the GPU's on a GPU; each worker takes as much.  [default: half of what is free, at "
    "most 8, divided among the workers]",
)
@roi("Reconstruct this part only, as a trial: sections, rows and columns of INPUT.")
@click.option(
    "--scheduler",
    default="local",
    show_default=True,
    metavar="local|threads|processes|tcp://HOST:PORT",
    help="Where to compute: in this process, or with Dask, on this machine or a cluster.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of threads or processes.  [default: one per GPU, or else one per core]",
)
@click.option("--report", is_flag=True, help="Also audit the stack, as `audit` does, into OUTPUT.audit.html.")
@click.option("--resume", is_flag=True, help="Continue a run that was interrupted.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Compute one block, estimate what the run takes, and write nothing.",
)
@click.option(
    "--follow",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="INPUT is a folder that is still being filled: add sections to a preview as they arrive, and make OUTPUT "
    "once none has arrived for this long.",
)
@OME_ZARR
@CHUNKS
@OVERWRITE
def reconstruct_command(
    input_path: Path | str,
    output: Path | Remote,
    reading: dict[str, Any],
    voxel_size: str | None,
    target_nm: float | None,
    factor: float | None,
    model: str,
    thickness: float,
    offset: float | None,
    z_positions: Path | None,
    align: str | None,
    ensemble: int,
    uncertainty: Path | Remote | None,
    confidence_mask: float | None,
    repair: str,
    mode: Mode,
    device: str,
    precision: str,
    tile_zyx: tuple[int, int, int] | None,
    roi: Box | None,
    scheduler: str,
    workers: int | None,
    memory: float | None,
    report: bool,
    resume: bool,
    dry_run: bool,
    follow: float | None,
    ome_zarr: str,
    chunk_zyx: tuple[int, int, int] | None,
    overwrite: bool,
) -> None:
    """Turn an anisotropic stack into an isotropic volume.

    INPUT is a TIFF stack, an OME-TIFF, a folder of TIFF or PNG slices, an OME-Zarr, N5, precomputed, HDF5, or MRC, or
    the s3://, https://, gs:// or hf:// address of an OME-Zarr, N5 or precomputed. OUTPUT ends in .zarr, .tif, .ome.tif,
    .h5, .mrc, .n5, .precomputed or .wkw; without a suffix it becomes a folder of TIFF slices. A .zarr may also be
    written into a bucket, s3:// or gs://. OUTPUT is made part by part: it need not fit into memory, and an interrupted
    run continues with --resume.
    """
    from emformer_hub.devices import choose_devices
    from emformer_hub.reconstruction.cluster import on_dask
    from emformer_hub.reconstruction.follow import preview_path
    from emformer_hub.reconstruction.job import confident_path
    from emformer_hub.reconstruction.settings import ModelOnce, OpenStack
    from emformer_hub.volumes import with_hidden

    devices = choose_devices(device)
    check_one_target(target_nm, factor, z_positions, thickness, offset)
    hiding: dict[str, Any] = {name: reading[name] for name in ("nodata", "mask") if name in reading}
    _check_follow(follow, resume, roi, dry_run, z_positions, align, reading != hiding)
    here = _on_this_machine(output) if follow is not None or report else None
    if workers and scheduler not in ("threads", "processes"):
        raise click.UsageError("--workers goes with --scheduler threads or processes.")
    others = [uncertainty, None if confidence_mask is None else confident_path(output)]
    _check_outputs(input_path, output, *others, overwrite=overwrite, resume=resume)
    stack, size = _open(input_path, voxel_size, follow, reading, align)
    listed = read_listed(z_positions)
    geometry = geometry_of(size, target_nm, factor, thickness, offset, listed)
    _check_geometry(stack, size, geometry, asked_for=factor is not None)
    page = here.with_name(f"{output.name}.audit.html") if here and report else None
    if page is not None:
        _check_page(page, overwrite, stack, roi, geometry)
    settings: FileSettings = {
        "voxel_size": size,
        "factor": geometry.factor,
        "thickness": thickness,
        "offset": offset,
        "z_positions": listed,
        "model": ModelOnce(model),
        "device": device,
        "precision": precision,
        "tile_zyx": tile_zyx,
        "memory": memory,
        "workers": 1 if scheduler == "local" else workers or num_cpus(),
        "ensemble": ensemble,
        "uncertainty": uncertainty,
        "confidence": confidence_mask,
        "region": roi,
        "mode": mode,
        "ome_zarr": ome_zarr,
        "chunk_zyx": chunk_zyx,
    }
    alone: FileSettings = {**settings, "device": (first := str(devices[0]))}  # for what one device does
    if dry_run:
        _print_forecast(stack, output, alone, len(devices))
        return
    if follow is not None and here:
        landed = _follow(Path(input_path), here, follow, alone)
        stack = OpenStack(str(input_path), with_hidden(landed, input_path, **hiding), hiding)
    settings["repair"] = repair
    cluster = None if scheduler == "local" else on_dask(scheduler, workers)
    record, seconds = _run(stack, output, settings, overwrite=overwrite, resume=resume, scheduler=cluster)
    if follow is not None and here:
        shutil.rmtree(preview_path(here))
    with said_of(output):
        _print_summary(output, record, f"{geometry.plane_size(size)}, factor {geometry.factor:g}", seconds, model)
    if page is not None:
        audit(stack, page, size, geometry, settings["model"], mode, roi, first)


def _check_follow(follow: float | None, *excluded: Any) -> None:
    """Raise a usage error if a stack that grows is given with what takes a complete one."""
    if follow is not None and any(excluded):
        raise click.UsageError(
            "--follow takes no --resume, --roi, --dry-run, --z-positions, --align or choice of what is read: the stack "
            "is not complete yet."
        )


def _on_this_machine(output: Path | Remote) -> Path:
    """The output; raises a usage error if it is in a bucket."""
    if not isinstance(output, Path):
        raise click.UsageError(
            "--follow and --report write files beside OUTPUT; give OUTPUT as a path on this machine, or leave them out."
        )
    return output


def _check_page(page: Path, overwrite: bool, stack: OpenStack, roi: Box | None, geometry: SectionModel) -> None:
    """Raise, before the run, what would keep its audit from being made or written."""
    from emformer_hub.audit import check_auditable, check_report

    shape = stack.volume.data.shape if roi is None else tuple(side.stop - side.start for side in roi)
    check_report(page, overwrite)
    check_auditable(shape, geometry, stack.path)


def _open(
    path: Path | str, voxel_size: str | None, follow: float | None, reading: dict[str, Any], align: str | None
) -> tuple[OpenStack, VoxelSize]:
    """The stack and its voxel size; of a folder that is being filled, the sections that are there."""
    from emformer_hub.reconstruction.follow import sections_landing
    from emformer_hub.reconstruction.settings import OpenStack
    from emformer_hub.volumes import open_volume

    def read(path: Path | str) -> Volume:
        return open_volume(path, **reading) if follow is None else next(sections_landing(Path(path), follow))

    volume, size = with_voxel_size(path, voxel_size, read)
    if size.z < min(size.y, size.x):
        raise InputError(
            f"z is finer than y and x in the voxel size {size} of {path}; expected sections further apart than "
            f"pixels. Voxel sizes are given as Z,Y,X; is the order right?"
        )
    return aligned(OpenStack(str(path), volume, reading), align), size


def _check_geometry(stack: OpenStack, size: VoxelSize, geometry: SectionModel, *, asked_for: bool) -> None:
    """Say if y and x differ; raise ``InputError`` if there is nothing to restore along z and it was not asked for, or
    if other sections are listed."""
    geometry.check_sections(stack.volume.data.shape[0], stack.path)
    if not asked_for and math.isclose(geometry.factor, 1, rel_tol=1e-3):
        raise InputError(
            f"{stack.path} is isotropic already: with voxels of {size}, planes would lie where its sections do. Is the "
            f"voxel size right? Give --factor 1 to run the network on it as it is."
        )
    if not math.isclose(size.y, size.x, rel_tol=1e-3):
        click.echo(
            f"y ({size.y:g} nm) and x ({size.x:g} nm) differ: output voxels will be {geometry.plane_size(size)}, "
            f"not isotropic. Resample y or x first if all sides are to be equal.",
            err=True,
        )


def _check_outputs(
    input_path: Path | str, output: Path | Remote, *others: Path | Remote | None, overwrite: bool, resume: bool
) -> None:
    """Raise an error, before the work, if an output cannot be written."""
    from emformer_hub.reconstruction.job import check_record
    from emformer_hub.volumes import check_output

    outputs = [path for path in (output, *others) if path is not None]
    check_different(input_path, *outputs)
    for path in outputs:
        check_output(path, overwrite or resume)
    check_record(output, overwrite=overwrite, resume=resume)


def _follow(folder: Path, output: Path, idle_s: float, settings: FileSettings) -> Volume:
    """Show sections in a preview as they land; return the stack once none has landed for a while."""
    from emformer_hub.reconstruction.follow import follow, preview_path

    preview = preview_path(output)
    click.echo(f"{preview}: a preview of what has landed; {output} follows when no section has for {idle_s:g} s.")

    def progress(sections: int, planes: int) -> None:
        click.echo(f"{sections} sections have landed: {planes} planes")

    return follow(
        folder,
        preview,
        idle_s=idle_s,
        progress=progress,
        voxel_size=settings["voxel_size"],
        factor=settings["factor"],
        thickness=settings["thickness"],
        offset=settings["offset"],
        model=settings["model"],
        device=settings["device"],
    )


def _run(
    stack: OpenStack,
    output: Path | Remote,
    settings: FileSettings,
    *,
    overwrite: bool,
    resume: bool,
    scheduler: Scheduler | None,
) -> tuple[Path | Remote, float]:
    """Reconstruct, with a progress bar on a terminal; return the record of the run, and how many seconds it took."""
    from tqdm import tqdm

    from emformer_hub.reconstruction.from_file import reconstruct_file
    from emformer_hub.reconstruction.in_memory import PROGRESS_BAR

    start = time.monotonic()
    with tqdm(desc="reconstruct", bar_format=PROGRESS_BAR, disable=None) as bar:

        def progress(done: float, blocks: int) -> None:
            if bar.total is None:
                bar.initial = done  # by the run that this one continues
            bar.total, bar.n = blocks, done
            bar.refresh()

        record = reconstruct_file(
            stack, output, overwrite=overwrite, resume=resume, scheduler=scheduler, progress=progress, **settings
        )
    return record, time.monotonic() - start


def _print_summary(output: Path | Remote, record: Path | Remote, planes: str, seconds: float, model: str) -> None:
    """Print what was made, what was repaired, and how far it is from the measured sections."""
    from emformer_hub.volumes import open_volume
    from emformer_hub.volumes.grey import grey_text

    volume, facts = open_volume(str(output)).data, json.loads(record.read_text())
    passes = f"{facts['ensemble']} pass{'es' * (facts['ensemble'] > 1)}"
    click.echo(
        f"{output}: {shape_text(volume)} {volume.dtype}, {planes}; "
        f"{seconds:.1f} s, {volume.size / seconds / 1e6:.2f} Mvoxel/s ({passes}, {model})"
    )
    for section, reason, fraction in facts["repair"]:
        place = "" if fraction == 1 else f" in {fraction:.1%} of it"
        click.echo(f"section {section} was filled{place}: {reason}")
    for gap in facts["gaps"]:
        first, stop = gap["planes"]
        done = "too many to predict: interpolated, and not confident" if gap["wide"] else "predicted"
        click.echo(f"after section {gap['after']}, {gap['sections']} are lost; planes {first} to {stop - 1} are {done}")
    for what, share in facts["not_measured"].items():
        if share:
            done = "were predicted from their neighbours" if what == "filled" else "stay as they are"
            click.echo(f"{share:.2%} of the voxels, which were not measured, {done}")
    if residual := facts["residual"]:
        click.echo(
            f"sections cut from it differ from the measured ones by {grey_text(residual['rms'])} grey levels RMS"
        )


def _print_forecast(stack: OpenStack, output: Path | Remote, settings: FileSettings, devices: int) -> None:
    """Compute one block, and print what the whole run takes."""
    from tqdm import tqdm

    from emformer_hub.reconstruction.forecast import forecast
    from emformer_hub.reconstruction.job import make_job
    from emformer_hub.reconstruction.parts import Parts
    from emformer_hub.reconstruction.settings import ModelOnce

    job = make_job(stack, output, **settings)
    expected = forecast(Parts(job, settings["device"], stack=stack, model=ModelOnce.of(settings["model"])))
    needs = expected.needs
    click.echo(f"{expected.voxels / 1e6:,.1f} Mvoxel in {expected.parts:,} parts of {expected.blocks:,} blocks")
    seconds = tqdm.format_interval(expected.seconds / devices)
    click.echo(f"time    about {seconds}, by this process; {expected.block_seconds:.2f} s a block")
    click.echo(f"memory  about {needs.memory / 1e9:.1f} GB, of which {needs.free_memory / 1e9:.1f} GB are free")
    if needs.disk:
        click.echo(f"disk    about {needs.disk / 1e9:.2g} GB, of which {needs.free_disk / 1e9:.1f} GB are free")
    if needs.bucket:
        click.echo(f"bucket  about {needs.bucket / 1e9:.2g} GB")
    needs.check(str(output))

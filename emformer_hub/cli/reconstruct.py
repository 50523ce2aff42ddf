"""``emformer-hub``: the command line. The same words as in Python; the user's mistakes end with status 2."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize, parse_region

if TYPE_CHECKING:
    from emformer_hub.pretrained import PretrainedWeights
    from emformer_hub.reconstruction.stream import Forecast
    from emformer_hub.volumes import Volume

PATH = click.Path(path_type=Path)


class Input(click.ParamType):
    """A volume to read: a path, or an address as it is (``Path`` would make one slash of two)."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        from emformer_hub.volumes.remote import is_url

        try:
            return value if is_url(value) else Path(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


INPUT = Input()


class BadInput(click.ClickException):
    exit_code = 2


class Commands(click.Group):
    """Prints the message of an ``InputError`` without a traceback and exits with status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise BadInput(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="emformer_hub")
@click.option("--offline", is_flag=True, help="Never ask the Hub: bundled weights, folders, and what the cache holds.")
def main(offline: bool) -> None:
    """Isotropic volumes from anisotropic electron-microscopy stacks."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = (
            "1"  # huggingface_hub reads it when it is imported, which no command has done yet
        )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


VOXEL_SIZE = click.option(
    "--voxel-size", metavar="Z,Y,X", help="Voxel size of the input in nm, section spacing first. Wins over the file's."
)
OME_ZARR = click.option(
    "--ome-zarr",
    type=click.Choice(["0.4", "0.5"]),
    default="0.5",
    show_default=True,
    help="Version of a .zarr that is written: 0.5 (Zarr 3: Neuroglancer, napari) or 0.4 (Zarr 2: older viewers too).",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an output that exists.")


@main.command()
@click.argument("input_path", metavar="INPUT", type=INPUT)
@click.argument("output", metavar="OUTPUT", type=PATH)
@VOXEL_SIZE
@click.option("--target-nm", type=float, help="Plane spacing of the output in nm. Default: the lateral voxel size.")
@click.option(
    "--factor", type=float, help="Instead of --target-nm: output planes per section, any number from 1 to 16."
)
@click.option("--model", default="emformer-small", show_default=True, help="Bundled name, folder or Hub id.")
@click.option(
    "--thickness",
    type=float,
    default=1.0,
    show_default=True,
    help="Imaged share of the section spacing: 1 for ssTEM, 1/factor for block faces (FIB-SEM, SBF-SEM).",
)
@click.option("--ensemble", type=int, default=2, show_default=True, help="Passes to average: 1, 2, 4, 8 or 16.")
@click.option("--uncertainty", type=PATH, help="Also write the standard deviation of each voxel's error, float32.")
@click.option(
    "--confidence-mask",
    type=float,
    metavar="P",
    help="Also write OUTPUT.confident: 1 where a voxel is right to half a standard deviation with probability P.",
)
@click.option(
    "--repair",
    default="none",
    show_default=True,
    metavar="none|auto|LIST",
    help="Fill sections instead of believing them: those that an inspection flags, or a list as in 3,7-9, from 0.",
)
@click.option("--consistent", is_flag=True, help="Correct planes so that they give the measured sections again.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Try a part first: sections, rows and columns of INPUT.")
@click.option(
    "--scheduler",
    default="local",
    show_default=True,
    metavar="local|threads|processes|tcp://HOST:PORT",
    help="Who makes the parts: this process, or Dask, here or on a cluster.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Of threads or processes.  [default: one for each GPU, else for each core]",
)
@click.option("--report", is_flag=True, help="Also audit the stack, as `audit` does: OUTPUT.audit.html.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--dry-run", is_flag=True, help="Make one block, say what the whole takes, and write nothing.")
@click.option(
    "--follow",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="INPUT is a folder that sections are still written to: show them in a preview as they land, and make OUTPUT "
    "when none has landed for so long.",
)
@OME_ZARR
@OVERWRITE
def reconstruct(
    input_path: Path | str,
    output: Path,
    voxel_size: str | None,
    target_nm: float | None,
    factor: float | None,
    model: str,
    thickness: float,
    ensemble: int,
    uncertainty: Path | None,
    confidence_mask: float | None,
    repair: str,
    consistent: bool,
    device: str,
    roi: str | None,
    scheduler: str,
    workers: int | None,
    report: bool,
    resume: bool,
    dry_run: bool,
    follow: float | None,
    ome_zarr: str,
    overwrite: bool,
) -> None:
    """Turn an anisotropic stack into an isotropic volume.

    INPUT is a TIFF stack, an OME-TIFF, a folder of TIFF or PNG slices, an OME-Zarr, N5, precomputed, HDF5, or MRC, or
    the s3://, https://, gs:// or hf:// address of an OME-Zarr, N5 or precomputed. OUTPUT ends in .zarr, .tif, .ome.tif,
    .h5 or .mrc, or without a suffix becomes a folder of TIFF slices. It is made a part at a time: it need not fit into
    memory, and a run that was interrupted goes on with --resume.
    """
    from tqdm import tqdm

    from emformer_hub.reconstruction.cluster import on_dask
    from emformer_hub.reconstruction.follow import sections_landing
    from emformer_hub.reconstruction.stream import confident_path, forecast, make_job, reconstruct_file
    from emformer_hub.volumes import check_output, open_volume

    if target_nm is not None and factor is not None:
        raise click.UsageError("--target-nm and --factor exclude each other; give one of them.")
    if follow is not None and (resume or roi or dry_run):
        raise click.UsageError("--follow takes no --resume, --roi or --dry-run: the stack is not complete yet.")
    confident = None if confidence_mask is None else confident_path(output)
    outputs = [path for path in (output, uncertainty, confident) if path is not None]
    _check_different(input_path, *outputs)
    for path in outputs:
        check_output(path, overwrite or resume)
    if workers and scheduler not in ("threads", "processes"):
        raise click.UsageError("--workers goes with --scheduler threads or processes.")
    volume, size = _read(
        input_path,
        voxel_size,
        read=open_volume if follow is None else lambda folder: next(sections_landing(Path(folder), follow)),
    )
    page = output.with_name(f"{output.name}.audit.html") if report else None
    if size.z < min(size.y, size.x):
        raise InputError(
            f"z is finer than y and x in the voxel size {size} of {input_path}; expected sections further apart than "
            f"pixels. Voxel sizes are given as Z,Y,X; is the order right?"
        )
    factor = size.factor_to(target_nm) if factor is None else factor
    if page is not None:
        from emformer_hub.audit import check_auditable, check_report

        check_report(page, overwrite)
        shape = tuple(part.stop - part.start for part in parse_region(roi)) if roi else volume.data.shape
        check_auditable(shape, SectionModel(factor, thickness), str(input_path))
    planes_size = size.with_z(size.z / SectionModel(factor, thickness).factor)

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights; the reconstruction has its own
    settings: dict[str, Any] = {
        "voxel_size": size,
        "factor": factor,
        "model": model,
        "thickness": thickness,
        "ensemble": ensemble,
        "device": device,
    }
    part: dict[str, Any] = {
        "uncertainty": uncertainty,
        "confidence": confidence_mask,
        "region": roi and parse_region(roi),
        "consistent": consistent,
        "ome_zarr": ome_zarr,
    }
    if dry_run:
        _say_forecast(output, forecast(make_job(input_path, output, **settings, **part), device))
        return
    preview = None if follow is None else _preview(input_path, output, settings, follow)
    start = time.monotonic()
    with tqdm(desc="reconstruct", unit="block", disable=None) as bar:  # shown on a terminal only

        def progress(made: int, blocks: int) -> None:
            if bar.total is None:
                bar.initial = made  # by the run that this one goes on with
            bar.total, bar.n = blocks, made
            bar.refresh()

        record = reconstruct_file(
            input_path,
            output,
            **settings,
            **part,
            repair=repair,
            overwrite=overwrite,
            resume=resume,
            scheduler=None if scheduler == "local" else on_dask(scheduler, workers),
            progress=progress,
        )
    if preview is not None:
        shutil.rmtree(preview)
    made = open_volume(output).data
    seconds = time.monotonic() - start
    click.echo(
        f"{output}: {_shape(made)} {made.dtype}, {planes_size}, factor {factor:g}; "
        f"{seconds:.1f} s, {made.size / seconds / 1e6:.2f} Mvoxel/s ({ensemble} passes, {model})"
    )
    facts = json.loads(record.read_text())
    for section, reason, share in facts["repair"]:
        click.echo(f"section {section} was filled" + ("" if share == 1 else f" in {share:.1%} of it") + f": {reason}")
    if facts["residual"]:
        residual = facts["residual"]
        click.echo(f"sections cut from it differ from the measured ones by {residual['rms']:.2g} grey levels RMS")
    if page is not None:
        _audit(input_path, page, size, SectionModel(factor, thickness), model, roi, device)


@main.command()
@click.argument("stack", type=INPUT)
@click.option(
    "--output", default="audit.html", show_default=True, type=PATH, help="The report; its JSON lies beside it."
)
@VOXEL_SIZE
@click.option("--target-nm", type=float, help="Plane spacing in nm. Default: the lateral voxel size.")
@click.option("--factor", type=float, help="Instead of --target-nm: planes per section, from 1 to 16.")
@click.option("--thickness", type=float, default=1.0, show_default=True, help="Imaged share of the section spacing.")
@click.option("--model", default="emformer-small", show_default=True, help="Bundled name, folder or Hub id.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Audit this part.  [default: the middle]")
@OVERWRITE
def audit(
    stack: Path | str,
    output: Path,
    voxel_size: str | None,
    target_nm: float | None,
    factor: float | None,
    thickness: float,
    model: str,
    device: str,
    roi: str | None,
    overwrite: bool,
) -> None:
    """Say what a reconstruction of STACK is worth, measured on the stack itself, in a report.

    Sections are held back and predicted, the sharp plane is degraded and restored, and each figure gets a verdict. Of a
    large stack, the middle 64 sections of 512 x 512 voxels are looked at.
    """
    from emformer_hub.audit import check_report
    from emformer_hub.volumes import open_volume

    if target_nm is not None and factor is not None:
        raise click.UsageError("--target-nm and --factor exclude each other; give one of them.")
    _check_different(stack, output)
    check_report(output, overwrite)
    _, size = _read(stack, voxel_size, read=open_volume)
    sections = SectionModel(size.factor_to(target_nm) if factor is None else factor, thickness)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    _audit(stack, output, size, sections, model, roi, device)


@main.command()
@click.argument("reconstruction", type=INPUT)
@click.argument("truth", type=INPUT)
@VOXEL_SIZE
@click.option("--json", "json_path", type=PATH, help="Also write the figures to this file.")
@OVERWRITE
def evaluate(
    reconstruction: Path | str, truth: Path | str, voxel_size: str | None, json_path: Path | None, overwrite: bool
) -> None:
    """Compare a reconstruction with an isotropic truth: PSNR, SSIM, and resolution by Fourier shell correlation.

    The voxel size is that of the truth, or where its file states none, that of the reconstruction.
    """
    from emformer_hub.measurement import evaluate as measure
    from emformer_hub.volumes import read_volume
    from emformer_hub.volumes.output import check_file, replacing

    if json_path is not None:
        _check_different(reconstruction, json_path)
        _check_different(truth, json_path)
        check_file(json_path, overwrite)
    estimate = read_volume(reconstruction)
    reference, size = _read(truth, voxel_size, otherwise=estimate.voxel_size)
    planes = estimate.data.shape[0]
    extra = reference.data.shape[0] - planes
    if 0 < extra < 16:  # degrading leaves out planes that do not fill a section
        click.echo(f"{truth} has {extra} planes more than {reconstruction}; comparing the first {planes}.", err=True)
    figures = measure(estimate.data, reference.data[:planes] if 0 < extra < 16 else reference.data, size)
    if json_path is not None:
        with replacing(json_path) as partial:
            psnr = figures["psnr_db"] if math.isfinite(figures["psnr_db"]) else None  # JSON knows no infinity
            partial.write_text(json.dumps({**figures, "psnr_db": psnr}, indent=2) + "\n")
    resolution, ssim = figures["fsc"]["resolution_nm"], figures["ssim"]
    click.echo(f"PSNR            {figures['psnr_db']:.2f} dB")
    click.echo(
        f"SSIM            3-D {ssim['3d']:.4f}   xy {ssim['xy']:.4f}   xz {ssim['xz']:.4f}   yz {ssim['yz']:.4f}"
    )
    click.echo(
        f"FSC resolution  z {resolution['z']:.1f} nm   lateral {resolution['lateral']:.1f} nm   "
        f"(threshold {figures['fsc']['threshold']:g})"
    )


@main.command()
@click.argument("stack", type=INPUT)
@VOXEL_SIZE
@click.option("--json", "json_path", metavar="FILE", type=PATH, help="Also write all flags and scores to this file.")
@click.option("--picture", metavar="FILE.png", type=PATH, help="Also draw the scores and the flagged sections.")
@OVERWRITE
def inspect(
    stack: Path | str, voxel_size: str | None, json_path: Path | None, picture: Path | None, overwrite: bool
) -> None:
    """Say which sections of a STACK are unfit, and why; and what the stack as a whole is like.

    Missing, copied, blurred, damaged (folds, cracks, charging), shifted, unlike their neighbours, or of another
    brightness or contrast; alignment, noise, and the factor that the sections suggest. Without a voxel size, lengths
    are voxels.
    """
    from tqdm import tqdm

    from emformer_hub.measurement.quality import inspect_stack
    from emformer_hub.measurement.quality_report import quality_picture
    from emformer_hub.volumes import open_volume
    from emformer_hub.volumes.output import check_file, replacing

    outputs = [path for path in (json_path, picture) if path is not None]
    _check_different(stack, *outputs)
    for path in outputs:
        check_file(path, overwrite)
    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"picture {str(picture)!r} does not end in .png; pictures are written as PNG.")
    volume = open_volume(stack)
    size = volume.voxel_size if voxel_size is None else VoxelSize.parse(voxel_size)
    with tqdm(desc="inspect", unit="section", disable=None) as bar:  # shown on a terminal only

        def progress(done: int, steps: int) -> None:
            bar.total, bar.n = steps, done
            bar.refresh()

        inspection = inspect_stack(volume.data, voxel_size=size, progress=progress)
    if json_path is not None:
        with replacing(json_path) as partial:
            partial.write_text(json.dumps(inspection.report(), indent=2, allow_nan=False) + "\n")
    if picture is not None:
        with replacing(picture) as partial:
            quality_picture(partial, inspection, volume.data)
    for line in inspection.report_lines():
        click.echo(line)


@main.command()
@click.argument("truth", type=INPUT)
@click.argument("output", metavar="OUT", type=PATH)
@VOXEL_SIZE
@click.option("--factor", type=float, required=True, help="Planes per section, any number from 1 to 16.")
@click.option("--thickness", type=float, default=1.0, show_default=True, help="Imaged share of the section spacing.")
@OME_ZARR
@OVERWRITE
def degrade(
    truth: Path | str,
    output: Path,
    voxel_size: str | None,
    factor: float,
    thickness: float,
    ome_zarr: str,
    overwrite: bool,
) -> None:
    """Simulate anisotropy: see an isotropic volume as sections would."""
    from emformer_hub.processing_emformer import to_dtype
    from emformer_hub.volumes import check_output, check_volume, write_volume

    _check_different(truth, output)
    check_output(output, overwrite)
    sections = SectionModel(factor, thickness)
    volume, size = _read(truth, voxel_size)
    check_volume(volume.data, str(truth))
    degraded = to_dtype(sections.degrade(volume.data), volume.data.dtype)
    section_size = size.with_z(size.z * factor)
    where = _first_centre(volume, size, section_size)
    write_volume(output, degraded, section_size, translation_nm=where, overwrite=overwrite, ome_zarr=ome_zarr)
    left_out = volume.data.shape[0] - sections.num_planes(len(degraded))
    click.echo(
        f"{output}: {_shape(degraded)} {degraded.dtype}, {section_size}"
        + (f"; the last {left_out} planes do not fill a section and were left out" if left_out else "")
    )


@main.command()
@click.argument("name", required=False)
def models(name: str | None) -> None:
    """List the published models, or all that the registry states of one, as JSON."""
    from emformer_hub.pretrained import registry

    if name is not None:
        click.echo(json.dumps(dataclasses.asdict(_published(name)), indent=2))
        return
    for weights in registry().values():
        click.echo(f"{weights.name}  {weights.parameters / 1e6:.2f} M parameters  {weights.licence}  {weights.repo_id}")
        click.echo(f"    {weights.summary}")


@main.command()
@click.argument("adapter")
@click.argument("output", metavar="OUT", type=PATH)
def merge(adapter: str, output: Path) -> None:
    """Bake an adapter into its base: the folder OUT becomes a model of plain weights with the same results.

    ADAPTER is a folder or a Hub id.
    """
    from transformers.utils.logging import disable_progress_bar

    from emformer_hub.adapters import load_adapter
    from emformer_hub.processing_emformer import EMformerProcessor
    from emformer_hub.volumes.output import check_file, replacing

    disable_progress_bar()
    _check_different(Path(adapter), output)
    check_file(output, overwrite=False)
    model = load_adapter(adapter).merge_and_unload()
    processor = EMformerProcessor.from_pretrained(adapter)
    with replacing(output) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    click.echo(f"{output}: {model.num_parameters() / 1e6:.2f} M parameters, no adapter needed")


@main.command()
@click.argument("name")
def card(name: str) -> None:
    """Write the page of a published model from what the registry, training and the benchmark state."""
    from emformer_hub.hub.card import render
    from emformer_hub.volumes.output import replacing

    weights = _published(name)
    readme = weights.folder / "README.md"
    with replacing(readme) as partial:
        partial.write_text(render(weights, weights.folder))
    click.echo(f"{readme} is written.")


@main.command()
@click.argument("name", metavar="[NAME_OR_DIR]", required=False)
@click.option("--all", "everything", is_flag=True, help="Push every published model to its repository.")
@click.option("--repo-id", metavar="ORG/NAME", help="Where to.  [default: that of a published model]")
@click.option("--revision", metavar="TAG", help="Tag the commit.  [default: that of a published model]")
@click.option("--private", is_flag=True, help="If the repository is made here.")
@click.option("--create-pr", is_flag=True, help="Propose the commit as a pull request.")
@click.option("--dry-run", is_flag=True, help="Only list the files that would be pushed.")
def push(
    name: str | None,
    everything: bool,
    repo_id: str | None,
    revision: str | None,
    private: bool,
    create_pr: bool,
    dry_run: bool,
) -> None:
    """Publish a model on the Hub: weights or adapter, processor, page and code in one commit, tagged.

    NAME_OR_DIR is a published model, the folder of a finished run, or that of an adapter. Prints what a registry
    states of it, as JSON.
    """
    from emformer_hub.hub.push import contents
    from emformer_hub.hub.push import push as publish
    from emformer_hub.pretrained import check_sha256, registry

    if (name is None) != everything or (everything and (repo_id or revision)):
        raise click.UsageError("give NAME_OR_DIR, or --all, which takes no --repo-id and no --revision.")
    known = registry()
    records = []
    for one in known if name is None else [name]:
        weights = None if Path(one).is_dir() else _published(one)
        target = repo_id or (weights.repo_id if weights else None)
        if target is None:
            raise click.UsageError(f"{one} is a folder; give --repo-id ORG/NAME.")
        if weights:
            check_sha256(weights)
        folder = weights.folder if weights else Path(one)
        if dry_run:
            click.echo(f"{target}:")
            for path, content in contents(folder).items():
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                click.echo(f"  {size:>12,} bytes  {path}")
            continue
        tag = revision or (weights.revision if weights and not create_pr else None)
        records.append(publish(folder, target, revision=tag, private=private, create_pr=create_pr))
        click.echo(f"{records[-1].url}", err=True)
    if records:
        click.echo(json.dumps([dataclasses.asdict(record) for record in records], indent=2))


@main.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every published model.")
@click.option("--to", "folder", metavar="DIR", type=PATH, required=True, help="Each becomes a folder in it.")
@click.option("--revision", metavar="TAG", help="Branch, tag or commit on the Hub.")
def download(names: tuple[str, ...], everything: bool, folder: Path, revision: str | None) -> None:
    """Fetch whole models, for machines without a network. NAME is a bundled name or a Hub id."""
    from emformer_hub.hub.download import download as fetch
    from emformer_hub.pretrained import registry

    if bool(names) == everything:
        raise click.UsageError("give one NAME or more, or --all.")
    for name in names or registry():
        click.echo(f"{fetch(name, folder, revision)} is whole, and needs no network.")


@main.command()
@click.argument("model")
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--factor", type=float, required=True, help="Output planes per section, any number from 1 to 16.")
@click.option("--thickness", type=float, default=1.0, show_default=True, help="Imaged share of the section spacing.")
@click.option("--tile", metavar="Z,Y,X", default="16,64,64", show_default=True, help="Sections and pixels of a tile.")
def export(model: str, output: Path, factor: float, thickness: float, tile: str) -> None:
    """Write a model for other programs, with one factor and one size of tile.

    OUT ends in .onnx, in .pt2 (a program of torch.export), or in .zip (a package of bioimage.io).
    """
    from transformers.utils.logging import disable_progress_bar

    from emformer_hub.hub.export import export as write

    disable_progress_bar()
    try:
        z, y, x = map(int, tile.split(","))
    except ValueError:
        raise InputError(
            f"tile {tile!r} is not three sizes; expected Z,Y,X in sections and pixels: 16,64,64."
        ) from None
    write(model, output, factor=factor, thickness=thickness, tile_zyx=(z, y, x))
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, factor {factor:g}, tiles of {z} x {y} x {x}")


@main.group()
def dataset() -> None:
    """Volumes of others, and for others: public ones to fetch; sets to build from a table and push to the Hub."""


@dataset.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="All that is known of each, as JSON.")
def list_datasets(as_json: bool) -> None:
    """List public volumes of electron microscopy: what, where, licence, voxel size."""
    from emformer_hub.public_volumes import public_volumes

    known = public_volumes()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(volume) for volume in known.values()], indent=2))
        return
    for volume in known.values():
        size = VoxelSize(*volume.voxel_size)
        click.echo(f"{volume.name:<20} {volume.modality:<19} {size!s:<22} {volume.licence or 'licence not stated'}")
        click.echo(f"{'':<20} {volume.specimen}; {volume.page}")


@dataset.command()
@click.argument("name")
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", help="Only this part, in voxels of the store.  [default: all]")
@OVERWRITE
def fetch(name: str, output: Path, roi: str | None, overwrite: bool) -> None:
    """Fetch a public volume, or a part of it, into OUT (.ome.tif, .tif or .zarr) with its voxel size."""
    from emformer_hub.public_volumes import fetch as get
    from emformer_hub.public_volumes import public_volumes
    from emformer_hub.volumes import check_output, write_volume

    known = public_volumes()
    if name not in known:
        raise InputError(f"volume {name!r} is not known; expected one of {', '.join(known)}.")
    volume = known[name]
    region = parse_region(roi) if roi else None
    check_output(output, overwrite)
    data = get(volume, region)
    size = VoxelSize(*volume.voxel_size)
    where = tuple(part.start * length for part, length in zip(region, size.zyx, strict=True)) if region else (0, 0, 0)
    write_volume(output, data, size, translation_nm=where, overwrite=overwrite)
    click.echo(f"{output}: {_shape(data)} {data.dtype}, {size}")
    click.echo(f"licence: {volume.licence or f'none was found stated; ask its owners: {volume.page}'}")
    click.echo(f"cite: {volume.citation}")


@dataset.command()
@click.argument("table", type=PATH)
@click.argument("folder", metavar="OUT", type=PATH)
def build(table: Path, folder: Path) -> None:
    """Copy the volumes of a TABLE into the folder OUT: OME-Zarr, a table of splits and licences, and a page.

    TABLE is CSV, JSON or Parquet with columns path, voxel_size, split, modality, licence, weight; every row has a
    licence.
    """
    from emformer_hub.dataset import build as make

    for row in make(table, folder):
        click.echo(f"{folder / row['path']}: {row['shape']} {row['dtype']}, {row['split']}, {row['licence']}")


@dataset.command(name="push")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--repo-id", metavar="ORG/NAME", required=True)
@click.option("--revision", metavar="TAG", help="Tag the commit.")
@click.option("--private", is_flag=True, help="If the repository is made here.")
def push_dataset(folder: Path, repo_id: str, revision: str | None, private: bool) -> None:
    """Publish a set of volumes in one commit. `accelerate launch finetune --volume hf://datasets/ORG/NAME` takes it."""
    from emformer_hub.dataset import push as publish

    click.echo(publish(folder, repo_id, revision=revision, private=private))


@main.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=PATH)
@click.option("--served-at", "address", metavar="URL", required=True, help="Web address of the folder they lie in.")
def view(images: tuple[Path, ...], address: str) -> None:
    """Print a link that shows OME-Zarr images over each other in Neuroglancer.

    A web server must hand out the folder that the images lie in, to other origins too (CORS):
    `npx http-server --cors -p 9000` and --served-at http://localhost:9000, for example.
    """
    import numpy as np

    from emformer_hub.volumes import open_volume
    from emformer_hub.volumes.neuroglancer import neuroglancer_link, neuroglancer_state

    layers, ranges, sizes, centres = {}, {}, [], []
    for path in images:
        volume = open_volume(path)
        if volume.voxel_size is None:
            raise InputError(f"{path} states no voxel size; Neuroglancer needs one to lay images over each other.")
        layers[path.name] = f"{address.rstrip('/')}/{path.name}"
        middle = np.asarray(volume.data[volume.data.shape[0] // 2])
        black, white = np.percentile(middle, [1, 99])
        ranges[path.name] = (float(black), float(white))
        sizes.append(volume.voxel_size)
        begin = volume.translation_nm or (0.0, 0.0, 0.0)
        lengths = zip(begin, volume.data.shape, volume.voxel_size.zyx, strict=True)
        centres.append([place + (count - 1) / 2 * length for place, count, length in lengths])
    finest = min(sizes, key=lambda size: size.z * size.y * size.x)
    click.echo(neuroglancer_link(neuroglancer_state(layers, finest, centre_nm=centres[0], ranges=ranges)))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 shows the page to your network.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--max-mvoxels", type=float, default=64.0, show_default=True, help="Largest result, million voxels.")
@click.option("--max-minutes", type=float, default=15.0, show_default=True, help="Longest reconstruction.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def app(host: str, port: int, max_mvoxels: float, max_minutes: float, device: str) -> None:
    """Serve a page in the browser: drop a stack, look at the reconstruction, download it."""
    from emformer_hub.devices import choose_device

    choose_device(device)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
    try:
        from emformer_hub.app.page import Limits, serve
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}; run: pip install 'emformer-hub[app]'") from error
    serve(host, port, Limits(max_mvoxels, max_minutes), device)


@main.command()
@click.option("--repo-id", metavar="ORG/NAME", required=True)
@click.option("--private", is_flag=True, help="If the Space is made here.")
@click.option("--dry-run", is_flag=True, help="Only list the files that would be pushed.")
def push_space(repo_id: str, private: bool, dry_run: bool) -> None:
    """Publish the page of `app` as a Space on the Hub, with its own copy of the package and the weights."""
    from emformer_hub.app.space import push as publish
    from emformer_hub.app.space import space

    if dry_run:
        for path in space():
            click.echo(path)
    else:
        click.echo(publish(repo_id, private=private))


@main.command()
def doctor() -> None:
    """Say what is installed, what this machine has, what is wrong, and the command that mends it."""
    from emformer_hub.doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(f"{'ok ' if finding.remedy is None else 'BAD'} {finding.what:<19} {finding.found}")
        if finding.remedy is not None:
            click.echo(f"{'':<24}{finding.remedy}")
    if any(finding.remedy for finding in findings):
        raise SystemExit(1)


def _preview(folder: Path | str, output: Path, settings: dict[str, Any], idle_s: float) -> Path:
    """Show sections as they land, until none has for a while; the path of the preview."""
    from emformer_hub.reconstruction.follow import follow, preview_path

    preview = preview_path(output)
    click.echo(f"{preview}: a preview of what has landed; {output} follows when no section has for {idle_s:g} s.")

    def told(sections: int, planes: int) -> None:
        click.echo(f"{sections} sections have landed: {planes} planes")

    follow(Path(folder), preview, **{**settings, "ensemble": 1}, idle_s=idle_s, told=told)
    return preview


def _audit(
    stack: Path | str,
    page: Path,
    size: VoxelSize,
    sections: SectionModel,
    model: str,
    roi: str | None,
    device: str,
) -> None:
    """Audit a stack, write the report, and say the verdicts."""
    from tqdm import tqdm

    from emformer_hub.audit import audit_stack, write_report
    from emformer_hub.volumes import open_volume

    with tqdm(desc="audit", bar_format="{desc}: {postfix} [{elapsed}]", disable=None) as bar:
        found = audit_stack(
            open_volume(stack).data,
            sections,
            size,
            model=model,
            region=None if roi is None else parse_region(roi),
            name=str(stack).rstrip("/").rsplit("/", 1)[-1],
            device=device,
            progress=bar.set_postfix_str,
        )
    write_report(found, page)
    for one in found.verdicts:
        click.echo(f"{one.verdict:<10}  {one.item}: {one.figure}")
    click.echo(f"{page}: the report")


def _say_forecast(output: Path, expected: Forecast) -> None:
    from tqdm import tqdm

    needs = expected.needs
    click.echo(f"{expected.voxels / 1e6:,.1f} Mvoxel in {expected.parts:,} parts of {expected.blocks:,} blocks")
    seconds = tqdm.format_interval(expected.seconds)
    click.echo(f"time    about {seconds}, by this process; {expected.block_seconds:.2f} s a block")
    click.echo(f"memory  about {needs.memory / 1e9:.1f} GB, of which {needs.free_memory / 1e9:.1f} GB are free")
    click.echo(f"disk    about {needs.disk / 1e9:.2g} GB, of which {needs.free_disk / 1e9:.1f} GB are free")
    needs.check(str(output))


def _published(name: str) -> PretrainedWeights:
    from emformer_hub.pretrained import registry

    known = registry()
    if name not in known:
        raise InputError(f"model {name!r} is not published; expected one of {', '.join(known)}.")
    return known[name]


def _check_different(*paths: Path | str) -> None:
    local = [path for path in paths if isinstance(path, Path)]
    if len({path.resolve() for path in local}) < len(local):
        raise InputError(f"{', '.join(map(str, paths))} are not all different; an output may not replace an input.")


def _read(
    path: Path | str,
    voxel_size: str | None,
    otherwise: VoxelSize | None = None,
    read: Callable[[Path | str], Volume] | None = None,
) -> tuple[Volume, VoxelSize]:
    """A volume and its voxel size: the flag's, else the file's, else ``otherwise``, else an error."""
    from emformer_hub.volumes import read_volume

    stated = None if voxel_size is None else VoxelSize.parse(voxel_size)
    volume = (read or read_volume)(path)
    size = stated or volume.voxel_size or otherwise
    if size is None:
        raise InputError(f"{path} states no voxel size; give --voxel-size Z,Y,X in nm, as in --voxel-size 40,4,4.")
    if stated and volume.voxel_size and stated != volume.voxel_size:
        click.echo(f"{path} says {volume.voxel_size} ({volume.source}); using --voxel-size {stated}.", err=True)
    return volume, size


def _first_centre(volume: Volume, size: VoxelSize, new_size: VoxelSize) -> tuple[float, float, float]:
    """Centre of the first voxel (z, y, x; nm) once the same extent along z is cut into voxels of another size."""
    z, y, x = volume.translation_nm or (0.0, 0.0, 0.0)
    return (z + (new_size.z - size.z) / 2, y, x)


def _shape(data: Any) -> str:
    return "x".join(map(str, data.shape))

"""Commands about data sets: public volumes to fetch, and sets of volumes to build and publish."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emformer_hub.cli.inputs import shape_text
from emformer_hub.cli.options import OUTPUT, OVERWRITE, PATH, PRIVATE, REPO_ID, roi
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize

if TYPE_CHECKING:
    from emformer_hub.volumes.boxes import Box
    from emformer_hub.volumes.remote import Remote


@click.group("dataset")
def dataset_group() -> None:
    """Fetch public volumes; build data sets from a table and push them to the Hub."""


@dataset_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything known about each as JSON.")
def list_command(as_json: bool) -> None:
    """List public electron-microscopy volumes: specimen, address, licence, voxel size."""
    from emformer_hub.datasets.public import public_volumes

    known = public_volumes()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(volume) for volume in known.values()], indent=2))
        return
    for volume in known.values():
        size = VoxelSize(*volume.voxel_size)
        click.echo(f"{volume.name:<20} {volume.modality:<19} {size!s:<22} {volume.licence or 'licence not stated'}")
        click.echo(f"{'':<20} {volume.specimen}; {volume.page}")


@dataset_group.command("fetch")
@click.argument("name")
@click.argument("output", metavar="OUT", type=OUTPUT)
@roi("Fetch only this part, in voxels of the store.  [default: all]")
@OVERWRITE
def fetch_command(name: str, output: Path | Remote, roi: Box | None, overwrite: bool) -> None:
    """Fetch a public volume, or a part of one, into OUT (.ome.tif, .tif or .zarr) with its voxel size."""
    from emformer_hub.datasets.public import fetch, public_volumes
    from emformer_hub.volumes import check_output, write_volume

    known = public_volumes()
    if name not in known:
        raise InputError(f"volume {name!r} is not known; expected one of {', '.join(known)}.")
    volume = known[name]
    check_output(output, overwrite)
    data = fetch(volume, roi)
    size = VoxelSize(*volume.voxel_size)
    where = tuple(part.start * length for part, length in zip(roi, size.zyx, strict=True)) if roi else (0, 0, 0)
    write_volume(output, data, size, translation_nm=where, overwrite=overwrite)
    click.echo(f"{output}: {shape_text(data)} {data.dtype}, {size}")
    click.echo(f"licence: {volume.licence or f'none was found stated; ask its owners: {volume.page}'}")
    click.echo(f"cite: {volume.citation}")


@dataset_group.command("build")
@click.argument("table", type=PATH)
@click.argument("folder", metavar="OUT", type=PATH)
def build_command(table: Path, folder: Path) -> None:
    """Copy the volumes of a TABLE into the folder OUT as OME-Zarr, with a table of splits and licences and a page.

    TABLE is CSV, JSON or Parquet with columns path, voxel_size, split, modality, licence, weight; every row needs
    a licence.
    """
    from emformer_hub.datasets.build import build

    for row in build(table, folder):
        click.echo(f"{folder / row['path']}: {row['shape']} {row['dtype']}, {row['split']}, {row['licence']}")


@dataset_group.command("push")
@click.argument("folder", metavar="DIR", type=PATH)
@REPO_ID
@click.option("--revision", metavar="TAG", help="Tag the commit.")
@PRIVATE
def push_command(folder: Path, repo_id: str, revision: str | None, private: bool) -> None:
    """Publish a data set in one commit; `emformer-hub finetune hf://datasets/ORG/NAME` trains on it."""
    from emformer_hub.datasets.build import push

    click.echo(push(folder, repo_id, revision=revision, private=private))

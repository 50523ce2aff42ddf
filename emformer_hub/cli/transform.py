"""Points, skeletons and labels, carried between the grid of a stack and the isotropic one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.cli.inputs import check_different, said_of
from emformer_hub.cli.options import (
    FACTOR,
    OFFSET,
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
    read_listed,
    reading_labels,
    roi,
)
from emformer_hub.geometry import SectionModel, VoxelSize

if TYPE_CHECKING:
    from emformer_hub.transform import Grids
    from emformer_hub.transform.grids import Target, Unit
    from emformer_hub.volumes.boxes import Box
    from emformer_hub.volumes.remote import Remote


@click.command("transform")
@click.argument("source", type=PATH)
@click.argument("output", metavar="OUT", type=PATH)
@click.option("--to", type=click.Choice(["isotropic", "stack"]), required=True, help="Grid to carry SOURCE to.")
@click.option("--record", metavar="RESULT", type=OUTPUT, help="Take the geometry from the record of this run.")
@click.option(
    "--units",
    "unit",
    type=click.Choice(["voxels", "nm", "um"]),
    help="Of coordinates, where SOURCE does not state it.",
)
@reading_labels
@VOXEL_SIZE
@TARGET_NM
@FACTOR
@THICKNESS
@OFFSET
@Z_POSITIONS
@roi("Part of the stack that was reconstructed.")
@OME_ZARR
@OVERWRITE
def transform_command(
    source: Path,
    output: Path,
    to: Target,
    record: Path | Remote | None,
    unit: Unit | None,
    reading: dict[str, Any],
    voxel_size: str | None,
    target_nm: float | None,
    factor: float | None,
    thickness: float,
    offset: float | None,
    z_positions: Path | None,
    roi: Box | None,
    ome_zarr: str,
    overwrite: bool,
) -> None:
    """Carry points, skeletons and labels between the stack's grid and the isotropic one.

    SOURCE is a .csv of points, with a header that names the columns z, y and x (z_nm or z_voxels states the unit); a
    .swc skeleton, whose coordinates are x, y, z (a line "# units: nm" states the unit); or a volume of labels. On both
    grids, voxels have their centres at whole numbers, from 0. Without --record, options say how the stack was
    reconstructed, as for `reconstruct`; --voxel-size is that of the stack.
    """
    from emformer_hub.transform import transform_file

    check_different(source, output)
    check_one_target(target_nm, factor, z_positions, thickness, offset)
    given = (voxel_size, target_nm, factor, offset, z_positions, roi)
    if record is not None and (any(one is not None for one in given) or thickness != 1):
        raise click.UsageError("--record states the geometry; leave out --voxel-size, --factor and the like.")
    if record is None and factor is None and voxel_size is None:
        raise click.UsageError("give --record RESULT, or how the stack was reconstructed: --factor or --voxel-size.")
    if z_positions is not None and voxel_size is None:
        raise click.UsageError("--z-positions needs --voxel-size of the stack, which says how far apart planes are.")
    grids = _grids(record, voxel_size, target_nm, factor, thickness, offset, z_positions, roi)
    transform_file(source, output, grids, to, unit=unit, overwrite=overwrite, ome_zarr=ome_zarr, **reading)
    with said_of(output):
        where = "the isotropic grid" if to == "isotropic" else "the grid of the stack"
        click.echo(f"{output}: {source.name} on {where}, factor {grids.geometry.factor:g}")


def _grids(
    record: Path | Remote | None,
    voxel_size: str | None,
    target_nm: float | None,
    factor: float | None,
    thickness: float,
    offset: float | None,
    z_positions: Path | None,
    roi: Box | None,
) -> Grids:
    from emformer_hub.transform import Grids

    if record is not None:
        return Grids.from_record(record)
    size = None if voxel_size is None else VoxelSize.parse(voxel_size)
    if size is None:
        assert factor is not None
        return Grids(SectionModel(factor, thickness, offset), region=roi)
    listed = read_listed(z_positions)
    return Grids(geometry_of(size, target_nm, factor, thickness, offset, listed), size, region=roi)

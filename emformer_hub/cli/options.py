"""The options of the commands, each declared once, and the checks of several options together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.modes import DEFAULT_MODE, MODES
from emformer_hub.uneven import UnevenSections, ZPositions, check_spacing

Command = Callable[..., Any]
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


class LocalPath(click.Path):
    """A path on this machine; an address is refused (``Path`` would turn ``//`` into ``/``)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and "://" in value:
            self.fail(f"{value} is an address; expected a path on this machine.", param, ctx)
        return super().convert(value, param, ctx)


PATH = LocalPath(path_type=Path)


class Input(click.ParamType):
    """A volume to read: a path, or an address, which stays text (``Path`` would turn ``//`` into ``/``)."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        from emformer_hub.volumes.remote import is_url, plain_address

        try:
            value = plain_address(value)
            return value if is_url(value) else Path(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class Output(Input):
    """A volume to write: a path, or the address of one in a bucket."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from emformer_hub.volumes.remote import place

        return place(super().convert(value, param, ctx))


class Region(click.ParamType):
    """A part of a volume, ``Z0:Z1,Y0:Y1,X0:X1`` in voxels."""

    name = "region"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from emformer_hub.volumes.boxes import parse_region

        return parse_region(value) if isinstance(value, str) else value


class Sides(click.ParamType):
    """Sides of a box, ``Z,Y,X``, in voxels."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if not isinstance(value, str):
            return value
        try:
            z, y, x = map(int, value.split(","))
        except ValueError:
            self.fail(f"{self.name} {value!r} is not three sizes; expected Z,Y,X in voxels: 16,64,64.", param, ctx)
        return (z, y, x)


INPUT = Input()
OUTPUT = Output()
TILE = Sides("tile")
VOXEL_SIZE = click.option(
    "--voxel-size",
    metavar="Z,Y,X",
    help="Voxel size of the input in nm, or with a unit (0.04,0.004,0.004um), section spacing first. Takes precedence "
    "over the file's. Z alone where the file states the size of a pixel.",
)
TARGET_NM = click.option("--target-nm", type=float, help="Plane spacing of the output in nm.  [default: lateral size]")
FACTOR = click.option(
    "--factor", type=float, help="Instead of --target-nm: output planes per section, any number from 1 to 16."
)
FACTOR_REQUIRED = click.option(
    "--factor", type=float, required=True, help="Output planes per section, any number from 1 to 16."
)
THICKNESS = click.option(
    "--thickness",
    type=float,
    default=1.0,
    show_default=True,
    help="Imaged fraction of the section spacing: 1 for ssTEM, 1/factor for block faces (FIB-SEM, SBF-SEM).",
)
MODEL = click.option(
    "--model", default="emformer-small", show_default=True, help="Name of a bundled model, a folder, or a Hub id."
)
MODE = click.option(
    "--mode",
    type=click.Choice(MODES),
    default=DEFAULT_MODE,
    show_default=True,
    help="What becomes of the noise of sections: clean leaves it out; faithful keeps it, so that the planes average to "
    "the measured sections.",
)
OFFSET = click.option(
    "--offset",
    type=float,
    metavar="P",
    help="Where the imaged part begins within the slab of a section, in output planes.  [default: centred]",
)
Z_POSITIONS = click.option(
    "--z-positions",
    metavar="FILE",
    type=PATH,
    help="Sections that are not evenly spaced: CSV with the header centre_nm,thickness_nm and a line for each section "
    "that is there, or JSON alike. Instead of --factor, --thickness and --offset.",
)
ALIGN = click.option(
    "--align",
    metavar="translation|FILE",
    help="Move sections by whole voxels as they are read: by the jitter and drift that are measured, or as a CSV lists "
    "it, with the header y_voxels,x_voxels and a line for each section.  [default: as they are]",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of matrix products: bfloat16 where the device is faster in it, or the same float32 on every machine.",
)
TILE_ZYX = click.option(
    "--tile",
    "tile_zyx",
    metavar="Z,Y,X",
    type=TILE,
    help="The most that the network sees at once: sections, rows, columns.  [default: what --memory has room for]",
)
DEVICE = click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="auto (a GPU if there is one), cpu, cuda (NVIDIA, AMD), xpu (Intel), mps (Apple), or one of several: cuda:1.",
)
DEVICES = click.option(
    "--device",
    metavar="NAMES",
    default="auto",
    show_default=True,
    help="auto (a GPU if there is one), cpu, cuda (NVIDIA, AMD), xpu (Intel), mps (Apple); several share the work: "
    "cuda:0,cuda:1, or all.",
)
OME_ZARR = click.option(
    "--ome-zarr",
    type=click.Choice(["0.4", "0.5"]),
    default="0.5",
    show_default=True,
    help="OME-Zarr version to write: 0.5 (Zarr 3: Neuroglancer, napari) or 0.4 (Zarr 2: older viewers too).",
)
CHUNKS = click.option(
    "--chunks",
    "chunk_zyx",
    metavar="Z,Y,X",
    type=Sides("chunks"),
    help="Sides of a chunk of OUTPUT, in voxels: .zarr, .n5, .precomputed and .h5.  [default: as viewers like it]",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the output if it already exists.")
PRIVATE = click.option("--private", is_flag=True, help="Make the repository private if this command creates it.")
REPO_ID = click.option("--repo-id", metavar="ORG/NAME", required=True, help="Repository on the Hub.")
LICENCE = click.option("--licence", metavar="SPDX", help="Licence for the page to state, such as CC-BY-4.0.")
LIST_ONLY = click.option("--dry-run", is_flag=True, help="Only list the files that would be pushed.")


_READING = (
    click.option(
        "--axes", metavar="zyx|xyz|...", help="Order of the stored axes, slowest first.  [default: the file's]"
    ),
    click.option("--channel", type=int, metavar="N", help="Channel to read, from 0, of a file that holds several."),
    click.option("--time", type=int, metavar="N", help="Time point to read, from 0."),
    click.option("--series", metavar="NAME", help="Image, dataset or level to read, by number or name."),
    click.option("--pattern", metavar="'s_*.tif'", help="Files of a folder that are sections."),
    click.option("--nodata", type=float, metavar="V", help="Value of voxels that were not measured; nan too."),
    click.option(
        "--mask", metavar="FILE", type=INPUT, help="Volume of the same shape, not 0 where there is something to see."
    ),
)


_READ = ("axes", "channel", "time", "series", "pattern", "nodata", "mask")
_OF_LABELS = 5  # of these: labels have no mark of no data, and no mask


def reading(command: Command) -> Command:
    """Add the options that choose what is read of a stack; the command takes them as ``reading``, a dictionary."""
    return _with_reading(command, len(_READ))


def reading_labels(command: Command) -> Command:
    """Add the options that choose what is read of labels, as :func:`reading` does."""
    return _with_reading(command, _OF_LABELS)


def _with_reading(command: Command, count: int) -> Command:
    @functools.wraps(command)
    def with_reading(**values: Any) -> Any:
        chosen = {name: values.pop(name) for name in _READ[:count]}
        return command(reading={name: one for name, one in chosen.items() if one is not None}, **values)

    for option in reversed(_READING[:count]):
        with_reading = option(with_reading)
    return with_reading


def roi(help: str) -> Option:
    """The option for a part of a volume; ``help`` says what it does in this command."""
    return click.option("--roi", metavar="Z0:Z1,Y0:Y1,X0:X1", type=Region(), help=help)


def json_file(help: str) -> Option:
    """The option for a file that takes the figures as JSON."""
    return click.option("--json", "json_path", metavar="FILE", type=PATH, help=help)


def check_one_target(
    target_nm: float | None,
    factor: float | None,
    z_positions: Path | None = None,
    thickness: float = 1.0,
    offset: float | None = None,
) -> None:
    """Raise a usage error if plane spacing and factor are both given, or what contradicts positions of sections."""
    if z_positions is not None and (factor is not None or thickness != 1 or offset is not None):
        raise click.UsageError(
            "--z-positions lists distances and thicknesses; leave out --factor, --thickness and --offset. --target-nm "
            "says how far apart planes are."
        )
    if target_nm is not None and factor is not None:
        raise click.UsageError("--target-nm and --factor exclude each other; give one of them.")


def geometry_of(
    size: VoxelSize,
    target_nm: float | None,
    factor: float | None,
    thickness: float,
    offset: float | None = None,
    z_positions: ZPositions | None = None,
) -> SectionModel:
    """Geometry of the sections by the options; without target and factor, planes are as far apart as pixels.

    Raises:
        InputError: a value is out of range, or the positions contradict the voxel size.
    """
    factor = size.factor_to(target_nm) if factor is None else factor
    if z_positions is None:
        return SectionModel(factor, thickness, offset)
    check_spacing(z_positions, size)
    return UnevenSections.of(z_positions, size.z / factor, factor)


def read_listed(path: Path | None) -> ZPositions | None:
    """What ``--z-positions`` lists, if it is given."""
    from emformer_hub.z_positions import read_z_positions

    return None if path is None else read_z_positions(path)

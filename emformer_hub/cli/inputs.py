"""Inputs and outputs of the commands: opened with their voxel size, kept apart, and named in what is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize

if TYPE_CHECKING:
    from emformer_hub.volumes import Volume


def check_different(*paths: Path | str) -> None:
    """Raise ``InputError`` if two of the paths are the same file."""
    local = [path for path in paths if isinstance(path, Path)]
    if len({path.resolve() for path in local}) < len(local):
        raise InputError(f"{', '.join(map(str, paths))} are not all different; an output may not replace an input.")


def with_voxel_size(
    path: Path | str,
    voxel_size: str | None,
    read: Callable[[Path | str], Volume],
    otherwise: VoxelSize | None = None,
) -> tuple[Volume, VoxelSize]:
    """A volume and its voxel size: that of the option, else that of the file, else ``otherwise``.

    Raises:
        InputError: there is no voxel size, or the volume cannot be read.
    """
    stated = None if voxel_size is None else VoxelSize.parse(voxel_size)
    volume = read(path)
    size = stated or volume.voxel_size or otherwise
    if size is None:
        raise InputError(f"{path} states no voxel size; give --voxel-size Z,Y,X in nm, as in --voxel-size 40,4,4.")
    if stated and volume.voxel_size and stated != volume.voxel_size:
        click.echo(f"{path} says {volume.voxel_size} ({volume.source}); using --voxel-size {stated}.", err=True)
    return volume, size


def shape_text(data: Any) -> str:
    """``48x40x32``: the shape of an array, for messages."""
    return "x".join(map(str, data.shape))

"""Inputs and outputs of the commands: opened with their voxel size, kept apart, and named in what is printed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize, unit_of
from emformer_hub.volumes.volume import check_plausible

if TYPE_CHECKING:
    from emformer_hub.reconstruction.settings import OpenStack
    from emformer_hub.volumes import Volume
    from emformer_hub.volumes.remote import Remote


def check_different(*paths: Path | str | Remote) -> None:
    """Raise ``InputError`` if two of the paths are the same file, or two addresses the same."""
    if len({str(path.resolve() if isinstance(path, Path) else path).rstrip("/") for path in paths}) < len(paths):
        raise InputError(f"{', '.join(map(str, paths))} are not all different; an output may not replace an input.")


def with_voxel_size(
    path: Path | str,
    voxel_size: str | None,
    read: Callable[[Path | str], Volume],
    otherwise: VoxelSize | None = None,
) -> tuple[Volume, VoxelSize]:
    """A volume and its voxel size: that of the option, else that of the file, else ``otherwise``.

    Raises:
        InputError: there is no voxel size or none that a micrograph can have (unless the option states its unit), or
            the volume cannot be read.
    """
    alone = voxel_size is not None and _is_length(voxel_size)
    stated = None if voxel_size is None or alone else VoxelSize.parse(voxel_size)
    sure = voxel_size is not None and bool(unit_of(voxel_size))
    if stated is not None and not sure:
        check_plausible(stated, str(path))
    volume = read(path)
    if voxel_size is not None and alone:
        stated = _with_spacing(voxel_size, volume, path)
    size = stated or volume.voxel_size or otherwise
    if size is None:
        raise InputError(volume.ask(str(path)))
    if not sure:
        check_plausible(size, str(path))
    if stated and volume.voxel_size and stated != volume.voxel_size:
        click.echo(f"{path} says {volume.voxel_size} ({volume.source}); using --voxel-size {stated}.", err=True)
    return volume, size


def aligned(stack: OpenStack, align: str | None) -> OpenStack:
    """The stack with its sections moved as ``--align`` says; as it is without it.

    Raises:
        InputError: as :func:`~emformer_hub.reconstruction.aligned.align_stack`.
    """
    from emformer_hub.reconstruction.aligned import MEASURED, align_stack, moves_in_words

    if align is None:
        return stack
    if align == MEASURED:
        with sections_bar("align") as progress:
            moved = align_stack(stack, align, progress)
        click.echo(f"{stack.path}: {moves_in_words(moved)}", err=True)
        return moved
    if Path(align).suffix.lower() != ".csv" and not Path(align).exists():
        raise click.UsageError(f"--align {align!r} is neither translation nor a file; expected translation or a CSV.")
    return align_stack(stack, align)


@contextmanager
def sections_bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, shown on a terminal only; it takes the numbers of sections, or of steps, that are done and of all."""
    from tqdm import tqdm

    with tqdm(desc=doing, unit="section", disable=None) as bar:

        def progress(done: int, steps: int) -> None:
            bar.total, bar.n = steps, done
            bar.refresh()

        yield progress


def _with_spacing(spacing: str, volume: Volume, path: Path | str) -> VoxelSize:
    """A section spacing alone, with the size of a pixel that the file states."""
    lateral = volume.lateral_nm if volume.voxel_size is None else volume.voxel_size.zyx[1:]
    if lateral is None:
        raise InputError(
            f"--voxel-size {spacing} is one length, and {path} does not state the size of a pixel; expected Z,Y,X in "
            f"nm, as in --voxel-size 40,4,4."
        )
    z = VoxelSize.parse(",".join([spacing.removesuffix(unit_of(spacing))] * 3) + unit_of(spacing)).z
    return VoxelSize(z, *lateral)


def _is_length(text: str) -> bool:
    """Test whether a text is one number, with or without a unit."""
    try:
        float(text.strip().removesuffix(unit_of(text)))
    except ValueError:
        return False
    return True


@contextmanager
def said_of(output: Path | Remote) -> Iterator[None]:
    """Print about a complete output; if stdout is closed or full, say so on stderr, and let the command succeed."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            with suppress(OSError, ValueError):  # or Python tries, and fails, once more when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(OSError):
            click.echo(f"{output} is complete; its summary could not be printed: {error.strerror or error}.", err=True)


def shape_text(data: Any) -> str:
    """``48x40x32``: the shape of an array, for messages."""
    return "x".join(map(str, data.shape))

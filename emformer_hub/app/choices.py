"""What the controls of the page in the browser and of napari mean to the library, and what messages call them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from emformer_hub.app.words import AS_THEY_ARE, BY_MEASURED, LISTED, THROUGH
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.uneven import ZPositions
from emformer_hub.z_positions import read_z_positions

if TYPE_CHECKING:
    from emformer_hub.reconstruction.repair import Repair
    from emformer_hub.reconstruction.settings import OpenStack

TRANSLATIONS = "CSV with the header y_voxels,x_voxels and a line for each section"
POSITIONS = "CSV with the header centre_nm,thickness_nm and a line for each section, or JSON alike"

CONTROLS = {
    "`--align translation`": "'Align sections' in 'Reconstruct'",
    "--align": "'Align sections'",
    "--z-positions": "'Positions'",
    "--voxel-size Z,Y,X": "the voxel size Z,Y,X",
    "--voxel-size": "the voxel size",
}
"""Options of the command line that messages name, longer ones first, and what they are called here."""


class Sampling(TypedDict):
    """How sections sample tissue: those of :class:`~emformer_hub.reconstruction.settings.Settings` that say it."""

    factor: float
    thickness: float
    z_positions: ZPositions | None


def sampling_of(sections: str, factor: float, positions: str | Path | None) -> Sampling:
    """How sections sample tissue, in the words of the controls.

    Args:
        sections: ``THROUGH``: all of the section spacing is imaged; ``FACE``: one output plane; or ``LISTED``.
        factor: section spacing, the usual one where they are listed, over that of the planes.
        positions: the file that lists where sections lie.

    Raises:
        InputError: no file is chosen, or it cannot be read.
    """
    if sections != LISTED:
        return {"factor": factor, "thickness": 1.0 if sections == THROUGH else 1 / factor, "z_positions": None}
    if not positions:
        raise InputError(f"'Positions' names no file; expected {POSITIONS}.")
    return {"factor": factor, "thickness": 1.0, "z_positions": read_z_positions(Path(positions))}


def geometry_from(size: VoxelSize, sampling: Sampling) -> SectionModel:
    """Geometry of sections of this voxel size that sample tissue as :func:`sampling_of` says."""
    from emformer_hub.reconstruction.settings import geometry_of, with_defaults

    factor, thickness, positions = sampling["factor"], sampling["thickness"], sampling["z_positions"]
    return geometry_of(
        with_defaults({"voxel_size": size, "factor": factor, "thickness": thickness, "z_positions": positions})
    )


def align_of(choice: str, translations: str | Path | None) -> str | Path | None:
    """What :func:`~emformer_hub.reconstruction.aligned.align_stack` is to do; ``None``: leave sections as they are.

    Args:
        choice: ``AS_THEY_ARE``, ``BY_MEASURED`` or ``BY_LISTED``.
        translations: the file that lists the translations.

    Raises:
        InputError: no file is chosen.
    """
    from emformer_hub.reconstruction.aligned import MEASURED

    if choice in (AS_THEY_ARE, BY_MEASURED):
        return None if choice == AS_THEY_ARE else MEASURED
    if not translations:
        raise InputError(f"'Translations' names no file; expected {TRANSLATIONS}.")
    return Path(translations)


def aligned(
    stack: OpenStack, align: str | Path | None, repair: Repair, progress: Callable[[int, int], None]
) -> tuple[OpenStack, Repair]:
    """The stack as :func:`align_of` says, and the repair that was chosen before, which moves with its sections.

    Args:
        stack: the stack as it is.
        align: how it is aligned.
        repair: what is replaced of the stack as it is.
        progress: called with the number of sections that were measured, and of all.

    Raises:
        InputError: as :func:`~emformer_hub.reconstruction.aligned.align_stack`.
    """
    from emformer_hub.reconstruction.aligned import align_stack

    if align is None:
        return stack, repair
    moved = align_stack(stack, align, progress)
    return moved, repair.moved(moved.reading["translations"])


def in_words(message: str, controls: Mapping[str, str]) -> str:
    """A message of the library with options of the command line called as the controls are.

    Args:
        message: the message. A command in it, to be run elsewhere, stays as it is.
        controls: what is written for each option; longer ones first.
    """
    said, command, rest = message.partition("emformer-hub ")
    for option, control in controls.items():
        said = re.sub(rf"{re.escape(option)}(?![\w-])", control, said)
    return said + command + rest

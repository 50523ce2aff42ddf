"""Open stacks, aligned by translations that are measured or listed in a file; every interface takes them from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from emformer_hub.inspection.displacements import check_translations_suffice, measure_displacements, translations_of
from emformer_hub.reconstruction.settings import OpenStack
from emformer_hub.volumes.translated import read_translations, translated

MEASURED = "translation"
"""Stands for the translations that are measured, where otherwise a file is named."""


def align_stack(
    stack: OpenStack, align: str | Path, progress: Callable[[int, int], None] = lambda done, sections: None
) -> OpenStack:
    """The stack with its sections moved as they are read, and with the translations among what it was opened with.

    Args:
        stack: the stack as it is.
        align: ``MEASURED``, or a file that lists the translations
            (:func:`~emformer_hub.volumes.translated.read_translations`).
        progress: called with the number of sections that were measured, and of all.

    Raises:
        InputError: the translations cannot be measured, do not suffice, or do not fit the stack; or their file cannot
            be read.
    """
    if align == MEASURED:
        found = measure_displacements(stack.volume.data, stack.volume.hidden, progress)
        check_translations_suffice(found, stack.path)
        listed = translations_of(found)
    else:
        listed = read_translations(Path(align))
    volume = translated(stack.volume, listed, stack.path)
    return dataclasses.replace(stack, volume=volume, reading={**stack.reading, "translations": listed})


def moves_in_words(stack: OpenStack) -> str:
    """How far the sections of a stack that :func:`align_stack` returned are moved."""
    along = (
        f"{round(min(moves))} to {round(max(moves))}" for moves in zip(*stack.reading["translations"], strict=True)
    )
    return f"sections are moved by {' voxels along y, and by '.join(along)} along x."

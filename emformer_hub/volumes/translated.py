"""Stacks whose sections are translated as they are read, by whole voxels: no value of a section is changed.

Files list translations with the header ``y_voxels,x_voxels``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.section_lists import read_section_list, write_section_list
from emformer_hub.volumes.boxes import Box, numbers, shape_of
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume

Translations = Sequence[tuple[float, float]]
"""By how much each section is moved along y and x, in voxels."""
HEADER = ("y_voxels", "x_voxels")


def translated(volume: Volume[Any], translations: Translations, name: str) -> Volume[StoredArray]:
    """The volume with its sections moved within its frame, by the nearest whole numbers of voxels.

    What leaves the frame is cut off. What enters it is 0, and ``hidden``.

    Args:
        volume: the stack, aligned or not.
        translations: along y and x, in voxels, for each section.
        name: what messages call the stack.

    Raises:
        InputError: :func:`check_translations` fails.
    """
    moves = check_translations(translations, volume.data.shape, name)
    data, hidden = volume.data, volume.hidden
    chunks = getattr(data, "chunks", (1, *data.shape[1:]))
    return dataclasses.replace(
        volume,
        data=StoredArray(tuple(data.shape), np.dtype(data.dtype), chunks, partial(_read, data, moves, 0)),
        hidden=StoredArray(tuple(data.shape), np.dtype(bool), chunks, partial(_read_hidden, hidden, moves, data.shape)),
    )


def translated_section(section: np.ndarray, translation: tuple[float, float]) -> np.ndarray:
    """One section ``(y, x)``, or a mask of it, moved alike; what enters the frame is 0."""
    y, x = (round(move) for move in translation)
    rows, columns = section.shape
    return _read(section[None], [(y, x)], 0, (slice(0, 1), slice(0, rows), slice(0, columns)))[0]


def check_translations(translations: Translations, shape: Sequence[int], name: str) -> tuple[tuple[int, int], ...]:
    """Check the translations of a stack ``(z, y, x)``, and return them as whole voxels.

    Raises:
        InputError: not two finite numbers for each section, or a section leaves the frame altogether.
    """
    listed = np.asarray(translations, np.float64)
    if listed.shape != (shape[0], 2):
        raise InputError(
            f"translations of {name} have shape {listed.shape}; expected ({shape[0]}, 2), y and x in voxels for each "
            f"of its sections."
        )
    beyond = ~np.isfinite(listed).all(axis=1) | (np.abs(np.rint(listed)) >= shape[1:]).any(axis=1)
    if beyond.any():
        section = int(beyond.argmax())
        y, x = listed[section]
        raise InputError(
            f"the translation of section {section} of {name}, counted from 0, is {y:g},{x:g} (y,x); expected numbers "
            f"of voxels that keep it within the frame of {shape[1]} x {shape[2]}."
        )
    return tuple((int(y), int(x)) for y, x in np.rint(listed))


def read_translations(path: Path) -> tuple[tuple[float, float], ...]:
    """Translation of each section along y and x, in voxels, of a file.

    Args:
        path: CSV whose header names the columns ``y_voxels`` and ``x_voxels``, a line for each section: by how much it
            is moved, down and to the right; or, with the suffix ``.json``, a list of objects with these keys.

    Raises:
        InputError: the file cannot be read, or a line does not hold two numbers.
    """
    return tuple((y, x) for y, x in read_section_list(path, HEADER, "translations of sections"))


def write_translations(path: Path, translations: Translations) -> None:
    """Write what :func:`read_translations` reads, whole or not at all."""
    write_section_list(path, HEADER, translations)


def _read(data: Any, moves: Sequence[tuple[int, int]], outside: Any, box: Box) -> np.ndarray:
    """A box of moved sections, of which each is read once; ``outside`` fills what lies outside of them."""
    moved = np.full(shape_of(box), outside, data.dtype)
    every = numbers(box[0])
    if not moved.size:
        return moved
    steps = np.array([moves[z] for z in every])
    around = []  # rows and columns of the stack that any of the sections shows in the box
    for part, length, along in zip(box[1:], data.shape[1:], steps.T, strict=True):
        start, stop = part.start - along.max(), part.stop - along.min()
        around.append(slice(int(np.clip(start, 0, length)), int(np.clip(stop, 0, length))))
    if any(part.start >= part.stop for part in around):
        return moved
    voxels = np.ma.getdata(np.asanyarray(data[slice(box[0].start, box[0].stop, box[0].step), around[0], around[1]]))
    for section, target, move in zip(voxels, moved, steps.tolist(), strict=True):
        source, place = [], []
        for part, whole, step in zip(box[1:], around, move, strict=True):
            wanted = np.arange(part.start, part.stop, part.step or 1) - step - whole.start
            there = np.flatnonzero((wanted >= 0) & (wanted < whole.stop - whole.start))
            place.append(slice(there[0], there[-1] + 1) if there.size else slice(0, 0))
            source.append(wanted[there])
        target[tuple(place)] = section[np.ix_(*source)]
    return moved


def _read_hidden(
    hidden: StoredArray | None, moves: Sequence[tuple[int, int]], shape: tuple[int, int, int], box: Box
) -> np.ndarray:
    everything = np.broadcast_to(np.False_, shape)  # made here: pickled, it would be as large as the stack
    return _read(everything if hidden is None else hidden, moves, True, box)

"""A stack that grows while the microscope runs: a preview of the sections that have landed."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from emformer_hub.devices import choose_device
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.blocks import HALO_ZYX, Block, Span, make_plan
from emformer_hub.reconstruction.memory import choose_tile
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import ModelOnce, Settings, geometry_of, with_defaults
from emformer_hub.volumes import Volume, slices
from emformer_hub.volumes.checks import MIN_SECTIONS
from emformer_hub.volumes.ome_zarr import OMEZarrWriter, is_zarr

STEP = 8
"""Sections to wait for before the preview is extended; more at once if they are there already."""
MOST = 32
POLL_S = 0.5

Landed = Callable[[int, int], None]
"""A function that is called with the number of sections that have landed and the number of planes of the preview."""


def sections_landing(folder: Path, idle_s: float, *, at_least: int = MIN_SECTIONS) -> Iterator[Volume[Any]]:
    """Yield the stack in a folder each time more sections have landed, until none has for a while.

    A section that is still being written, or whose number comes before one that is missing yet, has not landed.

    Args:
        folder: folder of TIFF or PNG sections; may still be empty.
        idle_s: seconds without a new section after which the stack is complete.
        at_least: number of sections to wait for before the first time.

    Raises:
        InputError: not a folder; or time is up and the files cannot be read, or are fewer than ``at_least``.
    """
    if not folder.is_dir() or is_zarr(folder):
        raise InputError(f"{folder} is not a folder of sections; --follow waits for TIFF or PNG files in a folder.")
    last, landed, shown, known = time.monotonic(), 0, 0, -1
    trouble: InputError | None = None
    while True:
        files = sum(1 for _ in folder.iterdir())
        if trouble or files != known:
            last = last if files == known else time.monotonic()
            known, volume, trouble = files, *_whole(folder, shown)
            landed = 0 if volume is None else len(volume.data)
            if volume is not None and landed > max(shown, at_least - 1):
                yield volume
                shown, last = landed, time.monotonic()
        if time.monotonic() - last > idle_s:
            if trouble and files:
                raise InputError(f"{trouble} (No section has landed for {idle_s:g} s.)") from trouble
            if shown < at_least:
                raise InputError(
                    f"{folder} holds {landed} section{'s' * (landed != 1)}, and none has landed for {idle_s:g} s; "
                    f"expected at least {at_least}. Is it the right folder?"
                )
            return
        time.sleep(min(POLL_S, idle_s / 4))


def _whole(folder: Path, shown: int) -> tuple[Volume[Any] | None, InputError | None]:
    """The readable sections, all or all but the last, and the error if not all can be read."""
    trouble = None
    for but_last in (False, True):
        try:
            volume = slices.open_volume(folder, but_last=but_last)
            volume.data[shown:, :1]  # a section may have its size and not all of its voxels
            return volume, trouble
        except InputError as error:
            trouble = trouble or error
    return None, trouble


def preview_path(output: Path) -> Path:
    """Path of the preview of an output whose stack is still growing."""
    return output.with_name(f"{output.name.split('.')[0]}.preview.zarr")


def follow(
    folder: Path,
    preview: Path,
    *,
    idle_s: float = 60.0,
    progress: Landed = lambda sections, planes: None,
    **settings: Unpack[Settings],
) -> Volume[Any]:
    """Reconstruct sections as they land, into an OME-Zarr that grows, until none has landed for a while.

    This is a preview: intensities are measured on the sections at hand, because the whole stack is not known. The
    newest planes are made again once the sections after them have landed.

    Args:
        folder: folder that sections are written to.
        preview: OME-Zarr to make; one that already exists is replaced.
        idle_s: seconds without a new section after which the stack is complete.
        progress: called with the number of sections that have landed and the number of planes of the preview.
        settings: keys of :class:`~emformer_hub.reconstruction.settings.Settings`; one pass by default.

    Returns:
        The complete stack.

    Raises:
        InputError: as :func:`sections_landing`; or a setting is unusable.
    """
    chosen = with_defaults({**settings, "ensemble": settings.get("ensemble", 1)}, Settings)
    geometry, model = geometry_of(chosen), ModelOnce.of(chosen["model"])
    growing = _Preview(
        model.network, model.processor, geometry, chosen["ensemble"], chosen["device"], preview, chosen["voxel_size"]
    )
    shown = 0
    for volume in sections_landing(folder, idle_s):
        while len(volume.data) - shown >= (STEP if shown else MIN_SECTIONS):
            shown = min(shown + MOST, len(volume.data))
            growing.add(volume, shown)
            progress(shown, geometry.num_planes(shown))
    if shown < len(volume.data):
        growing.add(volume, len(volume.data))
        progress(len(volume.data), geometry.num_planes(len(volume.data)))
    return volume


@dataclass
class _Preview:
    network: EMformerModel
    processor: EMformerProcessor
    geometry: SectionModel
    ensemble: int
    device: str | None
    path: Path
    voxel_size: VoxelSize
    complete: int = 0
    """Sections whose planes will not change any more."""

    def add(self, volume: Volume[Any], landed: int) -> None:
        """Make the planes of sections up to ``landed``, from those that are complete on."""
        halo = HALO_ZYX[0]
        first = max(0, self.complete - halo)
        first -= first % self.network.config.window_size[1]  # attention windows lie as in the whole stack
        window = np.asarray(volume.data[first:landed])
        statistics = self.processor.measure(window)
        restorer = Restorer(
            self.network, self.processor, self.geometry, statistics, self.ensemble, choose_device(self.device)
        )
        planes = self.geometry.num_planes(landed)
        output = slice(math.floor(self.complete * self.geometry.factor), planes, 1)
        restored = np.empty((planes - output.start, *window.shape[1:]), window.dtype)
        z, y, x = window.shape
        _, tile_y, tile_x = choose_tile((z, y, x), self.geometry, self.network.config, restorer.device)
        for block in make_plan((z, y, x), self.geometry, self.network.config, (z, tile_y, tile_x)).blocks():
            whole = Block(Span(output, slice(first, landed, 1)), block.y, block.x)  # only some planes are wanted
            part, _ = restorer.restore(window[:, block.y.input, block.x.input], whole)
            restored[:, block.y.output, block.x.output] = part
        self._write(volume, output, restored)
        self.complete = max(0, landed - halo)

    def _write(self, volume: Volume[Any], planes: slice, voxels: np.ndarray) -> None:
        if planes.start == 0:
            shutil.rmtree(self.path, ignore_errors=True)
            where = self.geometry.plane_origin(self.voxel_size, volume.translation_nm)
            size = self.geometry.plane_size(self.voxel_size)
            writer = OMEZarrWriter.create(self.path, voxels.shape, voxels.dtype, size, where)
        else:
            writer = OMEZarrWriter(self.path)
            writer.grow(planes.stop)
        writer.write((planes, slice(0, voxels.shape[1], 1), slice(0, voxels.shape[2], 1)), voxels)
        writer.finish()

"""The settings of a reconstruction from file to file, and what it reads: declared once, opened once, loaded once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Required, TypedDict, cast

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.loading import load_model
from emformer_hub.model_files import fingerprint
from emformer_hub.modes import DEFAULT_MODE, Mode
from emformer_hub.uneven import UnevenSections, ZPositions, check_spacing
from emformer_hub.volumes import StoredArray, Volume, open_volume

if TYPE_CHECKING:
    from emformer_hub.modeling_emformer import EMformerModel
    from emformer_hub.processing_emformer import EMformerProcessor
    from emformer_hub.reconstruction.repair import Repair
    from emformer_hub.volumes.boxes import Box
    from emformer_hub.volumes.remote import Remote


@dataclass(frozen=True, eq=False)
class OpenStack:
    """A stack that is open, to be passed on instead of its path.

    Attributes:
        path: path or address of the stack.
        volume: the stack as ``open_volume`` returns it.
        reading: keyword arguments of ``open_volume`` that it was opened with, by which others open the same stack.
        stored: whether the stack is found at ``path``; else it is only here, and ``path`` is what it is called.
    """

    path: str
    volume: Volume[np.ndarray | StoredArray]
    reading: Mapping[str, Any] = field(default_factory=dict)
    stored: bool = True

    @classmethod
    def of(cls, stack: str | os.PathLike[str] | OpenStack, reading: Mapping[str, Any] | None = None) -> OpenStack:
        """Open the stack, unless it is open already."""
        if isinstance(stack, OpenStack):
            return stack
        reading = dict(reading or {})
        return cls(str(stack), open_volume(stack, **reading), reading)


@dataclass(frozen=True, eq=False)
class ModelOnce:
    """A model by name, loaded when it is first used and never again.

    Attributes:
        name: name of a bundled model, a folder, or a Hub id.
    """

    name: str

    @classmethod
    def of(cls, model: str | ModelOnce) -> ModelOnce:
        """Wrap a name, unless it is wrapped already."""
        return model if isinstance(model, ModelOnce) else cls(model)

    @cached_property
    def _loaded(self) -> tuple[EMformerModel, EMformerProcessor]:
        return load_model(self.name)

    @property
    def network(self) -> EMformerModel:
        """The network."""
        return self._loaded[0]

    @property
    def processor(self) -> EMformerProcessor:
        """The processor that belongs to the weights."""
        return self._loaded[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and their names."""
        return fingerprint(self.network)


class Settings(TypedDict, total=False):
    """Keyword arguments of every reconstruction from files.

    Keys:
        voxel_size: voxel size of the stack, nm.
        factor: section spacing divided by the spacing of the output planes, any real number from 1 to 16.
        model: name of a bundled model, a folder or a Hub id; or a :class:`ModelOnce`.
        thickness: imaged fraction of the section spacing, in (0, 1].
        offset: where the imaged part begins within the slab of a section, in output planes; default: centred.
        z_positions: centre and thickness of each section of the stack, nm, where they are not evenly spaced
            (:func:`~emformer_hub.z_positions.read_z_positions`). Only distances count: the first section stays where
            it is. ``voxel_size`` and ``factor`` then say how far apart planes are; thickness and offset are not given.
        ensemble: passes to average: 1, 2, 4, 8 or 16.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` (NVIDIA, AMD), ``"xpu"`` (Intel), ``"mps"`` (Apple), one of several
            GPUs such as ``"cuda:1"``; default: a GPU if there is one.
    """

    voxel_size: Required[VoxelSize]
    factor: Required[float]
    model: str | ModelOnce
    thickness: float
    offset: float | None
    z_positions: ZPositions | None
    ensemble: int
    device: str | None


class FileSettings(Settings, total=False):
    """Keyword arguments of :func:`~emformer_hub.reconstruct_file`, beyond those of :class:`Settings`.

    Keys:
        reading: keyword arguments of :func:`~emformer_hub.open_volume` that choose axes, channel and the like. Voxels
            that its ``nodata`` and ``mask`` hide are predicted from their neighbours, in gaps of at most 3 of 7
            sections; within wider ones they stay as they are, and so do constant margins.
        uncertainty: path or address of an additional output, in any of the formats: the standard deviation of each
            voxel's error.
        confidence: probability from 0 to 0.99. Adds an output beside the main one, ``.confident``, uint8: 1 where the
            error is below half a standard deviation of the stack's intensities with this probability, else 0.
        region: part of the stack to reconstruct. Intensities are measured on the whole stack, so that a trial looks
            as the whole will.
        repair: ``"none"``; ``"auto"``, the sections that an inspection flags; numbers of sections, from 0; or a
            :class:`~emformer_hub.reconstruction.repair.Repair`. These sections are predicted from their neighbours
            in the same pass, and the record lists them. No other voxel of the input is replaced.
        mode: what becomes of the noise of the sections. ``"clean"`` leaves it out; ``"faithful"`` keeps it, so that
            averaging the planes gives the measured sections, but for rounding. The record says in either case how far
            sections cut from the output are from the measured ones.
        precision: ``"auto"`` (bfloat16 products where the device is faster in it), ``"float32"`` or ``"bfloat16"``.
        tile_zyx: the most that the network sees at once, (sections, y, x); default: what ``memory`` has room for. A
            resumed run keeps that of its beginning.
        memory: gigabytes that the run may take up, on a GPU of its memory, and so may each worker of a cluster;
            default: half of what is free, at most 8, divided among the ``workers``.
        workers: number of workers of the ``scheduler``; blocks are made so small that each has two.
        ome_zarr: version of an OME-Zarr, ``"0.4"`` or ``"0.5"``.
        chunk_zyx: sides of a chunk, (z, y, x), of outputs that have chunks; default: what viewers like. A resumed run
            keeps that of its beginning.
    """

    reading: Mapping[str, Any] | None
    uncertainty: str | os.PathLike[str] | Remote | None
    confidence: float | None
    region: Box | None
    repair: str | Sequence[int] | Repair
    mode: Mode
    precision: str
    tile_zyx: tuple[int, int, int] | None
    memory: float | None
    workers: int
    ome_zarr: str
    chunk_zyx: Sequence[int] | None


DEFAULTS: dict[str, Any] = {
    "model": "emformer-small",
    "thickness": 1.0,
    "offset": None,
    "z_positions": None,
    "ensemble": 2,
    "device": None,
    "reading": None,
    "uncertainty": None,
    "confidence": None,
    "region": None,
    "repair": "none",
    "mode": DEFAULT_MODE,
    "precision": "auto",
    "tile_zyx": None,
    "memory": None,
    "workers": 1,
    "ome_zarr": "0.5",
    "chunk_zyx": None,
}


def with_defaults(settings: Settings, kind: type = FileSettings) -> FileSettings:
    """Settings in which every key has a value.

    Raises:
        TypeError: a key is not one of ``kind``, or the voxel size or the factor is missing.
    """
    for name in settings.keys() - kind.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}; expected {', '.join(kind.__annotations__)}")
    for name in {"voxel_size", "factor"} - settings.keys():
        raise TypeError(f"missing keyword argument {name!r}")
    return cast(FileSettings, DEFAULTS | dict(settings))


def geometry_of(settings: Settings) -> SectionModel:
    """Geometry of the sections of a stack, from settings in which every key has a value.

    Raises:
        InputError: a value is out of range, or the positions of the sections contradict another setting.
    """
    listed, thickness, offset = settings["z_positions"], settings["thickness"], settings["offset"]
    if listed is None:
        return SectionModel(settings["factor"], thickness, offset)
    if thickness != 1 or offset is not None:
        raise InputError("the positions of sections state their thickness; leave out thickness and offset.")
    check_spacing(listed, settings["voxel_size"])
    return UnevenSections.of(listed, settings["voxel_size"].z / settings["factor"], settings["factor"])

"""What fixes the result of a run from file to file: its input, model and settings, written as JSON beside the output.

Every process that helps with a run reads the job, makes whole parts of the output, and makes them the same.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.model_files import fingerprint
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.projection import DEFAULT_MODE, Mode
from emformer_hub.reconstruction.repair import Repair
from emformer_hub.reconstruction.restorer import ENSEMBLES
from emformer_hub.volumes import check_volume, open_volume
from emformer_hub.volumes.boxes import Box, check_region
from emformer_hub.volumes.checks import check_mask, check_stack
from emformer_hub.volumes.hdf5 import split_address
from emformer_hub.volumes.output import ZARR_SUFFIXES
from emformer_hub.volumes.remote import absolute, is_url

DAMAGE = "damage.npz"
"""Beside the job: where sections are damaged."""


@dataclass(frozen=True)
class Job:
    """All that fixes a result, and where it goes.

    Attributes:
        input: path or address of the stack; ``input_shape``, ``input_dtype`` and ``input_modified`` say that it is the
            same still.
        region: of the input, first and last voxel along z, y and x.
        model, weights: its name, and the fingerprint of its weights.
        factor, thickness, offset: how sections sample tissue.
        ensemble: passes that are averaged.
        precision: ``float32`` or ``bfloat16``.
        mean, std: of the whole input, as the processor measures it.
        tile_zyx: the most that the network sees at once.
        voxel_size, translation: of the output, nm.
        repair: number, reason and share of the sections that are filled instead of believed.
        damage: digest of the masks of those that are filled in places.
        mode: what becomes of the noise of the sections, ``faithful`` or ``clean``.
        output, uncertainty: where they go.
        confidence, confident: a probability, and where the mask of voxels that are confident by it goes.
        ome_zarr: version of OME-Zarr.
        version: of this package.
    """

    input: str
    input_shape: tuple[int, int, int]
    input_dtype: str
    input_modified: float | None
    region: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    model: str
    weights: str
    factor: float
    thickness: float
    offset: float | None
    ensemble: int
    precision: str
    mean: float
    std: float
    tile_zyx: tuple[int, int, int] | None
    voxel_size: tuple[float, float, float]
    translation: tuple[float, float, float]
    repair: tuple[tuple[int, str, float], ...]
    damage: str | None
    mode: Mode
    output: str
    uncertainty: str | None
    confidence: float | None
    confident: str | None
    ome_zarr: str
    version: str

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read what :meth:`save` wrote."""
        return cls(**_with_tuples(json.loads(path.read_text())))

    def save(self, path: Path) -> None:
        """Write as JSON; whole, or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        os.replace(partial, path)

    @property
    def sections(self) -> SectionModel:
        return SectionModel(self.factor, self.thickness, self.offset)

    @property
    def folder(self) -> Path:
        """Where this file and the list of parts that are done lie, until the output is complete."""
        return state_folder(Path(self.output))

    @property
    def outputs(self) -> list[Path]:
        return [Path(path) for path in (self.output, self.uncertainty, self.confident) if path is not None]

    @property
    def dtypes(self) -> list[np.dtype]:
        """Of the outputs."""
        every = zip(
            (self.output, self.uncertainty, self.confident), (self.input_dtype, "float32", "uint8"), strict=True
        )
        return [np.dtype(dtype) for path, dtype in every if path is not None]


def state_folder(output: Path) -> Path:
    """Beside an output that is in the making: what is known of the run."""
    return output.with_name(f".{output.name}.run")


def confident_path(output: Path) -> Path:
    """Where the mask of confident voxels goes: ``out.ome.zarr`` -> ``out.confident.ome.zarr``."""
    name, dot, suffix = output.name.partition(".")
    return output.with_name(f"{name}.confident{dot}{suffix}")


def partial_output(output: Path) -> Path:
    """Where an output is in the making; the name says nothing of the process, so that another one can go on."""
    return output.with_name(f".{output.name}.partial")


def is_zarr_path(path: Path) -> bool:
    return path.suffix.lower() in ZARR_SUFFIXES


def make_job(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    voxel_size: VoxelSize,
    factor: float,
    model: str = "emformer-small",
    thickness: float = 1.0,
    offset: float | None = None,
    ensemble: int = 2,
    uncertainty: str | os.PathLike[str] | None = None,
    confidence: float | None = None,
    region: Box | None = None,
    repair: Repair | None = None,
    mode: Mode = DEFAULT_MODE,
    device: str | None = None,
    precision: str = "auto",
    tile_zyx: tuple[int, int, int] | None = None,
    ome_zarr: str = "0.5",
) -> Job:
    """Look at the stack and the model, and fix what is to be made; arguments are those of :func:`reconstruct_file`.

    But for ``repair``, which is what :func:`~emformer_hub.reconstruction.repair.choose_repair` makes of it.

    Raises:
        InputError: the stack or an argument is unusable.
    """
    sections = SectionModel(factor, thickness, offset)
    path = str(path)
    if ensemble not in ENSEMBLES:
        raise InputError(f"ensemble is {ensemble}; expected one of {', '.join(map(str, ENSEMBLES))}.")
    volume = open_volume(path)
    check_stack(volume.data.shape, volume.data.dtype, path)
    depth, height, width = volume.data.shape
    z, y, x = region or (slice(0, depth), slice(0, height), slice(0, width))
    check_region((z, y, x), volume.data.shape, path)
    chosen = ((z.start, z.stop), (y.start, y.stop), (x.start, x.stop))
    part = path if region is None else f"the region of {path}"
    check_stack(tuple(stop - start for start, stop in chosen), volume.data.dtype, part)
    repair = repair or Repair()
    repair.check((z, y, x))
    whole = check_mask(repair.sections(depth), volume.data.shape) if repair.whole else None
    if isinstance(volume.data, np.ndarray):  # others are looked at part by part, as they are read
        check_volume(volume.data[z, y, x], part, repair.mask((z, y, x)))
    weights = fingerprint(EMformerModel.from_pretrained(model))
    processor = EMformerProcessor.from_pretrained(model)
    if confidence is not None:
        processor.interval(confidence, sections)  # says what is wrong with it
    statistics = processor.measure(volume.data, whole)
    planes_size = voxel_size.with_z(voxel_size.z / sections.factor)
    first = volume.translation_nm or (0.0, 0.0, 0.0)
    at_z, at_y, at_x = (
        place + start * length for place, (start, _), length in zip(first, chosen, voxel_size.zyx, strict=True)
    )
    return Job(
        input=absolute(path),
        input_shape=(depth, height, width),
        input_dtype=str(volume.data.dtype),
        input_modified=None if is_url(path) else split_address(Path(path))[0].stat().st_mtime,
        region=chosen,
        model=str(Path(model).absolute()) if Path(model).is_dir() else model,
        weights=weights,
        factor=sections.factor,
        thickness=sections.thickness,
        offset=sections.offset,
        ensemble=ensemble,
        mean=statistics.mean,
        std=statistics.std,
        voxel_size=(float(planes_size.z), float(planes_size.y), float(planes_size.x)),
        translation=(at_z + (planes_size.z - voxel_size.z) / 2, at_y, at_x),
        output=str(Path(output).absolute()),
        uncertainty=None if uncertainty is None else str(Path(uncertainty).absolute()),
        confidence=confidence,
        confident=None if confidence is None else str(confident_path(Path(output)).absolute()),
        repair=repair.listed,
        damage=repair.digest,
        mode=mode,
        precision=str(choose_precision(precision, choose_device(device))).removeprefix("torch."),
        tile_zyx=tile_zyx,
        ome_zarr=ome_zarr,
        version=importlib.metadata.version("emformer-hub"),
    )


def _with_tuples(value: Any) -> Any:
    """JSON knows no tuples."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value

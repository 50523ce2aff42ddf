"""What fixes the result of a run from file to file: its input, model and settings, written as JSON beside the output.

Every process that helps with a run reads the job, makes whole parts of the output, and makes them the same.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from emformer_hub.devices import choose_device, choose_precision, dtype_name
from emformer_hub.errors import InputError
from emformer_hub.files import Place, check_file, check_overwrite, record_path, write_text
from emformer_hub.geometry import SectionModel
from emformer_hub.inspection.alignment import LEAST_FIELD, alignment_note, section_shifts
from emformer_hub.modes import Mode, check_mode
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.reconstruction.gaps import Gaps
from emformer_hub.reconstruction.memory import choose_tile
from emformer_hub.reconstruction.repair import Repair, choose_repair
from emformer_hub.reconstruction.restorer import check_ensemble
from emformer_hub.reconstruction.settings import FileSettings, ModelOnce, OpenStack, geometry_of, with_defaults
from emformer_hub.uneven import UnevenSections, check_z_positions
from emformer_hub.volumes import check_volume
from emformer_hub.volumes.boxes import check_region
from emformer_hub.volumes.checks import check_mask, check_stack
from emformer_hub.volumes.hdf5 import split_address
from emformer_hub.volumes.output import ZARR_SUFFIXES, check_chunks, check_writable
from emformer_hub.volumes.padding import Padding, tissue
from emformer_hub.volumes.remote import Remote, absolute, is_url, place, plain_address
from emformer_hub.volumes.unmeasured import filled, margin_value

log = logging.getLogger(__name__)

DAMAGE = "damage.npz"
"""Name of the file beside the job that says where sections are damaged."""


@dataclass(frozen=True)
class Job:
    """Everything that fixes a result, and the paths that it is written to.

    Attributes:
        input: path or address of the stack, or the name of one that is only in memory.
        input_shape, input_dtype, input_modified: shape, dtype and time of change of the input, to notice that it was
            replaced.
        reading: what is chosen of the input, as keyword arguments of ``open_volume``; numbers as text, as JSON and
            equality know no NaN.
        region: start and stop along z, y and x of the part of the input that is reconstructed.
        model, weights: name of the model, and fingerprint of its weights.
        factor, thickness, offset: how sections sample tissue, in the mean where they are not evenly spaced.
        z_positions: centre and thickness of each section of the input, nm; ``None`` if they are evenly spaced.
        ensemble: number of passes that are averaged.
        precision: ``float32`` or ``bfloat16``.
        mean, std: mean and standard deviation of the whole input, as the processor measures them.
        tile_zyx: the most that the network sees at once, (sections, y, x).
        voxel_size, translation: voxel size of the output, and position of its first voxel, nm.
        repair: number, reason and replaced fraction of each section that is predicted from its neighbours.
        damage: digest of the masks of the sections that are replaced only in places.
        mode: what becomes of the noise of the sections, ``faithful`` or ``clean``.
        output, uncertainty: paths of the result and of its uncertainty.
        confidence, confident: probability, and path of the mask of the voxels that are right with it.
        padding: value of all voxels outside of the region, which are put around the result; ``None`` where the region
            was chosen, or is everything.
        margin: value of constant margins within the region, which stay as they are; ``None`` if there are none.
        ome_zarr: version of OME-Zarr.
        chunk_zyx: sides of a chunk of the outputs, (z, y, x); ``None`` leaves them to each format.
        version: version of this package.
    """

    input: str
    input_shape: tuple[int, int, int]
    input_dtype: str
    input_modified: float | None
    reading: tuple[tuple[str, Any], ...]
    region: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    model: str
    weights: str
    factor: float
    thickness: float
    offset: float | None
    z_positions: tuple[tuple[float, float], ...] | None
    ensemble: int
    precision: str
    mean: float
    std: float
    tile_zyx: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    translation: tuple[float, float, float]
    repair: tuple[tuple[int, str, float], ...]
    damage: str | None
    mode: Mode
    output: str
    uncertainty: str | None
    confidence: float | None
    confident: str | None
    padding: float | None
    margin: float | None
    ome_zarr: str
    chunk_zyx: tuple[int, int, int] | None
    version: str

    @classmethod
    def load(cls, path: Path | Remote) -> Job:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: a version of this package wrote it that knew other settings.
        """
        content = _with_tuples(json.loads(path.read_text()))
        if content.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise InputError(
                f"{path} belongs to version {content.get('version')} of emformer-hub, which has other settings than "
                f"this one. Finish the run with that version, or begin again with --overwrite."
            )
        return cls(**content)

    def save(self, path: Path | Remote) -> None:
        """Write the job as JSON, whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @property
    def chosen(self) -> dict[str, Any]:
        """Keyword arguments of ``open_volume``, as they were given."""
        return {name: float(value) if name == "nodata" else value for name, value in self.reading}

    @property
    def geometry(self) -> SectionModel:
        """Geometry of the sections of the region."""
        if self.z_positions is None:
            return SectionModel(self.factor, self.thickness, self.offset)
        return UnevenSections.of(self.z_positions, self.voxel_size[0], self.factor).part(slice(*self.region[0]))

    @property
    def folder(self) -> Path | Remote:
        """Folder of the job and of the list of finished parts, until the output is complete."""
        return state_folder(place(self.output))

    @property
    def outputs(self) -> list[Path | Remote]:
        """Paths and addresses of all outputs: the result, its uncertainty, and the mask of confident voxels."""
        return [place(path) for path in (self.output, self.uncertainty, self.confident) if path is not None]

    @property
    def dtypes(self) -> list[np.dtype]:
        """Data types of the outputs."""
        every = zip(
            (self.output, self.uncertainty, self.confident), (self.input_dtype, "float32", "uint8"), strict=True
        )
        return [np.dtype(dtype) for path, dtype in every if path is not None]


def write_whole(path: Path | Remote, text: str) -> None:
    """Write a small file, whole or not at all; raises ``OSError`` if that is refused."""
    if isinstance(path, Remote):
        path.write_text(text)
    else:
        write_text(path, text)


def state_folder(output: Place) -> Place:
    """Folder beside an unfinished output that keeps the state of the run."""
    folder: Place = output.with_name(f".{output.name}.run")
    return folder


def check_record(output: Path | Remote, *, overwrite: bool, resume: bool) -> None:
    """Raise ``InputError`` if the record of a run would replace a file, except that of this run where it is resumed."""
    record = record_path(output)
    if resume and not (state_folder(output) / "job.json").exists():
        return  # there is nothing to resume, which is said where it is begun
    if resume and record.exists():
        with suppress(OSError, ValueError, LookupError, TypeError):
            overwrite = overwrite or json.loads(record.read_text())["output"] == absolute(output)
    if isinstance(record, Remote):
        check_overwrite(record, overwrite)
    else:
        check_file(record, overwrite)


def confident_path(output: Place) -> Place:
    """Path of the mask of confident voxels: ``out.ome.zarr`` -> ``out.confident.ome.zarr``."""
    name, dot, suffix = output.name.partition(".")
    confident: Place = output.with_name(f"{name}.confident{dot}{suffix}")
    return confident


def partial_output(output: Place) -> Place:
    """Hidden path of an unfinished output; it does not name the process, so that another one can continue."""
    partial: Place = output.with_name(f".{output.name}.partial")
    return partial


def is_zarr_path(path: Path | Remote) -> bool:
    """Test whether a path names an OME-Zarr, by its suffix."""
    return path.suffix.lower() in ZARR_SUFFIXES


def make_job(
    stack: str | os.PathLike[str] | OpenStack, output: str | os.PathLike[str] | Remote, **settings: Unpack[FileSettings]
) -> Job:
    """Examine the stack and the model, and fix what the run makes.

    Args:
        stack: path or address of the stack, or the stack itself if it is open.
        output: as for :func:`~emformer_hub.reconstruct_file`.
        settings: keys of :class:`~emformer_hub.reconstruction.settings.FileSettings`.

    Raises:
        InputError: the stack or a setting is unusable.
    """
    chosen = with_defaults(settings)
    whole, size, confidence = geometry_of(chosen), chosen["voxel_size"], chosen["confidence"]
    check_ensemble(chosen["ensemble"])
    check_mode(chosen["mode"])
    stack, model = OpenStack.of(stack, chosen["reading"]), ModelOnce.of(chosen["model"])
    path, data = stack.path, stack.volume.data
    check_stack(data.shape, data.dtype, path)
    region = chosen["region"] or (slice(0, data.shape[0]), slice(0, data.shape[1]), slice(0, data.shape[2]))
    check_region(region, data.shape, path)
    whole.check_sections(data.shape[0], path)
    geometry = whole.part(region[0])
    padding = tissue(data) if chosen["region"] is None else None
    region = region if padding is None else (region[0], padding.rows, padding.columns)
    margin = _margin(stack, padding)
    _say_what_stays(path, padding, margin)
    _say_if_misaligned(stack)
    part = path if chosen["region"] is None else f"the region of {path}"
    check_stack(tuple(side.stop - side.start for side in region), data.dtype, part)
    repair = choose_repair(stack.volume, chosen["repair"], path)
    repair.check(region)
    geometry.check_gaps(repair.sections(data.shape[0])[region[0]])
    (z, y, x), device = region, choose_device(chosen["device"])
    tile = chosen["tile_zyx"] or choose_tile(
        (z.stop - z.start, y.stop - y.start, x.stop - x.start),
        geometry,
        model.network.config,
        device,
        memory=chosen["memory"],
        workers=chosen["workers"],
        voxel_bytes=data.dtype.itemsize,
    )
    gaps, chunk = Gaps(stack.volume.hidden, margin, repair), None
    for file, dtype in ((output, data.dtype), (chosen["uncertainty"], np.dtype(np.float32))):
        if file is not None:
            check_writable(file, dtype)
            chunk = None if chosen["chunk_zyx"] is None else check_chunks(file, chosen["chunk_zyx"])
    if repair.whole:
        check_mask(repair.sections(len(data)), data.shape)
    if isinstance(data, np.ndarray):  # others are checked part by part, as they are read
        check_volume(np.ma.getdata(data[region]), part, gaps.mask(data, region))
    if confidence is not None:
        model.processor.interval(confidence, geometry, mode=chosen["mode"])  # says what is wrong with it
    statistics = _measured(model.processor, stack, padding, gaps)
    first, starts = stack.volume.translation_nm or (0.0, 0.0, 0.0), (whole.distance(z.start), y.start, x.start)
    at_z, at_y, at_x = (at + start * length for at, start, length in zip(first, starts, size.zyx, strict=True))
    planes_size = geometry.plane_size(size)
    return Job(
        input=absolute(path) if stack.stored else path,
        input_shape=data.shape,
        input_dtype=str(data.dtype),
        input_modified=None
        if is_url(path) or not stack.stored
        else _modified(split_address(Path(plain_address(path)))[0]),
        reading=tuple(sorted((name, _plain(name, value)) for name, value in stack.reading.items())),
        region=((z.start, z.stop), (y.start, y.stop), (x.start, x.stop)),
        model=str(Path(model.name).absolute()) if Path(model.name).is_dir() else model.name,
        weights=model.fingerprint,
        factor=geometry.factor,
        thickness=geometry.thickness,
        offset=geometry.offset,
        z_positions=None if chosen["z_positions"] is None else check_z_positions(chosen["z_positions"]),
        ensemble=chosen["ensemble"],
        mean=statistics.mean,
        std=statistics.std,
        voxel_size=(float(planes_size.z), float(planes_size.y), float(planes_size.x)),
        translation=geometry.plane_origin(size, (at_z, at_y, at_x)),
        output=absolute(output),
        uncertainty=None if chosen["uncertainty"] is None else absolute(chosen["uncertainty"]),
        confidence=confidence,
        confident=None if confidence is None else absolute(confident_path(place(output))),
        repair=repair.listed,
        damage=repair.digest,
        mode=chosen["mode"],
        precision=dtype_name(choose_precision(chosen["precision"], device)),
        tile_zyx=tile,
        padding=None if padding is None else padding.value,
        margin=margin,
        ome_zarr=chosen["ome_zarr"],
        chunk_zyx=chunk,
        version=importlib.metadata.version("emformer-hub"),
    )


def _plain(name: str, value: Any) -> Any:
    """A keyword argument of ``open_volume`` as JSON knows it, good in any folder."""
    if name == "translations":
        return tuple((float(y), float(x)) for y, x in value)
    return absolute(value) if name == "mask" else str(float(value)) if name == "nodata" else value


def _margin(stack: OpenStack, padding: Padding | None) -> float | None:
    """Value of constant margins within the padding, if there are any beside hidden voxels."""
    data, hidden = stack.volume.data, stack.volume.hidden
    if padding is None:
        return margin_value(data, hidden)
    return margin_value(padding.crop(data), None if hidden is None else padding.crop(hidden))


def _say_what_stays(path: str, padding: Padding | None, margin: float | None) -> None:
    """Log which voxels around the tissue were found to be constant."""
    if padding is not None:
        log.warning(
            "%s: beyond rows %d:%d and columns %d:%d every voxel is %g; this padding stays as it is.",
            path,
            padding.rows.start,
            padding.rows.stop,
            padding.columns.start,
            padding.columns.stop,
            padding.value,
        )
    if margin is not None:
        log.warning("%s: its sections have margins of %g, which stay as they are.", path, margin)


def _say_if_misaligned(stack: OpenStack) -> None:
    """Log that sections do not lie over each other, where they do not."""
    data, hidden = stack.volume.data, stack.volume.hidden
    if min(data.shape[1:]) < LEAST_FIELD:
        return  # unrelated sections and misaligned ones are not told apart
    shifts = section_shifts(data if hidden is None else filled(data, hidden))
    note = alignment_note(shifts, moved="translations" in stack.reading)
    if note is not None:
        log.warning("%s: %s", stack.path, note)


def measure_stack(stack: OpenStack, processor: EMformerProcessor) -> IntensityStatistics:
    """Intensities of a stack as its reconstruction measures them: without padding, margins and hidden voxels.

    Raises:
        InputError: the stack has too few sections or no contrast, or holds NaN or infinite voxels.
    """
    data = stack.volume.data
    check_stack(data.shape, data.dtype, stack.path)
    padding = tissue(data)
    gaps = Gaps(stack.volume.hidden, _margin(stack, padding), Repair())
    return _measured(processor, stack, padding, gaps)


def _measured(
    processor: EMformerProcessor, stack: OpenStack, padding: Padding | None, gaps: Gaps
) -> IntensityStatistics:
    """Intensities within the padding and without gaps; where nothing was measured is said by the check of the stack."""
    data = stack.volume.data
    inside = data if padding is None else padding.crop(data)
    rows, columns = (
        (slice(0, data.shape[1]), slice(0, data.shape[2])) if padding is None else (padding.rows, padding.columns)
    )
    mask = gaps.mask(data, (slice(0, data.shape[0]), rows, columns))
    try:
        return processor.measure(inside, mask)
    except InputError:
        check_volume(inside, stack.path, mask)
        raise


def _modified(path: Path) -> float:
    """Time of the last change of a file, or of any file in a folder that is not hidden, seconds.

    A folder itself is changed by any file manager that looks into it.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in path.iterdir() if file.name[0] != "." and file.is_file()] or files
    return max(file.stat().st_mtime for file in files)


def _with_tuples(value: Any) -> Any:
    """Lists as tuples, which JSON does not have."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value

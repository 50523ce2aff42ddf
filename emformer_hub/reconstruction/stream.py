"""Reconstructions of any size: from file to file, a part at a time, and on from where they stopped.

Whatever the format of the output, it is an OME-Zarr in the making; another format is written from that. What fixes a
result is a :class:`Job`, written as JSON beside the output before anything else. Every process that helps reads it,
makes whole parts of the output, and makes them the same; a part counts as done once it is on the disk.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import Region, SectionModel, VoxelSize
from emformer_hub.model_folder import fingerprint
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.reconstruction.blocks import Plan, make_plan
from emformer_hub.reconstruction.runner import ENSEMBLES, Restorer
from emformer_hub.volumes import boxes, check_output, check_volume, open_volume, write_volume
from emformer_hub.volumes.checks import check_region, check_stack
from emformer_hub.volumes.hdf5 import split_address
from emformer_hub.volumes.ome_zarr import OMEZarrWriter
from emformer_hub.volumes.output import ZARR_SUFFIXES, put_in_place
from emformer_hub.volumes.stored import Box

PART_VOXELS = 2**25
"""A part of the output holds about so many voxels at most: a minute or two on a CPU, lost at most when a run is killed,
and 200 MB of volume and uncertainty while it waits to be written."""
CHUNK_PLANES, CHUNK_SIDE = 64, 128

Progress = Callable[[int, int], None]
"""Is told how many blocks are made, and how many there are."""
Scheduler = Callable[["Job", list[int]], Iterable[int]]
"""What makes the parts of these numbers, in any order, and yields each number when its part is on the disk."""


@dataclass(frozen=True)
class Job:
    """All that fixes a result, and where it goes.

    Attributes:
        input: path of the stack; ``input_shape``, ``input_dtype`` and ``input_modified`` say that it is the same still.
        region: of the input, first and last voxel along z, y and x.
        model, weights: its name, and the fingerprint of its weights.
        factor, thickness, offset: how sections sample tissue.
        ensemble: passes that are averaged.
        precision: ``float32`` or ``bfloat16``.
        mean, std: of the whole input, as the processor measures it.
        tile_zyx: the most that the network sees at once.
        voxel_size, translation: of the output, nm.
        output, uncertainty: where they go.
        ome_zarr: version of OME-Zarr.
        version: of this package.
    """

    input: str
    input_shape: tuple[int, int, int]
    input_dtype: str
    input_modified: float
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
    output: str
    uncertainty: str | None
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
        return [Path(path) for path in (self.output, self.uncertainty) if path is not None]


def state_folder(output: Path) -> Path:
    """Beside an output that is in the making: what is known of the run."""
    return output.with_name(f".{output.name}.run")


def partial_output(output: Path) -> Path:
    """Where an output is in the making; the name says nothing of the process, so that another one can go on."""
    return output.with_name(f".{output.name}.partial")


class Parts:
    """A job at work in this process: makes its parts, in any order.

    Raises:
        InputError: the input or the model is not what it was when the job was made.
    """

    def __init__(self, job: Job, device: str | None = None):
        self.job = job
        self.stack = open_volume(job.input).data
        if (self.stack.shape, str(self.stack.dtype)) != (job.input_shape, job.input_dtype):
            raise InputError(
                f"{job.input} is {self.stack.shape} {self.stack.dtype}; the run was begun on {job.input_shape} "
                f"{job.input_dtype}. Begin again with --overwrite."
            )
        network, processor = EMformerModel.from_pretrained(job.model), EMformerProcessor.from_pretrained(job.model)
        if fingerprint(network) != job.weights:
            raise InputError(
                f"{job.model} holds other weights than when the run was begun. Begin again with --overwrite."
            )
        statistics = IntensityStatistics(job.mean, job.std, self.stack.dtype)
        self.restorer = Restorer(
            network, processor, job.sections, statistics, job.ensemble, choose_device(device), job.precision
        )
        (z, y, x) = (stop - start for start, stop in job.region)
        self.plan: Plan = make_plan((z, y, x), job.sections, network.config, job.tile_zyx)

    @cached_property
    def writers(self) -> list[OMEZarrWriter]:
        return [OMEZarrWriter(partial_output(path)) for path in self.job.outputs]

    @cached_property
    def boxes(self) -> list[Box]:
        """Of the output, each a file of it; whole blocks."""
        return list(boxes(self.plan.output_zyx, part_sides(self.plan)))

    def read(self, number: int) -> np.ndarray:
        """The voxels of the input that a part is made from.

        Raises:
            InputError: they cannot be read, or some are NaN or infinite.
        """
        box = self.plan.seen(self.boxes[number])
        z, y, x = (
            slice(first + part.start, first + part.stop) for (first, _), part in zip(self.job.region, box, strict=True)
        )
        seen = np.asarray(self.stack[z, y, x])
        if seen.dtype.kind == "f" and not np.isfinite(seen).all():
            place = np.unravel_index(int((~np.isfinite(seen)).argmax()), seen.shape)
            where = ", ".join(
                f"{axis}={part.start + at}" for axis, part, at in zip("zyx", (z, y, x), place, strict=True)
            )
            raise InputError(
                f"{self.job.input} has NaN or infinite voxels, one at {where}; expected finite grey values. Replace "
                f"them, and begin again with --overwrite."
            )
        return seen

    def num_blocks(self, number: int) -> int:
        """Of a part."""
        return sum(1 for _ in self.plan.blocks(self.boxes[number]))

    def make(self, number: int, seen: np.ndarray, tick: Callable[[], None] = lambda: None) -> list[np.ndarray]:
        """A part of each output, from what is seen for it; ``tick`` is called after each block."""
        box = self.boxes[number]
        begin = [part.start for part in self.plan.seen(box)]
        shape = [part.stop - part.start for part in box]
        parts = [np.empty(shape, dtype) for dtype in (self.stack.dtype, np.float32)[: len(self.job.outputs)]]
        for block in self.plan.blocks(box):
            inside = tuple(
                slice(part.start - first, part.stop - first) for part, first in zip(block.seen, begin, strict=True)
            )
            place = tuple(
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(block.owned, box, strict=True)
            )
            for part, voxels in zip(parts, self.restorer.restore(seen[inside], block), strict=False):
                part[place] = voxels
            tick()
        return parts

    def write(self, number: int, parts: list[np.ndarray]) -> int:
        """Put a part of each output on the disk; the number of the part."""
        for writer, voxels in zip(self.writers, parts, strict=True):
            writer.write(self.boxes[number], voxels)
        return number


@lru_cache(maxsize=1)
def parts_of(job: Job, device: str | None = None) -> Parts:
    """A job at work in this process, which reads input and weights once."""
    return Parts(job, device)


def here(
    job: Job, numbers: list[int], device: str | None = None, tick: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Make parts in this process: one is read ahead, and one is written, while another is computed."""
    parts = parts_of(job, device)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead = [reader.submit(parts.read, number) for number in numbers[:1]]
        behind: Future[int] | None = None
        for place, number in enumerate(numbers, start=1):
            seen = ahead.pop().result()
            ahead += [reader.submit(parts.read, following) for following in numbers[place : place + 1]]
            made = parts.make(number, seen, tick)
            if behind is not None:
                yield behind.result()
            behind = writer.submit(parts.write, number, made)
        if behind is not None:
            yield behind.result()


def part_sides(plan: Plan) -> tuple[int, int, int]:
    """Sides of the parts of an output, (planes, y, x): as many whole blocks as ``PART_VOXELS`` hold."""
    planes, *sides = plan.block_zyx
    most = max(1, math.isqrt(PART_VOXELS // planes))
    y, x = (side * max(1, most // side) for side in sides)
    return (planes, y, x)


def chunk_sides(plan: Plan) -> tuple[int, int, int]:
    """Sides of the chunks, (z, y, x), of which parts hold a whole number."""
    planes, *sides = plan.block_zyx
    z = CHUNK_PLANES if planes >= plan.output_zyx[0] else math.gcd(planes, CHUNK_PLANES)
    y, x = (CHUNK_SIDE if side >= length else side for side, length in zip(sides, plan.output_zyx[1:], strict=True))
    return (z, y, x)


def reconstruct_file(
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
    region: Region | None = None,
    device: str | None = None,
    precision: str = "auto",
    tile_zyx: tuple[int, int, int] | None = None,
    ome_zarr: str = "0.5",
    overwrite: bool = False,
    resume: bool = False,
    scheduler: Scheduler | None = None,
    progress: Progress = lambda made, blocks: None,
) -> Path:
    """Reconstruct a stack that need not fit into memory.

    The output, and the uncertainty beside it, appear under their names once they are complete. Until then they lie
    beside their place under hidden names, with the list of what is done, and a run that was killed goes on with
    ``resume``. Voxels are those of :func:`reconstruct`, to the bit.

    Args:
        path: a stack, in any format of ``open_volume``; Zarr, HDF5 and uncompressed TIFF are never loaded as a whole.
        output: its suffix chooses the format, as for ``create_volume``. OME-Zarr is written as it is made; any other
            format from an OME-Zarr under a hidden name, which takes its place on the disk too until the end. The record
            of the run lies beside it as ``.json``.
        voxel_size: of the stack, nm.
        factor, model, thickness, offset, ensemble, device, precision, tile_zyx: as for :func:`reconstruct`; the model
            by name.
        uncertainty: also write it here, in any of these formats.
        region: only this part of the stack; intensities are measured on the whole stack, so that a trial looks as the
            whole will.
        ome_zarr: version of an OME-Zarr, ``"0.4"`` or ``"0.5"``.
        overwrite: replace outputs that exist, and forget a run that was not finished.
        resume: go on with a run that was not finished.
        scheduler: what makes the parts; default: this process.
        progress: is told how many blocks are made, and how many there are: after each block in this process, after each
            part elsewhere.

    Returns:
        The record of the run.

    Raises:
        InputError: the stack, an argument or an output is unusable; there is not enough disk; or what is to be resumed
            is another run, or none, or is at work still.
    """
    begin = time.time()
    job = _job(
        str(path),
        str(output),
        voxel_size=voxel_size,
        sections=SectionModel(factor, thickness, offset),
        model=model,
        ensemble=ensemble,
        uncertainty=None if uncertainty is None else str(uncertainty),
        region=region,
        precision=str(choose_precision(precision, choose_device(device))).removeprefix("torch."),
        tile_zyx=tile_zyx,
        ome_zarr=ome_zarr,
    )
    for one in job.outputs:
        check_output(one, overwrite or resume)
    with _alone(job):
        parts = parts_of(job, device)
        _begin(job, parts, resume=resume, overwrite=overwrite)
        done = _done(job)
        numbers = [number for number in range(len(parts.boxes)) if number not in done]
        made = sum(map(parts.num_blocks, done))

        def tick(blocks: int = 1) -> None:
            nonlocal made
            made += blocks
            progress(made, len(parts.plan))

        tick(0)
        _write_done(job, done)
        at_work = here(job, numbers, device, tick) if scheduler is None else scheduler(job, numbers)
        with (job.folder / "done").open("a") as file:
            for number in at_work:
                file.write(f"{number}\n")
                file.flush()
                os.fsync(file.fileno())
                if scheduler is not None:
                    tick(parts.num_blocks(number))
        seconds = time.time() - begin
        for writer, final in zip(parts.writers, job.outputs, strict=True):
            if writer.path.exists():  # a run may have been killed between two outputs
                _complete(job, writer, final)
        record = Path(output).with_name(f"{Path(output).name}.json")
        facts = {**dataclasses.asdict(job), "parts": len(parts.boxes), "made_now": len(numbers), "seconds_now": seconds}
        record.write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(job.folder)
    return record


def _job(
    path: str,
    output: str,
    *,
    voxel_size: VoxelSize,
    sections: SectionModel,
    model: str,
    region: Region | None,
    ensemble: int,
    **others: Any,
) -> Job:
    """Look at the stack and the model, and fix what is to be made."""
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
    if isinstance(volume.data, np.ndarray):  # others are looked at part by part, as they are read
        check_volume(volume.data[z, y, x], part)
    weights = fingerprint(EMformerModel.from_pretrained(model))
    statistics = EMformerProcessor.from_pretrained(model).measure(volume.data)
    planes_size = voxel_size.with_z(voxel_size.z / sections.factor)
    first = volume.translation_nm or (0.0, 0.0, 0.0)
    at_z, at_y, at_x = (
        place + start * length for place, (start, _), length in zip(first, chosen, voxel_size.zyx, strict=True)
    )
    return Job(
        input=str(Path(path).absolute()),
        input_shape=(depth, height, width),
        input_dtype=str(volume.data.dtype),
        input_modified=split_address(Path(path))[0].stat().st_mtime,
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
        version=importlib.metadata.version("emformer-hub"),
        **{**others, "uncertainty": others["uncertainty"] and str(Path(others["uncertainty"]).absolute())},
    )


def _begin(job: Job, parts: Parts, *, resume: bool, overwrite: bool) -> None:
    """Make the outputs, or see that those that are there belong to this job."""
    file = job.folder / "job.json"
    if file.exists() and resume:
        _check_same(Job.load(file), job)
        return
    if file.exists() and not overwrite and _done(job):
        raise InputError(
            f"{job.output} was begun by a run that did not finish ({len(_done(job))} of {len(parts.boxes)} parts are "
            f"done); add --resume to go on with it, or --overwrite to begin again."
        )
    if resume and all(path.exists() for path in job.outputs):
        raise InputError(f"{job.output} is complete; there is nothing to resume. Give --overwrite to make it again.")
    if resume and not file.exists():
        raise InputError(f"there is no unfinished run of {job.output} to resume; leave out --resume to begin one.")
    for path in job.outputs:
        shutil.rmtree(partial_output(path), ignore_errors=True)
    (job.folder / "done").unlink(missing_ok=True)
    shape = parts.plan.output_zyx
    _check_disk(job, math.prod(shape))
    for path, dtype in zip(job.outputs, (parts.stack.dtype, np.dtype(np.float32)), strict=False):
        OMEZarrWriter.create(
            partial_output(path),
            shape,
            dtype,
            VoxelSize(*job.voxel_size),
            job.translation,
            version=job.ome_zarr,
            chunk_zyx=chunk_sides(parts.plan),
            part_zyx=part_sides(parts.plan),
        )
    job.save(file)


def _complete(job: Job, writer: OMEZarrWriter, final: Path) -> None:
    """Give what was made its format and its name."""
    if final.suffix.lower() in ZARR_SUFFIXES:
        writer.finish()
        put_in_place(writer.path, final)
        return
    made = open_volume(writer.path).data
    try:
        write_volume(final, made, VoxelSize(*job.voxel_size), translation_nm=job.translation, overwrite=True)
    except InputError as error:
        raise InputError(f"{error} All is made: the same command with --resume writes it.") from error
    shutil.rmtree(writer.path)


def _check_same(begun: Job, job: Job) -> None:
    different = [
        f"{field.name} was {getattr(begun, field.name)!r}, is {getattr(job, field.name)!r}"
        for field in dataclasses.fields(Job)
        if getattr(begun, field.name) != getattr(job, field.name)
    ]
    if different:
        raise InputError(
            f"the unfinished run of {job.output} is another one: {'; '.join(different)}. Resume it as it was begun, or "
            f"begin again with --overwrite."
        )


def _check_disk(job: Job, voxels: int) -> None:
    needed = 0.0
    for path, dtype in zip(job.outputs, (job.input_dtype, "float32"), strict=False):
        size = voxels * np.dtype(dtype).itemsize
        # compression saves less than half of an electron micrograph
        needed += size / 2 + (0 if path.suffix.lower() in ZARR_SUFFIXES else size)
    free = shutil.disk_usage(Path(job.output).parent).free
    if needed > free:
        raise InputError(
            f"{job.output} needs about {needed / 1e9:.1f} GB of disk, of which {free / 1e9:.1f} are free. Free "
            f"some, choose another folder, or a part of the stack with --roi."
        )


def _done(job: Job) -> set[int]:
    """The parts that are on the disk; a line that was cut when the run was killed does not count."""
    file = job.folder / "done"
    return {int(line) for line in file.read_text().split("\n")[:-1]} if file.exists() else set()


def _write_done(job: Job, done: set[int]) -> None:
    """Write the list anew, without a line that was cut; whole, or not at all."""
    partial = job.folder / "done.partial"
    partial.write_text("".join(f"{number}\n" for number in sorted(done)))
    os.replace(partial, job.folder / "done")


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """See to it that nobody else makes this output at the same time."""
    from filelock import FileLock, Timeout

    job.folder.mkdir(exist_ok=True)
    lock = FileLock(job.folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{job.output} is being made by another run; wait for it, or choose another output."
        ) from error
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{job.output} could not be written: {error.strerror or error}. What is done stays: free some disk, and go "
            f"on with --resume."
        ) from error
    finally:
        if not _done(job):  # or all is done, and in its place
            for path in (*map(partial_output, job.outputs), job.folder):
                shutil.rmtree(path, ignore_errors=True)
        lock.release()


def _with_tuples(value: Any) -> Any:
    """JSON knows no tuples."""
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value

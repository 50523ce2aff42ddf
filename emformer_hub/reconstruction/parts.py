"""Reconstructions of any size: from file to file, a part at a time, and on from where they stopped.

Whatever the format of the output, it is an OME-Zarr in the making; another format is written from that. What fixes a
result is a :class:`Job`, written as JSON beside the output before anything else. Every process that helps reads it,
makes whole parts of the output, and makes them the same; a part counts as done once it is on the disk.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.files import put_in_place
from emformer_hub.geometry import Region, SectionModel, VoxelSize
from emformer_hub.model_files import fingerprint
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.reconstruction.blocks import Block, Plan, make_plan
from emformer_hub.reconstruction.repair import Repair, choose_repair
from emformer_hub.reconstruction.restorer import ENSEMBLES, Restorer, within
from emformer_hub.volumes import boxes, check_output, check_volume, open_volume, write_volume
from emformer_hub.volumes.checks import check_mask, check_region, check_stack
from emformer_hub.volumes.hdf5 import split_address
from emformer_hub.volumes.ome_zarr import OMEZarrWriter, pyramid
from emformer_hub.volumes.output import ZARR_SUFFIXES
from emformer_hub.volumes.remote import absolute, is_url
from emformer_hub.volumes.stored import Box

PART_VOXELS = 2**24
"""A part of the output holds about so many voxels at most: a minute or two on a CPU, lost at most when a run is killed,
and 200 MB of volume and uncertainty while it waits to be written."""
CHUNK_PLANES, CHUNK_SIDE = 64, 128
NETWORK_BYTES = 10**9
"""That the network takes at most for a block of the default tile, on a CPU."""
DAMAGE = "damage.npz"
"""Beside the job: where sections are damaged."""
TOLERANCE = 0.5
"""Standard deviations of the stack's intensities: less than the step from cytoplasm to a membrane."""
PARTS_AT_ONCE = 3
"""In memory: one is made, one is written, and input is read ahead."""

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Is told how many blocks are made, and how many there are."""


class Made(NamedTuple):
    """A part that is on the disk.

    Attributes:
        number: of the part.
        read, compute, write: seconds that it took.
        squares, compared, furthest: sum of squares, count and greatest of the differences between voxels that were
            measured and sections cut from the part, grey levels.
    """

    number: int
    read: float
    compute: float
    write: float
    squares: float = 0.0
    compared: float = 0.0
    furthest: float = 0.0


Scheduler = Callable[["Job", list[int]], Iterable[Made]]
"""What makes the parts of these numbers, stage by stage, and yields each when it is on the disk."""


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
        consistent: whether planes are made to give the sections of the input.
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
    consistent: bool
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
            network,
            processor,
            job.sections,
            statistics,
            job.ensemble,
            choose_device(device),
            job.precision,
            job.consistent,
        )
        (z, y, x) = (stop - start for start, stop in job.region)
        self.plan: Plan = make_plan((z, y, x), job.sections, network.config, job.tile_zyx)

    @cached_property
    def repair(self) -> Repair:
        return Repair.load(self.job.repair, self.job.folder / DAMAGE)

    @cached_property
    def writers(self) -> list[OMEZarrWriter]:
        return [OMEZarrWriter(partial_output(path)) for path in self.job.outputs]

    @cached_property
    def boxes(self) -> Sequence[Box]:
        """Of the output, each a file of it; whole blocks."""
        return boxes(self.plan.output_zyx, part_sides(self.plan))

    @cached_property
    def pyramid(self) -> list[Sequence[Box]]:
        """Boxes of the coarser levels, the finest first; their parts are numbered after those of the output."""
        if not any(_is_zarr(path) for path in self.job.outputs):
            return []
        levels = pyramid(self.plan.output_zyx, VoxelSize(*self.job.voxel_size), self.job.translation)
        return [boxes(level.shape, part_sides(self.plan)) for level in levels[1:]]

    def __len__(self) -> int:
        return len(self.boxes) + sum(map(len, self.pyramid))

    def stages(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        """The same numbers, ascending; parts of one stage are made in any order, once all before it are done."""
        for _, stage in itertools.groupby(sorted(numbers), lambda number: self.place(number)[0]):
            yield list(stage)

    def place(self, number: int) -> tuple[int, Box]:
        """Level and box of a part; level 0 is the output itself."""
        for level, inside in enumerate((self.boxes, *self.pyramid)):
            if number < len(inside):
                return level, inside[number]
            number -= len(inside)
        raise IndexError(number)

    def read(self, number: int) -> np.ndarray:
        """The voxels of the input that a part is made from.

        Raises:
            InputError: they cannot be read, or some are NaN or infinite.
        """
        z, y, x = self._of_input(self.plan.seen(self.boxes[number]))
        seen = np.asarray(self.stack[z, y, x])
        if seen.dtype.kind != "f":
            return seen
        mask = self.repair.mask((z, y, x))
        broken = ~np.isfinite(seen) if mask is None else ~np.isfinite(seen) & ~mask
        if broken.any():
            place = np.unravel_index(int(broken.argmax()), seen.shape)
            where = ", ".join(
                f"{axis}={part.start + at}" for axis, part, at in zip("zyx", (z, y, x), place, strict=True)
            )
            raise InputError(
                f"{self.job.input} has NaN or infinite voxels, one at {where}; expected finite grey values. Replace "
                f"them, or name the section with --repair, and begin again with --overwrite."
            )
        return seen

    def _of_input(self, box: Box) -> Box:
        """A box of the region, as one of the whole input."""
        z, y, x = (
            slice(first + part.start, first + part.stop, 1)
            for (first, _), part in zip(self.job.region, box, strict=True)
        )
        return (z, y, x)

    def num_blocks(self, number: int) -> int:
        """That the network makes for a part: none for one of the pyramid."""
        level, box = self.place(number)
        return 0 if level else self.plan.num_blocks(box)

    def make(self, number: int, seen: np.ndarray, tick: Callable[[], None] = lambda: None) -> list[np.ndarray]:
        """A part of each output, from what is seen for it; ``tick`` is called after each block."""
        box, whole = self.boxes[number], self.plan.seen(self.boxes[number])
        parts = [np.empty([part.stop - part.start for part in box], dtype) for dtype in self.job.dtypes]
        for block in self.plan.blocks(box):
            mask = self.repair.mask(self._of_input(block.seen))
            made = list(self.restorer.restore(seen[within(block.seen, whole)], block, mask))
            if self.job.confidence is not None:
                made.append(self._confident(made[1], block, mask))
            if self.job.uncertainty is None:
                del made[1]
            for part, voxels in zip(parts, made, strict=True):
                part[within(block.owned, box)] = voxels
            tick()
        return parts

    def _confident(self, uncertainty: np.ndarray, block: Block, mask: np.ndarray | None) -> np.ndarray:
        """Which voxels are right to within ``TOLERANCE``, with the probability that was asked for."""
        assert self.job.confidence is not None
        processor, sections = self.restorer.processor, self.job.sections
        width = uncertainty * np.float32(processor.interval(self.job.confidence, sections))
        if mask is not None:
            of = sections.sections_of(len(width), block.z.owned.start).clip(max=block.z.seen.stop - 1)
            hidden = mask[of - block.z.seen.start, block.y.inside, block.x.inside]
            width[hidden] = uncertainty[hidden] * np.float32(processor.interval(self.job.confidence, sections, True))
        return width <= TOLERANCE * self.job.std

    def residual(self, number: int, seen: np.ndarray, volume: np.ndarray) -> tuple[float, float, float]:
        """Sum of squares, count and greatest of the differences between a part, cut into sections, and those measured.

        Sections of which the part holds a piece only are left out, and so are voxels that were filled.
        """
        box, sections = self.boxes[number], self.job.sections
        first, last = (
            round_(end / sections.factor) for round_, end in ((math.ceil, box[0].start), (math.floor, box[0].stop))
        )
        whole = self.plan.seen(box)
        squares, compared, furthest = 0.0, 0.0, 0.0
        if last <= first:
            return squares, compared, furthest
        for section, weights in enumerate(sections.matrix(last, first), start=first):
            (used,) = np.nonzero(weights)
            begin = sections.first_plane(first) - box[0].start
            planes = volume[begin + used[0] : begin + used[-1] + 1].astype(np.float32)
            cut = np.tensordot(weights[used[0] : used[-1] + 1].astype(np.float32), planes, axes=1)
            inside = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box[1:], whole[1:], strict=True))
            measured = seen[(section - whole[0].start, *inside)]
            mask = self.repair.mask(self._of_input((slice(section, section + 1, 1), *box[1:])))
            apart = np.abs(cut - measured) if mask is None else np.abs(cut - measured)[~mask[0]]
            squares += float(np.square(apart, dtype=np.float64).sum())
            compared += apart.size
            furthest = max(furthest, float(apart.max(initial=0.0)))
        return squares, compared, furthest

    def write(self, number: int, parts: list[np.ndarray]) -> None:
        """Put a part of each output on the disk."""
        for writer, voxels in zip(self.writers, parts, strict=True):
            writer.write(self.boxes[number], voxels)

    def coarsen(self, number: int) -> None:
        """Make a part of the pyramid of each output that is to have one."""
        level, box = self.place(number)
        for writer, final in zip(self.writers, self.job.outputs, strict=True):
            if _is_zarr(final):
                writer.coarsen(level, box)

    def complete(self, number: int) -> Made:
        """Make a part of any stage, from file to file."""
        if number >= len(self.boxes):
            _, seconds = _timed(self.coarsen, number)
            return Made(number, 0.0, 0.0, seconds)
        seen, read = _timed(self.read, number)
        made, compute = _timed(self.make, number, seen)
        _, write = _timed(self.write, number, made)
        return Made(number, read, compute, write, *self.residual(number, seen, made[0]))


@lru_cache(maxsize=1)
def parts_of(job: Job, device: str | None = None) -> Parts:
    """A job at work in this process, which reads input and weights once."""
    return Parts(job, device)


def here(
    job: Job, numbers: list[int], device: str | None = None, tick: Callable[[], None] = lambda: None
) -> Iterator[Made]:
    """Make parts in this process: one is read ahead, and one is written, while another is computed."""
    parts = parts_of(job, device)
    for stage in parts.stages(numbers):
        yield from (_overlapped(parts, stage, tick) if stage[0] < len(parts.boxes) else map(parts.complete, stage))


def _overlapped(parts: Parts, numbers: list[int], tick: Callable[[], None]) -> Iterator[Made]:
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead = [reader.submit(_timed, parts.read, number) for number in numbers[:1]]
        behind: list[tuple[Made, Future[tuple[None, float]]]] = []
        for place, number in enumerate(numbers, start=1):
            seen, read = ahead.pop().result()
            ahead += [reader.submit(_timed, parts.read, following) for following in numbers[place : place + 1]]
            made, compute = _timed(parts.make, number, seen, tick)
            yield from map(_written, behind)
            part = Made(number, read, compute, 0.0, *parts.residual(number, seen, made[0]))
            behind = [(part, writer.submit(_timed, parts.write, number, made))]
        yield from map(_written, behind)


def _written(part: tuple[Made, Future[tuple[None, float]]]) -> Made:
    made, writing = part
    return made._replace(write=writing.result()[1])


def _timed(function: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    begin = time.perf_counter()
    return function(*arguments), time.perf_counter() - begin


@dataclass(frozen=True)
class Needs:
    """What a run takes of a machine, about, and what is there; bytes.

    Attributes:
        disk, free_disk: for the outputs, at the most that lies there at once.
        memory, free_memory: for the network on its largest block, and parts that are read, made and written.
    """

    disk: int
    free_disk: int
    memory: int
    free_memory: int

    def check(self, output: str) -> None:
        """Raise ``InputError`` if the run does not fit."""
        if self.disk > self.free_disk:
            raise InputError(
                f"{output} needs about {self.disk / 1e9:.1f} GB of disk, of which {self.free_disk / 1e9:.1f} are free. "
                f"Free some, choose another folder, or a part of the stack with --roi."
            )
        if self.memory > self.free_memory:
            raise InputError(
                f"{output} needs about {self.memory / 1e9:.1f} GB of memory, of which {self.free_memory / 1e9:.1f} are "
                f"free. Close other programs, or use another machine."
            )


def needs(job: Job, plan: Plan) -> Needs:
    """What a run takes of this machine."""
    from psutil import virtual_memory

    voxels, disk = math.prod(plan.output_zyx), 0.0
    sizes = [dtype.itemsize for dtype in job.dtypes]
    for path, size in zip(job.outputs, sizes, strict=True):
        # compression saves less than half of an electron micrograph; a pyramid is a seventh of its image
        disk += voxels * size * (8 / 7 / 2 if _is_zarr(path) else 3 / 2)
    part = math.prod(map(min, part_sides(plan), plan.output_zyx))
    memory = NETWORK_BYTES + PARTS_AT_ONCE * part * sum(sizes)
    free = shutil.disk_usage(Path(job.output).parent).free
    return Needs(int(disk), free, memory, virtual_memory().available)


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        needs: of disk and memory.
        voxels, parts, blocks: of the output.
        block_seconds: that the network took for one block, on this device.
    """

    needs: Needs
    voxels: int
    parts: int
    blocks: int
    block_seconds: float

    @property
    def seconds(self) -> float:
        """Of one process; reading, writing and the pyramid add a twentieth or so, on a disk of this machine."""
        return self.blocks * self.block_seconds


def forecast(job: Job, device: str | None = None) -> Forecast:
    """Make one block in the middle of the stack, to say what the whole will take; nothing is written.

    Raises:
        InputError: the stack cannot be read.
    """
    parts = parts_of(job, device)
    number = len(parts.boxes) // 2
    whole, seen = parts.plan.seen(parts.boxes[number]), parts.read(number)
    blocks = list(parts.plan.blocks(parts.boxes[number]))
    block = blocks[len(blocks) // 2]
    seconds = min(
        _timed(parts.restorer.restore, seen[within(block.seen, whole)], block)[1] for _ in range(2)
    )  # the first one warms up
    share = math.prod(part.stop - part.start for part in block.owned) / math.prod(parts.plan.output_zyx)
    of_all = seconds / share / len(parts.plan)  # blocks at the end of an axis are smaller
    return Forecast(needs(job, parts.plan), math.prod(parts.plan.output_zyx), len(parts.boxes), len(parts.plan), of_all)


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
    confidence: float | None = None,
    region: Region | None = None,
    repair: str | Sequence[int] = "none",
    consistent: bool = False,
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
        confidence: also write which voxels are right, with this probability (0 to 0.99), to within half a standard
            deviation of the stack's intensities: 1 or 0, uint8, beside the output as ``.confident``.
        repair: ``"none"``; ``"auto"``, sections that an inspection flags; or numbers of sections, from 0. They are
            filled in the same pass (:class:`~emformer_hub.reconstruction.repair.Repair`); no other voxel of the input
            is. The record lists them.
        consistent: as for :func:`reconstruct`. Without it too, the record says how far sections cut from the output are
            from those of the input.
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
    repaired = Repair() if repair == "none" else choose_repair(open_volume(path).data, repair, str(path))
    job = make_job(
        path,
        output,
        voxel_size=voxel_size,
        factor=factor,
        model=model,
        thickness=thickness,
        offset=offset,
        ensemble=ensemble,
        uncertainty=uncertainty,
        confidence=confidence,
        region=region,
        repair=repaired,
        consistent=consistent,
        device=device,
        precision=precision,
        tile_zyx=tile_zyx,
        ome_zarr=ome_zarr,
    )
    for one in job.outputs:
        check_output(one, overwrite or resume)
    with _alone(job):
        parts = parts_of(job, device)
        _begin(job, parts, repaired, resume=resume, overwrite=overwrite)
        done = _done(job)
        numbers = [number for number in range(len(parts)) if number not in done]
        made = sum(map(parts.num_blocks, done))

        def tick(blocks: int = 1) -> None:
            nonlocal made
            made += blocks
            progress(made, len(parts.plan))

        tick(0)
        _write_done(job, done)
        at_work = here(job, numbers, device, tick) if scheduler is None else scheduler(job, numbers)
        with (job.folder / "done").open("a") as file:
            for part in at_work:
                done[part.number] = part
                file.write(_line(part))
                file.flush()
                os.fsync(file.fileno())
                if scheduler is not None and (blocks := parts.num_blocks(part.number)):
                    tick(blocks)
        for writer, final in zip(parts.writers, job.outputs, strict=True):
            if writer.path.exists():  # a run may have been killed between two outputs
                _complete(job, writer, final)
        record = Path(output).with_name(f"{Path(output).name}.json")
        facts = {
            **dataclasses.asdict(job),
            "parts": len(parts.boxes),
            "made_now": sum(number < len(parts.boxes) for number in numbers),
            "seconds_now": time.time() - begin,
            "seconds": _seconds(parts, done.values()),
            "residual": _residual(done.values()),
        }
        record.write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(job.folder)
    return record


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
    region: Region | None = None,
    repair: Repair | None = None,
    consistent: bool = False,
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
        consistent=consistent,
        precision=str(choose_precision(precision, choose_device(device))).removeprefix("torch."),
        tile_zyx=tile_zyx,
        ome_zarr=ome_zarr,
        version=importlib.metadata.version("emformer-hub"),
    )


def _begin(job: Job, parts: Parts, repair: Repair, *, resume: bool, overwrite: bool) -> None:
    """Make the outputs, or see that those that are there belong to this job."""
    file = job.folder / "job.json"
    if file.exists() and resume:
        _check_same(Job.load(file), job)
        return
    if file.exists() and not overwrite and _done(job):
        raise InputError(
            f"{job.output} was begun by a run that did not finish ({len(_done(job))} of {len(parts)} parts are "
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
    needs(job, parts.plan).check(job.output)
    if repair.damage:
        repair.save(job.folder / DAMAGE)
    for path, dtype in zip(job.outputs, job.dtypes, strict=True):
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


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() in ZARR_SUFFIXES


def _seconds(parts: Parts, done: Iterable[Made]) -> dict[str, float]:
    """What all parts took, added up over runs and workers: reading, network, writing, and the pyramid."""
    fine = [part for part in done if part.number < len(parts.boxes)]
    pyramid = [part for part in done if part.number >= len(parts.boxes)]
    return {
        "reading": sum(part.read for part in fine),
        "network": sum(part.compute for part in fine),
        "writing": sum(part.write for part in fine),
        "pyramid": sum(part.write for part in pyramid),
    }


def _residual(done: Iterable[Made]) -> dict[str, float] | None:
    """How far sections cut from the output are from those measured, grey levels."""
    parts = list(done)
    compared = sum(part.compared for part in parts)
    if not compared:
        return None
    rms = math.sqrt(sum(part.squares for part in parts) / compared)
    return {"rms": rms, "maximum": max(part.furthest for part in parts)}


def _complete(job: Job, writer: OMEZarrWriter, final: Path) -> None:
    """Give what was made its format and its name."""
    if _is_zarr(final):
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


def _done(job: Job) -> dict[int, Made]:
    """The parts that are on the disk, by number; a line that was cut when the run was killed does not count."""
    file = job.folder / "done"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    parts = (Made(int(number), *map(float, seconds)) for number, *seconds in map(str.split, lines))
    return {part.number: part for part in parts}


def _line(part: Made) -> str:
    number, *figures = part
    return " ".join([str(number), *(f"{figure:.9g}" for figure in figures)]) + "\n"


def _write_done(job: Job, done: dict[int, Made]) -> None:
    """Write the list anew, without a line that was cut; whole, or not at all."""
    partial = job.folder / "done.partial"
    partial.write_text("".join(map(_line, done.values())))
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

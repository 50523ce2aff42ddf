"""Parts of an output: what is read, computed and written for each, in any order and by any process."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from emformer_hub.devices import choose_device
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.processing_emformer import IntensityStatistics
from emformer_hub.reconstruction.blocks import Block, Plan, make_plan
from emformer_hub.reconstruction.gaps import Gaps, Seen, put_back, sections_of_planes
from emformer_hub.reconstruction.job import DAMAGE, Job, is_zarr_path, partial_output
from emformer_hub.reconstruction.repair import Repair
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import ModelOnce, OpenStack
from emformer_hub.uncertainty import half_width, sure
from emformer_hub.volumes import boxes
from emformer_hub.volumes.boxes import Box, within
from emformer_hub.volumes.checks import unmeasured
from emformer_hub.volumes.ome_zarr import OMEZarrWriter, pyramid
from emformer_hub.volumes.remote import Remote, Unfinished
from emformer_hub.volumes.unmeasured import not_measured

PART_VOXELS = 2**24
"""Most voxels in a part of the output: a minute or two of work on a CPU, which is lost if the run is killed, and 200 MB
of volume and uncertainty that wait to be written."""
CHUNK_PLANES, CHUNK_SIDE = 64, 128
TOLERANCE = 0.5
"""Largest error of a confident voxel, in standard deviations of the stack's intensities: less than the step from
cytoplasm to a membrane."""

Result = TypeVar("Result")


class Made(NamedTuple):
    """A finished part, which is on the disk.

    Attributes:
        number: number of the part.
        read, compute, write: seconds that reading, computing and writing took.
        squares, compared, furthest: sum of squares, number and maximum of the differences between measured voxels and
            sections cut from the part, in grey levels.
        filled, kept: numbers of output voxels of which nothing was measured: predicted ones, and those that stayed.
    """

    number: int
    read: float
    compute: float
    write: float
    squares: float = 0.0
    compared: float = 0.0
    furthest: float = 0.0
    filled: float = 0.0
    kept: float = 0.0


Scheduler = Callable[[Job, list[int], str | None], Iterable[Made]]
"""A function that makes the parts with these numbers, stage by stage, on the device that was asked for, and yields each
once it is on the disk."""


class Parts:
    """The parts of a job, which this process makes in any order.

    Args:
        job: the job.
        device: device that computes; default: a GPU if there is one.
        stack: the input, if it is open already.
        model: the model, if it is loaded already.

    Raises:
        InputError: the input or the model is not what it was when the job was made.
    """

    def __init__(
        self, job: Job, device: str | None = None, *, stack: OpenStack | None = None, model: ModelOnce | None = None
    ):
        self.job, self.geometry = job, job.geometry
        self.volume = OpenStack.of(stack or job.input, job.chosen).volume
        self.stack = self.volume.data
        if (self.stack.shape, str(self.stack.dtype)) != (job.input_shape, job.input_dtype):
            raise InputError(
                f"{job.input} is {self.stack.shape} {self.stack.dtype}; the run began on {job.input_shape} "
                f"{job.input_dtype}. Begin again with --overwrite."
            )
        model = ModelOnce.of(model or job.model)
        if model.fingerprint != job.weights:
            raise InputError(f"{job.model} holds other weights than when the run began. Begin again with --overwrite.")
        statistics = IntensityStatistics(job.mean, job.std, self.stack.dtype)
        self.restorer = Restorer(
            model.network,
            model.processor,
            self.geometry,
            statistics,
            job.ensemble,
            choose_device(device),
            job.precision,
            job.mode,
        )
        (z, y, x) = (stop - start for start, stop in job.region)
        self.plan: Plan = make_plan((z, y, x), self.geometry, model.network.config, job.tile_zyx)

    @cached_property
    def gaps(self) -> Gaps:
        """Where the stack is not to be believed."""
        repair = Repair.load(self.job.repair, self.job.folder / DAMAGE)
        return Gaps(self.volume.hidden, self.job.margin, repair)

    @cached_property
    def writers(self) -> list[OMEZarrWriter]:
        """Writers of the unfinished outputs."""
        return [OMEZarrWriter(self.unfinished(path)) for path in self.job.outputs]

    def unfinished(self, output: Path | Remote) -> Path | Remote:
        """Place of an output while it is made: hidden beside it; in a bucket, which renames nothing, where it stays."""
        if isinstance(output, Remote) and self.is_made_in_place(output):
            return Unfinished(output.url)
        return partial_output(output)

    @cached_property
    def boxes(self) -> Sequence[Box]:
        """Box of the output that each part fills: whole blocks, and one file."""
        return boxes(self.plan.output_zyx, part_sides(self.plan))

    def is_made_in_place(self, output: Path | Remote) -> bool:
        """Whether an output is an OME-Zarr that only needs its name at the end; any other is written from one then."""
        wanted = self.job.chunk_zyx
        fits = wanted is None or chunk_sides(self.plan, wanted) == wanted
        return is_zarr_path(output) and self.job.padding is None and fits

    @cached_property
    def pyramid(self) -> list[Sequence[Box]]:
        """Boxes of the coarser levels, finest first; their parts are numbered after those of the output."""
        if not any(self.is_made_in_place(path) for path in self.job.outputs):
            return []
        levels = pyramid(self.plan.output_zyx, VoxelSize(*self.job.voxel_size), self.job.translation)
        return [boxes(level.shape, part_sides(self.plan)) for level in levels[1:]]

    def __len__(self) -> int:
        return len(self.boxes) + sum(map(len, self.pyramid))

    def stages(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        """Group part numbers into stages: within a stage in any order, one stage after the other."""
        for _, stage in itertools.groupby(sorted(numbers), lambda number: self.place(number)[0]):
            yield list(stage)

    def place(self, number: int) -> tuple[int, Box]:
        """Level of the pyramid and box of a part; level 0 is the output itself."""
        for level, inside in enumerate((self.boxes, *self.pyramid)):
            if number < len(inside):
                return level, inside[number]
            number -= len(inside)
        raise IndexError(number)

    def read(self, number: int) -> Seen:
        """Read the voxels of the input that a part is computed from.

        Raises:
            InputError: they cannot be read, or some are NaN or infinite.
        """
        z, y, x = self._of_input(self.plan.input_box(self.boxes[number]))
        seen = self.gaps.see(self.stack, (z, y, x), slice(*self.job.region[0]))
        found = not_measured(seen.voxels, seen.hidden)
        if found is not None:
            broken, value = found
            place = np.unravel_index(int(broken.argmax()), broken.shape)
            where = (f"{axis}={part.start + at}" for axis, part, at in zip("zyx", (z, y, x), place, strict=True))
            raise unmeasured(self.job.input, value, ", ".join(where))
        return seen

    def _of_input(self, box: Box) -> Box:
        """A box of the region in coordinates of the whole input."""
        z, y, x = (
            slice(first + part.start, first + part.stop, 1)
            for (first, _), part in zip(self.job.region, box, strict=True)
        )
        return (z, y, x)

    def num_blocks(self, number: int) -> int:
        """Number of blocks that the network computes for a part; none for a part of the pyramid."""
        level, box = self.place(number)
        return 0 if level else self.plan.num_blocks(box)

    def make(self, number: int, seen: Seen, tick: Callable[[float], None] = lambda blocks: None) -> list[np.ndarray]:
        """Compute a part of each output from its input voxels; ``tick`` is called with each advance, in blocks."""
        box, whole = self.boxes[number], self.plan.input_box(self.boxes[number])
        parts = [np.empty([part.stop - part.start for part in box], dtype) for dtype in self.job.dtypes]
        sections, inside_yx = self._sections(number), self._rows_and_columns(number)
        kept = None if seen.kept is None else seen.kept[:, *inside_yx]
        for block in self.plan.blocks(box):
            planes, *place = within(block.output, box)
            if kept is not None and kept[sections[planes]][:, *place].all():
                tick(1)
                continue
            inside = within(block.input, whole)
            mask = None if seen.hidden is None else seen.hidden[inside]
            restored = list(self.restorer.restore(seen.voxels[inside], block, mask, advances(tick)))
            if self.job.confidence is not None:
                restored.append(self._confident(restored[1], block, mask))
            if self.job.uncertainty is None:
                del restored[1]
            for part, voxels in zip(parts, restored, strict=True):
                part[within(block.output, box)] = voxels
        values = {self.job.uncertainty: 0.0, self.job.confident: 1.0}
        whole_planes = Seen(seen.voxels[:, *inside_yx], None, kept)
        put_back(parts, [values.get(str(path)) for path in self.job.outputs], whole_planes, sections)
        return parts

    def _rows_and_columns(self, number: int) -> tuple[slice, slice]:
        """Rows and columns of a part within what it is computed from."""
        box = self.boxes[number]
        _, y, x = within((slice(0, 0), *box[1:]), (slice(0, 0), *self.plan.input_box(box)[1:]))
        return y, x

    def _sections(self, number: int) -> np.ndarray:
        """The section that each plane of a part belongs to, counted from the first that it is computed from."""
        planes, seen = self.boxes[number][0], self.plan.input_box(self.boxes[number])[0]
        return sections_of_planes(self.geometry, planes, seen.stop - 1) - seen.start

    def _confident(self, uncertainty: np.ndarray, block: Block, mask: np.ndarray | None) -> np.ndarray:
        """Mask of the voxels of a block within ``TOLERANCE`` of the truth with the job's probability."""
        assert self.job.confidence is not None
        processor, geometry = self.restorer.processor, self.geometry
        measured, masked = (
            processor.interval(self.job.confidence, geometry, masked, self.job.mode) for masked in (False, True)
        )
        hidden = None if mask is None else mask[:, block.y.inside, block.x.inside]
        sections = sections_of_planes(geometry, block.z.output, block.z.input.stop - 1)
        lost = geometry.lost(block.z.output)
        width = half_width(uncertainty, (measured, masked), hidden, sections - block.z.input.start, lost)
        return sure(width, TOLERANCE * self.job.std, geometry.wide(block.z.output))

    def judge(self, number: int, seen: Seen, volume: np.ndarray) -> tuple[float, ...]:
        """What is known of a part: its residual, and how many of its voxels were predicted, and kept."""
        inside_yx, sections = self._rows_and_columns(number), self._sections(number)
        filled, kept = (
            0 if mask is None else mask[:, *inside_yx].sum(axis=(1, 2))[sections] for mask in (seen.filled, seen.kept)
        )
        planes = self.boxes[number][0]
        lost, wide = self.geometry.lost(planes), self.geometry.wide(planes)
        if lost is not None:
            filled = np.where(lost if wide is None else lost & ~wide, math.prod(volume.shape[1:]) - kept, filled)
        return (*self.residual(number, seen, volume), int(np.sum(filled)), int(np.sum(kept)))

    def residual(self, number: int, seen: Seen, volume: np.ndarray) -> tuple[float, float, float]:
        """Sum of squares, number and maximum of the differences between measured sections and those cut from a part.

        Sections that extend beyond the part are left out, and so are voxels that were not measured.
        """
        box, geometry = self.boxes[number], self.geometry
        whole = geometry.sections_within(box[0])
        first, last = whole.start, whole.stop
        first_read, inside_yx = self.plan.input_box(box)[0].start, self._rows_and_columns(number)
        squares, compared, furthest = 0.0, 0.0, 0.0
        if last <= first:
            return squares, compared, furthest
        for section, weights in enumerate(geometry.matrix(last, first), start=first):
            (used,) = np.nonzero(weights)
            begin = geometry.first_plane(first) - box[0].start
            kind = np.float64 if volume.dtype == np.float64 else np.float32
            planes = volume[begin + used[0] : begin + used[-1] + 1].astype(kind)
            cut = np.tensordot(weights[used[0] : used[-1] + 1].astype(kind), planes, axes=1)
            place = (section - first_read, *inside_yx)
            apart = np.abs(cut - seen.voxels[place])
            apart = apart if seen.hidden is None else apart[~seen.hidden[place]]
            squares += float(np.square(apart, dtype=np.float64).sum())
            compared += apart.size
            furthest = max(furthest, float(apart.max(initial=0.0)))
        return squares, compared, furthest

    def write(self, number: int, parts: list[np.ndarray]) -> None:
        """Write a part of each output to the disk."""
        for writer, voxels in zip(self.writers, parts, strict=True):
            writer.write(self.boxes[number], voxels)

    def coarsen(self, number: int) -> None:
        """Make a part of the pyramid of each output that has one."""
        level, box = self.place(number)
        for writer, final in zip(self.writers, self.job.outputs, strict=True):
            if self.is_made_in_place(final):
                writer.coarsen(level, box)

    def complete(self, number: int) -> Made:
        """Read, compute and write a part of any stage."""
        if number >= len(self.boxes):
            _, seconds = timed(self.coarsen, number)
            return Made(number, 0.0, 0.0, seconds)
        seen, read = timed(self.read, number)
        outputs, compute = timed(self.make, number, seen)
        _, write = timed(self.write, number, outputs)
        return Made(number, read, compute, write, *self.judge(number, seen, outputs[0]))


_at_work: dict[Job, Parts] = {}
_lock = threading.Lock()


def put_to_work(parts: Parts) -> Parts:
    """Make :func:`parts_of` return these parts from now on, and forget those of other jobs."""
    _at_work.clear()
    _at_work[parts.job] = parts
    return parts


def parts_of(job: Job, device: str | None = None) -> Parts:
    """The parts of a job in this process, which opens its input and loads its weights once.

    Args:
        job: the job.
        device: device that computes; default: the one already at work on the job, or else a GPU if there is one.
    """
    with _lock:  # several threads may ask at the same time
        known = _at_work.get(job)
        if known is not None and (device is None or choose_device(device) == known.restorer.device):
            return known
        return put_to_work(Parts(job, device))


def here(
    job: Job, numbers: list[int], device: str | None = None, tick: Callable[[float], None] = lambda blocks: None
) -> Iterator[Made]:
    """Make parts in this process, on one device."""
    parts = parts_of(job, device)
    for stage in parts.stages(numbers):
        whole = stage[0] < len(parts.boxes)
        yield from overlapped(parts, iter(stage), tick) if whole else map(parts.complete, stage)


def advances(tick: Callable[[float], None]) -> Callable[[float], None]:
    """A function that is called with what is finished so far, and calls ``tick`` with what is new."""
    finished = 0.0

    def report(fraction: float) -> None:
        nonlocal finished
        tick(fraction - finished)
        finished = fraction

    return report


def overlapped(parts: Parts, numbers: Iterator[int], tick: Callable[[float], None]) -> Iterator[Made]:
    """Make parts one after another: while one is computed, the next is read and the previous one written."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def read_one_more() -> list[tuple[int, Future[tuple[Seen, float]]]]:
            return [(number, reader.submit(timed, parts.read, number)) for number in itertools.islice(numbers, 1)]

        ahead = read_one_more()
        behind: list[tuple[Made, Future[tuple[None, float]]]] = []
        while ahead:
            number, reading = ahead.pop()
            seen, read = reading.result()
            ahead = read_one_more()
            outputs, compute = timed(parts.make, number, seen, tick)
            yield from map(_written, behind)
            part = Made(number, read, compute, 0.0, *parts.judge(number, seen, outputs[0]))
            behind = [(part, writer.submit(timed, parts.write, number, outputs))]
        yield from map(_written, behind)


def _written(part: tuple[Made, Future[tuple[None, float]]]) -> Made:
    made, writing = part
    return made._replace(write=writing.result()[1])


def timed(function: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """Call a function; return its result and the seconds that it took."""
    begin = time.perf_counter()
    return function(*arguments), time.perf_counter() - begin


def part_sides(plan: Plan) -> tuple[int, int, int]:
    """Sides of a part, (planes, y, x): as many whole blocks as ``PART_VOXELS`` allows."""
    planes, *sides = plan.block_zyx
    most = max(1, math.isqrt(PART_VOXELS // planes))
    y, x = (side * max(1, most // side) for side in sides)
    return (planes, y, x)


def chunk_sides(plan: Plan, wanted: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """Sides of a chunk, (z, y, x): those that are wanted, if parts can consist of them, as of any chunks they do."""
    ends = zip(part_sides(plan), plan.output_zyx, wanted or (), strict=False)
    if wanted is not None and all(part >= length or part % chunk == 0 for part, length, chunk in ends):
        return wanted
    planes, *sides = plan.block_zyx
    z = CHUNK_PLANES if planes >= plan.output_zyx[0] else math.gcd(planes, CHUNK_PLANES)
    y, x = (
        CHUNK_SIDE if side >= length else max(part for part in range(1, CHUNK_SIDE + 1) if side % part == 0)
        for side, length in zip(sides, plan.output_zyx[1:], strict=True)
    )
    return (z, y, x)

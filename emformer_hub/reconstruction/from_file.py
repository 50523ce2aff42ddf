"""Reconstruction from file to file: of any size, a part at a time, and resumed where it stopped.

Whatever the format of the output, an OME-Zarr is made first; another format is written from that. A part counts as done
once it is on the disk.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Unpack

import numpy as np

from emformer_hub.devices import choose_devices
from emformer_hub.errors import InputError
from emformer_hub.files import put_in_place, record_path
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction.forecast import needs
from emformer_hub.reconstruction.job import DAMAGE, Job, check_record, make_job, write_whole
from emformer_hub.reconstruction.parts import Made, Parts, Scheduler, chunk_sides, here, part_sides, put_to_work
from emformer_hub.reconstruction.repair import Repair, choose_repair
from emformer_hub.reconstruction.settings import FileSettings, ModelOnce, OpenStack, with_defaults
from emformer_hub.reconstruction.several_devices import on_devices
from emformer_hub.reconstruction.state import State
from emformer_hub.volumes import StoredArray, check_output, open_volume, write_volume
from emformer_hub.volumes.ome_zarr import OMEZarrWriter
from emformer_hub.volumes.padding import Padding, framed
from emformer_hub.volumes.remote import Remote, Unfinished, place

Progress = Callable[[float, int], None]
"""A function that is called with the number of finished blocks and the number of all blocks."""


def reconstruct_file(
    stack: str | os.PathLike[str] | OpenStack,
    output: str | os.PathLike[str] | Remote,
    *,
    overwrite: bool = False,
    resume: bool = False,
    scheduler: Scheduler | None = None,
    progress: Progress = lambda done, blocks: None,
    **settings: Unpack[FileSettings],
) -> Path | Remote:
    """Reconstruct a stack that need not fit into memory.

    The outputs appear under their names once they are complete. Until then they lie beside their final place under
    hidden names, with a list of what is done, and ``resume`` continues a run that was killed. In a bucket, which
    renames nothing, the voxels lie where they belong, and what makes them an image appears last. Voxels equal those of
    :func:`~emformer_hub.reconstruct` to the bit.

    Args:
        stack: path or address of a stack, in any format of ``open_volume``, or the stack itself if it is open. Zarr,
            HDF5 and TIFF are never loaded as a whole.
        output: path of the result, or its address in a bucket; the suffix chooses the format, as for
            ``create_volume``. OME-Zarr is written as it is made. Any other format is written at the end from a hidden
            OME-Zarr, which takes up disk until then. The record of the run lies beside the output as ``.json``.
        overwrite: replace outputs that already exist, and discard an unfinished run. In a bucket they are gone once
            the new run begins.
        resume: continue an unfinished run.
        scheduler: function that makes the parts, as :func:`~emformer_hub.reconstruction.cluster.on_dask` returns it;
            default: this process makes them.
        progress: called with the numbers of finished and of all blocks: in this process again and again, with fractions
            of a block; elsewhere after each part.
        settings: ``voxel_size``, ``factor``, and any other key of
            :class:`~emformer_hub.reconstruction.settings.Settings` and
            :class:`~emformer_hub.reconstruction.settings.FileSettings`. Here ``device`` takes several, which share the
            parts: ``"cuda:0,cuda:1"``, or ``"all"``.

    Returns:
        Path, or address, of the record of the run.

    Raises:
        InputError: the stack, a setting or an output is unusable; the disk is too small; or the run to resume is a
            different one, does not exist, or is still running.
    """
    begin = time.time()
    chosen = with_defaults(settings)
    devices = choose_devices(chosen["device"])
    if len(devices) > 1:
        if scheduler is not None:
            raise InputError(
                f"device {chosen['device']!r} names several; Dask gives each worker one of its GPUs by itself. Name "
                f"one or none, or leave out the scheduler."
            )
        scheduler, chosen["device"] = on_devices(devices), str(devices[0])
    stack, model, device = OpenStack.of(stack, chosen["reading"]), ModelOnce.of(chosen["model"]), chosen["device"]
    repair = choose_repair(stack.volume, chosen["repair"], stack.path)
    chosen["model"], chosen["repair"] = model, repair
    job = make_job(stack, output, **chosen)
    begun = job.folder / "job.json"
    if resume and begun.exists():  # what is faster is measured, and free memory changes
        first = Job.load(begun)
        kept = {"precision": chosen["precision"] == "auto"}
        kept |= {name: settings.get(name) is None for name in ("tile_zyx", "chunk_zyx")}
        job = dataclasses.replace(job, **{name: getattr(first, name) for name, keep in kept.items() if keep})
    for one in job.outputs:
        check_output(one, overwrite or resume)
    check_record(place(output), overwrite=overwrite, resume=resume)
    parts = put_to_work(Parts(job, device, stack=stack, model=model))
    state = State.of(parts)
    with state.alone():
        _begin(state, repair, resume=resume, overwrite=overwrite)
        done = state.done()
        numbers = [number for number in range(len(parts)) if number not in done]
        _make(state, numbers, done, device, scheduler, progress)
        for writer, final in zip(parts.writers, job.outputs, strict=True):
            if writer.path.exists():  # a run may have been killed between two outputs
                _complete(parts, writer, final)
        record = record_path(place(output))
        facts = {
            **dataclasses.asdict(job),
            "parts": len(parts.boxes),
            "made_now": sum(number < len(parts.boxes) for number in numbers),
            "seconds_now": time.time() - begin,
            "seconds": _seconds(parts, done.values()),
            "residual": _residual(done.values()),
            "gaps": [gap | {"after": job.region[0][0] + gap["after"]} for gap in parts.geometry.gaps()],
            "not_measured": {
                what: sum(getattr(part, what) for part in done.values()) / math.prod(parts.plan.output_zyx)
                for what in ("filled", "kept")
            },
        }
        write_whole(record, json.dumps(facts, indent=2) + "\n")
        state.forget()
    return record


def _make(
    state: State,
    numbers: list[int],
    done: dict[int, Made],
    device: str | None,
    scheduler: Scheduler | None,
    progress: Progress,
) -> None:
    """Make the parts with these numbers, and add each to ``done`` and to the list of the run once it is written."""
    parts, job = state.parts, state.job
    made = float(sum(map(parts.num_blocks, done)))

    def tick(blocks: float) -> None:
        nonlocal made
        made += blocks
        progress(round(made, 3), len(parts.plan))  # a sum of fractions is a whole number at last

    tick(0)
    at_work = here(job, numbers, device, tick) if scheduler is None else scheduler(job, numbers, device)
    with state.listing(done) as add:
        for part in at_work:
            done[part.number] = part
            add(part)
            if scheduler is not None and (blocks := parts.num_blocks(part.number)):
                tick(blocks)


def _begin(state: State, repair: Repair, *, resume: bool, overwrite: bool) -> None:
    """Create the outputs, or check that the unfinished ones belong to this job."""
    parts, job = state.parts, state.job
    file = job.folder / "job.json"
    if file.exists() and resume:
        _check_same(Job.load(file), job)
        state.claim()
        return
    if file.exists() and not overwrite and ((done := state.done()) or isinstance(file, Remote)):
        at_work = " or is still at work" if isinstance(file, Remote) else ""  # no lock says so
        raise InputError(
            f"{job.output} belongs to a run that did not finish{at_work} ({len(done)} of {len(parts)} parts are "
            f"done); add --resume to continue it, or --overwrite to begin again."
        )
    if resume and all(path.exists() for path in job.outputs):
        raise InputError(f"{job.output} is complete; there is nothing to resume. Give --overwrite to make it again.")
    if resume and not file.exists():
        raise InputError(f"there is no unfinished run of {job.output} to resume; leave out --resume to begin one.")
    shape = parts.plan.output_zyx
    needs(parts).check(job.output)
    state.clear()
    if repair.damage:
        repair.save(job.folder / DAMAGE)
    for path, dtype in zip(job.outputs, job.dtypes, strict=True):
        OMEZarrWriter.create(
            parts.unfinished(path),
            shape,
            dtype,
            VoxelSize(*job.voxel_size),
            job.translation,
            version=job.ome_zarr,
            chunk_zyx=chunk_sides(parts.plan, job.chunk_zyx),
            part_zyx=part_sides(parts.plan),
        )
    job.save(file)


def _seconds(parts: Parts, done: Iterable[Made]) -> dict[str, float]:
    """Seconds spent on reading, network, writing and pyramid, summed over runs and workers."""
    fine = [part for part in done if part.number < len(parts.boxes)]
    pyramid = [part for part in done if part.number >= len(parts.boxes)]
    return {
        "reading": sum(part.read for part in fine),
        "network": sum(part.compute for part in fine),
        "writing": sum(part.write for part in fine),
        "pyramid": sum(part.write for part in pyramid),
    }


def _residual(done: Iterable[Made]) -> dict[str, float] | None:
    """Differences between measured sections and those cut from the output, in grey levels."""
    parts = list(done)
    compared = sum(part.compared for part in parts)
    if not compared:
        return None
    rms = math.sqrt(sum(part.squares for part in parts) / compared)
    return {"rms": rms, "maximum": max(part.furthest for part in parts)}


def _complete(parts: Parts, writer: OMEZarrWriter, final: Path | Remote) -> None:
    """Bring a finished output into its format and give it its name."""
    job, made = parts.job, writer.path
    if isinstance(made, Unfinished):
        made.complete()
        return
    if parts.is_made_in_place(final) and isinstance(made, Path) and isinstance(final, Path):
        put_in_place(made, final)
        return
    result, first = open_volume(str(made)).data, job.translation
    if job.padding is not None:
        result, first = _with_padding(job, result, final)
    size = VoxelSize(*job.voxel_size)
    try:
        write_volume(
            final,
            result,
            size,
            translation_nm=first,
            overwrite=True,
            ome_zarr=job.ome_zarr,
            chunk_zyx=job.chunk_zyx,
        )
    except InputError as error:
        raise InputError(
            f"{error} The reconstruction is complete: the same command with --resume writes it."
        ) from error
    shutil.rmtree(made) if isinstance(made, Path) else made.remove()


def _with_padding(
    job: Job, result: np.ndarray | StoredArray, final: Path | Remote
) -> tuple[StoredArray, tuple[float, float, float]]:
    """A result within the padding of its input, which is as certain as it was, and the place of its first voxel."""
    assert job.padding is not None
    _, rows, columns = (slice(*side) for side in job.region)
    padding = Padding(rows, columns, job.padding)
    value = {job.uncertainty: 0.0, job.confident: 1.0}.get(str(final), job.padding)
    z, y, x = job.translation
    _, height, width = job.voxel_size
    whole = framed(result, job.input_shape[1:], padding, value)
    return whole, (z, y - rows.start * height, x - columns.start * width)


def _check_same(begun: Job, job: Job) -> None:
    """Raise ``InputError`` unless the unfinished run makes the same result."""
    different = [
        f"{field.name} was {getattr(begun, field.name)!r}, is {getattr(job, field.name)!r}"
        for field in dataclasses.fields(Job)
        if getattr(begun, field.name) != getattr(job, field.name)
    ]
    if different:
        raise InputError(
            f"the unfinished run of {job.output} is another one: {'; '.join(different)}. Resume it with the settings "
            f"that it began with, or begin again with --overwrite."
        )

"""Parts of a reconstruction made in this process by several devices, each of which takes the next part that is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

from emformer_hub.reconstruction.job import Job
from emformer_hub.reconstruction.parts import Made, Parts, Scheduler, overlapped, parts_of


def on_devices(devices: Sequence[torch.device]) -> Scheduler:
    """A scheduler for :func:`~emformer_hub.reconstruct_file`, with a thread and a copy of the network for each device.

    Args:
        devices: devices that compute, at least one.
    """

    def scheduler(job: Job, numbers: list[int], device: str | None = None) -> Iterator[Made]:
        first = parts_of(job, str(devices[0]))
        crew = [first, *(Parts(job, str(other)) for other in devices[1:])]
        for stage in first.stages(numbers):
            whole = stage[0] < len(first.boxes)
            yield from _together(crew, stage) if whole else map(first.complete, stage)

    return scheduler


def _together(crew: list[Parts], stage: list[int]) -> Iterator[Made]:
    waiting = iter(stage)  # an iterator of a list gives each thread numbers of its own
    finished: SimpleQueue[Made | None] = SimpleQueue()

    def work(parts: Parts) -> None:
        try:
            for made in overlapped(parts, waiting, lambda blocks: None):
                finished.put(made)
        except BaseException:
            deque(waiting, maxlen=0)  # the others finish what they have begun, and no more
            raise
        finally:
            finished.put(None)

    with ThreadPoolExecutor(len(crew)) as pool:
        at_work = [pool.submit(work, parts) for parts in crew]
        try:
            for _ in crew:
                yield from iter(finished.get, None)
        finally:
            deque(waiting, maxlen=0)
    for one in at_work:
        one.result()

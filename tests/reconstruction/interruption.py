"""Schedulers that stop in the middle of a run."""

from __future__ import annotations

from typing import Any

from emformer_hub.reconstruction import parts
from emformer_hub.reconstruction.job import Job


class Interrupted(Exception):
    """What ends the run."""


def interrupted_after(count: int) -> Any:
    """A scheduler that makes so many parts, and is then interrupted."""

    def scheduler(job: Job, numbers: list[int], device: str | None) -> Any:
        for made, part in enumerate(parts.here(job, numbers, device)):
            yield part
            if made + 1 == count:
                raise Interrupted

    return scheduler

"""A model of a run on a cluster: parts are given out one by one, made by workers, and go to storage that all share."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stage:
    """Parts that may be made in any order; every stage waits for the one before.

    Attributes:
        parts: how many.
        seconds: that a worker takes for one, its reading and writing included.
        bytes: that it moves between the worker and the storage.
    """

    parts: int
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Cluster:
    """What makes the parts.

    Attributes:
        workers: how many.
        storage_rate: bytes a second, of all workers together.
        give_out_rate: parts a second that the scheduler gives out.
        lifetime_s: after which a worker is lost, in the mean; the part in its hands is made again.
        spread: standard deviation of the logarithm of a part's time.
    """

    workers: int
    storage_rate: float
    give_out_rate: float
    lifetime_s: float = 24 * 3600.0
    spread: float = 0.2


def bounds(stages: list[Stage], cluster: Cluster) -> dict[str, float]:
    """Seconds that a run takes at least, by what could hold it up: network and disks of workers, storage, scheduler."""
    return {
        "workers": sum(stage.parts * stage.seconds for stage in stages) / cluster.workers,
        "storage": sum(stage.parts * stage.bytes for stage in stages) / cluster.storage_rate,
        "scheduler": sum(stage.parts for stage in stages) / cluster.give_out_rate,
    }


def simulate(stages: list[Stage], cluster: Cluster, seed: int = 0) -> float:
    """Seconds until the last part is on the disk.

    Each part waits for the scheduler, for a worker that is free, and for its turn at the storage. A part during which
    its worker is lost counts twice.
    """
    draw = np.random.default_rng(seed)
    now = 0.0
    for stage in stages:
        free = [now] * min(cluster.workers, stage.parts)
        given, stored = now, now
        log_mean = np.log(stage.seconds) - cluster.spread**2 / 2
        for seconds in _drawn(draw, stage.parts, log_mean, cluster):
            given += 1 / cluster.give_out_rate
            begin = max(free[0], given)
            stored = max(stored, begin) + stage.bytes / cluster.storage_rate
            heapq.heapreplace(free, max(begin + seconds, stored))
        now = max(free)
    return now


def _drawn(draw: np.random.Generator, parts: int, log_mean: float, cluster: Cluster) -> Iterator[float]:
    for begin in range(0, parts, 2**16):
        count = min(2**16, parts - begin)
        seconds = draw.lognormal(log_mean, cluster.spread, count)
        lost = draw.random(count) < seconds / cluster.lifetime_s
        yield from (seconds * (1 + lost)).tolist()

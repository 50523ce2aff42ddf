"""Memory and processors of this machine that this process may use; without torch, so that asking takes no second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The groups of this process, and the folder of all of them, on Linux."""


def free_memory() -> int:
    """Bytes of main memory that are free: those of this machine, or of this process's container."""
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_container()])


def _left_in_container() -> Iterator[int]:
    """Bytes that the control groups of this process (Linux, version 2) allow beyond those in use."""
    membership, root = CONTROL_GROUPS
    try:
        (group, *_) = membership.read_text().partition("0::/")[2].splitlines() or [""]
    except OSError:
        return
    for folder in (root / group, *(root / group).parents):
        with suppress(OSError, ValueError, IndexError):  # "max" is no limit, and not a number
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            cached = int((folder / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
            yield max(0, limit - used + cached)


def num_threads() -> int:
    """Number of threads to compute with: ``OMP_NUM_THREADS``, as torch does, else :func:`num_cpus`."""
    with suppress(ValueError):
        if (wanted := int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])) > 0:  # the others are for nested loops
            return wanted
    return num_cpus()


def num_cpus() -> int:
    """Number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

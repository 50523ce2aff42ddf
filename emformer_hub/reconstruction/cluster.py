"""Parts of a reconstruction made with Dask: by processes of this machine, or by the workers of a cluster.

Workers read the input and write the output themselves, so both must be visible to all of them under the same path or
address; each loads the weights once. The parts of a lost worker are given to another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from emformer_hub.devices import choose_devices
from emformer_hub.errors import InputError
from emformer_hub.reconstruction.job import Job
from emformer_hub.reconstruction.parts import Made, Scheduler, parts_of

if TYPE_CHECKING:
    from distributed import Client, Future

IN_FLIGHT = 8
"""Most parts assigned to each thread of a worker; topped up once half of them are done."""
TIMEOUT_S = 20
"""Seconds to wait for a scheduler to answer."""
RETRIES = 2
"""Number of further attempts after an error, such as a file server that did not answer."""


def make_part(job: Job, number: int, device: str | None = None) -> Made:
    """Make one part on a worker, on the device that was asked for; return once it is on the disk."""
    from distributed import get_worker

    return parts_of(job, device_of(get_worker().name, choose_devices("all"), device)).complete(number)


def device_of(worker: object, devices: Sequence[torch.device], device: str | None = None) -> str | None:
    """Device of a worker: the one asked for, or where any GPU will do, one of several for each worker of this machine.

    Args:
        worker: name of the worker, which is a number on this machine.
        devices: GPUs that the worker sees, or the CPU.
        device: ``None`` or ``"auto"``, ``"all"``, ``"cpu"``, a kind of GPU, or one of them, such as ``"cuda:1"``.
    """
    if len(devices) > 1 and str(worker).isdigit() and device in (None, "auto", "all", devices[0].type):
        return str(devices[int(str(worker)) % len(devices)])
    return device


def on_dask(address: str, workers: int | None = None) -> Scheduler:
    """A scheduler for :func:`~emformer_hub.reconstruct_file`.

    Args:
        address: ``processes`` or ``threads`` of this machine, or the address of a running scheduler,
            ``tcp://HOST:PORT``.
        workers: number of processes or threads on this machine; default: one per GPU, or else one per core. Processes
            are distributed over the GPUs.

    Raises:
        InputError: Dask is not installed, or the address is not valid; when it is used: there is no scheduler, it went
            away, or a part failed every time.
    """
    try:
        import dask

        dask.config.set({"logging.distributed": "warning"})  # read when distributed is imported
        import distributed  # noqa: F401
    except ImportError as error:
        raise InputError("a scheduler needs Dask; run: pip install 'emformer-hub[cluster]'") from error
    if address not in ("processes", "threads") and "://" not in address:
        raise InputError(f"scheduler is {address!r}; expected local, threads, processes, or tcp://HOST:PORT.")

    def scheduler(job: Job, numbers: list[int], device: str | None = None) -> Iterator[Made]:
        with _client(address, workers) as client:
            for stage in parts_of(job).stages(numbers):
                yield from run(client, partial(make_part, device=device), job, stage)

    return scheduler


def run(client: Client, make: Any, job: Any, numbers: list[int]) -> Iterator[Any]:
    """Assign parts, a few to each worker at a time, and yield each result.

    Raises:
        InputError: the scheduler went away, workers were lost again and again, or a part failed every time.
    """
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.core import CommClosedError
    from distributed.scheduler import KilledWorker

    ahead = "Finished parts are kept: the same command with --resume continues."
    waiting = iter(numbers)

    def submit(count: int) -> list[Future]:
        following = list(itertools.islice(waiting, count))
        keys = [f"part-{number}" for number in following]
        return client.map(partial(make, job), following, key=keys, retries=RETRIES, pure=False)

    try:
        most = IN_FLIGHT * max(1, sum(client.nthreads().values()))
        running = as_completed(submit(most), loop=client.loop)
        for batch in running.batches():
            if running.count() <= most // 2:
                running.update(submit(most - running.count()))
            yield from (future.result() for future in batch)
    except KilledWorker as error:
        raise InputError(f"workers were lost again and again ({error}); do they have enough memory? {ahead}") from error
    except (CommClosedError, FutureCancelledError, OSError, TimeoutError) as error:
        raise InputError(f"the scheduler, or a file, cannot be reached any more: {error}. {ahead}") from error


@contextmanager
def _client(address: str, workers: int | None) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    if "://" in address:
        try:
            client = Client(address, timeout=TIMEOUT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"there is no Dask scheduler at {address}: {error}. Start one, as in examples/slurm.py."
            ) from error
        with client:
            yield client
        return
    gpus = choose_devices("all")
    with (
        LocalCluster(
            n_workers=(workers or (len(gpus) if gpus[0].type != "cpu" else None)) if address == "processes" else 1,
            threads_per_worker=1 if address == "processes" else workers,
            processes=address == "processes",
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client

"""Processes whose huggingface_hub knows the test server only: it reads its settings once, when it is imported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from server import HubServer

WAITS: list[float] = []
"""Seconds that the client wanted to wait between its tries; it does not, so that tests are quick."""


def environment(server: HubServer, home: Path, token: str | None, **more: str) -> dict[str, str]:
    """All that a process needs to take the server for the Hub."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return inherited | settings | ({"HF_TOKEN": token} if token else {}) | more


class Client:
    """A process that calls functions of the tests, one after the other; what they return or raise comes back."""

    def __init__(self, pool: ProcessPoolExecutor):
        self._pool = pool

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._pool.submit(function, *args, **kwargs).result(timeout=600)


@contextmanager
def client_process(settings: dict[str, str]) -> Iterator[Client]:
    """Start a client; it is importing when this returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with mock.patch.dict(os.environ, settings, clear=True):
            pool.submit(_hurry)
        yield Client(pool)


def _hurry() -> None:
    sleep = time.sleep

    def note(seconds: float) -> None:
        WAITS.append(seconds)
        sleep(min(seconds, 0.01))

    time.sleep = note


def waits() -> list[float]:
    """The waits since this was asked last."""
    found = list(WAITS)
    WAITS.clear()
    return found

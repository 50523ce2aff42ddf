"""What tests of training share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

KILLED = """
import os, runpy, signal, sys
from emformer_hub.training import loop
calls, loss = iter(range(10**6)), loop.reconstruction_loss
def killed(*arguments):
    if next(calls) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
loop.reconstruction_loss = killed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def killed_after() -> Callable[[int], list[str]]:
    """Words for ``python`` that run the script after them, and end the process in a step, after so many other steps."""
    return lambda steps: ["-c", KILLED.format(after=steps)]

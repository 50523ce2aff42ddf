"""What it takes to drive a panel: waiting for its work, and measuring whether the viewer answers meanwhile."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


def finished(panel: Any, qtbot: Any) -> None:
    """Wait until the work of a panel has ended, and what it ended with is shown."""
    qtbot.waitUntil(lambda: not panel.running, timeout=120_000)


def longest_wait(panel: Any, qtbot: Any) -> float:
    """Wait for the work of a panel; the longest time for which the viewer answered nothing meanwhile, seconds.

    While the work goes on, by the clock: the viewer must not wait for it. At its end nothing else goes on, and what
    keeps the viewer is its own work: by the time that it computes, which other programs do not make longer.
    """
    from qtpy.QtCore import QTimer

    clock, computed = [time.perf_counter()], [time.thread_time()]

    def tick() -> None:
        if panel.work.running:
            clock.append(time.perf_counter())
        computed.append(time.thread_time())

    timer = QTimer()
    timer.timeout.connect(tick)
    timer.start(5)
    finished(panel, qtbot)
    tick()
    timer.stop()
    return float(max(*np.diff(clock), *np.diff(computed)))

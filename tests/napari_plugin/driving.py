"""What it takes to drive a panel: waiting for its work, and measuring whether the viewer answers meanwhile."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


def finished(panel: Any, qtbot: Any) -> None:
    """Wait until the work of a panel has ended, and what it ended with is shown."""
    qtbot.waitUntil(lambda: not panel.work.running, timeout=120_000)


def longest_wait(panel: Any, qtbot: Any) -> float:
    """Wait for the work of a panel; the longest time for which the viewer answered nothing meanwhile, seconds."""
    from qtpy.QtCore import QTimer

    ticks = [time.perf_counter()]
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    timer.start(5)
    panel.work.done.connect(timer.stop)  # what follows is napari's own time, in which it makes the layers
    finished(panel, qtbot)
    return float(np.diff(ticks).max())

"""The loss of a training as it falls, for pictures on the page in the browser and in napari."""

from __future__ import annotations

SMOOTHING = 0.95
"""Share of the past in the curve of the loss, which is drawn over the loss of each step."""


class Losses:
    """The loss of each step, and its moving average."""

    def __init__(self) -> None:
        self.each: list[float] = []
        self.smooth: list[float] = []
        self._sum = 0.0

    def add(self, loss: float) -> None:
        """Add a step."""
        self.each.append(loss)
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self.smooth.append(self._sum / (1 - SMOOTHING ** len(self.each)))

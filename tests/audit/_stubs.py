"""Networks whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.reconstruction.blocks import Block
from emformer_hub.reconstruction.restorer import Restorer


@dataclass
class Stub(Restorer):
    """Makes planes by ``planes(sections, block, mask)``, with an uncertainty of ``deviation``."""

    planes: Callable[..., np.ndarray] | None = None
    deviation: float = 1.0

    def __post_init__(self) -> None:
        """There is no network to move."""

    def interpolated(self, sections: np.ndarray, block: Block, mask: np.ndarray | None) -> np.ndarray:
        """By cubic interpolation along z, of a stack that is not divided along it."""
        return interpolate(sections, self.geometry, "cubic")[:, block.y.inside, block.x.inside]

    def restore(
        self,
        sections: np.ndarray,
        block: Block,
        mask: np.ndarray | None = None,
        report: Callable[[float], None] = lambda fraction: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        made = (self.planes or self.interpolated)(sections, block, mask)
        return made, np.full(made.shape, self.deviation, np.float32)


def stub(
    geometry: SectionModel,
    planes: Callable[..., np.ndarray] | None = None,
    *,
    deviation: float = 1.0,
    network: Callable[..., SimpleNamespace] | None = None,
    processor: EMformerProcessor | None = None,
    statistics: IntensityStatistics | None = None,
) -> Stub:
    """One of a float stack of unit variance, unless told otherwise."""
    return Stub(
        network or SimpleNamespace(config=EMformerConfig()),  # type: ignore[arg-type]
        processor or EMformerProcessor(),
        geometry,
        statistics or IntensityStatistics(0.0, 1.0, np.dtype(np.float32)),
        ensemble=1,
        device=torch.device("cpu"),
        planes=planes,
        deviation=deviation,
    )

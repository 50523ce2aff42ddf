"""The ways of restoring planes between sections that the quality benchmark compares."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from _figures import INTERPOLATIONS, Restored
from _unet import UNet, sharpen

from emformer_hub.audit.held_back import predict_section, restore_clip
from emformer_hub.devices import choose_device
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import DEFAULT_MODE, Mode
from emformer_hub.processing_emformer import EMformerProcessor, to_dtype
from emformer_hub.reconstruction import Reconstruction, reconstruct

UNET = "unet"


class Method(Protocol):
    """Both calls take ``(sections, ., .)`` and give ``(geometry.num_planes(sections), ., .)`` in the same dtype."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def restore(self, sections: np.ndarray, geometry: SectionModel) -> tuple[np.ndarray, Reconstruction | None]:
        """A stack ``(z, y, x)`` restored along z, and where the method states an uncertainty, all that it says."""

    def restore_in_plane(self, rows: np.ndarray, geometry: SectionModel, frame_spacing: float) -> np.ndarray:
        """A stack ``(y, z, x)`` whose y is degraded, restored along y; its z are ``frame_spacing`` columns apart."""


@dataclass(frozen=True)
class Interpolation:
    """Along the section axis, at the true section centres."""

    name: str

    def restore(self, sections: np.ndarray, geometry: SectionModel) -> tuple[np.ndarray, None]:
        return to_dtype(interpolate(sections, geometry, INTERPOLATIONS[self.name]), sections.dtype), None

    def restore_in_plane(self, rows: np.ndarray, geometry: SectionModel, frame_spacing: float) -> np.ndarray:
        return self.restore(rows, geometry)[0]


@dataclass(frozen=True)
class SlicedUNet:
    """Cubic interpolation, then the 2-D U-Net on slices."""

    network: UNet
    name: str = UNET
    processor: EMformerProcessor = field(default_factory=EMformerProcessor)

    def restore(self, sections: np.ndarray, geometry: SectionModel) -> tuple[np.ndarray, None]:
        return self._restore(sections, geometry, (1, 2)), None

    def restore_in_plane(self, rows: np.ndarray, geometry: SectionModel, frame_spacing: float) -> np.ndarray:
        return self._restore(rows, geometry, (1,))

    def _restore(self, sections: np.ndarray, geometry: SectionModel, across: tuple[int, ...]) -> np.ndarray:
        statistics = self.processor.measure(sections)
        cubic = interpolate(self.processor.normalise(sections, statistics), geometry, "cubic")
        sharpened = [sharpen(self.network, cubic, geometry, axis) for axis in across]
        return self.processor.restore(np.mean(sharpened, axis=0), statistics)


@dataclass(frozen=True)
class EMformer:
    """A model, through ``reconstruct``; where that does not reach, the bare network in the same precision.

    Args:
        model: bundled name, folder or Hub id.
        mode: what becomes of the sections' noise; default: that of ``reconstruct``.
    """

    model: str
    device: str
    ensemble: int
    mode: Mode = DEFAULT_MODE

    @property
    def name(self) -> str:
        """What tables call it: the mode is named where it is not the default."""
        return self.model if self.mode == DEFAULT_MODE else f"{self.model}, {self.mode}"

    @cached_property
    def network(self) -> EMformerModel:
        return EMformerModel.from_pretrained(self.model).to(choose_device(self.device)).eval()

    @cached_property
    def processor(self) -> EMformerProcessor:
        return EMformerProcessor.from_pretrained(self.model)

    def restore(self, sections: np.ndarray, geometry: SectionModel) -> tuple[np.ndarray, Reconstruction]:
        done = reconstruct(
            sections,
            geometry=geometry,
            model=self.model,
            ensemble=self.ensemble,
            mode=self.mode,
            device=self.device,
        )
        return done.volume, done

    def restore_in_plane(self, rows: np.ndarray, geometry: SectionModel, frame_spacing: float) -> np.ndarray:
        statistics = self.processor.measure(rows)
        clip = self.processor.normalise(rows, statistics).transpose(1, 0, 2)
        positions = geometry.plane_positions(geometry.num_planes(len(rows)))
        options: dict[str, Any] = {"positions": positions, "frame_spacing": frame_spacing, "mode": self.mode}
        planes = restore_clip(self.network, clip, geometry, **options)
        return self.processor.restore(planes.transpose(1, 0, 2), statistics)

    def restore_section(self, stack: np.ndarray, hidden: int, geometry: SectionModel) -> np.ndarray:
        """Section ``hidden`` of a stack ``(z, y, x)``, predicted from the others: ``(y, x)``, dtype of the stack.

        It is measured and predicted without a look at its own voxels; see ``predict_section``.
        """
        statistics = self.processor.measure(np.delete(stack, hidden, axis=0))
        clip = self.processor.normalise(stack, statistics)
        return self.processor.restore(predict_section(self.network, clip, hidden, geometry), statistics)


Run = Callable[..., Reconstruction]
"""A model on a device: ``run(data, geometry, **options of reconstruct)``."""


def runner(model: str, device: str) -> Run:
    """``reconstruct`` with this model on this device."""

    def run(data: np.ndarray, geometry: SectionModel, **options: Any) -> Reconstruction:
        return reconstruct(
            data,
            factor=geometry.factor,
            thickness=geometry.thickness,
            offset=geometry.offset,
            model=model,
            device=device,
            progress=False,
            **options,
        )

    return run


def timed(method: str, job: Callable[..., np.ndarray], *arguments: Any) -> Restored:
    """Run a method and take its wall time."""
    begin = time.perf_counter()
    volume = job(*arguments)
    return Restored(method, volume, time.perf_counter() - begin)

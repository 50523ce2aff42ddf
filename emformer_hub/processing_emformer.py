"""EMformerProcessor: between a microscope's intensities and the network's, and back. Travels with the weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor
from transformers.feature_extraction_utils import FeatureExtractionMixin

from .configuration_emformer import EMformerConfig
from .errors import InputError
from .geometry import SectionModel
from .modes import DEFAULT_MODE, MODES, Mode, check_mode
from .pretrained import loading, resolve_pretrained
from .uncertainty import ErrorQuantiles

READ_VOXELS = 2**28
"""How many voxels of a volume on disk are read for its statistics: a second or two of decompression."""


@dataclass(frozen=True)
class IntensityStatistics:
    """Brightness and contrast of one whole volume, and the dtype to return to. Measured once, never per tile.

    Attributes:
        mean, std: of the voxels, in the volume's own intensity units.
        dtype: of the volume.
    """

    mean: float
    std: float
    dtype: np.dtype

    def normalise(self, volume: np.ndarray) -> np.ndarray:
        """Intensity units -> standard deviations from the mean, float32, same shape."""
        if volume.dtype == np.float64:  # an offset may be large beside the contrast
            return ((volume - self.mean) / self.std).astype(np.float32)
        return (volume.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)


def _measured(volume: Any, mask: Any, step: int) -> np.ndarray:
    """Every so many rows and columns of a volume ``(z, y, x)``, as one list without the masked voxels."""
    sample = volume[:, ::step, ::step]
    return sample.ravel() if mask is None else sample[~mask[:, ::step, ::step]]


def to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Intensities as a volume of this dtype holds them: for integers rounded and clipped to their range."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    return values.astype(dtype)


class EMformerProcessor(FeatureExtractionMixin):
    """Intensities to zero mean and unit standard deviation over the volume, and exactly back.

    Args:
        percentiles: voxels outside these percentiles count as the percentile itself, so that hot pixels and
            saturated debris do not set the contrast.
        sample_size: at most about so many voxels, evenly spaced over the volume, are measured.
        error_quantiles: how the errors of the weights that this processor belongs to compare with the uncertainty that
            they state: for each mode, fields of :class:`~emformer_hub.uncertainty.ErrorQuantiles`. The fields alone, as
            weights from before there were modes have them, count for both.

    Raises:
        InputError: ``error_quantiles`` is no such map.
    """

    model_input_names = ["sections"]

    def __init__(
        self,
        percentiles: tuple[float, float] | list[float] = (0.5, 99.5),
        sample_size: int = 2**22,
        error_quantiles: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.percentiles = list(percentiles)
        self.sample_size = sample_size
        given = error_quantiles or {}
        try:
            fields = given if given.keys() & set(MODES) else dict.fromkeys(MODES, given)
            self.calibrate({mode: ErrorQuantiles(**fields[mode]) for mode in MODES})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"error_quantiles: {error}; expected numbers for full_thickness and single_plane, for each of "
                f"{' and '.join(MODES)}."
            ) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[Any], *args: Any, **kwargs: Any) -> Self:
        """Load a processor by bundled name, folder or Hub id; raises ``InputError`` for an unknown name."""
        name = os.fspath(pretrained_model_name_or_path)
        with loading(name):
            return super().from_pretrained(resolve_pretrained(name, kwargs.get("revision")), *args, **kwargs)

    def calibrate(self, quantiles: Mapping[Mode, ErrorQuantiles]) -> None:
        """Keep what was measured of the weights' errors in each mode; ``save_pretrained`` writes it."""
        self.error_quantiles = {
            mode: {name: list(multiples) for name, multiples in vars(quantiles[mode]).items()} for mode in MODES
        }

    def interval(
        self, probability: float, sections: SectionModel, masked: bool = False, mode: Mode = DEFAULT_MODE
    ) -> float:
        """How many times its stated uncertainty holds the error of a voxel, or of a masked one, with this probability.

        Raises:
            InputError: a probability outside 0 to 0.99.
        """
        check_mode(mode)
        return ErrorQuantiles(**self.error_quantiles[mode]).multiple(probability, sections, masked)

    def measure(self, volume: Any, mask: Any = None) -> IntensityStatistics:
        """Statistics of a volume ``(z, y, x)`` of any real dtype; reads an evenly spaced sample of it.

        A volume on disk (:class:`~emformer_hub.volumes.StoredArray`) is measured as the same voxels in memory would be,
        up to 2^28 voxels; of a larger one, boxes of so many voxels together are drawn at random, always the same ones,
        and read one after the other.

        Args:
            mask: bool, ``(z, y, x)``; voxels that do not count, whatever they hold.

        Raises:
            InputError: all sampled voxels are equal, or some are not finite.
        """
        if volume.size > READ_VOXELS and not isinstance(volume, np.ndarray):
            boxes = volume.draw_boxes(READ_VOXELS)
            step = self._step(sum(math.prod(part.stop - part.start for part in box) for box in boxes))
            parts = [_measured(volume[box], None if mask is None else mask[box], step) for box in boxes]
            sample = np.concatenate(parts).astype(np.float64)
        else:
            sample = _measured(volume, mask, self._step(volume.size)).astype(np.float64)
        if not sample.size:
            raise InputError(
                "not one voxel of the volume was measured: all are masked. Is the mask the right way round?"
            )
        if not np.isfinite(sample).all():
            raise InputError("the volume holds NaN or infinite voxels; replace them, or mask the sections they are in.")
        low, high = np.percentile(sample, self.percentiles)
        clipped = sample.clip(low, high) if high > low else sample
        mean, std = float(clipped.mean()), float(clipped.std())
        if not std > 0:
            raise InputError(f"every voxel is {mean:g}; expected an image with contrast. Is this the right file?")
        return IntensityStatistics(mean, std, volume.dtype)

    def _step(self, voxels: int) -> int:
        """Every how many rows and columns of so many voxels are measured."""
        return max(1, int(np.ceil((voxels / self.sample_size) ** (1 / 2))))

    def normalise(self, volume: np.ndarray, statistics: IntensityStatistics) -> np.ndarray:
        """Intensity units -> standard deviations from the mean, float32, same shape."""
        return statistics.normalise(volume)

    def restore(self, normalised: np.ndarray, statistics: IntensityStatistics) -> np.ndarray:
        """Back to the intensity units and dtype of the volume: integers are rounded and clipped to their range."""
        if statistics.dtype == np.float64:
            return normalised * np.float64(statistics.std) + statistics.mean
        return to_dtype(normalised * np.float32(statistics.std) + np.float32(statistics.mean), statistics.dtype)

    def restore_scale(self, scale: np.ndarray, statistics: IntensityStatistics) -> np.ndarray:
        """An uncertainty in standard deviations -> the volume's intensity units, float32."""
        return (scale * statistics.std).astype(np.float32)


AutoFeatureExtractor.register(EMformerConfig, EMformerProcessor, exist_ok=True)
AutoProcessor.register(EMformerConfig, EMformerProcessor, exist_ok=True)

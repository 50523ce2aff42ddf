"""EMformerProcessor: between a microscope's intensities and the network's, and back. Travels with the weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Self

import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.utils import FEATURE_EXTRACTOR_NAME

from .configuration_emformer import EMformerConfig
from .errors import InputError, check_keywords
from .geometry import SectionModel
from .model_files import model_file, take_hub_options
from .modes import DEFAULT_MODE, MODES, Mode, check_mode
from .pretrained import loading
from .uncertainty import ErrorQuantiles

READ_VOXELS = 2**28
"""Number of voxels of a volume on disk that are read for its statistics: a second or two of decompression."""


@dataclass(frozen=True)
class IntensityStatistics:
    """Brightness and contrast of one whole volume, and the dtype to return to. Measured once, never per tile.

    Attributes:
        mean, std: mean and standard deviation of the voxels, in the volume's own intensity units.
        dtype: dtype of the volume.
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
    """Rows and columns of a volume ``(z, y, x)`` at a regular step, as one list without the masked voxels."""
    sample = volume[:, ::step, ::step]
    return sample.ravel() if mask is None else sample[~mask[:, ::step, ::step]]


def _as_volumes(volumes: Any, what: str) -> list[np.ndarray]:
    """Arrays ``(z, y, x)`` of one array or tensor, or of several; a batch ``(volumes, z, y, x)`` counts as several."""
    several = isinstance(volumes, list | tuple) or getattr(volumes, "ndim", 0) == 4
    found = [np.asarray(volume) for volume in (volumes if several else [volumes])]
    if not found or any(volume.ndim != 3 for volume in found):
        shapes = ", ".join(str(volume.shape) for volume in found) or "none"
        raise InputError(f"{what} have the shapes {shapes}; expected (z, y, x).")
    return found


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
        InputError: ``error_quantiles`` is not of this form.
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
        """Load a processor by bundled name, folder or Hub id.

        Raises:
            InputError: unknown name, no processor there, or one that is damaged or was altered.
        """
        name = os.fspath(pretrained_model_name_or_path)
        path = model_file(name, FEATURE_EXTRACTOR_NAME, **take_hub_options(kwargs))
        with loading(name):
            return super().from_pretrained(path, *args, **kwargs)

    def __call__(self, volumes: Any, masks: Any = None, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """Turn volumes into what the network takes: ``model(**processor(volume), factor=10)``.

        Args:
            volumes: an array or tensor ``(z, y, x)`` of any real dtype, or several of one shape; z is the section axis.
            masks: bool, of the same shapes; True where nothing was measured.
            return_tensors: ``pt`` for torch, ``np`` for NumPy.

        Returns:
            ``sections`` ``(volumes, y, z, x)``, float32, and with masks ``section_mask``, bool. Its attribute
            ``statistics`` is for :meth:`post_process`.

        Raises:
            InputError: not volumes of one shape, or no contrast in one, or another keyword.
        """
        check_keywords(kwargs, (), self.__call__)
        batch = _as_volumes(volumes, "volumes")
        held = [] if masks is None else [mask.astype(bool) for mask in _as_volumes(masks, "masks")]
        shapes = {one.shape for one in [*batch, *held]}
        if len(shapes) != 1 or len(held) not in (0, len(batch)):
            raise InputError(f"volumes and masks have the shapes {sorted(shapes)}; expected one for all, (z, y, x).")
        statistics = [self.measure(volume, mask) for volume, mask in zip_longest(batch, held)]
        sections = np.stack([one.normalise(volume) for one, volume in zip(statistics, batch, strict=True)])
        data = {"sections": sections.swapaxes(1, 2)}
        if held:
            data["section_mask"] = np.stack(held).swapaxes(1, 2)
            data["sections"][data["section_mask"]] = 0  # whatever was there, NaN too
        found: Any = BatchFeature(data, tensor_type=return_tensors)
        found.statistics = statistics
        return found

    def post_process(self, outputs: Any, statistics: Sequence[IntensityStatistics]) -> list[dict[str, np.ndarray]]:
        """Turn what the network made back into volumes, one for each that it was given.

        Args:
            outputs: of the network, for a batch as :meth:`__call__` makes it.
            statistics: those of that batch.

        Returns:
            For each volume ``reconstruction``, ``(z, y, x)`` in its dtype, and ``uncertainty``, the standard deviation
            of the error in its grey levels, float32, which is the square root of 2 times a Laplace scale.
        """
        found = []
        for planes, scale, one in zip(outputs.reconstruction, outputs.scale, statistics, strict=True):
            clip, error = (part.detach().float().cpu().numpy().swapaxes(0, 1) for part in (planes, scale))
            there = ~np.isnan(error[:, 0, 0])  # planes that only another clip of the batch has are NaN
            found.append(
                {
                    "reconstruction": self.restore(clip[there], one),
                    "uncertainty": self.restore_scale(math.sqrt(2) * error[there], one),
                }
            )
        return found

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch for the network of single clips, which may have geometries of their own: a data collator.

        Args:
            examples: ``sections`` ``(frames, rows, columns)``, ``labels`` ``(frames, planes, columns)``, ``factor``
                and, if need be, ``thickness``, ``frame_spacing`` and ``section_mask``: the same keys in each.

        Raises:
            InputError: an example has other keys than the first.
        """
        import torch

        names = examples[0].keys()
        if odd := next((example for example in examples if example.keys() != names), None):
            raise InputError(f"an example has {sorted(odd)}, another {sorted(names)}; expected the same keys in each.")
        batch: dict[str, Any] = {}
        for name in names:
            values = [torch.as_tensor(example[name]) for example in examples]
            if name == "labels":  # planes that only another clip has are not looked at
                most = max(value.shape[1] for value in values)
                values = [
                    torch.nn.functional.pad(value, (0, 0, 0, most - value.shape[1]), value=math.nan) for value in values
                ]
            batch[name] = torch.stack(values)
        return batch

    def calibrate(self, quantiles: Mapping[Mode, ErrorQuantiles]) -> None:
        """Keep the measured error quantiles of the weights in each mode; ``save_pretrained`` writes it."""
        self.error_quantiles = {
            mode: {name: list(multiples) for name, multiples in vars(quantiles[mode]).items()} for mode in MODES
        }

    def interval(
        self, probability: float, geometry: SectionModel, masked: bool = False, mode: Mode = DEFAULT_MODE
    ) -> float:
        """Multiple of the stated uncertainty that holds the error of a voxel, or of a masked one, with this
        probability.

        Where sections are single planes, some voxels of a faithful result are measured ones, without error. Of ``n``
        planes that a section averages only one combination of ``n`` is measured: the thin end is then that of the mode
        by ``1 / n``, and for the rest that of the clean mode, which knows no such voxels.

        Raises:
            InputError: a probability outside 0 to 0.99.
        """
        check_mode(mode)
        own, clean = self.error_quantiles[mode], self.error_quantiles["clean"]
        share = min(1.0, 1 / (geometry.factor * geometry.thickness))
        thin = [share * a + (1 - share) * b for a, b in zip(own["single_plane"], clean["single_plane"], strict=True)]
        return ErrorQuantiles(**{**own, "single_plane": thin}).multiple(probability, geometry, masked)

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
            raise InputError("every voxel of the volume is masked. Is the mask the right way round?")
        if not np.isfinite(sample).all():
            raise InputError("the volume holds NaN or infinite voxels; replace them, or mask the sections they are in.")
        low, high = np.percentile(sample, self.percentiles)
        clipped = sample.clip(low, high) if high > low else sample
        mean, std = float(clipped.mean()), float(clipped.std())
        if not std > 0:
            raise InputError(f"every voxel is {mean:g}; expected an image with contrast. Is this the right file?")
        return IntensityStatistics(mean, std, volume.dtype)

    def _step(self, voxels: int) -> int:
        """Step between the rows and columns that are measured in a volume of so many voxels."""
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
# Not by AutoImageProcessor.register, which wants a processor of 2-D pictures.
_CLASSES: Any = dict.fromkeys(("pil", "torchvision"), EMformerProcessor)
IMAGE_PROCESSOR_MAPPING.register(EMformerConfig, _CLASSES, exist_ok=True)

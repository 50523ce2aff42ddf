"""EMformer: tensors in, tensors out. Knows no file, no tile and no nanometre.

A clip is ``(batch, frames, rows, columns)``: a video whose frames run along one lateral axis, whose rows are sections
(coarse) and whose columns run along the other lateral axis. All heavy work happens on this coarse grid; a continuous
decoder then evaluates each section's basis functions at the rows that are wanted, at any real factor.

"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import einops  # noqa: F401  # for transformers, which looks in this file for what the code on the Hub needs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_emformer import EMformerConfig
from .errors import InputError, check_keywords
from .files import open_to_colleagues
from .interpolation import fill_masked_rows
from .layers_emformer import (
    EMformerAttention,
    EMformerConditioning,
    EMformerDecoder,
    EMformerEmbeddings,
    EMformerFeedForward,
    frames_at_a_time,
    within,
)
from .losses import reconstruction_loss
from .mixed_batches import geometries, restore_mixed
from .model_files import MISFITS, attach, check_fit, commit_of, is_adapter, model_folder, take_hub_options
from .modes import Mode, check_mode
from .planes import Planes, constant, locate_planes
from .pretrained import loading
from .projection import project

PASSED_ON = ("num_items_in_batch", "output_attentions", "output_hidden_states", "return_dict")  # of transformers
LOG_SCALE_RANGE = (-6.0, 3.0)  # of the uncertainty head, in standard deviations of the volume


@dataclass(frozen=True)
class PreparedClip:
    """A clip as the layers take it.

    Attributes:
        sections: ``(batch, frames, rows, columns)``, float32, what is masked filled by interpolation.
        padded, padded_mask: the same, and what is masked of it, in whole windows.
        planes: where planes are wanted.
    """

    sections: Tensor
    padded: Tensor
    padded_mask: Tensor | None
    planes: Planes


@dataclass
class EMformerOutput(ModelOutput):
    """Output of :class:`EMformerModel`, in the intensity units of the input.

    Attributes:
        loss: of the labels, if there were any; a number.
        reconstruction: ``(batch, frames, planes, columns)``, float32.
        scale: Laplace scale of each voxel (its expected absolute error), same shape, float32.
        hidden_states: token grids before and after each block, ``(batch, frames, rows, columns / patch, hidden)``,
            padded to whole windows.
        attentions: window attention maps of each block (eager attention only).
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    scale: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class EMformerLayer(GradientCheckpointingLayer):
    """Window attention, in every so many layers, and a convolutional feed-forward layer."""

    def __init__(self, config: EMformerConfig, index: int):
        super().__init__()
        turn, rest = divmod(index + 1, config.attention_every)
        self.attention = EMformerAttention(config, shifted=turn % 2 == 0) if rest == 0 else None
        self.mlp = EMformerFeedForward(config)

    def forward(self, tokens: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        if self.attention is not None:
            tokens = self.attention(tokens, condition, **kwargs)[0]
        return self.mlp(tokens, condition)

    def stream(self, chunks: Iterable[Tensor], condition: Tensor, frames: int, step: int) -> Iterator[Tensor]:
        """The same chunk by chunk; for the arguments see :meth:`EMformerAttention.stream`."""
        if self.attention is not None:
            chunks = self.attention.stream(chunks, condition, frames, step)
        return self.mlp.stream(chunks, condition)


class EMformerPreTrainedModel(PreTrainedModel):
    """Loading and initialisation.

    Attributes:
        hub_revision: the commit on the Hub that the weights came from, if they did.
    """

    config: EMformerConfig
    hub_revision: str | None = None
    base_model_prefix = "emformer"
    main_input_name = "sections"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean, which Trainer divides by the steps that it accumulates
    _no_split_modules = ["EMformerLayer", "EMformerEmbeddings"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": EMformerLayer, "attentions": OutputRecorder(EMformerAttention, index=1)}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """What PEFT asks for by the name that transformers gave up, and warns of."""
        return self.is_activation_checkpointing

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fan-in normal weights; norms start as the identity, residual branches and the output small."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.normal_(module.weight, std=getattr(module, "gain", 1.0) * module.weight[0].numel() ** -0.5)
            init.zeros_(cast(Tensor, module.bias))
        elif isinstance(module, EMformerEmbeddings):
            init.zeros_(module.mask_token)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load weights by bundled name, folder or Hub id (in this order), offline wherever the files are local.

        An adapter is merged into its base, which is found by name and revision: what is returned has plain weights.
        :func:`~emformer_hub.adapters.load_adapter` keeps the two apart.

        Takes what :meth:`transformers.PreTrainedModel.from_pretrained` takes; a ``revision`` other than that of the
        bundled weights is fetched from the Hub. Weights are read from safetensors, in one file.

        Raises:
            InputError: unknown name, a damaged file, a config of another model, or weights that do not fit it.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *args, **kwargs)
        name = os.fspath(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        resize = kwargs.pop("ignore_mismatched_sizes", False)
        hub = take_hub_options(kwargs)
        folder = model_folder(name, **hub)
        if is_adapter(folder):
            merged = attach(folder, cls.from_pretrained, name=name, **hub, **kwargs).merge_and_unload()
            merged._note_origin(name, folder)
            return (merged, {kind: set() for kind in MISFITS}) if wants_info else merged
        kwargs.setdefault("use_safetensors", True)
        try:
            with loading(name):
                loaded: Any = super().from_pretrained(
                    folder, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
        except InputError as error:
            if Path(name).is_dir():
                raise
            raise InputError(str(error).replace(str(folder), name)) from error  # call it what the user calls it
        model, info = loaded
        model._note_origin(name, folder)
        if wants_info:  # whoever asks what does not fit is told, and decides
            return model, info
        check_fit(name, info, model, resized=resize)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write as :meth:`transformers.PreTrainedModel.save_pretrained` does, weights with usual permissions, too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        open_to_colleagues(save_directory, like="config.json")

    def _note_origin(self, name: str, folder: Path) -> None:
        """Remember what the user called the weights, rather than a folder of the cache or the installation."""
        self.name_or_path = self.config.name_or_path = name
        self.hub_revision = commit_of(folder)


class EMformerModel(EMformerPreTrainedModel):
    """Anisotropic clip in, isotropic clip and its uncertainty out.

    ``EMformerModel.from_pretrained("emformer-small")`` loads bundled weights; a folder or a Hub id works as well.
    """

    def __init__(self, config: EMformerConfig):
        super().__init__(config)
        self.embeddings = EMformerEmbeddings(config)
        self.conditioning = EMformerConditioning(config)
        self.layers = nn.ModuleList(EMformerLayer(config, index) for index in range(config.num_hidden_layers))
        self.decoder = EMformerDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        sections: Tensor,
        factor: float | Tensor,
        *,
        positions: Sequence[float] | np.ndarray | None = None,
        thickness: float | Tensor = 1.0,
        frame_spacing: float | Tensor = 1.0,
        section_mask: Tensor | None = None,
        mode: Mode = "clean",
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EMformerOutput:
        """Reconstruct planes between and inside sections.

        Args:
            sections: ``(batch, frames, rows, columns)``, zero mean and unit standard deviation over the volume
                (see :class:`EMformerProcessor`); any sizes from 1 up.
            factor: output planes per section, real, 1 to 16.
            positions: where planes are wanted, ascending, in section coordinates: the centre of row ``i`` is at ``i``
                (``SectionModel.plane_positions``). Default: every plane of the slabs that the rows own.
            thickness: imaged fraction of the section spacing, in (0, 1].
            frame_spacing: distance between frames over distance between columns. Like ``factor`` and ``thickness``,
                one number, or a tensor ``(batch,)``; planes that a clip does not have are then NaN.
            section_mask: bool, broadcastable to ``sections``; True where nothing was measured (missing, damaged).
            mode: ``clean``, what is expected of the tissue, or ``faithful``, corrected so that sections cut from the
                planes are those given, noise and all (:func:`~emformer_hub.projection.project`).
            labels: what the planes are in truth, of the shape of the reconstruction; gives a ``loss``
                (:func:`~emformer_hub.losses.reconstruction_loss`).
            kwargs: ``output_hidden_states``, ``output_attentions``, ``return_dict``, as in transformers.

        Returns:
            :class:`EMformerOutput`, in the intensity units of ``sections``.

        Raises:
            InputError: another mode, an unknown keyword, or labels of another shape.
        """
        check_mode(mode)
        check_keywords(kwargs, PASSED_ON, self.forward)
        if any(isinstance(value, Tensor) for value in (factor, thickness, frame_spacing)):
            groups = geometries(len(sections), factor, thickness, frame_spacing)
            if len(groups) > 1:
                given = {**kwargs, "positions": positions, "section_mask": section_mask, "labels": labels, "mode": mode}
                return EMformerOutput(*restore_mixed(self.forward, groups, sections, **given))
            ((factor, thickness, frame_spacing),) = groups
        factor, thickness, frame_spacing = (constant(float(number)) for number in (factor, thickness, frame_spacing))
        positions = None if positions is None else [constant(float(position)) for position in positions]
        clip = self._prepare(sections, factor, positions, thickness, section_mask)
        condition = self.conditioning(factor, frame_spacing, thickness)
        tokens = self.embeddings(clip.padded.to(self.dtype), clip.padded_mask)
        for layer in self.layers:
            tokens = layer(tokens, condition, **kwargs)
        tokens = within(tokens, 1, 0, sections.shape[1])
        planes, scale = self._decode(tokens, condition, clip.sections, clip.planes, factor)
        if mode == "faithful":
            planes = project(planes, clip.sections, positions, factor, thickness, section_mask)
        loss = None if labels is None else reconstruction_loss(planes, scale, labels)[0]
        return EMformerOutput(loss=loss, reconstruction=planes, scale=scale)

    @torch.no_grad()
    def stream(
        self,
        sections: Tensor,
        factor: float,
        *,
        positions: Sequence[float] | np.ndarray | None = None,
        thickness: float = 1.0,
        frame_spacing: float = 1.0,
        section_mask: Tensor | None = None,
        inside: tuple[slice, slice] | None = None,
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Compute a clip a few frames at a time, in the memory of a few frames; without gradients, in ``clean`` mode.

        Every frame passes each layer once, as in :meth:`forward`, whose values these are but for rounding.

        Args:
            sections, factor, positions, thickness, frame_spacing, section_mask: as for :meth:`forward`.
            inside: frames and columns that are wanted; the others are only looked at. Default: all.

        Yields:
            Place of these frames among those that are wanted; their reconstruction and their scale,
            ``(batch, frames, planes, columns)``, in the intensity units of ``sections``.
        """
        clip = self._prepare(sections, factor, positions, thickness, section_mask)
        wanted, columns = inside or (slice(0, sections.shape[1]), slice(0, sections.shape[3]))
        condition = self.conditioning(factor, frame_spacing, thickness)
        frames, window = clip.padded.shape[1], self.config.window_size[0]
        step = frames_at_a_time(self.embeddings.patches(clip.padded), window, streamed=True)
        chunks = self.embeddings.stream(clip.padded.to(self.dtype).split(step, 1), clip.padded_mask)
        for layer in self.layers:
            chunks = cast(EMformerLayer, layer).stream(chunks, condition, frames, step)
        done = 0
        for tokens in chunks:
            first, stop = max(wanted.start, done), min(wanted.stop, done + tokens.shape[1])
            if first < stop:
                part = tokens[:, first - done : stop - done]
                measured = clip.sections[:, first:stop]
                yield (
                    slice(first - wanted.start, stop - wanted.start),
                    *self._decode(part, condition, measured, clip.planes, factor, columns),
                )
            done += tokens.shape[1]

    def _prepare(
        self,
        sections: Tensor,
        factor: float,
        positions: Sequence[float] | np.ndarray | None,
        thickness: float,
        mask: Tensor | None,
    ) -> PreparedClip:
        sections = sections.float()
        planes = locate_planes(positions, sections.shape[2], factor, thickness, sections.device)
        padded_mask = None
        if mask is not None:
            sections = fill_masked_rows(sections, mask)
            padded_mask = self._pad(mask.expand_as(sections).float()) > 0
        return PreparedClip(sections, self._pad(sections), padded_mask, planes)

    def _decode(
        self,
        tokens: Tensor,
        condition: Tensor,
        sections: Tensor,
        planes: Planes,
        factor: float,
        columns: slice | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Planes and their scale from the tokens of some frames and their sections, at these columns."""
        start, stop = (0, sections.shape[3]) if columns is None else (columns.start, columns.stop)
        patch = self.config.patch_size
        first, end = start // patch, (stop + patch - 1) // patch
        decoded = self.decoder(within(tokens, 3, first, end), condition, planes, factor)
        value, log_scale = (within(part, 3, start - first * patch, stop - first * patch) for part in decoded)
        with torch.autocast(sections.device.type, enabled=False):
            value = torch.matmul(planes.cubic, within(sections, 3, start, stop)) + value
        return value, log_scale.clamp(*LOG_SCALE_RANGE).exp()

    def _pad(self, sections: Tensor) -> Tensor:
        """Repeat the last frame, row and column up to whole windows."""
        window = self.config.window_size
        multiples = (window[0], window[1], window[2] * self.config.patch_size)
        missing = [(n + m - 1) // m * m - n for n, m in zip(sections.shape[1:], multiples, strict=True)]
        if not torch.compiler.is_compiling() and not any(missing):  # sizes may be those of other clips, too
            return sections
        return F.pad(sections, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")


AutoModel.register(EMformerConfig, EMformerModel, exist_ok=True)

"""EMformer: tensors in, tensors out. Knows no file, no tile and no nanometre.

A clip is ``(batch, frames, rows, columns)``: a video whose frames run along one lateral axis, whose rows are sections
(coarse) and whose columns run along the other lateral axis. All heavy work happens on this coarse grid; a continuous
decoder then evaluates each section's basis functions at the rows that are wanted, at any real factor.

Letters of einops patterns: b batch, f frames, r rows, c columns, d channels, w windows, n tokens of one, h heads.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_emformer import EMformerConfig
from .errors import InputError
from .geometry import SectionModel
from .interpolation import fill_masked_rows, interpolation_matrix
from .model_files import HUB_OPTIONS, attach, commit_of, is_adapter, model_folder
from .modes import Mode, check_mode
from .pretrained import loading
from .projection import project

CACHED_TOKENS = 2**14  # that a layer works on at a time on a CPU; benchmarks/architecture.md has others
LOG_SCALE_RANGE = (-6.0, 3.0)  # of the uncertainty head, in standard deviations of the volume


@dataclass
class EMformerOutput(ModelOutput):
    """Output of :class:`EMformerModel`, in the intensity units of the input.

    Attributes:
        reconstruction: ``(batch, frames, planes, columns)``, float32.
        scale: Laplace scale of each voxel (its expected absolute error), same shape, float32.
        hidden_states: token grids before and after each block, ``(batch, frames, rows, columns / patch, hidden)``,
            padded to whole windows.
        attentions: window attention maps of each block (eager attention only).
    """

    reconstruction: Tensor | None = None
    scale: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def convolve(convolution: nn.Conv2d, tokens: Tensor) -> Tensor:
    """Convolve rows and columns of ``(batch, frames, rows, columns, channels)``; channels stay last in memory."""
    images = convolution(rearrange(tokens, "b f r c d -> (b f) d r c"))
    return rearrange(images, "(b f) d r c -> b f r c d", b=len(tokens))


def frames_in_cache(tokens: Tensor, multiple: int = 1) -> int:
    """How many frames a layer works on at a time: all of them, or, where a CPU only infers, what its cache holds."""
    frames, rows, columns = tokens.shape[1:4]
    if torch.is_grad_enabled() or tokens.device.type != "cpu":
        return frames
    wanted = CACHED_TOKENS // (tokens.shape[0] * rows * columns * multiple)
    return max(1, wanted) * multiple


class EMformerLinear(nn.Linear):
    """A linear layer whose weights start ``gain`` times as large as the general rule says.

    Initialisation is a property of the layer itself, because transformers initialises a module outside its own package
    only if the module holds parameters directly: a parent cannot override its children.
    """

    def __init__(self, in_features: int, out_features: int, gain: float):
        super().__init__(in_features, out_features)
        self.gain = gain


class EMformerEmbeddings(nn.Module):
    """Columns unshuffled into tokens, a 3x3x3 convolution, and a learned token where nothing was measured."""

    def __init__(self, config: EMformerConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.projection = nn.Conv2d(3 * config.patch_size, config.hidden_size, kernel_size=3, padding=1)
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, sections: Tensor, mask: Tensor | None) -> Tensor:
        patches = self._patches(sections)
        around = F.pad(patches, (0,) * 6 + (1, 1))
        tokens = convolve(self.projection, torch.cat([around[:, :-2], patches, around[:, 2:]], -1))
        if mask is not None:
            tokens = tokens + self._patches(mask.to(tokens.dtype)).mean(-1, keepdim=True) * self.mask_token
        return tokens

    def _patches(self, sections: Tensor) -> Tensor:
        return rearrange(sections, "b f r (c patch) -> b f r c patch", patch=self.patch_size)


class EMformerConditioning(nn.Module):
    """(log2 factor, log2 frame spacing, thickness, log2 imaged depth) -> one vector that modulates every block."""

    def __init__(self, config: EMformerConfig):
        super().__init__()
        self.fc1 = nn.Linear(4, config.condition_size)
        self.fc2 = nn.Linear(config.condition_size, config.condition_size)

    def forward(self, factor: float, frame_spacing: float, thickness: float) -> Tensor:
        features = [math.log2(factor) / 2 - 1, math.log2(frame_spacing) / 2, 2 * thickness - 1]
        features.append(math.log2(factor * thickness) / 2)
        weight = self.fc1.weight
        return F.silu(self.fc2(F.silu(self.fc1(torch.tensor(features, dtype=weight.dtype, device=weight.device)))))


class EMformerModulatedNorm(nn.Module):
    """Layer norm whose gain and bias come from the conditioning (adaptive layer norm; Peebles & Xie 2023)."""

    def __init__(self, config: EMformerConfig):
        super().__init__()
        self.modulation = EMformerLinear(config.condition_size, 2 * config.hidden_size, gain=0.0)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.modulation(condition).to(tokens.dtype).chunk(2)
        return F.layer_norm(tokens, gain.shape, 1 + gain, bias)


class EMformerAttention(nn.Module):
    """Multi-head attention inside 3-D windows of tokens, behind a modulated norm and beside a residual."""

    def __init__(self, config: EMformerConfig, shifted: bool):
        super().__init__()
        self.config = config
        self.window = config.window_size
        self.shifted = shifted
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.norm = EMformerModulatedNorm(config)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = EMformerLinear(config.hidden_size, config.hidden_size, (2 * config.num_hidden_layers) ** -0.5)

    def forward(self, tokens: Tensor, condition: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """``(batch, frames, rows, columns, hidden)``, multiples of the window -> the same, and attention weights."""
        # Shifted windows leave half a window at each border out (no wrap-around, so no mask: SDPA stays fused).
        margins = [w // 2 if self.shifted and n > w else 0 for n, w in zip(tokens.shape[1:4], self.window, strict=True)]
        inside = (slice(None), *(slice(m, n - m) for m, n in zip(margins, tokens.shape[1:4], strict=True)))
        result, maps = tokens.clone(), []
        source, target = tokens[inside], result[inside]
        step = frames_in_cache(source, multiple=self.window[0])
        for start in range(0, source.shape[1], step):
            mixed, weights = self._mix(source[:, start : start + step], condition, **kwargs)
            target[:, start : start + step].add_(mixed)
            if weights is not None:
                maps.append(weights)
        return result, torch.cat(maps) if maps else None

    def _mix(self, tokens: Tensor, condition: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        grid, windows = "b (f wf) (r wr) (c wc) d", "(b f r c) (wf wr wc) d"
        sides = dict(zip(("wf", "wr", "wc"), self.window, strict=True))
        f, r, c = (n // side for n, side in zip(tokens.shape[1:4], self.window, strict=True))
        inside = rearrange(self.norm(tokens, condition), f"{grid} -> {windows}", **sides)  # one row a window
        query, key, value = rearrange(self.qkv(inside), "w n (qkv h d) -> qkv w h n d", qkv=3, h=self.num_heads)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attention_interface(
            self, query, key, value, None, scaling=self.scaling, is_causal=False, dropout=0.0, **kwargs
        )
        mixed = self.proj(rearrange(mixed, "w n h d -> w n (h d)"))
        return rearrange(mixed, f"{windows} -> {grid}", f=f, r=r, c=c, **sides), weights


class EMformerFeedForward(nn.Module):
    """A modulated norm, a 3x3 convolution over rows and columns, GELU and a linear layer, beside a residual.

    Before the convolution a quarter of the channels moves one frame on and a quarter one frame back, so that it mixes
    three frames at the cost of one (temporal shift; Lin, Gan & Han 2019). It also gives attention the positions that it
    lacks.
    """

    def __init__(self, config: EMformerConfig):
        super().__init__()
        inner = round(config.hidden_size * config.mlp_ratio)
        quarter = config.hidden_size // 4
        self.shares = [quarter, quarter, config.hidden_size - 2 * quarter]
        self.norm = EMformerModulatedNorm(config)
        self.conv = nn.Conv2d(config.hidden_size, inner, kernel_size=3, padding=1)
        self.fc2 = EMformerLinear(inner, config.hidden_size, (2 * config.num_hidden_layers) ** -0.5)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        frames, step, result = tokens.shape[1], frames_in_cache(tokens), tokens.clone()
        for start in range(0, frames, step):
            first, last = max(start - 1, 0), min(start + step + 1, frames)  # with a neighbour on either side
            part = self.norm(tokens[:, first:last], condition)
            beyond = (int(start == 0), int(start + step >= frames))
            part = F.pad(part, (0,) * 6 + beyond) if any(beyond) else part
            before, after, same = part.split(self.shares, -1)
            inner = convolve(self.conv, torch.cat([before[:, :-2], after[:, 2:], same[:, 1:-1]], -1))
            result[:, start : start + step].add_(self.fc2(F.gelu(inner, approximate="tanh")))
        return result


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


def nearest_rows(positions: list[float], num_rows: int) -> list[int]:
    """The row whose token decodes each plane."""
    return [min(max(math.floor(position + 0.5), 0), num_rows - 1) for position in positions]


def plane_slots(positions: list[float], nearest: list[int]) -> tuple[list[int], list[float]]:
    """Give each row, from the first that has a plane to the last, equally many slots: decoding is one batched product.

    Returns the slot of each plane (row-major) and the offset of every slot from its row's centre (0 where unused);
    there are as many slots a row as the fullest one has planes.
    """
    ranks = [k - nearest.index(row) for k, row in enumerate(nearest)]
    width = max(ranks) + 1
    where = [(row - nearest[0]) * width + rank for row, rank in zip(nearest, ranks, strict=True)]
    offsets = [0.0] * ((nearest[-1] - nearest[0] + 1) * width)
    for slot, row, position in zip(where, nearest, positions, strict=True):
        offsets[slot] = position - row
    return where, offsets


class EMformerDecoder(nn.Module):
    """Continuous decoder: a token's coefficients times basis functions of the position inside its section."""

    def __init__(self, config: EMformerConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.splits = [config.num_basis, config.num_scale_basis]
        self.norm = EMformerModulatedNorm(config)
        self.coefficients = EMformerLinear(config.hidden_size, config.patch_size * sum(self.splits), gain=0.1)
        self.basis1 = nn.Linear(6, 64)
        self.basis2 = nn.Linear(64, 64)
        self.basis3 = nn.Linear(64, sum(self.splits))

    def basis(self, offsets: Tensor, factor: float) -> Tensor:
        """Basis functions at ``offsets`` (any shape, in sections from a section's centre) -> ``(..., basis)``."""
        weight = self.basis1.weight
        x = offsets.to(weight.dtype)
        features = [2 * x, torch.full_like(x, 1 / factor)]
        features += [f(k * math.pi * x) for k in (1, 2) for f in (torch.sin, torch.cos)]
        hidden = F.silu(self.basis2(F.silu(self.basis1(torch.stack(features, -1)))))
        return self.basis3(hidden)

    def forward(
        self, tokens: Tensor, condition: Tensor, positions: list[float], factor: float
    ) -> tuple[Tensor, Tensor]:
        """Residual value and log scale at row ``positions`` (in sections), each ``(b, frames, planes, columns)``."""
        nearest = nearest_rows(positions, tokens.shape[2])
        rows = slice(nearest[0], nearest[-1] + 1)  # no others have a plane to give
        where, offsets = plane_slots(positions, nearest)
        tokens = tokens[:, :, rows]
        basis = self.basis(torch.tensor(offsets, device=tokens.device), factor)
        basis = rearrange(basis, "(r slots) k -> r slots k", r=tokens.shape[2])
        parts = tokens.split(frames_in_cache(tokens), dim=1)
        values, scales = zip(*(self._decode(part, condition, basis, where) for part in parts), strict=True)
        return torch.cat(values, 1), torch.cat(scales, 1)

    def _decode(self, tokens: Tensor, condition: Tensor, basis: Tensor, where: list[int]) -> list[Tensor]:
        coefficients = self.coefficients(self.norm(tokens, condition))
        coefficients = rearrange(coefficients, "b f r c (patch k) -> b f r (c patch) k", patch=self.patch_size)
        outputs = []
        for phi, part in zip(basis.split(self.splits, -1), coefficients.split(self.splits, -1), strict=True):
            planes = torch.matmul(phi, rearrange(part, "b f r c k -> b f r k c"))
            planes = rearrange(planes, "b f r slots c -> b f (r slots) c")
            if where != list(range(planes.shape[2])):  # an integer factor fills every slot, in order
                planes = planes.index_select(2, torch.tensor(where, device=planes.device))
            outputs.append(planes.float())
        return outputs


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
    _no_split_modules = ["EMformerLayer", "EMformerEmbeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {
        "hidden_states": EMformerLayer,
        "attentions": OutputRecorder(EMformerAttention, index=1),
    }

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
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = model_folder(name, **hub)
        if is_adapter(folder):
            merged = attach(folder, cls.from_pretrained, name=name, **hub, **kwargs).merge_and_unload()
            merged._note_origin(name, folder)
            return merged
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
        faults = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
        for kind, keys in faults.items():
            if keys and not (kind == "mismatched_keys" and resize):
                raise InputError(
                    f"{name}: the weights do not fit the config: {kind.replace('_', ' ')} {', '.join(keys[:3])}"
                    f"{' …' if len(keys) > 3 else ''}. Were config.json and model.safetensors saved together, "
                    f"by this version of emformer_hub?"
                )
        return (model, info) if wants_info else model

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
        factor: float,
        *,
        positions: Sequence[float] | np.ndarray | None = None,
        thickness: float = 1.0,
        frame_spacing: float = 1.0,
        section_mask: Tensor | None = None,
        mode: Mode = "clean",
        **kwargs: Any,
    ) -> EMformerOutput:
        """Reconstruct planes between and inside sections.

        Args:
            sections: ``(batch, frames, rows, columns)``, zero mean and unit standard deviation over the volume
                (see :class:`EMformerProcessor`); any sizes from 1 up.
            factor: output planes per section, real, 1 to 16.
            positions: where planes are wanted, ascending, in section coordinates: the centre of row ``i`` is at ``i``
                (``SectionModel.plane_positions``). Default: every plane of the slabs that the rows own.
            thickness: imaged fraction of the section spacing, in (0, 1].
            frame_spacing: distance between frames over distance between columns.
            section_mask: bool, broadcastable to ``sections``; True where nothing was measured (missing, damaged).
            mode: ``clean``, what is expected of the tissue, or ``faithful``, corrected so that sections cut from the
                planes are those given, noise and all (:func:`~emformer_hub.projection.project`).

        Returns:
            :class:`EMformerOutput`, in the intensity units of ``sections``.

        Raises:
            InputError: another mode.
        """
        check_mode(mode)
        sections = sections.float()
        if positions is None:
            geometry = SectionModel(factor, thickness)
            positions = geometry.plane_positions(geometry.num_planes(sections.shape[2]))
        positions = [float(position) for position in positions]
        if section_mask is not None:
            sections = fill_masked_rows(sections, section_mask)
        base = self._interpolate(sections, positions)
        frames, rows, columns = sections.shape[1:]
        padded, padded_mask = self._pad(sections), None
        if section_mask is not None:
            padded_mask = self._pad(section_mask.expand_as(sections).float()) > 0

        condition = self.conditioning(factor, frame_spacing, thickness)
        tokens = self.embeddings(padded.to(self.dtype), padded_mask)
        for layer in self.layers:
            tokens = layer(tokens, condition, **kwargs)
        tokens = tokens[:, :frames, :rows]
        value, log_scale = self.decoder(tokens, condition, positions, factor)
        scale = log_scale[..., :columns].clamp(*LOG_SCALE_RANGE).exp()
        planes = base + value[..., :columns]
        if mode == "faithful":
            planes = project(planes, sections, positions, factor, thickness, section_mask)
        return EMformerOutput(reconstruction=planes, scale=scale)

    def _pad(self, sections: Tensor) -> Tensor:
        """Repeat the last frame, row and column up to whole windows."""
        window = self.config.window_size
        multiples = (window[0], window[1], window[2] * self.config.patch_size)
        missing = [-n % m for n, m in zip(sections.shape[1:], multiples, strict=True)]
        if not any(missing):
            return sections
        return F.pad(sections, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")

    @staticmethod
    def _interpolate(sections: Tensor, positions: list[float]) -> Tensor:
        matrix = interpolation_matrix(np.array(positions), sections.shape[2], "cubic")
        weights = torch.tensor(matrix.tolist(), device=sections.device)
        with torch.autocast(sections.device.type, enabled=False):
            return torch.matmul(weights, sections)


AutoModel.register(EMformerConfig, EMformerModel, exist_ok=True)

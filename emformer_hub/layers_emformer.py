"""Layers of EMformer. Each computes a whole clip at once, for training, or a clip that arrives a few frames at a time.

``forward`` takes and returns all tokens of a clip, ``(batch, frames, rows, columns, channels)``. ``stream`` takes and
yields the same tokens in chunks of frames, so that a long clip needs the memory of a few frames only, and stays in the
cache of a CPU from one layer to the next. Both call the same arithmetic.

Letters of einops patterns: b batch, f frames, r rows, c columns, d channels, w windows, n tokens of one, h heads.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_emformer import EMformerConfig
from .planes import Planes

CACHED_TOKENS = 2**14
"""Tokens that a layer works on at a time where a CPU infers; benchmarks/architecture.md has others."""
STREAMED_TOKENS = 2**20
"""Tokens that a layer works on at a time in a stream on a GPU: enough to keep it busy."""
ONE_FRAME_AROUND = (0,) * 6 + (1, 1)  # of (batch, frames, rows, columns, channels), for F.pad


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
    b, f = tokens.shape[:2]
    return rearrange(images, "(b f) d r c -> b f r c d", b=b, f=f)


def within(tensor: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Part of an axis. A graph for any sizes gathers it: a slice would be fixed to be, or not to be, the whole axis."""
    if torch.compiler.is_compiling():
        return tensor.index_select(axis, torch.arange(start, stop, device=tensor.device))
    return tensor.narrow(axis, start, stop - start)


def frames_at_a_time(tokens: Tensor, window: int, streamed: bool = False) -> int:
    """Frames that a layer works on at a time, a multiple of the window: what the cache of a CPU holds, or all.

    Args:
        tokens: ``(batch, frames, rows, columns, channels)``.
        window: frames of a window.
        streamed: whether a part must do, also on a GPU.
    """
    batch, frames, rows, columns = tokens.shape[:4]
    on_cpu = tokens.device.type == "cpu"
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not (on_cpu or streamed):
        return frames
    wanted = (CACHED_TOKENS if on_cpu else STREAMED_TOKENS) // (batch * rows * columns * window)
    return max(1, wanted) * window


def in_chunks(chunks: Iterable[Tensor], sizes: Iterable[int]) -> Iterator[Tensor]:
    """Divide the frames of a clip anew, into chunks of these sizes, which are as many frames as there are."""
    source, held = iter(chunks), None
    for size in sizes:
        parts: list[Tensor] = []
        while (missing := size - sum(part.shape[1] for part in parts)) > 0:
            part = next(source) if held is None else held
            held = part[:, missing:] if part.shape[1] > missing else None
            parts.append(part[:, :missing])
            del part
        complete = [parts[0] if len(parts) == 1 else torch.cat(parts, 1)]
        del parts
        yield complete.pop()  # and hold nothing of it while later layers work


def with_neighbours(chunks: Iterable[Tensor], transform: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield frames with the transformed ones from the frame before to the frame after them, zero beyond the clip.

    A frame is yielded once the next one is there.
    """
    waiting = around = None
    for chunk in chunks:
        features = transform(chunk)
        if waiting is None or around is None:
            waiting, around = chunk, F.pad(features, (0,) * 6 + (1, 0))
        else:
            waiting, around = torch.cat([waiting, chunk], 1), torch.cat([around, features], 1)
        ready = waiting.shape[1] - 1
        if ready:
            complete = [(waiting[:, :ready], around)]
            waiting, around = waiting[:, ready:].clone(), around[:, ready:].clone()
            del chunk, features
            yield complete.pop()  # and hold the last frames only while later layers work
    if waiting is not None and around is not None:
        yield waiting, F.pad(around, (0,) * 6 + (0, 1))


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
        return self._embed(F.pad(self.patches(sections), ONE_FRAME_AROUND), mask)

    def stream(self, chunks: Iterable[Tensor], mask: Tensor | None) -> Iterator[Tensor]:
        """Embed sections chunk by chunk; the mask is of all frames."""
        done = 0
        for patches, around in with_neighbours(map(self.patches, chunks), lambda patches: patches):
            stop = done + patches.shape[1]
            yield self._embed(around, None if mask is None else mask[:, done:stop])
            done = stop

    def _embed(self, around: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens of all frames but the first and the last."""
        tokens = convolve(self.projection, torch.cat([around[:, :-2], around[:, 1:-1], around[:, 2:]], -1))
        if mask is not None:
            tokens = tokens + self.patches(mask.to(tokens.dtype)).mean(-1, keepdim=True) * self.mask_token
        return tokens

    def patches(self, sections: Tensor) -> Tensor:
        """``(batch, frames, rows, columns)`` -> ``(batch, frames, rows, columns / patch, patch)``."""
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
        frames, step = tokens.shape[1], frames_at_a_time(tokens, self.window[0])
        if step < frames and self.config._attn_implementation != "eager":  # which alone gives weights
            return torch.cat(list(self.stream(tokens.split(step, 1), condition, frames, step)), 1), None
        result, inside = tokens.clone(), self._inside(tokens)
        mixed, weights = self._mix(tokens[inside], condition, **kwargs)
        result[inside].add_(mixed)
        return result, weights

    def stream(self, chunks: Iterable[Tensor], condition: Tensor, frames: int, step: int) -> Iterator[Tensor]:
        """Attend chunk by chunk.

        Args:
            chunks: tokens of the clip.
            condition: as for the whole clip.
            frames: number of frames of the clip, a multiple of the window.
            step: number of frames to attend at a time, a multiple of the window.
        """
        edge = self._margin(0, frames)
        inner = frames - 2 * edge
        sizes = [edge, *(min(step, inner - start) for start in range(0, inner, step)), edge]
        return map(lambda tokens: self._attend(tokens, condition), in_chunks(chunks, filter(None, sizes)))

    def _attend(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Frames of whole windows; the half window at either end of a clip stays as it is."""
        if tokens.shape[1] < self.window[0]:
            return tokens
        result, inside = tokens.clone(), (slice(None), slice(None), *self._inside(tokens)[2:])
        before, after = (whole[inside] for whole in (tokens, result))
        step = self.window[1]
        step *= max(1, frames_at_a_time(before.transpose(1, 2), step, streamed=True) // step)
        for start in range(0, before.shape[2], step):  # rows of windows, as many as the cache holds
            rows = slice(start, start + step)
            after[:, :, rows].add_(self._mix(before[:, :, rows], condition)[0])
        return result

    def _margin(self, axis: int, length: int) -> int:
        """Tokens at either end of an axis that shifted windows leave out: half a window.

        There is no wrap-around, and so no mask: the fused kernels of attention can be used.
        """
        return self.window[axis] // 2 if self.shifted and length > self.window[axis] else 0

    def _inside(self, tokens: Tensor) -> tuple[slice, ...]:
        lengths = tokens.shape[1:4]
        margins = [self._margin(axis, length) for axis, length in enumerate(lengths)]
        return (slice(None), *(slice(m, n - m) for m, n in zip(margins, lengths, strict=True)))

    def _mix(self, tokens: Tensor, condition: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        grid, windows = "b (f wf) (r wr) (c wc) d", "(b f r c) (wf wr wc) d"
        sides = dict(zip(("wf", "wr", "wc"), self.window, strict=True))
        b, (f, r, c) = tokens.shape[0], (n // side for n, side in zip(tokens.shape[1:4], self.window, strict=True))
        inside = rearrange(self.norm(tokens, condition), f"{grid} -> {windows}", **sides)  # one row a window
        query, key, value = rearrange(self.qkv(inside), "w n (qkv h d) -> qkv w h n d", qkv=3, h=self.num_heads)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attention_interface(
            self, query, key, value, None, scaling=self.scaling, is_causal=False, dropout=0.0, **kwargs
        )
        mixed = self.proj(rearrange(mixed, "w n h d -> w n (h d)"))
        return rearrange(mixed, f"{windows} -> {grid}", b=b, f=f, r=r, c=c, **sides), weights


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
        step = frames_at_a_time(tokens, 1)
        if step < tokens.shape[1]:
            return torch.cat(list(self.stream(tokens.split(step, 1), condition)), 1)
        return tokens + self._mix(F.pad(self.norm(tokens, condition), ONE_FRAME_AROUND))

    def stream(self, chunks: Iterable[Tensor], condition: Tensor) -> Iterator[Tensor]:
        """The same chunk by chunk."""
        frames = with_neighbours(chunks, lambda tokens: self.norm(tokens, condition))
        return itertools.starmap(self._add, frames)

    def _add(self, tokens: Tensor, around: Tensor) -> Tensor:
        """Mix frames among their neighbours, as many at a time as the cache holds."""
        result, step = tokens.clone(), frames_at_a_time(tokens, 1)
        for start in range(0, tokens.shape[1], step):
            result[:, start : start + step].add_(self._mix(around[:, start : start + step + 2]))
        return result

    def _mix(self, around: Tensor) -> Tensor:
        """What is added to all frames but the first and the last."""
        before, after, same = around.split(self.shares, -1)
        inner = convolve(self.conv, torch.cat([before[:, :-2], after[:, 2:], same[:, 1:-1]], -1))
        return self.fc2(F.gelu(inner, approximate="tanh"))


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

    def forward(self, tokens: Tensor, condition: Tensor, planes: Planes, factor: float) -> tuple[Tensor, Tensor]:
        """Residual value and log scale of each plane, each ``(b, frames, planes, columns)``."""
        tokens = within(tokens, 2, planes.first, planes.stop)  # no others have a plane to give
        basis = rearrange(self.basis(planes.offsets, factor), "(r slots) k -> r slots k", slots=planes.slots)
        coefficients = self.coefficients(self.norm(tokens, condition))
        coefficients = rearrange(coefficients, "b f r c (patch k) -> b f r (c patch) k", patch=self.patch_size)
        outputs = []
        for phi, part in zip(basis.split(self.splits, -1), coefficients.split(self.splits, -1), strict=True):
            decoded = torch.matmul(phi, rearrange(part, "b f r c k -> b f r k c"))
            decoded = rearrange(decoded, "b f r slots c -> b f (r slots) c")
            if planes.places is not None:
                decoded = decoded.index_select(2, planes.places)
            outputs.append(decoded.float())
        value, log_scale = outputs
        return value, log_scale

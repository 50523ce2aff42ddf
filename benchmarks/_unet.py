"""A 2-D U-Net in the manner of IsotropicCARE: the learned baseline, with an EMformer's data, sampler and minutes.

Weigert, Royer, Jug & Myers, "Isotropic reconstruction of 3D fluorescence microscopy images using convolutional neural
networks", MICCAI 2017; Weigert et al., Nat. Methods 15, 2018. A residual U-Net learns to undo the degradation of
lateral slices, and is applied to the xz and the yz slices of the interpolated stack, which are averaged.

In its favour against the original: one set of weights knows every geometry, because factor and thickness enter as two
constant channels, and the optimiser's steps are averaged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from emformer_hub.devices import choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolation_matrix
from emformer_hub.losses import charbonnier
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.loop import learning_rate_share, load_volumes
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import ClipBatches
from emformer_hub.training.trainee import Average

LEARNING_RATE = 4e-4
"""As in CSBDeep, the implementation of IsotropicCARE."""
WIDTHS = (32, 64, 128, 256)
"""Channels of each level. CSBDeep has two levels of 5x5 kernels below the first; a third level of 3x3 kernels sees as
far for a quarter of the arithmetic, and brings the parameters near those of emformer-small."""
CHUNK_PIXELS = 2**20


class UNet(nn.Module):
    """Interpolated slices in, sharpened slices out; the residual starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(WIDTHS))
        self.down = nn.ModuleList([_block(3, WIDTHS[0], WIDTHS[0])])
        self.down.extend(_block(width, deeper, deeper) for width, deeper in pairs[:-1])
        self.bottom = _block(WIDTHS[-2], WIDTHS[-1], WIDTHS[-2])
        self.up = nn.ModuleList(_block(2 * width, width, max(width // 2, WIDTHS[0])) for width in reversed(WIDTHS[:-1]))
        self.out = nn.Conv2d(WIDTHS[0], 1, kernel_size=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, slices: Tensor, factor: float, thickness: float) -> Tensor:
        """``(slices, planes, columns)``, standard deviations from the mean; any sizes -> the same."""
        planes, columns = slices.shape[1:]
        multiple = 2 ** len(self.down)
        x = F.pad(slices[:, None], (0, -columns % multiple, 0, -planes % multiple), mode="replicate")
        geometry = [torch.full_like(x, np.log2(factor) / 2 - 1), torch.full_like(x, 2 * thickness - 1)]
        x = torch.cat([x, *geometry], 1).contiguous(memory_format=torch.channels_last)
        skipped = []
        for block in self.down:
            skipped.append(block(x))
            x = F.max_pool2d(skipped[-1], 2)
        x = self.bottom(x)
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skipped.pop()], 1))
        return slices + self.out(x)[:, 0, :planes, :columns]


def _block(*channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        convolution = nn.Conv2d(before, after, kernel_size=3, padding=1)
        weight, bias = convolution.parameters()
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        nn.init.zeros_(bias)
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)


@torch.inference_mode()
def sharpen(network: UNet, stack: np.ndarray, geometry: SectionModel, across: int) -> np.ndarray:
    """Apply the network to the slices of ``(planes, y, x)`` perpendicular to axis ``across``, 1 or 2; float32."""
    device = next(network.parameters()).device
    slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(stack, across, 0), np.float32))
    count = max(1, CHUNK_PIXELS // slices[0].numel())
    with _autocast(device):
        done = [network(part.to(device), geometry.factor, geometry.thickness).cpu() for part in slices.split(count)]
    return np.moveaxis(torch.cat(done).float().numpy(), 0, across)


def trained_unet(
    recipe_file: Path, data_root: Path, minutes: float | None, folder: Path, device: torch.device
) -> tuple[UNet, dict[str, Any]]:
    """The network trained as a recipe says, and what a report says about it; weights are kept in ``folder``.

    Args:
        recipe_file: of the EMformer that it stands beside; data, sampling, pixels a step, minutes and seed are its.
        minutes: wall time of training; wins over the recipe's.

    Raises:
        InputError: the recipe or its data cannot be used, or neither it nor ``minutes`` sets a time.
    """
    recipe = Recipe.load(recipe_file, minutes=minutes)
    if recipe.minutes is None:
        raise InputError(f"{recipe_file} trains for {recipe.steps} steps, not for minutes; give --unet-minutes.")
    digest = hashlib.sha256(recipe.to_yaml().encode()).hexdigest()
    path = folder / f"unet-{recipe.minutes:g}min-{digest[:8]}.safetensors"
    network = UNet().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        steps = _train(network, recipe, data_root, device)
        weights = {name: weight.contiguous() for name, weight in network.state_dict().items()}
        partial = path.with_suffix(".part")
        save_file(weights, partial, {"steps": str(steps), "recipe": recipe.to_yaml()})
        partial.replace(path)
    network.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        steps = int(file.metadata()["steps"])
    about = {"recipe": recipe_file.name, "minutes": recipe.minutes, "steps": steps, "file": path.name}
    return network.eval(), about


def _train(network: UNet, recipe: Recipe, data_root: Path, device: torch.device) -> int:
    """Train on single frames of the sampler's clips, as many pixels a step as the EMformer; return the steps taken."""
    assert recipe.minutes is not None
    torch.manual_seed(recipe.seed)
    network.train()
    batches = ClipBatches(
        load_volumes(recipe, data_root, EMformerProcessor()),
        dataclasses.replace(recipe.sampling, frames=1, mask=0.0, local_mask=0.0),
        seed=recipe.seed,
        batch_size=recipe.batch_size * recipe.sampling.frames,
    )
    stream = iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=recipe.workers))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=recipe.weight_decay)
    average = Average(network, recipe.ema_decay)
    step, begin = 0, time.monotonic()
    bar = tqdm(total=round(60 * recipe.minutes), desc="2-D U-Net", unit="s", disable=None)
    with bar:
        while (seconds := time.monotonic() - begin) < 60 * recipe.minutes:
            share = learning_rate_share(seconds / (60 * recipe.minutes), step, recipe)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * share
            batch = next(stream)
            sections, target = batch["sections"][:, 0], batch["target"][:, 0].to(device)
            cubic = torch.from_numpy(interpolation_matrix(batch["positions"], sections.shape[1], "cubic")) @ sections
            with _autocast(device):
                sharpened = network(cubic.to(device), batch["factor"], batch["thickness"])
            charbonnier(sharpened.float() - target).backward()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            average.update(network, step)
            bar.update(int(seconds) - bar.n)
    network.load_state_dict(average.weights)
    return step


def _autocast(device: torch.device) -> torch.autocast:
    dtype = choose_precision("auto", device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

"""What the benchmarks of speed time: reconstructions, passes of the network, steps of training, matrix products."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _report import RECIPE

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.losses import reconstruction_loss
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.in_memory import reconstruct
from emformer_hub.reconstruction.memory import choose_tile
from emformer_hub.training.loop import make_trainable
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import ClipBatches, TrainingVolume
from emformer_hub.training.trainee import Average, build_config
from emformer_hub.volumes.phantom import neuropil

Sizes = tuple[int, int, int]
"""Of a volume or a tile: sections and lateral voxels, along z, y and x."""

TRAINING_STEPS = 4
MATMUL_SIDE, MATMUL_SIDE_GPU = 2048, 8192
"""Side of the square products that measure a device's rate: large enough to keep it busy for the whole product."""


@dataclass(frozen=True)
class Work:
    """What one run of a case did.

    Attributes:
        voxels: of the output.
        attention: that the network ran with, as transformers calls it.
        array_bytes: size of the arrays that it returned, in main memory.
        drawing_s: seconds that it waited for training data.
    """

    voxels: int
    attention: str
    array_bytes: int = 0
    drawing_s: float | None = None


@dataclass(frozen=True)
class Case:
    """One thing to measure: a row of the table.

    Attributes:
        model: a name, a folder, a Hub id, or settings of an ``EMformerConfig`` for random weights.
        random: which of the two ``model`` is.
        what: ``reconstruct`` (the main job, one pass over a volume in memory), ``pass`` (the network on one tile), or
            ``train`` (some steps of training on the volume).
        precision: of matrix products, ``float32`` or ``bfloat16``.
        volume_zyx: the volume, in voxels along z, y and x.
        threads: of the CPU.
        factor: output planes a section; None where training draws it.
        attention: of the network, ``eager`` or ``sdpa``; None leaves it as the package sets it.
        given_tile_zyx: of ``reconstruct``; None is its default.
    """

    model: str
    random: bool
    what: str
    precision: str
    volume_zyx: Sizes
    device: str
    threads: int
    factor: float | None = None
    attention: str | None = None
    given_tile_zyx: Sizes | None = None

    @property
    def tile_zyx(self) -> Sizes:
        """The largest input of the network: at most the volume; in training a clip's sections, frames and columns."""
        if self.what == "train":
            sampling = Recipe.load(RECIPE).sampling
            return sampling.rows, sampling.frames, sampling.columns
        assert self.factor is not None
        chosen = self.given_tile_zyx or choose_tile(
            self.volume_zyx, SectionModel(self.factor), self.config, torch.device(self.device), voxel_bytes=1
        )
        z, y, x = map(min, self.volume_zyx, chosen)
        return z, y, x

    @property
    def config(self) -> EMformerConfig:
        return parse_config(self.model) if self.random else EMformerConfig.from_pretrained(self.model)

    def load(self) -> EMformerModel:
        if not self.random:
            return EMformerModel.from_pretrained(self.model)
        torch.manual_seed(0)
        return EMformerModel(self.config).eval()

    def prepare(self) -> Callable[[], Work]:
        """Load the model, make the input, and return what is to be measured."""
        torch.set_num_threads(self.threads)
        network: Any = self.load()  # transformers' own ``to`` has no types
        network.to(self.device)
        if self.attention:
            network.set_attn_implementation(self.attention)
        return {"reconstruct": self._reconstruct, "pass": self._pass, "train": self._train}[self.what](network)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, self.precision == "bfloat16")

    def _reconstruct(self, network: EMformerModel) -> Callable[[], Work]:
        volume = np.random.default_rng(0).integers(0, 256, self.volume_zyx, np.uint8)
        settings: dict[str, Any] = {"factor": self.factor, "precision": self.precision, "tile_zyx": self.given_tile_zyx}

        def whole() -> Work:
            result = reconstruct(volume, model=network, ensemble=1, device=self.device, progress=False, **settings)
            array_bytes = result.volume.nbytes + result.uncertainty.nbytes
            return Work(result.volume.size, network.config._attn_implementation, array_bytes)

        return whole

    def _pass(self, network: EMformerModel) -> Callable[[], Work]:
        z, y, x = self.tile_zyx
        clip = torch.randn(1, y, z, x, device=self.device)  # frames, sections, columns

        def one_pass() -> Work:
            with torch.inference_mode(), self._autocast():
                out = network(clip, self.factor)
            return Work(out.reconstruction.numel(), network.config._attn_implementation)

        return one_pass

    def _train(self, network: EMformerModel) -> Callable[[], Work]:
        """The steps of ``emformer_hub.training.loop`` with the recipe's data, the same ones in every run."""
        recipe = Recipe.load(RECIPE)
        phantom = neuropil((64, 64, 128))  # reflected, because a large one takes long to make
        phantom = np.pad(phantom, [(0, n) for n in np.subtract(self.volume_zyx, phantom.shape)], "symmetric")
        volume = TrainingVolume("phantom", phantom, VoxelSize(8, 8, 8), EMformerProcessor().measure(phantom))
        batches = ClipBatches([volume], recipe.sampling, seed=recipe.seed, batch_size=recipe.batch_size)
        loader = torch.utils.data.DataLoader(
            batches, batch_size=None, num_workers=recipe.workers, pin_memory=network.device.type == "cuda"
        )
        network.train()
        optimizer = make_trainable(network, recipe, network.device, getattr(torch, self.precision))
        average = Average(network, recipe.ema_decay)

        def steps() -> Work:
            stream, drawing_s, voxels = iter(loader), 0.0, 0
            for step in range(TRAINING_STEPS):
                begin = time.perf_counter()
                batch = next(stream)
                drawing_s += time.perf_counter() - begin
                target = batch.pop("target").to(network.device)
                for name in ("independent", "volume"):  # which only the loss and the log look at
                    batch.pop(name, None)
                for name in ("sections", "section_mask"):
                    batch[name] = batch[name].to(network.device)
                with self._autocast():
                    out = network(**batch)
                loss, _ = reconstruction_loss(out.reconstruction, out.scale, target)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                average.update(network, step + 1)
                float(norm)  # waits for the device, as the loop does to log it
                voxels += target.numel()
            return Work(voxels, network.config._attn_implementation, drawing_s=drawing_s)

        return steps


def parse_config(text: str) -> EMformerConfig:
    """``"hidden_size=64,window_size=[4,4,8]"`` -> a configuration; what is not named has its default."""
    settings = {}
    for part in re.split(r",(?=\s*\w+=)", text):
        name, _, value = part.strip().partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            raise InputError(
                f"{part!r} is not NAME=NUMBER; expected such as hidden_size=64,window_size=[4,4,8]."
            ) from None
    return build_config(settings)


def parse_sizes(name: str, text: str) -> Sizes:
    """``"16,256,256"`` -> sizes along z, y and x; raises ``InputError`` that names the option."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{name} {text!r} is not three sizes; expected SECTIONS,Y,X, as in 16,256,256.")
    z, y, x = map(int, parts)
    return z, y, x


def timed(job: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds until the device has finished, and what the job returns."""
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    synchronize()
    begin = time.perf_counter()
    result = job()
    synchronize()
    return time.perf_counter() - begin, result


def matmul_flop_per_s(device: torch.device, precision: str, attempts: int = 10) -> float:
    """The rate of the fastest of several square matrix products, after one to warm up."""
    side = MATMUL_SIDE if device.type == "cpu" else MATMUL_SIDE_GPU
    a, b = torch.randn(2, side, side, device=device).to(getattr(torch, precision))
    seconds = [timed(lambda: torch.matmul(a, b), device)[0] for _ in range(attempts + 1)]
    return 2 * side**3 / min(seconds[1:])

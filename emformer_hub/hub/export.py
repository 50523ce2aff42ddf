"""Models for other programs: one geometry and one tile size, in a file that needs none of our code.

Such a file has no factor or thickness to choose at run time, no other tile sizes, no masked sections, no statistics of
the whole volume, and no calibrated intervals. It is for programs that do their own tiling.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emformer_hub.errors import InputError, import_extra
from emformer_hub.files import check_file, replacing
from emformer_hub.geometry import SectionModel
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import DEFAULT_MODE, Mode, check_mode
from emformer_hub.pretrained import registry
from emformer_hub.volumes.phantom import neuropil

LEAST_TILE = (4, 16, 16)
ONNX_OPSET = 18
TITLE = "EMformer: Transformer-Based Isotropic Reconstruction for Volume Electron Microscopy"
DOI = "10.1101/2023.11.22.567807"
AUTHORS = ("Jia He", "Yan Zhang", "Wenhao Sun", "Ge Yang", "Fei Sun")
DOCUMENTATION = """# EMformer, factor {factor:g}

Turns sections that are {factor:g} lateral pixels apart, of which each shows {thickness:.3g} of that distance, into
planes one pixel apart, and states the standard deviation of the error at each voxel, in grey levels. Made from the
weights `{model}` of emformer_hub, in the mode `{mode}`: `clean` leaves the noise of the sections out, `faithful` keeps
it.

Factor, thickness and tile ({tile_zyx} sections, y, x) are fixed, and each tile is normalised by itself, so that
neighbouring tiles may differ a little in brightness. emformer_hub itself takes any factor, normalises by the whole
volume, blends overlapping tiles, fills masked sections and calibrates the uncertainty.

## Validation

Compare with sections that were left out, or with an isotropic volume that was degraded: `emformer-hub evaluate`.
"""


class EMformerTile(nn.Module):
    """Isotropic tile, and its uncertainty, from a tile; the same as ``reconstruct(..., ensemble=2, mode=mode)``."""

    def __init__(self, network: EMformerModel, geometry: SectionModel, mode: Mode):
        super().__init__()
        self.network, self.geometry, self.mode = network, geometry, mode

    def forward(self, sections: Tensor) -> tuple[Tensor, Tensor]:
        """``(1, 1, sections, y, x)`` in standard deviations -> values and uncertainty, ``(1, 1, planes, y, x)``."""
        value, scale = self._one_pass(sections[:, 0].permute(0, 2, 1, 3), (0, 2, 1, 3))
        other, other_scale = self._one_pass(sections[:, 0].permute(0, 3, 1, 2), (0, 2, 3, 1))
        spread = (other - value) / 2
        error = (scale.square() + other_scale.square() + spread.square()).sqrt()  # Laplace: the mean of both 2 scale²
        return (value + spread)[:, None], error[:, None]

    def _one_pass(self, frames: Tensor, back: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        out = self.network(frames, self.geometry.factor, thickness=self.geometry.thickness, mode=self.mode)
        return out.reconstruction.permute(back), out.scale.permute(back)


class GreyTile(nn.Module):
    """The same in grey levels; each tile is normalised separately."""

    def __init__(self, tile: nn.Module):
        super().__init__()
        self.tile = tile

    def forward(self, sections: Tensor) -> tuple[Tensor, Tensor]:
        mean = sections.mean((1, 2, 3, 4), keepdim=True)
        std = (sections - mean).square().mean((1, 2, 3, 4), keepdim=True).sqrt().clamp(min=1e-6)
        value, error = self.tile((sections - mean) / std)
        return value * std + mean, error * std


def export(
    name: str,
    output: Path,
    *,
    factor: float,
    thickness: float = 1.0,
    tile_zyx: tuple[int, int, int] = (16, 64, 64),
    mode: Mode = DEFAULT_MODE,
) -> None:
    """Write a model as ONNX, as an exported torch program, or as a bioimage.io package, by the suffix of ``output``.

    Args:
        name: published name, folder or Hub id; an adapter is merged into its base.
        output: ``.onnx``, ``.pt2`` or ``.zip``. Input is ``sections (1, 1, z, y, x)`` of ``tile_zyx``, in standard
            deviations from the volume's mean; outputs are ``volume`` and ``uncertainty (1, 1, planes, y, x)``, in
            standard deviations too. A bioimage.io package takes and returns grey levels.
        factor, thickness: geometry of the sections; fixed in the file.
        tile_zyx: tile size (sections, y, x); fixed in the file.
        mode: what becomes of the noise of the sections; fixed in the file.

    Raises:
        InputError: the model cannot be loaded, the suffix is unknown, the output exists, the tile is too small, or a
            package that the format needs is not installed.
    """
    if output.suffix not in WRITERS:
        raise InputError(f"output {output} has the suffix {output.suffix!r}; expected one of {', '.join(WRITERS)}.")
    check_mode(mode)
    check_file(output, overwrite=False)
    if len(tile_zyx) != 3 or any(side < least for side, least in zip(tile_zyx, LEAST_TILE, strict=True)):
        raise InputError(f"tile_zyx is {tile_zyx}; expected sections, y and x of at least {LEAST_TILE}.")
    geometry = SectionModel(factor, thickness)
    network = EMformerModel.from_pretrained(name)
    network.set_attn_implementation("eager")
    planes = max(16, math.ceil(tile_zyx[0] * factor))
    example = geometry.degrade(neuropil((planes, *tile_zyx[1:])))[: tile_zyx[0]].astype(np.float32)
    facts = {"model": name, "factor": factor, "thickness": thickness, "tile_zyx": tile_zyx, "mode": mode}
    facts |= {"licence": _licence(name)}
    with replacing(output) as partial, torch.no_grad():
        WRITERS[output.suffix](partial, EMformerTile(network.eval(), geometry, mode), example, facts)


def _licence(name: str) -> str | None:
    published = {key: one for one in registry().values() for key in (one.name, one.repo_id)}.get(name)
    return published.licence if published else None


def _exported(tile: nn.Module, example: np.ndarray) -> Any:
    return torch.export.export(tile, (torch.from_numpy(example)[None, None],), strict=False)


def _write_torch(path: Path, tile: nn.Module, example: np.ndarray, facts: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.export.save(_exported(tile, example), file, extra_files={"emformer.json": json.dumps(facts)})


def _write_onnx(path: Path, tile: nn.Module, example: np.ndarray, facts: dict[str, Any]) -> None:
    import_extra("onnxscript", "zoo", f"{path} is ONNX")
    program = torch.onnx.export(
        _exported(tile, example),
        dynamo=True,
        input_names=["sections"],
        output_names=["volume", "uncertainty"],
        opset_version=ONNX_OPSET,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    program.save(path)


def _write_bioimageio(path: Path, tile: EMformerTile, example: np.ndarray, facts: dict[str, Any]) -> None:
    """A package of the bioimage.io model zoo, specification 0.5: ONNX weights, grey levels in and out, test tensors."""
    import_extra("bioimageio.spec", "zoo", f"{path} is a package of bioimage.io")
    from bioimageio.spec import save_bioimageio_package
    from bioimageio.spec.model import v0_5 as spec

    grey = GreyTile(tile)
    volume, uncertainty = grey(torch.from_numpy(example)[None, None])
    tensors = {"sections": example[None, None], "volume": volume.numpy(), "uncertainty": uncertainty.numpy()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, tensor in tensors.items():
            np.save(folder / f"{name}.npy", tensor)
        _write_onnx(folder / "weights.onnx", grey, example, facts)
        (folder / "README.md").write_text(DOCUMENTATION.format(**facts))

        def described(name: str, describe: type, axis: type) -> Any:
            space = zip("zyx", tensors[name].shape[2:], strict=True)
            return describe(
                id=spec.TensorId(name),
                axes=[
                    spec.BatchAxis(size=1),
                    spec.ChannelAxis(channel_names=[spec.Identifier("grey")]),
                    *(axis(id=spec.AxisId(letter), size=size) for letter, size in space),
                ],
                test_tensor=spec.FileDescr(source=folder / f"{name}.npy"),
                data=spec.IntervalOrRatioDataDescr(type="float32"),
            )

        description = spec.ModelDescr(
            name="EMformer",
            description=f"Isotropic volumes and their uncertainty from sections {facts['factor']:g} pixels apart",
            authors=[spec.Author(name=author) for author in AUTHORS],
            cite=[spec.CiteEntry(text=TITLE, doi=spec.Doi(DOI))],
            license=spec.LicenseId(facts["licence"]) if facts["licence"] else None,
            documentation=spec.FileDescr(source=folder / "README.md"),
            tags=["electron-microscopy", "3d", "super-resolution", "isotropic", "transformer"],
            inputs=[described("sections", spec.InputTensorDescr, spec.SpaceInputAxis)],
            outputs=[
                described(name, spec.OutputTensorDescr, spec.SpaceOutputAxis) for name in ("volume", "uncertainty")
            ],
            weights=spec.WeightsDescr(
                onnx=spec.OnnxWeightsDescr(source=folder / "weights.onnx", opset_version=ONNX_OPSET)
            ),
        )
        save_bioimageio_package(description, output_path=path)


WRITERS: dict[str, Callable[[Path, EMformerTile, np.ndarray, dict[str, Any]], None]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_torch,
    ".zip": _write_bioimageio,
}
"""Writers by the suffix of the output."""

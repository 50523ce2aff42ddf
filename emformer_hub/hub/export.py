"""Models for other programs: one geometry and one tile size, in a file that needs none of our code.

Such a file has no factor or thickness to choose at run time, no other tile sizes, no masked sections and no calibrated
intervals. It is for programs that do their own tiling. A bioimage.io package carries the mean and standard deviation of
a stack, so that all tiles are normalised alike.
"""

from __future__ import annotations

import json
import math
import os
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
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.blocks import HALO_ZYX, window_grid
from emformer_hub.reconstruction.job import measure_stack
from emformer_hub.reconstruction.settings import OpenStack
from emformer_hub.volumes.phantom import neuropil

LEAST_TILE = (4, 16, 16)
ONNX_OPSET = 18
OUTPUTS = ("volume", "uncertainty")
TITLE = "EMformer: Transformer-Based Isotropic Reconstruction for Volume Electron Microscopy"
DOI = "10.1101/2023.11.22.567807"
AUTHORS = ("Jia He", "Yan Zhang", "Wenhao Sun", "Ge Yang", "Fei Sun")
DOCUMENTATION = """# EMformer, factor {factor:g}

Turns sections that are {factor:g} lateral pixels apart, of which each shows {thickness:.3g} of that distance, into
planes one pixel apart, and states the standard deviation of the error at each voxel, in grey levels. Made from the
weights `{model}` of emformer_hub, in the mode `{mode}`: `clean` leaves the noise of the sections out, `faithful` keeps
it.

Factor, thickness and tile ({tile_zyx} sections, y, x) are fixed. emformer_hub itself takes any factor, fills masked
sections and calibrates the uncertainty.

## Intensities

Every tile is normalised by the same mean ({mean:.6g}) and standard deviation ({std:.6g}), those of `{stack}`, and its
result is brought back with them, so that tiles do not differ in brightness. The package is for that stack, and for
stacks of the same brightness and contrast. For another stack, make another package:

    {command}

or put its mean and standard deviation into `rdf.yaml`: `mean` and `std` of the preprocessing of `sections`, `gain` and
`offset` of the postprocessing of `volume`, and `gain` of that of `uncertainty`. Voxels beyond the percentiles 0.5 and
99.5 of the stack count as these percentiles in both numbers.

## Tiles

Let tiles overlap, and leave out the halo that the description states ({halo_zyx} planes, y, x), but not at the ends of
the stack. Let them begin at multiples of {grid_zyx} (sections, y, x), on which the network divides a tile. {along_z}

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


def export(
    name: str,
    output: Path,
    *,
    factor: float,
    thickness: float = 1.0,
    tile_zyx: tuple[int, int, int] = (16, 64, 64),
    mode: Mode = DEFAULT_MODE,
    statistics_of: str | os.PathLike[str] | OpenStack | None = None,
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
        statistics_of: stack that a bioimage.io package is for: by its mean and standard deviation, which the package
            carries, every tile is normalised. Other formats carry none.

    Raises:
        InputError: the model cannot be loaded, the suffix is unknown, the output exists, the tile is too small, a
            package that the format needs is not installed, or the stack is missing, unusable, or not called for.
    """
    if output.suffix not in WRITERS:
        raise InputError(f"output {output} has the suffix {output.suffix!r}; expected one of {', '.join(WRITERS)}.")
    check_mode(mode)
    check_file(output, overwrite=False)
    if len(tile_zyx) != 3 or any(side < least for side, least in zip(tile_zyx, LEAST_TILE, strict=True)):
        raise InputError(f"tile_zyx is {tile_zyx}; expected sections, y and x of at least {LEAST_TILE}.")
    if statistics_of is None and output.suffix == ".zip":
        raise InputError(
            f"a bioimage.io package such as {output} carries the mean and standard deviation of the stack that it is "
            f"for; name the stack with --statistics-of."
        )
    if statistics_of is not None and output.suffix != ".zip":
        raise InputError(
            f"{output} takes tiles that are normalised already; leave out --statistics-of, or write a .zip, a "
            f"bioimage.io package."
        )
    geometry = SectionModel(factor, thickness)
    network = EMformerModel.from_pretrained(name)
    network.set_attn_implementation("eager")
    planes = max(16, math.ceil(tile_zyx[0] * factor))
    example = geometry.degrade(neuropil((planes, *tile_zyx[1:])))[: tile_zyx[0]].astype(np.float32)
    facts = {"model": name, "factor": factor, "thickness": thickness, "tile_zyx": tile_zyx, "mode": mode}
    facts |= {"licence": _licence(name)}
    if statistics_of is not None:
        stack = OpenStack.of(statistics_of)
        statistics = measure_stack(stack, EMformerProcessor.from_pretrained(name))
        facts |= {"stack": Path(stack.path).name, "mean": statistics.mean, "std": statistics.std}
        facts |= {"file": output.stem}  # what is written has another name until it is complete
        example = np.float32(statistics.mean) + np.float32(statistics.std) * _standardised(example)
    with replacing(output) as partial, torch.no_grad():
        WRITERS[output.suffix](partial, EMformerTile(network.eval(), geometry, mode), example, facts)


def _standardised(example: np.ndarray) -> np.ndarray:
    return (example - example.mean()) / example.std()


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
        output_names=list(OUTPUTS),
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

    mean, std = np.float32(facts["mean"]), np.float32(facts["std"])
    clip = (example - mean) / std
    volume, uncertainty = (part.numpy() for part in tile(torch.from_numpy(clip)[None, None]))
    tensors = {"sections": example[None, None], "volume": volume * std + mean, "uncertainty": uncertainty * std}
    halo_zyx = halo(tile, facts["tile_zyx"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, tensor in tensors.items():
            np.save(folder / f"{name}.npy", tensor)
        _write_onnx(folder / "weights.onnx", tile, clip, facts)
        (folder / "README.md").write_text(_documentation(tile, facts, halo_zyx))
        description = spec.ModelDescr(
            name="EMformer",
            description=f"Isotropic volumes and their uncertainty from sections {facts['factor']:g} pixels apart",
            authors=[spec.Author(name=author) for author in AUTHORS],
            cite=[spec.CiteEntry(text=TITLE, doi=spec.Doi(DOI))],
            license=spec.LicenseId(facts["licence"]) if facts["licence"] else None,
            documentation=spec.FileDescr(source=folder / "README.md"),
            tags=["electron-microscopy", "3d", "super-resolution", "isotropic", "transformer"],
            inputs=[_described_input(folder, example.shape, facts)],
            outputs=[_described_output(folder, name, tensors[name].shape[2:], halo_zyx, facts) for name in OUTPUTS],
            weights=spec.WeightsDescr(
                onnx=spec.OnnxWeightsDescr(source=folder / "weights.onnx", opset_version=ONNX_OPSET)
            ),
        )
        save_bioimageio_package(description, output_path=path)


def halo(tile: EMformerTile, tile_zyx: tuple[int, int, int]) -> tuple[int, int, int]:
    """Planes, rows and columns at either side of a result that depend on what lies beyond the tile.

    0 along an axis that a tile is too short for, and along z where planes of neighbouring tiles do not coincide.
    """
    grid, factor = window_grid(tile.network.config), tile.geometry.factor
    z, y, x = (
        around if side >= 2 * around + step else 0 for side, around, step in zip(tile_zyx, HALO_ZYX, grid, strict=True)
    )
    return (round(z * factor) if factor == round(factor) else 0, y, x)


def _documentation(tile: EMformerTile, facts: dict[str, Any], halo_zyx: tuple[int, int, int]) -> str:
    """README of a package."""
    sides, halo_text, grid = (
        ",".join(map(str, sides)) for sides in (facts["tile_zyx"], halo_zyx, window_grid(tile.network.config))
    )
    command = (
        f"emformer-hub export {facts['model']} {facts['file']}-other.zip --factor {facts['factor']:g} --thickness "
        f"{facts['thickness']:.6g} --mode {facts['mode']} --tile {sides} --statistics-of OTHER"
    )
    along_z = "" if halo_zyx[0] else "Along z, give all sections in one tile: neighbouring tiles share no planes there."
    return DOCUMENTATION.format(**facts, command=command, halo_zyx=halo_text, grid_zyx=grid, along_z=along_z)


def _described_input(folder: Path, shape_zyx: tuple[int, ...], facts: dict[str, Any]) -> Any:
    """The tile of sections: normalised by the statistics of the stack, whatever the tile."""
    from bioimageio.spec.model import v0_5 as spec

    scales = (float(facts["factor"]), 1.0, 1.0)
    return spec.InputTensorDescr(
        id=spec.TensorId("sections"),
        axes=[
            *_batch_and_channel(),
            *(
                spec.SpaceInputAxis(id=spec.AxisId(letter), size=size, scale=scale)
                for letter, size, scale in zip("zyx", shape_zyx, scales, strict=True)
            ),
        ],
        test_tensor=spec.FileDescr(source=folder / "sections.npy"),
        data=spec.IntervalOrRatioDataDescr(type="float32"),
        preprocessing=[
            spec.FixedZeroMeanUnitVarianceDescr(
                kwargs=spec.FixedZeroMeanUnitVarianceKwargs(mean=facts["mean"], std=facts["std"])
            )
        ],
    )


def _described_output(
    folder: Path, name: str, shape_zyx: tuple[int, ...], halo_zyx: tuple[int, int, int], facts: dict[str, Any]
) -> Any:
    """A result, brought back to grey levels by the same statistics."""
    from bioimageio.spec.model import v0_5 as spec

    def axis(letter: str, size: int, around: int) -> Any:
        if not around:
            return spec.SpaceOutputAxis(id=spec.AxisId(letter), size=size)
        of_input = spec.SizeReference(tensor_id=spec.TensorId("sections"), axis_id=spec.AxisId(letter))
        return spec.SpaceOutputAxisWithHalo(id=spec.AxisId(letter), size=of_input, halo=around)

    grey = {"gain": facts["std"], "offset": facts["mean"] if name == "volume" else 0.0}
    unchanged = grey == {"gain": 1.0, "offset": 0.0}  # which the specification has no scaling for
    return spec.OutputTensorDescr(
        id=spec.TensorId(name),
        axes=[
            *_batch_and_channel(),
            *(axis(*one) for one in zip("zyx", shape_zyx, halo_zyx, strict=True)),
        ],
        test_tensor=spec.FileDescr(source=folder / f"{name}.npy"),
        data=spec.IntervalOrRatioDataDescr(type="float32"),
        postprocessing=[] if unchanged else [spec.ScaleLinearDescr(kwargs=spec.ScaleLinearKwargs(**grey))],
    )


def _batch_and_channel() -> list[Any]:
    from bioimageio.spec.model import v0_5 as spec

    return [spec.BatchAxis(size=1), spec.ChannelAxis(channel_names=[spec.Identifier("grey")])]


WRITERS: dict[str, Callable[[Path, EMformerTile, np.ndarray, dict[str, Any]], None]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_torch,
    ".zip": _write_bioimageio,
}
"""Writers by the suffix of the output."""

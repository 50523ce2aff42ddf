"""How much better than interpolation, and than a 2-D network? Hold something out, restore it, compare.

    python benchmarks/quality.py --json quality.json

prints Markdown tables; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from _anisotropic import (
    HIDDEN_COLUMNS,
    HIDDEN_CROP,
    IN_PLANE_COLUMNS,
    IN_PLANE_CROP,
    STACKS,
    in_plane,
    leave_one_out,
)
from _figures import (
    BASELINE,
    CUTOFF,
    INTERPOLATIONS,
    compare,
    flat_noise,
    low_pass_psnr,
    not_imaged,
    with_interval,
)
from _geometry import NamedGeometry, centre_crop, parse_crop
from _methods import UNET, EMformer, Interpolation, Method, SlicedUNet, timed
from _options import JSON, MODELS, OutputFile
from _report import DATA, RECIPE, Columns, describe_file, describe_run, print_header, print_table, start, write_json
from _unet import trained_unet

from emformer_hub.cli.options import DEVICE
from emformer_hub.devices import choose_device
from emformer_hub.geometry import VoxelSize
from emformer_hub.measurement import comparison_picture, evaluate, grey_range
from emformer_hub.modes import MODES, Mode
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction import Reconstruction
from emformer_hub.reconstruction.restorer import ENSEMBLES
from emformer_hub.volumes import read_volume

TRUTHS = ("fibsem_tiny.tif", "fibsem_gala.tif", "fibsem_fib25_b.tif")
NOMINAL = {"fibsem_fib25_b.tif": VoxelSize(8, 8, 8)}
"""Voxel sizes that a file does not state, by its name (Takemura et al., PNAS 112(44), 2015)."""
GEOMETRIES = ("4:1/2", "8:1/2", "4:1", "6.7:1", "8:1", "10:1", "4:1/4", "6.7:1/6.7", "8:1/8", "10:1/10")
AXES = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
"""Which axis of an isotropic truth becomes that of the sections."""
INTERVALS = (0.5, 0.8, 0.95)
RUNS = Path("runs")

COLUMNS: Columns = {
    "truth": lambda row: row["data"],
    "geometry": lambda row: row["geometry"]["name"],
    "method": lambda row: row["method"],
    "PSNR dB (95 %)": lambda row: with_interval(row, "psnr", ".2f"),
    "gain over bicubic dB (95 %)": lambda row: with_interval(row, "gain_over_bicubic", "+.2f"),
    "low-pass PSNR dB": lambda row: f"{row['low_pass']['psnr_db']:.2f}",
    "SSIM 3d": lambda row: f"{row['ssim']['3d']:.4f}",
    "SSIM xy": lambda row: f"{row['ssim']['xy']:.4f}",
    "SSIM xz": lambda row: f"{row['ssim']['xz']:.4f}",
    "SSIM yz": lambda row: f"{row['ssim']['yz']:.4f}",
    "FSC z": lambda row: f"{row['fsc']['resolution']['z']:.1f} {row['fsc']['unit']}",
    "FSC lateral": lambda row: f"{row['fsc']['resolution']['lateral']:.1f} {row['fsc']['unit']}",
    f"inside {', '.join(f'{share:.0%}'.rstrip('%') for share in INTERVALS)} % intervals": lambda row: (
        ", ".join(f"{100 * share:.1f}" for share in row["coverage"]) if "coverage" in row else ""
    ),
    "seconds": lambda row: f"{row['seconds']:.1f}",
}
NOT_IMAGED_COLUMNS: Columns = {
    "truth": lambda row: row["data"],
    "geometry": lambda row: row["geometry"]["name"],
    "method": lambda row: row["method"],
    "PSNR dB": lambda row: f"{row['not_imaged']['psnr_db']:.2f}",
    "gain over the best interpolation dB (95 %)": lambda row: with_interval(row["not_imaged"], "gain", "+.2f"),
    "low-pass gain dB": lambda row: f"{row['not_imaged']['low_pass_gain_db']:+.2f}",
    "noise in flat tissue, % of bicubic's": lambda row: f"{100 * row['flat_noise']:.0f}",
}


@dataclass(frozen=True)
class Truth:
    """An isotropic volume; ``voxel_size`` is ``None`` where nobody knows it, and lengths are then in voxels."""

    name: str
    data: np.ndarray
    voxel_size: VoxelSize | None

    def measure(self, named: NamedGeometry, methods: list[Method], figure: Path | None) -> list[dict[str, Any]]:
        """The rows of one geometry; draws the first model's picture if ``figure`` names a file."""
        geometry = named.geometry
        sections = to_dtype(geometry.degrade(self.data), self.data.dtype)
        truth = self.data[: geometry.num_planes(len(sections))]
        size, unit = self.voxel_size or VoxelSize(1, 1, 1), "nm" if self.voxel_size else "voxels"
        stated: dict[str, Reconstruction | None] = {}

        def restore(method: Method) -> np.ndarray:
            volume, stated[method.name] = method.restore(sections, geometry)
            return volume

        def detail(volume: np.ndarray) -> dict[str, Any]:
            figures = evaluate(volume, truth, size)
            fsc = {"resolution": figures["fsc"]["resolution_nm"], "threshold": figures["fsc"]["threshold"]}
            low_pass = low_pass_psnr(truth, volume, grey_range(truth))
            return {
                "low_pass": {"psnr_db": low_pass, "cutoff_cycles_per_voxel": CUTOFF},
                "ssim": figures["ssim"],
                "fsc": {**fsc, "unit": unit},
            }

        restored = [timed(method.name, restore, method) for method in methods]
        volumes = {result.method: result.volume for result in restored}
        model_name = next((method.name for method in methods if isinstance(method, EMformer)), None)
        if figure and model_name and (reconstruction := stated[model_name]):
            comparison_picture(
                figure,
                sections=sections,
                interpolated=volumes[BASELINE],
                reconstruction=volumes[model_name],
                truth=truth,
                uncertainty=reconstruction.uncertainty,
                voxel_size=self.voxel_size,
                factor=geometry.factor,
                title=f"{model_name}, {named.name}",
            )
        common = {
            "experiment": "degraded along z",
            "data": self.name,
            "geometry": named.record(),
            "shape_zyx": list(truth.shape),
            "voxel_size_nm": list(size.zyx) if self.voxel_size else None,
        }
        rows = [{**common, **row} for row in compare(truth, restored, detail)]
        imaged = np.asarray(geometry.matrix(len(sections)).any(axis=0))
        noise = {name: flat_noise(truth, volume, imaged) for name, volume in volumes.items()}
        unseen = {} if imaged.all() else not_imaged(truth, volumes, ~imaged)
        for row in rows:
            row["flat_noise"] = noise[row["method"]] / noise[BASELINE] if noise[BASELINE] else 1.0
            if unseen:
                row["not_imaged"] = unseen[row["method"]]
            if said := stated[row["method"]]:
                error = np.abs(said.volume.astype(np.float32) - truth)
                row["coverage"] = [float((error <= said.half_width(share)).mean()) for share in INTERVALS]
        return rows


def read_truth(path: Path, voxel_size: str | None, crop: str | None, axis: str = "z") -> Truth:
    """A truth whose axis ``z``, ``y`` or ``x`` becomes that of the sections; the crop is along z, y, x of the file."""
    volume = read_volume(path)
    size = VoxelSize.parse(voxel_size) if voxel_size else volume.voxel_size or NOMINAL.get(path.name)
    data = centre_crop(volume.data, parse_crop(crop)) if crop else volume.data
    name = path.stem if axis == "z" else f"{path.stem}, along {axis}"
    turned = size and VoxelSize(*(size.zyx[side] for side in AXES[axis]))
    return Truth(name, np.ascontiguousarray(data.transpose(AXES[axis])), turned)


@click.command()
@click.option(
    "--truth",
    "truth_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Isotropic volume. Repeatable.  [default: {', '.join(TRUTHS)}; none if --stack is given]",
)
@click.option("--voxel-size", metavar="Z,Y,X", help="Of the truth, nm.  [default: what the file states, else voxels]")
@click.option(
    "--stack",
    "stack_names",
    multiple=True,
    type=click.Choice(list(STACKS)),
    help="Real anisotropic stack. Repeatable.  [default: all; none if --truth is given]",
)
@click.option(
    "--method",
    "baselines",
    multiple=True,
    type=click.Choice([*INTERPOLATIONS, UNET]),
    default=[*INTERPOLATIONS, UNET],
    show_default=True,
    help=f"What models stand beside; {BASELINE} always does. Repeatable.",
)
@MODELS
@click.option(
    "--ensemble",
    type=click.Choice([str(n) for n in ENSEMBLES]),
    default="2",
    show_default=True,
    help="Passes to average.",
)
@click.option(
    "--geometry",
    "geometries",
    multiple=True,
    default=GEOMETRIES,
    show_default=True,
    metavar="FACTOR:THICKNESS",
    help="How sections sample a truth; 1/FACTOR picks single planes. Repeatable.",
)
@click.option(
    "--axis",
    "axes",
    multiple=True,
    type=click.Choice(list(AXES)),
    default=["z"],
    show_default=True,
    help="Of a truth, along which sections are cut. Repeatable.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(MODES),
    default=MODES,
    show_default=True,
    help="What models do with the noise of sections. Repeatable.",
)
@click.option("--crop", metavar="Z,Y,X", help="Only the middle of each volume, voxels: a quick look.")
@click.option(
    "--unet-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Training time of the 2-D U-Net; done once, kept in {RUNS}/.  [default: the minutes of {RECIPE.name}]",
)
@DEVICE
@JSON
@click.option("--figure", type=OutputFile(), help="Write a comparison picture (PNG) of the first truth and geometry.")
def main(
    truth_files: tuple[Path, ...],
    voxel_size: str | None,
    stack_names: tuple[str, ...],
    baselines: tuple[str, ...],
    models: tuple[str, ...],
    ensemble: str,
    geometries: tuple[str, ...],
    axes: tuple[str, ...],
    modes: tuple[Mode, ...],
    crop: str | None,
    unet_minutes: float | None,
    device: str,
    json_path: Path | None,
    figure: Path | None,
) -> None:
    """Print tables of reconstruction quality beside interpolation and a 2-D U-Net."""
    chosen = [NamedGeometry.parse(text) for text in geometries]
    if not (truth_files or stack_names):
        truth_files, stack_names = tuple(DATA / "eval" / name for name in TRUTHS), tuple(STACKS)
    truths = [read_truth(path, voxel_size, crop, axis) for path in truth_files for axis in axes]
    stacks = [(STACKS[name], STACKS[name].read(DATA / "eval")) for name in stack_names]

    methods: list[Method] = [Interpolation(name) for name in INTERPOLATIONS if name in {*baselines, BASELINE}]
    more: dict[str, Any] = {}
    if UNET in baselines:
        network, more[UNET] = trained_unet(RECIPE, DATA / "train", unet_minutes, RUNS, choose_device(device))
        methods.append(SlicedUNet(network))
    methods += [EMformer(name, device, int(ensemble), mode) for name in models for mode in modes]
    # What is predicted of a section that is left out is the same in every mode: it imposes nothing.
    once = [method for method in methods if not isinstance(method, EMformer) or method.mode == modes[0]]

    files = [*truth_files, *(DATA / "eval" / stack.file for stack, _ in stacks)]
    run = describe_run(
        device,
        data=[describe_file(path) for path in files],
        crop=crop or "none",
        ensemble=int(ensemble),
        **more,
    )

    def degraded() -> Iterator[dict[str, Any]]:
        for truth in truths:
            for geometry in chosen:
                first = truth is truths[0] and geometry is chosen[0]
                yield from truth.measure(geometry, methods, figure if first else None)

    def cropped(runs: list[np.ndarray], side: int) -> list[np.ndarray]:
        z, y, x = parse_crop(crop) if crop else (sys.maxsize, side, side)
        return [centre_crop(run, [z, min(y, side), min(x, side)]) for run in runs]

    print_header(run)
    rows = print_table(COLUMNS, degraded()) if truths else []
    if unseen := [row for row in rows if "not_imaged" in row]:
        print_table(NOT_IMAGED_COLUMNS, unseen)
    if stacks:
        rows += print_table(
            HIDDEN_COLUMNS,
            (row for stack, runs in stacks for row in leave_one_out(stack, cropped(runs, HIDDEN_CROP), once)),
        )
        rows += print_table(
            IN_PLANE_COLUMNS,
            (row for stack, runs in stacks for row in in_plane(stack, cropped(runs, IN_PLANE_CROP), methods)),
        )
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)

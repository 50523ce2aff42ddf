"""The default model on real microscopy, where the data are at hand (they may not be distributed with the project).

Set ``EMFORMER_DATA`` to the folder that holds ``eval/`` and ``train/``; without it, ``../shared/data`` beside the
checkout is used.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.inspection import alignment_note, section_shifts
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import evaluate, psnr
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes import read_volume, write_volume

DATA = Path(os.environ.get("EMFORMER_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def load(name: str, folder: str = "eval") -> np.ndarray:
    path = DATA / folder / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; set EMFORMER_DATA to the folder that holds {folder}/{name}")
    return read_volume(path).data


def cut(truth: np.ndarray, sections: SectionModel) -> np.ndarray:
    return np.rint(sections.degrade(truth)).astype(truth.dtype)


@pytest.mark.parametrize(("factor", "thickness"), [(8, 1.0), (4, 1.0), (8, 1 / 8)])
def test_the_default_model_beats_bicubic_on_an_unseen_cube(factor: float, thickness: float) -> None:
    truth = load("fibsem_fib25_b.tif")[80:176, 80:160, 80:160]
    sections = SectionModel(factor, thickness)
    stack = cut(truth, sections)
    result = reconstruct(stack, factor=factor, thickness=thickness, device="cpu", progress=False)
    bicubic = np.rint(interpolate(stack, sections, "cubic")).clip(0, 255).astype(np.uint8)
    assert psnr(truth, result.volume, 255) > psnr(truth, bicubic, 255) + 0.5
    found, baseline = (evaluate(volume, truth, VoxelSize(8, 8, 8)) for volume in (result.volume, bicubic))
    assert found["ssim"]["3d"] > baseline["ssim"]["3d"]
    assert found["fsc"]["resolution_nm"]["z"] < baseline["fsc"]["resolution_nm"]["z"]


def test_uncertainty_is_largest_where_the_error_is() -> None:
    truth = load("fibsem_fib25_b.tif")[80:176, 80:144, 80:144]
    result = reconstruct(cut(truth, SectionModel(8)), factor=8, device="cpu", progress=False)
    error = np.abs(result.volume.astype(float) - truth)
    certain = result.uncertainty < np.median(result.uncertainty)
    assert error[~certain].mean() > 1.2 * error[certain].mean()
    assert 0.5 < np.sqrt(np.mean(np.square(error))) / np.sqrt(np.mean(np.square(result.uncertainty))) < 2


@pytest.mark.parametrize(
    ("shape", "factor", "tile"),
    [
        ((160, 40, 40), 4, (24, 999, 999)),
        ((248, 64, 64), 8, (24, 999, 999)),
        ((48, 224, 24), 8, (999, 96, 999)),
        ((48, 24, 224), 8, (999, 999, 96)),
    ],
    ids=["z x4", "z x8", "y", "x"],
)
def test_tiles_leave_no_seams(shape: tuple[int, int, int], factor: int, tile: tuple[int, int, int]) -> None:
    z, y, x = shape
    stack = cut(load("fibsem_fib25_b.tif")[:z, :y, :x], SectionModel(factor))
    whole = reconstruct(stack, factor=factor, tile_zyx=(999, 999, 999), device="cpu", progress=False)
    tiled = reconstruct(stack, factor=factor, tile_zyx=tile, device="cpu", progress=False)
    assert np.abs(tiled.volume.astype(int) - whole.volume).max() <= 1


def test_serial_sections_become_isotropic(tmp_path: Path) -> None:
    stack = load("sstem_cremi.tif")[:8, :64, :96]
    write_volume(tmp_path / "sections.tif", stack, VoxelSize(40, 4, 4))
    arguments = ["reconstruct", str(tmp_path / "sections.tif"), str(tmp_path / "isotropic.tif"), "--device", "cpu"]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 0, run.output
    found = read_volume(tmp_path / "isotropic.tif")
    assert found.data.shape == (80, 64, 96) and found.data.dtype == stack.dtype
    assert found.voxel_size == VoxelSize(4, 4, 4)
    missed = np.abs(SectionModel(10).degrade(found.data) - stack).mean()
    assert missed < 0.1 * stack.std()  # cut again, it is what was measured


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("fibsem_fib25_a.tif", 1),
        ("sbem_platynereis.tif", 3),
        ("sbem_cdeep3m.tif", 4),
        ("sssem_icon.tif", 2),
        ("sstem_cremi.tif", 8),
        ("sstem_vnc.tif", 12),
    ],
)
def test_aligned_stacks_are_not_taken_for_unaligned(name: str, largest: float) -> None:
    stack = load(name, "train")[:60]
    shifts = section_shifts(stack)
    assert np.hypot(*shifts.T).max() <= largest  # every pair is told, none is NaN
    assert alignment_note(shifts) is None


def test_the_badly_aligned_stack_is_found() -> None:
    note = alignment_note(section_shifts(load("sstem_isbi2012.tif", "train")))
    assert note is not None
    assert note.startswith(
        "8 of 29 neighbouring sections are shifted against each other by more than 12 voxels, at most"
    )


def test_images_of_unrelated_places_are_found() -> None:
    note = alignment_note(section_shifts(load("em2d_lsd.tif", "train")))
    assert note is not None and "too little in common" in note

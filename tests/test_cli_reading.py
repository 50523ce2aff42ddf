"""What commands do with odd stacks, outputs and shells: they read right, or refuse with the way out and status 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

from emformer_hub import reconstruct
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import parts, reconstruct_file
from emformer_hub.volumes import read_volume, write_volume

STACK = np.random.default_rng(3).integers(5, 250, (6, 24, 20), np.uint8)
FAST = ["--model", "emformer-tiny", "--ensemble", "1"]
SIZE = ["--voxel-size", "40,8,8"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "plain.tif", STACK)
    return tmp_path / "plain.tif"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    assert all(part in result.output for part in said), result.output


def test_what_is_chosen_is_what_is_reconstructed(tmp_path: Path, plain: Path) -> None:
    turned = np.ascontiguousarray(np.stack([255 - STACK, STACK]).transpose(0, 3, 2, 1))
    tifffile.imwrite(tmp_path / "turned.tif", turned, photometric="minisblack")
    assert run("reconstruct", plain, tmp_path / "a.ome.zarr", *SIZE, *FAST).exit_code == 0
    words = ["--axes", "cxyz", "--channel", 1]
    assert run("reconstruct", tmp_path / "turned.tif", tmp_path / "b.ome.zarr", *SIZE, *FAST, *words).exit_code == 0
    expected, found = (read_volume(tmp_path / f"{name}.ome.zarr").data for name in "ab")
    np.testing.assert_array_equal(found, expected)
    refused(run("reconstruct", tmp_path / "turned.tif", tmp_path / "c.ome.zarr", *SIZE, *FAST), "--axes")


def test_commands_that_measure_take_a_choice(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    several = np.stack([np.tile(STACK, (2, 4, 4))] * 2)
    tifffile.imwrite(tmp_path / "a.tif", several, metadata={"axes": "CZYX"}, photometric="minisblack")
    refused(run("inspect", tmp_path / "a.tif"), "2 channels", "--channel N")
    assert run("inspect", tmp_path / "a.tif", "--channel", 0).exit_code == 0
    words = ["--factor", 2, "--voxel-size", "8,8,8", "--channel", 1]
    assert run("degrade", tmp_path / "a.tif", tmp_path / "b.tif", *words).exit_code == 0


@pytest.mark.parametrize("size", ["0.04,0.004,0.004", "0.05,0.008,0.008", "40,0.004,0.004"])
def test_sizes_that_are_too_small_were_micrometres(tmp_path: Path, plain: Path, size: str) -> None:
    refused(run("reconstruct", plain, tmp_path / "a.zarr", "--voxel-size", size, *FAST), "were micrometres meant?")


@pytest.mark.parametrize("size", ["40000,4000,4000", "400,20000,20000"])
def test_sizes_that_are_too_large_are_refused(tmp_path: Path, plain: Path, size: str) -> None:
    refused(run("reconstruct", plain, tmp_path / "a.zarr", "--voxel-size", size, *FAST), "coarser than")


def test_a_file_may_state_what_is_implausible(tmp_path: Path) -> None:
    sizes = {f"PhysicalSize{axis}": length for axis, length in (("Z", 0.04), ("Y", 0.004), ("X", 0.004))}
    units = {f"PhysicalSize{axis}Unit": "nm" for axis in "ZYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    refused(run("reconstruct", tmp_path / "a.ome.tif", tmp_path / "a.zarr", *FAST), "were micrometres meant?")


@pytest.mark.parametrize(("size", "nm"), [("0.6,0.3,0.3nm", "0.6,0.3,0.3"), ("0.04,0.008,0.008um", "40,8,8")])
def test_a_size_with_its_unit_is_taken_as_said(tmp_path: Path, plain: Path, size: str, nm: str) -> None:
    words = ["reconstruct", plain, tmp_path / "a.zarr", *FAST]
    if size.endswith("nm"):
        refused(run(*words, "--voxel-size", nm), f"state the unit: --voxel-size {size}")
    assert run(*words, "--voxel-size", size).exit_code == 0
    made = read_volume(tmp_path / "a.zarr").voxel_size
    assert made is not None and made.zyx[1:] == VoxelSize.parse(nm).zyx[1:]


def test_factor_1_must_be_asked_for(tmp_path: Path, plain: Path) -> None:
    words = ["reconstruct", plain, tmp_path / "a.zarr", "--voxel-size", "8,8,8", *FAST]
    refused(run(*words), "isotropic already", "--factor 1")
    refused(run(*words, "--target-nm", 8), "isotropic already")
    assert run(*words, "--factor", 1).exit_code == 0


def test_y_unlike_x_is_said(tmp_path: Path, plain: Path) -> None:
    result = run("reconstruct", plain, tmp_path / "a.zarr", "--voxel-size", "40,4,16", *FAST)
    assert result.exit_code == 0
    assert "y (4 nm) and x (16 nm) differ: output voxels will be 8,4,16 nm" in result.output


def test_a_spacing_alone_completes_what_a_microscope_states(tmp_path: Path, plain: Path) -> None:
    scan = "[Scan]\r\nPixelWidth=8e-9\r\nPixelHeight=8e-9\r\n"
    tifffile.imwrite(tmp_path / "fei.tif", STACK, extratags=[(34682, "s", 0, scan, True)])
    refused(run("reconstruct", tmp_path / "fei.tif", tmp_path / "a.zarr", *FAST), "pixels of 8,8 nm", "FEI")
    words = ["--voxel-size", 40, *FAST]
    assert run("reconstruct", tmp_path / "fei.tif", tmp_path / "a.zarr", *words).exit_code == 0
    assert read_volume(tmp_path / "a.zarr").voxel_size is not None
    refused(run("reconstruct", plain, tmp_path / "b.zarr", *words), "does not state the size of a pixel")


@pytest.mark.parametrize("name", ["a.ome.zarr", "a.tif", "a"])
def test_a_record_of_somebody_else_is_kept(tmp_path: Path, plain: Path, name: str) -> None:
    record = tmp_path / f"{name}.json"
    record.write_text("mine")
    refused(run("reconstruct", plain, tmp_path / name, *SIZE, *FAST), f"{name}.json already exists", "--overwrite")
    assert record.read_text() == "mine" and not (tmp_path / name).exists()
    assert run("reconstruct", plain, tmp_path / name, *SIZE, *FAST, "--overwrite").exit_code == 0
    assert record.read_text() != "mine"


@pytest.mark.parametrize("words", [["a.mrc"], ["a.zarr", "--uncertainty", "a.mrc"]], ids=str)
def test_voxels_that_a_format_has_not_are_refused_before_any_work(tmp_path: Path, words: list[str]) -> None:
    pytest.importorskip("mrcfile")
    tifffile.imwrite(tmp_path / "f8.tif", STACK.astype(np.float64))
    words = [str(tmp_path / word) if word[0] != "-" else word for word in words]
    result = run("reconstruct", tmp_path / "f8.tif", *words, *SIZE, *FAST)
    if "--uncertainty" in words:
        assert result.exit_code == 0  # an uncertainty is float32
    else:
        refused(result, "cannot hold float64 voxels")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f8.tif"]


@pytest.mark.parametrize("model", ["./nope", "../nope", "a/b/c", "nope.", "-a/b", "a--b/c"])
def test_a_model_that_is_not_there_is_a_sentence(tmp_path: Path, plain: Path, model: str) -> None:
    result = run("reconstruct", plain, tmp_path / "a.zarr", *SIZE, f"--model={model}")
    refused(result, f"model '{model}' is not known")


def test_each_note_is_said_once(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 255 - STACK, photometric="miniswhite")
    words = [str(tmp_path / "a.tif"), str(tmp_path / "a.zarr"), *SIZE, *FAST]
    command = [sys.executable, "-m", "emformer_hub.cli", "reconstruct", *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said.count("MinIsWhite") == 1


def test_a_16_bit_stack_is_summed_up_in_plain_numbers(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.tile(STACK, (1, 2, 2)).astype(np.uint16) * 250)
    made = run("reconstruct", tmp_path / "a.tif", tmp_path / "a.zarr", *SIZE, *FAST)
    assert made.exit_code == 0 and re.search(r"differ from the measured ones by [\d,]{3,} grey levels RMS", made.output)
    assert "(1 pass, " in made.output
    looked = run("inspect", tmp_path / "a.tif", *SIZE)
    assert re.search(r"noise +[\d,]{3,} grey levels", looked.output)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_stdout_does_not_hide_that_the_output_is_complete(tmp_path: Path, plain: Path) -> None:
    command = [sys.executable, "-m", "emformer_hub.cli", "reconstruct", plain, tmp_path / "a.zarr", *SIZE, *FAST]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and "a.zarr is complete" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "a.zarr").is_dir()


@pytest.mark.parametrize("name", ["a.ome.zarr", "a.tif"])
@pytest.mark.parametrize("value", [0, 255])
def test_tissue_in_padding_is_as_without_it(tmp_path: Path, plain: Path, name: str, value: int) -> None:
    padded = np.pad(STACK, ((0, 0), (24, 10), (0, 12)), constant_values=value)
    tifffile.imwrite(tmp_path / "padded.tif", padded)
    assert run("reconstruct", plain, tmp_path / f"plain.{name}", *SIZE, *FAST).exit_code == 0
    words = ["--uncertainty", tmp_path / "u.zarr", "--confidence-mask", 0.9]
    assert run("reconstruct", tmp_path / "padded.tif", tmp_path / name, *SIZE, *FAST, *words).exit_code == 0
    expected, found = read_volume(tmp_path / f"plain.{name}"), read_volume(tmp_path / name)
    outside = np.ones(found.data.shape, bool)
    outside[:, 24:-10, :-12] = False
    np.testing.assert_array_equal(found.data[:, 24:-10, :-12], expected.data)
    assert (found.data[outside] == value).all() and found.translation_nm == expected.translation_nm
    uncertainty = read_volume(tmp_path / "u.zarr").data
    assert (uncertainty[outside] == 0).all() and (uncertainty[~outside] > 0).all()
    in_memory = reconstruct(padded, factor=5, model="emformer-tiny", ensemble=1, progress=False)
    np.testing.assert_array_equal(in_memory.volume, found.data)


def test_float64_with_a_large_offset_keeps_its_contrast(tmp_path: Path, plain: Path) -> None:
    tifffile.imwrite(tmp_path / "offset.tif", STACK.astype(np.float64) + 1e9)
    for name in ("plain", "offset"):
        assert run("reconstruct", tmp_path / f"{name}.tif", tmp_path / f"{name}.zarr", *SIZE, *FAST).exit_code == 0
    expected, found = (read_volume(tmp_path / f"{name}.zarr").data for name in ("plain", "offset"))
    np.testing.assert_allclose(found - 1e9, expected, atol=0.51)  # the plain one is rounded to integers


@pytest.mark.parametrize("value", [3.4e38, np.nan, -32768])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_no_data_is_named_before_anything_is_written(tmp_path: Path, value: float, compression: str | None) -> None:
    data = STACK.astype(np.float32)
    data[3, 4, 5] = value
    tifffile.imwrite(tmp_path / "a.tif", data, compression=compression)
    refused(run("reconstruct", tmp_path / "a.tif", tmp_path / "a.zarr", *SIZE, *FAST), "z=3, y=4, x=5", "--nodata")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("value", [3.4e38, np.nan, -32768, 1.0])
def test_no_data_is_predicted_where_it_is_asked_for(tmp_path: Path, value: float) -> None:
    data = STACK.astype(np.float32)
    data[2:4, 4:7, 5:9] = value
    tifffile.imwrite(tmp_path / "a.tif", data)
    words = ["reconstruct", tmp_path / "a.tif", tmp_path / "a.zarr", *SIZE, *FAST, "--nodata", value]
    assert run(*words, "--dry-run").exit_code == 0
    result = run(*words)
    assert result.exit_code == 0 and "0.83% of the voxels, which were not measured, were predicted" in result.output
    made = read_volume(tmp_path / "a.zarr").data
    assert np.isfinite(made).all() and made.min() > 0 and made.max() < 256
    mask = np.isnan(data) if np.isnan(value) else data == np.float32(value)
    in_memory = reconstruct(data, factor=5, model="emformer-tiny", ensemble=1, progress=False, mask=mask)
    np.testing.assert_array_equal(in_memory.volume, made)


@pytest.mark.parametrize("how", ["nodata", "mask", "array"])
def test_no_data_in_too_many_sections_stays_what_it_was(tmp_path: Path, how: str) -> None:
    data, hidden = STACK.astype(np.float32), np.zeros(STACK.shape, bool)
    hidden[:5, 4:7, 5:9] = hidden[2, 10, 10] = True
    data[hidden] = -1
    tifffile.imwrite(tmp_path / "a.tif", data)
    tifffile.imwrite(tmp_path / "mask.tif", 200 * (~hidden).astype(np.uint8))
    words = {"nodata": ["--nodata", -1], "mask": ["--mask", tmp_path / "mask.tif"]}.get(how, ["--nodata", -1])
    result = run("reconstruct", tmp_path / "a.tif", tmp_path / "a.zarr", *SIZE, *FAST, *words)
    assert result.exit_code == 0 and "stay as they are" in result.output and "predicted" in result.output
    made = read_volume(tmp_path / "a.zarr").data
    assert (made[:25, 4:7, 5:9] == -1).all() and (made == -1).sum() == 25 * 12
    if how == "array":
        masked = np.ma.array(data, mask=hidden)
        in_memory = reconstruct(masked, factor=5, model="emformer-tiny", ensemble=1, progress=False)
        np.testing.assert_array_equal(in_memory.volume, made)
        assert in_memory.mask is not None and np.argwhere(in_memory.mask).tolist() == [[2, 10, 10]]
        assert (in_memory.uncertainty[:25, 4:7, 5:9] == 0).all()


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("kept", ["a.tif", "a.zarr"])
def test_margins_that_differ_from_section_to_section_stay(
    tmp_path: Path, value: int, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    shifted, outside = shifted_stack(value)
    tifffile.imwrite(tmp_path / "in.tif", shifted)
    words = ["--uncertainty", tmp_path / "u.zarr", "--confidence-mask", 0.9]
    result = run("reconstruct", tmp_path / "in.tif", tmp_path / kept, *SIZE, *FAST, *words)
    assert result.exit_code == 0 and f"margins of {value}, which stay" in caplog.text
    made, there = read_volume(tmp_path / kept).data, outside.repeat(5, axis=0)
    assert (made[there] == value).all()
    masked = np.ma.array(np.where(outside, 7, shifted), mask=outside)
    expected = reconstruct(masked, factor=5, model="emformer-tiny", ensemble=1, progress=False)
    np.testing.assert_array_equal(made[~there], expected.volume[~there])
    uncertainty = read_volume(tmp_path / "u.zarr").data
    assert (uncertainty[there] == 0).all() and (uncertainty[~there] > 0).all()
    in_memory = reconstruct(shifted, factor=5, model="emformer-tiny", ensemble=1, progress=False)
    np.testing.assert_array_equal(in_memory.volume, made)


def shifted_stack(value: int, shape: tuple[int, int, int] = (6, 40, 36)) -> tuple[np.ndarray, np.ndarray]:
    """Sections that lie elsewhere in a frame, each by itself, and where nothing is; of no place in five of six."""
    stack, outside = np.full(shape, value, np.uint8), np.ones(shape, bool)
    tissue = np.random.default_rng(3).integers(40, 215, shape, np.uint8)
    for z, section in enumerate(outside):
        section[2 * z : 2 * z + 30, 10 - 2 * z : 36 - 2 * z] = False
    for column in range(4):  # all but one section miss this corner
        outside[1:, : 20 - column, column] = True
    stack[~outside] = tissue[~outside]
    return stack, outside


def test_a_mask_must_fit(tmp_path: Path, plain: Path) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", np.ones((6, 24, 21), np.uint8))
    words = ["reconstruct", plain, tmp_path / "a.zarr", *SIZE, *FAST]
    refused(run(*words, "--mask", tmp_path / "mask.tif"), "mask of", "(6, 24, 21)", "(6, 24, 20)")
    refused(run(*words, "--mask", tmp_path / "no.tif"), "no.tif does not exist")
    refused(run(*words, "--nodata", 256), "uint8 voxels, none of which can be 256")
    tifffile.imwrite(tmp_path / "none.tif", np.zeros((6, 24, 20), np.uint8))
    refused(run(*words, "--mask", tmp_path / "none.tif"), "every voxel", "the right way round?")


def test_one_mask_for_all_sections(tmp_path: Path, plain: Path) -> None:
    mask = np.ones((24, 20), np.uint8)
    mask[:, :3] = 0
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    words = ["--mask", tmp_path / "mask.tif"]
    assert run("reconstruct", plain, tmp_path / "a.zarr", *SIZE, *FAST, *words).exit_code == 0
    made = read_volume(tmp_path / "a.zarr").data
    np.testing.assert_array_equal(made[:, :, :3], STACK[:, :, :3].repeat(5, axis=0))


def test_a_run_with_masks_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_VOXELS", 1)
    data = np.tile(STACK, (1, 3, 5)).astype(np.float32)
    data[3, :50, :50] = np.nan
    write_volume(tmp_path / "in.zarr", data, VoxelSize(40, 8, 8))
    mask = np.ones(data.shape, np.uint8)
    mask[:, 60:, 80:] = 0
    write_volume(tmp_path / "mask.zarr", mask, VoxelSize(40, 8, 8))
    write = parts.Parts.write

    def failing(self: parts.Parts, number: int, made: list[np.ndarray]) -> None:
        if number == 1:
            raise OSError("no")
        write(self, number, made)

    reading = {"nodata": np.nan, "mask": tmp_path / "mask.zarr"}
    settings: dict[str, Any] = {"factor": 5, "model": "emformer-tiny", "ensemble": 1, "tile_zyx": (6, 48, 64)}
    settings |= {"voxel_size": VoxelSize(40, 8, 8), "reading": reading}
    monkeypatch.setattr(parts.Parts, "write", failing)
    with pytest.raises(InputError, match="--resume"):
        reconstruct_file(tmp_path / "in.zarr", tmp_path / "a.zarr", **settings)
    monkeypatch.setattr(parts.Parts, "write", write)
    record = json.loads(
        reconstruct_file(tmp_path / "in.zarr", tmp_path / "a.zarr", resume=True, **settings).read_text()
    )
    made = read_volume(tmp_path / "a.zarr").data
    assert 0 < record["made_now"] < record["parts"]
    np.testing.assert_array_equal(made[:, 60:, 80:], data[:, 60:, 80:].repeat(5, axis=0))
    assert np.isfinite(made).all()
    assert record["not_measured"] == {"filled": 2500 / data.size, "kept": 12 * 20 / (72 * 100)}

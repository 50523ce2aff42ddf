"""The command line, end to end: what it writes, what it says, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from emformer_hub.cli import main
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import registry
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.contiguous import ContiguousWriter
from emformer_hub.volumes.phantom import neuropil

ISOTROPIC, SECTIONS = VoxelSize(8, 8, 8), VoxelSize(32, 8, 8)
COMMAND = [sys.executable, "-m", "emformer_hub.cli"]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Isotropic phantom, uint8."""
    volume = neuropil((48, 40, 32))
    volume.flags.writeable = False
    return volume


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "window_size": (2, 2, 4), "num_basis": 6}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    EMformerModel(EMformerConfig(**sizes)).save_pretrained(folder)
    EMformerProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cubic_folder(tiny_folder: Path) -> Path:
    """A model that adds nothing to cubic interpolation."""
    folder = tiny_folder.with_name("cubic")
    model = EMformerModel.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.decoder.coefficients.weight.zero_()
        model.decoder.coefficients.bias.zero_()
    model.save_pretrained(folder)
    EMformerProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stack(folder: Path, truth: np.ndarray) -> np.ndarray:
    """12 sections of 40 x 32 in ``stack.tif``, 32 nm apart, 8 nm laterally."""
    stack = np.rint(SectionModel(4).degrade(truth)).astype(np.uint8)
    write_volume("stack.tif", stack, SECTIONS)
    return stack


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def reconstruct(*arguments: object, model: object) -> Result:
    return call("reconstruct", *arguments, "--model", model, "--device", "cpu")


def succeed(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(folder: Path, message: str, *arguments: object) -> None:
    """The command ends with status 2 and one readable message, and changes nothing below ``folder``."""
    before = files(folder)
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert re.search(message, " ".join(result.output.split())), result.output
    assert "Traceback" not in result.output
    assert files(folder) == before


# --- the whole path ----------------------------------------------------------------------------------------------


def test_degrade_reconstruct_evaluate(folder: Path, truth: np.ndarray, tiny_folder: Path) -> None:
    write_volume("truth.tif", truth, ISOTROPIC)

    degraded = succeed(call("degrade", "truth.tif", "stack.tif", "--factor", 4))
    assert "stack.tif: 12x40x32 uint8, 32,8,8 nm" in degraded.stdout
    arguments = ["reconstruct", "stack.tif", "out.ome.tif", "--model", str(tiny_folder)]
    shell = subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=600)
    assert shell.returncode == 0, shell.stderr
    assert re.search(r"out\.ome\.tif: 48x40x32 uint8, 8,8,8 nm.*factor 4; [\d.]+ s, [\d.]+ Mvoxel/s", shell.stdout)
    table = succeed(call("evaluate", "out.ome.tif", "truth.tif", "--json", "figures.json")).stdout

    figures = json.loads(Path("figures.json").read_text())
    assert set(figures) == {"psnr_db", "ssim", "fsc", "shape_zyx", "voxel_size_nm"}
    out = read_volume("out.ome.tif")
    error = np.mean(np.square(out.data.astype(float) - truth))
    assert figures["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error))
    assert (figures["shape_zyx"], figures["voxel_size_nm"]) == ([48, 40, 32], [8, 8, 8])
    assert set(figures["ssim"]) == {"3d", "xy", "xz", "yz"} and all(0 < v <= 1 for v in figures["ssim"].values())
    assert set(figures["fsc"]["resolution_nm"]) >= {"z", "lateral"}
    assert f"{figures['psnr_db']:.2f} dB" in table and f"z {figures['fsc']['resolution_nm']['z']:.1f} nm" in table
    assert sorted(os.listdir()) == ["figures.json", "out.ome.tif", "out.ome.tif.json", "stack.tif", "truth.tif"]


# --- reconstruct: formats and voxel sizes ------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.tif", "out.ome.tif", "out.ome.zarr", "out.zarr"])
def test_the_voxel_size_is_written_to_every_format(stack: np.ndarray, output: str, cubic_folder: Path) -> None:
    succeed(reconstruct("stack.tif", output, model=cubic_folder))
    found = read_volume(output)
    assert found.voxel_size == ISOTROPIC
    np.testing.assert_allclose(found.data, interpolate(stack, SectionModel(4), "cubic").clip(0, 255), atol=1)
    assert sorted(os.listdir()) == sorted(["stack.tif", output, f"{output}.json"])


def test_planes_begin_at_the_face_where_sections_begin(stack: np.ndarray, cubic_folder: Path) -> None:
    # the first section's centre is at 0, so its face is at -16 nm and the first plane's centre at -12 nm
    succeed(reconstruct("stack.tif", "out.zarr", "--uncertainty", "sd.zarr", model=cubic_folder))
    assert read_volume("out.zarr").translation_nm == read_volume("sd.zarr").translation_nm == (-12, 0, 0)
    write_volume("moved.tif", stack, SECTIONS, translation_nm=(116, 5, 6))
    succeed(reconstruct("moved.tif", "again.zarr", model=cubic_folder))
    assert read_volume("again.zarr").translation_nm == (104, 5, 6)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("output", ["out.tif", "out.zarr"])
def test_16_bit_and_float_return_as_they_came(stack: np.ndarray, dtype: str, output: str, cubic_folder: Path) -> None:
    volume = (stack.astype(np.float32) * 100 - 5000 * (dtype == "int16")).astype(dtype)
    write_volume("in.tif", volume, SECTIONS)
    succeed(reconstruct("in.tif", output, model=cubic_folder))
    found = read_volume(output).data
    assert found.dtype == volume.dtype
    low = np.iinfo(dtype).min if volume.dtype.kind != "f" else -np.inf
    np.testing.assert_allclose(found, interpolate(volume, SectionModel(4), "cubic").clip(low), atol=1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_folder_of_slices(stack: np.ndarray, suffix: str, cubic_folder: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    Path("slices").mkdir()
    for number, section in enumerate(stack):
        imageio.imwrite(f"slices/s{number}{suffix}", section)
    succeed(reconstruct("stack.tif", "from_stack.tif", model=cubic_folder))
    succeed(reconstruct("slices", "from_slices.tif", "--voxel-size", "32,8,8", model=cubic_folder))
    np.testing.assert_array_equal(read_volume("from_slices.tif").data, read_volume("from_stack.tif").data)


def test_an_ome_zarr_goes_in_as_well(stack: np.ndarray, cubic_folder: Path) -> None:
    write_volume("in.ome.zarr", stack, SECTIONS)
    succeed(reconstruct("in.ome.zarr", "out.tif", model=cubic_folder))
    assert read_volume("out.tif").voxel_size == ISOTROPIC


def test_the_flag_wins_over_the_file_and_says_so(stack: np.ndarray, cubic_folder: Path) -> None:
    result = succeed(reconstruct("stack.tif", "out.tif", "--voxel-size", "40,4,4", model=cubic_folder))
    assert read_volume("out.tif").voxel_size == VoxelSize(4, 4, 4)
    assert "stack.tif says 32,8,8 nm (z,y,x) (OME-XML); using --voxel-size 40,4,4 nm" in result.stderr
    result = succeed(reconstruct("stack.tif", "again.tif", "--voxel-size", "32,8,8", model=cubic_folder))
    assert result.stderr == ""


def test_without_any_voxel_size_nothing_is_guessed(folder: Path, stack: np.ndarray) -> None:
    tifffile.imwrite("bare.tif", stack)
    for options in ([], ["--factor", 4], ["--target-nm", 8]):
        refuse(folder, "bare.tif states no voxel size; give --voxel-size", "reconstruct", "bare.tif", "o.tif", *options)


@pytest.mark.parametrize(
    ("options", "planes", "plane_nm"),
    [
        (["--factor", 8.333], 100, 32 / 8.333),
        (["--factor", 1.5], 18, 32 / 1.5),
        (["--factor", 6.7], 80, 32 / 6.7),
        (["--factor", 1], 12, 32),
        (["--target-nm", 16], 24, 16),
        (["--target-nm", 2], 192, 2),
        (["--voxel-size", "40,4.886,4.886"], 98, 4.886),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, list) else "",
)
def test_any_target(stack: np.ndarray, options: list, planes: int, plane_nm: float, cubic_folder: Path) -> None:
    succeed(reconstruct("stack.tif", "out.ome.zarr", *options, model=cubic_folder))
    found = read_volume("out.ome.zarr")
    assert found.data.shape == (planes, 40, 32)
    assert found.voxel_size is not None and found.voxel_size.z == pytest.approx(plane_nm, rel=1e-12)


def test_block_faces_and_passes(stack: np.ndarray, cubic_folder: Path, tiny_folder: Path) -> None:
    succeed(reconstruct("stack.tif", "thin.tif", "--thickness", 0.25, model=cubic_folder))
    expected = interpolate(stack, SectionModel(4, 0.25), "cubic").clip(0, 255)
    np.testing.assert_allclose(read_volume("thin.tif").data, expected, atol=1)
    for passes in (1, 4):
        result = succeed(reconstruct("stack.tif", f"{passes}.tif", "--ensemble", passes, model=tiny_folder))
        assert f"{passes} passes" in result.output or passes == 1
    assert (read_volume("1.tif").data != read_volume("4.tif").data).any()


def test_uncertainty_is_written_beside_the_volume(stack: np.ndarray, cubic_folder: Path) -> None:
    succeed(reconstruct("stack.tif", "out.tif", "--uncertainty", "sd.ome.zarr", model=cubic_folder))
    uncertainty = read_volume("sd.ome.zarr")
    assert uncertainty.data.dtype == np.float32 and uncertainty.data.shape == (48, 40, 32)
    assert uncertainty.voxel_size == ISOTROPIC
    assert (uncertainty.data > 0).all()


# --- reconstruct: bad input --------------------------------------------------------------------------------------


def spoilt(stack: np.ndarray, where: tuple[int, int, int], value: float) -> np.ndarray:
    damaged = stack.astype(np.float32)
    damaged[where] = value
    return damaged


def imwrite(data: np.ndarray, **options: Any) -> None:
    """``bad.tif`` with a voxel size that is right, so that only the data can be at fault."""
    metadata = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (32, 8, 8), strict=True)}
    units = {f"PhysicalSize{axis}Unit": "nm" for axis in "ZYX"}
    tifffile.imwrite("bad.tif", data, ome=True, metadata=metadata | units | options.pop("metadata", {}), **options)


def truncate(stack: np.ndarray) -> None:
    imwrite(stack, metadata={"axes": "ZYX"})
    whole = Path("bad.tif").read_bytes()
    Path("bad.tif").write_bytes(whole[: len(whole) // 2])


ZYX: dict[str, Any] = {"metadata": {"axes": "ZYX"}}
BAD_INPUT = {
    "2-D image": (lambda s: imwrite(s[0]), r"bad\.tif has 1 section .*give the whole stack"),
    "RGB": (lambda s: imwrite(np.stack([s, s, 255 - s], -1), photometric="rgb"), r"bad\.tif is RGB.*Convert it"),
    "RGB plane": (
        lambda s: imwrite(np.stack([s[0], s[1], s[2]], -1), photometric="rgb"),
        r"bad\.tif is RGB.*Convert it",
    ),
    "two channels": (lambda s: imwrite(np.stack([s, s], 1), metadata={"axes": "ZCYX"}), "expected one grey-value"),
    "3 sections": (lambda s: imwrite(s[:3], metadata={"axes": "ZYX"}), r"bad\.tif has 3 sections .*at least 4"),
    "NaN": (
        lambda s: imwrite(spoilt(s, (5, 6, 7), np.nan), **ZYX),
        "1 NaN or infinite voxel, the first at z=5, y=6, x=7",
    ),
    "infinite": (
        lambda s: imwrite(spoilt(s, (0, 0, 0), np.inf), **ZYX),
        "NaN or infinite.* z=0, y=0, x=0.*--nodata inf",
    ),
    "constant": (lambda s: imwrite(np.full_like(s, 9), **ZYX), "constant: every voxel is 9.*right file"),
    "int64": (lambda s: tifffile.imwrite("bad.tif", s.astype(np.int64)), "int64 voxels; expected .*Convert"),
    "truncated": (truncate, r"bad\.tif is truncated or damaged: it has \d+ bytes.*again"),
    "empty file": (lambda s: Path("bad.tif").touch(), r"bad\.tif cannot be read as TIFF.*copied completely"),
    "text": (lambda s: Path("bad.tif").write_text("z,y,x\n"), r"bad\.tif cannot be read as TIFF.*Is it a TIFF"),
    "missing": (lambda s: None, r"bad\.tif does not exist; expected a TIFF stack"),
    "empty folder": (lambda s: Path("bad.tif").mkdir(), r"bad\.tif is a folder without TIFF or PNG images"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_volumes(folder: Path, stack: np.ndarray, spoil: Any, message: str, cubic_folder: Path) -> None:
    spoil(stack)
    refuse(folder, message, "reconstruct", "bad.tif", "out.tif", "--voxel-size", "32,8,8", "--model", cubic_folder)


@pytest.mark.parametrize("command", [["degrade", "--factor", "2"], ["reconstruct"]])
def test_a_folder_with_a_broken_slice(folder: Path, stack: np.ndarray, command: list[str]) -> None:
    Path("slices").mkdir()
    for number, section in enumerate(stack[:5]):
        tifffile.imwrite(f"slices/s{number}.tif", section)
    whole = Path("slices/s3.tif").read_bytes()
    Path("slices/s3.tif").write_bytes(whole[: len(whole) // 2])
    refuse(folder, r"s3\.tif.*(truncated|cannot be read)", *command, "slices", "out.tif", "--voxel-size", "32,8,8")


def test_an_unreadable_file(folder: Path, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # as root, file modes forbid nothing

    monkeypatch.setattr(tifffile, "TiffFile", forbidden)
    refuse(folder, r"stack\.tif cannot be read: permission denied", "reconstruct", "stack.tif", "out.tif")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--voxel-size", "8,32,32"], "z .*finer than.*Z,Y,X; is the order right"),
        (["--voxel-size", "8,32,32", "--factor", 2], "z .*finer than.*Z,Y,X; is the order right"),
        (["--voxel-size", "8,32,32", "--target-nm", 4], "z .*finer than.*Z,Y,X; is the order right"),
        (["--voxel-size", "32,8"], "'32,8' is not three numbers; expected Z,Y,X in nm"),
        (["--voxel-size", "thick"], "'thick' is not three numbers; expected Z,Y,X in nm"),
        (["--voxel-size", ""], "'' is not three numbers; expected Z,Y,X in nm"),
        (["--voxel-size", "32,0,8"], "voxel size along y is 0.0 nm; expected a positive number"),
        (["--voxel-size", "nan,8,8"], "voxel size along z is nan nm; expected a positive number"),
        (["--voxel-size", "400,8,8"], "factor is 50; expected 1 to 16"),
        (["--factor", 0.5], "factor is 0.5; expected 1 to 16"),
        (["--factor", 16.1], "factor is 16.1; expected 1 to 16"),
        (["--factor", "nan"], "factor is nan; expected 1 to 16"),
        (["--target-nm", 64], "factor 0.5 is below 1"),
        (["--target-nm", 1], "factor is 32; expected 1 to 16"),
        (["--target-nm", 0], "target plane spacing is 0.0 nm; expected a positive number"),
        (["--target-nm", 8, "--factor", 4], "exclude each other"),
        (["--thickness", 0], r"thickness is 0; expected a fraction of the section spacing in \(0, 1\]"),
        (["--thickness", 8], r"thickness is 8; expected a fraction"),
        (["--ensemble", 3], "ensemble is 3; expected one of 1, 2, 4, 8, 16"),
        (["--device", "tpu"], "device 'tpu' is unknown; expected auto, cpu, cuda, xpu, mps"),
        (["--model", "emformer-smal"], "model 'emformer-smal' is not known; expected one of .*emformer-small"),
        (["--model", "stack.tif"], r"model 'stack\.tif' is not known; expected"),
        (["--model", "."], r"\. holds no config\.json; expected a folder"),
        (["--uncertainty", "out.tif"], "out.tif are not all different"),
        (["--uncertainty", "sd.png"], r"sd\.png has the suffix '\.png'; expected .*\.ome\.tif"),
        (["--uncertainty", "missing/sd.tif"], "missing does not exist. Create it"),
        (["--sharpen"], "No such option: --sharpen|No such option '--sharpen'"),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_options(folder: Path, stack: np.ndarray, options: list, message: str, cubic_folder: Path) -> None:
    refuse(folder, message, "reconstruct", "stack.tif", "out.tif", "--model", cubic_folder, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folder: Path, stack: np.ndarray, cubic_folder: Path) -> None:
    arguments = ["reconstruct", "stack.tif", "out.tif", "--model", cubic_folder, "--device", "cuda"]
    refuse(folder, "torch sees no GPU; use --device cpu", *arguments)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("old.tif", r"old\.tif already exists\. Choose another name, or give --overwrite"),
        ("old.zarr", r"old\.zarr already exists\. Choose another name, or give --overwrite"),
        ("stack.tif", "not all different; an output may not replace an input"),
        ("missing/out.tif", "the folder .*missing does not exist. Create it first"),
        ("old.tif/out.tif", r"the folder .*old\.tif does not exist"),
        ("out.nii", r"suffix '\.nii'; expected .*\.zarr.*\.tif"),
        ("slices", "is a folder, not such a volume; it is never replaced"),
    ],
)
@pytest.mark.parametrize("command", [["degrade", "--factor", "2"], ["reconstruct"]], ids=["degrade", "reconstruct"])
def test_bad_outputs(folder: Path, stack: np.ndarray, command: list[str], output: str, message: str) -> None:
    write_volume("old.tif", stack, SECTIONS)
    write_volume("old.zarr", stack, SECTIONS)
    Path("slices").mkdir()
    Path("slices/s1.tif").touch()
    refuse(folder, message, *command, "stack.tif", output)


def test_what_is_not_an_image_is_never_replaced(folder: Path, stack: np.ndarray, cubic_folder: Path) -> None:
    Path("thesis.zarr").mkdir()
    Path("thesis.zarr/chapter.txt").write_text("years of work")
    refuse(folder, "never replaced", "reconstruct", "stack.tif", "thesis.zarr", "--overwrite", "--model", cubic_folder)
    refuse(folder, "not all different", "reconstruct", "stack.tif", "stack.tif", "--overwrite", "--model", cubic_folder)


def test_an_unwritable_folder(folder: Path, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # as root, file modes forbid nothing
    refuse(folder, "no permission to write to the folder", "reconstruct", "stack.tif", "out.tif")


@pytest.mark.parametrize("options", [[], ["--uncertainty", "sd.tif"]])
def test_a_full_disk(
    folder: Path, stack: np.ndarray, options: list[str], cubic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = ["reconstruct", "stack.tif", "out.tif", *options, "--model", cubic_folder]
    with monkeypatch.context() as patch:
        patch.setattr(ContiguousWriter, "write", full)
        result = call(*arguments)
    assert result.exit_code == 2
    assert "out.tif could not be written: No space left on device" in result.output and "--resume" in result.output
    assert not Path("out.tif").exists() and not Path("sd.tif").exists()
    succeed(call(*arguments, "--resume"))
    assert sorted(os.listdir()) == sorted(["out.tif", "out.tif.json", "stack.tif", *options[1:]])


def cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])


def rename_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["decoder.basis4.weight"] = weights.pop("decoder.basis3.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def edit_config(model: Path, **fields: object) -> None:
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | fields))


BAD_MODELS = {
    "cut short": (cut_short, "the weight file is damaged or cut short.*fetch it again"),
    "empty weights": (lambda m: (m / "model.safetensors").write_bytes(b""), "the weight file is damaged or cut short"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "cannot be loaded: .*model.safetensors"),
    "other model": (lambda m: edit_config(m, model_type="bert"), "model type 'bert'; expected 'emformer'"),
    "other sizes": (lambda m: edit_config(m, num_basis=9), "weights do not fit the config: mismatched keys"),
    "more layers": (lambda m: edit_config(m, num_hidden_layers=3), r"weights do not fit.*missing keys layers\.2\."),
    "other names": (rename_weight, r"weights do not fit.*missing keys decoder\.basis3\.weight.*saved together"),
    "impossible sizes": (lambda m: edit_config(m, window_size=[3, 2, 4]), r"three even token counts"),
    "broken config": (lambda m: (m / "config.json").write_text("{"), "cannot be loaded: .*config.json"),
    "no processor": (lambda m: (m / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models(folder: Path, stack: np.ndarray, spoil: Any, message: str, cubic_folder: Path) -> None:
    shutil.copytree(cubic_folder, "model")
    spoil(Path("model"))
    refuse(folder, message, "reconstruct", "stack.tif", "out.tif", "--model", "model")


# --- overwriting and interrupting --------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.tif", "out.ome.zarr"])
def test_overwrite_replaces_the_old_output(stack: np.ndarray, output: str, cubic_folder: Path) -> None:
    write_volume(output, stack, SECTIONS)
    succeed(reconstruct("stack.tif", output, "--overwrite", model=cubic_folder))
    assert read_volume(output).data.shape == (48, 40, 32)
    assert sorted(os.listdir()) == sorted([output, "stack.tif", f"{output}.json"])


def test_ctrl_c_leaves_everything_as_it_was(folder: Path, truth: np.ndarray, tiny_folder: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    write_volume("stack.tif", np.tile(truth[:4], (1, 52, 64)), SECTIONS)  # seconds of work
    write_volume("old.ome.zarr", truth, ISOTROPIC)
    before = files(folder)
    terminal, stderr = pty.openpty()  # progress is shown on a terminal only
    termios.tcsetwinsize(stderr, (24, 100))
    arguments = ["reconstruct", "stack.tif", "old.ome.zarr", "--uncertainty", "sd.tif", "--overwrite"]
    arguments += ["--model", str(tiny_folder)]
    process = subprocess.Popen([*COMMAND, *arguments], stderr=stderr, stdout=subprocess.PIPE)
    os.close(stderr)
    shown = b""
    while not re.search(rb"reconstruct:.* (?!0/)[\d.]+/\d+ blocks \[", shown):
        shown += os.read(terminal, 4096)  # raises at the end of the stream
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=600)
    os.close(terminal)
    assert process.returncode not in (0, 2)
    assert stdout == b""  # no summary
    assert files(folder) == before


def test_an_interrupted_write_keeps_the_old_output(
    folder: Path, stack: np.ndarray, cubic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume("old.tif", stack, SECTIONS)
    before = files(folder)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for output in ("old.tif", "new.tif"):
        with monkeypatch.context() as patch:
            patch.setattr(ContiguousWriter, "write", interrupted)
            result = reconstruct("stack.tif", output, "--overwrite", model=cubic_folder)
        assert result.exit_code not in (0, 2)
        after = files(folder)
        assert {name: after[name] for name in after if not name.startswith(".")} == before
        succeed(reconstruct("stack.tif", output, "--resume", model=cubic_folder))
        assert read_volume(output).data.shape == (48, 40, 32)
        before = files(folder)
        assert not any(name.startswith(".") for name in before)


# --- degrade -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [4, 8.333])
def test_degrade_then_reconstruct_gives_the_voxel_size_back(truth: np.ndarray, factor: float, folder: Path) -> None:
    write_volume("truth.tif", truth, ISOTROPIC)
    succeed(call("degrade", "truth.tif", "stack.ome.zarr", "--factor", factor))
    found = read_volume("stack.ome.zarr")
    np.testing.assert_array_equal(found.data, np.rint(SectionModel(factor).degrade(truth)))
    assert found.data.dtype == truth.dtype
    assert found.voxel_size is not None and found.voxel_size.factor_to() == pytest.approx(factor)


@pytest.mark.parametrize("name", ["stack.h5", "stack.mrc", "slices", "new.ome.zarr", "old.ome.zarr"])
def test_every_format_goes_out_and_in(truth: np.ndarray, name: str, folder: Path, cubic_folder: Path) -> None:
    write_volume("truth.tif", truth, ISOTROPIC)
    version = "0.4" if name.startswith("old") else "0.5"
    succeed(call("degrade", "truth.tif", name, "--factor", 4, "--ome-zarr", version))
    succeed(call("degrade", "truth.tif", "same.tif", "--factor", 4))
    for output, stack in (("found.tif", name), ("expected.tif", "same.tif")):
        succeed(reconstruct(stack, output, model=cubic_folder))
    found, expected = read_volume("found.tif"), read_volume("expected.tif")
    np.testing.assert_array_equal(found.data, expected.data)
    assert (found.voxel_size, found.translation_nm) == (expected.voxel_size, expected.translation_nm)
    assert not name.endswith("zarr") or (Path(name) / ".zgroup").exists() == (version == "0.4")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_degrade_keeps_the_dtype(truth: np.ndarray, dtype: str, folder: Path) -> None:
    volume = truth.astype(dtype) * 200
    write_volume("truth.tif", volume, ISOTROPIC)
    succeed(call("degrade", "truth.tif", "stack.tif", "--factor", 6, "--thickness", 0.5))
    found = read_volume("stack.tif").data
    assert found.dtype == volume.dtype
    np.testing.assert_allclose(found, SectionModel(6, 0.5).degrade(volume), atol=0.5 if dtype == "uint16" else 1e-2)


def test_degrade_says_what_it_leaves_out(truth: np.ndarray, folder: Path) -> None:
    write_volume("truth.tif", truth[:47], ISOTROPIC)
    result = succeed(call("degrade", "truth.tif", "stack.tif", "--factor", 4))
    assert "the last 3 planes do not fill a section and were left out" in result.output
    assert read_volume("stack.tif").data.shape == (11, 40, 32)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda t: t, ["--factor", 17], "factor is 17; expected 1 to 16"),
        (lambda t: t, ["--factor", 4, "--thickness", 2], "thickness is 2; expected"),
        (lambda t: t, [], "Missing option '--factor'"),
        (lambda t: t[:5], ["--factor", 16], "5 planes do not hold one section at factor 16"),
        (lambda t: spoilt(t, (1, 2, 3), np.nan), ["--factor", 4], "NaN or infinite voxel, the first at z=1, y=2, x=3"),
        (np.zeros_like, ["--factor", 4], "constant: every voxel is 0"),
    ],
    ids=["factor", "thickness", "no factor", "too short", "NaN", "constant"],
)
def test_bad_truths(folder: Path, truth: np.ndarray, spoil: Any, options: list, message: str) -> None:
    write_volume("truth.tif", spoil(truth), ISOTROPIC)
    refuse(folder, message, "degrade", "truth.tif", "out.tif", *options)


# --- evaluate ----------------------------------------------------------------------------------------------------


@pytest.fixture
def noisy(folder: Path, truth: np.ndarray) -> np.ndarray:
    """``truth.tif``, and ``noisy.tif`` that is close to it."""
    noise = np.random.default_rng(0).normal(0, 10, truth.shape)
    noisy = np.rint(truth + noise).clip(0, 255).astype(np.uint8)
    write_volume("truth.tif", truth, ISOTROPIC)
    write_volume("noisy.tif", noisy, ISOTROPIC)
    return noisy


def test_planes_that_fill_no_section_are_left_out(folder: Path, noisy: np.ndarray) -> None:
    write_volume("short.tif", noisy[:44], ISOTROPIC)
    result = succeed(call("evaluate", "short.tif", "truth.tif", "--json", "figures.json"))
    assert "truth.tif has 4 planes more than short.tif; comparing the first 44" in result.stderr
    assert json.loads(Path("figures.json").read_text())["shape_zyx"] == [44, 40, 32]


def test_the_voxel_size_comes_from_the_flag_the_truth_or_the_reconstruction(folder: Path, noisy: np.ndarray) -> None:
    def voxel_size(*arguments: object) -> list[float]:
        succeed(call("evaluate", *arguments, "--json", "figures.json", "--overwrite"))
        return json.loads(Path("figures.json").read_text())["voxel_size_nm"]

    tifffile.imwrite("bare.tif", noisy)
    write_volume("finer.tif", noisy, VoxelSize(7.9999, 8, 8))
    assert voxel_size("bare.tif", "truth.tif") == [8, 8, 8]
    assert voxel_size("finer.tif", "bare.tif") == [7.9999, 8, 8]
    assert voxel_size("finer.tif", "truth.tif") == [8, 8, 8]
    assert voxel_size("bare.tif", "bare.tif", "--voxel-size", "5,5,5") == [5, 5, 5]
    refuse(folder, "bare.tif states no voxel size; give --voxel-size", "evaluate", "bare.tif", "bare.tif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.tif", "truth.tif"], r"missing\.tif does not exist"),
        (["noisy.tif", "cropped.tif"], r"different shapes, \(48, 40, 32\) and \(48, 30, 32\).*Crop both"),
        (["noisy.tif", "truth.tif", "--json", "missing/a.json"], "missing does not exist"),
        (["noisy.tif", "truth.tif", "--json", "cropped.tif"], r"cropped\.tif already exists\. Choose another name"),
        (["noisy.tif", "truth.tif", "--json", "truth.tif", "--overwrite"], "not all different"),
        (["noisy.tif", "truth.tif", "--json", ".", "--overwrite"], "is a folder; it is never replaced"),
        (["noisy.tif", "truth.tif", "--voxel-size", "8,8"], "not three numbers"),
    ],
)
def test_bad_comparisons(folder: Path, noisy: np.ndarray, arguments: list[str], message: str) -> None:
    write_volume("cropped.tif", noisy[:, :30], ISOTROPIC)
    refuse(folder, message, "evaluate", *arguments)


# --- help and models ---------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    volumes = {"reconstruct", "evaluate", "degrade", "inspect", "audit"}
    assert set(main.commands) == volumes | {
        "models",
        "card",
        "merge",
        "push",
        "download",
        "export",
        "dataset",
        "app",
        "demo",
        "push-space",
        "transform",
        "view",
        "doctor",
        "finetune",
    }
    for flag in ("--help", "-h"):
        text = succeed(call(flag)).output
        assert all(re.search(rf"^  {name}  ", text, re.MULTILINE) for name in main.commands)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    text = succeed(call(command, "--help")).output
    assert text.startswith(f"Usage: main {command}")
    for parameter in main.commands[command].params:
        for name in parameter.opts:
            assert name in text or name == parameter.name


@pytest.mark.parametrize("arguments", [["restore"], ["models", "--all"], ["reconstruct", "stack.tif"], ["degrade"]])
def test_wrong_usage(folder: Path, arguments: list[str]) -> None:
    refuse(folder, "Usage: .*Error: (No such|Missing)", *arguments)


def test_models_lists_the_registry() -> None:
    text = succeed(call("models")).output
    for weights in registry().values():
        assert re.search(rf"^{weights.name} .*{re.escape(weights.licence)}.*{weights.repo_id}$", text, re.MULTILINE)


def test_the_installed_command_is_this_one() -> None:
    script = shutil.which("emformer-hub", path=str(Path(sys.executable).parent))
    assert script is not None, "the package is not installed; run `make test`"
    run = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.search(r"\d+\.\d+", run.stdout)


# --- view --------------------------------------------------------------------------------------------------------


def test_a_link_shows_stack_and_result_at_the_same_place(stack: np.ndarray, truth: np.ndarray) -> None:
    write_volume("stack.zarr", stack, SECTIONS, translation_nm=(12, 0, 0))
    write_volume("result.zarr", truth, ISOTROPIC)
    words = ["view", "stack.zarr", "result.zarr", "--served-at", "http://localhost:9000/"]
    shown = succeed(CliRunner().invoke(main, words))
    state = json.loads(unquote(shown.output.strip().partition("#!")[2]))
    assert [layer["source"] for layer in state["layers"]] == [
        f"zarr://http://localhost:9000/{name}.zarr/" for name in ("stack", "result")
    ]
    assert state["dimensions"]["z"] == [ISOTROPIC.z / 1e9, "m"]
    middle = (12 + (len(stack) - 1) / 2 * SECTIONS.z) / ISOTROPIC.z
    assert state["position"][2] == pytest.approx(middle)


def test_a_demonstration_writes_a_picture_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emformer_hub.demo.SHAPE", (40, 64, 64))
    monkeypatch.chdir(tmp_path)
    printed = succeed(call("demo", "--model", "emformer-tiny", "--device", "cpu")).output.splitlines()
    gains = {line[:20].strip(): float(line[20:].split()[0]) for line in printed[1:3]}
    assert gains["emformer-tiny"] > gains["cubic interpolation"]
    folder = tmp_path / "emformer-demo"
    assert read_volume(folder / "isotropic.ome.tif").voxel_size == VoxelSize(8, 8, 8)
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    refuse(folder, "stack.ome.tif already", "demo", folder)

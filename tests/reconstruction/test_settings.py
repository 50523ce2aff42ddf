"""Settings are declared once; a run opens its input once and loads its weights once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct, reconstruct_file, settings
from emformer_hub.reconstruction.follow import follow
from emformer_hub.volumes import slices
from emformer_hub.volumes.phantom import neuropil


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts openings of folders of slices, headers that are read, and loadings of weights, processor and hash."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            counts[f"{owner.__name__.rpartition('.')[2]}.{name}"] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    count(slices, "open_volume")
    count(slices, "_properties")
    count(settings, "fingerprint")
    count(EMformerModel, "from_pretrained")
    count(EMformerProcessor, "from_pretrained")
    return counts


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--repair", "3"],
        ["--scheduler", "threads", "--workers", "2"],
        ["--dry-run"],
        ["--follow", "0.5"],
        ["--report"],
    ],
    ids=" ".join,
)
def test_one_run_opens_and_loads_once(tmp_path: Path, counted: Counter[str], options: list[str]) -> None:
    if "--scheduler" in options:
        pytest.importorskip("distributed", reason="Dask is the extra [cluster]")
    folder = tmp_path / "slices"
    folder.mkdir()
    sides = (64, 64) if "--report" in options else (40, 32)  # an audit takes no less
    for number, section in enumerate(neuropil((24, *sides))[::3]):
        tifffile.imwrite(folder / f"s{number}.tif", section)
    command = ["reconstruct", folder, tmp_path / "out.zarr", "--voxel-size", "24,8,8", "--model", "emformer-tiny"]
    result = CliRunner().invoke(main, [*map(str, command), "--ensemble", "1", "--device", "cpu", *options])
    assert result.exit_code == 0, result.output
    openings = 2 if "--follow" in options else 1  # to read the voxel size, and as sections land
    assert counted == {
        "slices.open_volume": openings,
        "slices._properties": 8 * openings,
        "settings.fingerprint": 1,
        "EMformerModel.from_pretrained": 1,
        "EMformerProcessor.from_pretrained": 1,
    }


def test_settings_that_are_unknown_or_missing_are_named(tmp_path: Path) -> None:
    size = VoxelSize(24, 8, 8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'thicknes'; expected voxel_size, factor, model"):
        reconstruct_file("stack.tif", tmp_path / "out.zarr", voxel_size=size, factor=3, thicknes=1)  # type: ignore
    with pytest.raises(TypeError, match="missing keyword argument 'factor'"):
        reconstruct_file("stack.tif", tmp_path / "out.zarr", voxel_size=size)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'uncertainty'"):
        follow(tmp_path, tmp_path / "preview.zarr", voxel_size=size, factor=3, uncertainty=None)  # type: ignore


def test_every_setting_has_a_type_and_all_but_two_have_a_default() -> None:
    assert settings.DEFAULTS.keys() == settings.FileSettings.__annotations__.keys() - {"voxel_size", "factor"}


def test_the_command_has_the_words_of_python(tmp_path: Path) -> None:
    stack = neuropil((48, 40, 64))[::4]
    tifffile.imwrite(tmp_path / "stack.tif", stack)
    words = ["reconstruct", str(tmp_path / "stack.tif"), str(tmp_path / "out.tif"), "--voxel-size", "40,10,10"]
    words += ["--model", "emformer-tiny", "--thickness", "0.5", "--ensemble", "1", "--device", "cpu"]
    result = CliRunner().invoke(main, [*words, "--offset", "0.5", "--precision", "float32", "--tile", "12,40,48"])
    assert result.exit_code == 0, result.output
    expected = reconstruct(
        stack,
        factor=4,
        model="emformer-tiny",
        thickness=0.5,
        offset=0.5,
        ensemble=1,
        device="cpu",
        precision="float32",
        tile_zyx=(12, 40, 48),
        progress=False,
    )
    assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), expected.volume)
    centred = reconstruct(stack, factor=4, model="emformer-tiny", thickness=0.5, ensemble=1, progress=False)
    assert not np.array_equal(centred.volume, expected.volume)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"factor": "4"}, r"anisotropy factor is '4', a str; expected a number, as in 4"),
        ({"factor": None}, r"anisotropy factor is None, a NoneType; expected a number"),
        ({"factor": True}, r"anisotropy factor is True, a bool"),
        ({"thickness": "1"}, r"section thickness is '1', a str; expected a number"),
        ({"offset": [0]}, r"section offset is \[0\], a list; expected a number"),
        ({"ensemble": 2.0}, r"ensemble is 2.0, a float; expected a whole number"),
        ({"ensemble": 3}, r"ensemble is 3; expected one of 1, 2, 4, 8, 16"),
        ({"model": 5}, r"model is 5; expected a name, a folder or a Hub id, such as 'emformer-small'"),
        ({"device": 3.5}, r"device 3.5 is unknown; expected auto, cpu, cuda, xpu, mps"),
        ({"precision": 16}, r"precision is 16; expected auto, float32 or bfloat16"),
        ({"tile_zyx": 64}, r"tile_zyx is 64; expected three whole numbers"),
        ({"tile_zyx": (16.0, 64, 64)}, r"tile_zyx is \(16.0, 64, 64\); expected three whole numbers"),
        ({"memory": "4"}, r"memory is '4', a str; expected a number"),
        ({"mask": [3]}, r"the mask is int64 of shape \(1,\); expected bool"),
        ({"mode": 1}, r"mode is 1; expected one of clean, faithful"),
        ({"progress": "yes"}, r"progress is 'yes'; expected True, False, or a function"),
    ],
    ids=str,
)
def test_a_wrong_type_is_said_with_what_was_expected(wrong: dict[str, Any], told: str, tmp_path: Path) -> None:
    stack = neuropil((24, 40, 44))[::4]
    with pytest.raises(InputError, match=told):
        reconstruct(stack, **{"factor": 4, "model": "emformer-tiny", **wrong})
    if wrong.keys() & {"mask", "progress"}:
        return
    tifffile.imwrite(tmp_path / "stack.tif", stack)
    given = {"voxel_size": VoxelSize(40, 10, 10), "factor": 4, "model": "emformer-tiny", **wrong}
    with pytest.raises(InputError, match=told):
        reconstruct_file(tmp_path / "stack.tif", tmp_path / "out.tif", **given)


def test_a_voxel_size_of_text_is_said() -> None:
    with pytest.raises(InputError, match="voxel size along z is '40', a str; expected a number"):
        VoxelSize("40", 4, 4)  # type: ignore[arg-type]

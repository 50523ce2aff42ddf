"""Settings are declared once; a run opens its input once and loads its weights once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tifffile
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.geometry import VoxelSize
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct_file, settings
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

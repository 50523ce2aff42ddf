"""Files become layers with their size, their place and what lies beside them; voxels stay on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct_file
from emformer_hub.volumes import ome_zarr, read_volume, write_volume

SIZE = VoxelSize(24, 8, 8)


def opened(viewer: Any, path: Path) -> list[Any]:
    return viewer.open(str(path), plugin="emformer-hub")


def test_the_manifest_is_valid_and_names_what_exists() -> None:
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("emformer-hub")
    manifest.validate_imports()
    assert [widget.display_name for widget in manifest.contributions.widgets] == [
        "Reconstruct",
        "Check stack",
        "Fine-tune",
        "Audit",
    ]


def test_the_core_imports_no_qt_and_no_napari() -> None:
    code = (
        "import sys, emformer_hub.cli, emformer_hub.volumes, emformer_hub.doctor\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'napari', 'qtpy', 'PySide6', 'magicgui', 'vispy'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["a.ome.zarr", "a.ome.tif", "a.h5", "a.mrc", "slices"])
def test_every_output_is_a_layer_with_its_size_and_place(
    viewer: Any, sections: np.ndarray, tmp_path: Path, name: str
) -> None:
    write_volume(tmp_path / name, sections, SIZE, translation_nm=(100, 0, 16))
    (layer,) = opened(viewer, tmp_path / name)
    np.testing.assert_array_equal(np.asarray(layer.data), sections)
    place = read_volume(tmp_path / name).translation_nm
    assert tuple(layer.scale) == SIZE.zyx and tuple(layer.translate) == (place or (0, 0, 0))
    assert {str(unit) for unit in layer.units} == {"nanometer"} and layer.axis_labels == ("z", "y", "x")


def test_an_ome_zarr_is_opened_with_its_levels_and_read_where_it_is_looked_at(
    viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask.array

    monkeypatch.setattr(ome_zarr, "SMALLEST_LEVEL", 16)
    voxels = np.random.default_rng(0).integers(0, 255, (40, 40, 40), np.uint8)
    write_volume(tmp_path / "a.zarr", voxels, VoxelSize(8, 8, 8))
    (layer,) = opened(viewer, tmp_path / "a.zarr")
    assert layer.multiscale and [level.shape for level in layer.data] == [(40,) * 3, (20,) * 3, (10,) * 3]
    assert all(isinstance(level, dask.array.Array) for level in layer.data)
    np.testing.assert_array_equal(np.asarray(layer.data[0]), voxels)
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    viewer.dims.order = (1, 0, 2)
    assert layer._data_view is not None


def test_uncertainty_and_confidence_are_layers_of_their_own(viewer: Any, sections: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", sections, SIZE)
    settings: dict[str, Any] = {"voxel_size": SIZE, "factor": 3, "model": "emformer-tiny", "ensemble": 1}
    made = tmp_path / "made" / "out.ome.zarr"
    made.parent.mkdir()
    reconstruct_file(tmp_path / "stack.tif", made, uncertainty=made.parent / "sure.ome.tif", confidence=0.9, **settings)
    moved = made.parent.rename(tmp_path / "moved")  # the record names paths that are no longer
    layers = opened(viewer, moved / "out.ome.zarr")
    assert [layer.name for layer in layers] == ["out", "out uncertainty", "out confident"]
    assert [layer.visible for layer in layers] == [True, True, False]
    assert all(tuple(layer.scale) == (8, 8, 8) and tuple(layer.translate) == (-8, 0, 0) for layer in layers)
    np.testing.assert_array_equal(np.asarray(layers[1].data), read_volume(moved / "sure.ome.tif").data)


def test_the_sample_is_a_stack_with_a_voxel_size(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,) = viewer.open_sample("emformer-hub", "neuropil")
    assert tuple(layer.scale) == (40, 8, 8) and layer.data.shape == (20, 128, 128)


def test_what_is_no_volume_is_refused_with_the_way_out(tmp_path: Path) -> None:
    from emformer_hub.napari_plugin.readers import get_reader

    (tmp_path / "notes.tif").write_text("not an image")
    read = get_reader(str(tmp_path / "notes.tif"))
    assert read is not None and get_reader(["a.tif", "b.tif"]) is None
    with pytest.raises(InputError, match=r"notes\.tif"):
        read(str(tmp_path / "notes.tif"))

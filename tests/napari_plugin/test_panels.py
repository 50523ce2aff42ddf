"""Each panel driven to its end in a real viewer: what it adds and says, how it stops, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import finished, longest_wait

from emformer_hub.reconstruction import reconstruct

pytest.importorskip("napari", reason="needs napari and pytest-qt: make test-napari")

from emformer_hub.reconstruction import parts, settings

TILE = (22, 64, 64)
"""So small that a small stack has several blocks."""
Open = Callable[[str], Any]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make many parts of a small stack, each a block."""
    monkeypatch.setitem(settings.DEFAULTS, "tile_zyx", TILE)
    monkeypatch.setattr(parts, "PART_VOXELS", 1)


@pytest.fixture
def long_layer(viewer: Any, sections: np.ndarray) -> Any:
    """A stack of several blocks, 48 sections of 40 x 56 voxels."""
    data = np.concatenate([sections, sections[::-1]] * 2)
    return viewer.add_image(data, name="long", scale=(24, 8, 8), units=("nm",) * 3)


def stop_after(panel: Any, qtbot: Any, fraction: float) -> None:
    """Start a panel, stop it once so much is done, and wait for its end."""
    shares: list[float] = []

    def hear(progress: Any) -> None:
        share = progress["done"] if isinstance(progress, dict) else progress[0]
        shares.append(share or 0.0)
        if shares[-1] >= fraction:
            panel.stop()

    panel.work.progressed.connect(hear)
    panel.start()
    finished(panel, qtbot)
    panel.work.progressed.disconnect(hear)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_reconstruct_adds_what_the_library_makes_where_the_stack_lies(
    viewer: Any, layer: Any, panel: Open, qtbot: Any, home: Path
) -> None:
    made = panel("Reconstruct")
    assert made.voxel_size.value == "24,8,8" and Path(made.output.value) == home / "stack.isotropic.ome.zarr"
    made.start()
    assert longest_wait(made, qtbot) < 0.2
    assert [one.name for one in viewer.layers] == [
        "stack",
        "stack isotropic interpolated",
        "stack isotropic",
        "stack isotropic uncertainty",
    ]
    expected = reconstruct(layer.data, factor=3, model="emformer-tiny", ensemble=1, progress=False)
    interpolation, result, uncertainty = viewer.layers[1:]
    np.testing.assert_array_equal(np.asarray(result.data), expected.volume)
    np.testing.assert_array_equal(np.asarray(uncertainty.data), expected.uncertainty)
    assert not interpolation.visible and uncertainty.visible
    for one in (interpolation, result, uncertainty):
        assert tuple(one.scale) == (8, 8, 8) and one.units == layer.units
        assert tuple(one.translate) == (92, 0, 16)  # the first plane begins at the face where the first section does
    assert "Made" in made.message.text()
    record = json.loads((home / "stack.isotropic.ome.zarr.json").read_text())
    assert record["input"] == "stack" and record["input_modified"] is None


def test_a_second_run_goes_to_another_file_and_what_exists_is_replaced_only_if_asked(
    layer: Any, panel: Open, qtbot: Any, home: Path
) -> None:
    made = panel("Reconstruct")
    for _ in range(2):
        made.start()
        finished(made, qtbot)
    assert {"stack.isotropic.ome.zarr", "stack.isotropic-2.ome.zarr"} <= set(left_in(home))
    made.output.value = home / "stack.isotropic.ome.zarr"
    made.start()
    finished(made, qtbot)
    assert "'Replace what exists'" in made.message.text() and "--overwrite" not in made.message.text()
    made.overwrite.value = True
    made.start()
    finished(made, qtbot)
    assert "Made" in made.message.text()


def test_a_layer_without_a_voxel_size_is_asked_for_it(
    viewer: Any, sections: np.ndarray, panel: Open, qtbot: Any
) -> None:
    plain = viewer.add_image(sections, name="plain", scale=(3, 1, 1))
    made = panel("Reconstruct")
    assert made.voxel_size.value == ""
    made.start()
    assert not made.running and "states no voxel size" in made.message.text()
    made.voxel_size.value = "24,8"
    made.start()
    assert not made.running and "three numbers" in made.message.text()
    made.voxel_size.value = "24,8,8"
    made.start()
    finished(made, qtbot)
    assert tuple(plain.scale) == (24, 8, 8) and {str(unit) for unit in plain.units} == {"nanometer"}
    result = viewer.layers["plain isotropic"]
    faces = [one.extent.world + np.outer((-0.5, 0.5), one.scale) for one in (plain, result)]
    np.testing.assert_allclose(*faces)  # it lies over what it was made of


def test_a_trial_is_that_part_of_the_whole(viewer: Any, layer: Any, panel: Open, qtbot: Any, home: Path) -> None:
    made = panel("Reconstruct")
    corners = np.array([(100, 64, 80), (100, 64, 400), (100, 250, 400), (100, 250, 80)], float)
    shapes = viewer.add_shapes([corners], units=("nm",) * 3, name="part")
    made.reset_choices()
    made.trial.value = shapes
    made.start()
    finished(made, qtbot)
    result = viewer.layers["stack trial"]
    assert result.data.shape == (36, 24, 41) and tuple(result.translate) == (92, 64, 80)
    interpolation = viewer.layers["stack trial interpolated"]
    assert interpolation.data.shape == result.data.shape and tuple(interpolation.translate) == (92, 64, 80)
    assert left_in(home) == []


def test_a_file_is_opened_lazily_and_reconstructed_beside_itself(
    viewer: Any, layer: Any, sections: np.ndarray, panel: Open, qtbot: Any, tmp_path: Path
) -> None:
    from emformer_hub.geometry import VoxelSize
    from emformer_hub.volumes import write_volume

    write_volume(tmp_path / "mine.h5", sections, VoxelSize(24, 8, 8))
    made = panel("Reconstruct")
    made.open(tmp_path / "mine.h5")
    finished(made, qtbot)
    assert made.layer.value.name == "mine" and type(made.layer.value.data).__module__.startswith("dask")
    assert Path(made.output.value) == tmp_path / "mine.isotropic.ome.zarr"
    made.start()
    finished(made, qtbot)
    record = json.loads((tmp_path / "mine.isotropic.ome.zarr.json").read_text())
    assert record["input"] == str(tmp_path / "mine.h5") and record["input_modified"]
    made.open(tmp_path / "no.h5")
    finished(made, qtbot)
    assert "does not exist" in made.message.text() and made.start_button.isEnabled()


def test_a_run_that_is_stopped_leaves_nothing_or_goes_on_later(
    viewer: Any, long_layer: Any, blocks: None, panel: Open, qtbot: Any, home: Path
) -> None:
    made = panel("Reconstruct")
    stop_after(made, qtbot, 0)
    assert "Nothing was written" in made.message.text() and left_in(home) == [] and len(viewer.layers) == 1
    stop_after(made, qtbot, 0.5)
    assert "kept" in made.message.text() and made.start_button.text() == "Resume" and len(viewer.layers) == 1
    done = (home / ".long.isotropic.ome.zarr.run" / "done").read_text().count("\n")
    assert done > 0
    made.start()
    finished(made, qtbot)
    assert made.start_button.text() == "Reconstruct"
    record = json.loads((home / "long.isotropic.ome.zarr.json").read_text())
    assert record["made_now"] == record["parts"] - done
    whole = reconstruct(
        long_layer.data, factor=3, model="emformer-tiny", ensemble=1, progress=False, tile_zyx=TILE
    ).volume
    np.testing.assert_array_equal(np.asarray(viewer.layers["long isotropic"].data[0]), whole)


def test_closing_the_viewer_ends_the_work_and_leaves_nothing(
    viewer: Any, long_layer: Any, blocks: None, panel: Open, qtbot: Any, home: Path
) -> None:
    from superqt.utils._qthreading import WorkerBase

    made = panel("Reconstruct")
    made.start()
    viewer.close()
    qtbot.waitUntil(lambda: not WorkerBase._worker_set, timeout=60_000)
    assert left_in(home) == [] and len(viewer.layers) <= 1


def test_an_error_of_the_library_is_a_message(viewer: Any, panel: Open, qtbot: Any) -> None:
    viewer.add_image(np.zeros((12, 40, 56), np.uint8), name="blank", scale=(24, 8, 8), units=("nm",) * 3)
    made = panel("Reconstruct")
    made.start()
    finished(made, qtbot)
    assert "constant" in made.message.text() and made.start_button.isEnabled() and len(viewer.layers) == 1
    viewer.layers.clear()
    made.start()
    assert "there is no stack yet" in made.message.text()


@pytest.fixture
def spoilt(viewer: Any) -> Any:
    """24 sections, of which number 9 is blank and 16 a copy of its neighbour."""
    from emformer_hub.volumes.phantom import neuropil

    data = neuropil((48, 64, 64))[::2].copy()
    data[9], data[16] = 0, data[15]
    return viewer.add_image(data, name="spoilt", scale=(16, 8, 8), units=("nm",) * 3, translate=(500, 0, 0))


def test_check_lists_bad_sections_goes_there_and_hands_them_to_reconstruct(
    viewer: Any, spoilt: Any, panel: Open, qtbot: Any, home: Path
) -> None:
    made, check = panel("Reconstruct"), panel("Check stack")
    check.start()
    finished(check, qtbot)
    rows = {int(check.table.item(row, 0).text()): row for row in range(check.table.rowCount())}
    assert {9, 16} <= rows.keys() and check.table.item(rows[9], 2).text() == "missing"
    check.table.cellClicked.emit(rows[16], 0)
    assert viewer.dims.point[0] == 500 + 16 * 16
    from qtpy.QtCore import Qt

    check.table.item(rows[16], 1).setCheckState(Qt.CheckState.Unchecked)
    ticked = [
        section for section, row in rows.items() if check.table.item(row, 1).checkState() == Qt.CheckState.Checked
    ]
    assert made.repair.value == "sections " + ", ".join(map(str, ticked)) and 9 in ticked and 16 not in ticked
    for row in (rows[section] for section in ticked if section != 9):
        check.table.item(row, 1).setCheckState(Qt.CheckState.Unchecked)
    viewer.dims.set_point(0, 500 + 3 * 16)
    check.add_button.click()
    assert made.repair.value == "sections 3, 9"
    made.layer.value = spoilt
    made.start()
    finished(made, qtbot)
    record = json.loads((home / "spoilt.isotropic.ome.zarr.json").read_text())
    assert [[number, why] for number, why, _ in record["repair"]] == [[3, "named"], [9, "missing"]]


def test_check_stops_and_refuses_with_a_message(viewer: Any, spoilt: Any, panel: Open, qtbot: Any) -> None:
    check = panel("Check stack")
    stop_after(check, qtbot, 0.01)
    assert check.table.rowCount() == 0 and "Stopped" in check.message.text()
    viewer.add_image(np.zeros((6, 16, 16), np.uint8), name="small")
    check.layer.value = viewer.layers["small"]
    check.start()
    finished(check, qtbot)
    assert "at least 32 a side" in check.message.text()


def test_finetune_stops_goes_on_and_offers_its_model_in_reconstruct(
    viewer: Any, panel: Open, qtbot: Any, home: Path
) -> None:
    from emformer_hub.volumes.phantom import neuropil

    viewer.add_image(neuropil((16, 64, 128))[::2], name="mine", scale=(16, 8, 8), units=("nm",) * 3)
    made, tune = panel("Reconstruct"), panel("Fine-tune")
    tune.steps = 4
    stop_after(tune, qtbot, 0.5)
    assert tune.start_button.text() == "Resume" and 0 < len(tune.curve.losses) < 4
    tune.start()
    assert longest_wait(tune, qtbot) < 0.2
    assert len(tune.curve.losses) == 4
    assert "| volume |" in tune.verdict.text() and not tune.picture.pixmap().isNull()
    folder = home / "emformer-mine"
    assert str(folder) in made.model.field.choices
    made.model.field.value = str(folder)
    made.start()
    finished(made, qtbot)
    assert json.loads((home / "mine.isotropic.ome.zarr.json").read_text())["model"] == str(folder)
    tune.output.value = folder
    tune.start()
    assert "holds a model already" in tune.message.text()


def test_audit_writes_a_report_and_opens_it(
    viewer: Any, panel: Open, qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtGui import QDesktopServices

    from emformer_hub.volumes.phantom import neuropil

    shown: list[str] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: shown.append(url.toLocalFile()))
    viewer.add_image(neuropil((24, 64, 64))[::3], name="stack", scale=(24, 8, 8), units=("nm",) * 3)
    audit = panel("Audit")
    stop_after(audit, qtbot, 0)
    assert left_in(home) == [] and "Stopped" in audit.message.text()
    audit.against.value = "the same model at another factor"
    audit.start()
    assert not audit.running and "expected a number above 1" in audit.message.text()
    audit.against_factor.value = "2"
    audit.start()
    finished(audit, qtbot)
    assert json.loads((home / "audit.json").read_text())["figures"]["against"]["factor"] == 2
    assert left_in(home) == ["audit.html", "audit.json"] and shown == [str(home / "audit.html")]
    verdicts = json.loads((home / "audit.json").read_text())["verdicts"]
    assert [audit.table.item(row, 1).text() for row in range(audit.table.rowCount())] == [v["item"] for v in verdicts]
    audit.start()
    assert not audit.running and "'Replace what exists'" in audit.message.text()


def test_a_shifted_stack_is_told_and_aligned_as_the_command_aligns_it(
    viewer: Any, shifted: Path, panel: Open, qtbot: Any
) -> None:
    from click.testing import CliRunner

    from emformer_hub.app.words import BY_LISTED, BY_MEASURED
    from emformer_hub.cli import main
    from emformer_hub.volumes import read_volume

    made, check = panel("Reconstruct"), panel("Check stack")
    made.open(shifted)
    finished(made, qtbot)
    check.start()
    finished(check, qtbot)
    assert "or try 'Align sections' in 'Reconstruct'." in check.message.text()
    made.geometry.align.value = BY_MEASURED
    made.start()
    finished(made, qtbot)
    assert "shifted.tif: sections are moved by" in made.message.text() and "try 'Align" not in made.message.text()
    options = ["--align", "translation", "--model", "emformer-tiny", "--ensemble", "1"]
    run = CliRunner().invoke(main, ["reconstruct", str(shifted), str(shifted.with_name("command.zarr")), *options])
    assert run.exit_code == 0, run.output
    expected = read_volume(shifted.with_name("command.zarr")).data
    np.testing.assert_array_equal(read_volume(shifted.with_name("shifted.isotropic.ome.zarr")).data, expected)
    interpolation = np.asarray(viewer.layers["shifted isotropic interpolated"].data)
    assert np.abs(interpolation[:, 60:100, 60:108] - expected[:, 60:100, 60:108]).mean() < 15  # it is aligned, too

    made.geometry.align.value = BY_LISTED
    made.start()
    assert "'Translations' names no file" in made.message.text() and not made.running
    wrong = shifted.with_name("t.csv")
    wrong.write_text("y_voxels,x_voxels\n" + "0,0\n" * 7)
    made.geometry.translations.value = wrong
    made.start()
    finished(made, qtbot)
    assert "expected (8, 2)" in made.message.text() and "Error" not in made.message.text()


def test_sections_lie_where_a_file_lists_them(viewer: Any, layer: Any, panel: Open, qtbot: Any, tmp_path: Path) -> None:
    from emformer_hub.app.words import LISTED
    from emformer_hub.uneven import UnevenSections
    from emformer_hub.z_positions import write_z_positions

    listed = [(24.0 * z + 6 * (z % 2), 16.0) for z in range(12)]
    made = panel("Reconstruct")
    made.geometry.imaged.value = LISTED
    made.start()
    assert "'Positions' names no file" in made.message.text() and not made.running
    made.geometry.positions.value = tmp_path / "positions.csv"
    write_z_positions(tmp_path / "positions.csv", listed[:-1])
    made.start()
    assert "there are 11 positions ('Positions')" in made.message.text() and not made.running
    write_z_positions(tmp_path / "positions.csv", listed)
    made.start()
    finished(made, qtbot)
    geometry = UnevenSections.of(listed, 8, 3)
    expected = reconstruct(layer.data, geometry=geometry, model="emformer-tiny", ensemble=1, progress=False)
    result, interpolation = (viewer.layers[name] for name in ("stack isotropic", "stack isotropic interpolated"))
    np.testing.assert_array_equal(np.asarray(result.data), expected.volume)
    assert interpolation.data.shape == result.data.shape
    np.testing.assert_allclose(interpolation.translate, result.translate)
    made.layer.value = viewer.add_image(layer.data, name="other", scale=(24, 8, 8), units=("nm",) * 3)
    assert made.geometry.positions.value is None  # a list of another stack would be wrong

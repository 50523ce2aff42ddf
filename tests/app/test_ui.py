"""What the page does with an upload, without a browser."""

from __future__ import annotations

import itertools
import json
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

pytest.importorskip("gradio", reason="the page needs the extra [app]")

from emformer_hub.app import ui
from emformer_hub.app.losses import Losses
from emformer_hub.app.words import BY_LISTED, BY_MEASURED, FACE, LISTED, THROUGH
from emformer_hub.app.work import Limits, Request, Stopped, check, make_sample, read_upload, run, tune
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct, reconstruct_file
from emformer_hub.reconstruction.repair import Repair
from emformer_hub.uneven import UnevenSections
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.boxes import parse_region
from emformer_hub.volumes.phantom import neuropil, sample_stack
from emformer_hub.z_positions import write_z_positions


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.tif"
    write_volume(path, neuropil((24, 32, 48))[::3].copy(), VoxelSize(24, 8, 8), translation_nm=(16, 0, 0))
    return path


def upload(*paths: Path, folder: Path, **changed: Any) -> Any:
    words = {"voxel_size": "24,8,8", "sections": FACE, "model": "emformer-tiny", "noise": "left out"}
    words |= {name: changed.pop(name) for name in Request._fields if name in changed}
    settings = {"device": "cpu", "limits": Limits(), "progress": lambda share, doing: None}
    return run(Request([str(path) for path in paths], **words), folder=folder, **settings | changed)


def test_the_result_is_that_of_the_library_and_can_be_downloaded(stack: Path, tmp_path: Path) -> None:
    views, figures, files = upload(stack, folder=tmp_path)
    expected = reconstruct(
        read_volume(stack).data, factor=3, thickness=1 / 3, model="emformer-tiny", device="cpu", progress=False
    )
    np.testing.assert_array_equal(views.result.volume, expected.volume)
    assert [path.name for path in files] == ["stack_isotropic.ome.tif", "stack_uncertainty.ome.tif"]
    for path, data in zip(files, (expected.volume, expected.uncertainty), strict=True):
        written = read_volume(path)
        np.testing.assert_array_equal(written.data, data)
        assert written.voxel_size == VoxelSize(8, 8, 8)
        assert written.translation_nm == (8, 0, 0)  # the middle of the first plane of the slab whose middle is at 16 nm
    assert "dB" in figures and "24 x 32 x 48 voxels" in figures


def test_noise_of_the_sections_is_kept_if_wished(stack: Path, tmp_path: Path) -> None:
    views, *_ = upload(stack, folder=tmp_path, noise="kept, as it was measured")
    given = read_volume(stack).data
    np.testing.assert_array_equal(views.result.volume[1::3], given)  # of three planes, the middle one is imaged


def test_progress_grows_to_the_end_and_can_stop_the_run(stack: Path, tmp_path: Path) -> None:
    told: list[float] = []
    upload(stack, folder=tmp_path, progress=lambda share, doing: told.append(share))
    assert told[0] == 0 and told[-1] == 1
    assert all(before <= after for before, after in itertools.pairwise(told))

    def stop(share: float, doing: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        upload(stack, folder=tmp_path / "none", progress=stop)
    assert not (tmp_path / "none").exists()


def test_images_of_sections_are_put_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sections = neuropil((16, 16, 16))[:11]
    paths = [tmp_path / f"section_{number}.tif" for number in range(11)]
    for path, section in zip(paths, sections, strict=True):
        tifffile.imwrite(path, section)
    np.testing.assert_array_equal(read_upload([str(path) for path in reversed(paths)]).data, sections)


def test_the_sample_states_its_voxel_size(tmp_path: Path) -> None:
    assert read_volume(make_sample(tmp_path)).voxel_size == VoxelSize(40, 8, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"voxel_size": " "}, "voxel size is missing; give Z,Y,X in nm"),
        ({"voxel_size": "8,8"}, "8,8"),
        ({"voxel_size": "8,8,24"}, "order"),
        ({"limits": Limits(mvoxels=0.03)}, r"24 x 32 x 48 voxels.*at most 0\.03 million.*emformer-hub reconstruct"),
        ({"limits": Limits(minutes=1e-6)}, r"would take about .*run: emformer-hub reconstruct stack\.tif"),
    ],
    ids=["no voxel size", "two lengths", "wrong order", "too large", "too long"],
)
def test_what_cannot_be_done_is_said(stack: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        upload(stack, folder=tmp_path, **changed)


def test_the_command_in_a_message_does_what_the_page_would_have_done(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--voxel-size 24,8,8 --thickness 0\.3333 --model emformer-tiny"):
        upload(stack, folder=tmp_path, limits=Limits(mvoxels=0))
    with pytest.raises(InputError, match=r"--thickness 1 "):
        upload(stack, folder=tmp_path, limits=Limits(mvoxels=0), sections=THROUGH)


def test_a_trial_of_a_part_is_that_part_of_the_whole(stack: Path, tmp_path: Path) -> None:
    views, figures, files = upload(stack, folder=tmp_path, region="1:7,4:28,8:44", noise="kept, as it was measured")
    given = read_volume(stack).data[1:7, 4:28, 8:44]
    np.testing.assert_array_equal(views.result.volume[1::3], given)
    assert read_volume(files[0]).translation_nm == (16 + 24 - 8, 4 * 8, 8 * 8)
    assert "18 x 24 x 36 voxels" in figures
    whole = tmp_path / "whole.zarr"
    reconstruct_file(
        stack,
        whole,
        voxel_size=VoxelSize(24, 8, 8),
        factor=3,
        thickness=1 / 3,
        model="emformer-tiny",
        mode="faithful",
        region=parse_region("1:7,4:28,8:44"),
        device="cpu",
    )
    np.testing.assert_array_equal(read_volume(whole).data, views.result.volume)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 sections of 64 x 96 voxels, of which section 5 is lost."""
    data = sample_stack()[0][:12, :64, :96].copy()
    data[5] = 0
    path = tmp_path_factory.mktemp("spoilt") / "spoilt.tif"
    write_volume(path, data, VoxelSize(24, 8, 8))
    return path


def test_flagged_sections_are_listed_chosen_and_repaired(spoilt: Path, tmp_path: Path) -> None:
    told: list[float] = []
    found = check([str(spoilt)], "", progress=lambda share, doing: told.append(share))
    assert [(row.section, row.repaired) for row in found.rows] == [(5, True)] and "missing" in found.rows[0].flags
    assert found.sections == 12 and told == sorted(told) and told[-1] == 1
    repair, said = ui.repair_of_choice(found, [5], "9")
    assert list(repair.reasons.items()) == [(5, "missing"), (9, "named")] and "sections 5, 9" in said
    assert ui.repair_of_choice(found, [], "")[1] == ui.NOT_REPAIRED
    views, _, _ = upload(spoilt, folder=tmp_path, repair=repair)
    expected = tmp_path / "expected.zarr"
    reconstruct_file(
        spoilt,
        expected,
        voxel_size=VoxelSize(24, 8, 8),
        factor=3,
        thickness=1 / 3,
        model="emformer-tiny",
        repair=[5, 9],
        device="cpu",
    )
    np.testing.assert_array_equal(views.result.volume, read_volume(expected).data)
    assert views.result.volume[16].std() > 5  # something was predicted where section 5 is black
    with pytest.raises(InputError, match=r"--roi 0:8,0:32,0:32 --repair 5,9"):
        upload(spoilt, folder=tmp_path, repair=repair, region="0:8,0:32,0:32", limits=Limits(mvoxels=0))


def test_a_model_is_adapted_to_the_upload_and_can_be_chosen(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ui, "tune", partial(tune, steps=2))
    visitor = SimpleNamespace(session_hash="visitor")
    write_volume(tmp_path / "mine.tif", neuropil((16, 64, 128))[::2].copy(), VoxelSize(16, 8, 8))
    words = ("16,8,8", "emformer-tiny", "an adapter (LoRA)", 1.0)
    work = ui._Work(Limits(), "cpu")
    *_, last = work.tuned([str(tmp_path / "mine.tif")], *words, ["emformer-tiny"], visitor)  # type: ignore[arg-type]
    said, loss, report, picture, chosen, archive, models = last
    folder = Path(chosen["value"])
    assert models == ["emformer-tiny", ("mine-tuned, on emformer-tiny", str(folder))] and chosen["choices"] == models
    assert "mine-tuned can be chosen in *Reconstruct*" in said and "Loss of 2 steps" in loss
    assert "| volume |" in report and Path(picture).exists()
    with zipfile.ZipFile(archive["value"]) as packed:
        assert "mine-tuned/adapter_config.json" in packed.namelist()
    views, _, _ = upload(stack, folder=tmp_path, model=str(folder))
    expected = reconstruct(
        read_volume(stack).data, factor=3, thickness=1 / 3, model=str(folder), device="cpu", progress=False
    )
    np.testing.assert_array_equal(views.result.volume, expected.volume)


def test_a_training_beyond_the_limit_is_refused_and_one_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.tif"
    write_volume(path, neuropil((16, 64, 64))[::2].copy(), VoxelSize(16, 8, 8))

    def stop(share: float, doing: str, losses: Losses) -> None:
        if losses.each:
            raise Stopped

    settings: dict[str, Any] = {"limits": Limits(), "folder": tmp_path / "visitor", "progress": stop}
    words = ("16,8,8", "emformer-tiny", "an adapter (LoRA)")
    with pytest.raises(InputError, match=r"for more than 0 and at most 15 minutes, not 60\. .*emformer-hub finetune"):
        tune([str(path)], *words, 60.0, **settings)
    with pytest.raises(Stopped):
        tune([str(path)], *words, 1.0, **settings)
    assert list((tmp_path / "visitor").iterdir()) == []


def test_a_shifted_stack_is_told_and_aligned_as_the_command_aligns_it(shifted: Path, tmp_path: Path) -> None:
    visitor, quiet = SimpleNamespace(session_hash="visitor"), lambda share, desc: None
    *_, said = ui._Work(Limits(), "cpu").checked([str(shifted)], "", visitor, quiet)  # type: ignore[arg-type]
    assert "or try 'Align sections' in 'Reconstruct'." in said and "--align" not in said
    words = {"voxel_size": "16,8,8", "sections": THROUGH}
    part = "0:8,60:100,60:108"
    _, figures, _ = upload(shifted, folder=tmp_path, region=part, **words)
    assert "try `--align translation`" in figures  # the page calls it by its name
    damage = np.zeros((160, 168), bool)
    damage[70:90, 70:90] = True
    repair = Repair({3: "damaged"}, {3: damage})
    upload(shifted, folder=tmp_path, region=part, align=BY_MEASURED, repair=repair, **words)
    facts = json.loads((tmp_path / "shifted_isotropic.ome.tif.json").read_text())
    moves = dict(facts["reading"])["translations"]
    assert np.abs(moves[3]).max() > 2 and facts["damage"] == repair.moved(moves).digest  # it moves with its section
    views, figures, _ = upload(shifted, folder=tmp_path, align=BY_MEASURED, **words)
    assert "sections are moved by" in figures and "try `" not in figures and "dB" in figures
    command = ["reconstruct", str(shifted), str(tmp_path / "c.zarr"), "--align", "translation", "--device", "cpu"]
    result = CliRunner().invoke(main, [*command, "--model", "emformer-tiny"])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(views.result.volume, read_volume(tmp_path / "c.zarr").data)


def test_sections_lie_where_a_file_lists_them(stack: Path, tmp_path: Path) -> None:
    listed = [(24.0 * z + 6 * (z % 2), 16.0) for z in range(8)]
    write_z_positions(tmp_path / "p.csv", listed)
    views, figures, _ = upload(stack, folder=tmp_path, sections=LISTED, positions=str(tmp_path / "p.csv"))
    geometry = UnevenSections.of(listed, 8, 3)
    data = read_volume(stack).data
    expected = reconstruct(data, geometry=geometry, model="emformer-tiny", device="cpu", progress=False)
    np.testing.assert_array_equal(views.result.volume, expected.volume)
    assert "dB" in figures and views.interpolation("xz", 3).size > 0


def test_files_that_do_not_fit_are_said(stack: Path, tmp_path: Path) -> None:
    write_z_positions(tmp_path / "p.csv", [(24.0 * z, 16.0) for z in range(7)])
    (tmp_path / "t.csv").write_text("y_voxels,x_voxels\n" + "0,0\n" * 7)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for changed, message in (
        ({"sections": LISTED}, "'Positions' names no file; expected CSV with the header centre_nm,thickness_nm"),
        ({"sections": LISTED, "positions": str(tmp_path / "p.csv")}, "8 sections, and there are 7 positions"),
        ({"align": BY_LISTED}, "'Translations' names no file; expected CSV with the header y_voxels,x_voxels"),
        ({"align": BY_LISTED, "translations": str(tmp_path / "t.csv")}, r"expected \(8, 2\)"),
        ({"align": BY_LISTED, "translations": str(tmp_path / "other.csv")}, "other.csv begins with 'a,b'"),
        ({"align": BY_MEASURED}, "expected at least 160 x 160"),
        ({"align": BY_MEASURED, "limits": Limits(mvoxels=0)}, "--thickness 0.3333 .* --align translation"),
    ):
        with pytest.raises(InputError, match=message):
            upload(stack, folder=tmp_path, **changed)


def test_nothing_uploaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stack yet"):
        upload(folder=tmp_path)

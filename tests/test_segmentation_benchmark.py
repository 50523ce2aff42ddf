"""The benchmark of segmentation: scores of known cases, cells with known truth, and the script's mistakes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import segmentation
import tifffile
from _report import start
from _segmenter import Segmenter, boundaries, features, fragment, merge_order, score
from click.testing import CliRunner, Result
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.segmentation import find_boundaries

SHAPE = (24, 32, 96)


def cells(shape_zyx: tuple[int, int, int] = SHAPE, count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Bright cells with dark membranes and a little noise, uint8, and their numbers from 1."""
    draw = np.random.default_rng(0)
    centres = cKDTree(draw.uniform(0, shape_zyx, (count, 3)))
    voxels = np.stack(np.meshgrid(*map(np.arange, shape_zyx), indexing="ij"), axis=-1)
    bodies = centres.query(voxels)[1] + 1
    image = np.where(find_boundaries(bodies, mode="thick"), 60.0, 180.0) + draw.normal(0, 8, shape_zyx)
    return image.clip(0, 255).astype(np.uint8), bodies


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    (folder / "eval").mkdir()
    image, bodies = cells()
    tifffile.imwrite(folder / "eval" / segmentation.TRUTH, image)
    tifffile.imwrite(folder / "eval" / segmentation.NEURONS, bodies.astype(np.uint16))
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(segmentation.main, [str(argument) for argument in arguments])


# --- scores -------------------------------------------------------------------------------------------------------


def test_the_same_bodies_by_other_numbers_are_perfect() -> None:
    bodies = cells()[1]
    perfect = {"voi_split": 0, "voi_merge": 0, "are": 0, "boundary_f1": 1}
    assert score(bodies.max() + 1 - bodies, bodies) == pytest.approx(perfect)


def test_bodies_cut_in_halves_are_one_bit_of_split() -> None:
    bodies = np.ones((4, 4, 8), int)
    segments = np.where(np.arange(8) < 4, bodies, 2)
    scores = score(segments, bodies)
    assert (scores["voi_split"], scores["voi_merge"]) == pytest.approx((1, 0))


def test_equal_bodies_in_one_segment_are_bits_of_merge() -> None:
    bodies = np.repeat(np.arange(1, 5), 8).reshape(1, 4, 8)
    scores = score(np.ones_like(bodies), bodies)
    assert (scores["voi_split"], scores["voi_merge"]) == pytest.approx((0, 2))
    assert scores["are"] > 0.5
    assert scores["boundary_f1"] == 0


def test_voxels_of_no_body_do_not_count() -> None:
    bodies = np.repeat([1, 0, 2], [8, 4, 8])[None, None] * np.ones((4, 4, 1), int)
    segments = np.repeat([1, 3, 2], [8, 4, 8])[None, None] * np.ones((4, 4, 1), int)
    scores = score(segments, bodies)
    assert (scores["voi_split"], scores["voi_merge"], scores["are"]) == pytest.approx((0, 0, 0))


def test_a_boundary_farther_off_than_the_tolerance_is_not_found() -> None:
    bodies = np.where(np.arange(40) < 20, 1, 2) * np.ones((4, 4, 1), int)
    near, far = (np.where(np.arange(40) < edge, 1, 2) * np.ones((4, 4, 1), int) for edge in (21, 30))
    assert score(near, bodies)["boundary_f1"] == 1
    assert score(far, bodies)["boundary_f1"] == 0


# --- agglomeration ------------------------------------------------------------------------------------------------


def test_a_boundary_is_the_mean_over_its_faces() -> None:
    labels = np.repeat([0, 1, 2], 2)[None, None] * np.ones((1, 2, 1), int)
    membrane = np.array([[0, 0.2, 0.4, 0, 0.9, 0.1], [0, 0.6, 0.4, 0, 0.7, 0.1]])[None]
    pairs, means, faces = boundaries(labels, membrane)
    assert pairs.tolist() == [[0, 1], [1, 2]]
    assert means == pytest.approx([0.5, 0.8])
    assert faces.tolist() == [2, 2]


def test_the_weakest_boundary_goes_first_and_joined_ones_are_averaged_by_faces() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 2], [2, 3]])
    order, heights = merge_order(pairs, np.array([0.1, 0.2, 0.8, 0.9]), np.array([5, 1, 2, 4]))
    assert set(order[0].tolist()) == {0, 1}
    assert heights == pytest.approx([0.1, (0.2 + 2 * 0.8) / 3, 0.9])


def test_a_volume_without_membranes_is_one_segment() -> None:
    fragments = fragment(np.zeros((8, 8, 8), np.float32))
    assert np.unique(fragments.segments(0.5)).tolist() == [1]


# --- the pipeline and the script ----------------------------------------------------------------------------------


def test_cells_are_found_and_blurred_ones_are_not_as_well() -> None:
    image, bodies = cells()
    seen = features(image)
    segmenter = Segmenter.train(seen, bodies)
    perfect = score(segmenter.segment(seen), bodies)
    blurred = ndimage.gaussian_filter1d(image, 6, axis=0)
    spoilt = score(segmenter.segment(features(blurred)), bodies)
    assert perfect["voi_split"] + perfect["voi_merge"] < 0.3
    assert perfect["boundary_f1"] > 0.95
    assert spoilt["voi_split"] + spoilt["voi_merge"] > perfect["voi_split"] + perfect["voi_merge"]


def test_the_script_segments_each_half_by_the_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "DATA", folder)
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    result = call("--factor", "4", "--model", "emformer-tiny", "--ensemble", "1", "--json", out, "--figure", picture)
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == [segmentation.ISOTROPIC, "nearest", "bicubic", "emformer-tiny", "emformer-tiny, faithful"]
    for row in rows.values():
        assert row["voi"] == pytest.approx(np.mean([half["voi"] for half in row["halves"]]))
        assert math.isclose(row["voi"], row["voi_split"] + row["voi_merge"])
    assert rows[segmentation.ISOTROPIC]["voi"] < rows["nearest"]["voi"]
    assert "| x4 t=1 | emformer-tiny |" in result.output
    assert picture.stat().st_size > 0


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    """What the script says as it exits with status 2."""
    monkeypatch.setattr("sys.argv", ["segmentation.py", *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"^2$"):
        start(segmentation.main)
    return capsys.readouterr().err


def test_missing_data_are_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "DATA", tmp_path)
    assert segmentation.TRUTH in refused(capsys, monkeypatch)
    assert "nobody.tif" in refused(capsys, monkeypatch, "--neurons", "nobody.tif")


def test_volumes_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, neurons = (folder / "eval" / name for name in (segmentation.TRUTH, segmentation.NEURONS))
    given = ["--truth", truth, "--neurons", neurons]
    assert "together need 80" in refused(capsys, monkeypatch, *given, "--factor", "16", "--factor", "10")
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, cells((8, 8, 60), 4)[0])
    assert "expected the same shape" in refused(capsys, monkeypatch, "--truth", small, "--neurons", neurons)
    assert "60 columns wide" in refused(capsys, monkeypatch, "--truth", small, "--neurons", small, "--factor", "8")

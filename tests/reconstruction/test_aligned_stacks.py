"""Stacks that are aligned as they are read: the same as those that were aligned before, in every way of running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from emformer_hub.app.notes import noted
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import parts, reconstruct, reconstruct_file
from emformer_hub.reconstruction.cluster import on_dask
from emformer_hub.reconstruction.job import Job
from emformer_hub.transform import Grids
from emformer_hub.volumes import open_labels, open_volume, read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.volumes.translated import write_translations

SIZE = VoxelSize(16, 8, 8)
SIDES = (160, 176)
MARGIN = 30
JITTER = np.random.default_rng(3).integers(-9, 10, (12, 2))
JITTER -= np.median(JITTER, axis=0).astype(int)
OPTIONS: dict[str, Any] = {"ensemble": 1, "device": "cpu", "precision": "float32", "tile_zyx": (12, 96, 96)}


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return neuropil((24, SIDES[0] + 2 * MARGIN, SIDES[1] + 2 * MARGIN), seed=1)[::2]


@pytest.fixture
def folder(tissue: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``stack.tif``, of which each section is shifted, and ``t.csv``, which undoes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "PART_VOXELS", 1)  # each block is a part
    places = zip(tissue, MARGIN - JITTER, strict=True)
    shifted = np.stack([section[y : y + SIDES[0], x : x + SIDES[1]] for section, (y, x) in places])
    write_volume("stack.tif", shifted, SIZE)
    write_translations(Path("t.csv"), (-JITTER).tolist())
    return tmp_path


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


COMMAND = (
    "--model",
    "emformer-tiny",
    "--device",
    "cpu",
    "--ensemble",
    1,
    "--precision",
    "float32",
    "--tile",
    "12,96,96",
)


def run(output: str, **changed: Any) -> dict[str, Any]:
    settings = {"voxel_size": SIZE, "factor": 2.0, "model": "emformer-tiny", "reading": {"translations": -JITTER}}
    return json.loads(reconstruct_file("stack.tif", output, **settings | OPTIONS | changed).read_text())


def test_the_tissue_of_the_result_lies_where_that_of_an_aligned_stack_does(folder: Path, tissue: np.ndarray) -> None:
    aligned = tissue[:, MARGIN : MARGIN + SIDES[0], MARGIN : MARGIN + SIDES[1]]
    wanted = reconstruct(aligned, factor=2.0, model="emformer-tiny", progress=False, **OPTIONS).volume.astype(float)
    result = call("reconstruct", "stack.tif", "out.zarr", "--align", "t.csv", *COMMAND)
    assert result.exit_code == 0, result.output
    assert "which were not measured, were predicted" in result.output and "not aligned" not in result.output
    made = read_volume("out.zarr")
    inner = (slice(None), slice(30, -30), slice(30, -30))  # the receptive field reaches the rims
    assert made.data.shape == wanted.shape and made.voxel_size == VoxelSize(8, 8, 8)
    assert np.sqrt(np.mean(np.square(made.data[inner] - wanted[inner]))) < 1
    plain = reconstruct(read_volume("stack.tif").data, factor=2.0, model="emformer-tiny", progress=False, **OPTIONS)
    assert np.sqrt(np.mean(np.square(plain.volume[inner] - wanted[inner]))) > 10


def test_measured_translations_do_as_well(folder: Path, tissue: np.ndarray) -> None:
    told = call("inspect", "stack.tif", "--translations", "own.csv", "--displacements", "flow.npz")
    assert told.exit_code == 0 and Path("flow.npz").exists()
    for align, output in (("translation", "one.zarr"), ("own.csv", "two.zarr")):
        result = call("reconstruct", "stack.tif", output, "--align", align, *COMMAND)
        assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(read_volume("one.zarr").data, read_volume("two.zarr").data)
    facts = json.loads(Path("one.zarr.json").read_text())
    left = np.rint(dict(facts["reading"])["translations"]) + JITTER
    assert np.abs(np.diff(left, axis=0)).max() <= 2  # tissue moves by itself


def test_memory_workers_and_a_resumed_run_give_the_same(folder: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is the extra [cluster]")
    stack = read_volume("stack.tif", translations=-JITTER)
    assert stack.hidden is not None
    masked = np.ma.masked_array(stack.data, stack.hidden[:])
    wanted = reconstruct(masked, factor=2.0, model="emformer-tiny", progress=False, **OPTIONS).volume

    def stopped(job: Job, numbers: list[int], device: str | None = None) -> Any:
        yield from parts.here(job, numbers[:3], device)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("out.zarr", scheduler=stopped)
    with pytest.raises(InputError, match=r"the unfinished run .* reading was"):
        run("out.zarr", resume=True, reading=None)
    assert 0 < run("out.zarr", resume=True)["made_now"] < run("dask.zarr", scheduler=on_dask("threads", 2))["parts"]
    for name in ("out.zarr", "dask.zarr"):
        np.testing.assert_array_equal(read_volume(name).data, wanted)


def test_points_and_labels_follow_the_sections(folder: Path) -> None:
    run("out.zarr")
    grids = Grids.from_record("out.zarr")
    points = np.array([[2.0, 70.0, 80.0], [7.0, 90.0, 60.0]])
    carried = grids.carry(points, "isotropic")
    np.testing.assert_allclose(carried[:, 1:], points[:, 1:] - JITTER[[2, 7]])
    np.testing.assert_allclose(grids.carry(carried, "stack"), points)
    labels = np.arange(1, 12 * SIDES[0] * SIDES[1] + 1, dtype=np.uint32).reshape(12, *SIDES)
    write_volume("labels.zarr", labels, SIZE, labels=True)
    for source, output, to in (("labels.zarr", "there.zarr", "isotropic"), ("there.zarr", "back.zarr", "stack")):
        result = call("transform", source, output, "--to", to, "--record", "out.zarr")
        assert result.exit_code == 0, result.output
    there, back = open_labels("there.zarr").data[:], open_labels("back.zarr").data[:]
    y, x = 70 - JITTER[2][0], 80 - JITTER[2][1]
    assert there[4, y, x] == there[5, y, x] == labels[2, 70, 80]
    inside = back > 0  # what left the frame is lost
    assert inside.mean() > 0.85
    np.testing.assert_array_equal(back[inside], labels[inside])


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("reconstruct", ["--align", "transation"], "--align 'transation' is neither translation nor a file"),
        ("reconstruct", ["--align", "none.csv"], "none.csv cannot be read as translations"),
        ("reconstruct", ["--align", "short.csv"], "translations of stack.tif have shape (11, 2); expected (12, 2)"),
        ("reconstruct", ["--align", "translation", "--follow", 1], "--follow takes no"),
        ("audit", ["--align", "short.csv"], "expected (12, 2)"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_work(
    folder: Path, command: str, options: list[Any], message: str
) -> None:
    write_translations(Path("short.csv"), [(0, 0)] * 11)
    output = ["out.zarr"] if command == "reconstruct" else ["--output", "out.html"]
    result = call(command, "stack.tif", *output, *options)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert not list(Path().glob("out*"))


def test_a_misaligned_stack_is_told_and_an_aligned_one_is_not(
    folder: Path, tissue: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    places = 2 * MARGIN * (np.arange(12)[:, None] % 2)[:, [0, 0]]
    jumping = np.stack([part[y : y + 150, x : x + 150] for part, (y, x) in zip(tissue, places.tolist(), strict=True)])
    write_volume("jumping.tif", jumping, SIZE)
    write_volume("aligned.tif", tissue, SIZE)
    for name in ("aligned.tif", "jumping.tif"):
        settings = {"voxel_size": SIZE, "factor": 2.0, "model": "emformer-tiny", "ensemble": 1, "device": "cpu"}
        reconstruct_file(name, f"{name}.zarr", region=(slice(0, 4), slice(0, 32), slice(0, 32)), **settings)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "jumping.tif: " in told[0]
    assert open_volume("jumping.tif").data.shape == (12, 150, 150)


def test_what_is_aligned_is_not_to_be_aligned_again_and_wrong_translations_are_told(folder: Path) -> None:
    part = (slice(0, 4), slice(40, 72), slice(40, 72))
    for number, (reading, advice) in enumerate(
        [
            ({}, "try `--align translation`"),
            ({"translations": -JITTER}, None),
            ({"translations": JITTER}, "although they were moved to align them: are the translations"),
        ]
    ):
        with noted() as told:
            run(f"{number}.zarr", reading=reading, region=part)
        assert [str(advice) in one for one in told] == ([True] if advice else [])

"""Sets of volumes: built from a table, pushed to the Hub, learned from by name."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from click.testing import CliRunner
from client import Client, client_process, environment
from server import HubServer, User

from emformer_hub.cli import main
from emformer_hub.datasets.build import build, push
from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.datasets.tables import fetch, with_tables_read
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

HEADER = "path,voxel_size,split,modality,licence,weight"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub"), {"hf_alice": User("alice", ("lab",))}).running() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client_process(environment(server, tmp_path_factory.mktemp("home"), "hf_alice")) as process:
        yield process


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two volumes, of which only the second states its voxel size."""
    tifffile.imwrite(tmp_path / "cortex.tif", neuropil((16, 24, 32)))
    write_volume(tmp_path / "medulla.ome.tif", neuropil((20, 24, 32)).astype(np.uint16) * 100, VoxelSize(8, 8, 8))
    rows = [HEADER, 'cortex.tif,"40,4,4",train,ssTEM,CC BY 4.0,2', "medulla.ome.tif,,test,FIB-SEM,CC0 1.0,"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


def error_of(address: str) -> str:
    try:
        fetch(address)
    except InputError as error:
        return str(error)
    raise AssertionError(f"{address} was fetched")


def learned_from(address: str) -> list[VolumeEntry]:
    return list(with_tables_read([VolumeEntry(address, weight=3.0)], Path()))


def test_a_set_holds_the_same_voxels_with_their_size_split_and_licence(table: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models.v05", reason="ome-zarr-models asks for an older Python")
    build(table, tmp_path / "set")
    with (tmp_path / "set" / "volumes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["voxel_size"], row["licence"]) for row in rows] == [
        ("train", "40,4,4", "CC BY 4.0"),
        ("test", "8,8,8", "CC0 1.0"),
    ]
    for row, source in zip(rows, ("cortex.tif", "medulla.ome.tif"), strict=True):
        copy, original = read_volume(tmp_path / "set" / row["path"]), read_volume(tmp_path / source)
        np.testing.assert_array_equal(copy.data, original.data)
        assert str(copy.voxel_size) == str(VoxelSize.parse(row["voxel_size"]))
        models.Image.from_zarr(__import__("zarr").open_group(tmp_path / "set" / row["path"], mode="r"))
    page = (tmp_path / "set" / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert front["license"] == "other" and front["configs"][0]["data_files"] == "volumes.csv"
    assert "| volumes/cortex.ome.zarr | 16 x 24 x 32 | uint8 | 40,4,4 | train | ssTEM | CC BY 4.0 |" in page


def test_a_set_on_the_hub_is_learned_from_by_name(
    server: HubServer, client: Client, table: Path, tmp_path: Path
) -> None:
    build(table, tmp_path / "set")
    url = client(push, tmp_path / "set", "lab/neuropil", revision="v1")
    repository = server.repository("lab/neuropil", "dataset")
    assert url.endswith(repository.head.sha) and repository.find("v1") == repository.head
    for address in ("hf://datasets/lab/neuropil", "hf://datasets/lab/neuropil@v1"):
        (entry,) = client(learned_from, address)
        assert (entry.voxel_size, entry.weight, entry.licence) == ("40,4,4", 6.0, "CC BY 4.0")
        np.testing.assert_array_equal(read_volume(entry.path).data, neuropil((16, 24, 32)))
    assert "tag v1 already, which is never moved" in str(client(refused, tmp_path / "set", "lab/neuropil", "v1"))


def refused(folder: Path, repo_id: str, revision: str | None = None) -> str:
    try:
        push(folder, repo_id, revision=revision)
    except InputError as error:
        return str(error)
    raise AssertionError(f"{folder} was pushed")


def test_a_push_that_breaks_off_publishes_nothing_and_goes_on(
    server: HubServer, client: Client, table: Path, tmp_path: Path
) -> None:
    build(table, tmp_path / "set")
    server.faults.add("commit", status=507, message="the disk is full")
    assert "507 Insufficient Storage" in client(refused, tmp_path / "set", "lab/broken", "v1")
    assert "volumes.csv" not in server.repository("lab/broken", "dataset").head.files
    client(push, tmp_path / "set", "lab/broken", revision="v1")
    assert len(client(learned_from, "hf://datasets/lab/broken@v1")) == 1


def test_what_cannot_be_fetched_is_named(client: Client) -> None:
    assert "expected hf://datasets/ORG/NAME" in client(error_of, "hf://models/lab/x")
    assert "hf://datasets/lab/nothing cannot be fetched: Repository Not Found" in client(
        error_of, "hf://datasets/lab/nothing"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['cortex.tif,"40,4,4",train,,,'], "the table states no licence"),
        (["cortex.tif,,train,,MIT,"], "neither the file nor the table states a voxel size"),
        (['cortex.tif,"40,4,4",train,,MIT,', 'cortex.h5:/raw,"8,8,8",,,MIT,'], "2 volumes named cortex"),
        (['nowhere.tif,"40,4,4",train,,MIT,'], "nowhere.tif"),
    ],
)
def test_mistakes_leave_nothing_behind(table: Path, tmp_path: Path, rows: list[str], message: str) -> None:
    table.write_text("\n".join([HEADER, *rows]) + "\n")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["dataset", "build", str(table), str(tmp_path / "set")])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_builds_and_an_existing_folder_is_never_replaced(table: Path, tmp_path: Path) -> None:
    words = ["dataset", "build", str(table), str(tmp_path / "set")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0 and "cortex.ome.zarr: 16 x 24 x 32 uint8, train, CC BY 4.0" in result.stdout
    assert CliRunner().invoke(main, words).exit_code == 2
    told = CliRunner().invoke(main, ["dataset", "push", str(tmp_path), "--repo-id", "lab/x"])
    assert told.exit_code == 2 and "holds no volumes.csv; make a set first" in told.stderr

"""Tables of volumes: what a row may say, which rows are learned from, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.datasets.tables import read_table, with_tables_read
from emformer_hub.errors import InputError

HEADER = "path,voxel_size,split,modality,licence,weight,aligned"
ROWS = ['a.tif,"40,4,4",train,ssTEM,CC BY 4.0,2,true', 'b.tif,"8,8,8",test,FIB-SEM,,,', "sub/c.h5:/raw,,train,,,,false"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "volumes.csv"
    path.write_text("\n".join([HEADER, *ROWS]) + "\n")
    return path


def test_rows_are_volumes_beside_the_table_and_empty_cells_defaults(table: Path) -> None:
    folder = table.parent
    assert read_table(table) == [
        VolumeEntry(str(folder / "a.tif"), "40,4,4", 2.0, aligned=True, modality="ssTEM", licence="CC BY 4.0"),
        VolumeEntry(str(folder / "sub/c.h5:/raw"), aligned=False),
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_format_says_the_same(table: Path, suffix: str) -> None:
    import pandas

    frame, other = pandas.read_csv(table), table.with_suffix(suffix)
    frame.to_parquet(other) if suffix == ".parquet" else frame.to_json(other, orient="records", lines=True)
    assert read_table(other) == read_table(table)


def test_a_table_without_splits_is_learned_from_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "volumes.csv"
    path.write_text("path\na.tif\nb.tif\n")
    assert [Path(entry.path).name for entry in read_table(path)] == ["a.tif", "b.tif"]


def test_a_recipe_may_mix_volumes_and_tables_and_weigh_both(table: Path) -> None:
    stack = VolumeEntry("stack.tif", weight=3.0)
    mixed = with_tables_read([stack, VolumeEntry(table.name, weight=10.0)], table.parent)
    named = [(entry.path.removeprefix(f"{table.parent}/"), entry.weight) for entry in mixed]
    assert named == [("stack.tif", 3.0), ("a.tif", 20.0), ("sub/c.h5:/raw", 10.0)]
    assert with_tables_read(mixed, table.parent) == mixed


def test_reading_leaves_nothing_behind(table: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    read_table(table)
    assert list(temporary.iterdir()) == [] and list(table.parent.iterdir()) == [table]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,voxelsize\na.tif,1\n", "unknown key 'voxelsize'; valid keys are path, voxel_size, weight"),
        ("voxel_size\n1\n", "row 1: the key 'path' is missing"),
        ("path,weight\na.tif,much\n", "weight: expected float, found 'much'"),
        ("path,split\na.tif,test\n", "no row to train on; expected at least one whose split is 'train'"),
        ("path\n", "cannot be read as a table"),
        ("", "cannot be read as a table"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "volumes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as found:
        read_table(path)
    assert str(path) in str(found.value)


def test_a_table_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist"):
        read_table(tmp_path / "nowhere.csv")


def test_voxel_sizes_and_sections_stand_in_the_rows(table: Path) -> None:
    with pytest.raises(InputError, match="state voxel sizes and sections in its rows"):
        with_tables_read([VolumeEntry(table.name, voxel_size="40,4,4")], table.parent)

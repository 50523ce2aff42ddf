"""Tables that name many volumes, one a row: CSV, JSON or Parquet, read by ``datasets``."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from emformer_hub.errors import InputError
from emformer_hub.training.recipe import Recipe, VolumeEntry

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
LEARNED_FROM = "train"
"""The ``split`` of rows that training reads."""


def with_tables_read(recipe: Recipe, data_root: Path) -> Recipe:
    """A recipe whose volumes are volumes: each table among them is replaced by its rows, weights multiplied.

    Args:
        recipe: an entry whose path ends in .csv, .json, .jsonl or .parquet is a table.
        data_root: what its path is relative to.

    Raises:
        InputError: a table cannot be read, has a column that no volume has, or holds nothing to learn from.
    """
    volumes: list[VolumeEntry] = []
    for entry in recipe.volumes:
        if Path(entry.path).suffix.lower() not in FORMATS:
            volumes.append(entry)
            continue
        if entry != VolumeEntry(entry.path, weight=entry.weight):
            raise InputError(f"{entry.path} is a table of volumes; say voxel sizes and sections in its rows.")
        rows = read_table(data_root / entry.path)
        volumes += [dataclasses.replace(row, weight=entry.weight * row.weight) for row in rows]
    return dataclasses.replace(recipe, volumes=tuple(volumes))


def read_table(path: Path) -> list[VolumeEntry]:
    """The volumes of a table: those of its rows whose ``split`` is train, or all if it has no such column.

    Columns are the fields of :class:`~emformer_hub.training.recipe.VolumeEntry`, of which ``path``, relative to the
    table, is the one that is needed; an empty cell is a field's default.
    """
    try:
        from datasets import disable_progress_bars, load_dataset
    except ImportError as error:
        raise InputError(f"{path} is a table of volumes: pip install emformer-hub[data] to read it.") from error
    if not path.is_file():
        raise InputError(f"{path} does not exist. Is the path right?")
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = load_dataset(
                FORMATS[path.suffix.lower()],
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            )
        except Exception as error:  # of pandas, pyarrow or datasets, by what is wrong
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"{path}: cannot be read as a table of volumes ({reason}).") from error
        rows = [(number, row) for number, row in enumerate(table.to_list(), start=1)]
    entries = [_entry(row, path, number) for number, row in rows if row.pop("split", LEARNED_FROM) == LEARNED_FROM]
    if not entries:
        raise InputError(f"{path}: no row to learn from; expected at least one whose split is {LEARNED_FROM!r}.")
    return entries


def _entry(row: dict[str, Any], table: Path, number: int) -> VolumeEntry:
    content = {name: value for name, value in row.items() if value is not None}
    entry = VolumeEntry.from_content(content, f"{table}, row {number}")
    return dataclasses.replace(entry, path=str(table.parent.absolute() / entry.path))

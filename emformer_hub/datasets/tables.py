"""Tables that name many volumes, one a row: CSV, JSON or Parquet, read by ``datasets``; on this machine or the Hub."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.errors import InputError, import_extra, reason
from emformer_hub.volumes.remote import is_url

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
LEARNED_FROM = "train"
"""The ``split`` of rows that training reads."""
TABLE = "volumes.csv"
"""Of a set of volumes on the Hub."""
ON_THE_HUB = re.compile(r"hf://datasets/(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def with_tables_read(entries: Iterable[VolumeEntry], data_root: Path) -> tuple[VolumeEntry, ...]:
    """Replace each table among the entries of a recipe by its rows, weights multiplied.

    Args:
        entries: one whose path ends in .csv, .json, .jsonl or .parquet is a table; hf://datasets/ORG/NAME, with
            @REVISION after it if need be, is that of a set of volumes on the Hub.
        data_root: what its path is relative to.

    Raises:
        InputError: a table cannot be read, has a column that no volume has, or holds nothing to learn from.
    """
    volumes: list[VolumeEntry] = []
    for entry in entries:
        hub = entry.path.startswith("hf://")
        if not hub and Path(entry.path).suffix.lower() not in FORMATS:
            volumes.append(entry)
            continue
        if entry != VolumeEntry(entry.path, weight=entry.weight):
            raise InputError(f"{entry.path} is a table of volumes; say voxel sizes and sections in its rows.")
        rows = read_table(fetch(entry.path) / TABLE if hub else data_root / entry.path)
        volumes += [dataclasses.replace(row, weight=entry.weight * row.weight) for row in rows]
    return tuple(volumes)


def fetch(address: str) -> Path:
    """The folder of a set of volumes on the Hub, ``hf://datasets/ORG/NAME[@REVISION]``, in the cache of this machine.

    Raises:
        InputError: the address is another, or the set cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    found = ON_THE_HUB.fullmatch(address)
    if found is None:
        raise InputError(
            f"{address} is no set of volumes; expected hf://datasets/ORG/NAME, or with @REVISION after it."
        )
    try:
        return Path(snapshot_download(found["repo_id"], repo_type="dataset", revision=found["revision"]))
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{address} cannot be fetched: {reason(error)}. Is the name right? Without a network, give a table on this "
            f"machine."
        ) from error


def read_table(path: Path) -> list[VolumeEntry]:
    """The volumes of a table that training learns from: rows whose ``split`` is train, or all without such a column.

    Raises:
        InputError: as :func:`read_rows`, or there is none.
    """
    entries = [entry for split, entry in read_rows(path) if split == LEARNED_FROM]
    if not entries:
        raise InputError(f"{path}: no row to learn from; expected at least one whose split is {LEARNED_FROM!r}.")
    return entries


def read_rows(path: Path) -> list[tuple[str, VolumeEntry]]:
    """Split and volume of each row of a table.

    Columns are the fields of :class:`~emformer_hub.datasets.entry.VolumeEntry`, of which ``path``, relative to the
    table, is the one that is needed, and ``split``, which is train if nothing is said; an empty cell is a default.

    Raises:
        InputError: the table is not there or cannot be read, or a row has a column that no volume has.
    """
    datasets = import_extra("datasets", "data", f"{path} is a table of volumes")
    if not path.is_file():
        raise InputError(f"{path} does not exist. Is the path right?")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                FORMATS[path.suffix.lower()],
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            )
        except Exception as error:  # of pandas, pyarrow or datasets, by what is wrong
            why = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"{path}: cannot be read as a table of volumes ({why}).") from error
        rows = [(number, row) for number, row in enumerate(table.to_list(), start=1)]
    return [(row.pop("split", None) or LEARNED_FROM, _entry(row, path, number)) for number, row in rows]


def _entry(row: dict[str, Any], table: Path, number: int) -> VolumeEntry:
    content = {name: value for name, value in row.items() if value is not None}
    entry = VolumeEntry.from_content(content, f"{table}, row {number}")
    path = entry.path if is_url(entry.path) else str(table.parent.absolute() / entry.path)
    return dataclasses.replace(entry, path=path)

"""Tables of volumes, one per row: CSV, JSON or Parquet, read by ``datasets``; on this machine or on the Hub."""

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
"""Value of ``split`` in rows that training uses."""
TABLE = "volumes.csv"
"""Name of the table in a set of volumes on the Hub."""
ON_THE_HUB = re.compile(r"hf://datasets/(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def with_tables_read(entries: Iterable[VolumeEntry], data_root: Path) -> tuple[VolumeEntry, ...]:
    """Replace each table among the entries of a recipe by its rows, weights multiplied.

    Args:
        entries: an entry is a table if its path ends in .csv, .json, .jsonl or .parquet, or is
            hf://datasets/ORG/NAME[@REVISION], a set of volumes on the Hub.
        data_root: folder that paths of tables are relative to.

    Raises:
        InputError: a table cannot be read, has an unknown column, or has no rows to train on.
    """
    volumes: list[VolumeEntry] = []
    for entry in entries:
        hub = entry.path.startswith("hf://")
        if not hub and Path(entry.path).suffix.lower() not in FORMATS:
            volumes.append(entry)
            continue
        if entry != VolumeEntry(entry.path, weight=entry.weight):
            raise InputError(f"{entry.path} is a table of volumes; state voxel sizes and sections in its rows.")
        rows = read_table(fetch(entry.path) / TABLE if hub else data_root / entry.path)
        volumes += [dataclasses.replace(row, weight=entry.weight * row.weight) for row in rows]
    return tuple(volumes)


def fetch(address: str) -> Path:
    """Fetch a set of volumes from the Hub, ``hf://datasets/ORG/NAME[@REVISION]``; return its folder in the cache.

    Raises:
        InputError: the address has another form, or the set cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    found = ON_THE_HUB.fullmatch(address)
    if found is None:
        raise InputError(
            f"{address} is not a set of volumes; expected hf://datasets/ORG/NAME, or with @REVISION after it."
        )
    try:
        return Path(snapshot_download(found["repo_id"], repo_type="dataset", revision=found["revision"]))
    except (HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{address} cannot be fetched: {reason(error)}. Is the name right? Without a network, give a table on this "
            f"machine."
        ) from error


def read_table(path: Path) -> list[VolumeEntry]:
    """Volumes of a table to train on: rows whose ``split`` is train, or all rows if there is no such column.

    Raises:
        InputError: as :func:`read_rows`, or the table has no such row.
    """
    entries = [entry for split, entry in read_rows(path) if split == LEARNED_FROM]
    if not entries:
        raise InputError(f"{path}: no row to train on; expected at least one whose split is {LEARNED_FROM!r}.")
    return entries


def read_rows(path: Path) -> list[tuple[str, VolumeEntry]]:
    """Read the split and the volume of each row of a table.

    Columns are the fields of :class:`~emformer_hub.datasets.entry.VolumeEntry`, and ``split``, by default train. Only
    ``path`` is required; it and ``mask`` are relative to the table. An empty cell takes the default.

    Raises:
        InputError: the table does not exist or cannot be read, or has an unknown column.
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
    path, mask = (one if is_url(one) else str(table.parent.absolute() / one) for one in (entry.path, entry.mask or "."))
    return dataclasses.replace(entry, path=path, mask=mask if entry.mask else None)

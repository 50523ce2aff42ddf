"""Files that list numbers for each section of a stack: CSV with a header, or JSON alike."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import write_text


def read_section_list(path: Path, header: Sequence[str], what: str) -> list[tuple[float, ...]]:
    """Numbers that a file lists for each section, in the order of the header.

    Args:
        path: CSV whose header names these columns, and maybe others, a line for each section; or, with the suffix
            ``.json``, a list of objects with these keys.
        header: names of the columns.
        what: what messages call the list, as in ``positions of sections``.

    Raises:
        InputError: the file cannot be read, or it does not hold these numbers.
    """
    expected = (
        f"expected CSV with the header {','.join(header)} and a line for each section, or a .json that holds a list of "
        f"objects with these keys."
    )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as {what} ({error}); {expected}") from error
    of = _of_json if path.suffix.lower() == ".json" else _of_csv
    listed = []
    for section, row in enumerate(of(path, text, header, expected)):
        try:
            listed.append(tuple(float(row[name]) for name in header))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: section {section}, counted from 0, is {row!r}; expected a number for each of "
                f"{' and '.join(header)}."
            ) from error
    return listed


def write_section_list(path: Path, header: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    """Write what :func:`read_section_list` reads, as CSV, whole or not at all."""
    lines = [",".join(header), *(",".join(f"{number:.12g}" for number in row) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")


def _of_csv(path: Path, text: str, header: Sequence[str], expected: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    found = [name.strip() for name in reader.fieldnames or ()]
    if not set(header) <= set(found):
        raise InputError(f"{path} begins with {','.join(found)!r}; {expected}")
    reader.fieldnames = found
    return [dict(row) for row in reader]


def _of_json(path: Path, text: str, header: Sequence[str], expected: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {expected}") from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds {type(rows).__name__}; {expected}")
    return rows

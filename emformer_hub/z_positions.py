"""Files that list where sections lie: CSV with the header ``centre_nm,thickness_nm``, or JSON alike."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import write_text
from .uneven import ZPositions, check_z_positions

HEADER = ("centre_nm", "thickness_nm")


def read_z_positions(path: Path) -> tuple[tuple[float, float], ...]:
    """Centre and thickness of each section, nm, of a file.

    Args:
        path: CSV whose header names the columns ``centre_nm`` and ``thickness_nm``, a line for each section; or, with
            the suffix ``.json``, a list of objects with these keys.

    Raises:
        InputError: the file cannot be read, or :func:`~emformer_hub.uneven.check_z_positions` fails.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as positions of sections ({error}); {_EXPECTED}") from error
    rows = _of_json(path, text) if path.suffix.lower() == ".json" else _of_csv(path, text)
    listed = []
    for section, row in enumerate(rows):
        try:
            centre, thickness = (float(row[name]) for name in HEADER)
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: section {section}, counted from 0, is {row!r}; expected a number for each of "
                f"{' and '.join(HEADER)}."
            ) from error
        listed.append((centre, thickness))
    return check_z_positions(listed, str(path))


def write_z_positions(path: Path, z_positions: ZPositions) -> None:
    """Write what :func:`read_z_positions` reads, as CSV, whole or not at all."""
    lines = [",".join(HEADER), *(f"{centre:.12g},{thickness:.12g}" for centre, thickness in z_positions)]
    write_text(path, "\n".join(lines) + "\n")


_EXPECTED = (
    f"expected CSV with the header {','.join(HEADER)} and a line for each section, or a .json that holds a list of "
    f"objects with these keys."
)


def _of_csv(path: Path, text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = tuple(name.strip() for name in reader.fieldnames or ())
    if not set(HEADER) <= set(header):
        raise InputError(f"{path} begins with {','.join(header)!r}; {_EXPECTED}")
    reader.fieldnames = list(header)
    return [dict(row) for row in reader]


def _of_json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {_EXPECTED}") from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds {type(rows).__name__}; {_EXPECTED}")
    return rows

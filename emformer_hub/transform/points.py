"""Points in tables (CSV) and skeletons (SWC), read with their unit and written as they were, but for where they lie."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.transform.grids import UNITS, Grids, Target, Unit

SUFFIXES = (".csv", ".swc")
_COLUMN = re.compile(r"\s*([xyz])(?:[\s_]*[\[(]?(nm|um|µm|μm|voxels?|px|pixels?)[\])]?)?\s*", re.IGNORECASE)
_SPELLINGS: dict[str, Unit] = {"nm": "nm", "um": "um", "µm": "um", "μm": "um"}
"""Other units are voxels."""
_SWC_UNIT = re.compile(r"#\s*units?\s*[:=]?\s*(\S+)\s*", re.IGNORECASE)
_SWC_PLACES = (4, 3, 2)  # of z, y, x in a line: number, type, x, y, z, radius, parent
_SWC_FIELDS = 7


def carry_csv(path: Path, text: str, grids: Grids, to: Target, unit: Unit | None) -> str:
    """A table of points, of which the columns z, y and x are carried, and named with their unit."""
    rows = list(csv.reader(io.StringIO(text)))
    header, rows = (rows[0] if rows else []), [row for row in rows[1:] if row]
    found = {
        match[1].lower(): (place, match[2]) for place, name in enumerate(header) if (match := _COLUMN.fullmatch(name))
    }
    if set(found) != set("zyx"):
        raise InputError(
            f"{path} begins with {','.join(header)!r}; expected a header that names the columns z, y and x, with a "
            f"unit or not, as in z_nm,y_nm,x_nm or z_voxels,y_voxels,x_voxels, separated by commas."
        )
    stated = {_unit(unit_) for _, unit_ in found.values() if unit_}
    if len(stated) > 1:
        raise InputError(f"{path} has columns in {' and '.join(sorted(stated))}; expected one unit for z, y and x.")
    unit = _agreed(path, unit, next(iter(stated), None))
    places = [found[axis][0] for axis in "zyx"]
    points = [_numbers(path, line, row, places) for line, row in enumerate(rows, start=2)]
    _put(rows, places, grids.carry(np.array(points, float).reshape(-1, 3), to, unit))
    for axis, place in zip("zyx", places, strict=True):
        header[place] = f"{axis}_{unit}"
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([header, *rows])
    return written.getvalue()


def carry_swc(path: Path, text: str, grids: Grids, to: Target, unit: Unit | None) -> str:
    """A skeleton, whose nodes are carried; radii stay, as y and x do."""
    lines = text.splitlines()
    stated = {_unit(match[1]) for line in lines if (match := _SWC_UNIT.fullmatch(line.strip()))}
    unit = _agreed(path, unit, next(iter(stated), None) if len(stated) == 1 else None)
    rows, nodes, points = [], [], []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or _SWC_UNIT.fullmatch(line.strip()):
            continue
        if fields[0].startswith("#"):
            rows.append([line])
            continue
        if len(fields) < _SWC_FIELDS:
            raise InputError(
                f"{path} has the line {line!r}; expected number, type, x, y, z, radius and parent of a node."
            )
        points.append(_numbers(path, number, fields, _SWC_PLACES))
        nodes.append(fields)
        rows.append(fields)
    _put(nodes, _SWC_PLACES, grids.carry(np.array(points, float).reshape(-1, 3), to, unit))
    return "\n".join([f"# units: {unit}", *map(" ".join, rows)]) + "\n"


def _unit(spelling: str) -> Unit:
    return _SPELLINGS.get(spelling.lower(), "voxels")


def _agreed(path: Path, chosen: Unit | None, stated: Unit | None) -> Unit:
    """The unit of a file: the one that is chosen or that it states; raises ``InputError`` for none or two."""
    if chosen is not None and stated is not None and chosen != stated:
        raise InputError(f"{path} says that its coordinates are in {stated}, and --units says {chosen}; which is it?")
    unit = chosen or stated
    if unit is None:
        raise InputError(
            f"{path} does not say in what unit its coordinates are; give --units, one of {', '.join(UNITS)}."
        )
    return unit


def _numbers(path: Path, line: int, row: list[str], places: tuple[int, ...] | list[int]) -> list[float]:
    try:
        numbers = [float(row[place]) for place in places]
    except (ValueError, IndexError):
        numbers = [np.nan]
    if not np.isfinite(numbers).all():
        raise InputError(f"line {line} of {path} is {','.join(row)!r}; expected a number for each of z, y and x.")
    return numbers


def _put(rows: list[list[str]], places: tuple[int, ...] | list[int], points: np.ndarray) -> None:
    """Write coordinates into rows, with all their digits."""
    for row, point in zip(rows, points, strict=True):
        for place, value in zip(places, point.tolist(), strict=True):
            row[place] = repr(value)

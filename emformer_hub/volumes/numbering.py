"""Names of sections as numbers: which files of a folder are one series, in which order, and whether one is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from emformer_hub.errors import InputError

_NAMED = 12  # files or numbers that a message lists
_WHOLE, _DECIMAL, _SIGNED, _BOTH = r"[0-9]+", r"[0-9]+(?:\.[0-9]+)?", r"[-+]?[0-9]+", r"[-+]?[0-9]+(?:\.[0-9]+)?"
"""What may be a number in a name, the simplest first: a dash or a point is a separator where that makes a series."""


@dataclass(frozen=True)
class Name:
    """A file name in one reading: the text around its numbers, and the numbers."""

    path: Path
    text: str
    numbers: tuple[Decimal, ...]

    @classmethod
    def read(cls, path: Path, number: str) -> Name:
        stem = path.name.removesuffix(path.suffix).casefold()
        return cls(path, re.sub(number, "#", stem), tuple(map(Decimal, re.findall(number, stem))))


def in_order(folder: Path, paths: Sequence[Path], *, chosen: bool) -> list[Path]:
    """The files of a series in the order of their numbers.

    Args:
        folder: that they are in, for messages.
        paths: of the files.
        chosen: whether the user chose them by a pattern; files outside the series are part of the stack then.

    Raises:
        InputError: files outside the series, several series, equal numbers, numbers that may be read in two ways, or
            a number that is missing; the message names them.
    """
    names = _readable(folder, sorted(map(Path, paths)))
    series: dict[str, list[Name]] = {}
    for name in names:
        series.setdefault(name.text, []).append(name)
    if len(series) > 1 and any(name.numbers for name in names):
        if chosen:
            return [name.path for name in sorted(names, key=lambda name: _natural(name.path))]
        raise _not_one_series(folder, list(series.values()))
    names = sorted(names, key=lambda name: (name.numbers, name.path.name))
    counting = _varying(names)
    _check_distinct(folder, names)
    if (
        len(counting) > 1
        and not chosen
        and not any(_rises([name.numbers[place] for name in names]) for place in counting)
    ):
        raise InputError(
            f"{folder} numbers its files in {len(counting)} places, and none of them counts through: "
            f"{_listed([name.path for name in names])}. Expected one section a file; are they channels, tiles or times "
            f"too? Choose those of one, as in --pattern '{_pattern(names, counting)}', or all with --pattern '*'."
        )
    if len(counting) == 1:
        _check_complete(folder, names, [name.numbers[counting[0]] for name in names])
    return [name.path for name in names]


def _natural(path: Path) -> list[tuple[int, Decimal, str]]:
    """Sort key that compares runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", path.stem.casefold())
    return [(0, Decimal(part), "") if part.isdigit() else (1, Decimal(0), part) for part in parts]


def _readable(folder: Path, paths: list[Path]) -> list[Name]:
    """Names in the simplest reading that makes an even series of them, or else one series, or else the simplest."""
    readings = [[Name.read(path, number) for path in paths] for number in (_WHOLE, _DECIMAL, _SIGNED, _BOTH)]
    single = [reading for reading in readings if len({name.text for name in reading}) == 1 and reading[0].numbers]
    for even in (True, False):
        for reading in single:
            counting = _varying(reading)
            if len(counting) != 1:
                continue
            numbers = sorted(name.numbers[counting[0]] for name in reading)
            if _is_regular(numbers, even=even):
                return reading
    if len(single) > 1:
        orders = {tuple(name.path for name in sorted(reading, key=lambda name: name.numbers)) for reading in single}
        if len(orders) > 1:
            raise InputError(
                f"{folder} has names that may be read in two ways, as in {_listed(paths)}: is the point a decimal "
                f"point, or does it stand between two numbers? Number the sections by whole numbers."
            )
    return single[0] if single else readings[0]


def _varying(names: Sequence[Name]) -> list[int]:
    """Places of the numbers that differ."""
    return [
        place for place, numbers in enumerate(zip(*(n.numbers for n in names), strict=True)) if len(set(numbers)) > 1
    ]


def _rises(numbers: Sequence[Decimal]) -> bool:
    return all(before < after for before, after in pairwise(numbers))


def _is_regular(numbers: Sequence[Decimal], *, even: bool) -> bool:
    """Whether ascending numbers go in equal steps, or at least in multiples of the smallest."""
    steps = [after - before for before, after in pairwise(numbers)]
    smallest = min(steps, default=Decimal(0))
    if not smallest:
        return False
    return all(step == smallest if even else step % smallest == 0 for step in steps)


def _not_one_series(folder: Path, series: list[list[Name]]) -> InputError:
    series.sort(key=len, reverse=True)
    main, *others = series
    if len(others[0]) > max(1, len(main) // 2):
        listed = "; ".join(f"{len(one)} as {one[0].path.name}" for one in series[:_NAMED])
        return InputError(
            f"{folder} holds {len(series)} series of files: {listed}. Expected one stack; choose a series, as in "
            f"--pattern '{_pattern(main, _varying(main))}'."
        )
    outside = [name.path for one in others for name in one]
    return InputError(
        f"{folder} holds {len(main)} files as {main[0].path.name}, and outside of this series {_listed(outside)}. "
        f"Move {'it' if len(outside) == 1 else 'them'} away, or choose the sections, as in "
        f"--pattern '{_pattern(main, _varying(main))}'."
    )


def _pattern(names: Sequence[Name], counting: Sequence[int]) -> str:
    """A pattern that fits one series: the first name, with a star for its last number that counts."""
    first = names[0].path
    runs = list(re.finditer(r"[0-9]+", first.stem))
    if not runs:
        return f"{first.stem}*{first.suffix}"
    place = min(counting[0] if counting else len(runs) - 1, len(runs) - 1)
    run = runs[place]
    return f"{first.stem[: run.start()]}*{first.stem[run.end() :]}{first.suffix}"


def _check_distinct(folder: Path, names: Sequence[Name]) -> None:
    for one, other in pairwise(names):
        if one.numbers and one.numbers == other.numbers:
            raise InputError(
                f"{folder} holds {one.path.name} and {other.path.name}, which have the same number. Move one of them "
                f"away, or choose the sections by --pattern."
            )


def _check_complete(folder: Path, names: Sequence[Name], numbers: Sequence[Decimal]) -> None:
    """Raise ``InputError`` if the numbers go in equal steps and some are left out."""
    steps = [after - before for before, after in pairwise(numbers)]
    step = min(steps)
    gaps = [place for place, one in enumerate(steps) if one != step]
    if not gaps or any(one % step for one in steps) or 2 * len(gaps) > len(steps):
        return  # none is left out; or the numbers are times or positions rather than a count
    missing = [numbers[gap] + step * k for gap in gaps for k in range(1, int(steps[gap] / step))]
    listed = ", ".join(map(str, missing[:_NAMED])) + (f" and {len(missing) - _NAMED} more" if missing[_NAMED:] else "")
    raise InputError(
        f"{folder} lacks the section{'s' * (len(missing) > 1)} {listed}: {names[gaps[0] + 1].path.name} comes after "
        f"{names[gaps[0]].path.name}. Was it copied completely? In the place of a section that was lost, put a copy of "
        f"its neighbour; if none is missing, number the sections without gaps."
    )


def _listed(paths: Sequence[Path]) -> str:
    left_out = len(paths) - _NAMED
    return ", ".join(path.name for path in paths[:_NAMED]) + (f" and {left_out} more" if left_out > 0 else "")

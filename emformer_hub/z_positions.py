"""Files that list where sections lie, with the header ``centre_nm,thickness_nm``."""

from __future__ import annotations

from pathlib import Path

from .section_lists import read_section_list, write_section_list
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
    listed = [(centre, thickness) for centre, thickness in read_section_list(path, HEADER, "positions of sections")]
    return check_z_positions(listed, str(path))


def write_z_positions(path: Path, z_positions: ZPositions) -> None:
    """Write what :func:`read_z_positions` reads, as CSV, whole or not at all."""
    write_section_list(path, HEADER, z_positions)

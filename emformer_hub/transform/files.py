"""Carries a file of points, a skeleton or labels to the other grid."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emformer_hub.errors import InputError
from emformer_hub.files import check_file, replacing
from emformer_hub.transform.grids import TARGETS, Grids, Target, Unit
from emformer_hub.transform.labels import carry_labels
from emformer_hub.transform.points import SUFFIXES, carry_csv, carry_swc
from emformer_hub.volumes import check_output, open_labels


def transform_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    grids: Grids,
    to: Target,
    *,
    unit: Unit | None = None,
    overwrite: bool = False,
    ome_zarr: str = "0.5",
    **reading: Any,
) -> None:
    """Carry points, a skeleton or labels between the grid of a stack and the isotropic one of its reconstruction.

    On both grids voxels have their centres at whole numbers, counted from 0. Labels are those of the nearest section or
    plane; on a stack of which only a region was reconstructed, they are 0 outside of it.

    Args:
        source: ``.csv``, points with a header that names the columns z, y and x; ``.swc``, a skeleton; or labels, in
            any format of ``open_volume``.
        output: ``.csv`` or ``.swc`` like the source; else the suffix chooses the format, as for ``create_volume``.
        grids: the two grids, as ``Grids.from_record(result)`` reads them.
        to: ``"isotropic"`` or ``"stack"``, the grid to carry to.
        unit: ``"voxels"``, ``"nm"`` or ``"um"``: of coordinates, where the file does not state it.
        overwrite: replace an existing output.
        ome_zarr: version of OME-Zarr.
        reading: keyword arguments of ``open_labels``, for labels.

    Raises:
        InputError: the source cannot be read, does not lie on its grid or states no unit; or the output cannot be
            written.
    """
    source_path, output_path = Path(source), Path(output)
    if to not in TARGETS:
        raise InputError(f"{source} is to be carried to {to!r}; expected one of {', '.join(TARGETS)}.")
    suffix = source_path.suffix.lower()
    if suffix not in SUFFIXES:
        check_output(output, overwrite)
        carry_labels(
            open_labels(source, **reading), str(source), output, grids, to, overwrite=overwrite, ome_zarr=ome_zarr
        )
        return
    if output_path.suffix.lower() != suffix:
        raise InputError(f"output {output} is not {suffix}; {source} holds points, which are written as they are read.")
    check_file(output_path, overwrite)
    try:
        text = source_path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read as text ({error}). Is the path right?") from error
    carry = carry_csv if suffix == ".csv" else carry_swc
    written = carry(source_path, text, grids, to, unit)
    with replacing(output_path) as partly:
        partly.write_text(written, encoding="utf-8")

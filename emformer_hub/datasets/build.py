"""Sets of volumes to share: OME-Zarr with voxel sizes, and a table of splits, modalities and licences."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.datasets.tables import TABLE, read_rows
from emformer_hub.errors import InputError, reason
from emformer_hub.files import check_file, replacing
from emformer_hub.geometry import VoxelSize
from emformer_hub.hub.push import check_publishable, commit_whole
from emformer_hub.volumes import open_volume, write_volume

COLUMNS = ("path", "voxel_size", "split", "modality", "licence", "weight", "nodata", "mask")
PAGE = "README.md"


def build(table: Path, folder: Path) -> list[dict[str, str]]:
    """Copy the volumes of a table into a folder that can be pushed, moved, or used for training as it is.

    Args:
        table: as :func:`~emformer_hub.datasets.tables.read_rows` reads it; every row must state a licence.
        folder: receives ``volumes/*.ome.zarr``, ``volumes.csv`` and ``README.md``; it appears once it is complete.

    Returns:
        The rows of the new table.

    Raises:
        InputError: the folder exists, or a volume cannot be read or lacks a voxel size, a licence or a unique name.
    """
    check_file(folder, overwrite=False)
    rows = read_rows(table)
    names = {entry.path: _name(entry.path) for _, entry in rows}
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise InputError(f"{table} holds {count} volumes named {name}; rename all but one.")
    written: list[dict[str, str]] = []
    with replacing(folder) as partial:
        (partial / "volumes").mkdir(parents=True)
        for split, entry in rows:
            written.append(_copy(split, entry, partial, f"volumes/{names[entry.path]}.ome.zarr"))
        with (partial / TABLE).open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({key: row[key] for key in COLUMNS} for row in written)
        (partial / PAGE).write_text(_page(folder.name, written))
    return written


def _name(path: str) -> str:
    """Name of a volume, without folders and suffixes."""
    return Path(path.partition(":/")[0]).name.partition(".")[0]


def _copy(split: str, entry: VolumeEntry, folder: Path, path: str) -> dict[str, str]:
    if not entry.licence:
        raise InputError(f"{entry.path}: the table states no licence; without one, nobody may use the volume.")
    volume = open_volume(entry.path)
    size = VoxelSize.parse(entry.voxel_size) if entry.voxel_size else volume.voxel_size
    if size is None:
        raise InputError(f"{entry.path}: neither the file nor the table states a voxel size; give Z,Y,X in nm there.")
    place = volume.translation_nm or (0.0, 0.0, 0.0)
    write_volume(folder / path, volume.data[:], size, translation_nm=place)
    mask = ""
    if entry.mask:
        mask = path.replace(".ome.zarr", ".mask.ome.zarr")
        measured = open_volume(entry.path, mask=entry.mask).hidden
        assert measured is not None
        write_volume(folder / mask, (~measured[:]).astype(np.uint8), size, translation_nm=place)
    return {
        "path": path,
        "voxel_size": f"{size.z:g},{size.y:g},{size.x:g}",
        "split": split,
        "modality": entry.modality or "",
        "licence": entry.licence,
        "weight": f"{entry.weight:g}",
        "nodata": "" if entry.nodata is None else repr(entry.nodata),
        "mask": mask,
        "shape": " x ".join(map(str, volume.data.shape)),
        "dtype": str(volume.data.dtype),
    }


def _page(name: str, rows: list[dict[str, str]]) -> str:
    """The page of a set: front matter, contents, and how to use it."""
    from huggingface_hub import DatasetCardData

    licences = {row["licence"].lower().replace(" ", "-") for row in rows}
    front = DatasetCardData(
        license=licences.pop() if len(licences) == 1 else "other",
        task_categories=["image-to-image"],
        tags=["electron-microscopy", "volume-em", "biology", "emformer"],
        pretty_name=name,
        configs=[{"config_name": "default", "data_files": TABLE}],
    )
    shown = ("path", "shape", "dtype", "voxel_size", "split", "modality", "licence")
    lines = ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    lines += ["| " + " | ".join(row[key] for key in shown) + " |" for row in rows]
    body = "\n".join(lines)
    return (
        f"---\n{front.to_yaml()}\n---\n\n# {name}\n\n"
        f"Volumes of electron microscopy, axes z, y, x; voxel sizes in nm, section spacing first. Each has its "
        f"own licence.\n\n{body}\n\n## Use\n\n"
        f"    emformer-hub finetune hf://datasets/ORG/{name} --output-dir runs/mine\n\n"
        f"trains on the rows whose split is `train`.\n"
    )


def push(folder: Path, repo_id: str, *, revision: str | None = None, private: bool = False) -> str:
    """Upload a set that :func:`build` made in one commit, and tag it; return the commit's address.

    Raises:
        InputError: the folder is not such a set, the tag exists, the upload failed, or as
            :func:`~emformer_hub.hub.push.check_publishable`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if not (folder / TABLE).is_file():
        raise InputError(f"{folder} holds no {TABLE}; make a set first: emformer-hub dataset build TABLE {folder}.")
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    check_publishable(None, repo_id)
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="dataset", exist_ok=True, private=private)
        if revision in {tag.name for tag in api.list_repo_refs(repo_id, repo_type="dataset").tags}:
            raise InputError(f"{repo_id} has a tag {revision} already, which is never moved. Give another --revision.")
        commit = commit_whole(api, repo_id, files, "Volumes", kind="dataset")
        if revision is not None:
            api.create_tag(repo_id, tag=revision, revision=commit.oid, repo_type="dataset")
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{repo_id}: the upload failed: {reason(error)}. The same command continues where it stopped."
        ) from error
    return str(commit.commit_url)

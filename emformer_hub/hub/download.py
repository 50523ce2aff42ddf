"""Models for machines without a network: whole folders, checked."""

from __future__ import annotations

from pathlib import Path

from emformer_hub.errors import InputError
from emformer_hub.files import replacing
from emformer_hub.hub.push import contents
from emformer_hub.model_files import check_blob, commit_of, model_folder
from emformer_hub.pretrained import loading, registry, resolve_pretrained


def download(name: str, folder: Path, revision: str | None = None) -> Path:
    """Download all files of a model into a folder below ``folder`` named like the model; resumes if interrupted.

    ``EMformerModel.from_pretrained`` of the result needs no network; the base of an adapter is still loaded by name.

    Args:
        name: bundled name or Hub id.
        folder: created if it does not exist.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: the name is not known or is a folder already, the result exists, the Hub cannot be reached, or the
            checksum of a file is not the one in the registry or on the Hub.
    """
    source = resolve_pretrained(name, revision)
    bundled = source in {str(weights.folder) for weights in registry().values()}
    if Path(source).is_dir() and not bundled:
        raise InputError(f"{name} is already a folder on this machine; copy it.")
    target = folder / name.rpartition("/")[2]
    if target.exists():
        raise InputError(f"{target} exists; choose another folder, or remove it.")
    found = contents(Path(source)) if bundled else _fetched(source, name, revision)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        for path, content in found.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return target


def _fetched(repo_id: str, name: str, revision: str | None) -> dict[str, Path]:
    """All files of a commit, in the cache, each compared with its checksum on the Hub."""
    from huggingface_hub import snapshot_download

    commit = commit_of(model_folder(name, revision))
    with loading(name):
        folder = Path(snapshot_download(repo_id, revision=commit))
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(".gitattributes", None)
    for file, path in files.items():
        check_blob(path, f"{name}: {file}")
    return files

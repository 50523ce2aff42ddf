"""Names to weights: the registry, and the one place that decides what a name stands for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError

from .errors import InputError, ModelNotFoundError, reason

HUB_ID = re.compile(r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9_](?:[\w.-]*\w)?/)[A-Za-z0-9_](?:[\w.-]*\w)?")


@dataclass(frozen=True)
class Superseded:
    """Weights that a newer revision replaced; they stay on the Hub under their tag.

    Attributes:
        revision: tag.
        sha256: checksum of ``model.safetensors``.
        loads_with: version of emformer_hub whose network they fit.
    """

    revision: str
    sha256: str
    loads_with: str


@dataclass(frozen=True)
class TrainingData:
    """A volume that weights were trained on.

    Attributes:
        file: what training recipes call it.
        name, modality, specimen: in words.
        source: public repository.
        licence: as its source states it.
    """

    file: str
    name: str
    modality: str
    specimen: str
    source: str
    licence: str


@dataclass(frozen=True)
class PretrainedWeights:
    """A published weight, as data.

    Attributes:
        name: what users type.
        repo_id: repository on the Hub.
        revision: tag of the bundled weights there.
        sha256, size: checksum and bytes of ``model.safetensors``.
        configurations: SHA-256 of the other bundled files that are loaded; those on the Hub also name the code.
        parameters: number of parameters.
        licence: SPDX identifier.
        data: volumes that it was trained on.
        factor: lowest and highest factor.
        voxel_nm: lateral voxel sizes that it has seen, lowest and highest.
        figures: gains in dB by evaluation volume and task, those of :func:`emformer_hub.hub.assemble.headline_figures`.
        replaces: earlier weights of this name, newest first.
        summary: one line.
    """

    name: str
    repo_id: str
    revision: str
    sha256: str
    size: int
    configurations: dict[str, str]
    parameters: int
    licence: str
    data: tuple[TrainingData, ...]
    factor: tuple[float, float]
    voxel_nm: tuple[float, float]
    figures: dict[str, float]
    replaces: tuple[Superseded, ...]
    summary: str

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> PretrainedWeights:
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in record.items()}
        fields["data"] = tuple(TrainingData(**volume) for volume in record["data"])
        fields["replaces"] = tuple(Superseded(**earlier) for earlier in record["replaces"])
        return cls(**fields)

    @property
    def folder(self) -> Path:
        """The bundled model page: inside the installed package, or beside it in a checkout."""
        package = Path(__file__).parent
        inside = package / "model_cards" / self.name
        return inside if inside.exists() else package.parent / "model_cards" / self.name


def registry() -> dict[str, PretrainedWeights]:
    """All published weights by name, from ``pretrained.json``, which does not travel with weights on the Hub."""
    path = Path(__file__).with_suffix(".json")
    records = json.loads(path.read_text()) if path.exists() else []
    return {record["name"]: PretrainedWeights.from_record(record) for record in records}


def resolve_pretrained(name_or_path: str | Path, revision: str | None = None) -> str:
    """Resolve a bundled name, a folder, or a Hub id, tried in this order, to what transformers can load.

    Args:
        revision: a tag on the Hub; one that is not the bundled weights' is looked for there.

    Returns:
        A folder, or a Hub id.

    Raises:
        ModelNotFoundError: the name is none of these.
        InputError: a file of bundled weights is damaged.
    """
    name = str(name_or_path)
    known = registry()
    by_repo = {weights.repo_id: weights for weights in known.values()}
    if name in known or (name in by_repo and by_repo[name].folder.exists()):
        weights = known.get(name) or by_repo[name]
        if revision not in (None, weights.revision):
            return weights.repo_id
        check_bundle(weights)
        return str(weights.folder)
    if name and Path(name).is_dir():  # the path of an empty name is the working folder
        return name
    if HUB_ID.fullmatch(name) and not Path(name).exists():
        return name
    raise ModelNotFoundError(
        f"model {name!r} is not known; expected one of {', '.join(known)}, a folder with config.json and "
        f"model.safetensors, or a Hub id such as organisation/model. 'emformer-hub models' lists what there is."
    )


def check_bundle(weights: PretrainedWeights) -> None:
    """Raise ``InputError`` unless the bundled files that are loaded are the registered ones."""
    for file, stated in {"model.safetensors": weights.sha256, **weights.configurations}.items():
        path = weights.folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing from this installation; reinstall emformer_hub.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != stated:
            raise InputError(
                f"{path} is damaged: sha256 {found[:12]}…, expected {stated[:12]}…. Reinstall emformer_hub."
            )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn what the libraries raise for missing, damaged or unreachable files into ``InputError``."""
    try:
        yield
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"{name}: the weight file is damaged or cut short ({error}); fetch it again.") from error
    except StrictDataclassError as error:
        raise InputError(f"{name}: config.json describes an impossible network: {error}") from error
    except (OSError, HTTPError) as error:
        raise ModelNotFoundError(
            f"{name}: cannot be loaded: {reason(error)}. Is the name right? Without a network, give a folder, or a "
            f"bundled name that 'emformer-hub models' lists."
        ) from error

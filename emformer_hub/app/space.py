"""The demo page as a Space on the Hub, with its own copy of the package and the weights, so that both match."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement

from emformer_hub.errors import InputError
from emformer_hub.hub.push import check_publishable, commit_whole, reason
from emformer_hub.pretrained import check_bundle, registry

EXTRAS = ("", "app", "hdf5", "images")
APP = """\
from emformer_hub.app.ui import LAUNCH, Limits, build

build(Limits(mvoxels=32, minutes=10)).launch(**LAUNCH)
"""
README = """\
---
title: EMformer
emoji: 🔬
colorFrom: gray
colorTo: red
sdk: gradio
sdk_version: {gradio}
app_file: app.py
license: apache-2.0
models:
{models}
tags:
- electron-microscopy
- volume-em
- super-resolution
short_description: Isotropic volumes from anisotropic EM stacks
---

Drop a stack, or take the sample: EMformer makes its axial resolution that of the plane, and says how sure
it is. The page is `emformer-hub app`; on your own machine it has no queue, and `emformer-hub reconstruct` no limits.
"""


def space() -> dict[str, str | Path]:
    """Files of the Space by path: their content, or the local file with it.

    Raises:
        InputError: bundled weights are damaged, or Gradio is not installed.
    """
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            "a Space states the version of Gradio that it was tested with; run: pip install 'emformer-hub[app]'"
        ) from error
    package = Path(__file__).parents[1]
    files: dict[str, str | Path] = {
        f"emformer_hub/{path.relative_to(package).as_posix()}": path
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and "model_cards" not in path.parts
    }
    for weights in registry().values():
        check_bundle(weights)
        for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
            files[f"emformer_hub/model_cards/{weights.name}/{name}"] = weights.folder / name
    models = "\n".join(f"- {weights.repo_id}" for weights in registry().values())
    needed = map(Requirement, importlib.metadata.requires("emformer-hub") or [])
    used = [one for one in needed if one.marker is None or any(one.marker.evaluate({"extra": name}) for name in EXTRAS)]
    lines = sorted({f"{one.name}{one.specifier}" for one in used if one.name not in ("gradio", "emformer-hub")})
    return files | {
        "app.py": APP,
        "requirements.txt": "\n".join(lines) + "\n",
        "README.md": README.format(gradio=gradio, models=models),
    }


def push(repo_id: str, *, private: bool = False) -> str:
    """Upload the Space in one commit; return its address.

    Raises:
        InputError: as :func:`space` and :func:`~emformer_hub.hub.push.check_publishable`, or the upload failed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    files = {path: content.encode() if isinstance(content, str) else content for path, content in space().items()}
    check_publishable(None, repo_id)
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", exist_ok=True, private=private)
        return str(commit_whole(api, repo_id, files, "EMformer demo", kind="space").commit_url)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{repo_id}: the upload failed: {reason(error)}. The same command continues where it stopped."
        ) from error

"""``emformer-hub doctor``: what it finds wrong, and what it says to do."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from emformer_hub import pretrained
from emformer_hub.cli import main
from emformer_hub.doctor import Finding, examine
from emformer_hub.pretrained import registry


def wrong() -> dict[str, Finding]:
    return {finding.what: finding for finding in examine() if finding.remedy is not None}


def test_it_looks_at_everything_and_finds_this_environment_whole() -> None:
    found = {finding.what: finding.found for finding in examine()}
    assert set(found) >= {"python", "torch", "transformers", "device", "memory", "cache", "Hub", *registry()}
    assert found["torch"] == importlib.metadata.version("torch")
    assert wrong() == {}
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0 and all(line.startswith("ok ") for line in result.stdout.splitlines())


def test_a_package_that_is_missing_or_too_old_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("peft", "h5py"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "zarr" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert wrong()["peft"] == Finding("peft", "missing", "pip install 'peft>=0.20'")
    assert wrong()["zarr"] == Finding("zarr", "0.1, too old", "pip install --upgrade 'zarr>=3.0'")
    assert "h5py" in {finding.what: finding.found for finding in examine()}["[hdf5]"]  # which is no fault


def test_damaged_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretrained.PretrainedWeights, "folder", property(lambda weights: tmp_path / weights.name))
    for name in registry():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"cut")
    assert set(wrong()) == set(registry())
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1 and "BAD emformer-small" in result.stdout and "is damaged" in result.stdout


def test_a_cache_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "cache" not in wrong()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "set HF_HOME" in str(wrong()["cache"].remedy)
    (tmp_path / "cache").mkdir()  # a shared cache that may only be read is good to have
    assert "cache" not in wrong()


def test_little_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    little = psutil.virtual_memory()._replace(available=int(1e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert wrong()["memory"].found.startswith("1.0 GB free")

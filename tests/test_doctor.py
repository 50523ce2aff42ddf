"""``emformer-hub doctor``: what it finds wrong, and what it says to do."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from emformer_hub import doctor, pretrained
from emformer_hub.cli import main
from emformer_hub.doctor import Finding, examine
from emformer_hub.pretrained import registry


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


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


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert wrong()["Hub"].found.startswith("http://127.0.0.1:9 does not answer: ")
    assert "HF_HUB_OFFLINE=1" in str(wrong()["Hub"].remedy)


def test_an_installed_file_that_was_altered_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As pip leaves a wheel: with a checksum of every file."""
    content = {"emformer_hub/doctor.py": Path(doctor.__file__).read_bytes(), "emformer_hub/pretrained.json": b"[]"}
    record = tmp_path / "emformer_hub-9.dist-info" / "RECORD"
    record.parent.mkdir()
    (tmp_path / "emformer_hub").mkdir()
    lines = []
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    record.write_text("".join(lines))
    (record.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: emformer-hub\nVersion: 9\n")
    installed = importlib.metadata.Distribution.at(record.parent)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "emformer_hub" / "doctor.py"))
    assert "installation" not in wrong()
    assert Finding("installation", "2 files, whole") in examine()
    (tmp_path / "emformer_hub" / "pretrained.json").write_text("[ ]")
    assert wrong()["installation"].found == "emformer_hub/pretrained.json was altered (1 in all)"

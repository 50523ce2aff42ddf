"""The Makefile: when it installs, when it builds the environment afresh, and that looking changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
PYTHON = """#!/bin/sh
# Stands for a Python: it writes down what it is asked for, and makes an environment that consists of itself.
echo "$@" >> calls
case "$*" in
  *"import emformer_hub") test ! -e broken ;;
  "-m venv"*) rm -rf .venv broken && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with an installed environment."""
    shutil.copy(MAKEFILE, tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    assert make(tmp_path, "lint") == ["venv", "pip", "pip", "ruff", "ruff"]
    return tmp_path


def make(project: Path, *arguments: str) -> list[str]:
    """The modules that make runs, in their order."""
    (project / "calls").write_text("")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--silent", "PYTHON=./python", *arguments]
    subprocess.run(command, cwd=project, env=inherited, check=True, capture_output=True)
    return [words[1] for words in map(str.split, (project / "calls").read_text().splitlines()) if words[0] == "-m"]


def test_what_is_installed_is_not_installed_again(project: Path) -> None:
    assert make(project, "lint") == ["ruff", "ruff"]


@pytest.mark.parametrize("jobs", ["-j1", "-j4"])
def test_an_environment_that_cannot_import_the_package_is_built_afresh(project: Path, jobs: str) -> None:
    (project / "broken").touch()
    assert make(project, "lint", jobs) == ["venv", "pip", "pip", "ruff", "ruff"]
    assert make(project, "lint", jobs) == ["ruff", "ruff"]


def test_a_changed_dependency_is_installed_into_the_same_environment(project: Path) -> None:
    later = (project / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(project / "constraints.txt", (later, later))
    assert make(project, "lint") == ["pip", "pip", "ruff", "ruff"]


def test_a_dry_run_changes_nothing(project: Path) -> None:
    (project / "broken").touch()
    assert make(project, "lint", "-n") == []
    assert (project / ".venv" / ".installed").exists()

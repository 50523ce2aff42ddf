"""Packages elsewhere need what this one needs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub", "matplotlib": "matplotlib-base"}
"""Packages that have another name on conda-forge."""


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())


def conda(requirement: str) -> str:
    """``torch>=2.6`` -> ``pytorch >=2.6``."""
    parsed = Requirement(requirement)
    return f"{CONDA_NAMES.get(parsed.name, parsed.name)} {parsed.specifier}"


def test_the_conda_recipe_needs_what_pip_installs(pyproject: dict[str, Any], recipe: dict[str, Any]) -> None:
    python, *others = recipe["requirements"]["run"]
    assert others == [conda(requirement) for requirement in pyproject["project"]["dependencies"]]
    assert recipe["requirements"]["host"][2:] == [conda(one) for one in pyproject["build-system"]["requires"]]
    assert python == "python >=${{ python_min }}"


def test_the_conda_recipe_is_of_this_release(pyproject: dict[str, Any], recipe: dict[str, Any]) -> None:
    project = pyproject["project"]
    assert recipe["context"] == {"name": project["name"], "version": project["version"]}
    assert (recipe["about"]["license"], recipe["about"]["summary"]) == (project["license"], project["description"])
    (entry,) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(entry)]

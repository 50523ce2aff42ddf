"""The house itself: packaging, import direction, and documents that agree with the code."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "emformer_hub"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]

LAYERS = [
    {"errors", "files", "geometry", "machine", "modes", "records", "uneven", "section_lists", "z_positions"},
    {"volumes", "interpolation", "devices"}
    | {"configuration_emformer", "layers_emformer", "modeling_emformer", "pipeline_emformer", "processing_emformer"}
    | {"pretrained", "projection", "uncertainty"}
    | {"adapters", "loading", "losses", "mixed_batches", "model_files", "planes"},
    {"reconstruction", "inspection", "measurement", "transform", "hub", "datasets"},
    {"training", "audit"},
    {"cli", "app", "demo", "doctor", "__main__"},
    {"napari_plugin"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# The facade re-exports every layer, so it has none; the modules inside import from where a name is defined.
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

HEAVY = {"torch", "transformers", "huggingface_hub", "accelerate", "peft", "zarr", "h5py", "skimage", "matplotlib"}
HEAVY |= {"napari", "qtpy", "PySide6", "magicgui"}
TEXT_SUFFIXES = {".cff", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
TEXT_FOLDERS = ["emformer_hub", "docs", "finetune", "model_cards", "benchmarks", "examples", "integrations"]
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|tmp|root|home)/")


def part_of(module: Path) -> str:
    """The part of the house that a file belongs to: the name right below the package."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(module: Path) -> Iterator[str]:
    """The parts that a file imports, wherever in the file it does so."""
    for name in imported_names(module):
        top, _, below = name.partition(".")
        if top == "emformer_hub":
            yield below.split(".")[0]


def imported_files(module: Path) -> set[Path]:
    """The other files of the package that a file imports, wherever in the file it does so."""
    found = {file_of(name) for name in imported_names(module) if name.startswith("emformer_hub.")}
    return {path for path in found if path is not None} - {module}


def file_of(name: str) -> Path | None:
    """The file that defines what is imported by a dotted name: that of a module, or of what lies in it."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        place = PACKAGE.joinpath(*parts[:end])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def imported_names(module: Path) -> Iterator[str]:
    """Dotted names that a file imports, relative ones resolved."""
    package = ["emformer_hub", *module.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*anchor, *filter(None, [node.module]), alias.name]) for alias in node.names)


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the name to the end; decorators, which list the options of commands, are data."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def texts() -> list[Path]:
    """The project's own text files, without the tests."""
    found = [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*")]
    found += [*ROOT.iterdir(), *(ROOT / ".ci").iterdir()]
    return [
        path for path in found if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name in {"Makefile", "run"})
    ]


def requirements(*extras: str) -> list[Requirement]:
    """Direct requirements on other packages: the core's, and those of the extras named."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def test_installed_version_is_that_of_pyproject() -> None:
    assert importlib.metadata.version("emformer_hub") == VERSION


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md"])
def test_documents_name_the_current_version(document: str) -> None:
    assert re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.]*\d)", (ROOT / document).read_text())


def test_citation_is_of_the_current_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION


def test_the_licence_covers_the_code_and_the_bundled_weights() -> None:
    code = yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"]
    records = json.loads((PACKAGE / "pretrained.json").read_text())
    assert set(PROJECT["license"].split(" AND ")) == {code, *(record["licence"] for record in records)}


@pytest.mark.parametrize(
    "statement", ["import emformer_hub", "from emformer_hub.cli import main; main(['--help'], standalone_mode=False)"]
)
def test_importing_the_package_and_asking_for_help_is_light(statement: str) -> None:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(run.stderr.split()) == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(module: Path) -> None:
    unplaced = {part_of(module), *imported_parts(module)} - LEVEL.keys()
    assert not unplaced, "give these a layer in LAYERS and a line in CONTRIBUTING.md"
    level = LEVEL[part_of(module)]
    assert [part for part in imported_parts(module) if LEVEL[part] > level] == []


def test_parts_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        graph.setdefault(part_of(module), set()).update(set(imported_parts(module)) - {part_of(module)})
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_files_do_not_import_each_other_in_a_circle() -> None:
    graph = {module: imported_files(module) for module in MODULES}
    TopologicalSorter(graph).prepare()


def test_no_benchmark_imports_the_script_of_another() -> None:
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    scripts = {path.stem for path in files if not path.stem.startswith("_")}
    imports = re.compile(r"^ *(?:from|import) (\w+)", re.MULTILINE)
    found = {path.name: scripts.intersection(imports.findall(path.read_text())) for path in files}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [path for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_too_long_to_read(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= 500


def test_no_function_is_too_long_to_read() -> None:
    files = [path for folder in (PACKAGE, ROOT / "benchmarks") for path in sorted(folder.rglob("*.py"))]
    found = {
        f"{path.relative_to(ROOT).as_posix()}::{node.name}": length(node)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in found.items() if lines > 100} == {}


def test_no_text_names_a_path_of_some_machine() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in texts() if MACHINE_PATH.search(path.read_text())] == []


def test_every_dependency_has_a_lower_bound_only() -> None:
    """Beside the bound, a release that is broken may be left out."""
    for requirement in requirements(*PROJECT["optional-dependencies"]):
        operators = [clause.operator for clause in requirement.specifier if clause.operator != "!="]
        assert operators == [">="], str(requirement)


def test_every_dependency_is_accounted_for() -> None:
    table = re.findall(r"^\| ([\w.-]+) \| (?:core|`\w+`) \| \S", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(wanted.name for wanted in requirements(*PROJECT["optional-dependencies"]))


def test_tested_versions_satisfy_the_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert list(pins) == sorted(pins)
    for requirement in requirements("images", "hdf5", "napari", "dev"):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)

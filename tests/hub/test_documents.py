"""What the documents tell people to type: Python is executed, as a user would, and every flag exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import tifffile
from client import environment
from server import HubServer, User

from emformer_hub.adapters import add_adapter
from emformer_hub.cli import main
from emformer_hub.hub.push import contents
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import registry
from emformer_hub.training.__main__ import command as finetune
from emformer_hub.volumes.phantom import neuropil

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "finetune/README.md",
        "benchmarks/README.md",
        "integrations/fiji/README.md",
        "integrations/nextflow/README.md",
        "integrations/snakemake/README.md",
    )
]
DOCUMENTS += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "model_cards").glob("*/README.md"))]
DOCUMENTS += sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
EXECUTED_ELSEWHERE = {ROOT / "docs" / "tutorials" / "napari.ipynb": "needs napari; tests/napari_plugin executes it"}
CALL = re.compile(
    r"(?:^    |`)(?:\w+=\S+ )*((?:emformer-hub|accelerate launch|python finetune)\b[^`\n]*(?:\n {8}\[[^`\n]*)*)", re.M
)
"""A command in an indented block, with its continued lines, or in backticks."""


def title(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells(notebook: Path, kind: str) -> str:
    stored = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in stored if cell["cell_type"] == kind)


def words_of(document: Path) -> str:
    return cells(document, "markdown") if document.suffix == ".ipynb" else document.read_text()


def snippets(document: Path) -> list[str]:
    if document.suffix == ".ipynb":
        return [cells(document, "code")]
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.S)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub that holds the published models."""
    with HubServer(tmp_path_factory.mktemp("hub"), {"hf_owner": User("owner", ("emformer-hub",))}).running() as server:
        yield server


READER = """
import json, os, shutil, sys, traceback
place, documents = sys.argv[1], json.load(sys.stdin)
for title, snippets in documents.items():
    desk = shutil.copytree(os.path.join(place, "desk"), os.path.join(place, "read", title))
    os.chdir(desk)
    try:
        for snippet in snippets:
            exec(snippet, {})
        documents[title] = None
    except BaseException:
        documents[title] = traceback.format_exc()
print("read:", json.dumps(documents))
"""
"""Executes the Python of every document, each in a copy of the desk."""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> dict[str, str | None]:
    """What went wrong with each document, if anything. One reader, with a stack and two adapters of their own at hand,
    goes through all of them."""
    place = tmp_path_factory.mktemp("reader")
    (place / "desk").mkdir()
    tifffile.imwrite(place / "desk" / "stack.tif", neuropil((16, 24, 32))[:6])
    tifffile.imwrite(place / "desk" / "serial.tif", neuropil((24, 160, 160))[::4])
    for name in ("mine", "theirs"):
        model = add_adapter(EMformerModel.from_pretrained("emformer-small"), base="emformer-small", rank=4, alpha=8)
        model.save_pretrained(str(place / "desk" / "runs" / name), save_embedding_layers=False)
    settings = environment(hub, place / "home", "hf_owner", HF_MODULES_CACHE=str(place / "modules"))
    publish = [sys.executable, "-m", "emformer_hub.cli", "push", "emformer-small"]
    subprocess.run(publish, check=True, capture_output=True, env=settings)
    documents = {
        title(document): snippets(document)
        for document in DOCUMENTS
        if snippets(document) and document not in EXECUTED_ELSEWHERE
    }
    run = subprocess.run(
        [sys.executable, "-c", READER, str(place)],
        input=json.dumps(documents),
        check=False,
        capture_output=True,
        text=True,
        env=settings,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.rpartition("read:")[2])


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if snippets(path)], ids=title)
def test_python_in_documents_runs(document: Path, read: dict[str, str | None]) -> None:
    if document in EXECUTED_ELSEWHERE:
        pytest.skip(EXECUTED_ELSEWHERE[document])
    assert read[title(document)] is None, read[title(document)]


def flags(command: click.Command, words: list[str]) -> set[str]:
    """The flags a call may carry: the command's own, and those of the sub-command that it names."""
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    if isinstance(command, click.Group) and words:
        known |= flags(command.commands[words[0]], words[1:])
    return known


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_every_flag_in_documents_exists(document: Path) -> None:
    for call in CALL.findall(words_of(document)):
        words = shlex.split(re.sub(r"[\[\]|]", " ", call).partition(" #")[0].replace("...", ""))
        if words[0] == "emformer-hub":
            known = flags(main, [word for word in words[1:] if not word.startswith("-")])
        elif "finetune" in words:
            known, words = flags(finetune, []), words[words.index("finetune") :]
        else:
            continue
        assert {word for word in words if word.startswith("--")} <= known, call


def test_the_calls_in_documents_are_found() -> None:
    calls = [call for document in DOCUMENTS for call in CALL.findall(words_of(document))]
    assert sum(call.startswith("emformer-hub") for call in calls) > 10
    assert sum("finetune" in call for call in calls) > 10


@pytest.mark.parametrize("name", registry())
def test_a_page_names_only_files_that_travel_with_it(name: str) -> None:
    folder = registry()[name].folder
    linked = re.findall(r"\]\((?!https?:|#|\.\./)([^)#]+)\)", (folder / "README.md").read_text())
    assert linked and set(linked) <= set(contents(folder))


def anchors(document: Path) -> set[str]:
    """What headings can be linked to as: lower case, without punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ (.+)$", words_of(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "benchmarks" / "scale.md"], ids=title)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", words_of(document)):
        if not re.match(r"\w+:", target):
            file, _, anchor = target.partition("#")
            there = document.parent / file if file else document
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target

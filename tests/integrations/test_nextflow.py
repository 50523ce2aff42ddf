"""The module for Nextflow: its commands do what it declares, and go on where an attempt was cut off.

They are taken from `main.nf`, and run as Nextflow would. Where `nextflow` is on the `PATH`, it runs the workflow.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from workflows import ENVIRONMENT, check_made, cut_off

from emformer_hub import read_volume

FOLDER = Path(__file__).parents[2] / "integrations" / "nextflow"
MODULE = FOLDER / "modules" / "emformer" / "reconstruct"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Nextflow runs its commands in bash")


def block(label: str) -> str:
    """The commands of a section of the process, as they stand in the file."""
    found = re.search(
        rf'^    {label}:\n(?:    def [^\n]*\n)*    """\n(.*?)^    """', (MODULE / "main.nf").read_text(), re.M | re.S
    )
    assert found, label
    return textwrap.dedent(found[1])


def rendered(text: str, values: dict[str, str]) -> str:
    """A string of Groovy with its expressions replaced and its escapes undone; an unknown expression is an error."""
    return re.sub(r"\\(.)|\$\{(.*?)\}", lambda found: found[1] or values[found[2]], text)


def args(model: str) -> str:
    """What the configuration passes on to the command."""
    found = re.search(r'ext\.args\s*= \{ "(.*)" \}', (FOLDER / "nextflow.config").read_text())
    assert found
    return rendered(found[1], {"params.model": model, "meta.thickness": "1"})


def attempt(stack: Path, folder: Path, label: str = "script") -> Path:
    """Run the commands in a folder of their own, with the stack staged as Nextflow does; return the folder."""
    work = folder / "work"
    (work / "stack").mkdir(parents=True)
    (work / "stack" / stack.name).symlink_to(stack)
    values = {
        "stack": f"stack/{stack.name}".replace(" ", "\\ "),
        "unfinished": str(folder / "un finished"),
        "prefix": "cortex",
        "voxel_size": "32,8,8",
        "args": args("emformer-tiny"),
        "task.cpus": "1",
        "task.process": "EMFORMER_RECONSTRUCT",
    }
    (work / ".command.sh").write_text("#!/bin/bash -ue\n" + rendered(block(label), values))
    run = subprocess.run(
        ["bash", "-ue", ".command.sh"], cwd=work, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return work


def check_declared(work: Path) -> None:
    """Every declared output is there once, and the stack, which may have such a suffix, is none of them."""
    section = re.search(r"^    output:\n(.*?)\n\n", (MODULE / "main.nf").read_text(), re.M | re.S)
    assert section
    patterns = re.findall(r'path[( ]"(.*?)"', section[1])
    assert patterns == ["*.ome.zarr", "*.ome.zarr.json", "versions.yml"]
    assert [len(list(work.glob(pattern))) for pattern in patterns] == [1, 1, 1]
    versions = yaml.safe_load((work / "versions.yml").read_text())
    assert versions == {"EMFORMER_RECONSTRUCT": {"emformer-hub": version("emformer-hub")}}


def test_an_attempt_goes_on_and_makes_what_is_declared(stack: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "un finished"
    cut_off(stack, unfinished / "cortex.ome.zarr")
    work = attempt(stack, tmp_path)
    check_declared(work)
    check_made(work / "cortex.ome.zarr", stack, went_on=True)
    assert list(unfinished.iterdir()) == []


def test_the_stub_makes_what_is_declared(stack: Path, tmp_path: Path) -> None:
    check_declared(attempt(stack, tmp_path, "stub"))


def test_the_page_of_the_module_lists_its_channels() -> None:
    described = yaml.safe_load((MODULE / "meta.yml").read_text())
    text = (MODULE / "main.nf").read_text()
    assert list(described["output"]) == re.findall(r"emit: (\w+)", text)
    assert [list(one) for channel in described["input"] for one in channel] == [
        ["meta"],
        ["stack"],
        ["voxel_size"],
        ["unfinished"],
    ]
    assert re.findall(r"(?:val|path)[( ](\w+)", text.partition("output:")[0]) == [
        "meta",
        "stack",
        "voxel_size",
        "unfinished",
    ]


@pytest.mark.skipif(shutil.which("nextflow") is None, reason="needs nextflow on the PATH")
def test_the_engine_finishes_and_resumes(stack: Path, tmp_path: Path) -> None:
    (tmp_path / "stacks.csv").write_text(f'name,stack,voxel_size,thickness\ncortex,{stack},"32,8,8",1\n')
    cut_off(stack, tmp_path / "isotropic" / ".unfinished" / "cortex.ome.zarr")
    words = ["nextflow", "run", str(FOLDER), "--stacks", "stacks.csv", "--model", "emformer-tiny", "-ansi-log", "false"]
    for options, said in (([], "Submitted process"), (["-resume"], "Cached process")):
        run = subprocess.run(
            [*words, *options], cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"{said} > EMFORMER_RECONSTRUCT (cortex)" in run.stdout
    record = json.loads((tmp_path / "isotropic" / "cortex.ome.zarr.json").read_text())
    assert 0 < record["made_now"] < record["parts"]
    assert read_volume(tmp_path / "isotropic" / "cortex.ome.zarr").data.shape == (96, 48, 48)

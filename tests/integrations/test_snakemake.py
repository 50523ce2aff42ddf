"""The module for Snakemake, where `snakemake` is on the `PATH`: it finishes, and goes on where it was cut off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from workflows import ENVIRONMENT, check_made, cut_off

SNAKEFILE = Path(__file__).parents[2] / "integrations" / "snakemake" / "Snakefile"

pytestmark = pytest.mark.skipif(shutil.which("snakemake") is None, reason="needs snakemake on the PATH")


@pytest.mark.parametrize("interrupted", [False, True], ids=["begins", "goes on"])
def test_the_engine_makes_a_volume_of_each_stack(stack: Path, tmp_path: Path, interrupted: bool) -> None:
    (tmp_path / "stacks.csv").write_text(f'name,stack,voxel_size,thickness\ncortex,{stack},"32,8,8",1\n')
    (tmp_path / "config.yaml").write_text("stacks: stacks.csv\noutput: made\nmodel: emformer-tiny\n")
    output = tmp_path / "made" / "cortex.ome.zarr"
    if interrupted:
        cut_off(stack, output)
    words = ["snakemake", "--snakefile", str(SNAKEFILE), "--configfile", "config.yaml", "--cores", "2"]
    for said in ("2 of 2 steps", "Nothing to be done"):
        run = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, check=False, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        assert said in run.stdout + run.stderr
    check_made(output, stack, went_on=interrupted)

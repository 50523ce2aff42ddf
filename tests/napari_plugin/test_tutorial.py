"""The tutorial on napari runs, in a viewer of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "napari.ipynb"


def test_the_tutorial_finds_the_missing_section_repairs_it_and_shows_the_window(tmp_path: Path, home: Path) -> None:
    cells = json.loads(TUTORIAL.read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    settings = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=settings, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "1 of 20 sections are flagged" in run.stdout and "Repair: sections 9\n" in run.stdout
    record = json.loads((tmp_path / "isotropic.ome.zarr.json").read_text())
    assert [[number, why] for number, why, _ in record["repair"]] == [[9, "missing"]]
    for name in ("checked.png", "reconstructed.png"):
        with Image.open(tmp_path / name) as window:
            assert window.width >= 1240 and len(window.getcolors()) > 20

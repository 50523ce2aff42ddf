"""Executes tutorials and stores what they print and show: python docs/notebooks.py NAME..., or make notebooks."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "tutorials"
RUN_OF = "run_of"
"""Key of a notebook's metadata: which code its outputs are those of."""


def main(names: list[str]) -> None:
    """Execute the notebooks of these names, without their suffix."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for path in [FOLDER / f"{name}.ipynb" for name in names]:
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as desk:
            NotebookClient(
                notebook, resources={"metadata": {"path": desk}}, coalesce_streams=True, record_timing=False
            ).execute()
        for cell in notebook.cells:  # without progress bars and warnings
            if cell.cell_type == "code":
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        notebook.metadata = {
            "kernelspec": notebook.metadata.kernelspec,
            "language_info": {"name": "python"},
            RUN_OF: fingerprint(notebook),
        }
        nbformat.write(notebook, path)


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """What tells the code of a notebook from any other."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])

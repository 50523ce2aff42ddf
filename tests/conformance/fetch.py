"""Fetches the model tests of transformers, of the installed version, from its source package on the package index.

    python tests/conformance/fetch.py

They are in no wheel and are not ours to commit: they go to ``tests/conformance/_transformers/``, which git ignores.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).with_name("_transformers")
STUBS = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}
"""Classes that the tests inherit from, of files that the source package lacks."""


def main() -> None:
    version = importlib.metadata.version("transformers")
    stamp = FOLDER / version
    if stamp.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            folder,
            f"transformers=={version}",
        ]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as package:
            found = package.extractfile(f"{archive.name.removesuffix('.tar.gz')}/tests/test_modeling_common.py")
            assert found is not None
            content = found.read()
    for path, name in STUBS.items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).parent.joinpath("__init__.py").touch()
        (FOLDER / path).write_text(f"class {name}:\n    pass\n")
    (FOLDER / "__init__.py").touch()
    (FOLDER / "test_modeling_common.py").write_bytes(content)
    for other in FOLDER.glob("[0-9]*"):
        other.unlink()
    stamp.touch()


if __name__ == "__main__":
    main()

"""A napari viewer to drive, in a home folder of its own; without napari or a screen, these tests are skipped."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import finished

from emformer_hub.volumes.phantom import neuropil

MISSING = None
if find_spec("napari") is None or find_spec("pytestqt") is None:
    MISSING = "needs napari and pytest-qt: make test-napari"
elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    MISSING = "needs a screen, as xvfb-run gives one: make test-napari"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if MISSING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Home folder, in which panels suggest outputs."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setattr(Path, "home", lambda: folder)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))  # or its first import writes into the home
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return folder


@pytest.fixture(scope="session")
def sections() -> np.ndarray:
    """12 sections of 40 x 56 voxels, uint8, of 24 x 8 x 8 nm."""
    return neuropil((36, 40, 56))[::3].copy()


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    """A viewer that is not shown."""
    return make_napari_viewer()


@pytest.fixture
def layer(viewer: Any, sections: np.ndarray) -> Any:
    """The sections as a layer with a voxel size, 100 nm along z from the origin."""
    place = {"scale": (24, 8, 8), "units": ("nm",) * 3, "axis_labels": tuple("zyx"), "translate": (100, 0, 16)}
    return viewer.add_image(sections, name="stack", **place)


@pytest.fixture
def panel(viewer: Any, qtbot: Any) -> Callable[[str], Any]:
    """Opens a panel by its name in the menu, as a user does; it is ready when it is returned."""

    def opened(name: str) -> Any:
        _, made = viewer.window.add_plugin_dock_widget("emformer-hub", name)
        finished(made, qtbot)
        for field in ("model", "base"):
            if hasattr(made, field):
                getattr(made, field).field.value = "emformer-tiny"
        if hasattr(made, "ensemble"):
            made.ensemble.value = 1
        return made

    return opened

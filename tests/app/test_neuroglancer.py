"""Links for Neuroglancer carry the state that was meant."""

from __future__ import annotations

import json
from urllib.parse import unquote, urlsplit

from emformer_hub.app.neuroglancer import neuroglancer_link, neuroglancer_state
from emformer_hub.geometry import VoxelSize

IMAGES = {"input": "https://em.org/stack.ome.zarr", "uncertainty": "http://localhost:9000/sd of stack.zarr/"}


def test_images_lie_over_each_other_in_metres() -> None:
    state = neuroglancer_state(IMAGES, VoxelSize(8, 4, 5), centre_nm=(800, 400, 250), ranges={"uncertainty": (0, 12.5)})
    assert state["dimensions"] == {"z": [8e-9, "m"], "y": [4e-9, "m"], "x": [5e-9, "m"]}
    assert list(state["dimensions"]) == ["x", "y", "z"] and state["position"] == [50, 100, 100]
    first, second = state["layers"]
    assert first == {
        "type": "image",
        "name": "input",
        "source": "zarr://https://em.org/stack.ome.zarr/",
        "visible": True,
    }
    assert second["source"] == "zarr://http://localhost:9000/sd of stack.zarr/"
    assert second["shaderControls"] == {"normalized": {"range": [0, 12.5]}}


def test_a_link_carries_the_state() -> None:
    state = neuroglancer_state(IMAGES, VoxelSize(8, 8, 8), centre_nm=(0, 0, 0))
    link = urlsplit(neuroglancer_link(state, "https://viewer.org/"))
    assert (link.netloc, link.path) == ("viewer.org", "/")
    assert json.loads(unquote(link.fragment.removeprefix("!"))) == state

"""Links that overlay volumes in Neuroglancer, https://github.com/google/neuroglancer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from emformer_hub.geometry import VoxelSize

VIEWER = "https://neuroglancer-demo.appspot.com"


def neuroglancer_state(
    layers: Mapping[str, str],
    voxel_size: VoxelSize,
    *,
    centre_nm: Sequence[float],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """State of Neuroglancer that overlays OME-Zarr images in nm, with only the first of them visible at first.

    Args:
        layers: name and web address of each image.
        voxel_size: unit of positions, nm; the voxel size of the finest image.
        centre_nm: centre of the view, ``(z, y, x)``, nm.
        ranges: grey values to show as black and as white, by name; default: chosen by Neuroglancer.
    """
    ranges = ranges or {}
    z, y, x = centre_nm
    return {  # Neuroglancer shows its first axis from left to right, its second from top to bottom
        "dimensions": {axis: [length / 1e9, "m"] for axis, length in zip("xyz", voxel_size.zyx[::-1], strict=True)},
        "position": [x / voxel_size.x, y / voxel_size.y, z / voxel_size.z],
        "layers": [
            {
                "type": "image",
                "name": name,
                "source": f"zarr://{address.rstrip('/')}/",
                "visible": number == 0,
                **({"shaderControls": {"normalized": {"range": list(ranges[name])}}} if name in ranges else {}),
            }
            for number, (name, address) in enumerate(layers.items())
        ],
        "layout": "4panel",
    }


def neuroglancer_link(state: Mapping[str, Any], viewer: str = VIEWER) -> str:
    """Address that opens a state; the browser must reach the images, and their server must allow it (CORS)."""
    return f"{viewer.rstrip('/')}/#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"

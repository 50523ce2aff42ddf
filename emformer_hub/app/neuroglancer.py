"""Links that show volumes over each other in Neuroglancer, https://github.com/google/neuroglancer."""

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
    """What Neuroglancer shows: OME-Zarr images in nm, one over the other, the first of them seen at first.

    Args:
        layers: name and web address of each image.
        voxel_size: the unit of positions, nm; that of the finest image.
        centre_nm: ``(z, y, x)``, where the view begins, nm.
        ranges: by name, the grey values that are shown as black and as white; default: what Neuroglancer finds.
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
    """The address that opens a state; whoever follows it must reach the images, which the server must allow (CORS)."""
    return f"{viewer.rstrip('/')}/#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"

"""Neuroglancer on this machine: volumes of any format that is read, over each other, in the browser (extra ``view``).

The package of Neuroglancer serves the viewer itself, and reads volumes as they are looked at. Formats that Neuroglancer
reads with their coarser levels are served as files instead, so that a teravoxel shows as quickly as a small volume.
Everything is served on loopback, under addresses that cannot be guessed, and nothing but the volumes that were given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.app.neuroglancer import neuroglancer_state
from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import StoredArray, Volume
from emformer_hub.volumes.n5_precomputed import PRECOMPUTED

HOST = "127.0.0.1"


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown, for as long as it is kept.

    Attributes:
        address: of the page.
        viewer: the viewer of the package of Neuroglancer, whose ``state`` holds layers, voxel size and place.
    """

    address: str
    viewer: Any

    def close(self) -> None:
        """End the server."""
        import neuroglancer

        neuroglancer.stop()


def show(
    volumes: Mapping[str, tuple[Path | str, Volume]],
    ranges: Mapping[str, tuple[float, float]],
    voxel_size: VoxelSize,
    centre_nm: tuple[float, float, float],
    port: int = 0,
) -> Shown:
    """Serve volumes, and a page that shows them over each other where they lie, the first of them visible.

    Args:
        volumes: path and volume by the name of its layer; each states its voxel size.
        ranges: grey values to show as black and as white, by name.
        voxel_size: unit of positions, nm.
        centre_nm: centre of the view, ``(z, y, x)``, nm.
        port: of the page; 0 takes one that is free.

    Raises:
        InputError: the port is in use, or neuroglancer is not installed.
    """
    neuroglancer = import_extra("neuroglancer", "view", "the viewer is neuroglancer")
    neuroglancer.set_server_bind_address(HOST, port)
    try:
        viewer = neuroglancer.Viewer()
    except OSError as error:
        raise InputError(f"port {port} cannot be used ({error.strerror}); choose another one with --port.") from error
    sources = {}
    for name, (path, volume) in volumes.items():
        scheme = _read_as_files(path)
        sources[name] = _read_here(volume) if scheme is None else f"{scheme}://{_served(Path(path))}/"
    state = neuroglancer_state(dict.fromkeys(volumes, ""), voxel_size, centre_nm=centre_nm, ranges=ranges)
    layers = {layer["name"]: {key: layer[key] for key in layer if key != "source"} for layer in state.pop("layers")}
    viewer.set_state(state)
    with viewer.txn() as shown:
        for name, source in sources.items():
            shown.layers[name] = neuroglancer.ImageLayer({**layers[name], "type": "image"}, source=source)
            shown.layers[name].visible = layers[name]["visible"]
    return Shown(viewer.get_viewer_url(), viewer)


def _read_as_files(path: Path | str) -> str | None:
    """How Neuroglancer reads a folder with its coarser levels: ``zarr`` or ``precomputed``; ``None`` for all others."""
    folder = Path(path)
    if (folder / PRECOMPUTED).is_file():
        return "precomputed"
    described: dict[str, Any] = {}
    for name in ("zarr.json", ".zattrs"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            attributes = content.get("attributes", content)
            described = described or attributes.get("ome", attributes)
    images = described.get("multiscales", [])
    return "zarr" if len(images) == 1 and len(images[0].get("axes", [])) == 3 else None


def _served(folder: Path) -> str:
    """Address at which the server of the viewer serves the files in a folder, in ranges too, to other pages as well."""
    from neuroglancer import server
    from neuroglancer.random_token import make_random_token
    from neuroglancer.static_file_server import CorsStaticFileHandler

    token = make_random_token()
    files = {"path": str(folder.absolute())}
    server.global_server.app.add_handlers(".*", [(f"/{token}/(.*)", CorsStaticFileHandler, files)])
    return f"{server.get_server_url()}/{token}"


def _read_here(volume: Volume) -> Any:
    """A source of voxels that are read as they are looked at, where the volume lies."""
    import neuroglancer

    size, first = volume.voxel_size, volume.translation_nm or (0.0, 0.0, 0.0)
    assert size is not None
    axes = neuroglancer.CoordinateSpace(names=["z", "y", "x"], units="nm", scales=size.zyx)
    # a voxel of Neuroglancer begins at a whole number, half a voxel before its centre
    corner = [at / side - 0.5 for at, side in zip(first, size.zyx, strict=True)]
    matrix = np.hstack([np.eye(3), np.array(corner)[:, None]])
    return neuroglancer.LayerDataSource(
        url=neuroglancer.LocalVolume(_for_webgl(volume.data), dimensions=axes, volume_type="image"),
        transform=neuroglancer.CoordinateSpaceTransform(output_dimensions=axes, matrix=matrix),
    )


def _for_webgl(data: np.ndarray | StoredArray) -> np.ndarray | StoredArray:
    """Voxels in a data type that browsers show: float32 for float16."""
    if data.dtype != np.float16:
        return data
    chunks = data.chunks if isinstance(data, StoredArray) else data.shape
    return StoredArray(data.shape, np.dtype(np.float32), chunks, lambda box: np.asarray(data[box], np.float32))

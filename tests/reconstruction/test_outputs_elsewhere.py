"""Results of a part of a stack, read by the libraries of those who use them: voxels, voxel size and origin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sketch import SKETCH

from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct_file
from emformer_hub.volumes import write_volume
from emformer_hub.volumes.phantom import neuropil

tensorstore = pytest.importorskip("tensorstore", reason="N5 and precomputed are the extra [remote]")
wkw = pytest.importorskip("wkw", reason="WEBKNOSSOS is the extra [wkw]")
zarr = pytest.importorskip("zarr")

SIZE = VoxelSize(24, 8, 8)
FIRST_NM = (132.0, 44.0, 84.0)  # centre of the first voxel of the stack
REGION = (slice(3, 9), slice(5, 33), slice(6, 40))
EXPECTED_NM = (132 + 3 * 24 - 8.0, 44 + 5 * 8.0, 84 + 6 * 8.0)  # planes begin where the slab of section 3 does


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_volume(folder / "stack.tif", neuropil((36, 40, 44))[::3].copy(), SIZE, translation_nm=FIRST_NM)
    settings = {"voxel_size": SIZE, "factor": 3.0, "model": SKETCH, "ensemble": 1, "region": REGION}
    for suffix in ("zarr", "n5", "precomputed", "wkw"):
        sure = folder / f"sure.{suffix}"
        reconstruct_file(folder / "stack.tif", folder / f"out.{suffix}", uncertainty=sure, **settings)
    return folder


def opened(path: Path) -> tuple[np.ndarray, list[float], list[float]]:
    """Voxels ``(z, y, x)``, voxel size and centre of the first voxel in nm, by nothing of this package."""
    kind = path.suffix[1:]
    if kind == "zarr":
        group = zarr.open_group(path, mode="r")
        scale, translation = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        return group["0"][:], scale["scale"], translation["translation"]
    if kind == "n5":
        transform = json.loads((path / "s0/attributes.json").read_text())["transform"]
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/s0/"}}
        metadata = ("dimensions", "blockSize", "dataType", "compression")
        stated = json.loads((path / "s0/attributes.json").read_text())
        spec["metadata"] = {name: stated[name] for name in metadata}
        array = tensorstore.open({**spec, "open": True, "assume_metadata": True}).result().read().result().T
        return array, transform["scale"], transform["translate"]
    if kind == "precomputed":
        spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{path}/"}}
        array = tensorstore.open({**spec, "open": True}).result()[..., 0].T
        size = json.loads((path / "info").read_text())["scales"][0]["resolution"][::-1]
        return array.read().result(), size, [(n + 0.5) * by for n, by in zip(array.domain.origin, size, strict=True)]
    described = json.loads((path / "datasource-properties.json").read_text())
    (layer,), size = described["dataLayers"], described["scale"]["factor"]
    box = layer["boundingBox"]
    with wkw.Dataset.open(str(path / layer["mags"][0]["path"])) as dataset:
        voxels = dataset.read(box["topLeft"], [box[side] for side in ("width", "height", "depth")])[0].T
    return voxels, size[::-1], [(n + 0.5) * by for n, by in zip(box["topLeft"], size, strict=True)][::-1]


@pytest.mark.parametrize("suffix", ["n5", "precomputed", "wkw"])
@pytest.mark.parametrize("name", ["out", "sure"])
def test_a_part_of_a_stack_is_where_it_belongs_in_every_format(run: Path, name: str, suffix: str) -> None:
    voxels, size, first = opened(run / f"{name}.{suffix}")
    expected, expected_size, expected_first = opened(run / f"{name}.zarr")
    np.testing.assert_array_equal(voxels, expected)
    assert voxels.dtype == expected.dtype and size == expected_size == [8, 8, 8]
    np.testing.assert_allclose(first, EXPECTED_NM, atol=1e-9)
    np.testing.assert_allclose(expected_first, EXPECTED_NM, atol=1e-9)

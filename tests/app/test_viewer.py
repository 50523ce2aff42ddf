"""Neuroglancer on this machine: a real server, asked as a browser asks it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import open_volume, write_volume

pytest.importorskip("neuroglancer", reason="the viewer is the extra [view]")
pytest.importorskip("tensorstore", reason="precomputed is the extra [remote]")

STACK, RESULT = VoxelSize(24, 8, 8), VoxelSize(8, 8, 8)
PLACE = (132.0, 44.0, 84.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    stack = np.random.default_rng(0).integers(0, 200, (12, 40, 44), np.uint8)
    planes, place = stack.repeat(3, axis=0), (124.0, 44.0, 84.0)
    write_volume(folder / "stack.tif", stack, STACK, translation_nm=PLACE)
    write_volume(folder / "result.ome.zarr", planes, RESULT, translation_nm=place)
    write_volume(folder / "sure.precomputed", planes.astype(np.float32), RESULT, translation_nm=place)
    write_volume(folder / "half.h5", planes.astype(np.float16), RESULT, translation_nm=place)
    (folder / "secret.txt").write_text("not to be seen")
    return folder


def request(address: str, **headers: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
        return answer.read(), answer.headers


def refused(address: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        request(address)
    return error.value.code


@pytest.fixture(scope="module")
def shown(folder: Path) -> Iterator[Any]:
    from emformer_hub.app.viewer import show

    names = ("stack.tif", "result.ome.zarr", "sure.precomputed", "half.h5")
    volumes = {name: (folder / name, open_volume(folder / name)) for name in names}
    shown = show(volumes, {"stack.tif": (3, 190)}, RESULT, (264, 200, 256))
    yield shown
    shown.close()


def test_layers_lie_where_their_files_say(shown: Any) -> None:
    state = shown.viewer.state.to_json()
    assert state["dimensions"] == {axis: [8e-9, "m"] for axis in "xyz"} and state["position"] == [32, 25, 33]
    stack, result, sure, half = state["layers"]
    assert [layer["name"] for layer in state["layers"]] == [
        "stack.tif", "result.ome.zarr", "sure.precomputed", "half.h5",
    ]  # fmt: skip
    assert stack["shaderControls"] == {"normalized": {"range": [3, 190]}}
    assert stack.get("visible", True) and not any(one["visible"] for one in (result, sure, half))
    transform = stack["source"][0]["transform"]
    assert transform["outputDimensions"] == {"z": [24e-9, "m"], "y": [8e-9, "m"], "x": [8e-9, "m"]}
    corner = np.array(transform["matrix"])[:, 3] * STACK.zyx  # of the first voxel, where Neuroglancer counts from
    np.testing.assert_allclose(corner, np.array(PLACE) - np.array(STACK.zyx) / 2)
    host = urlsplit(shown.address).netloc
    assert host.startswith("127.0.0.1:")
    assert result["source"][0]["url"].startswith(f"zarr://http://{host}/")
    assert sure["source"][0]["url"].startswith(f"precomputed://http://{host}/")
    assert half["source"][0]["url"].startswith("python://volume/")


def test_the_page_and_its_program_are_served(shown: Any) -> None:
    page, _ = request(shown.address)
    assert b"neuroglancer" in page
    script = page.decode().partition('src="')[2].partition('"')[0]
    assert len(request(shown.address + script)[0]) > 1000


def test_voxels_that_are_read_as_they_are_looked_at(shown: Any, folder: Path) -> None:
    base = f"http://{urlsplit(shown.address).netloc}/neuroglancer"
    for layer, name in ((0, "stack.tif"), (3, "half.h5")):
        token = shown.viewer.state.to_json()["layers"][layer]["source"][0]["url"].removeprefix("python://volume/")
        info = json.loads(request(f"{base}/info/{token}")[0])
        voxels = open_volume(folder / name).data[:]
        dtype = "float32" if voxels.dtype == np.float16 else voxels.dtype.name
        assert info["dataType"] == dtype and info["volumeType"] == "image" and info["shape"] == list(voxels.shape)
        packed, _ = request(f"{base}/{info['encoding']}/{token}/1,1,1/2,5,7/6,15,27")
        found = np.load(io.BytesIO(zlib.decompress(packed)))
        np.testing.assert_array_equal(found, voxels[2:6, 5:15, 7:27])


def test_files_are_served_in_ranges_and_to_other_pages(shown: Any, folder: Path) -> None:
    for layer, file in ((1, "zarr.json"), (2, "info")):
        state = shown.viewer.state.to_json()["layers"][layer]
        address = state["source"][0]["url"].partition("://")[2]
        content, headers = request(address + file)
        assert content == (folder / state["name"] / file).read_bytes()
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert request(address + file, Range="bytes=2-5")[0] == content[2:6]
        for other in ("../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "none"):
            assert refused(address + other) in (403, 404)
    host = urlsplit(shown.address).netloc
    assert refused(f"http://{host}/secret.txt") == refused(f"http://{host}/") == 404


def test_the_command_prints_the_address_and_ends_when_told(folder: Path) -> None:
    command = [sys.executable, "-m", "emformer_hub.cli", "view", "stack.tif", "result.ome.zarr", "--no-browser"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            assert b"neuroglancer" in request(address)[0]
            port = str(urlsplit(address).port)
            taken = subprocess.run([*command, "--port", port], cwd=folder, capture_output=True, text=True, check=False,
                                   env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
            assert taken.returncode == 2 and f"port {port} cannot be used" in taken.stderr
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()  # or a failure above waits for it forever


def test_images_without_a_voxel_size_and_contradictions_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6), np.uint8))
    result = CliRunner().invoke(main, ["view", str(tmp_path / "a.npy")])
    assert result.exit_code == 2 and "give --voxel-size" in result.output
    result = CliRunner().invoke(main, ["view", str(tmp_path / "a.npy"), "--served-at", "http://a.org", "--no-browser"])
    assert result.exit_code == 2 and "leave out" in result.output

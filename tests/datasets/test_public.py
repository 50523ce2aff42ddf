"""Public volumes: the records, and reading a part of one from a server on loopback."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from emformer_hub.datasets.public import FILES, PublicVolume, fetch, public_volumes
from emformer_hub.errors import InputError
from emformer_hub.volumes.boxes import parse_region
from emformer_hub.volumes.phantom import neuropil

tensorstore = pytest.importorskip("tensorstore", reason="parts of volumes need the extra [remote]")

WANTED = [(5, 21), (3, 30), (7, 8)]
"""First and last voxels along z, y, x of a part, from where the store begins."""


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "forbidden" in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    """40 planes of 32 x 48 voxels, uint8, no two axes alike."""
    return neuropil((40, 32, 48), seed=2)


@pytest.fixture(scope="module")
def server(data: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One volume in each format."""
    folder = tmp_path_factory.mktemp("public")
    volume = {"type": "image", "data_type": "uint8", "num_channels": 1}
    scale = {"resolution": [8, 8, 30], "size": [48, 32, 40], "voxel_offset": [100, 200, 300], "encoding": "raw"}
    specs = {
        "precomputed": {
            "driver": "neuroglancer_precomputed",
            "multiscale_metadata": volume,
            "scale_metadata": {**scale, "chunk_size": [16, 16, 16]},
        },
        "n5": {"driver": "n5", "metadata": {"dimensions": [48, 32, 40], "blockSize": [16] * 3, "dataType": "uint8"}},
        "zarr": {"driver": "zarr", "metadata": {"shape": [40, 32, 48], "chunks": [16] * 3, "dtype": "|u1"}},
    }
    specs["n5"]["metadata"]["compression"] = {"type": "gzip"}
    for name, spec in specs.items():
        kvstore = {"driver": "file", "path": str(folder / name)}
        store = tensorstore.open({**spec, "kvstore": kvstore}, create=True).result()
        voxels = data if name == "zarr" else data.T
        store.write(voxels[..., None] if name == "precomputed" else voxels).result()
    tifffile.imwrite(folder / "tiff", data)
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def record(kind: str, url: str) -> PublicVolume:
    known = public_volumes()["hemibrain"]
    return replace(known, format=kind, url=f"{url}/{kind}", voxel_size=(30, 8, 8), dataset=None)


@pytest.mark.parametrize("kind", ["precomputed", "n5", "zarr", "tiff"])
def test_a_part_is_read_in_the_order_z_y_x(server: str, data: np.ndarray, kind: str) -> None:
    first = (300, 200, 100) if kind == "precomputed" else (0, 0, 0)  # where the store begins
    region = tuple(slice(a + start, a + stop) for a, (start, stop) in zip(first, WANTED, strict=True))
    found = fetch(record(kind, server), region)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, data[5:21, 3:30, 7:8])
    np.testing.assert_array_equal(fetch(record(kind, server)), data)


@pytest.mark.parametrize("kind", ["precomputed", "tiff"])
def test_a_region_outside_says_what_there_is(server: str, kind: str) -> None:
    there = r"300:340,200:232,100:148" if kind == "precomputed" else r"0:40,0:32,0:48"
    with pytest.raises(InputError, match=rf"region 330:350,0:9,0:9 is not all there: .* is {there} \(z, y, x\)"):
        fetch(record(kind, server), parse_region("330:350,0:9,0:9"))


def test_more_than_fits_asks_for_a_region(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emformer_hub.datasets.public.MAX_VOXELS", 1000)
    with pytest.raises(InputError, match=r"Give --roi Z0:Z1,Y0:Y1,X0:X1"):
        fetch(record("zarr", server))


@pytest.mark.parametrize("kind", ["precomputed", "n5", "zarr", "tiff"])
@pytest.mark.parametrize("path", ["gone", "forbidden"])
def test_what_cannot_be_reached_is_named_with_where_to_get_it(server: str, kind: str, path: str) -> None:
    volume = record(kind, f"{server}/{path}")
    with pytest.raises(InputError, match=rf"cannot be read from {volume.url}: .*get it from {volume.page}"):
        fetch(volume)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"cannot be read from http://127\.0\.0\.1:9/tiff"):
        fetch(record("tiff", "http://127.0.0.1:9"))


@pytest.mark.parametrize("text", ["", "1:2", "1:2,3:4,5", "4:2,0:1,0:1", "a:b,0:1,0:1", "0:4:2,0:1,0:1"])
def test_a_region_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not Z0:Z1,Y0:Y1,X0:X1"):
        parse_region(text)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "emformer_hub.cli", *words]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def test_the_list_says_what_where_licence_and_voxel_size() -> None:
    listed = command("dataset", "list").stdout
    for volume in public_volumes().values():
        assert volume.name in listed and volume.page in listed
    assert json.loads(command("dataset", "list", "--json").stdout)[0].keys() == PublicVolume.__annotations__.keys()


def test_offline_says_where_to_get_it_by_hand(tmp_path: Path) -> None:
    run = command("--offline", "dataset", "fetch", "cremi-a", str(tmp_path / "out.tif"))
    assert run.returncode == 2
    assert "offline" in run.stderr and "https://cremi.org/data" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_volume_names_those_that_are_known(tmp_path: Path) -> None:
    run = command("dataset", "fetch", "hemi", str(tmp_path / "out.tif"))
    assert run.returncode == 2 and "hemibrain" in run.stderr


@pytest.mark.parametrize("volume", public_volumes().values(), ids=public_volumes())
def test_every_record_is_whole(volume: PublicVolume) -> None:
    assert volume.url.startswith(("https://", "gs://", "s3://"))
    assert volume.page.startswith("https://") and volume.source and volume.citation and volume.specimen
    assert (volume.dataset is not None) == (volume.format == "hdf5")
    assert volume.format not in FILES or volume.url.startswith("https://")

"""Volumes elsewhere: a bucket, a web server and a Hub on loopback hold what local folders hold."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction.from_file import reconstruct_file
from emformer_hub.volumes import check_output, open_volume, read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.volumes.remote import absolute, is_url

tensorstore = pytest.importorskip("tensorstore", reason="volumes elsewhere need the extra [remote]")
SIZE = VoxelSize(40, 4, 5)
WHERE = (20.0, 100.0, 50.0)
DTYPES = ("uint8", "uint16", "float32")
FORMATS = ("0.4.zarr", "0.5.zarr", "n5", "precomputed")


def voxels(dtype: str) -> np.ndarray:
    """12 sections of 36 x 44, no two axes alike."""
    return (neuropil((16, 36, 44))[:12].astype(np.float64) * (200 if dtype == "uint16" else 1)).astype(dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each format with each dtype, as ``uint8.n5``."""
    folder = tmp_path_factory.mktemp("volumes")
    for dtype in DTYPES:
        data = voxels(dtype)
        for version in ("0.4", "0.5"):
            path = folder / f"{dtype}.{version}.zarr"
            write_volume(path, data, SIZE, translation_nm=WHERE, ome_zarr=version)
        made: dict[str, Any] = {"kvstore": f"file://{folder}/{dtype}.n5/s0/", "driver": "n5", "create": True}
        made["metadata"] = {"dimensions": data.shape[::-1], "blockSize": [16] * 3, "dataType": dtype}
        tensorstore.open(made).result().T[...] = data
        attributes = folder / f"{dtype}.n5" / "s0" / "attributes.json"
        axes = {"axes": ["z", "y", "x"], "scale": SIZE.zyx, "translate": WHERE, "units": ["nm"] * 3}
        attributes.write_text(json.dumps({**json.loads(attributes.read_text()), "transform": axes}))
        (folder / f"{dtype}.n5" / "attributes.json").write_text(json.dumps({"n5": "2.0.0"}))
        scale: dict[str, Any] = {"size": data.shape[::-1], "resolution": SIZE.zyx[::-1]}
        scale |= {"encoding": "raw", "chunk_size": [16] * 3, "voxel_offset": [10, 25, 0]}
        made = {
            "kvstore": f"file://{folder}/{dtype}.precomputed/",
            "driver": "neuroglancer_precomputed",
            "create": True,
        }
        made["multiscale_metadata"] = {"type": "image", "data_type": dtype, "num_channels": 1}
        tensorstore.open({**made, "scale_metadata": scale}).result()[..., 0].T[...] = data
    return folder


@pytest.fixture(scope="module")
def bucket(folder: Path, object_store: str) -> str:
    """All of the folder in a bucket of S3 on loopback."""
    put(folder, "lab/")
    return "s3://volumes/lab"


def put(folder: Path, prefix: str) -> None:
    """All files of a folder into the bucket."""
    for path in folder.rglob("*"):
        if path.is_file():
            httpx.put(address(f"{prefix}{path.relative_to(folder)}"), content=path.read_bytes()).raise_for_status()


def address(key: str) -> str:
    return f"{os.environ['AWS_ENDPOINT_URL']}/volumes/{key}"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, in parts if asked for, also under the paths of a Hub."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/datasets/lab/stacks/resolve/main/", "/"))

    def do_GET(self) -> None:
        path, part = Path(self.translate_path(self.path)), self.headers.get("Range")
        if "forbidden" in self.path:
            return self.send_error(403)
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        first, last = 0, len(content) - 1
        if part:
            begin, _, end = part.removeprefix("bytes=").partition("-")
            first, last = (int(begin), min(int(end or last), last)) if begin else (len(content) - int(end), last)
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def check(place: Path | str, dtype: str) -> None:
    volume = open_volume(place)
    np.testing.assert_array_equal(volume.data[:], voxels(dtype))
    np.testing.assert_array_equal(volume.data[3:9:2, 5, ..., 7:], voxels(dtype)[3:9:2, 5, ..., 7:])
    assert (
        volume.data.dtype == dtype
        and volume.voxel_size == SIZE
        and volume.translation_nm == WHERE_OF.get(str(place).rsplit(".", 1)[-1], WHERE)
    )
    assert volume.source == {"n5": "transform", "precomputed": "info"}.get(str(place).rsplit(".", 1)[-1], "multiscales")


WHERE_OF = {"precomputed": (20.0, 102.0, 52.5)}
"""Its offset is a whole number of voxels, and counts to the side of the first."""


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_format_is_read_from_everywhere(folder: Path, bucket: str, server: str, dtype: str, kind: str) -> None:
    for place in (folder, bucket, server):
        check(folder / f"{dtype}.{kind}" if place == folder else f"{place}/{dtype}.{kind}", dtype)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_from_the_hub(server: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    check(f"hf://datasets/lab/stacks/uint8.{kind}", "uint8")


def test_voxel_sizes_of_n5_are_read_never_guessed(folder: Path, tmp_path: Path) -> None:
    spec = {"driver": "n5", "kvstore": f"file://{tmp_path}/a.n5/", "create": True}
    spec["metadata"] = {"dimensions": [16, 8, 4], "blockSize": [8] * 3, "dataType": "uint8"}
    tensorstore.open(spec).result()[...] = 1
    file, size = tmp_path / "a.n5" / "attributes.json", VoxelSize(30, 4, 5)
    written = json.loads(file.read_text())
    for more, stated, source in (
        ({}, None, ""),
        ({"resolution": [5, 4, 30]}, None, ""),
        ({"resolution": [5, 4, 30], "units": ["nm"] * 3}, size, "resolution"),
        ({"pixelResolution": {"dimensions": [0.005, 0.004, 0.03], "unit": "um"}}, size, "pixelResolution"),
    ):
        file.write_text(json.dumps({**written, **more}))
        volume = open_volume(tmp_path / "a.n5")
        assert (volume.data.shape, volume.voxel_size, volume.source) == ((4, 8, 16), stated, source)


def test_what_is_opened_may_be_pickled(bucket: str, folder: Path) -> None:
    for place in (f"{bucket}/uint8.0.5.zarr", f"{bucket}/uint8.n5", folder / "uint8.precomputed"):
        again = pickle.loads(pickle.dumps(open_volume(place).data))
        np.testing.assert_array_equal(again[2:4], voxels("uint8")[2:4])


def test_a_chunk_that_is_missing_is_an_error(bucket: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "uint8.0.4.zarr", tmp_path / "lost.zarr")
    (tmp_path / "lost.zarr" / "0" / "0" / "0" / "0").unlink()
    put(tmp_path, "")
    with pytest.raises(InputError, match=r"volumes/lost\.zarr/0/0/0/0 is missing; it held voxels z 0:12"):
        open_volume("s3://volumes/lost.zarr").data[:]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "{bucket}/nothing.zarr",
            r"nothing\.zarr is not an OME-Zarr, .* or does not exist",
        ),
        ("{bucket}/stack.tif", r"Other formats are read from this machine only: download the file first"),
        ("s3://another-bucket/x.zarr", r"s3://another-bucket/x\.zarr|is not an OME-Zarr"),
        ("{server}/forbidden/x.zarr", r"forbidden/x\.zarr.* cannot be read: .*403"),
        ("http://127.0.0.1:9/x.zarr", r"http://127\.0\.0\.1:9/x\.zarr.* cannot be read.*is there a network"),
        ("hf://lab/stacks", r"expected hf://datasets/ORG/NAME/PATH"),
        ("ftp://host/x.zarr", r"ftp://; expected a path, or https://, http://, s3://, gs://, hf://"),
    ],
    ids=["no key", "single file", "no bucket", "forbidden", "no server", "no path", "no such scheme"],
)
def test_what_cannot_be_had_is_said(bucket: str, server: str, url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_volume(url.format(bucket=bucket, server=server))


def test_outputs_are_paths_or_in_buckets() -> None:
    with pytest.raises(InputError, match=r"output hf://.*/out\.zarr cannot be written to; expected s3://, gs://, or a"):
        check_output("hf://datasets/a/b/out.zarr", overwrite=False)
    assert is_url("s3://a/b") and not is_url("a/b") and not is_url("x.h5:/em/raw")
    assert absolute("s3://a/b") == "s3://a/b" and absolute("x.h5:/raw").endswith("/x.h5:/raw")


def test_a_stack_in_a_bucket_is_reconstructed_as_one_here(bucket: str, folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "factor": 2.5,
        "model": "emformer-tiny",
        "ensemble": 1,
        "device": "cpu",
    }
    reconstruct_file(folder / "uint8.0.5.zarr", tmp_path / "here.zarr", voxel_size=SIZE, **settings)
    words = ["--factor", "2.5", "--model", "emformer-tiny", "--ensemble", "1", "--device", "cpu"]
    done = CliRunner().invoke(main, ["reconstruct", f"{bucket}/uint8.n5", str(tmp_path / "there.zarr"), *words])
    assert done.exit_code == 0, done.output
    made = [read_volume(tmp_path / name) for name in ("here.zarr", "there.zarr")]
    np.testing.assert_array_equal(made[0].data, made[1].data)
    assert made[0].translation_nm == made[1].translation_nm
    facts = json.loads((tmp_path / "there.zarr.json").read_text())
    assert facts["input"] == f"{bucket}/uint8.n5" and facts["input_modified"] is None
    wrong = CliRunner().invoke(main, ["reconstruct", f"{bucket}/uint8.n6", str(tmp_path / "no.zarr"), *words])
    assert wrong.exit_code == 2 and "uint8.n6 is not an OME-Zarr" in wrong.output


def test_a_plain_zarr_array_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "plain.zarr", voxels("uint16"))
    put(tmp_path, "")
    volume = open_volume("s3://volumes/plain.zarr")
    np.testing.assert_array_equal(volume.data[:], voxels("uint16"))
    assert volume.voxel_size is None


def test_a_chunk_that_is_missing_beside_tissue_is_named_elsewhere_too(server: str, folder: Path) -> None:
    data = np.random.default_rng(0).integers(1, 255, (8, 24, 24), np.uint8)
    for name, version in (("holes2.zarr", 2), ("holes3.zarr", 3)):
        array = zarr.create_array(folder / name, data=data, chunks=(4, 6, 6), zarr_format=version, overwrite=True)
        (folder / name / array.metadata.encode_chunk_key((1, 2, 3))).unlink()
        opened = open_volume(f"{server}/{name}").data
        np.testing.assert_array_equal(opened[:4, 3:9], data[:4, 3:9])
        with pytest.raises(InputError, match=rf"{name}/.*1.2.3 is missing beside chunks that hold tissue"):
            opened[5, 10:14, 20:23]

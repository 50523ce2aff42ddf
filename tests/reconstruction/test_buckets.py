"""Outputs in a bucket: the voxels of local ones, killed and resumed, and never taken for finished before they are."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from interruption import Interrupted, interrupted_after
from sketch import SKETCH

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import parts, reconstruct_file
from emformer_hub.reconstruction.cluster import on_dask
from emformer_hub.reconstruction.job import Job
from emformer_hub.reconstruction.settings import ModelOnce
from emformer_hub.transform import Grids
from emformer_hub.volumes import check_output, ome_zarr, open_volume, read_volume, write_volume
from emformer_hub.volumes.boxes import parse_region
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.volumes.remote import Remote, Unfinished

pytest.importorskip("tensorstore", reason="buckets are the extra [remote]")
SIZE = VoxelSize(24, 8, 8)
SETTINGS: dict[str, Any] = {"voxel_size": SIZE, "factor": 3.0, "model": ModelOnce(SKETCH), "ensemble": 1}
SETTINGS |= {"tile_zyx": (22, 48, 48), "device": "cpu", "precision": "float32"}
pytestmark = pytest.mark.usefixtures("object_store")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a part, and there are levels."""
    monkeypatch.setattr(parts, "PART_VOXELS", 1)
    monkeypatch.setattr(ome_zarr, "SMALLEST_LEVEL", 30)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sections of 32 x 36 voxels: four blocks, each a part."""
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_volume(path, neuropil((72, 32, 36))[::3].copy(), SIZE, translation_nm=(100, 0, 0))
    return path


@pytest.fixture(scope="module")
def local(stack: Path) -> Path:
    """Outputs on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ome_zarr, "SMALLEST_LEVEL", 30)
        reconstruct_file(stack, stack.parent / "out.zarr", uncertainty=stack.parent / "sure.zarr", **SETTINGS)
    return stack.parent


def check(url: str, local: Path) -> None:
    """The same image, with its place and all levels."""
    made, expected = open_volume(url), read_volume(local)
    np.testing.assert_array_equal(made.data[:], expected.data)
    assert (made.voxel_size, made.translation_nm) == (expected.voxel_size, expected.translation_nm)
    there, here = zarr.open_group(Remote(url).store(), mode="r"), zarr.open_group(local, mode="r")
    assert there.attrs.asdict() == here.attrs.asdict()
    levels = sorted(here.array_keys())
    assert len(levels) > 1
    for level in levels:
        np.testing.assert_array_equal(there[level][:], here[level][:])


def check_unfinished(url: str) -> None:
    """Some voxels are there, and nothing that anybody would take for an image or an array."""
    names = Remote(url).files()
    assert names and not {name.rsplit("/", 1)[-1] for name in names} & {"zarr.json", ".zarray", ".zgroup", ".zattrs"}
    for inside in (url, f"{url}/0"):
        with pytest.raises(InputError, match="is not an OME-Zarr"):
            open_volume(inside)


def everything() -> set[str]:
    """First two parts of all names in the bucket."""
    return {"/".join(name.split("/")[:2]) for name in Remote("s3://volumes").files()}


KILLED = """
import os, signal, sys
from emformer_hub import devices
from emformer_hub.reconstruction import parts
from emformer_hub.volumes import ome_zarr
from emformer_hub.cli import main
devices.faster_in_bfloat16 = lambda device: False
parts.PART_VOXELS, ome_zarr.SMALLEST_LEVEL = 1, 30
calls, write = iter(range(10**6)), ome_zarr.OMEZarrWriter.write
def killed(writer, box, voxels):
    if next(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    write(writer, box, voxels)
ome_zarr.OMEZarrWriter.write = killed
main(sys.argv[1:])
"""
WORDS = ["--model", SKETCH, "--ensemble", "1", "--tile", "22,48,48", "--device", "cpu"]


def test_a_run_that_was_killed_goes_on_from_anywhere(stack: Path, local: Path) -> None:
    output, sure = "s3://volumes/killed/out.zarr", "s3://volumes/killed/sure.zarr"
    words = ["reconstruct", str(stack), output, "--uncertainty", sure, *WORDS]
    process = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    check_unfinished(output)
    check_unfinished(sure)
    runner = CliRunner()
    again = runner.invoke(main, words)
    assert again.exit_code == 2 and "did not finish or is still at work (2 of " in again.output, again.output
    assert "add --resume to continue it" in again.output
    resumed = runner.invoke(main, [*words, "--resume", "--precision", "float32"])
    assert resumed.exit_code == 0 and "72x32x36 uint8" in resumed.output, resumed.output
    check(output, local / "out.zarr")
    check(sure, local / "sure.zarr")
    record = json.loads(Remote(f"{output}.json").read_text())
    assert record["parts"] - record["made_now"] == 2 and record["output"] == output
    assert Grids.from_record(output) == Grids.from_record(local / "out.zarr")
    assert {name for name in everything() if name.startswith("killed/")} == {
        "killed/out.zarr",
        "killed/out.zarr.json",
        "killed/sure.zarr",
    }
    complete = runner.invoke(main, [*words, "--resume"])
    assert complete.exit_code == 2 and "is complete; there is nothing to resume" in complete.output
    exists = runner.invoke(main, words)
    assert exists.exit_code == 2 and f"output {output} already exists" in exists.output


def test_workers_of_dask_write_into_a_bucket(stack: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="Dask is the extra [cluster]")
    output, changed = "s3://volumes/dask/out.zarr", {"ome_zarr": "0.4"}
    reconstruct_file(stack, output, scheduler=on_dask("threads", 2), **SETTINGS | changed)
    reconstruct_file(stack, tmp_path / "out.zarr", **SETTINGS | changed)
    check(output, tmp_path / "out.zarr")


def test_another_run_takes_over_and_the_first_one_ends(stack: Path, local: Path) -> None:
    output = "s3://volumes/two/out.zarr"

    def overtaken(job: Job, numbers: list[int], device: str | None) -> Any:
        for made, part in enumerate(parts.here(job, numbers, device)):
            if made == 2:
                with pytest.raises(Interrupted):
                    reconstruct_file(stack, output, resume=True, scheduler=interrupted_after(1), **SETTINGS)
            yield part

    with pytest.raises(InputError, match=r"out\.zarr was taken up by another run, which goes on with it"):
        reconstruct_file(stack, output, scheduler=overtaken, **SETTINGS)
    check_unfinished(output)  # the first one has removed nothing
    record = json.loads(reconstruct_file(stack, output, resume=True, **SETTINGS).read_text())
    assert record["parts"] - record["made_now"] == 3
    check(output, local / "out.zarr")


def test_a_run_that_made_no_part_leaves_nothing(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(writer: object, box: object, voxels: object) -> None:
        raise OSError("the bucket is full")

    with monkeypatch.context() as patch:
        patch.setattr(ome_zarr.OMEZarrWriter, "write", refuse)
        with pytest.raises(InputError, match=r"could not be written: the bucket is full\. .*continue with --resume"):
            reconstruct_file(stack, "s3://volumes/none/out.zarr", **SETTINGS)
    assert not any(name.startswith("none/") for name in everything())


def test_an_output_is_replaced_only_when_that_is_asked_for(stack: Path, tmp_path: Path) -> None:
    output, part = "s3://volumes/again/out.zarr", SETTINGS | {"region": parse_region("0:8,0:32,0:36")}
    reconstruct_file(stack, tmp_path / "out.zarr", **part)
    with pytest.raises(Interrupted):
        reconstruct_file(stack, output, scheduler=interrupted_after(1), **part | {"factor": 5.0})
    with pytest.raises(InputError, match=r"is another one: factor was 5\.0, is 3\.0"):
        reconstruct_file(stack, output, resume=True, **part)
    for _ in range(2):  # an unfinished run, then a complete output
        reconstruct_file(stack, output, overwrite=True, **part)
        check(output, tmp_path / "out.zarr")


def test_padding_around_the_tissue_returns_in_a_bucket_too(tmp_path: Path) -> None:
    padded = np.zeros((16, 64, 64), np.uint8)
    padded[:, 10:50, 12:52] = np.maximum(neuropil((48, 40, 40))[::3], 1)
    write_volume(tmp_path / "in.tif", padded, SIZE)
    for output in (tmp_path / "out.zarr", "s3://volumes/padded/out.zarr"):
        reconstruct_file(tmp_path / "in.tif", output, **SETTINGS)
    check("s3://volumes/padded/out.zarr", tmp_path / "out.zarr")
    assert {name for name in everything() if "padded/" in name} == {"padded/out.zarr", "padded/out.zarr.json"}


def test_a_volume_is_written_into_a_bucket_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, url = neuropil((16, 40, 40)), "s3://volumes/written/out.ome.zarr"
    write_volume(url, voxels, SIZE, translation_nm=(1, 2, 3))
    made = read_volume(url)
    np.testing.assert_array_equal(made.data, voxels)
    assert (made.voxel_size, made.translation_nm) == (SIZE, (1, 2, 3))
    with pytest.raises(InputError, match=r"output s3://volumes/written/out\.ome\.zarr already exists"):
        write_volume(url, voxels, SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "complete", lambda unfinished: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_volume("s3://volumes/stopped/out.zarr", voxels, SIZE)
    assert not any(name.startswith("stopped/") for name in everything())


class Storage(http.server.BaseHTTPRequestHandler):
    """The few requests of Google's JSON interface that reading and writing take."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(content)

    def asked(self) -> tuple[str, dict[str, list[str]]]:
        """Name of an object, and the parameters of a request."""
        path, _, parameters = self.path.partition("?")
        return urllib.parse.unquote(path.partition("/o/")[2]), urllib.parse.parse_qs(parameters)

    def do_GET(self) -> None:
        name, parameters = self.asked()
        if name:
            found = self.objects.get(name)
            return self.answer(found or b"", 404 if found is None else 200)
        begin, end = (parameters.get(key, [""])[0] for key in ("startOffset", "endOffset"))
        names = [one for one in sorted(self.objects) if begin <= one and (not end or one < end)]
        return self.answer(json.dumps({"items": [{"name": one, "size": "1"} for one in names]}).encode())

    def do_POST(self) -> None:
        name = self.asked()[1]["name"][0]
        self.objects[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(json.dumps({"name": name, "generation": "1"}).encode())

    def do_DELETE(self) -> None:
        self.answer(b"", 204 if self.objects.pop(self.asked()[0], None) is not None else 404)

    def log_message(self, *args: object) -> None: ...


def test_a_bucket_of_google_is_written_like_one_of_amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, url = neuropil((16, 40, 40)), "gs://volumes/lab/out.zarr"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        for overwrite in (False, True):
            write_volume(url, voxels, SIZE, overwrite=overwrite)
            np.testing.assert_array_equal(read_volume(url).data, voxels)
        server.shutdown()
    assert {name.rsplit("/", 1)[-1] for name in Storage.objects} == {"0", "zarr.json"}


def test_what_keeps_a_bucket_from_being_written_is_said(
    stack: Path, object_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx.put(f"{object_store}/volumes/mine.zarr/notes.txt", content=b"mine").raise_for_status()
    for url, message in (
        ("s3://no-such-bucket/out.zarr", r"no-such-bucket/out\.zarr cannot be read: .*NoSuchBucket.*AWS_\* variables"),
        ("s3://volumes/out.tif", r"suffix '\.tif'; expected \.ome\.zarr or \.zarr, the format that is written into"),
        ("s3://volumes/mine.zarr", r"exists and is not such a volume: it holds notes\.txt; it is never replaced"),
        ("https://example.org/out.zarr", r"cannot be written to; expected s3://, gs://, or a path on this machine"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(url, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorstore", None)
        with pytest.raises(InputError, match=r"pip install 'emformer-hub\[remote\]'"):
            check_output("gs://bucket/out.zarr", overwrite=False)
    written = Remote("s3://no-such-bucket/out.zarr")
    with pytest.raises(OSError, match=r"cannot be written: .*NoSuchBucket.*may you write there \(AWS_\* variables"):
        written.write_text("")
    same = CliRunner().invoke(main, ["reconstruct", "s3://volumes/a.zarr", "s3://volumes/a.zarr"])
    assert same.exit_code == 2 and "an output may not replace an input" in same.output
    beside = CliRunner().invoke(main, ["reconstruct", str(stack), "s3://volumes/b.zarr", "--report"])
    assert beside.exit_code == 2 and "give OUTPUT as a path on this machine" in beside.output


class Forbidden(http.server.BaseHTTPRequestHandler):
    """A bucket of somebody else."""

    def do_GET(self) -> None:
        content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


def test_a_bucket_that_wants_credentials_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbidden) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(InputError, match=r"private/out\.zarr\S* cannot be read: .*Denied.*AWS_\* variables"):
            check_output("s3://private/out.zarr", overwrite=False)
        server.shutdown()


def test_commands_that_write_here_say_so() -> None:
    for words in (
        ["inspect", "a.tif", "--picture", "s3://volumes/a.png"],
        ["transform", "a.swc", "gs://volumes/b.swc"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2 and "is an address; expected a path on this machine" in result.output


def test_a_forecast_of_a_bucket_writes_nothing(stack: Path) -> None:
    result = CliRunner().invoke(main, ["reconstruct", str(stack), "s3://volumes/dry/out.zarr", "--dry-run", *WORDS])
    assert result.exit_code == 0 and "bucket  about" in result.output and "disk" not in result.output, result.output
    assert not any(name.startswith("dry/") for name in everything())

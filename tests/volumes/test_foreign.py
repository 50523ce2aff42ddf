"""Files of other programs: read through a library, or named with the way out; never taken for a broken TIFF."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import open_volume, read_volume, write_volume
from emformer_hub.volumes.foreign import FOREIGN
from emformer_hub.volumes.formats import page
from emformer_hub.volumes.remote import absolute, is_url, plain_address

from .conftest import make_volume

STACK = make_volume("uint8", (5, 8, 11))


@pytest.mark.parametrize("suffix", sorted({suffix for one in FOREIGN for suffix in one.suffixes}))
@pytest.mark.parametrize("content", [b"\0" * 64, b"", b"x" * 5000], ids=["zeros", "empty", "text"])
def test_what_is_not_read_is_named_by_its_suffix(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    path.write_bytes(content)
    expected = next(one for one in FOREIGN if suffix in one.suffixes)
    with pytest.raises(InputError) as told:
        read_volume(path)
    assert expected.name in str(told.value) and expected.way_out in str(told.value)
    assert "cannot be read as TIFF" not in str(told.value)


@pytest.mark.parametrize("one", [one for one in FOREIGN if one.magic], ids=lambda one: one.name)
def test_what_is_not_read_is_named_by_its_content(tmp_path: Path, one: Any) -> None:
    path = tmp_path / "stack"
    path.write_bytes(one.magic[0] + bytes(200))
    with pytest.raises(InputError) as told:
        read_volume(path)
    assert one.name in str(told.value) and one.way_out in str(told.value)


@pytest.mark.parametrize(
    "name", ["a.nrrd", "a.nii", "a.nii.gz", "a.npy", "a.mrc", "a.h5", "a.mrc.gz", "a.mha", "a.dm4"]
)
@pytest.mark.parametrize("content", [b"\0" * 64, b"", b"\0" * 5000], ids=["short", "empty", "long"])
def test_a_broken_file_is_named_by_its_format(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    kind = {
        "nrrd": "NRRD",
        "nii": "NIfTI",
        "npy": "NumPy",
        "mrc": "MRC",
        "h5": "unknown format",
        "mha": "MetaImage",
        "dm4": "Digital",
    }[name.split(".")[1]]
    kind = "gzip" if name == "a.mrc.gz" else kind
    with pytest.raises(InputError, match=kind) as told:
        read_volume(tmp_path / name)
    assert "cannot be read as TIFF" not in str(told.value) and "Success" not in str(told.value)


def test_anything_else_says_how_it_begins_and_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "stack").write_bytes(b"ABCDEFGHIJ")
    with pytest.raises(InputError, match=r"an unknown format: it begins with 41 42 .* Expected .* Fiji"):
        read_volume(tmp_path / "stack")


@pytest.mark.parametrize("mark", ["knossos.conf", "mag1"])
def test_folders_of_others_are_named(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).write_text("{}")
    with pytest.raises(InputError, match=r"is a KNOSSOS .*convert"):
        read_volume(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(InputError, match=r"pipe\.tif is a pipe or a device; expected a file"):
        open_volume(tmp_path / "pipe.tif")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero here")
def test_a_device_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="is a pipe or a device"):
        open_volume("/dev/zero")


# --- read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float64"])
def test_npy_is_read_where_it_lies(tmp_path: Path, dtype: str, order: Any) -> None:
    data = np.array(STACK.astype(dtype), order=order)
    np.save(tmp_path / "a.npy", data)
    read = read_volume(tmp_path / "a.npy")
    assert read.data.dtype == data.dtype.newbyteorder("=") and read.voxel_size is None
    np.testing.assert_array_equal(read.data, STACK)
    np.save(tmp_path / "b.npy", STACK.T)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.npy", axes="xyz").data, STACK)


def test_npy_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy cannot be read as a NumPy array"):
        read_volume(tmp_path / "a.npy")


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"spacings": [4, 5, 40], "units": ["nm"] * 3}, VoxelSize(40, 5, 4)),
        ({"spacings": [0.004, 0.005, 0.04], "units": ["um"] * 3}, VoxelSize(40, 5, 4)),
        ({"space directions": np.diag([4.0, 5, 40]), "space": "LPS", "space units": ["nm"] * 3}, VoxelSize(40, 5, 4)),
        ({"spacings": [4, 5, 40]}, None),
        ({}, None),
    ],
    ids=str,
)
def test_nrrd_is_read(tmp_path: Path, header: dict[str, Any], size: VoxelSize | None, encoding: str) -> None:
    nrrd = pytest.importorskip("nrrd")
    nrrd.write(str(tmp_path / "a.nrrd"), STACK, {**header, "encoding": encoding}, index_order="C")
    read = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read.data, STACK)
    assert read.voxel_size == size


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_labels_of_nrrd_are_honoured(tmp_path: Path, order: tuple[int, int, int]) -> None:
    nrrd = pytest.importorskip("nrrd")
    names = ["zyx"[place] for place in order]
    header = {"labels": names[::-1], "spacings": [{"z": 40, "y": 5, "x": 4}[name] for name in names[::-1]]}
    header["units"] = ["nm"] * 3
    nrrd.write(str(tmp_path / "a.nrrd"), STACK.transpose(order), header, index_order="C")
    read = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read.data, STACK)
    assert read.voxel_size == VoxelSize(40, 5, 4)


def test_kinds_of_nrrd_are_honoured(tmp_path: Path) -> None:
    nrrd = pytest.importorskip("nrrd")
    several = np.stack([STACK, 255 - STACK], -1)
    kinds = ["vector", "domain", "domain", "domain"]
    nrrd.write(str(tmp_path / "a.nrrd"), several, {"kinds": kinds}, index_order="C")
    with pytest.raises(InputError, match="--channel N"):
        read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd", channel=1).data, 255 - STACK)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("unit", "per_nm", "size"),
    [("micron", 1e-3, VoxelSize(40, 5, 4)), ("mm", 1e-6, VoxelSize(40, 5, 4)), ("unknown", 1, None)],
)
def test_nifti_is_read(tmp_path: Path, name: str, unit: str, per_nm: float, size: VoxelSize | None) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(STACK.T, np.diag([4 * per_nm, 5 * per_nm, 40 * per_nm, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / name)
    read = read_volume(tmp_path / name)
    np.testing.assert_array_equal(read.data, STACK)
    assert read.data.dtype == np.uint8 and (read.voxel_size is None) == (size is None)
    if size is not None and read.voxel_size is not None:
        np.testing.assert_allclose(read.voxel_size.zyx, size.zyx, rtol=1e-6)


def test_times_of_nifti_are_chosen(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.stack([STACK.T, 255 - STACK.T], -1), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match="--time N"):
        read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", time=1).data, 255 - STACK)


def test_a_truncated_nifti_is_named(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(STACK.T, np.eye(4)), tmp_path / "a.nii.gz")
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "b.nii").write_bytes(content[:-100])
    (tmp_path / "c.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-20])
    for name in ("b.nii", "c.nii.gz"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as NIfTI"):
            read_volume(tmp_path / name)


# --- addresses as viewers print them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "plain"),
    [
        ("precomputed://gs://bucket/image", "gs://bucket/image"),
        ("n5://s3://bucket/image", "s3://bucket/image"),
        ("zarr://https://host/a.zarr", "https://host/a.zarr"),
        ("zarr3://https://host/a.zarr/", "https://host/a.zarr/"),
        ("https://host/a.zarr/|zarr3:", "https://host/a.zarr/"),
        ("gs://bucket/image|neuroglancer-precomputed:", "gs://bucket/image"),
        ("hf://datasets/lab/stacks/a.zarr", "hf://datasets/lab/stacks/a.zarr"),
        ("a|b.tif", "a|b.tif"),
        ("stack.h5:/raw", "stack.h5:/raw"),
    ],
)
def test_addresses_lose_what_viewers_put_before_them(printed: str, plain: str) -> None:
    assert plain_address(printed) == plain
    assert is_url(printed) == ("://" in plain)


@pytest.mark.parametrize("prefix", ["zarr://", "zarr3://", "file://", "zarr://file://"])
def test_a_path_may_have_such_a_prefix(tmp_path: Path, prefix: str) -> None:
    write_volume(tmp_path / "a.zarr", STACK, VoxelSize(40, 5, 4))
    np.testing.assert_array_equal(read_volume(f"{prefix}{tmp_path}/a.zarr").data, STACK)
    assert absolute(f"{prefix}{tmp_path}/a.zarr") == str(tmp_path / "a.zarr")


def test_other_kinds_of_addresses_are_refused() -> None:
    with pytest.raises(InputError, match="address of the kind ftp://"):
        is_url("ftp://host/a.zarr")


def test_the_page_on_formats_is_that_of_the_code() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
    assert document.read_text() == page(), "run: python -m emformer_hub.volumes.formats > docs/formats.md"

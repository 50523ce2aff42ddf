"""A table of generated files, axes x dtype x format x metadata x damage: each is read right or refused.

What is right is known of each file; whatever else comes out is a fault. Sizes that come out must be those that were put
in; none may come out where none was.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.volumes import holes, open_volume, read_volume

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
mrcfile = pytest.importorskip("mrcfile")

SHAPE = (8, 12, 10)
LENGTHS = {"z": 40.0, "y": 5.0, "x": 4.0}
SIZE = (40.0, 5.0, 4.0)
DTYPES = ("uint8", "uint16", "int16", "float32")
ORDERS = ("zyx", "xyz", "yxz", "zyxc", "tzyx")


def stack_of(dtype: str) -> np.ndarray:
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (20 * z + 3 * y + x + np.random.default_rng(1).integers(0, 3, SHAPE)).astype(dtype)


def arranged(axes: str, stack: np.ndarray) -> np.ndarray:
    turned = stack.transpose(["zyx".index(axis) for axis in axes if axis in "zyx"])
    return np.ascontiguousarray(np.expand_dims(turned, [at for at, axis in enumerate(axes) if axis not in "zyx"]))


def along(axes: str) -> list[float]:
    return [LENGTHS.get(axis, 1.0) for axis in axes]


@dataclass(frozen=True)
class Case:
    """A file to make.

    Attributes:
        name: of the case.
        write: makes the file at a path, from the stack and its axes.
        suffix: of the file.
        axes, dtype: of what is stored.
        states: whether the file states axes; lengths.
        damage: what is done to the file afterwards.
    """

    name: str
    write: Callable[[Path, np.ndarray, str], None]
    suffix: str
    axes: str
    dtype: str
    states: tuple[bool, bool]
    damage: str


def tiff(path: Path, data: np.ndarray, axes: str) -> None:
    tifffile.imwrite(path, data, metadata={"axes": axes.upper()}, photometric="minisblack")


def packed_tiff(path: Path, data: np.ndarray, axes: str) -> None:
    tifffile.imwrite(path, data, metadata={"axes": axes.upper()}, photometric="minisblack", compression="zlib")


def ome_tiff(path: Path, data: np.ndarray, axes: str) -> None:
    sizes = {f"PhysicalSize{axis.upper()}": length for axis, length in LENGTHS.items()}
    units = {f"PhysicalSize{axis.upper()}Unit": "nm" for axis in LENGTHS}
    metadata = {"axes": axes.upper(), **sizes, **units}
    tifffile.imwrite(path, data, ome=True, metadata=metadata, photometric="minisblack")


def hdf5(path: Path, data: np.ndarray, axes: str) -> None:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("raw", data=data, chunks=data.shape, compression="gzip", fletcher32=True)
        dataset.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in axes]})
        dataset.attrs["resolution"] = along(axes)


def plain_hdf5(path: Path, data: np.ndarray, axes: str) -> None:
    with h5py.File(path, "w") as file:
        file["raw"] = data


def zarr_3(path: Path, data: np.ndarray, axes: str) -> None:
    chunks = tuple(min(4, length) for length in data.shape)
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=chunks, dimension_names=list(axes))
    array[...] = data
    array.attrs.update(resolution=along(axes), units=["nm"] * data.ndim)


def zarr_2(path: Path, data: np.ndarray, axes: str) -> None:
    import numcodecs

    chunks = tuple(min(4, length) for length in data.shape)
    blosc = numcodecs.Blosc(cname="lz4")
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=chunks, zarr_format=2, compressors=blosc)
    array[...] = data
    array.attrs.update(_ARRAY_DIMENSIONS=list(axes), voxel_size=along(axes), units="nm")


def ome_zarr(path: Path, data: np.ndarray, axes: str) -> None:
    group = zarr.create_group(path)
    group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=data.shape)[...] = data
    named = [{"name": axis} | ({"unit": "nanometer"} if axis in LENGTHS else {}) for axis in axes]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": along(axes)}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": named, "datasets": [level]}]}


def mrc(path: Path, data: np.ndarray, axes: str) -> None:
    with mrcfile.new(path, np.squeeze(data).astype(np.int16)) as file:
        space = [axis for axis in axes if axis in LENGTHS]
        counts = dict(zip("zyx", SHAPE, strict=True))
        for axis in "xyz":
            file.header[f"m{axis}"] = counts[axis]
        file.header.cella = tuple(10 * counts[axis] * LENGTHS[axis] for axis in "xyz")
        file.header.maps, file.header.mapr, file.header.mapc = ("xyz".index(axis) + 1 for axis in space)


FORMATS: dict[str, tuple[Callable[[Path, np.ndarray, str], None], str, tuple[bool, bool]]] = {
    "tiff": (tiff, ".tif", (True, False)),
    "packed": (packed_tiff, ".tif", (True, False)),
    "ome": (ome_tiff, ".ome.tif", (True, True)),
    "hdf5": (hdf5, ".h5", (True, True)),
    "plain hdf5": (plain_hdf5, ".h5", (False, False)),
    "zarr 3": (zarr_3, ".zarr", (True, True)),
    "zarr 2": (zarr_2, ".zarr", (True, True)),
    "ome-zarr": (ome_zarr, ".zarr", (True, True)),
    "mrc": (mrc, ".mrc", (True, True)),
}
DAMAGE = ("none", "cut", "zeroed", "missing")


def cases() -> Iterator[Case]:
    for (name, (write, suffix, states)), axes, dtype in itertools.product(FORMATS.items(), ORDERS, DTYPES):
        if name == "ome" and not axes.endswith("yx"):
            continue  # OME-XML knows planes of y and x only
        if name == "mrc" and dtype != "int16":
            continue
        yield Case(f"{name} {axes} {dtype}", write, suffix, axes, dtype, states, "none")
    for (name, (write, suffix, states)), damage in itertools.product(FORMATS.items(), DAMAGE[1:]):
        if damage == "zeroed" and name in ("zarr 3", "ome-zarr"):
            continue  # Zstandard without a checksum decodes zeros as such
        for dtype in ("uint8", "float32"):
            yield Case(f"{name} {damage} {dtype}", write, suffix, "zyx", dtype, states, damage)


def spoil(path: Path, damage: str) -> bool:
    """Do something to a file, or to a chunk in the middle; whether there is such a thing to do."""
    if path.is_dir():
        chunks = [file for file in path.rglob("*") if file.is_file() and file.name[0] != "." and file.suffix != ".json"]
        file = sorted(chunks)[len(chunks) // 2]
    else:
        file = path
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
        return len(chunks) > 2 if path.is_dir() else True
    middle = len(content) * 3 // 5
    file.write_bytes(content[:middle] if damage == "cut" else content[:8] + bytes(len(content) - 8))
    return True


ALL = list(cases())


def test_the_table_is_long_enough() -> None:
    assert len(ALL) >= 200


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name.replace(" ", "-"))
def test_a_file_is_read_right_or_refused(tmp_path: Path, case: Case) -> None:
    stack = stack_of("int16" if case.write is mrc else case.dtype)
    path = tmp_path / f"a{case.suffix}"
    case.write(path, arranged(case.axes, stack), case.axes)
    states_axes, states_lengths = case.states
    if case.damage != "none":
        if not spoil(path, case.damage):
            pytest.skip("one chunk, which may be left out where it is all zeros")
        try:
            read = read_volume(path)
        except InputError as told:
            assert str(path) in str(told)
            return
        np.testing.assert_array_equal(read.data, stack)
        return
    if not states_axes and case.axes not in ("zyx", "zyxc", "tzyx"):
        read = read_volume(path, axes=case.axes)
    else:
        read = read_volume(path)
    assert read.data.dtype == stack.dtype
    np.testing.assert_array_equal(read.data, stack)
    assert (read.voxel_size.zyx if read.voxel_size else None) == (SIZE if states_lengths else None)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "stamp", [b"\x44\x44\0\0", b"\x11\x11\0\0", b"\x44\0\0\0", b"\x44\x20\x20\x20", b"\0\0\0\0", b"ABCD"]
)
@pytest.mark.parametrize("signature", [b"MAP ", b"\0\0\0\0"], ids=["MAP", "none"])
def test_the_byte_order_of_mrc_is_the_one_that_makes_sense(
    tmp_path: Path, order: str, stamp: bytes, signature: bytes
) -> None:
    stack = stack_of("int16")
    header = bytearray(1024)
    counts = tuple(reversed(SHAPE))
    struct.pack_into(f"{order}10i", header, 0, *counts, 1, 0, 0, 0, *counts)
    struct.pack_into(
        f"{order}6f", header, 40, *(10 * n * LENGTHS[a] for n, a in zip(counts, "xyz", strict=True)), 90, 90, 90
    )
    struct.pack_into(f"{order}3i", header, 64, 1, 2, 3)
    header[208:212], header[212:216] = signature, stamp
    (tmp_path / "a.rec").write_bytes(bytes(header) + stack.astype(f"{order}i2").tobytes())
    read = read_volume(tmp_path / "a.rec")
    np.testing.assert_array_equal(read.data, stack)
    assert read.voxel_size is not None and read.voxel_size.zyx == SIZE


def test_chunks_of_a_margin_may_be_missing_and_those_of_tissue_may_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = np.zeros((8, 24, 24), np.uint8)
    data[:, 6:, 6:] = 1 + stack_of("uint8")[:, :1, :1]
    array = zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(4, 6, 6))
    assert not (tmp_path / "a.zarr/c/0/0/0").exists()  # zarr leaves out what is all zeros
    np.testing.assert_array_equal(array[:], data)
    with pytest.raises(InputError, match=r"c/0/0/1 is missing beside chunks that hold tissue"):
        read_volume(tmp_path / "a.zarr")  # the margin ends where a chunk does, so that it may have been lost
    data[:, 6, :] = data[:, :, 6] = 0
    zarr.create_array(tmp_path / "b.zarr", data=data, chunks=(4, 6, 6))
    np.testing.assert_array_equal(read_volume(tmp_path / "b.zarr").data, data)
    assert "lacks 14 of 32 chunks" in caplog.text
    (tmp_path / "b.zarr/c/1/3/3").unlink()
    with pytest.raises(InputError, match=r"c/1/3/3 is missing .*voxels z 4:8, y 18:24, x 18:24"):
        read_volume(tmp_path / "b.zarr")


def test_an_array_without_any_chunk_is_named(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(8, 12, 10), dtype="uint8", chunks=(4, 4, 4))
    with pytest.raises(InputError, match="holds no chunk of its array"):
        read_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_of_a_large_array_are_looked_for_when_they_are_read(
    tmp_path: Path, version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "_MOST_COUNTED", 0)
    data = np.random.default_rng(0).integers(1, 255, (8, 24, 24), np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(4, 6, 6), zarr_format=version)
    (tmp_path / ("a.zarr/c/1/2/3" if version == 3 else "a.zarr/1.2.3")).unlink()
    opened = open_volume(tmp_path / "a.zarr").data
    np.testing.assert_array_equal(opened[:4], data[:4])
    for box in ((5, 13, 20), (slice(3, 6), slice(0, 24), slice(10, 20))):
        with pytest.raises(InputError, match=r"1.2.3 is missing beside .*z 4:8, y 12:18, x 18:24.*--nodata 0"):
            opened[box]
    assert (read_volume(tmp_path / "a.zarr", nodata=0).data[4:, 12:18, 18:] == 0).all()


@pytest.mark.parametrize("codec", ["Zstd", "Blosc", "LZ4", "GZip", "shards"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_of_which_a_part_was_never_written_is_refused(tmp_path: Path, codec: str, version: Any) -> None:
    numcodecs = pytest.importorskip("numcodecs")
    data = np.random.default_rng(0).integers(0, 255, (8, 64, 64), np.uint8)
    if codec == "shards":
        zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(4, 64, 64), shards=(8, 64, 64))
    elif version == 2:
        packed = getattr(numcodecs, codec)()
        zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(8, 64, 64), zarr_format=2, compressors=packed)
    elif codec == "LZ4":
        pytest.skip("Zarr 3 has no LZ4 of its own")
    else:
        packed = getattr(zarr.codecs, f"{codec.capitalize()}Codec")()
        zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(8, 64, 64), compressors=packed)
    chunk = tmp_path / ("a.zarr/0.0.0" if version == 2 and codec != "shards" else "a.zarr/c/0/0/0")
    content = chunk.read_bytes()
    np.testing.assert_array_equal(read_volume(tmp_path / "a.zarr").data, data)
    for spoiled in (bytes(len(content)), content[:9000] + bytes(8192) + content[17192:], b""):
        chunk.write_bytes(spoiled)
        if codec == "shards" and spoiled[:9] == content[:9]:
            continue  # within a shard, only what decoders notice is noticed
        with pytest.raises(InputError, match=r"cannot be read as Zarr"):
            read_volume(tmp_path / "a.zarr")

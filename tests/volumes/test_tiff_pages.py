"""Compressed TIFF stays on disk: what is decoded is what is read, in every layout, and memory does not grow with it."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.volumes import StoredArray, decoded, open_volume, read_volume, tiff_pages
from emformer_hub.volumes.boxes import boxes

from .conftest import make_volume

pytest.importorskip("imagecodecs")
SHAPE = (6, 20, 14)
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 3},
    "pages": {},
    "tiles": {"tile": (16, 16)},
    "big": {"bigtiff": True, "byteorder": ">"},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "bare": {"metadata": None},
}


@pytest.fixture(autouse=True)
def nothing_decoded_yet() -> None:
    decoded._kept.clear()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits", "lzma", "predictor", "none"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_layout_is_read_box_by_box(tmp_path: Path, layout: str, compression: str, dtype: str) -> None:
    data = make_volume(dtype)
    packed: dict[str, Any] = {"compression": compression} if compression not in ("none", "predictor") else {}
    if compression == "predictor":
        packed = {"compression": "zlib", "predictor": True}
    if LAYOUTS[layout].get("imagej") and packed:
        pytest.skip("ImageJ's own files are not compressed")
    tifffile.imwrite(tmp_path / "a.tif", data, **LAYOUTS[layout], **packed)
    opened = open_volume(tmp_path / "a.tif").data
    if packed:
        assert isinstance(opened, StoredArray)
    assert opened.dtype == data.dtype
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, data)
    for box in ((slice(1, 5, 2), slice(3, 19, 4), slice(13, 14)), (3, slice(0, 20), 5), (slice(2, 2), slice(0, 3), 1)):
        np.testing.assert_array_equal(opened[box], data[box])


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "jpegxl", "webp"])
def test_images_within_pages_are_decoded_as_tifffile_does(tmp_path: Path, compression: str) -> None:
    smooth = np.linspace(0, 250, 6 * 32 * 48).reshape(6, 32, 48).astype(np.uint8)
    try:
        tifffile.imwrite(tmp_path / "a.tif", smooth, compression=compression, tile=(16, 16))
    except (ValueError, RuntimeError, KeyError) as error:
        pytest.skip(f"tifffile does not write it: {error}")
    expected = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, expected)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif").data[1:4, 5:30:3, 7], expected[1:4, 5:30:3, 7])


@pytest.mark.parametrize("options", [{"photometric": "miniswhite"}, {"axes": "XYZ"}, {"channel": 1}], ids=str)
def test_grey_values_and_axes_are_as_without_compression(tmp_path: Path, options: dict[str, Any]) -> None:
    data = make_volume("uint8")
    stored, choice, written = data, {}, dict(options)
    if "axes" in options:
        stored, written = np.ascontiguousarray(data.transpose(2, 1, 0)), {"metadata": {"axes": "XYZ"}}
    if "channel" in options:
        stored, choice, written = np.stack([data, data[::-1]]), options, {"metadata": {"axes": "CZYX"}}
    for name, packed in (("a.tif", {}), ("b.tif", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / name, stored, **{"photometric": "minisblack"} | written | packed)
    plain, lazy = (read_volume(tmp_path / name, **choice).data for name in ("a.tif", "b.tif"))
    np.testing.assert_array_equal(lazy, plain)


def test_a_segment_that_was_never_written_is_zeros(tmp_path: Path) -> None:
    tiles = (None if number % 3 else np.full((16, 16), 9, np.uint8) for number in range(SHAPE[0] * 2))
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=SHAPE, dtype="uint8", compression="zlib", tile=(16, 16))
    expected = tifffile.imread(tmp_path / "a.tif")
    assert 0 < (expected == 0).mean() < 1
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif").data[:], expected)


bounds = st.none() | st.integers(-30, 30)
parts = [st.builds(slice, bounds, bounds, st.none() | st.integers(1, 7)) | st.integers(-n, n - 1) for n in SHAPE]


@given(index=st.tuples(*parts), tiled=st.booleans())
@settings(max_examples=60, deadline=None)
def test_slices_are_those_of_numpy(tmp_path_factory: pytest.TempPathFactory, index: Any, tiled: bool) -> None:
    data, path = make_volume("uint8"), tmp_path_factory.getbasetemp() / f"slices_{tiled}.tif"
    if not path.exists():
        tifffile.imwrite(path, data, compression="zlib", **({"tile": (16, 16)} if tiled else {"rowsperstrip": 7}))
    np.testing.assert_array_equal(open_volume(path).data[index], data[index])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    numbers: list[int] = []
    read = tiff_pages._Page.read

    def reading(self: Any, number: int) -> np.ndarray:
        numbers.append(number)
        return read(self, number)

    monkeypatch.setattr(tiff_pages._Page, "read", reading)
    return numbers


def test_only_what_is_asked_for_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 255, (8, 64, 64), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, compression="zlib", tile=(16, 16))
    segments = counted(monkeypatch)
    opened = open_volume(tmp_path / "a.tif").data
    assert segments == []
    assert opened[3:5, 20:30, 40:50].shape == (2, 10, 10)
    assert sorted(segments) == [6, 6, 7, 7]
    segments.clear()
    np.testing.assert_array_equal(opened[3:5, 21:31, 41:51], data[3:5, 21:31, 41:51])
    assert segments == []  # still there
    for z, y in itertools.product(range(0, 8, 4), range(0, 64, 16)):
        np.testing.assert_array_equal(opened[z : z + 4, y : y + 16], data[z : z + 4, y : y + 16])
    assert len(segments) == 8 * 16


def test_what_is_kept_is_bounded_and_of_this_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "BYTES", 5 * 64 * 64)
    for value in (1, 2):
        data = np.full((9, 64, 64), value, np.uint8)
        tifffile.imwrite(tmp_path / "a.tif", data, compression="zlib")
        opened = open_volume(tmp_path / "a.tif").data
        assert (opened[:, 3:5, 3:5] == value).all()
        assert sum(array.nbytes for array in decoded._kept.values()) <= decoded.BYTES


def test_memory_does_not_grow_with_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB that compress well, read in boxes as a reconstruction does."""
    monkeypatch.setattr(decoded, "BYTES", 2**22)
    data = np.zeros((64, 1024, 1024), np.uint8)
    data[:, ::7] = 99
    tifffile.imwrite(tmp_path / "a.tif", data, compression="zlib")
    expected = int(data.sum(dtype=np.int64))
    del data
    tracemalloc.start()
    opened = open_volume(tmp_path / "a.tif").data
    total = sum(int(opened[box].sum(dtype=np.int64)) for box in boxes(opened.shape, (8, 1024, 256)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == expected and peak < 24e6


@pytest.mark.parametrize("whole", [True, False])
def test_a_page_that_does_not_decode_is_named(tmp_path: Path, whole: bool) -> None:
    data = make_volume("uint16", (6, 64, 64))
    tifffile.imwrite(tmp_path / "a.tif", data, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offset = tif.pages[3].dataoffsets[0]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[offset : offset + 40] = bytes(40)
    (tmp_path / "a.tif").write_bytes(content)
    opened = open_volume(tmp_path / "a.tif").data
    np.testing.assert_array_equal(opened[:3], data[:3])
    with pytest.raises(InputError, match=r"a\.tif cannot be read as TIFF"):
        opened[:] if whole else opened[3, 1:3, 1:3]

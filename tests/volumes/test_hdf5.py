"""HDF5 as ilastik, Fiji, CREMI and h5py write it: which dataset, which voxel size, and what is said of other files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import open_volume, read_volume, write_volume

from .conftest import make_volume

h5py = pytest.importorskip("h5py")


def write(path: Path, *, attributes: dict[str, Any] | None = None, **datasets: np.ndarray) -> Path:
    """Datasets by name; ``__`` stands for ``/``. The attributes go to the first."""
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=data)
        file[next(iter(datasets)).replace("__", "/")].attrs.update(attributes or {})
    return path


# --- which dataset -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stack.h5", "stack.hdf5", "stack.hdf", "stack.tif", "stack"])
def test_the_only_volume_of_a_file_is_found_whatever_its_name(tmp_path: Path, volume: np.ndarray, name: str) -> None:
    read = read_volume(write(tmp_path / name, volumes__raw=volume, table=np.ones((4, 4)), scalar=np.float64(3)))
    np.testing.assert_array_equal(read.data, volume)
    assert (read.voxel_size, read.source, read.translation_nm) == (None, "", None)


@pytest.mark.parametrize("inside", ["/volumes/raw", "volumes/raw"])
@pytest.mark.parametrize("name", ["stack.h5", "stack.HDF5", "stack.other", "a:b.h5"])
def test_a_dataset_is_named_after_a_colon(tmp_path: Path, volume: np.ndarray, name: str, inside: str) -> None:
    write(tmp_path / name, volumes__raw=volume, volumes__labels=np.ones(volume.shape, np.uint64))
    np.testing.assert_array_equal(read_volume(f"{tmp_path / name}:{inside}").data, volume)
    np.testing.assert_array_equal(open_volume(f"{tmp_path / name}:{inside}").data[1:3, ::2], volume[1:3, ::2])


def test_several_volumes_are_named_and_none_is_chosen(tmp_path: Path, volume: np.ndarray) -> None:
    path = write(tmp_path / "cremi.h5", volumes__raw=volume, volumes__labels=np.ones(volume.shape, np.uint64))
    with pytest.raises(
        InputError,
        match=r"holds 2 3-D datasets: /volumes/labels \(6, 20, 14\) uint64, /volumes/raw \(6, 20, 14\) uint16\. "
        r"Name one, as in .*cremi\.h5:NAME",
    ):
        read_volume(path)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", **{f"t{n:02}": np.ones((4, 4, 4), np.uint8) for n in range(40)})
    with pytest.raises(InputError, match=r"holds 40 3-D datasets: .*/t11 \S+ \S+ \S+ uint8 and 28 more\. Name one"):
        read_volume(tmp_path / "a.h5")


@pytest.mark.parametrize("inside", ["/volumes/rw", "volumes", ""])
def test_a_name_that_is_no_dataset_gets_the_choice(tmp_path: Path, volume: np.ndarray, inside: str) -> None:
    path = write(tmp_path / "a.h5", volumes__raw=volume)
    with pytest.raises(InputError, match=rf"a\.h5 has no dataset '{inside}'; name one .*: /volumes/raw"):
        read_volume(f"{path}:{inside}")


def test_a_file_without_a_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.h5 holds no 3-D dataset"):
        read_volume(write(tmp_path / "a.h5", image=np.ones((20, 14), np.uint8)))


@pytest.mark.parametrize("shape", [(20, 14), (2, 6, 20, 14)])
def test_a_named_dataset_must_be_one_stack(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.h5", raw=np.ones(shape, np.uint8))
    with pytest.raises(InputError, match=r"a\.h5:/raw has .*shape .*; expected one grey-value stack"):
        read_volume(f"{path}:raw")


@pytest.mark.parametrize("dtype", ["uint64", "bool", "complex64"])
def test_other_voxels_are_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(InputError, match=rf"a\.h5:/raw holds {dtype} voxels"):
        read_volume(write(tmp_path / "a.h5", raw=np.ones((6, 20, 14), dtype)))


# --- voxel size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("attributes", "source"),
    [
        ({"element_size_um": [0.04, 0.004886, 0.004]}, "element_size_um"),
        ({"resolution": [40, 4.886, 4]}, "resolution"),
        ({"resolution": [40, 4.886, 4], "element_size_um": [0.04, 0.004886, 0.004]}, "element_size_um"),
    ],
)
def test_the_voxel_size_is_that_of_the_attributes(
    tmp_path: Path, volume: np.ndarray, attributes: dict[str, list[float]], source: str, dtype: str
) -> None:
    typed = {name: np.array(lengths, dtype) for name, lengths in attributes.items()}
    read = read_volume(write(tmp_path / "a.h5", attributes=typed, raw=volume))
    assert (read.voxel_size, read.source) == (VoxelSize(40, 4.886, 4), source)


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": [4, 4]},
        {"resolution": 4},
        {"resolution": "40 4 4"},
        {"resolution": [0, 4, 4]},
        {"element_size_um": [np.nan, 1, 1]},
        {"resolution": [40, 4, 4], "element_size_um": [0.05, 0.004, 0.004]},
    ],
    ids=str,
)
def test_anything_else_states_none(tmp_path: Path, volume: np.ndarray, attributes: dict[str, Any]) -> None:
    read = read_volume(write(tmp_path / "a.h5", attributes=attributes, raw=volume))
    assert (read.voxel_size, read.source) == (None, "")


@pytest.mark.parametrize(
    ("attributes", "translation"),
    [
        ({"resolution": [40, 4, 4], "offset": [-18, 0.5, 7]}, (-18, 0.5, 7)),
        ({"offset": [-18, 0.5, 7]}, None),  # in voxels, or in what unit?
        ({"resolution": [40, 4, 4], "offset": [1, 2]}, None),
        ({"resolution": [40, 4, 4], "offset": [np.nan, 0, 0]}, None),
    ],
    ids=str,
)
def test_the_place_is_that_of_cremi(
    tmp_path: Path, volume: np.ndarray, attributes: dict[str, Any], translation: tuple[float, ...] | None
) -> None:
    assert read_volume(write(tmp_path / "a.h5", attributes=attributes, raw=volume)).translation_nm == translation


def test_the_output_is_what_cremi_fiji_and_ilastik_read(tmp_path: Path, volume: np.ndarray) -> None:
    write_volume(tmp_path / "a.h5", volume, VoxelSize(40, 4.886, 4), translation_nm=(1, 2, 3))
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["volumes/raw"]
        np.testing.assert_array_equal(dataset, volume)
        assert (dataset.chunks, dataset.compression) == (volume.shape, None)
        assert dataset.attrs["resolution"].tolist() == [40, 4.886, 4]
        assert dataset.attrs["element_size_um"].tolist() == [0.04, 0.004886, 0.004]
        assert dataset.attrs["offset"].tolist() == [1, 2, 3]


# --- other files -------------------------------------------------------------------------------------------------


def test_a_user_block_does_not_hide_it(tmp_path: Path, volume: np.ndarray) -> None:
    with h5py.File(tmp_path / "matlab.mat", "w", userblock_size=1024) as file:
        file["raw"] = volume
    np.testing.assert_array_equal(read_volume(tmp_path / "matlab.mat").data, volume)


def test_a_truncated_file_is_named(tmp_path: Path, volume: np.ndarray) -> None:
    path = write(tmp_path / "a.h5", raw=volume)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"a\.h5 cannot be read as HDF5 \(OSError: .*truncated"):
        read_volume(path)


def test_a_corrupt_chunk_is_reported_where_it_is_read(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("raw", data=volume, chunks=(2, 20, 14), compression="gzip", fletcher32=True)
        place = dataset.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 20] ^= 255
    path.write_bytes(content)
    opened = open_volume(path).data
    np.testing.assert_array_equal(opened[:2], volume[:2])
    with pytest.raises(InputError, match=r"a\.h5 cannot be read as HDF5"):
        opened[2]


def test_nothing_can_be_named_inside_another_file(tmp_path: Path, volume: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", volume)
    with pytest.raises(InputError, match=r"a\.tif is not HDF5, .*; leave out ':/raw'"):
        read_volume(f"{tmp_path / 'a.tif'}:/raw")


def test_a_missing_file_is_missing_with_or_without_a_dataset(tmp_path: Path) -> None:
    for address in ("none.h5", "none.h5:/raw"):
        with pytest.raises(InputError, match=rf"{address} does not exist; expected .*HDF5"):
            read_volume(tmp_path / address)


def test_without_h5py_the_extra_is_named(tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5", raw=volume)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"a\.h5 is HDF5, which needs .*pip install 'emformer-hub\[hdf5\]'"):
        read_volume(path)


def test_compressed_chunks_are_read(tmp_path: Path) -> None:
    data = make_volume("int16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=data, chunks=(4, 8, 8), compression="gzip", shuffle=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.h5").data, data)


@pytest.mark.parametrize("name", ["Blosc", "LZ4", "Zstd", "Bitshuffle"])
def test_filters_of_hdf5plugin_are_known_where_it_is_installed(tmp_path: Path, name: str) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    data = make_volume("uint16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=data, chunks=(2, 8, 8), compression=getattr(plugin, name)())
    code = f"from emformer_hub.volumes import read_volume; print(read_volume({str(tmp_path / 'a.h5')!r}).data.sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(data.sum(dtype=np.int64))

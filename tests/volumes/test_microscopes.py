"""Formats of microscopes and viewers, each read as the library that wrote it, or reads it independently, has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import open_volume, read_volume

from ._dm import write_dm
from .conftest import make_volume

SIZE = VoxelSize(40, 5, 4)
STACK = make_volume("uint16")
BOXES = ((slice(None),) * 3, (slice(1, 5, 2), slice(3, 17), slice(13, 14)), (3, slice(0, 20, 3), 5))


def same(path: Any, data: np.ndarray, **choice: Any) -> None:
    """Whether a file is read as these voxels, as a whole and box by box."""
    whole, lazy = read_volume(path, **choice), open_volume(path, **choice).data
    assert whole.data.dtype == data.dtype
    np.testing.assert_array_equal(whole.data, data)
    for box in BOXES:
        np.testing.assert_array_equal(lazy[box], data[box])


# --- Digital Micrograph ---------------------------------------------------------------------------------------------

dm = pytest.mark.usefixtures("_ncempy")


@pytest.fixture
def _ncempy() -> None:
    pytest.importorskip("ncempy")


@dm
@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_dm_is_read_where_it_lies(tmp_path: Path, version: int, thumbnail: bool, dtype: str) -> None:
    data, path = make_volume(dtype), tmp_path / f"a.dm{version}"
    write_dm(path, data, [0.04, 0.005, 0.004], ["µm"] * 3, version=version, thumbnail=thumbnail)
    same(path, data)
    volume = open_volume(path)
    assert (volume.voxel_size, volume.source) == (SIZE, "DM calibration")
    path.rename(tmp_path / "a")  # known by its content
    same(tmp_path / "a", data)


@dm
@pytest.mark.parametrize(("z", "unit"), [(1.0, ""), (0.5, "s"), (0.0, "nm")])
def test_a_dm_that_states_no_distance_of_sections_states_pixels(tmp_path: Path, z: float, unit: str) -> None:
    write_dm(tmp_path / "a.dm4", STACK, [z, 5, 4], [unit, "nm", "nm"])
    volume = open_volume(tmp_path / "a.dm4")
    assert volume.voxel_size is None and volume.lateral_nm == (5, 4)


@dm
@pytest.mark.parametrize("version", [3, 4])
def test_a_folder_of_dm_is_a_stack(tmp_path: Path, version: int) -> None:
    """As 3View writes them."""
    for z, section in enumerate(STACK):
        write_dm(tmp_path / f"run_{z:03}.dm{version}", section, [5, 4], ["nm", "nm"], version=version)
    same(tmp_path, STACK)
    volume = open_volume(tmp_path)
    assert volume.lateral_nm == (5, 4) and volume.hint == "DM calibration"
    (tmp_path / f"run_002.dm{version}").write_bytes(b"\0\0\0\4")
    with pytest.raises(InputError, match=rf"run_002\.dm{version} cannot be read as Digital Micrograph"):
        open_volume(tmp_path)


@dm
def test_a_dm_that_is_cut_short_or_swapped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dm4"
    write_dm(path, STACK, [40, 5, 4], ["nm"] * 3)
    content = path.read_bytes()
    for length in range(0, len(content) - 900, 97):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"a\.dm4 cannot be read as Digital Micrograph"):
            read_volume(path)
    write_dm(path, STACK, [40, 5, 4], ["nm"] * 3, swapped=True)
    with pytest.raises(InputError, match=r"Little Endian.*Fiji"):
        read_volume(path)


# --- WEBKNOSSOS -----------------------------------------------------------------------------------------------------


def write_webknossos(
    folder: Path,
    data: np.ndarray,
    first: tuple[int, int, int],
    *,
    scale: Any,
    mags: Any = ("1",),
    compressed: bool = True,
) -> None:
    """A data set with a layer of grey values that begins at ``first`` (x, y, z), and one of names."""
    wkw = pytest.importorskip("wkw")
    for mag in mags:
        steps = [int(part) for part in mag.split("-")] if "-" in mag else [int(mag)] * 3
        voxels = data[:: steps[2], :: steps[1], :: steps[0]]
        at = [place // step for place, step in zip(first, steps, strict=True)]
        kind = wkw.Header.BLOCK_TYPE_LZ4 if compressed else wkw.Header.BLOCK_TYPE_RAW
        header = wkw.Header(data.dtype.type, block_len=8, file_len=4, block_type=kind)
        (folder / "color").mkdir(parents=True, exist_ok=True)
        with wkw.Dataset.create(str(folder / "color" / mag), header) as made:
            whole = np.zeros([-(-(a + n) // 32) * 32 for a, n in zip(at, voxels.shape[::-1], strict=True)], data.dtype)
            whole[tuple(slice(a, a + n) for a, n in zip(at, voxels.shape[::-1], strict=True))] = voxels.T
            made.write((0, 0, 0), np.asfortranarray(whole))
    z, y, x = data.shape
    box = {"topLeft": list(first), "width": x, "height": y, "depth": z}
    layer = {"name": "color", "category": "color", "dataFormat": "wkw", "boundingBox": box}
    names = {"name": "cells", "category": "segmentation", "dataFormat": "wkw", "boundingBox": box}
    described = {"id": {"name": "a"}, "scale": scale, "dataLayers": [names, layer]}
    (folder / "datasource-properties.json").write_text(json.dumps(described))


@pytest.mark.parametrize("scale", [[4, 5, 40], {"factor": [0.004, 0.005, 0.04], "unit": "micrometer"}], ids=str)
@pytest.mark.parametrize("inside", ["", "color", "color/1"])
def test_webknossos_is_read_where_it_lies(tmp_path: Path, scale: Any, inside: str) -> None:
    write_webknossos(tmp_path, STACK, (3, 34, 1), scale=scale, mags=("2-2-1", "1", "16"))
    same(tmp_path / inside, STACK)
    volume = open_volume(tmp_path / inside)
    assert volume.voxel_size == SIZE and volume.translation_nm == (60, 172.5, 14)


def test_a_magnification_of_webknossos_has_larger_voxels(tmp_path: Path) -> None:
    write_webknossos(tmp_path, STACK, (4, 6, 3), scale=[4, 5, 40], mags=("1", "2-2-1"))
    volume = read_volume(tmp_path / "color" / "2-2-1")
    np.testing.assert_array_equal(volume.data, STACK[:, ::2, ::2])
    assert volume.voxel_size == VoxelSize(40, 10, 8)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_of_webknossos_that_is_cut_short_is_named(tmp_path: Path, compressed: bool) -> None:
    write_webknossos(tmp_path, STACK, (0, 0, 0), scale=[4, 5, 40], compressed=compressed)
    same(tmp_path, STACK)
    file = next((tmp_path / "color" / "1").rglob("x*.wkw"))
    content = file.read_bytes()
    for length in (0, 8, 40, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"x0\.wkw cannot be read as WEBKNOSSOS"):
            read_volume(tmp_path)


def test_layers_of_webknossos_are_chosen_or_refused(tmp_path: Path) -> None:
    write_webknossos(tmp_path, STACK, (0, 0, 0), scale=[4, 5, 40])
    with pytest.raises(InputError, match="declared to be a segmentation"):
        open_volume(tmp_path, series="cells")
    with pytest.raises(InputError, match=r"layers cells \(segmentation\), color \(color\).*--series color"):
        open_volume(tmp_path, series="none")
    same(tmp_path, STACK, series="color")
    described = tmp_path / "datasource-properties.json"
    described.write_text(described.read_text().replace('"wkw"', '"zarr3"'))
    with pytest.raises(InputError, match=r"is zarr3, without \.wkw files; give the path of an array"):
        open_volume(tmp_path)
    described.unlink()
    with pytest.raises(InputError, match=r"datasource-properties\.json.*whole data set"):
        open_volume(tmp_path / "color" / "1")


# --- MetaImage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_metaimage_is_read(tmp_path: Path, suffix: str, compressed: bool, dtype: str) -> None:
    itk = pytest.importorskip("SimpleITK")
    data, path = make_volume(dtype), tmp_path / f"a{suffix}"
    image = itk.GetImageFromArray(data)
    image.SetSpacing((4, 5, 40))
    itk.WriteImage(image, str(path), compressed)
    same(path, data)
    volume = open_volume(path)
    assert volume.voxel_size is None and "40,5,4 (z,y,x) without a unit" in volume.ask("a")
    broken = path if suffix == ".mha" else path.with_suffix(".zraw" if compressed else ".raw")
    broken.write_bytes(broken.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"cannot be read as MetaImage"):
        read_volume(path)


def test_a_channel_of_metaimage_is_chosen(tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    several = np.stack([STACK, STACK[::-1]], -1)
    itk.WriteImage(itk.GetImageFromArray(several, isVector=True), str(tmp_path / "a.mha"))
    with pytest.raises(InputError, match="2 channels"):
        open_volume(tmp_path / "a.mha")
    same(tmp_path / "a.mha", STACK[::-1], channel=1)


# --- BigDataViewer --------------------------------------------------------------------------------------------------

_SETUP = (
    "<ViewSetup><id>{0}</id><name>view{0}</name><voxelSize><unit>{1}</unit><size>{2}</size></voxelSize></ViewSetup>"
)
_XML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<SpimData version="0.2"><BasePath type="relative">.</BasePath>'
    '<SequenceDescription><ImageLoader format="{0}"><{1} type="relative">{2}</{1}></ImageLoader>'
    '<ViewSetups>{3}</ViewSetups><Timepoints type="{4}">{5}</Timepoints></SequenceDescription></SpimData>'
)


def write_xml(path: Path, kind: str, setups: int, times: tuple[int, int] = (0, 0), unit: str = "µm") -> None:
    described = "".join(_SETUP.format(n, unit, "0.004 0.005 0.04") for n in range(setups))
    stored = {"bdv.hdf5": "hdf5", "bdv.n5": "n5"}.get(kind, "zarr")
    span = f"<first>{times[0]}</first><last>{times[1]}</last>"
    path.write_text(_XML.format(kind, stored, f"{path.stem}.{stored[-2:]}", described, "range", span))


def test_bigdataviewer_is_read_through_its_xml(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.f5", "w") as file:
        for time, setup, level in np.ndindex(2, 2, 2):
            voxels = np.roll(STACK, 2 * time + setup, 0)[:, :: level + 1]
            file.create_dataset(f"t{time:05}/s{setup:02}/{level}/cells", data=voxels.view("i2"), chunks=(2, 8, 8))
    write_xml(tmp_path / "a.xml", "bdv.hdf5", 2, (0, 1))
    with pytest.raises(InputError, match=r"2 images: 0 \(view0\), 1 \(view1\)"):
        open_volume(tmp_path / "a.xml")
    with pytest.raises(InputError, match=r"2 time points: 0, 1.*--time 0"):
        open_volume(tmp_path / "a.xml", series="view1")
    for choice in ({"series": "view1", "time": 1}, {"channel": 1, "time": 1}):
        same(tmp_path / "a.xml", np.roll(STACK, 3, 0), **choice)
    volume = open_volume(tmp_path / "a.xml", series="0", time=1)
    assert (volume.voxel_size, volume.source) == (SIZE, "BigDataViewer XML")
    write_xml(tmp_path / "a.xml", "bdv.hdf5", 1, unit="pixel")
    same(tmp_path / "a.xml", STACK)
    assert "in unit pixel" in open_volume(tmp_path / "a.xml").ask("a")


def test_bigdataviewer_in_n5_is_read_through_its_xml(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    place = {"driver": "file", "path": str(tmp_path / "a.n5/setup0/timepoint0/s0")}
    metadata = {
        "dimensions": STACK.shape[::-1],
        "blockSize": [8, 8, 2],
        "dataType": "uint16",
        "compression": {"type": "gzip"},
    }
    store = tensorstore.open({"driver": "n5", "kvstore": place, "metadata": metadata}, create=True).result()
    store[...] = STACK.T
    write_xml(tmp_path / "a.xml", "bdv.n5", 1)
    same(tmp_path / "a.xml", STACK)
    assert open_volume(tmp_path / "a.xml").voxel_size == SIZE


def test_other_xml_is_named(tmp_path: Path) -> None:
    write_xml(tmp_path / "a.xml", "bdv.hdf5", 1)
    with pytest.raises(InputError, match=r"a\.f5, which does not exist"):
        open_volume(tmp_path / "a.xml")
    write_xml(tmp_path / "a.xml", "spimreconstruction.filelist", 1)
    with pytest.raises(InputError, match=r"of the kind spimreconstruction\.filelist; expected HDF5 or N5"):
        open_volume(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?><SpimData><SequenceDescription>')
    with pytest.raises(InputError, match="is no XML of BigDataViewer"):
        open_volume(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?><html/>')
    with pytest.raises(InputError, match="XML, and not that of BigDataViewer"):
        open_volume(tmp_path / "a.xml")


# --- Imaris ---------------------------------------------------------------------------------------------------------


def test_levels_of_imaris_are_no_choice_and_channels_are(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.ims", "w") as file:
        info = file.create_group("DataSetInfo/Image")
        ends = {"ExtMin0": "0", "ExtMax0": "0.056", "ExtMin1": "1", "ExtMax1": "1.1", "ExtMin2": "0", "ExtMax2": "0.24"}
        for name, value in {**ends, "Unit": "um"}.items():
            info.attrs[name] = np.array(list(value), "S1")
        for level, time, channel in np.ndindex(2, 2, 3):
            group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {time}/Channel {channel}")
            for axis, side in zip("ZYX", STACK.shape, strict=True):
                group.attrs[f"ImageSize{axis}"] = np.array(list(str(side)), "S1")
            voxels = np.roll(STACK, 3 * time + channel, 0)
            group.create_dataset("Data", data=np.pad(voxels, ((0, 2), (0, 4), (0, 2))), chunks=(4, 8, 8))
    with pytest.raises(InputError, match=r"Imaris with 2 images of the kind TimePoint, 0, 1.*--time 0"):
        open_volume(tmp_path / "a.ims")
    with pytest.raises(InputError, match=r"3 images of the kind Channel, 0, 1, 2.*--channel 0"):
        open_volume(tmp_path / "a.ims", time=1)
    same(tmp_path / "a.ims", np.roll(STACK, 5, 0), time=1, channel=2)
    assert open_volume(tmp_path / "a.ims", time=0, channel=0).voxel_size == SIZE

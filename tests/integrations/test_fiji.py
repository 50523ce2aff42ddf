"""Results open in ImageJ with their scale and order; the macro runs in a real ImageJ where there is one.

`EMFORMER_IJ_JAR=/path/to/ij.jar` names it (Debian's package `libij-java`); `java` and `xvfb-run` are needed too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct_file
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

MACRO = Path(__file__).parents[2] / "integrations" / "fiji" / "EMformer_Reconstruct.ijm"
SIZE = VoxelSize(24, 8, 6)
LOOK = """
open(getArgument());
getDimensions(columns, rows, channels, slices, frames);
getVoxelSize(x, y, z, unit);
setSlice(10);
print(columns, rows, channels, slices, frames, x, y, z, unit, bitDepth(), getPixel(7, 20), getPixel(30, 3));
run("Quit");
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fiji")
    write_volume(folder / "the stack.tif", neuropil((36, 40, 44))[::3].copy(), SIZE)
    return folder


def test_results_open_in_imagej_with_scale_and_order(folder: Path) -> None:
    """ImageJ reads the last description, and pixels per unit."""
    settings = {"voxel_size": SIZE, "factor": 3.0, "model": "emformer-tiny", "ensemble": 1}
    outputs = (folder / "result.tif", folder / "sure.tif")
    reconstruct_file(folder / "the stack.tif", outputs[0], uncertainty=outputs[1], **settings)
    for path, dtype in zip(outputs, ("uint8", "float32"), strict=True):
        with tifffile.TiffFile(path) as tif:
            stated, tags = tif.imagej_metadata, tif.pages.first.tags
            assert stated is not None and not tif.is_bigtiff
            assert (stated["images"], stated["slices"], stated["spacing"], stated["unit"]) == (36, 36, 8.0, "nm")
            assert "frames" not in stated and "channels" not in stated and tif.pages.first.dtype == dtype
            per_nm = [tags[f"{axis}Resolution"].value for axis in "XY"]
            assert [one[1] / one[0] for one in per_nm] == pytest.approx([6, 8])
            offset = tif.pages.first.dataoffsets[0]
        shape = (36, 40, 44)  # of planes one behind the other, which is what ImageJ reads
        found = np.fromfile(path, tif.byteorder + np.dtype(dtype).char, np.prod(shape), offset=offset).reshape(shape)
        np.testing.assert_array_equal(found, read_volume(path).data)


IMAGEJ = os.environ.get("EMFORMER_IJ_JAR")


@pytest.mark.skipif(IMAGEJ is None, reason="EMFORMER_IJ_JAR names no ImageJ")
def test_the_macro_reconstructs_and_imagej_shows_what_was_written(folder: Path, tmp_path: Path) -> None:
    def imagej(macro: Path, argument: str) -> str:
        assert shutil.which("java") and shutil.which("xvfb-run")
        command = ["xvfb-run", "-a", "java", "-jar", str(IMAGEJ), "-batch", str(macro), argument]
        settings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=settings)
        return run.stdout

    command, output = Path(sys.executable).with_name("emformer-hub"), tmp_path / "out.tif"
    said = imagej(MACRO, f"{folder / 'the stack.tif'}|{output}|24,8,6|emformer-tiny|{command}")
    assert f"{output}: 42x40x44 uint8" in said
    (tmp_path / "look.ijm").write_text(LOOK)
    for path, bits in ((output, 8), (tmp_path / "out-uncertainty.tif", 32)):
        found = imagej(tmp_path / "look.ijm", str(path)).split()
        voxels = read_volume(path).data
        assert [float(one) for one in found[:5]] == [44, 40, 1, 42, 1]
        assert [float(one) for one in found[5:8]] == pytest.approx([6, 8, 48**0.5], rel=1e-3)
        assert found[8] == "nm" and int(found[9]) == bits
        expected = [float(voxels[9, 20, 7]), float(voxels[9, 3, 30])]
        assert [float(one) for one in found[10:]] == pytest.approx(expected, rel=1e-3)

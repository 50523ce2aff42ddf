"""What the modules for workflow engines are tried on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub import VoxelSize, read_volume, reconstruct, reconstruct_file

SIZE = VoxelSize(32, 8, 8)
TILE = (20, 64, 64)
"""So small that the stack has several parts."""
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
}


def cut_off(stack: Path, output: Path) -> None:
    """An attempt that ends when half of the blocks are done."""

    class CutOff(Exception):
        pass

    def at_half(done: float, blocks: int) -> None:
        if done >= blocks / 2:
            raise CutOff

    output.parent.mkdir(parents=True)
    settings: dict[str, Any] = {"voxel_size": SIZE, "factor": 4, "model": "emformer-tiny", "tile_zyx": TILE}
    with pytest.raises(CutOff):
        reconstruct_file(stack, output, progress=at_half, **settings)


def check_made(output: Path, stack: Path, went_on: bool) -> None:
    """A volume is what one run makes of the stack, and its record says whether parts of it were there before."""
    record = json.loads(output.with_name(f"{output.name}.json").read_text())
    assert (record["made_now"] < record["parts"]) == went_on
    tile = record["tile_zyx"]
    expected = reconstruct(read_volume(stack).data, factor=4, model="emformer-tiny", tile_zyx=tile, progress=False)
    np.testing.assert_array_equal(read_volume(output).data, expected.volume)

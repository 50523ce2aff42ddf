from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from workflows import SIZE

from emformer_hub import SectionModel, write_volume
from emformer_hub.volumes.phantom import neuropil


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "my stack.tif"
    write_volume(path, SectionModel(4).degrade(neuropil((96, 48, 48), seed=7)).round().astype(np.uint8), SIZE)
    return path

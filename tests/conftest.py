"""Settings that all tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says nothing on a busy machine.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", PATIENT, derandomize=False)
settings.register_profile("same", PATIENT, derandomize=True)  # the same examples in every run: no failure by chance
settings.load_profile("same" if os.environ.get("CI") else "random")

# A shell that runs the tests with "&" has them ignore Ctrl-C, and the commands that they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """Address of an object store on loopback that speaks S3, with the bucket ``volumes``; the variables name it."""
    server = pytest.importorskip("moto.server", reason="the bucket is moto's").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        httpx.post(f"{url}/moto-api/reset").raise_for_status()  # what it holds outlives the server
        httpx.put(f"{url}/volumes").raise_for_status()
        yield url
    server.stop()


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """A file of 8 sections of 160 x 168 voxels, each shifted by up to 20 voxels."""
    from emformer_hub.geometry import VoxelSize
    from emformer_hub.volumes import write_volume
    from emformer_hub.volumes.phantom import neuropil

    places = 20 + np.random.default_rng(4).integers(-20, 21, (8, 2))
    sections = zip(neuropil((16, 200, 208), seed=1)[::2], places.tolist(), strict=True)
    path = tmp_path / "shifted.tif"
    write_volume(path, np.stack([one[y : y + 160, x : x + 168] for one, (y, x) in sections]), VoxelSize(16, 8, 8))
    return path

"""Where the work runs."""

from __future__ import annotations

import pytest
import torch

from emformer_hub import devices
from emformer_hub.devices import choose_device, choose_precision, computes_in_bfloat16
from emformer_hub.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[False, True], ids=["without GPU", "with GPU"])
def has_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize("name", [None, "auto"])
def test_a_gpu_is_taken_where_there_is_one(name: str | None, has_gpu: bool) -> None:
    assert choose_device(name) == (GPU if has_gpu else CPU)


@pytest.mark.parametrize("name", ["cpu", CPU])
def test_the_cpu_is_always_there(name: str | torch.device, has_gpu: bool) -> None:
    assert choose_device(name) == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0", GPU])
def test_a_missing_gpu_is_an_error_and_never_a_silent_cpu(name: str | torch.device, has_gpu: bool) -> None:
    if has_gpu:
        assert choose_device(name).type == "cuda"
    else:
        with pytest.raises(InputError, match="torch sees no GPU; use --device cpu"):
            choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        choose_device(name)


@pytest.fixture(autouse=True)
def forget_measurements() -> None:
    devices.faster_in_bfloat16.cache_clear()


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_compute_in_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert computes_in_bfloat16(GPU) is expected
    assert choose_precision("auto", GPU) == (torch.bfloat16 if expected else torch.float32)


@pytest.mark.parametrize(
    ("avx512", "amx", "speedup", "expected"),
    [
        (False, False, 2.0, torch.float32),  # without the instructions nothing is measured
        (True, False, 2.0, torch.bfloat16),
        (True, False, 0.5, torch.float32),
        (True, True, 0.5, torch.bfloat16),
    ],
)
def test_cpus_compute_in_bfloat16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, speedup: float, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    seconds = {torch.float32: 1.0, torch.bfloat16: 1 / speedup}
    monkeypatch.setattr(devices, "_seconds_of_product", lambda matrix: seconds[matrix.dtype])
    assert computes_in_bfloat16(CPU) is (avx512 or amx)
    assert choose_precision("auto", CPU) == expected


def test_the_choice_is_the_same_all_through_a_process() -> None:
    assert choose_precision("auto", CPU) == choose_precision("auto", CPU)

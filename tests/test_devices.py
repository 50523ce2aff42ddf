"""Where the work runs."""

from __future__ import annotations

import os

import pytest
import torch

from emformer_hub import devices
from emformer_hub.devices import GPUS, choose_device, choose_devices, choose_precision, computes_in_bfloat16
from emformer_hub.errors import InputError
from emformer_hub.machine import num_threads

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str | None:
    """Two GPUs of a kind, or none, as torch would see them."""
    kind: str | None = request.param
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind) if kind else None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2 if kind else 0)
    return kind


every = pytest.mark.parametrize("gpus", [None, *GPUS], indirect=True)


@every
@pytest.mark.parametrize("name", [None, "auto"])
def test_a_gpu_is_taken_where_there_is_one(name: str | None, gpus: str | None) -> None:
    assert choose_device(name) == torch.device(gpus or "cpu")


@every
@pytest.mark.parametrize("name", ["cpu", CPU])
def test_the_cpu_is_always_there(name: str | torch.device, gpus: str | None) -> None:
    assert choose_device(name) == CPU


@every
@pytest.mark.parametrize("name", [*GPUS, "cuda:0", "mps:0", GPU])
def test_a_missing_gpu_is_an_error_and_never_a_silent_cpu(name: str | torch.device, gpus: str | None) -> None:
    if torch.device(name).type == gpus:
        assert choose_device(name) == torch.device(name)
    else:
        there = f"sees only {gpus}; use --device {gpus}" if gpus else "sees no GPU; use --device cpu"
        with pytest.raises(InputError, match=there):
            choose_device(name)


@pytest.mark.parametrize("gpus", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:0,cuda:1", "meta"])
def test_unknown_devices_are_refused(name: str, gpus: str) -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda, xpu, mps"):
        choose_device(name)


@every
def test_several_are_named_with_commas_and_all_are_all(gpus: str | None) -> None:
    both = [torch.device(gpus, 0), torch.device(gpus, 1)] if gpus else [CPU]
    assert choose_devices("all") == both
    assert choose_devices(",".join(map(str, both))) == both
    assert choose_devices(None) == [choose_device()]


@pytest.mark.parametrize("gpus", ["cuda"], indirect=True)
@pytest.mark.parametrize(("names", "said"), [("cuda:0,cuda:0", "names one twice"), ("cuda:2", "torch sees 2")])
def test_devices_that_are_not_there_are_refused(names: str, said: str, gpus: str) -> None:
    with pytest.raises(InputError, match=said):
        choose_devices(names)


def test_apples_gpu_computes_in_float32_in_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    apple = torch.device("mps")
    assert choose_precision("auto", apple) == torch.float32
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 3 * 10**6)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 10**6)
    assert devices.free_memory(apple) == 2 * 10**6
    assert devices.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))


def test_threads_are_as_many_as_asked_for_or_as_cpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    for wanted, expected in (("2", 2), ("4,1", 4), ("", 3), ("0", 3), ("many", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert num_threads() == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert num_threads() == 3


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

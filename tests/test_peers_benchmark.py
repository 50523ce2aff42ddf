"""The benchmark of other methods: their arithmetic by hand, and a run of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pytest
import torch
from _arithmetic import count_flop
from click.testing import CliRunner


@pytest.mark.parametrize(("dimensions", "kernel", "side"), [(2, 25, 32), (3, 27, 16)])
def test_the_unets_of_care_have_the_arithmetic_of_their_defaults(dimensions: int, kernel: int, side: int) -> None:
    network = peers.UNet(dimensions).eval()
    x = torch.zeros(1, 1, *(side,) * dimensions)
    with torch.inference_mode():
        assert network(x).shape == x.shape
        counted = count_flop(lambda: network(x)) / x.numel()
    finer, coarser = 1 / 2**dimensions, 1 / 4**dimensions
    products = 32 + 32 * 32 + finer * (32 * 64 + 64 * 64) + coarser * (64 * 128 + 128 * 64)  # down, and the bottom
    products += finer * (128 * 64 + 64 * 32) + 64 * 32 + 32 * 32  # and up again
    assert counted == pytest.approx(2 * (kernel * products + 32))


def test_every_method_restores_the_stack_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(peers, "in_fresh_process", lambda function, *arguments: 5_000_000)
    results: dict[str, np.ndarray] = {}

    def kept(name: str, make: Any) -> Any:
        def prepare(stack: np.ndarray) -> Any:
            job = make(stack)
            return lambda: results.setdefault(name, job())

        return prepare

    methods = {name: (*about, kept(name, make)) for name, (*about, make) in peers.METHODS.items()}
    monkeypatch.setattr(peers, "METHODS", methods)
    done = CliRunner().invoke(peers.main, ["--quick", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert f"{peers.CAREAMICS}: not installed" in done.output and "pip install -e . careamics" in done.output
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    measured, stated = rows[: len(results)], rows[len(results) :]
    assert [row["method"] for row in measured] == [name for name in methods if name != peers.CAREAMICS]
    assert [row["method"] for row in stated] == ["VEMamba", "IsoVEM", "EMDiffuse"]
    assert all(made.shape == (32, 32, 32) and made.dtype == np.uint8 for made in results.values())
    assert {name: row["flop_per_voxel"] > 0 for name, row in zip(results, measured, strict=True)} == {
        name: "linear" not in name and "cubic" not in name and "scipy" not in name for name in results
    }
    one, two = (next(row for row in measured if words in row["method"]) for words in ("small, 1 pass", "2 passes"))
    assert two["flop_per_voxel"] == pytest.approx(2 * one["flop_per_voxel"], rel=0.01)


def test_the_peak_of_a_method_is_what_its_run_adds() -> None:
    assert peers.resident_peak("CARE, 3-D U-Net", (4, 64, 64), torch.get_num_threads()) >= 0
    assert peers.there()[: len(peers.METHODS) - 1] == [name for name in peers.METHODS if name != peers.CAREAMICS]

"""What the building blocks of a token mixer cost on this machine: the measurements behind benchmarks/architecture.md.

python benchmarks/operations.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import click
import torch
import torch.nn.functional as F
from _report import Columns, describe_run, print_report, start

from emformer_hub.devices import choose_device

GRID = (16, 16, 64)  # frames, rows, columns of a token grid
WINDOW_TOKENS = 128

COLUMNS: Columns = {
    "operation": lambda row: row["operation"],
    "dtype": lambda row: row["dtype"],
    "forward ms": lambda row: f"{row['forward'] * 1e3:.2f}",
    "forward + backward ms": lambda row: f"{row['both'] * 1e3:.2f}",
    "forward GFLOP/s": lambda row: f"{row['flop'] / row['forward'] / 1e9:.0f}",
}


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value


def operations(hidden: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Callable, list, int]]:
    """Name, function, inputs, floating-point operations of each building block on one token grid."""
    tokens = GRID[0] * GRID[1] * GRID[2]

    def tensor(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, device=device) * 0.1).to(dtype).requires_grad_()

    grid = tensor(1, *GRID, hidden)

    def convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, padding=1, groups=hidden // weight.shape[1])

    yield "linear", F.linear, [grid, tensor(hidden, hidden)], 2 * tokens * hidden**2
    yield "depthwise 3x3x3", convolution, [grid, tensor(hidden, 1, 3, 3, 3)], 2 * tokens * hidden * 27
    images = tensor(GRID[0], *GRID[1:], hidden)

    def convolution_2d(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)

    yield (
        "dense 3x3, frame by frame",
        convolution_2d,
        [images, tensor(hidden, hidden, 3, 3)],
        2 * tokens * hidden**2 * 9,
    )
    yield "dense 3x3x3", convolution, [grid, tensor(hidden, hidden, 3, 3, 3)], 2 * tokens * hidden**2 * 27
    heads = [tensor(tokens // WINDOW_TOKENS, 2, WINDOW_TOKENS, hidden // 2) for _ in range(3)]
    yield "attention, fused", F.scaled_dot_product_attention, heads, 4 * tokens * WINDOW_TOKENS * hidden
    yield "attention, plain", plain_attention, heads, 4 * tokens * WINDOW_TOKENS * hidden


def seconds(job: Callable[[], Any], repeats: int) -> float:
    job()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        job()
        times.append(time.perf_counter() - begin)
    return median(times)


@click.command()
@click.option("--hidden", default=64, show_default=True, help="Channels of a token.")
@click.option("--repeats", default=10, show_default=True)
def main(hidden: int, repeats: int) -> None:
    """Print the cost of the building blocks, on a grid of 16x16x64 tokens."""
    device = choose_device()
    run = describe_run(device, "each row's", hidden=hidden)

    def rows() -> Iterator[dict[str, Any]]:
        for dtype in (torch.float32, torch.bfloat16):
            for name, function, inputs, flop in operations(hidden, dtype, device):

                def forward(function: Callable = function, inputs: list = inputs) -> None:
                    with torch.no_grad():
                        function(*inputs)

                def both(function: Callable = function, inputs: list = inputs) -> None:
                    out = function(*inputs)
                    torch.autograd.grad(out, inputs, torch.ones_like(out))

                yield {
                    "operation": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "forward": seconds(forward, repeats),
                    "both": seconds(both, repeats),
                    "flop": flop,
                }

    print_report(run, COLUMNS, rows())


if __name__ == "__main__":
    start(main)

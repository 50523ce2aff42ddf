"""How much memory a block needs, and the tile that makes the most of the memory there is. Pure functions but one."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING

from emformer_hub.devices import free_memory
from emformer_hub.errors import InputError, check_number
from emformer_hub.layers_emformer import CACHED_TOKENS, STREAMED_TOKENS
from emformer_hub.reconstruction.blocks import Plan, Sizes, least_tile, make_plan

if TYPE_CHECKING:
    import torch

    from emformer_hub.configuration_emformer import EMformerConfig
    from emformer_hub.geometry import SectionModel

MOST_VOXELS = 2**27
"""Most voxels of a block: some minutes of a CPU, which are lost if the run is killed."""
MOST_GB, LEAST_GB = 8, 1
"""Limits of the memory that a run takes if nobody says how much; larger blocks would gain little."""
MOST_SECTIONS, LATERAL_STEP = 512, 16
"""Deepest part of a stack that is tried beside the whole, and step from one side of a tile to the next."""
LIBRARIES = 0.6e9
"""Bytes of main memory that a process holds before it computes anything."""
HELD_FRAMES, WORKED_SIZES = 100, 20
"""Frames of tokens that the network holds while it streams, and by how much what a layer works on is larger than its
tokens: of peaks of resident memory, measured on clips of 3,000 to 20,000 tokens a frame, and a little more."""


def choose_memory(memory: float | None, device: torch.device, workers: int = 1) -> float:
    """Bytes that a worker may use: those asked for, or half of what is free, as a power of two of gigabytes.

    That the default is coarse makes the division of a volume, and with it the last bit of a voxel, the same on most
    machines and days.

    Args:
        memory: gigabytes, or ``None``.
        device: device that computes; memory is the GPU's on a GPU.
        workers: number of workers that what is free is divided among.

    Raises:
        InputError: the memory asked for is not a positive number.
    """
    if memory is not None:
        check_number("memory", memory)
        if not (math.isfinite(memory) and memory > 0):
            raise InputError(f"memory is {memory:g} GB; expected a positive number, as in 4.")
        return memory * 1e9
    free = max(free_memory(device) / 2e9 / workers, LEAST_GB)
    return min(MOST_GB, 2 ** math.floor(math.log2(free))) * 1e9


def choose_tile(
    shape_zyx: Sizes,
    geometry: SectionModel,
    config: EMformerConfig,
    device: torch.device,
    *,
    memory: float | None = None,
    workers: int = 1,
    voxel_bytes: int = 4,
) -> Sizes:
    """The tile with which the network computes the fewest voxels more than it keeps, in so much memory.

    Args:
        shape_zyx: shape of the input, (sections, y, x).
        geometry: geometry of its sections.
        config: configuration of the network.
        device: device that computes.
        memory: gigabytes that each worker may use, as for :func:`choose_memory`.
        workers: number of workers; if there are several, each has two blocks or more.
        voxel_bytes: bytes of a voxel of the input.

    Returns:
        Largest input box, (sections, y, x).

    Raises:
        InputError: not even the smallest tile fits.
    """
    allowed = choose_memory(memory, device, workers)
    voxels = geometry.num_planes(shape_zyx[0]) * math.prod(shape_zyx[1:])
    most = min(MOST_VOXELS, voxels if workers == 1 else voxels // (2 * workers))
    least = least_tile(config)

    def fitting(tile: Sizes) -> Plan | None:
        plan = make_plan(shape_zyx, geometry, config, tile)
        fits = math.prod(plan.block_zyx) <= most and block_bytes(plan, config, device, voxel_bytes) <= allowed
        return plan if fits else None

    if fitting(shape_zyx) is not None:
        return shape_zyx
    plans = []
    for depth in {min(depth, shape_zyx[0]) for depth in (*range(least[0], MOST_SECTIONS, 4), shape_zyx[0])}:
        sides = range(least[1], max(shape_zyx[1:]) + LATERAL_STEP, LATERAL_STEP)
        tiles = [(depth, side, side) for side in sides]
        count = bisect_left(tiles, True, key=lambda tile: fitting(tile) is None)
        plans += [fitting(tile) for tile in tiles[max(0, count - 1) : count]]
    if plans:
        return min(filter(None, plans), key=lambda plan: (plan.computed, plan.tile_zyx)).tile_zyx
    needed = block_bytes(make_plan(shape_zyx, geometry, config, least), config, device, voxel_bytes) / 1e9
    if memory is not None:
        raise InputError(f"memory is {memory:g} GB; the smallest blocks need about {needed:.1f}. Give at least that.")
    return least


def block_bytes(plan: Plan, config: EMformerConfig, device: torch.device, voxel_bytes: int) -> float:
    """Bytes that a run needs at most: on a GPU of its memory, else of main memory, with what is read and written ahead.

    Args:
        plan: plan of the run.
        config: configuration of the network.
        device: device that computes.
        voxel_bytes: bytes of a voxel of the input.
    """
    on_cpu = device.type == "cpu"
    depth, *lateral = map(min, plan.tile_zyx, plan.shape_zyx)
    read, kept = depth * math.prod(lateral), math.prod(plan.block_zyx)
    tokens = depth * max(lateral) / config.patch_size
    worked = CACHED_TOKENS if on_cpu else max(STREAMED_TOKENS, config.window_size[0] * tokens)
    decoded = max(worked / tokens, config.window_size[0]) * plan.block_zyx[0] * max(lateral)
    network = 4 * config.hidden_size * (HELD_FRAMES * tokens + WORKED_SIZES * worked) + 24 * decoded
    of_clip, of_moments = 16 * read, 8 * kept
    if not on_cpu:
        return network + of_clip + of_moments
    return LIBRARIES + network + of_clip + of_moments + 2 * (voxel_bytes * read + (voxel_bytes + 5) * kept)

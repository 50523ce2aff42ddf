"""Floating-point operations of a computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

FLOP_FORMULAE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
"""What torch's counter does not know by itself, and would count as nothing."""


def count_flop(job: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention; a multiply-add counts as two."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAE) as counter:
        job()
    return counter.get_total_flops()

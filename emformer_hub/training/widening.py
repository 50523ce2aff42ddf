"""A wider network that computes what a trained one does, from which training goes on (Net2Net; Chen et al. 2016).

Every channel becomes several that carry the same value; a layer that reads them divides its weight unevenly among them,
so that they learn different things from the first step on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emformer_hub.modeling_emformer import EMformerModel

DEVIATION = 0.5
"""SD of the part of a weight that one of its copies gets, as a fraction of an even share."""
READS = {  # the last part of a layer's name -> what the inputs of its weight are
    "qkv": "channels",
    "proj": "heads",
    "conv": "channels",
    "fc2": "channels",
    "coefficients": "channels",
}
WRITES = {  # the same for its outputs
    "projection": "channels",
    "mask_token": "channels",
    "modulation": "channels",
    "qkv": "heads",
    "proj": "channels",
    "conv": "channels",
    "fc2": "channels",
}
STAYS = ("conditioning.", "decoder.basis")  # parts whose width is not that of the tokens


@torch.no_grad()
def widen(model: EMformerModel, times: int, seed: int = 0) -> EMformerModel:
    """Network with ``times`` as many channels and attention heads, and the outputs of ``model`` but for rounding.

    Args:
        model: the network to start from; it stays as it is.
        times: channels of the result for one of ``model``, 2 or more.
        seed: of the division of weights among copies.

    Returns:
        The network on the CPU, in float32.
    """
    old = model.config
    config = type(old)(
        **{
            **{name: getattr(old, name) for name in type(old).__annotations__ if name != "model_type"},
            "hidden_size": old.hidden_size * times,
            "num_attention_heads": old.num_attention_heads * times,
        }
    )
    wider = EMformerModel(config)
    generator = torch.Generator().manual_seed(seed)
    head = old.hidden_size // old.num_attention_heads
    weights = {
        name: weight if name.startswith(STAYS) else _widened(name, weight.cpu(), times, head, generator)
        for name, weight in model.state_dict().items()
    }
    wider.load_state_dict(weights)
    return wider


def _widened(name: str, weight: Tensor, times: int, head: int, generator: torch.Generator) -> Tensor:
    """A weight or bias of the wider network; outputs are its first axis, inputs of a weight its second."""
    *_, layer, kind = ["", *name.split(".")]
    if kind == "mask_token":
        layer = kind
    if layer in WRITES:
        weight = weight.index_select(0, _copies(len(weight), times, head if WRITES[layer] == "heads" else 1))
    if layer in READS and kind == "weight":
        group = head if READS[layer] == "heads" else 1
        outputs, inputs = weight.shape[:2]
        shares = torch.randn(outputs, inputs // group, times, group, generator=generator) * (DEVIATION / times)
        shares = shares - shares.mean(2, keepdim=True) + 1 / times
        shares = shares.reshape(outputs, inputs * times, *[1] * (weight.ndim - 2))
        weight = weight.index_select(1, _copies(inputs, times, group)) * shares.to(weight.dtype)
    return weight


def _copies(length: int, times: int, group: int) -> Tensor:
    """Old place of each new channel: every ``group`` of neighbouring channels follows itself ``times`` times."""
    return torch.arange(length).reshape(-1, 1, group).expand(-1, times, -1).reshape(-1)

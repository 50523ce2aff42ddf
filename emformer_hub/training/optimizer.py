"""Muon for the matrices of the layers, AdamW for everything else; to its users and to checkpoints, one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration, chosen for its slope at zero
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Momentum whose update of a matrix is made orthogonal, so that all its directions learn at one speed.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; ``torch.optim.Muon`` is the same
    for parameters of two axes, while the kernels of convolutions are matrices of four here. All other parameters
    (embedding, conditioning, decoder, biases) are updated by AdamW.

    Args:
        model: network to train; its layers are under ``layers``.
        learning_rate: learning rate of AdamW.
        matrix_learning_rate: learning rate of the orthogonal updates.
        weight_decay: decoupled weight decay of both.
        momentum: momentum of the matrices (Nesterov).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        matrix_learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
    ):
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        matrices = [weight for name, weight in trained.items() if is_layer_matrix(name, weight)]
        others = [weight for name, weight in trained.items() if not is_layer_matrix(name, weight)]
        groups = [
            {"params": others, "lr": learning_rate, "initial_lr": learning_rate},
            {"params": matrices, "lr": matrix_learning_rate, "initial_lr": matrix_learning_rate},
        ]
        super().__init__(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        self.momentum = momentum

    def set_share(self, share: float) -> None:
        """Set all learning rates to this fraction of their given values."""
        for group in self.param_groups:
            group["lr"] = share * group["initial_lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        group = self.param_groups[1]
        gradients = [matrix.grad for matrix in group["params"]]
        for matrix in group["params"]:
            matrix.grad = None  # AdamW passes over what has none
        super().step()
        for matrix, gradient in zip(group["params"], gradients, strict=True):
            if gradient is None:
                continue
            matrix.grad = gradient
            state = self.state[matrix]
            if not state:  # under the names that AdamW expects to find again
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(gradient))
            state["step"] += 1
            average = state["exp_avg"].lerp_(gradient, 1 - self.momentum)
            update = orthogonalised(gradient.lerp(average, self.momentum).flatten(1))
            scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update.view_as(matrix), alpha=-group["lr"] * scale)
        return loss


def is_layer_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is a matrix, or a convolution's kernel, of the network's layers, modulation apart.

    The thin factors of an adapter are not.
    """
    return weight.ndim >= 2 and "layers." in name and "modulation" not in name and "lora_" not in name


def orthogonalised(matrix: Tensor) -> Tensor:
    """Approximate the closest orthogonal matrix: the same singular vectors, singular values of about one (0.7 to
    1.2)."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / matrix.norm().clamp(min=1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x

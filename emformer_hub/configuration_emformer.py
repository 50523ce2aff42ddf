"""EMformerConfig: the shape of the network, nothing about data or tiles."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .errors import InputError
from .model_files import model_file, take_hub_options
from .pretrained import loading


@strict
class EMformerConfig(PreTrainedConfig):
    """Configuration of an EMformer network.

    A *token* is one section by ``patch_size`` columns by one frame; window sizes count tokens.

    Args:
        hidden_size: channels of a token.
        num_hidden_layers: layers, each with a convolutional feed-forward part.
        attention_every: one in so many layers begins with window attention; every second of these shifts its windows
            by half.
        num_attention_heads: heads of the window attention; must divide ``hidden_size``.
        window_size: attention window in tokens, (frames, rows, columns); each even, so that half a window is whole.
        patch_size: columns that one token covers.
        mlp_ratio: hidden channels of the convolutional feed-forward layer over ``hidden_size``.
        num_basis: continuous basis functions along the section axis for the value.
        num_scale_basis: the same for the uncertainty.
        condition_size: width of the embedding of (factor, frame spacing, thickness).
    """

    model_type = "emformer"

    hidden_size: int = 64
    num_hidden_layers: int = 6
    attention_every: int = 2
    num_attention_heads: int = 2
    window_size: tuple[int, ...] | list[int] = (4, 4, 8)
    patch_size: int = 2
    mlp_ratio: float | int = 1.5
    num_basis: int = 24
    num_scale_basis: int = 8
    condition_size: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        self.window_size = tuple(self.window_size)  # JSON brings back a list
        super().__post_init__(**kwargs)

    def validate_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}."
            )

    def validate_window(self) -> None:
        if len(self.window_size) != 3 or any(size < 2 or size % 2 for size in self.window_size):
            raise ValueError(
                f"window_size is {self.window_size}; expected three even token counts (frames, rows, columns)."
            )

    def validate_sizes(self) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "attention_every",
            "patch_size",
            "num_basis",
            "num_scale_basis",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the parent names what kwargs holds
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Load a config by bundled name, folder or Hub id.

        Raises:
            InputError: unknown name, a config of another model, or one that was altered.
        """
        name = os.fspath(pretrained_model_name_or_path)
        path = model_file(name, "config.json", **take_hub_options(kwargs))
        with loading(name):
            content, _ = cls.get_config_dict(path, **kwargs)
        if content.get("model_type") != cls.model_type:
            raise InputError(
                f"{name} is a config of model type {content.get('model_type')!r}; expected {cls.model_type!r}."
            )
        with loading(name):
            return super().from_pretrained(path, **kwargs)


AutoConfig.register(EMformerConfig.model_type, EMformerConfig, exist_ok=True)

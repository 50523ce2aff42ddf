"""What transformers asks of every model, asked of ours: ``make conformance``.

Annotations stay as they are: the tests look at the type of a model's keyword arguments.
"""

import unittest
from typing import Any, Unpack

import torch
from _transformers.test_modeling_common import ModelTesterMixin
from transformers.utils.generic import TransformersKwargs

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.modeling_emformer import EMformerModel


class EMformerModelTester:
    """A small model and a batch for it: a window holds as many tokens as a row of the batch."""

    is_training = True
    batch_size = 3
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 16
    encoder_seq_length = 16

    def get_config(self) -> EMformerConfig:
        return EMformerConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            attention_every=1,
            num_attention_heads=self.num_attention_heads,
            window_size=[2, 2, 4],
            num_basis=6,
            num_scale_basis=3,
            condition_size=8,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[EMformerConfig, dict[str, Any]]:
        sections = torch.randn(self.batch_size, 4, 6, 2 * self.encoder_seq_length)
        masked = torch.arange(6).view(-1, 1) == torch.arange(self.batch_size).view(-1, 1, 1, 1)  # a row of each clip
        return self.get_config(), {"sections": sections, "section_mask": masked}


class Doubling(EMformerModel):
    """The network at one factor: the tests give a model its main input alone."""

    def forward(self, sections: torch.Tensor, factor: float = 2.0, **kwargs: Unpack[TransformersKwargs]) -> Any:
        return super().forward(sections, factor, **kwargs)


class EMformerModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Doubling,)
    test_can_init_all_missing_weights_before_2023 = True
    test_resize_embeddings = False

    def setUp(self) -> None:
        self.model_tester = EMformerModelTester()

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        batch, frames, rows, columns = inputs["sections"].shape
        return inputs | ({"labels": torch.zeros(batch, frames, 2 * rows, columns)} if return_labels else {})

    def test_model_get_set_embeddings(self) -> None:
        """The network embeds pixels by a convolution: there is no table of tokens to replace."""
        assert isinstance(EMformerModel(self.model_tester.get_config()).get_input_embeddings(), torch.nn.Conv2d)

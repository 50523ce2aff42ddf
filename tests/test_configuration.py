"""EMformerConfig: what it accepts, and that it survives its JSON form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError

OTHER_THAN_DEFAULT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "window_size": (2, 4, 6),
    "patch_size": 4,
    "mlp_ratio": 2,
    "num_basis": 7,
    "num_scale_basis": 3,
    "condition_size": 5,
}


def test_every_field_survives_saving(tmp_path: Path) -> None:
    config = EMformerConfig(**OTHER_THAN_DEFAULT)
    config.save_pretrained(tmp_path)
    loaded = EMformerConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    assert loaded.to_dict() == config.to_dict()


def test_saved_config_says_what_it_is(tmp_path: Path) -> None:
    EMformerConfig().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "emformer"
    assert set(OTHER_THAN_DEFAULT) <= set(content)  # defaults are written too: they may change, a saved model may not


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 20, "num_attention_heads": 3}, "hidden_size 20 is not a multiple of num_attention_heads 3"),
        ({"window_size": (3, 2, 2)}, "three even token counts"),
        ({"window_size": (2, 0, 2)}, "three even token counts"),
        ({"window_size": [4, 4]}, "three even token counts"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected at least 1"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_basis": 0}, "num_basis is 0"),
        ({"hidden_size": "wide"}, "expected int"),
        ({"patch_size": 2.5}, "expected int"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        EMformerConfig(**fields)


def test_config_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    with pytest.raises(InputError, match="model type 'bert'; expected 'emformer'"):
        EMformerConfig.from_pretrained(tmp_path)


def test_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'emformer-smal' is not known; expected one of .*emformer-small"):
        EMformerConfig.from_pretrained("emformer-smal")


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        EMformerConfig.from_pretrained(tmp_path)

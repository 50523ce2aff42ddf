"""The public names, and what importing the package does to others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import emformer_hub
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor


@pytest.mark.parametrize("name", emformer_hub.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(emformer_hub, name)
    assert value.__name__ == name and value.__module__.startswith("emformer_hub.")
    assert getattr(emformer_hub, name) is value


def test_names_are_listed_in_order_and_can_be_completed() -> None:
    assert emformer_hub.__all__ == sorted(emformer_hub.__all__)
    assert dir(emformer_hub) == emformer_hub.__all__
    namespace: dict[str, object] = {}
    exec("from emformer_hub import *", namespace)
    assert set(emformer_hub.__all__) <= set(namespace)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'emformer_hub' has no attribute 'restore'"):
        _ = emformer_hub.restore
    with pytest.raises(ImportError, match="restore"):
        exec("from emformer_hub import restore")


@pytest.mark.parametrize(
    "imports",
    [
        "import emformer_hub\nfrom transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor",
        "from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor\nimport emformer_hub",
        "import emformer_hub\nfrom transformers import AutoProcessor, AutoFeatureExtractor, AutoConfig",
        "import emformer_hub\nfrom transformers import AutoImageProcessor, AutoModel, AutoFeatureExtractor\n"
        "from transformers import AutoConfig, AutoProcessor\n"
        "assert emformer_hub.EMformerConfig in AutoModel._model_mapping",
    ],
    ids=["emformer_hub first", "transformers first", "the whole first", "pictures first"],
)
def test_auto_classes_know_the_model_and_its_parts(tmp_path: Path, imports: str) -> None:
    EMformerModel(EMformerConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(tmp_path)
    EMformerProcessor().save_pretrained(tmp_path)
    code = f"""{imports}
for auto in AutoConfig, AutoFeatureExtractor, AutoProcessor:
    print(type(auto.from_pretrained({str(tmp_path)!r})).__name__)
import transformers
print(type(transformers.AutoModel.from_pretrained({str(tmp_path)!r})).__name__)"""
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=600)
    assert run.stdout.split() == ["EMformerConfig", "EMformerProcessor", "EMformerProcessor", "EMformerModel"], (
        run.stderr
    )

"""Bakes an adapter into its base: a folder of plain weights, with the page that tells where they come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emformer_hub.adapters import load_adapter
from emformer_hub.errors import ModelNotFoundError
from emformer_hub.files import check_file, replacing
from emformer_hub.hub.licences import README
from emformer_hub.model_files import model_file
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor

BESIDE = ("recipe.yaml", "report.json", "comparison.png")
"""What the page of an adapter shows or names."""


def merge(adapter: str, output: Path) -> EMformerModel:
    """Write the model of an adapter and its base, with the same results, its processor, and a page.

    Args:
        adapter: folder or Hub id.
        output: folder that does not exist.

    Raises:
        InputError: there is no such adapter, its base cannot be found or does not fit, or the output exists.
    """
    check_file(output, overwrite=False)
    adapted = load_adapter(adapter)
    base = str(adapted.peft_config["default"].base_model_name_or_path)
    model: EMformerModel = adapted.merge_and_unload()
    processor = EMformerProcessor.from_pretrained(adapter)
    page = _page(adapter, output.name, base)
    with replacing(output) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / README).write_text(page)
        for file in BESIDE:
            if (content := _read(adapter, file)) is not None:
                (partial / file).write_bytes(content)
    return model


def _page(adapter: str, name: str, base: str) -> str:
    """The page of the adapter, which becomes that of a whole model; licence and figures stay."""
    from huggingface_hub import ModelCard

    text = (_read(adapter, README) or b"").decode()
    card: Any = ModelCard(text or f"---\n---\n\n# {name}\n", ignore_metadata_errors=True)
    heading = re.search(r"^# (.+)$", card.text, re.M)
    former = heading[1] if heading else Path(adapter).name
    card.data.library_name = "transformers"
    card.data.pipeline_tag = "image-to-image"
    card.data.base_model = card.data.base_model or base
    card.data.base_model_relation = "finetune"
    said = f"The adapter `{Path(adapter).name}`, merged into its base: plain weights, the same results."
    card.text = re.sub(r"^# .*$", lambda _: f"# {name}\n\n{said}", card.text, count=1, flags=re.M)
    card.text = card.text.replace(f'model="{former}"', f'model="{name}"')
    return str(card)


def _read(adapter: str, file: str) -> bytes | None:
    try:
        return model_file(adapter, file).read_bytes()
    except ModelNotFoundError:
        return None

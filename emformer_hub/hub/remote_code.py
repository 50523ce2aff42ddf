"""The code that travels with weights: ``trust_remote_code=True`` loads them with transformers and einops alone."""

from __future__ import annotations

import json
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
AUTO_MAPS = {
    "config.json": {
        "AutoConfig": "configuration_emformer.EMformerConfig",
        "AutoModel": "modeling_emformer.EMformerModel",
    },
    "preprocessor_config.json": {
        "AutoFeatureExtractor": "processing_emformer.EMformerProcessor",
        "AutoImageProcessor": "processing_emformer.EMformerProcessor",
        "AutoProcessor": "processing_emformer.EMformerProcessor",
    },
}
"""Classes that each Auto class of transformers loads."""
PIPELINES = {"image-to-image": {"impl": "pipeline_emformer.EMformerPipeline", "pt": ["AutoModel"], "type": "image"}}
"""What the snippet on the Hub's page runs, by the tag of the page."""


def remote_code() -> dict[str, Path]:
    """Files that define the network and the processor, by name, with all files of this package that they import."""
    from transformers.dynamic_module_utils import get_relative_import_files

    roots = [PACKAGE / f"{name}_emformer.py" for name in ("modeling", "pipeline", "processing")]
    found = {*roots, *(Path(path) for root in roots for path in get_relative_import_files(root))}
    return {path.name: path for path in sorted(found)}


def with_auto_map(path: Path) -> bytes:
    """The content of a ``config.json`` or ``preprocessor_config.json`` that names the classes of the remote code."""
    content = json.loads(path.read_text()) | {"auto_map": AUTO_MAPS[path.name]}
    if path.name == "config.json":
        content["custom_pipelines"] = PIPELINES
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

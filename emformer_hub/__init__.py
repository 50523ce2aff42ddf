"""EMformer: isotropic volumes from anisotropic electron-microscopy stacks.

Public names are imported on first use, so that ``import emformer_hub`` is instant. The Auto classes of transformers
learn about EMformer as soon as both packages are imported, in either order.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from emformer_hub.configuration_emformer import EMformerConfig
    from emformer_hub.errors import InputError
    from emformer_hub.geometry import SectionModel, VoxelSize
    from emformer_hub.inspection import Inspection, inspect_stack
    from emformer_hub.modeling_emformer import EMformerModel, EMformerOutput
    from emformer_hub.pretrained import resolve_pretrained
    from emformer_hub.processing_emformer import EMformerProcessor
    from emformer_hub.reconstruction import Reconstruction, reconstruct, reconstruct_file
    from emformer_hub.transform import Grids, transform_file
    from emformer_hub.uneven import UnevenSections
    from emformer_hub.volumes import Volume, create_volume, open_volume, read_volume, write_volume
    from emformer_hub.z_positions import read_z_positions

_HOMES = {
    "EMformerConfig": "configuration_emformer",
    "EMformerModel": "modeling_emformer",
    "EMformerOutput": "modeling_emformer",
    "EMformerProcessor": "processing_emformer",
    "Grids": "transform",
    "InputError": "errors",
    "Inspection": "inspection",
    "Reconstruction": "reconstruction",
    "SectionModel": "geometry",
    "UnevenSections": "uneven",
    "Volume": "volumes",
    "VoxelSize": "geometry",
    "create_volume": "volumes",
    "inspect_stack": "inspection",
    "open_volume": "volumes",
    "read_volume": "volumes",
    "read_z_positions": "z_positions",
    "reconstruct": "reconstruction",
    "reconstruct_file": "reconstruction",
    "resolve_pretrained": "pretrained",
    "transform_file": "transform",
    "write_volume": "volumes",
}

__all__ = [
    "EMformerConfig",
    "EMformerModel",
    "EMformerOutput",
    "EMformerProcessor",
    "Grids",
    "InputError",
    "Inspection",
    "Reconstruction",
    "SectionModel",
    "UnevenSections",
    "Volume",
    "VoxelSize",
    "create_volume",
    "inspect_stack",
    "open_volume",
    "read_volume",
    "read_z_positions",
    "reconstruct",
    "reconstruct_file",
    "resolve_pretrained",
    "transform_file",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'emformer_hub' has no attribute {name!r}")
    value = getattr(import_module(f"emformer_hub.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


@wrapt.when_imported("transformers.models.auto.configuration_auto")
@wrapt.when_imported("transformers.models.auto.modeling_auto")
@wrapt.when_imported("transformers.models.auto.feature_extraction_auto")
@wrapt.when_imported("transformers.models.auto.image_processing_auto")
@wrapt.when_imported("transformers.models.auto.processing_auto")
def _register(auto: ModuleType) -> None:
    """Import the module that registers with this part of the Auto classes (a no-op while it is being imported)."""
    part = auto.__name__.rpartition(".")[2].removesuffix("_auto")
    home = {"configuration": "configuration", "modeling": "modeling"}.get(part, "processing")
    whole = sys.modules.get("transformers.models.auto.processing_auto")
    if home == "processing" and whole is not None and not hasattr(whole, "AutoProcessor"):
        return  # it imports the others of its kind, and is not done yet
    import_module(f"emformer_hub.{home}_emformer")

"""Words for settings, on the page in the browser and in napari."""

from __future__ import annotations

from emformer_hub.modes import Mode

KEPT: dict[str, Mode] = {"left out": "clean", "kept, as it was measured": "faithful"}
"""What becomes of the noise of sections."""
THROUGH, FACE = "seen through (ssTEM, array tomography)", "block faces (SBF-SEM, FIB-SEM)"
LISTED = "uneven, as a file lists them"
"""How sections sample tissue: how they are imaged, or where they lie."""
AS_THEY_ARE, BY_MEASURED, BY_LISTED = "no", "by measured translations", "by translations in a file"
"""How sections are aligned as they are read."""
METHODS = {"an adapter (LoRA)": "lora", "the decoder": "head", "all weights": "full"}
"""What is trained."""

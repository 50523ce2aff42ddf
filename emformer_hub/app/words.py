"""Words for settings, on the page in the browser and in napari."""

from __future__ import annotations

from emformer_hub.modes import Mode

KEPT: dict[str, Mode] = {"left out": "clean", "kept, as it was measured": "faithful"}
"""What becomes of the noise of sections."""
THROUGH, FACE = "seen through (ssTEM, array tomography)", "block faces (SBF-SEM, FIB-SEM)"
"""How sections are imaged."""
METHODS = {"an adapter (LoRA)": "lora", "the decoder": "head", "all weights": "full"}
"""What is trained."""


def thickness_of(imaged: str, factor: float) -> float:
    """Imaged fraction of the section spacing: all of it for ``THROUGH``, one output plane for ``FACE``."""
    return 1.0 if imaged == THROUGH else 1 / factor

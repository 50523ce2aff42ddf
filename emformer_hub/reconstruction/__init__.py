"""From an anisotropic volume to an isotropic one: in memory, or from file to file."""

from emformer_hub.reconstruction.from_file import reconstruct_file
from emformer_hub.reconstruction.in_memory import Reconstruction, reconstruct

__all__ = ["Reconstruction", "reconstruct", "reconstruct_file"]

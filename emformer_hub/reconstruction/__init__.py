"""From an anisotropic volume to an isotropic one: blocks, the main job."""

from emformer_hub.reconstruction.restorer import Reconstruction, reconstruct

__all__ = ["Reconstruction", "reconstruct"]

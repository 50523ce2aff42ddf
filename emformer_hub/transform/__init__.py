"""Points, skeletons and labels, carried between the grid of a stack and the isotropic one of its reconstruction."""

from emformer_hub.transform.files import transform_file
from emformer_hub.transform.grids import Grids

__all__ = ["Grids", "transform_file"]

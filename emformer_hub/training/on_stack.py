"""A model adapted to one stack, which may be open already: what the panel in napari and the page in the browser do."""

from __future__ import annotations

import tempfile
from pathlib import Path

from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction.settings import OpenStack
from emformer_hub.training.loop import Progress, train
from emformer_hub.training.recipe import Recipe
from emformer_hub.volumes import write_volume


def finetune_on(
    stack: OpenStack,
    size: VoxelSize,
    output: Path,
    *,
    base: str,
    method: str,
    length: dict[str, float],
    resume: bool = False,
    progress: Progress = lambda record: None,
) -> str:
    """Train on a stack; one that is only in memory is written to a temporary file, which training reads.

    Args:
        stack: the stack.
        size: its voxel size, nm.
        output: folder of the model, as for :func:`~emformer_hub.training.loop.train`.
        base: name of the model to begin with.
        method: ``lora``, ``head`` or ``full``.
        length: ``minutes`` or ``steps`` of training.
        resume, progress: as for ``train``.

    Returns:
        The report: whether it helped, as Markdown.

    Raises:
        InputError: as ``train``.
    """
    with tempfile.TemporaryDirectory(prefix="emformer-") as folder:
        path = Path(stack.path).absolute()
        if not stack.stored:
            path = Path(folder) / f"{stack.path.replace('/', '-')}.ome.zarr"
            write_volume(path, stack.volume.data, size)
        entry = {"path": str(path), "voxel_size": ",".join(f"{length:.12g}" for length in size.zyx)}
        recipe = "full" if method == "full" else "lora"
        chosen = Recipe.load(recipe, volumes=[entry], base=base, method=method, **length)
        return train(chosen, output, resume=resume, progress=progress) or ""

"""The main job on a synthetic neuropil phantom: section it, reconstruct it, look at it, measure it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import comparison_picture, evaluate
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes import VoxelSize, write_volume
from emformer_hub.volumes.phantom import neuropil

FACTOR = 5
SHAPE = (160, 192, 192)
VOXEL_SIZE = VoxelSize(8, 8, 8)  # nm, of the isotropic truth
FILES = ("stack.ome.tif", "isotropic.ome.tif", "uncertainty.ome.tif", "comparison.png")


def demonstrate(
    folder: Path, *, model: str = "emformer-small", device: str = "auto", overwrite: bool = False
) -> Iterator[str]:
    """Write ``FILES`` into a folder, and yield the lines of a table of figures as they are known.

    Args:
        folder: made if it does not exist.
        model: bundled name, folder or Hub id.
        device: as in :func:`emformer_hub.reconstruct`.
        overwrite: replace files of these names.

    Raises:
        InputError: the folder holds such a file already, or cannot be made.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise InputError(f"{folder} holds {there[0]} already; choose another folder, or replace it with --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made: {error.strerror}. Choose another one.") from error
    truth = neuropil(SHAPE, seed=7)
    microscope = SectionModel(FACTOR)  # physical sections, seen through their whole thickness
    stack = to_dtype(microscope.degrade(truth), truth.dtype)
    anisotropic, isotropic, uncertainty, picture = (folder / name for name in FILES)
    write_volume(anisotropic, stack, VOXEL_SIZE.with_z(VOXEL_SIZE.z * FACTOR), overwrite=overwrite)

    result = reconstruct(stack, factor=FACTOR, model=model, device=device)
    cubic = to_dtype(interpolate(stack, microscope, "cubic"), stack.dtype)

    write_volume(isotropic, result.volume, VOXEL_SIZE, overwrite=overwrite)
    write_volume(uncertainty, result.uncertainty, VOXEL_SIZE, overwrite=overwrite)
    comparison_picture(
        picture,
        sections=stack,
        interpolated=cubic,
        reconstruction=result.volume,
        truth=truth,
        uncertainty=result.uncertainty,
        voxel_size=VOXEL_SIZE,
        factor=FACTOR,
        title=f"Synthetic neuropil, factor {FACTOR}",
    )
    yield f"{'':20}{'PSNR dB':>9}{'SSIM 3-D':>10}{'FSC z nm':>10}"
    for name, volume in (("cubic interpolation", cubic), (model, result.volume)):
        figures = evaluate(volume, truth, VOXEL_SIZE)
        z = figures["fsc"]["resolution_nm"]["z"]
        yield f"{name:20}{figures['psnr_db']:9.2f}{figures['ssim']['3d']:10.3f}{z:10.1f}"

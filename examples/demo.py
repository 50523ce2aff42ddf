"""The main job on a synthetic neuropil phantom: section it, reconstruct it, look at it, measure it.

Run with ``make demo``; writes to ``demo-output/``.
"""

from pathlib import Path

from emformer_hub import SectionModel, VoxelSize, reconstruct, write_volume
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import comparison_picture, evaluate
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.volumes.phantom import neuropil

FACTOR = 5
VOXEL_SIZE = VoxelSize(8, 8, 8)  # nm, of the isotropic truth
OUTPUT = Path("demo-output")


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    truth = neuropil((160, 192, 192), seed=7)
    microscope = SectionModel(FACTOR)  # physical sections, seen through their whole thickness
    stack = to_dtype(microscope.degrade(truth), truth.dtype)
    write_volume(OUTPUT / "stack.ome.tif", stack, VOXEL_SIZE.with_z(VOXEL_SIZE.z * FACTOR), overwrite=True)

    result = reconstruct(stack, factor=FACTOR)
    cubic = to_dtype(interpolate(stack, microscope, "cubic"), stack.dtype)

    write_volume(OUTPUT / "isotropic.ome.tif", result.volume, VOXEL_SIZE, overwrite=True)
    write_volume(OUTPUT / "uncertainty.ome.tif", result.uncertainty, VOXEL_SIZE, overwrite=True)
    comparison_picture(
        OUTPUT / "comparison.png",
        sections=stack,
        interpolated=cubic,
        reconstruction=result.volume,
        truth=truth,
        uncertainty=result.uncertainty,
        voxel_size=VOXEL_SIZE,
        factor=FACTOR,
        title=f"Synthetic neuropil, factor {FACTOR}",
    )
    print(f"{'':20}{'PSNR dB':>9}{'SSIM 3-D':>10}{'FSC z nm':>10}")
    for name, volume in (("cubic interpolation", cubic), ("emformer-small", result.volume)):
        figures = evaluate(volume, truth, VOXEL_SIZE)
        z = figures["fsc"]["resolution_nm"]["z"]
        print(f"{name:20}{figures['psnr_db']:9.2f}{figures['ssim']['3d']:10.3f}{z:10.1f}")
    print(f"\nWritten to {OUTPUT.resolve()}: " + ", ".join(sorted(path.name for path in OUTPUT.iterdir())))


if __name__ == "__main__":
    main()

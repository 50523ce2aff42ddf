"""All formats, as data and as the page ``docs/formats.md``, which ``python -m emformer_hub.volumes.formats`` prints."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from emformer_hub.volumes.foreign import FOREIGN
from emformer_hub.volumes.output import (
    HDF5_SUFFIXES,
    MRC_SUFFIXES,
    N5_SUFFIXES,
    PRECOMPUTED_SUFFIXES,
    TIFF_SUFFIXES,
    WKW_SUFFIXES,
    ZARR_SUFFIXES,
)


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        name: of the format.
        library: that reads it, and the extra that installs it.
        written: suffixes of outputs; "" if it is only read.
        voxel_size: what states it.
        on_disk: whether voxels stay on disk until they are needed.
    """

    name: str
    library: str
    written: str
    voxel_size: str
    on_disk: str


def _written(suffixes: tuple[str, ...]) -> str:
    return ", ".join(f"`{suffix}`" for suffix in suffixes)


FORMATS = (
    Format(
        "TIFF, OME-TIFF, ImageJ, BigTIFF",
        "tifffile; compressed: imagecodecs (`images`)",
        _written((".ome.tif", *TIFF_SUFFIXES)),
        "OME-XML, ImageJ; pixels: FEI, Zeiss, Olympus, TVIPS",
        "yes, but for colours",
    ),
    Format(
        "folder of TIFF, PNG, BMP, JPEG, JPEG 2000, DM3, DM4",
        "tifffile; DM: ncempy (`dm`); others: imageio (`images`)",
        "no suffix (TIFF)",
        "the first section, of TIFF and DM",
        "yes",
    ),
    Format("OME-Zarr 0.4, 0.5", "zarr", _written(ZARR_SUFFIXES), "scale of level and image", "yes, and elsewhere"),
    Format("Zarr 2, 3", "zarr", "", "`resolution`, `voxel_size`, `transform`, …", "yes, and elsewhere"),
    Format(
        "HDF5: ilastik, CREMI, Fiji, BigDataViewer, Imaris",
        "h5py (`hdf5`)",
        _written(HDF5_SUFFIXES),
        "`element_size_um`, `resolution`, …; Imaris extents",
        "yes",
    ),
    Format("MRC", "mrcfile (`mrc`)", _written(MRC_SUFFIXES), "header", "yes"),
    Format(
        "N5",
        "tensorstore (`remote`)",
        _written(N5_SUFFIXES),
        "`transform`, `pixelResolution`, `resolution`",
        "yes, and elsewhere",
    ),
    Format(
        "Neuroglancer precomputed",
        "tensorstore (`remote`)",
        _written(PRECOMPUTED_SUFFIXES),
        "`info`",
        "yes, and elsewhere",
    ),
    Format("BigDataViewer XML", "h5py (`hdf5`), tensorstore (`remote`)", "", "`voxelSize`, with unit", "yes"),
    Format("Digital Micrograph DM3, DM4", "ncempy (`dm`)", "", "calibration, with units", "yes"),
    Format("WEBKNOSSOS data set", "wkw (`wkw`)", _written(WKW_SUFFIXES), "`datasource-properties.json`", "yes"),
    Format("MetaImage (.mha, .mhd)", "SimpleITK (`itk`)", "", "none: spacings have no unit", "uncompressed"),
    Format("NRRD", "pynrrd (`nrrd`)", "", "spacings, with units", "no"),
    Format("NIfTI", "nibabel (`nifti`)", "", "pixdim, with units", "uncompressed"),
    Format("NumPy .npy", "numpy", "", "none", "yes"),
)


DAMAGE = (
    ("a file that was cut short", "named, in every format; in chunked ones with the voxels that it held", ""),
    (
        "a chunk of Zarr, N5 or precomputed that is missing, here or elsewhere",
        "named where most voxels beside it are other than the fill value; up to 65,536 chunks when the array is "
        "opened, of more and at addresses when they are read",
        "one beside which there is nothing but the fill value: it may be a margin. Chunks in shards of precomputed. "
        "Files of .wkw: WEBKNOSSOS leaves out what is empty",
    ),
    (
        "bytes that changed, or were never written, in a file of the right length",
        "named where the format keeps a checksum (gzip, deflated TIFF, sharded Zarr 3, HDF5 with fletcher32), and "
        "4,096 zeros in succession within a compressed chunk of Zarr",
        "others in what has no checksum: uncompressed voxels of any format, Blosc, LZ4, LZW, and Zstandard as most "
        "programs write it. Compare checksums after copying",
    ),
)
"""Kinds of damage, what is done about them, and what is not noticed."""


def page() -> str:
    """The page on formats, Markdown."""
    lines = [
        "# Formats",
        "",
        "What is read, and by which library. In brackets is the extra that installs it, as in",
        "`pip install 'emformer-hub[hdf5]'`.",
        "Axes and voxel sizes are what a file says; `--axes`, `--channel`, `--time`, `--series`, `--pattern` and",
        "`--voxel-size` say what it does not. This page is printed by `python -m emformer_hub.volumes.formats`.",
        "",
        "| format | library | written as | voxel size from | stays on disk |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(astuple(one))} |" for one in FORMATS),
        "",
        "What is not read is named, with the way to a format that is:",
        "",
        "| format | files | what to do |",
        "|---|---|---|",
        *(f"| {one.name} | {', '.join(f'`{s}`' for s in one.suffixes)} | {one.way_out} |" for one in FOREIGN),
        "",
        "## Damage",
        "",
        "| what | found | not noticed |",
        "|---|---|---|",
        *(f"| {' | '.join(kind)} |" for kind in DAMAGE),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())

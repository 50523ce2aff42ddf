"""Formats that are not read: each is named, with the way to one that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emformer_hub.errors import InputError

_FIJI = "open it in Fiji, with Bio-Formats where Fiji asks for it, and save it as OME-TIFF"
_BEGINNING = 512  # bytes that are compared


@dataclass(frozen=True)
class Foreign:
    """A format that is not read.

    Attributes:
        name: of the format.
        suffixes: of its files, lower case.
        way_out: how to get a format that is read.
        magic: the bytes its files may begin with, if there are such.
    """

    name: str
    suffixes: tuple[str, ...]
    way_out: str
    magic: tuple[bytes, ...] = ()


FOREIGN = (
    Foreign("a gzip archive", (".gz", ".tgz"), "unpack it first, with `gunzip`", (b"\x1f\x8b",)),
    Foreign("a bzip2 archive", (".bz2",), "unpack it first, with `bunzip2`", (b"BZh",)),
    Foreign("an xz archive", (".xz",), "unpack it first, with `unxz`", (b"\xfd7zXZ",)),
    Foreign("a Zstandard archive", (".zst",), "unpack it first, with `unzstd`", (b"\x28\xb5\x2f\xfd",)),
    Foreign("a ZIP archive", (".zip",), "unpack it first, with `unzip`, and give what was in it", (b"PK\x03\x04",)),
    Foreign(
        "a 7-Zip archive", (".7z",), "unpack it first, with `7z x`, and give what was in it", (b"7z\xbc\xaf\x27\x1c",)
    ),
    Foreign("a RAR archive", (".rar",), "unpack it first, with `unrar x`, and give what was in it", (b"Rar!",)),
    Foreign("a tar archive", (".tar",), "unpack it first, with `tar xf`, and give what was in it"),
    Foreign(
        "Amira or Avizo",
        (".am", ".amiramesh"),
        "open it in Amira, or in Fiji (File > Import > Amira), and save it as TIFF",
        (b"# AmiraMesh", b"# Avizo", b"# HyperMesh"),
    ),
    Foreign("Imaris", (".ims",), "open it in Imaris or Fiji and save it as OME-TIFF"),
    Foreign(
        "Zeiss ZEN (.czi)",
        (".czi",),
        "save it as OME-TIFF in ZEN (Export), or in Fiji with Bio-Formats",
        (b"ZISRAWFILE",),
    ),
    Foreign("Leica (.lif)", (".lif", ".lof", ".xlef"), _FIJI),
    Foreign("Nikon (.nd2)", (".nd2",), _FIJI, (b"\xda\xce\xbe\x0a",)),
    Foreign("Olympus", (".oib", ".oif", ".vsi", ".oir"), _FIJI),
    Foreign("Thermo Fisher TIA (.ser)", (".ser", ".emi"), _FIJI, (b"\x49\x49\x97\x01",)),
    Foreign("EER, movies of single electrons", (".eer",), "sum its frames first, in RELION or MotionCor, and save MRC"),
    Foreign("DICOM", (".dcm", ".dicom"), "convert it, for example with `dcm2niix`, to NIfTI"),
    Foreign(
        "XML, and not that of BigDataViewer",
        (".xml",),
        "give the stack that it describes",
        (b"<?xml",),
    ),
    Foreign(
        "WEBKNOSSOS wrapper (.wkw)",
        (".wkw",),
        "give the folder of the data set, in which datasource-properties.json lies",
        (b"WKW",),
    ),
    Foreign("KLB", (".klb",), _FIJI),
    Foreign("VAST Lite (.vsv)", (".vsv", ".vsvi", ".vss"), "export it from VAST as TIFF sections"),
    Foreign(
        "raw voxels without a header",
        (".raw", ".bin", ".dat", ".vol"),
        "import it in Fiji (File > Import > Raw) with its sides and type, and save it as TIFF",
    ),
    Foreign("MATLAB", (".mat",), "save it in MATLAB with `-v7.3`, which makes HDF5, or write a TIFF", (b"MATLAB 5.0",)),
    Foreign("a NumPy archive", (".npz",), "save the one array in it as .npy, by numpy.save"),
    Foreign(
        "a Python pickle",
        (".pkl", ".pickle", ".pt", ".pth"),
        "pickles are never loaded; save the array as .npy, by numpy.save",
    ),
    Foreign(
        "one image",
        (".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".webp"),
        "give the folder that holds all sections",
        (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"\0\0\0\x0cjP"),
    ),
    Foreign("a movie", (".avi", ".mp4", ".mov", ".mkv"), "open it in Fiji and save it as a TIFF stack"),
    Foreign(
        "metadata of a Zarr, N5 or precomputed",
        (".json", ".zarray", ".zgroup", ".zattrs"),
        "give the folder that it lies in",
    ),
    Foreign(
        "a description of another file",
        (".csv", ".txt", ".md", ".yaml", ".yml", ".toml", ".hdr", ".mdoc"),
        "give the stack itself",
    ),
)
"""Formats that are not read but that people have; the first that fits counts."""
_FOLDERS = {
    "knossos.conf": ("a KNOSSOS data set", "convert it with `webknossos convert-knossos`, or export it as TIFF"),
    "mag1": ("a KNOSSOS data set", "convert it with `webknossos convert-knossos`, or export it as TIFF"),
}
"""What marks a folder of another format, its name, and the way out."""


def named(path: Path) -> InputError:
    """The error for a file in a format that is not read."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    found = next((one for one in FOREIGN if beginning.startswith(one.magic)), None)
    if beginning[128:132] == b"DICM":
        found = next(one for one in FOREIGN if one.name == "DICOM")
    found = found or next((one for one in FOREIGN if path.name.lower().endswith(one.suffixes)), None)
    if found is not None:
        return InputError(f"{path} is {found.name}, which is not read here; {found.way_out}.")
    start = beginning[:8].hex(" ") or "nothing"
    return InputError(
        f"{path} is in an unknown format: it begins with {start}. Expected a TIFF stack, HDF5, MRC, NRRD, "
        f"NIfTI or .npy, or a folder that is OME-Zarr, Zarr, N5, precomputed or of sections. Was it copied "
        f"completely? Otherwise {_FIJI}."
    )


def named_folder(folder: Path) -> InputError | None:
    """The error for a folder in a format that is not read; ``None`` if it is not one of those known."""
    for mark, (name, way_out) in _FOLDERS.items():
        if (folder / mark).exists():
            return InputError(f"{folder} is {name}, which is not read here; {way_out}.")
    return None

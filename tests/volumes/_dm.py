"""Writes DM3 and DM4 as Digital Micrograph does, as far as readers look: a thumbnail, and a calibrated image."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_TYPES = {"int16": (1, 2), "float32": (2, 6), "uint8": (6, 8), "int32": (7, 3), "uint16": (10, 4), "float64": (12, 7)}
"""Data type of an image, and type of the elements of an array, by dtype."""


def write_dm(
    path: Path,
    data: np.ndarray,
    lengths: Sequence[float],
    units: Sequence[str],
    *,
    version: int = 4,
    thumbnail: bool = True,
    swapped: bool = False,
) -> None:
    """Write an array, its axes from the slowest on, and the length of a voxel along each with its unit."""
    images = [_image(np.zeros((4, 4), np.int32), 23, [], [])] if thumbnail else []
    images.append(_image(data, _TYPES[data.dtype.name][0], lengths[::-1], units[::-1]))
    body = _Writer(version).group({"ImageList": {f"#{number}": image for number, image in enumerate(images)}})
    size = struct.pack(">I" if version == 3 else ">Q", len(body))
    path.write_bytes(struct.pack(">I", version) + size + struct.pack(">I", 0 if swapped else 1) + body + bytes(8))


def _image(data: np.ndarray, kind: int, lengths: Sequence[float], units: Sequence[str]) -> dict[str, Any]:
    dimensions = {
        f"#{number}": {"Origin": np.float32(0), "Scale": np.float32(length), "Units": unit}
        for number, (length, unit) in enumerate(zip(lengths, units, strict=True))
    }
    sides = {f"#{number}": np.uint32(side) for number, side in enumerate(data.shape[::-1])}
    content = {
        "Calibrations": {"Dimension": dimensions},
        "Data": data,
        "DataType": np.uint32(kind),
        "Dimensions": sides,
    }
    return {"ImageData": content, "ImageTags": {}}


class _Writer:
    def __init__(self, version: int):
        self.version, self.long = version, ">I" if version == 3 else ">Q"

    def group(self, tags: Mapping[str, Any]) -> bytes:
        entries = b"".join(self.entry("" if name.startswith("#") else name, value) for name, value in tags.items())
        return b"\1\0" + struct.pack(self.long, len(tags)) + entries

    def entry(self, name: str, value: Any) -> bytes:
        content = self.group(value) if isinstance(value, dict) else self.data(value)
        label = bytes([20 if isinstance(value, dict) else 21]) + struct.pack(">H", len(name)) + name.encode()
        return label + (struct.pack(">Q", len(content)) if self.version == 4 else b"") + content

    def data(self, value: Any) -> bytes:
        if isinstance(value, str):
            value = np.frombuffer(value.encode("utf-16-le"), np.uint16)
        if not isinstance(value, np.ndarray):
            kind = {"uint32": 5, "float32": 6}[value.dtype.name]
            return b"%%%%" + struct.pack(self.long, 1) + struct.pack(self.long, kind) + value.tobytes()
        info = (20, _TYPES[value.dtype.name][1], value.size)
        return b"%%%%" + struct.pack(self.long, 3) + b"".join(struct.pack(self.long, n) for n in info) + value.tobytes()

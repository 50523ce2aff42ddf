"""Pages of a TIFF that do not lie there as they are, but compressed, in tiles or anywhere; decoded as they are read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product, repeat
from typing import Any

import numpy as np
import tifffile

from emformer_hub.machine import num_threads
from emformer_hub.volumes.decoded import decoded

_JPEG = (6, 7, 33007, 34892)  # compressions of TIFF whose tables stand beside the pages
_MOST_THREADS = 8


@dataclass(frozen=True, eq=False)
class _Page:
    """Where the segments of a page lie, strips or tiles, in their order, and what decodes them."""

    path: str
    offsets: np.ndarray
    lengths: np.ndarray
    keyframe: Any
    tables: dict[str, Any]

    def read(self, number: int) -> np.ndarray:
        """A segment, ``(rows, columns)``, of the file's byte order turned."""
        with open(self.path, "rb") as file:
            file.seek(int(self.offsets[number]))
            content = file.read(int(self.lengths[number]))
        if len(content) < self.lengths[number]:
            raise ValueError(f"a page ends after {len(content)} of {self.lengths[number]} bytes")
        voxels, _, shape = self.keyframe.decode(content or None, number, **self.tables)
        if voxels is None:  # nothing was written there
            voxels = np.full(shape, self.keyframe.nodata, self.keyframe.dtype)
        return voxels.reshape(shape[1:3])


@dataclass(frozen=True, eq=False)
class Pages:
    """Pages of equal shape, which hold one array ``(..., y, x)``.

    Attributes:
        shape: of the array.
        dtype: in native byte order.
        chunks: sides of a segment, 1 along all other axes.
        source: path of the file, numbers of its images that are the pages, and the shape.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    pages: Sequence[_Page]
    source: tuple[str, list[int], tuple[int, ...]]

    def read(self, index: tuple[slice | int, ...]) -> np.ndarray:
        """A part of the array; each of its segments is decoded once, by several threads."""
        places = [np.atleast_1d(np.arange(length)[part]) for part, length in zip(index, self.shape, strict=True)]
        *lead, rows, columns = places
        numbers = [int(np.ravel_multi_index(place, self.shape[:-2])) for place in product(*lead)]
        planes = np.empty((len(numbers), len(rows), len(columns)), self.dtype)
        at_once = min(_MOST_THREADS, num_threads(), max(1, len(numbers)))
        with ThreadPoolExecutor(at_once) as threads:
            for _ in threads.map(self._fill, planes, numbers, repeat(rows), repeat(columns)):
                pass  # and raise what was raised
        return planes.reshape([len(at) for at, part in zip(places, index, strict=True) if isinstance(part, slice)])

    def _fill(self, plane: np.ndarray, number: int, rows: np.ndarray, columns: np.ndarray) -> None:
        """Copy rows and columns of a page, in ascending order."""
        page, (height, width) = self.pages[number], self.chunks[-2:]
        across, changed = -(-self.shape[-1] // width), os.stat(page.path).st_mtime_ns
        for down, right in product(np.unique(rows // height).tolist(), np.unique(columns // width).tolist()):
            y, x = (
                slice(*np.searchsorted(places, [at * side, (at + 1) * side]))
                for places, at, side in ((rows, down, height), (columns, right, width))
            )
            segment = down * across + right
            read = partial(page.read, segment)
            whole = len(rows[y]) == height and len(columns[x]) == width
            voxels = read() if whole else decoded((page.path, changed, int(page.offsets[segment])), read)
            plane[y, x] = voxels[np.ix_(rows[y] - down * height, columns[x] - right * width)]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file itself: what decodes its pages cannot be sent."""
        return _reopened, self.source


def pages_of(tif: tifffile.TiffFile, found: Sequence[Any], shape: tuple[int, ...]) -> Pages | None:
    """The pages of images that together hold an array of a shape; ``None`` for colours and other unusual pages."""
    key = found[0].keyframe
    pages: list[Any] = [page for series in found for page in series]
    plain = (
        key.samplesperpixel == 1
        and key.imagedepth == 1
        and shape[-2:] == (key.imagelength, key.imagewidth)
        and len(pages) == math.prod(shape[:-2])
        and None not in pages
        and all(page.keyframe.chunks == key.chunks for page in pages)
    )
    if not plain:
        return None
    listed = []
    for page in pages:
        own = page.keyframe
        tables = {"jpegtables": page.jpegtables, "jpegheader": own.jpegheader} if own.compression in _JPEG else {}
        own.decode  # noqa: B018  made while the file is open
        offsets, lengths = (np.asarray(numbers, np.int64) for numbers in (page.dataoffsets, page.databytecounts))
        listed.append(_Page(str(page.parent.filehandle.path), offsets, lengths, own, tables))
    dtype = np.dtype(found[0].dtype).newbyteorder("=")
    chunks = (
        *[1] * (len(shape) - 2),
        *(min(side, length) for side, length in zip(key.chunks, shape[-2:], strict=True)),
    )
    every = list(tif.series)
    numbers = [next(at for at, series in enumerate(every) if series is one) for one in found]
    return Pages(shape, dtype, chunks, listed, (str(tif.filehandle.path), numbers, shape))


def _reopened(path: str, numbers: list[int], shape: tuple[int, ...]) -> Pages:
    with tifffile.TiffFile(path) as tif:
        found = pages_of(tif, [tif.series[number] for number in numbers], shape)
    if found is None:
        raise ValueError(f"{path} is another file than it was")
    return found

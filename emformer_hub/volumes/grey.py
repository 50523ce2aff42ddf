"""Grey values of image files: what their numbers show, where these are turned, looked up, or repeated as colours; and
how they are written in messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emformer_hub.errors import InputError

_MIN_IS_WHITE, _PALETTE = 0, 3  # PhotometricInterpretation of TIFF 6.0


@dataclass(frozen=True, eq=False)
class GreyValues:
    """How stored numbers become grey values.

    Attributes:
        white: the number that shows black, where small numbers are white; grey values are what is left to it.
        palette: the grey value of each number, where an image has a grey palette.
    """

    white: int | None = None
    palette: np.ndarray | None = None

    @classmethod
    def of(cls, page: Any, name: str) -> GreyValues:
        """Grey values of a page of a TIFF.

        Raises:
            InputError: a palette of colours, or numbers that cannot be turned.
        """
        if page.photometric == _PALETTE and page.colormap is not None:
            return cls.of_palette(np.asarray(page.colormap).T, name)
        if page.photometric != _MIN_IS_WHITE:
            return cls()
        dtype = np.dtype(page.dtype)
        if dtype.kind != "u":
            raise InputError(
                f"{name} holds {dtype} voxels of which small ones are white (MinIsWhite); expected unsigned integers, "
                f"or black ones. Convert it, in Fiji for example with Edit > Invert and Edit > Invert LUT."
            )
        return cls(white=2 ** int(page.bitspersample) - 1)

    @classmethod
    def of_palette(cls, colours: np.ndarray, name: str) -> GreyValues:
        """Grey values of a palette ``(numbers, 3)``, uint8 or uint16.

        Raises:
            InputError: some are not grey.
        """
        if not (colours == colours[:, :1]).all():
            raise InputError(
                f"{name} has a palette of colours; expected grey values. Convert it, for example in Fiji with "
                f"Image > Type > 8-bit."
            )
        grey = colours[:, 0]
        if grey.dtype == np.uint16:  # TIFF stretches palettes of 8 bits to 16, as v * 257 or v * 256
            high = grey >> 8
            if (grey == high * np.uint16(257)).all() or (grey == high << 8).all():
                grey = high.astype(np.uint8)
        if grey.dtype == np.uint8 and len(grey) <= 256 and (grey == np.arange(len(grey))).all():
            return cls()
        return cls(palette=grey)

    @property
    def note(self) -> str:
        """What is done, as a sentence without its subject; "" if nothing."""
        if self.palette is not None:
            return "have a grey palette, whose grey values are taken"
        return "" if self.white is None else "have small numbers white (MinIsWhite), and are turned"

    @property
    def is_plain(self) -> bool:
        return self.white is None and self.palette is None

    @property
    def dtype(self) -> np.dtype | None:
        """Data type of the grey values, where it is not that of the stored numbers."""
        return None if self.palette is None else self.palette.dtype

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Stored numbers as grey values."""
        if self.palette is not None:
            return self.palette[numbers]
        return numbers if self.white is None else numbers.dtype.type(self.white) - numbers


def one_of_equal(colours: np.ndarray, name: str) -> np.ndarray:
    """Red, green and blue ``(..., 3)`` or with opaque alpha ``(..., 4)`` that are equal, as one ``(...)``.

    Raises:
        InputError: they are not equal; or voxels are transparent.
    """
    first = colours[..., 0]
    samples = colours.shape[-1]
    if samples in (3, 4):
        equal = all(np.array_equal(first, colours[..., sample]) for sample in (1, 2))
    else:
        equal = samples in (1, 2)
    alpha = colours[..., -1] if samples in (2, 4) else None
    if equal and (alpha is None or (alpha == alpha.flat[0]).all()):
        return np.ascontiguousarray(first)
    raise InputError(
        f"{name} is RGB or RGBA of shape {colours.shape}; expected grey values, or equal channels. Convert it, for "
        f"example in Fiji with Image > Type > 8-bit, or choose one channel with --channel N."
    )


def grey_text(value: float, digits: int = 2) -> str:
    """``0.0083``, ``12``, ``1,300``: a number of grey levels for messages, rounded to so many significant digits.

    It has an exponent below 0.0001 and from a million on only.
    """
    return f"{float(f'{value:.{digits}g}'):,g}"

"""Modes: whether a reconstruction keeps the noise of the sections."""

from __future__ import annotations

from typing import Literal, get_args

from .errors import InputError

Mode = Literal["clean", "faithful"]
"""``clean``: a reconstruction is what is expected of the tissue, without the noise of the sections. ``faithful``: the
same, corrected so that sections cut from it are those that were measured, noise and all."""
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_MODE: Mode = "clean"


def check_mode(mode: str) -> None:
    """Raise ``InputError`` for anything but a mode."""
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")

"""The last images that were decoded: boxes beside each other often lie in the same compressed strips or sections."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

BYTES = 2**29
"""How much is kept in a process."""
_kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()
_lock = threading.Lock()


def decoded(key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """What ``decode`` returns, or returned for the same key not long ago; it must not be written to."""
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    found = decode()
    if found.nbytes <= BYTES // 4:  # few of anything larger would be kept
        with _lock:
            _kept[key] = found
            while sum(array.nbytes for array in _kept.values()) > BYTES:
                _kept.popitem(last=False)
    return found

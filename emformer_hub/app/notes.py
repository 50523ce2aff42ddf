"""What the library warns of while it works, for pages and panels, whose users see no log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Notes(logging.Handler):
    """Collects the warnings of one thread."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.notes, self.of = notes, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.of:
            self.notes.append(record.getMessage())


@contextmanager
def noted() -> Iterator[list[str]]:
    """A list of what the library warns of in this thread meanwhile; it is logged all the same."""
    notes: list[str] = []
    handler, logger = _Notes(notes), logging.getLogger("emformer_hub")
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)

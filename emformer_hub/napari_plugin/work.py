"""Long work in a thread of its own: progress, stop, and errors that are messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal

from emformer_hub.errors import InputError

Tell = Callable[[Any], None]
"""A function that is called with progress; it raises :class:`Stopped` once the user has stopped the work."""


def align_progress(tell: Tell) -> Callable[[int, int], None]:
    """What tells how many sections were measured to align them."""
    return lambda done, sections: tell((done / sections, f"Aligning: {done} of {sections} sections"))


class Stopped(Exception):
    """The user stopped the work, or closed the panel or the viewer."""


class Work(QObject):
    """Calls one function at a time in another thread.

    Its signals arrive in the thread of the viewer: ``progressed`` with the function's progress; then one of ``done``
    with its result, ``refused`` with a message, and ``stopped``. An error of the program is refused too, and napari
    shows it.
    Closing the viewer stops the work, through the workers of napari.

    Args:
        parent: when it is destroyed, the work is stopped.
    """

    progressed = Signal(object)
    done = Signal(object)
    refused = Signal(str)
    stopped = Signal()
    _ended = Signal(object)

    def __init__(self, parent: QObject):
        super().__init__(parent)
        self._workers: list[Any] = []
        self._ended.connect(self._end)
        self.destroyed.connect(partial(_quit, self._workers))

    @property
    def running(self) -> bool:
        """Whether a function is at work."""
        return bool(self._workers)

    def start(self, function: Callable[[Tell], Any]) -> None:
        """Call a function with :data:`Tell`; it must not touch the viewer or a widget."""
        if self.running:
            raise RuntimeError("one function at a time")

        def tell(progress: Any) -> None:
            with suppress(RuntimeError):  # the panel is gone
                self.progressed.emit(progress)
            if worker.abort_requested:
                raise Stopped

        def work() -> None:
            end: Callable[[], None] = self.stopped.emit
            try:
                result = function(tell)
                if not worker.abort_requested:
                    end = partial(self.done.emit, result)
            except Stopped:
                pass
            except InputError as error:
                end = partial(self.refused.emit, str(error))
            except Exception as error:
                end = partial(self.refused.emit, f"An error of the program: {error!r}")
                raise
            finally:
                with suppress(RuntimeError):  # the panel is gone
                    self._ended.emit(end)

        worker = create_worker(work, _start_thread=False, _ignore_errors=True)
        self._workers.append(worker)
        worker.start()

    def stop(self) -> None:
        """Ask the function to end; it does so when it tells its progress next."""
        _quit(self._workers)

    def _end(self, end: Callable[[], None]) -> None:
        self._workers.clear()
        end()


def _quit(workers: list[Any]) -> None:
    for worker in workers:
        worker.quit()

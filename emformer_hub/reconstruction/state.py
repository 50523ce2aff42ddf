"""State of a run from file to file, beside its output until that is complete: its job, and which parts are done.

Whoever finds it can go on with the run. On this machine a lock keeps others away from it; buckets know no locks, and
there the last one to take up a run keeps it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emformer_hub.errors import InputError
from emformer_hub.files import write_text
from emformer_hub.reconstruction.parts import Made, Parts
from emformer_hub.volumes.remote import Remote

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)


class State(ABC):
    """State of a run, in the folder of its job.

    Args:
        parts: what the run makes.
    """

    def __init__(self, parts: Parts):
        self.parts, self.job = parts, parts.job

    @staticmethod
    def of(parts: Parts) -> State:
        """The state of a run, where its output is."""
        return StateInBucket(parts) if isinstance(parts.job.folder, Remote) else StateOnDisk(parts)

    @abstractmethod
    def done(self) -> dict[int, Made]:
        """Finished parts by number."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Keep other runs from this output; say what the disk refused; leave nothing of a run that finished no part."""

    @abstractmethod
    def claim(self, *, anew: bool = False) -> None:
        """Take up the run; ``anew`` forgets what is done."""

    @abstractmethod
    def listing(self, done: dict[int, Made]) -> AbstractContextManager[Callable[[Made], None]]:
        """Begin the list with what is done; the function that is yielded adds a part, which is written."""

    @abstractmethod
    def forget(self) -> None:
        """Remove the state, once the outputs are complete."""

    def clear(self) -> None:
        """Remove what is left of a run before this one, and outputs in a bucket, and take up the run anew."""
        for writer in self.parts.writers:
            if isinstance(writer.path, Path):
                shutil.rmtree(writer.path, ignore_errors=True)
            else:
                writer.path.remove()
        self.claim(anew=True)

    def _remove_outputs(self) -> None:
        for writer in self.parts.writers:
            if isinstance(writer.path, Path):
                shutil.rmtree(writer.path, ignore_errors=True)
            elif writer.path.exists():
                writer.path.remove()

    def _refused(self, error: OSError) -> InputError:
        free = "free some disk, and " if error.errno else ""  # what a bucket refuses has no number, and says more
        return InputError(
            f"{self.job.output} could not be written: {error.strerror or error}. Finished parts are kept: {free}"
            f"continue with --resume."
        )


class StateOnDisk(State):
    """A folder on this machine, with a lock."""

    @property
    def folder(self) -> Path:
        """The folder."""
        return Path(self.job.folder)  # type: ignore[arg-type]  # those elsewhere have states of another kind

    def done(self) -> dict[int, Made]:
        """Finished parts by number; an incomplete last line, from a run that was killed, does not count."""
        file = self.folder / "done"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return {part.number: part for part in map(_parsed, lines)}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the folder."""
        from filelock import Timeout

        self.folder.mkdir(exist_ok=True)
        try:
            lock = _locked(self.folder / "lock")
        except Timeout as error:
            raise InputError(
                f"{self.job.output} is being made by another run; wait for it, or choose another output."
            ) from error
        try:
            yield
        except OSError as error:
            raise self._refused(error) from error
        finally:
            if not self.done():  # or all is done, and in its place
                self._remove_outputs()
                self.forget()
                left = self.folder.exists()  # on Windows, which removes no file that is open
                lock.release()
                if left:
                    self.forget()
            lock.release()

    def claim(self, *, anew: bool = False) -> None:
        """The lock is held already."""
        if anew:
            (self.folder / "done").unlink(missing_ok=True)

    @contextmanager
    def listing(self, done: dict[int, Made]) -> Iterator[Callable[[Made], None]]:
        """Rewrite the list without an incomplete line, whole or not at all, and add lines."""
        write_text(self.folder / "done", "".join(map(_line, done.values())))
        with (self.folder / "done").open("a") as file:

            def add(part: Made) -> None:
                file.write(_line(part))
                file.flush()
                os.fsync(file.fileno())

            yield add

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class StateInBucket(State):
    """A folder of a bucket, with a small file for each finished part, and one that names the run that is at work."""

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.run = uuid.uuid4().hex.encode()

    @property
    def folder(self) -> Remote:
        """The folder."""
        return Remote(str(self.job.folder))

    @property
    def _owner(self) -> Remote:
        return self.folder / "owner"

    def done(self) -> dict[int, Made]:
        """Finished parts by number."""
        lines = (self.folder / "done").read_files().values()
        return {part.number: part for part in map(_parsed, map(bytes.decode, lines))}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Leave alone what another run has taken up since."""
        try:
            yield
        except OSError as error:
            raise self._refused(error) from error
        finally:
            if self._owner.read() == self.run and not self.done():
                self._remove_outputs()
                self.forget()

    def claim(self, *, anew: bool = False) -> None:
        """Become the run that is at work; the one before it ends with its part in hand."""
        if anew:
            self.forget()
        self._owner.write_bytes(self.run)

    @contextmanager
    def listing(self, done: dict[int, Made]) -> Iterator[Callable[[Made], None]]:
        """Write a file for each part, unless another run has taken up the output."""

        def add(part: Made) -> None:
            if self._owner.read() != self.run:
                raise InputError(
                    f"{self.job.output} was taken up by another run, which goes on with it; this one has ended."
                )
            (self.folder / "done" / str(part.number)).write_text(_line(part))

        yield add

    def forget(self) -> None:
        """Remove the folder."""
        self.folder.remove()


def _parsed(line: str) -> Made:
    number, *figures = line.split()
    return Made(int(number), *map(float, figures))


def _line(part: Made) -> str:
    number, *figures = part
    return " ".join([str(number), *(f"{figure:.9g}" for figure in figures)]) + "\n"


def _locked(file: Path) -> BaseFileLock:
    """A lock that is held; where the file system knows none, a file that says so, which a killed run leaves behind."""
    from filelock import FileLock, SoftFileLock

    lock: BaseFileLock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        unknown = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
        if not isinstance(error, NotImplementedError) and error.errno not in unknown:
            raise
        file = file.with_name("in-use")
        log.warning("%s: this file system has no locks; if no other run is at work, delete %s.", file.parent, file)
        lock = SoftFileLock(file, timeout=0)
        lock.acquire()
    return lock

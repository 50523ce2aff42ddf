"""The one exception for mistakes in the input or the request, rather than in the program."""

from __future__ import annotations

import difflib
import importlib
import inspect
import numbers
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


class InputError(ValueError):
    """A mistake that the user can fix; the message says what was found, what was expected, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class ModelNotFoundError(InputError, OSError):
    """A model, a revision or a file of it that is not there, or cannot be reached.

    It is an ``OSError`` as well, which is what programs on transformers catch to try another name.
    """


def check_number(name: str, value: object, *, whole: bool = False) -> None:
    """Raise ``InputError`` unless a value is a real number, or a whole one; text that reads as one is not."""
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a whole number" if whole else "a number"
        raise InputError(f"{name} is {value!r}, {_with_article(type(value).__name__)}; expected {what}, as in 4.")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def check_keywords(given: Iterable[str], known: Iterable[str], function: Callable[..., Any]) -> None:
    """Raise ``InputError`` for keyword arguments that a function takes only because it passes some on.

    Args:
        given: names of what the function was given beyond its own parameters.
        known: names that it passes on.
        function: it; messages name its parameters.
    """
    for name in given:
        if name not in known:
            names = [*inspect.signature(function).parameters, *known]
            like = difflib.get_close_matches(name, names, 1)
            meant = f"did you mean {like[0]!r}?" if like else f"expected {', '.join(sorted({*names} - {'kwargs'}))}."
            raise InputError(f"{function.__name__} got an unexpected keyword argument {name!r}; {meant}")


def reason(error: BaseException) -> str:
    """Message of a library's exception for use within a line: its first informative line, without a full stop.

    The answer of the server is added, or else the cause of the exception, if that says more.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(r"\d{3} (Client|Server) Error|For more information", line)]
    said = [(telling or lines or [type(error).__name__])[0].rstrip(".")]
    if hasattr(error, "server_message"):
        said.append(" ".join((error.server_message or "").split()).rstrip("."))
    elif error.__cause__ is not None:
        said.append(reason(error.__cause__))
    return said[0] if said[-1].lower() in said[0].lower() else ": ".join(said)


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """Import a library that an extra of this package installs.

    Args:
        module: its dotted name.
        extra: the extra that brings it.
        what: the beginning of a sentence about what needs it, as in "stack.h5 is HDF5".

    Raises:
        InputError: it is not installed; the message says what to run.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{what}, which needs the extra [{extra}]: run `pip install 'emformer-hub[{extra}]'`."
        ) from error

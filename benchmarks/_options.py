"""Options that the command lines of the benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from emformer_hub.pretrained import resolve_pretrained


class OutputFile(click.Path):
    """A file to be written, in a folder that is there: a missing one is reported before the work, not after it."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.absolute().parent.is_dir():
            self.fail(f"folder {str(path.parent)!r} does not exist; create it first.", param, ctx)
        return path


JSON = click.option("--json", "json_path", type=OutputFile(), help="Write everything that was measured.")


def _known(context: click.Context, option: click.Parameter, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Names of models as they were given; an unknown one is reported before the work, not after it."""
    for name in (names,) if isinstance(names, str) else names:
        resolve_pretrained(name)
    return names


MODEL = click.option("--model", default="emformer-small", show_default=True, callback=_known)
MODELS = click.option(
    "--model",
    "models",
    multiple=True,
    default=["emformer-small"],
    show_default=True,
    callback=_known,
    help="Repeatable.",
)


def truth_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option ``--truth``, one isotropic volume; ``default`` says which one is taken without it."""
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("--truth", "truth_file", type=kind, help=f"Isotropic volume.  [default: {default}]")

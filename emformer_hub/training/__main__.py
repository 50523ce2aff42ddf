"""Command line of training: ``accelerate launch finetune``, or ``accelerate launch -m emformer_hub.training``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from emformer_hub.errors import InputError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--recipe", type=click.Path(path_type=Path), required=True, help="YAML file with all choices of the run.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="Folder of the run and its weights.")
@click.option("--data-root", type=click.Path(path_type=Path), default=Path(), help="What volume paths are relative to.")
@click.option("--minutes", type=float, help="Time budget; wins over the recipe.")
@click.option("--steps", type=int, help="Length in optimiser steps; wins over the recipe.")
@click.option("--seed", type=int, help="Wins over the recipe.")
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint.")
def command(
    recipe: Path,
    output_dir: Path,
    data_root: Path,
    minutes: float | None,
    steps: int | None,
    seed: int | None,
    resume: bool,
) -> None:
    """Train an EMformer by self-supervision, as a recipe says."""
    if minutes is not None and steps is not None:
        raise click.UsageError("--minutes and --steps exclude each other.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from emformer_hub.training.loop import train
    from emformer_hub.training.recipe import Recipe

    try:
        train(
            Recipe.load(recipe, minutes=minutes, steps=steps, seed=seed), output_dir, data_root=data_root, resume=resume
        )
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def main() -> None:
    command(prog_name="finetune")


if __name__ == "__main__":
    main()

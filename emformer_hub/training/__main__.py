"""Command line of training: ``accelerate launch finetune``, or ``accelerate launch -m emformer_hub.training``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from emformer_hub.errors import InputError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    help="Stack to learn from, a table of stacks (.csv, .json, .parquet), or hf://datasets/ORG/NAME. Repeatable.",
)
@click.option(
    "--voxel-size", metavar="Z,Y,X", help="Voxel size in nm, section spacing first. Takes precedence over the files'."
)
@click.option("--licence", metavar="SPDX", help="Of the volumes: what follows for the weights stands on their page.")
@click.option("--sections", metavar="A:B", help="Only sections A to B - 1 of each volume, counted from 0.")
@click.option("--nodata", type=float, metavar="V", help="Value of voxels that were not measured; nan too.")
@click.option("--mask", metavar="FILE", help="Volume of the same shape, not 0 where there is something to learn from.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="Folder of the run and its weights.")
@click.option("--base", help="Weights to adapt: bundled name, folder or Hub id.  [default: emformer-small]")
@click.option("--method", help="lora, dora, head or full: an adapter, the decoder, or all weights.  [default: lora]")
@click.option(
    "--recipe", help="Name or YAML file of a recipe; flags win.  [default: full for --method full, else lora]"
)
@click.option("--factor", "factors", type=float, multiple=True, help="Train for this factor only, 1 to 16. Repeatable.")
@click.option("--thickness", type=float, help="Imaged fraction of the section spacing.  [default: all of them]")
@click.option("--minutes", type=float, help="Length of the run in minutes of training.")
@click.option("--steps", type=int, help="Length of the run in optimiser steps.")
@click.option("--memory", type=float, metavar="GB", help="Compute batches in pieces that fit into this much memory.")
@click.option("--seed", type=int, help="Seed of all random numbers.")
@click.option("--resume", is_flag=True, help="Continue from the folder's checkpoint.")
@click.option("--report-to", metavar="TRACKER", help="Also log to a tracker of Accelerate, such as tensorboard.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the folder when it is done.")
@click.option(
    "--data-root", type=click.Path(path_type=Path), default=Path(), help="Folder that volume paths are relative to."
)
@click.option("--dry-run", is_flag=True, help="Take three steps, print weights, memory, steps and time, write nothing.")
def command(
    volumes: tuple[str, ...],
    voxel_size: str | None,
    licence: str | None,
    sections: str | None,
    nodata: float | None,
    mask: str | None,
    output_dir: Path,
    method: str | None,
    recipe: str | None,
    factors: tuple[float, ...],
    thickness: float | None,
    minutes: float | None,
    steps: int | None,
    resume: bool,
    data_root: Path,
    dry_run: bool,
    push_to_hub: str | None,
    **others: Any,
) -> None:
    """Adapt an EMformer to a stack by self-supervision, or train one as a recipe says."""
    if minutes is not None and steps is not None:
        raise click.UsageError("--minutes and --steps exclude each other.")
    described = {"voxel_size": voxel_size, "sections": sections, "licence": licence, "nodata": nodata, "mask": mask}
    if not volumes and any(value is not None for value in described.values()):
        raise click.UsageError(
            "--voxel-size, --sections, --licence, --nodata and --mask describe --volume, of which there is none."
        )
    logging.basicConfig(format="%(message)s")
    logging.getLogger("emformer_hub").setLevel(logging.INFO)
    from emformer_hub.hub.push import check_publishable, push
    from emformer_hub.training.loop import dry_run as try_out
    from emformer_hub.training.loop import train
    from emformer_hub.training.recipe import Recipe
    from emformer_hub.training.report import check_licence

    entries = [{"path": path, **described} for path in volumes] or None
    sampling: dict[str, Any] = {"factors": factors} if factors else {}
    sampling |= {} if thickness is None else {"thickness": thickness}
    try:
        chosen = Recipe.load(
            recipe or ("full" if method == "full" else "lora"),
            volumes=entries,
            method=method,
            sampling=sampling or None,
            minutes=minutes,
            steps=steps,
            **others,
        )
        if dry_run:
            click.echo(try_out(chosen, data_root=data_root))
            return
        if push_to_hub:
            check_publishable(chosen.base, push_to_hub)
            check_licence(chosen.with_tables_read(data_root))
        report = train(chosen, output_dir, data_root=data_root, resume=resume)
        if report is None:  # this process is not the first one, or there was no base
            return
        click.echo(report)
        if push_to_hub:
            click.echo(push(output_dir, push_to_hub).url)
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def main() -> None:
    command(prog_name="finetune")


if __name__ == "__main__":
    main()

"""The command that adapts a model to a stack: that of ``accelerate launch finetune``, in one process."""

from __future__ import annotations

from typing import Any

import click

from emformer_hub.training.__main__ import command


@click.command("finetune", params=[click.Argument(["stacks"], nargs=-1, metavar="[STACK]..."), *command.params])
def finetune_command(stacks: tuple[str, ...], volumes: tuple[str, ...], **options: Any) -> None:
    """Adapt a model to a STACK by self-supervision, or train one as a recipe says, in one process.

    Several processes or GPUs take the same options, and --volume STACK for a stack:
    accelerate launch -m emformer_hub.training.
    """
    click.get_current_context().invoke(command, volumes=(*stacks, *volumes), **options)

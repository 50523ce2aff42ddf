"""``emformer-hub``: the command line. The same words as in Python; mistakes of the user end with status 2."""

from __future__ import annotations

import logging
import os
from collections import UserDict
from importlib import import_module
from typing import Any

import click

from emformer_hub.errors import InputError

_HOMES = {
    "app": "show:app_command",
    "audit": "assess:audit_command",
    "card": "models:card_command",
    "dataset": "datasets:dataset_group",
    "degrade": "assess:degrade_command",
    "demo": "show:demo_command",
    "doctor": "doctor:doctor_command",
    "download": "models:download_command",
    "evaluate": "assess:evaluate_command",
    "export": "models:export_command",
    "finetune": "finetune:finetune_command",
    "inspect": "assess:inspect_command",
    "merge": "models:merge_command",
    "models": "models:models_command",
    "push": "models:push_command",
    "push-space": "show:push_space_command",
    "reconstruct": "reconstruct:reconstruct_command",
    "transform": "transform:transform_command",
    "view": "show:view_command",
}


class CommandsOnCall(UserDict[str, Any]):
    """Commands by name; the file that holds a command is imported when the command is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = self.data[name].partition(":")
        command: click.Command = getattr(import_module(f"emformer_hub.cli.{module}"), function)
        return command


class SaidOnce(logging.Filter):
    """Lets each message through once: a stack is opened several times in a run, and notes the same each time."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


class BadInput(click.ClickException):
    """A mistake that the user can fix: its message is printed, and the command ends with status 2."""

    exit_code = 2


class Commands(click.Group):
    """A group of commands that prints the message of an ``InputError`` without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise BadInput(str(error)) from error


@click.group(cls=Commands, commands=CommandsOnCall(_HOMES), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="emformer_hub")
@click.option("--offline", is_flag=True, help="Never ask the Hub: use bundled weights, folders and the cache only.")
def main(offline: bool) -> None:
    """Turn anisotropic electron-microscopy stacks into isotropic volumes."""
    if offline:
        # huggingface_hub reads this when it is imported, which no command has done yet
        os.environ["HF_HUB_OFFLINE"] = "1"
    handler = logging.StreamHandler()
    handler.addFilter(SaidOnce())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])

"""Commands about models: list, merge, describe, publish, fetch and export them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emformer_hub.cli.inputs import check_different
from emformer_hub.cli.options import (
    FACTOR_REQUIRED,
    INPUT,
    LICENCE,
    LIST_ONLY,
    MODE,
    PATH,
    PRIVATE,
    THICKNESS,
    TILE,
    reading,
)
from emformer_hub.errors import InputError

if TYPE_CHECKING:
    from emformer_hub.modes import Mode
    from emformer_hub.pretrained import PretrainedWeights


@click.command("models")
@click.argument("name", required=False)
def models_command(name: str | None) -> None:
    """List the published models, or print everything the registry states about one as JSON."""
    from emformer_hub.pretrained import registry

    if name is not None:
        click.echo(json.dumps(dataclasses.asdict(_published(name)), indent=2))
        return
    for weights in registry().values():
        click.echo(f"{weights.name}  {weights.parameters / 1e6:.2f} M parameters  {weights.licence}  {weights.repo_id}")
        click.echo(f"    {weights.summary}")


@click.command("merge")
@click.argument("adapter")
@click.argument("output", metavar="OUT", type=PATH)
def merge_command(adapter: str, output: Path) -> None:
    """Merge an adapter into its base: the folder OUT becomes a model of plain weights, with the same results.

    ADAPTER is a folder or a Hub id.
    """
    from transformers.utils.logging import disable_progress_bar

    from emformer_hub.hub.merge import merge

    disable_progress_bar()
    check_different(Path(adapter), output)
    model = merge(adapter, output)
    click.echo(f"{output}: {model.num_parameters() / 1e6:.2f} M parameters, no adapter needed")


@click.command("card")
@click.argument("name")
def card_command(name: str) -> None:
    """Write the page of a published model from its registry entry, training record and benchmark."""
    from emformer_hub.files import replacing
    from emformer_hub.hub.card import render

    weights = _published(name)
    readme = weights.folder / "README.md"
    with replacing(readme) as partial:
        partial.write_text(render(weights, weights.folder))
    click.echo(f"{readme} is written.")


@click.command("push")
@click.argument("name", metavar="[NAME_OR_DIR]", required=False)
@click.option("--all", "everything", is_flag=True, help="Push every published model to its repository.")
@click.option("--repo-id", metavar="ORG/NAME", help="Repository on the Hub.  [default: that of a published model]")
@click.option("--revision", metavar="TAG", help="Tag the commit.  [default: that of a published model]")
@LICENCE
@PRIVATE
@click.option("--create-pr", is_flag=True, help="Propose the commit as a pull request.")
@LIST_ONLY
def push_command(
    name: str | None,
    everything: bool,
    repo_id: str | None,
    revision: str | None,
    licence: str | None,
    private: bool,
    create_pr: bool,
    dry_run: bool,
) -> None:
    """Publish a model on the Hub: weights or adapter, processor, page and code in one commit, tagged.

    NAME_OR_DIR is a published model, the folder of a finished run, or that of an adapter. Prints its
    registry entry as JSON.
    """
    from emformer_hub.hub.push import contents, push
    from emformer_hub.pretrained import check_bundle, registry

    if (name is None) != everything or (everything and (repo_id or revision or licence)):
        raise click.UsageError("give NAME_OR_DIR, or --all, which takes no --repo-id, --revision or --licence.")
    known = registry()
    records = []
    for one in known if name is None else [name]:
        weights = None if Path(one).is_dir() else _published(one)
        target = repo_id or (weights.repo_id if weights else None)
        if target is None:
            raise click.UsageError(f"{one} is a folder; give --repo-id ORG/NAME.")
        if weights:
            check_bundle(weights)
        folder = weights.folder if weights else Path(one)
        if dry_run:
            click.echo(f"{target}:")
            for path, content in contents(folder, licence).items():
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                click.echo(f"  {size:>12,} bytes  {path}")
            continue
        tag = revision or (weights.revision if weights and not create_pr else None)
        records.append(push(folder, target, revision=tag, licence=licence, private=private, create_pr=create_pr))
        click.echo(f"{records[-1].url}", err=True)
    if records:
        click.echo(json.dumps([dataclasses.asdict(record) for record in records], indent=2))


@click.command("download")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every published model.")
@click.option(
    "--to", "folder", metavar="DIR", type=PATH, required=True, help="Folder to put them in, one subfolder each."
)
@click.option("--revision", metavar="TAG", help="Branch, tag or commit on the Hub.")
def download_command(names: tuple[str, ...], everything: bool, folder: Path, revision: str | None) -> None:
    """Download whole models, for machines without a network. NAME is a bundled name or a Hub id."""
    from emformer_hub.hub.download import download
    from emformer_hub.pretrained import registry

    if bool(names) == everything:
        raise click.UsageError("give one NAME or more, or --all.")
    for name in names or registry():
        click.echo(f"{download(name, folder, revision)} is whole, and needs no network.")


@click.command("export")
@click.argument("model")
@click.argument("output", metavar="OUT", type=PATH)
@FACTOR_REQUIRED
@THICKNESS
@click.option(
    "--tile",
    metavar="Z,Y,X",
    type=TILE,
    default="16,64,64",
    show_default=True,
    help="Sections, rows, columns of a tile.",
)
@MODE
@click.option(
    "--statistics-of",
    metavar="STACK",
    type=INPUT,
    help="Stack that a .zip is for: its mean and standard deviation normalise every tile.",
)
@reading
def export_command(
    model: str,
    output: Path,
    factor: float,
    thickness: float,
    tile: tuple[int, int, int],
    mode: Mode,
    statistics_of: Path | str | None,
    reading: dict[str, Any],
) -> None:
    """Write a model for other programs, with a fixed factor and tile size.

    OUT ends in .onnx, .pt2 (a torch.export program) or .zip (a bioimage.io package, which carries the brightness and
    contrast of STACK).
    """
    from transformers.utils.logging import disable_progress_bar

    from emformer_hub.hub.export import export
    from emformer_hub.reconstruction.settings import OpenStack

    disable_progress_bar()
    stack = None if statistics_of is None else OpenStack.of(statistics_of, reading)
    export(model, output, factor=factor, thickness=thickness, tile_zyx=tile, mode=mode, statistics_of=stack)
    click.echo(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB, factor {factor:g}, tiles of {' x '.join(map(str, tile))}"
    )


def _published(name: str) -> PretrainedWeights:
    from emformer_hub.pretrained import registry

    known = registry()
    if name not in known:
        raise InputError(f"model {name!r} is not published; expected one of {', '.join(known)}.")
    return known[name]

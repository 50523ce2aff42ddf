"""Commands that show: a demonstration, Neuroglancer, and the page in the browser, here or as a Space."""

from __future__ import annotations

import os
import threading
import webbrowser
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emformer_hub.cli.options import DEVICE, LIST_ONLY, MODEL, OVERWRITE, PATH, PRIVATE, REPO_ID
from emformer_hub.errors import InputError

if TYPE_CHECKING:
    from emformer_hub.geometry import VoxelSize
    from emformer_hub.volumes import Volume


@click.command("demo")
@click.argument("output", type=PATH, default="emformer-demo")
@MODEL
@DEVICE
@OVERWRITE
def demo_command(output: Path, model: str, device: str, overwrite: bool) -> None:
    """Reconstruct a synthetic stack, to see the tool work: a picture and figures.

    OUTPUT is the folder to write to, by default emformer-demo.
    """
    from emformer_hub.demo import FILES, demonstrate

    for line in demonstrate(output, model=model, device=device, overwrite=overwrite):
        click.echo(line)
    click.echo(f"\nWritten to {output.resolve()}: {', '.join(FILES)}. Look at {FILES[-1]} first.")


@click.command("view")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=PATH)
@click.option(
    "--voxel-size", metavar="Z,Y,X", help="Voxel size, in nm or with a unit, of images that state none in their file."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the page.  [default: one that is free]")
@click.option("--no-browser", is_flag=True, help="Only print the address of the page.")
@click.option("--served-at", "address", metavar="URL", help="Instead: a link to OME-Zarr images on a web server.")
def view_command(
    images: tuple[Path, ...], voxel_size: str | None, port: int | None, no_browser: bool, address: str | None
) -> None:
    """Show images over each other in Neuroglancer: a stack, its result, its uncertainty.

    The page is served on this machine, for this machine, and opened in the browser; it shows images of any format that
    is read, where they lie, and works without a network. Ctrl-C ends it. With --served-at, the folder of the images
    lies on a web server that allows other origins (CORS), and a link is printed that shows them to whoever reaches it.
    """
    from emformer_hub.app.neuroglancer import neuroglancer_link, neuroglancer_state

    if address is not None and (port is not None or no_browser):
        raise click.UsageError("--served-at prints a link; leave out --port and --no-browser.")
    names = [path.name for path in images]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, images, strict=True)]
    volumes = {name: _opened(path, voxel_size) for name, path in zip(names, images, strict=True)}
    ranges = {name: _black_and_white(volume) for name, volume in volumes.items()}
    finest = min((size for size in map(_size, volumes.values())), key=lambda size: size.z * size.y * size.x)
    centre = _centre(volumes[names[0]])
    if address is not None:
        layers = {name: f"{address.rstrip('/')}/{path.name}" for name, path in zip(names, images, strict=True)}
        click.echo(neuroglancer_link(neuroglancer_state(layers, finest, centre_nm=centre, ranges=ranges)))
        return
    from emformer_hub.app.viewer import show

    paths = dict(zip(names, images, strict=True))
    shown = show({name: (paths[name], volume) for name, volume in volumes.items()}, ranges, finest, centre, port or 0)
    click.echo(f"{shown.address}  (Ctrl-C ends it)")
    if not no_browser:
        webbrowser.open(shown.address)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    shown.close()


def _opened(path: Path, voxel_size: str | None) -> Volume:
    """An image, with the voxel size of the option if its file states none."""
    from emformer_hub.geometry import VoxelSize
    from emformer_hub.volumes import open_volume

    volume = open_volume(path)
    if volume.voxel_size is None and voxel_size is not None:
        volume = replace(volume, voxel_size=VoxelSize.parse(voxel_size), source="--voxel-size")
    if volume.voxel_size is None:
        raise InputError(volume.ask(str(path)))
    return volume


def _size(volume: Volume) -> VoxelSize:
    assert volume.voxel_size is not None
    return volume.voxel_size


def _black_and_white(volume: Volume) -> tuple[float, float]:
    """Grey values of the section in the middle that show as black and as white."""
    import numpy as np

    black, white = np.percentile(np.asarray(volume.data[volume.data.shape[0] // 2]), [1, 99])
    return float(black), float(white)


def _centre(volume: Volume) -> tuple[float, float, float]:
    """Centre of an image, ``(z, y, x)``, nm."""
    begin = volume.translation_nm or (0.0, 0.0, 0.0)
    lengths = zip(begin, volume.data.shape, _size(volume).zyx, strict=True)
    z, y, x = (place + (count - 1) / 2 * length for place, count, length in lengths)
    return z, y, x


@click.command("app")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="0.0.0.0 opens the page to your network.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--max-mvoxels", type=float, default=64.0, show_default=True, help="Largest result, in million voxels.")
@click.option("--max-minutes", type=float, default=15.0, show_default=True, help="Longest reconstruction or training.")
@DEVICE
def app_command(host: str, port: int, max_mvoxels: float, max_minutes: float, device: str) -> None:
    """Serve a page for the browser: drop a stack, check it, see its reconstruction, fine-tune a model on it."""
    from emformer_hub.devices import choose_device

    choose_device(device)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
    try:
        from emformer_hub.app.ui import Limits, serve
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}; run: pip install 'emformer-hub[app]'") from error
    serve(host, port, Limits(max_mvoxels, max_minutes), device)


@click.command("push-space")
@REPO_ID
@PRIVATE
@LIST_ONLY
def push_space_command(repo_id: str, private: bool, dry_run: bool) -> None:
    """Publish the page of `app` as a Space on the Hub, with its own copy of the package and the weights."""
    from emformer_hub.app.space import push, space

    if dry_run:
        for path in space():
            click.echo(path)
    else:
        click.echo(push(repo_id, private=private))

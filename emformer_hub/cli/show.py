"""Commands that show: a demonstration, a link to Neuroglancer, and the page in the browser, here or as a Space."""

from __future__ import annotations

import os
from pathlib import Path

import click

from emformer_hub.cli.options import DEVICE, LIST_ONLY, MODEL, OVERWRITE, PATH, PRIVATE, REPO_ID
from emformer_hub.errors import InputError


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
@click.option("--served-at", "address", metavar="URL", required=True, help="Web address of the folder of the images.")
def view_command(images: tuple[Path, ...], address: str) -> None:
    """Print a link that overlays OME-Zarr images in Neuroglancer.

    A web server must serve the folder that holds the images, and allow other origins (CORS), for example:
    `npx http-server --cors -p 9000` and --served-at http://localhost:9000.
    """
    import numpy as np

    from emformer_hub.app.neuroglancer import neuroglancer_link, neuroglancer_state
    from emformer_hub.volumes import open_volume

    layers, ranges, sizes, centres = {}, {}, [], []
    for path in images:
        volume = open_volume(path)
        if volume.voxel_size is None:
            raise InputError(f"{path} states no voxel size; Neuroglancer needs one to lay images over each other.")
        layers[path.name] = f"{address.rstrip('/')}/{path.name}"
        middle = np.asarray(volume.data[volume.data.shape[0] // 2])
        black, white = np.percentile(middle, [1, 99])
        ranges[path.name] = (float(black), float(white))
        sizes.append(volume.voxel_size)
        begin = volume.translation_nm or (0.0, 0.0, 0.0)
        lengths = zip(begin, volume.data.shape, volume.voxel_size.zyx, strict=True)
        centres.append([place + (count - 1) / 2 * length for place, count, length in lengths])
    finest = min(sizes, key=lambda size: size.z * size.y * size.x)
    click.echo(neuroglancer_link(neuroglancer_state(layers, finest, centre_nm=centres[0], ranges=ranges)))


@click.command("app")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="0.0.0.0 opens the page to your network.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--max-mvoxels", type=float, default=64.0, show_default=True, help="Largest result, in million voxels.")
@click.option("--max-minutes", type=float, default=15.0, show_default=True, help="Longest reconstruction, in minutes.")
@DEVICE
def app_command(host: str, port: int, max_mvoxels: float, max_minutes: float, device: str) -> None:
    """Serve a page for the browser: drop a stack, see its reconstruction, download it."""
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

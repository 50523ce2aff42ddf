"""The demo page in Gradio: ``emformer-hub reconstruct`` within limits, and a view of the result."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from emformer_hub.app.views import ACROSS, Plane, Views
from emformer_hub.app.words import FACE, KEPT, THROUGH, thickness_of
from emformer_hub.audit.held_back import left_out_gain
from emformer_hub.devices import choose_device
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.loading import load_model
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import registry
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes import Volume, check_volume, read_volume, write_volume
from emformer_hub.volumes.boxes import evenly_spaced, middle
from emformer_hub.volumes.phantom import sample_stack

HIDDEN_SECTIONS, HIDDEN_SIDE = 6, 128
"""Number and side of the sections that are left out in turn to see whether the model helps."""
WORTH_IT = 0.1
"""dB over the mean of both neighbours from which on the page says that the model helps."""
NOTHING_YET = "A TIFF, OME-TIFF or HDF5 file, or one image for each section."
TELLING = 0.02
"""Finished fraction from which on the time left is told, and held against the limit."""
KEPT_S = 3600
"""Seconds for which the page keeps results that nobody views any more."""
LAUNCH: dict[str, Any] = {
    "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css": ".gradio-container {max-width: 1200px !important; margin: auto} #views img {image-rendering: pixelated}",
    "footer_links": [],
    "ssr_mode": False,
}
"""Options for serving the page; it uses system fonts, because it fetches nothing from elsewhere."""


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Args:
        mvoxels: largest result, in millions of voxels.
        minutes: longest reconstruction, as estimated from its first block.
    """

    mvoxels: float = 64.0
    minutes: float = 15.0

    def check_size(self, shape_zyx: tuple[int, ...], command: str) -> None:
        """Raise ``InputError`` for a result that is too large, naming the command that has no limit."""
        size = math.prod(shape_zyx) / 1e6
        if size > self.mvoxels:
            raise InputError(
                f"the result would be {_times(shape_zyx)} voxels, {size:,.0f} million; this page makes at most "
                f"{self.mvoxels:g} million. Give a smaller part, or run: {command}"
            )

    def check_time(self, seconds: float, command: str) -> None:
        """Raise ``InputError`` for a reconstruction that would take too long."""
        if seconds > 60 * self.minutes:
            raise InputError(
                f"this would take about {seconds / 60:.0f} minutes here; this page computes for at most "
                f"{self.minutes:g}. Give a smaller part, or run: {command}"
            )


class Stopped(Exception):
    """The user stopped the reconstruction."""


def read_upload(paths: list[str]) -> Volume[np.ndarray]:
    """Read a volume from one file, or from one file per section in natural order of their names."""
    if not paths:
        raise InputError("there is no stack yet; drop a file, or take the sample.")
    if len(paths) == 1:
        return read_volume(paths[0])
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            (Path(folder) / Path(path).name).symlink_to(path)
        return read_volume(folder)


def described(volume: Volume[np.ndarray]) -> str:
    """Describe a volume in one line."""
    stated = f"voxel size {volume.voxel_size}, from {volume.source}" if volume.voxel_size else "no voxel size stated"
    return f"{_times(volume.data.shape)} voxels (z, y, x), {volume.data.dtype}; {stated}"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def make_sample(folder: Path) -> Path:
    """Write a synthetic stack of 20 sections of 128 x 128 voxels of 40 x 8 x 8 nm; return its path."""
    path = folder / "sample.ome.tif"
    stack, size = sample_stack()
    write_volume(path, stack, size, overwrite=True)
    return path


def run(
    paths: list[str],
    voxel_size: str,
    thickness: str,
    model: str,
    noise: str,
    *,
    limits: Limits,
    device: str,
    folder: Path,
    progress: Callable[[float, str], None],
) -> tuple[Views, str, list[Path]]:
    """Reconstruct an upload to the lateral voxel size.

    Args:
        paths: files of the upload.
        voxel_size: ``Z,Y,X`` in nm.
        thickness: ``THROUGH`` or ``FACE``.
        model: a published name.
        noise: a key of ``KEPT``.
        limits: limits of size and time.
        device: as for ``reconstruct``.
        folder: folder for the files to download.
        progress: called with the fraction done and the current step; may raise :class:`Stopped`.

    Returns:
        Views, figures as Markdown, and two OME-TIFF files to download: the volume and its uncertainty.

    Raises:
        InputError: the upload or a field is unusable, or a limit is exceeded.
    """
    volume = read_upload(paths)
    name = Path(paths[0]).name.split(".")[0]
    stack = volume.data
    check_volume(stack, name)
    if not voxel_size.strip():
        raise InputError("the voxel size is missing; give Z,Y,X in nm, section spacing first, as in 40,4,4.")
    size = VoxelSize.parse(voxel_size)
    factor = size.factor_to()
    geometry = SectionModel(factor, thickness_of(thickness, factor))
    command = (
        f"emformer-hub reconstruct {Path(paths[0]).name} isotropic.ome.zarr --voxel-size {voxel_size.strip()} "
        f"--thickness {geometry.thickness:.4g} --model {model} --mode {KEPT[noise]}"
    )
    planes = geometry.num_planes(len(stack))
    limits.check_size((planes, *stack.shape[1:]), command)
    progress(0, "Reconstructing")
    network, processor = load_model(model)
    begin = time.monotonic()

    def show(done: float, count: int) -> None:
        passed, fraction = time.monotonic() - begin, done / count
        if fraction >= TELLING:
            limits.check_time(passed / fraction, command)
            progress(fraction, f"Reconstructing: about {passed * (1 / fraction - 1):.0f} s left")

    result = reconstruct(
        stack,
        factor=factor,
        model=model,
        thickness=geometry.thickness,
        mode=KEPT[noise],
        device=device,
        progress=show,
    )
    seconds = time.monotonic() - begin
    planes_size = geometry.plane_size(size)
    z, _, _ = geometry.plane_origin(size, volume.translation_nm)
    files = [folder / f"{name}_{what}.ome.tif" for what in ("isotropic", "uncertainty")]
    for path, data in zip(files, (result.volume, result.uncertainty), strict=True):
        write_volume(path, data, planes_size, translation_nm=(z, 0.0, 0.0), overwrite=True)

    progress(1, "Hiding sections, to see whether the model helps")
    views = Views(stack, result, planes_size)
    network.to(device=choose_device(device))  # type: ignore[call-arg]  # transformers hides the signature
    gain = _gain_where_sections_are_hidden(network, processor, stack, geometry)
    within = float(np.median(result.half_width(0.95)[evenly_spaced(planes, 32)]))
    return views, _figures(result.volume.shape, planes_size, seconds, gain, within), files


def _gain_where_sections_are_hidden(
    network: EMformerModel, processor: EMformerProcessor, stack: np.ndarray, geometry: SectionModel
) -> float:
    """Gain over the mean of both neighbours, in the middle of the plane, for a few sections spread over the stack."""
    y, x = middle(stack.shape[1:], (HIDDEN_SIDE, HIDDEN_SIDE))
    part = processor.normalise(stack[:, y, x], processor.measure(stack))
    hidden = [1 + number for number in evenly_spaced(len(stack) - 2, HIDDEN_SECTIONS)]
    return left_out_gain(network, part, geometry, hidden)[0]


def _figures(shape: tuple[int, ...], size: VoxelSize, seconds: float, gain: float, within: float) -> str:
    closer = "closer to what was measured" if gain > 0 else "farther from what was measured"
    verdict = "The model helps on this stack." if gain > WORTH_IT else "Look closely before you trust it on this stack."
    return (
        f"**{gain:+.1f} dB.** Sections hidden from the model were predicted {closer} than by the mean of both "
        f"neighbours. {verdict}\n\n{_times(shape)} voxels of {size}, in {seconds:.0f} s. The interval "
        f"that holds the truth with a probability of 95 % is ±{within:.3g} grey levels wide at half of the voxels."
    )


@contextmanager
def _said_on_the_page() -> Iterator[None]:
    """Show the user's mistakes as messages that stay until they are closed."""
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), duration=None, title="This does not work", print_exception=False) from error
    except Stopped as error:
        raise gr.Error("There is no result.", duration=5, title="Stopped", print_exception=False) from error


def _folder_of(request: gr.Request) -> Path:
    """Folder for the files of a session."""
    folder = Path(tempfile.gettempdir()) / f"emformer-{request.session_hash}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _forget(request: gr.Request) -> None:
    shutil.rmtree(_folder_of(request), ignore_errors=True)


def described_upload(paths: list[str] | None) -> tuple[Any, Any]:
    """What was read, in words, and the voxel size that the file states."""
    if not paths:
        return NOTHING_YET, gr.skip()
    with _said_on_the_page():
        volume = read_upload(paths)
    size = volume.voxel_size
    return described(volume), ",".join(f"{length:g}" for length in size.zyx) if size else gr.skip()


def taken_sample(request: gr.Request) -> list[str]:
    """Files of the sample, as if they had been uploaded."""
    return [str(make_sample(_folder_of(request)))]


def shown(views: Views | None, plane: Plane, position: float, overlay: bool) -> tuple[Any, ...]:
    """The three panels at one position, and a legend."""
    if views is None:
        return None, None, None, ""
    place = min(int(position), views.length(plane) - 1)
    axis = "zyx"[ACROSS[plane]]
    legend = f"{plane} plane at {axis} = {place}. " + (
        "Orange: uncertainty, from {:.3g} to {:.3g} grey levels.".format(*views.uncertainty_range) if overlay else ""
    )
    return (
        views.input(plane, place),
        views.interpolation(plane, place),
        views.reconstruction(plane, place, uncertainty=overlay),
        legend,
    )


def to_middle(views: Views | None, plane: Plane) -> Any:
    """The slider at the middle of an axis."""
    count = views.length(plane) if views else 1
    return gr.update(maximum=count - 1, value=count // 2)


class _Runs:
    """The reconstructions of all sessions, which may be stopped."""

    def __init__(self, limits: Limits, device: str):
        self.limits, self.device = limits, device
        self._stopping: set[str] = set()  # sessions whose reconstruction is to end

    def reconstructed(
        self,
        paths: list[str] | None,
        voxel_size: str,
        thickness: str,
        model: str,
        noise: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio looks for it here
    ) -> tuple[Any, ...]:
        """Reconstruct an upload; may be stopped."""
        session = str(request.session_hash)
        self._stopping.discard(session)

        def show(share: float, doing: str) -> None:
            if session in self._stopping:
                raise Stopped
            progress(share, desc=doing)

        with _said_on_the_page():
            views, figures, files = run(
                paths or [],
                voxel_size,
                thickness,
                model,
                noise,
                limits=self.limits,
                device=self.device,
                folder=_folder_of(request),
                progress=show,
            )
        volume, uncertainty = (gr.update(value=str(path), interactive=True) for path in files)
        return views, figures, gr.update(visible=True), volume, uncertainty

    def stopped(self, request: gr.Request) -> None:
        """End the reconstruction of a session at its next block."""
        self._stopping.add(str(request.session_hash))


def build(limits: Limits, device: str = "auto") -> gr.Blocks:
    """The page; ``launch(**LAUNCH)`` serves it."""
    runs = _Runs(limits, device)
    with gr.Blocks(title="EMformer", analytics_enabled=False, delete_cache=(600, KEPT_S)) as page:
        views = gr.State(None, time_to_live=KEPT_S)
        gr.Markdown(
            "# EMformer\nA volume-electron-microscopy stack in, an isotropic volume out, and how sure it is. This page "
            f"makes at most {limits.mvoxels:g} million voxels, in at most {limits.minutes:g} minutes; "
            "`emformer-hub reconstruct` has no such limits."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                files = gr.File(label="Stack", file_count="multiple")
                about = gr.Markdown(NOTHING_YET, elem_id="about")
                take_sample = gr.Button("Take the sample")
            with gr.Column(min_width=300):
                voxel_size = gr.Textbox(label="Voxel size Z,Y,X in nm", placeholder="40,4,4", elem_id="voxel-size")
                thickness = gr.Radio([THROUGH, FACE], value=THROUGH, label="Sections are")
                names = list(registry())
                model = gr.Dropdown(names, value="emformer-small", label="Model")
                noise = gr.Radio(list(KEPT), value=next(iter(KEPT)), label="Noise of the sections is")
                with gr.Row():
                    start = gr.Button("Reconstruct", variant="primary", elem_id="start")
                    stop = gr.Button("Stop", elem_id="stop")
        figures = gr.Markdown(elem_id="figures", min_height=60)
        with gr.Column(visible=False, elem_id="views") as look:
            with gr.Row():
                plane = gr.Radio(["xz", "yz", "xy"], value="xz", label="Plane")
                position = gr.Slider(0, 1, value=0, step=1, label="Position in voxels", elem_id="position")
                overlay = gr.Checkbox(label="Show uncertainty", elem_id="overlay")
            legend = gr.Markdown(elem_id="legend")
            with gr.Row():
                panels = [
                    gr.Image(label=label, format="png", interactive=False, buttons=["download", "fullscreen"])
                    for label in ("Input", "Cubic interpolation", "EMformer")
                ]
            with gr.Row():
                volume = gr.DownloadButton("Download the volume", interactive=False)
                uncertainty = gr.DownloadButton("Download its uncertainty", interactive=False)

        take_sample.click(taken_sample, outputs=files, show_progress="minimal")
        files.change(described_upload, files, [about, voxel_size], show_progress="minimal")
        running = start.click(
            runs.reconstructed,
            [files, voxel_size, thickness, model, noise],
            [views, figures, look, volume, uncertainty],
            show_progress_on=figures,
            concurrency_limit=1,
        )
        now = {"inputs": [views, plane, position, overlay], "outputs": [*panels, legend]}
        quick = {"show_progress": "hidden", "concurrency_limit": None, "trigger_mode": "always_last"}
        running.success(to_middle, [views, plane], position, show_progress="hidden").then(shown, **now, **quick)
        plane.change(to_middle, [views, plane], position, show_progress="hidden").then(shown, **now, **quick)
        gr.on([position.change, overlay.change], shown, **now, **quick)
        stop.click(runs.stopped, queue=False)
        page.unload(_forget)
    return page


def serve(host: str, port: int, limits: Limits, device: str) -> None:
    """Serve the page until it is interrupted.

    Raises:
        InputError: the address cannot be used.
    """
    try:
        build(limits, device).launch(server_name=host, server_port=port, **LAUNCH)
    except OSError as error:
        raise InputError(
            f"the page cannot be served at {host}:{port}: {error}. Is another one running? Give another --port."
        ) from error

"""The page in Gradio: a stack is checked, reconstructed and learned from within limits, and looked at."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from emformer_hub.app.checking import chosen_repair
from emformer_hub.app.choices import CONTROLS, in_words
from emformer_hub.app.losses import Losses
from emformer_hub.app.views import ACROSS, Plane, Views, picture_file
from emformer_hub.app.words import (
    AS_THEY_ARE,
    BY_LISTED,
    BY_MEASURED,
    FACE,
    KEPT,
    LISTED,
    METHODS,
    THROUGH,
)
from emformer_hub.app.work import (
    Checked,
    Limits,
    Request,
    Stopped,
    check,
    described,
    make_sample,
    read_upload,
    run,
    tune,
)
from emformer_hub.errors import InputError
from emformer_hub.pretrained import registry
from emformer_hub.reconstruction.repair import Repair, parse_sections
from emformer_hub.volumes.grey import grey_text

NOTHING_YET = "A TIFF, OME-TIFF or HDF5 file, or one image for each section."
KEPT_S = 3600
"""Seconds for which the page keeps results that nobody views any more."""
SHOWN_S = 0.5
"""Seconds between two pictures of the loss as it falls."""
MOST_POINTS = 400
"""Points of each curve; of longer trainings, evenly spaced steps are shown."""
NOT_REPAIRED = "Repaired: nothing. *Check stack* finds sections to repair."
TABLE = ["| section | flags | highest score |", "|---|---|---|"]
LAUNCH: dict[str, Any] = {
    "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css": ".gradio-container {max-width: 1200px !important; margin: auto} #views img {image-rendering: pixelated}"
    " @media (max-width: 500px) {.tab-container button {padding: 0 8px !important}}"
    " #report, #checked {contain: inline-size}"  # wide tables scroll, and do not widen the page
    " #report table, #checked table {display: block; overflow-x: auto; border: none !important}"
    " #report table {white-space: nowrap}",
    "footer_links": [],
    "ssr_mode": False,
}
"""Options for serving the page; it uses system fonts, because it fetches nothing from elsewhere."""


@contextmanager
def _said_on_the_page() -> Iterator[None]:
    """Show the user's mistakes as messages that stay until they are closed."""
    try:
        yield
    except InputError as error:
        said = in_words(str(error), CONTROLS)
        raise gr.Error(said, duration=None, title="This does not work", print_exception=False) from error
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


def shown(
    views: Views | None, plane: Plane, position: float, overlay: bool, request: gr.Request
) -> tuple[str | None, ...]:
    """The three panels at one position, as files of the session, and a legend."""
    if views is None:
        return None, None, None, ""
    place = min(int(position), views.length(plane) - 1)
    axis = "zyx"[ACROSS[plane]]
    legend = f"{plane} plane at {axis} = {place}. "
    if overlay:
        least, most = (grey_text(end, 3) for end in views.uncertainty_range)
        legend += f"Orange: uncertainty, from {least} to {most} grey levels."
    panels = (
        views.input(plane, place),
        views.interpolation(plane, place),
        views.reconstruction(plane, place, uncertainty=overlay),
    )
    folder = _folder_of(request)
    return (*(picture_file(panel, folder) for panel in panels), legend)


def to_middle(views: Views | None, plane: Plane) -> Any:
    """The slider at the middle of an axis."""
    count = views.length(plane) if views else 1
    return gr.update(maximum=count - 1, value=count // 2)


def repair_of_choice(checked: Checked | None, sections: Sequence[int], also: str) -> tuple[Repair, str]:
    """The repair of the sections that were ticked and named, and what the page says of it."""
    reasons = {row.section: row.flags for row in checked.rows if row.section in sections} if checked else {}
    with _said_on_the_page():
        named = parse_sections(also) if also.strip() else []
    reasons |= {section: "named" for section in named if section not in reasons}
    repair = chosen_repair(reasons, checked.repair if checked else None)
    numbers = ", ".join(map(str, repair.reasons))
    return repair, f"Repaired: sections {numbers}." if numbers else NOT_REPAIRED


def another_stack() -> tuple[Any, ...]:
    """What is left of the check, and of files that list something of each section, with another stack: nothing."""
    return None, gr.update(choices=[], value=[]), "", "", Repair(), NOT_REPAIRED, None, None


def curve(losses: Losses) -> str:
    """A picture of the loss of each step and its moving average over the whole width, within the range of the loss."""
    count = len(losses.smooth)
    if count < 2:
        return ""
    each, smooth = losses.each[:count], losses.smooth[:count]
    low, high = min(each), max(each)
    steps = range(0, count, 1 + count // MOST_POINTS)

    def line(values: list[float], colour: str, width: int) -> str:
        points = " ".join(
            f"{1000 * step / (count - 1):.1f},{2 + 96 * (high - values[step]) / max(high - low, 1e-9):.2f}"
            for step in steps
        )
        look = f'fill="none" stroke="{colour}" stroke-width="{width}" vector-effect="non-scaling-stroke"'
        return f'<polyline points="{points}" {look}/>'

    return (
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" width="100%" height="140" role="img" '
        f'aria-label="Loss of {count} steps">{line(each, "#80cbc4", 1)}{line(smooth, "#ff7043", 2)}</svg>'
        f"<small>Loss of {count} steps, from {low:.3g} to {high:.3g}; orange: moving average, now "
        f"{smooth[-1]:.3g}.</small>"
    )


class _Work:
    """The long work of all sessions, which may be stopped."""

    def __init__(self, limits: Limits, device: str):
        self.limits, self.device = limits, device
        self._stopping: set[str] = set()  # sessions whose work is to end

    def checked(
        self,
        paths: list[str] | None,
        voxel_size: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio looks for it here
    ) -> tuple[Any, ...]:
        """Inspect an upload; may be stopped."""
        show = self._shown_by(progress, request)
        with _said_on_the_page():
            found = check(paths or [], voxel_size, progress=show)
        choices = [(f"{row.section}: {row.flags}", row.section) for row in found.rows]
        remarks = (in_words(remark, CONTROLS) for remark in found.remarks)
        said = "\n\n".join([f"{len(found.rows)} of {found.sections} sections are flagged.", *remarks])
        if found.rows:
            rows = [f"| {row.section} | {row.flags} | {row.score} |" for row in found.rows]
            said = "\n".join([said, "", *TABLE, *rows])
        ticked = [row.section for row in found.rows if row.repaired]
        return found, gr.update(choices=choices, value=ticked), said

    def reconstructed(
        self,
        paths: list[str] | None,
        voxel_size: str,
        sections: str,
        model: str,
        noise: str,
        region: str,
        repair: Repair,
        positions: str | None,
        align: str,
        translations: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio looks for it here
    ) -> tuple[Any, ...]:
        """Reconstruct an upload; may be stopped."""
        show = self._shown_by(progress, request)
        with _said_on_the_page():
            views, figures, files = run(
                Request(
                    paths or [], voxel_size, sections, model, noise, region, repair, positions, align, translations
                ),
                limits=self.limits,
                device=self.device,
                folder=_folder_of(request),
                progress=show,
            )
        volume, uncertainty = (gr.update(value=str(path), interactive=True) for path in files)
        return views, in_words(figures, CONTROLS), gr.update(visible=True), volume, uncertainty

    def tuned(
        self,
        paths: list[str] | None,
        voxel_size: str,
        base: str,
        method: str,
        minutes: float,
        models: list[Any],
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Adapt a model to an upload, and show the loss as it falls; may be stopped."""
        tell, latest = self._begun(request), ("Loading", Losses())

        def show(share: float, doing: str, losses: Losses) -> None:
            nonlocal latest
            tell()
            latest = (f"{doing} ({share:.0%})", losses)

        with _said_on_the_page(), ThreadPoolExecutor(1) as worker:
            work = worker.submit(
                tune,
                paths or [],
                voxel_size,
                base,
                method,
                minutes or 0,
                limits=self.limits,
                folder=_folder_of(request),
                progress=show,
            )
            try:
                while not work.done():
                    yield latest[0], curve(latest[1]), "", None, gr.skip(), gr.skip(), models
                    wait([work], timeout=SHOWN_S)
            finally:
                if not work.done():  # the visitor has left
                    self.stopped(request)
            made = work.result()
        models = [*models, (f"{made.folder.name}, on {base}", str(made.folder))]
        picture = made.folder / "comparison.png"
        yield (
            f"The model {made.folder.name} can be chosen in *Reconstruct*.",
            curve(latest[1]),
            made.report,
            str(picture) if picture.exists() else None,
            gr.update(choices=models, value=str(made.folder)),
            gr.update(value=str(made.archive), interactive=True),
            models,
        )

    def stopped(self, request: gr.Request) -> None:
        """End the work of a session at its next step."""
        self._stopping.add(str(request.session_hash))

    def _shown_by(self, progress: gr.Progress, request: gr.Request) -> Any:
        """Begin work of a session; what is returned shows how far it is, and raises as :meth:`_begun` says."""
        tell = self._begun(request)

        def show(share: float, doing: str) -> None:
            tell()
            progress(share, desc=doing)

        return show

    def _begun(self, request: gr.Request) -> Any:
        """Forget that the session was stopped; what is returned raises :class:`Stopped` once it is again."""
        session = str(request.session_hash)
        self._stopping.discard(session)

        def tell() -> None:
            if session in self._stopping:
                raise Stopped

        return tell


def build(limits: Limits, device: str = "auto") -> gr.Blocks:
    """The page; ``launch(**LAUNCH)`` serves it."""
    work, names = _Work(limits, device), list(registry())
    heavy: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work"}
    with gr.Blocks(title="EMformer", analytics_enabled=False, delete_cache=(600, KEPT_S)) as page:
        repair, models = gr.State(Repair()), gr.State(list(names))
        gr.Markdown(
            "# EMformer\nA volume-electron-microscopy stack in, an isotropic volume out, and how sure it is. This page "
            f"makes at most {limits.mvoxels:g} million voxels, and computes for at most {limits.minutes:g} minutes; "
            "`emformer-hub` has no such limits."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                files = gr.File(label="Stack", file_count="multiple")
                about = gr.Markdown(NOTHING_YET, elem_id="about")
                take_sample = gr.Button("Take the sample")
                voxel_size = gr.Textbox(label="Voxel size Z,Y,X in nm", placeholder="40,4,4", elem_id="voxel-size")
            with gr.Column(min_width=300), gr.Tabs():
                with gr.Tab("Reconstruct"):
                    sections, positions = _choice_or_file(
                        "Sections are", [THROUGH, FACE, LISTED], "Positions", ".csv", ".json"
                    )
                    align, translations = _choice_or_file(
                        "Align sections", [AS_THEY_ARE, BY_MEASURED, BY_LISTED], "Translations", ".csv"
                    )
                    model = gr.Dropdown(list(names), value="emformer-small", label="Model", elem_id="model")
                    noise = gr.Radio(list(KEPT), value=next(iter(KEPT)), label="Noise of the sections is")
                    region = gr.Textbox(
                        label="Only this part, as a trial", placeholder="0:20,100:356,100:356", elem_id="region"
                    )
                    repaired = gr.Markdown(NOT_REPAIRED, elem_id="repaired")
                    start, stop = _start_and_stop("Reconstruct", "start")
                with gr.Tab("Check stack"):
                    look, check_stop = _start_and_stop("Check", "check")
                    checked = _check_tab(work, files, voxel_size, look, repair, repaired, heavy)
                with gr.Tab("Fine-tune"):
                    base = gr.Dropdown(list(names), value="emformer-small", label="Base")
                    method = gr.Radio(list(METHODS), value=next(iter(METHODS)), label="Train")
                    minutes = gr.Number(min(5.0, limits.minutes), label="Minutes", elem_id="minutes")
                    learn, learn_stop = _start_and_stop("Fine-tune", "learn")
                    shown = _tuning()
        results = _results()
        take_sample.click(taken_sample, outputs=files, show_progress="minimal")
        files.change(described_upload, files, [about, voxel_size], show_progress="minimal")
        of_stack = [*checked, repair, repaired, positions, translations]
        files.change(another_stack, outputs=of_stack, show_progress="hidden")
        learn.click(
            work.tuned,
            [files, voxel_size, base, method, minutes, models],
            [*shown[:4], model, shown[4], models],
            show_progress="hidden",
            **heavy,
        )
        _show_results(
            start.click(
                work.reconstructed,
                [files, voxel_size, sections, model, noise, region, repair, positions, align, translations],
                results[:5],
                show_progress_on=results[1],
                **heavy,
            ),
            results,
        )
        gr.on([stop.click, check_stop.click, learn_stop.click], work.stopped, queue=False)
        page.unload(_forget)
    return page


def _start_and_stop(verb: str, name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(verb, variant="primary", elem_id=name), gr.Button("Stop", elem_id=f"{name}-stop")


def _choice_or_file(label: str, choices: list[str], file_label: str, *suffixes: str) -> tuple[gr.Radio, gr.File]:
    """A choice, of which the last one shows where to drop a file."""
    choice = gr.Radio(choices, value=choices[0], label=label)
    kinds = " or ".join(suffix[1:].upper() for suffix in suffixes)
    name = f"{file_label} ({kinds})"
    file = gr.File(label=name, file_types=list(suffixes), visible=False, height=150, elem_id=file_label.lower())
    choice.change(lambda chosen: gr.update(visible=chosen == choices[-1]), choice, file, show_progress="hidden")
    return choice, file


def _check_tab(
    work: _Work,
    files: gr.File,
    voxel_size: gr.Textbox,
    look: gr.Button,
    repair: gr.State,
    repaired: gr.Markdown,
    heavy: dict[str, Any],
) -> list[Any]:
    """What an inspection found, and the choice of what is repaired; what is left of it with another stack."""
    found = gr.State(None, time_to_live=KEPT_S)
    said = gr.Markdown(elem_id="checked", min_height=40)
    sections = gr.CheckboxGroup([], label="Predict these from their neighbours", elem_id="sections")
    also = gr.Textbox(label="And these", placeholder="3,7-9", elem_id="also")
    look.click(work.checked, [files, voxel_size], [found, sections, said], show_progress_on=said, **heavy)
    gr.on(
        [sections.change, also.submit, also.blur],
        repair_of_choice,
        [found, sections, also],
        [repair, repaired],
        show_progress="hidden",
    )
    return [found, sections, also, said]


def _tuning() -> list[Any]:
    """What is seen of a fine-tuning: a line, the loss, whether it helped, before and after, and the model as a file."""
    return [
        gr.Markdown(elem_id="tuning", min_height=30),
        gr.HTML(elem_id="loss"),
        gr.Markdown(elem_id="report"),
        gr.Image(label="Before and after", format="png", interactive=False, buttons=["download", "fullscreen"]),
        gr.DownloadButton("Download the model", interactive=False),
    ]


def _results() -> list[Any]:
    """What is seen of a reconstruction, and what shows it."""
    views = gr.State(None, time_to_live=KEPT_S)
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
    return [views, figures, look, volume, uncertainty, plane, position, overlay, *panels, legend]


def _show_results(running: Any, results: list[Any]) -> None:
    """Show planes of a result once it is there, and others as they are chosen."""
    views, _, _, _, _, plane, position, overlay, *seen = results
    now = {"inputs": [views, plane, position, overlay], "outputs": seen}
    quick = {"show_progress": "hidden", "concurrency_limit": None, "trigger_mode": "always_last"}
    running.success(to_middle, [views, plane], position, show_progress="hidden").then(shown, **now, **quick)
    plane.change(to_middle, [views, plane], position, show_progress="hidden").then(shown, **now, **quick)
    gr.on([position.change, overlay.change], shown, **now, **quick)


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

"""The panel *Reconstruct*: a stack, or a part of it as a trial, beside its interpolation and under its uncertainty."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magicgui.widgets import CheckBox, ComboBox, FileEdit, Label

from emformer_hub.app.choices import aligned, in_words
from emformer_hub.app.notes import noted
from emformer_hub.app.words import KEPT
from emformer_hub.geometry import SectionModel
from emformer_hub.napari_plugin.layers import ORIGIN, LayerData, Shown, interpolated
from emformer_hub.napari_plugin.panel import ALIGNING, FIELDS, Geometry, ModelField, Panel
from emformer_hub.napari_plugin.readers import layer_of, layers_of, plain_name
from emformer_hub.napari_plugin.session import session
from emformer_hub.napari_plugin.work import Tell, align_progress
from emformer_hub.volumes import Volume
from emformer_hub.volumes.grey import grey_text

if TYPE_CHECKING:
    from napari import Viewer

    from emformer_hub.reconstruction.repair import Repair
    from emformer_hub.reconstruction.settings import FileSettings, OpenStack

SUFFIX = ".ome.zarr"
CONFIDENCE = 0.95


class Request(NamedTuple):
    """One reconstruction: of what, how it is aligned, what of it as it is is replaced, to where, and how."""

    stack: OpenStack
    align: str | Path | None
    repair: Repair
    output: Path
    geometry: SectionModel
    settings: FileSettings
    overwrite: bool
    resume: bool
    name: str


class Made(NamedTuple):
    """What a reconstruction adds to the viewer, the record of the run, and what is to be said of the stack."""

    layers: Sequence[LayerData]
    record: dict[str, Any]
    notes: Sequence[str]


class ReconstructPanel(Panel):
    """Reconstruct a stack in the background, into an OME-Zarr that becomes layers once it is complete.

    Args:
        napari_viewer: the viewer that the stack is in; napari passes it to an argument of this name.
    """

    library = ALIGNING

    def __init__(self, napari_viewer: Viewer):
        super().__init__(napari_viewer, "Reconstruct")
        self.geometry = Geometry(self)
        self.model = ModelField(self)
        self.noise = ComboBox(label="Noise of sections is", choices=list(KEPT), value=next(iter(KEPT)))
        self.ensemble = ComboBox(label="Passes", choices=[1, 2, 4, 8, 16], value=2)
        self.trial = ComboBox(label="Trial in", choices=self.shapes, nullable=True)
        self.trial.tooltip = "A Shapes layer with a rectangle: only this part is reconstructed, into a temporary folder"
        self.repair = Label(label="Repair", value="")
        self.confident = CheckBox(text=f"Also mark voxels that are right with {CONFIDENCE:.0%}")
        self.output = FileEdit(label="Output", mode="w", filter="*.zarr")
        self.overwrite = CheckBox(text="Replace what exists")
        self.form.extend(
            [
                *self.geometry.widgets,
                *self.model.widgets,
                self.noise,
                self.ensemble,
                self.repair,
                self.trial,
                self.confident,
                self.output,
                self.overwrite,
            ]
        )
        self._trials: list[tempfile.TemporaryDirectory[str]] = []
        self._suggested: Path | None = None
        self.layer.changed.connect(self._show_layer)
        self.output.changed.connect(self._show_verb)
        session.changed.connect(self._show_layer)
        self._show_layer()
        self.geometry.show_files()

    def prepare(self) -> Callable[[Tell], Made]:
        """Read the fields."""
        from emformer_hub.reconstruction.repair import Repair

        stack, size = self.stack(), self.stated_size()
        geometry, region = self.geometry.of(stack, size), self.region(self.trial.value)
        sampling = self.geometry.sampling(size)
        output = Path(self.output.value) if region is None else self._trial_folder() / f"trial{SUFFIX}"
        settings: FileSettings = {
            "voxel_size": size,
            "factor": sampling["factor"],
            "thickness": sampling["thickness"],
            "z_positions": sampling["z_positions"],
            "model": self.model.name,
            "mode": KEPT[self.noise.value],
            "ensemble": self.ensemble.value,
            "region": region,
            "uncertainty": beside(output, "uncertainty"),
            "confidence": CONFIDENCE if self.confident.value else None,
        }
        overwrite = self.overwrite.value
        name = f"{self.chosen.name} {'isotropic' if region is None else 'trial'}"
        resume = not overwrite and unfinished(output)
        align, repair = self.geometry.aligning, session.repairs.get(self.chosen, Repair())
        request = Request(stack, align, repair, output, geometry, settings, overwrite, resume, name)
        return partial(reconstruct, request)

    def finish(self, result: Made) -> str:
        """Add the layers, the uncertainty on top."""
        self.add(result.layers)
        self._suggest_output()
        self._show_verb()
        seconds = result.record["seconds_now"]
        said = f"Made {result.record['output']} in {seconds:.0f} s."
        if residual := result.record["residual"]:
            said += f" Sections cut from it differ from those measured by {grey_text(residual['rms'])} grey levels RMS."
        return "\n".join([said, *(in_words(note, FIELDS) for note in result.notes)])

    def stopped(self) -> str:
        """What is kept of a run that was stopped."""
        self._show_verb()
        if unfinished(Path(self.output.value)):
            return "Stopped. What is done is kept: 'Resume' goes on with it."
        return "Stopped. Nothing was written."

    def refuse(self, message: str) -> None:
        """Say what is wrong and what to do."""
        super().refuse(message)
        self._show_verb()

    def _trial_folder(self) -> Path:
        """A new folder, which is deleted with the panel."""
        self._trials.append(tempfile.TemporaryDirectory(prefix="emformer-"))
        return Path(self._trials[-1].name)

    def _show_layer(self) -> None:
        """Show what is repaired of the layer, and where its result would go."""
        repair = None if self.layer.value is None else session.repairs.get(self.layer.value)
        sections = ", ".join(map(str, repair.reasons)) if repair else ""
        self.repair.value = f"sections {sections}" if sections else "none (panel 'Check stack')"
        if self._suggested is None or Path(self.output.value) == self._suggested:
            self._suggest_output()

    def _suggest_output(self) -> None:
        """Put a path that is free into the field: beside the file of the stack, or else in the home folder."""
        if self.layer.value is None:
            return
        layer = self.layer.value
        shown = layer.metadata.get(ORIGIN)
        source = Path(shown.path if isinstance(shown, Shown) else layer.source.path or "")
        folder, name = Path.home(), layer.name.replace("/", "-")
        if source.name and source.exists():
            folder, name = source.parent, plain_name(source)
        self._suggested = free(folder / f"{name}.isotropic{SUFFIX}")
        self.output.value = self._suggested

    def _show_verb(self) -> None:
        going_on = self.trial.value is None and unfinished(Path(self.output.value))
        self.start_button.setText("Resume" if going_on else "Reconstruct")


def reconstruct(request: Request, tell: Tell) -> Made:
    """Reconstruct into a file, and open what was made."""
    from emformer_hub.reconstruction.aligned import moves_in_words
    from emformer_hub.reconstruction.from_file import reconstruct_file

    def progress(done: float, blocks: int) -> None:
        tell((done / blocks, f"Reconstructing: {done / blocks:.0%}"))

    with noted() as notes:
        if request.align is not None:
            stack, repair = aligned(request.stack, request.align, request.repair, align_progress(tell))
            request = request._replace(stack=stack, repair=repair)
            notes.append(f"{stack.path}: {moves_in_words(stack)}")
        settings: FileSettings = {**request.settings, "repair": request.repair}
        tell((None, "Loading the model and measuring the stack"))
        record = reconstruct_file(
            request.stack,
            request.output,
            overwrite=request.overwrite,
            resume=request.resume,
            progress=progress,
            **settings,
        )
    layers = [interpolation(request), *layers_of(request.output, request.name)]
    return Made(layers, json.loads(record.read_text()), notes)


def interpolation(request: Request) -> LayerData:
    """The same part, interpolated, as a layer that is hidden at first and computed where it is looked at."""
    stack, geometry = request.stack, request.geometry
    data, region = stack.volume.data, request.settings["region"]
    place = stack.volume.translation_nm or (0.0, 0.0, 0.0)
    size = request.settings["voxel_size"]
    if region is not None:
        data = data[region]
        starts = geometry.distance(region[0].start), region[1].start, region[2].start
        z, y, x = (at + start * length for at, start, length in zip(place, starts, size.zyx, strict=True))
        place, geometry = (z, y, x), geometry.part(region[0])
    planes = interpolated(data, geometry)
    volume = Volume(planes, geometry.plane_size(size), "", geometry.plane_origin(size, place))
    name = f"{request.name} interpolated"
    return layer_of(volume, name, visible=False)


def beside(output: Path, what: str) -> Path:
    """``out.ome.zarr`` -> ``out.uncertainty.ome.zarr``."""
    name, dot, suffix = output.name.partition(".")
    return output.with_name(f"{name}.{what}{dot}{suffix}")


def unfinished(output: Path) -> bool:
    """Whether a run of this output was stopped and can be resumed."""
    from emformer_hub.reconstruction.job import state_folder

    return (state_folder(output) / "job.json").exists()


def free(path: Path) -> Path:
    """The path, or one with the lowest number that no output has yet."""
    name, number = path.name.removesuffix(SUFFIX), 2
    while path.exists() and not unfinished(path):
        path, number = path.with_name(f"{name}-{number}{SUFFIX}"), number + 1
    return path

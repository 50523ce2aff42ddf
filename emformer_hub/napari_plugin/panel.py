"""What all panels have: a stack to choose, start and stop, progress, and messages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, PushButton, Widget
from napari.layers import Image, Shapes
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QInputDialog,
    QLabel,
    QProgressBar,
    QPushButton,
    QTableWidget,
    QVBoxLayout,
    QWidget,
)

from emformer_hub.app.choices import (
    CONTROLS,
    POSITIONS,
    TRANSLATIONS,
    Sampling,
    align_of,
    geometry_from,
    in_words,
    sampling_of,
)
from emformer_hub.app.words import AS_THEY_ARE, BY_LISTED, BY_MEASURED, FACE, LISTED, THROUGH
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.napari_plugin.layers import LayerData, region_of, stack_of, state_voxel_size, voxel_size_of
from emformer_hub.napari_plugin.readers import layers_of
from emformer_hub.napari_plugin.session import session
from emformer_hub.napari_plugin.work import Tell, Work
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.volume import check_plausible

if TYPE_CHECKING:
    from napari import Viewer

    from emformer_hub.reconstruction.settings import OpenStack

LIBRARY = ("dask.array", "zarr", "tifffile", "emformer_hub.reconstruction", "emformer_hub.loading")
"""What a panel loads when it is opened: what is loaded while the viewer is in use keeps it waiting."""
ALIGNING = ("emformer_hub.reconstruction.aligned", "scipy.linalg", "scipy.signal.windows")
"""What aligning a stack needs beyond it."""
DEFAULT_MODEL = "emformer-small"
FIELDS = CONTROLS | {
    "--overwrite": "'Replace what exists'",
    "--roi": "'Trial in'",
    "--repair": "the panel 'Check stack'",
    "--factor": "'Factor'",
    "--target-nm": "'Factor'",
    "--resume": "the same settings",
}
"""The same, with those that only panels have."""
BUSY = 0, 0
"""Range of a progress bar that only shows that something goes on."""


class Panel(QWidget):
    """A panel: fields, a button that starts long work, one that stops it, its progress, and what it says.

    Args:
        viewer: the viewer that it belongs to.
        verb: title of the button that starts.
    """

    def __init__(self, viewer: Viewer, verb: str):
        super().__init__()
        self.viewer = getattr(viewer, "__wrapped__", viewer)  # of a proxy, each layer is another object at each access
        self.layer = ComboBox(label="Stack", choices=self._images, nullable=False)
        self.voxel_size = LineEdit(label="Voxel size, nm", tooltip="Z,Y,X in nanometres, section spacing first")
        self.layer.changed.connect(self._show_voxel_size)
        self.form = Container(widgets=[self.layer, self.voxel_size], labels=True)
        self.form.margins = (0, 0, 0, 0)

        self.start_button, self.stop_button = QPushButton(verb), QPushButton("Stop")
        self.start_button.clicked.connect(self.start)
        self.stop_button.clicked.connect(self.stop)
        self.bar, self.message = QProgressBar(), QLabel()
        self.message.setWordWrap(True)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

        self.column = QVBoxLayout(self)
        self.column.addLayout(row(button("Open file…", self._choose_file), button("Open folder…", self._choose_folder)))
        self.column.addWidget(self.form.native)
        self.column.addLayout(row(self.start_button, self.stop_button))
        self.column.addWidget(self.bar)
        self.column.addWidget(self.message)

        self._to_add: list[LayerData] = []
        self._added: list[Image] = []
        self._turn = QTimer(self)
        self._turn.setSingleShot(True)
        self._turn.timeout.connect(self._add_next)

        self.work = Work(self)
        self.work.progressed.connect(self.show_progress)
        self.work.done.connect(self._finish)
        self.work.refused.connect(self.refuse)
        self.work.stopped.connect(self._say_stopped)
        self._show_voxel_size()
        self._begin(self._load, lambda nothing: "", "Loading PyTorch")

    library: Sequence[str] = ()
    """What this panel needs beyond :data:`LIBRARY`."""

    def prepare(self) -> Callable[[Tell], Any]:
        """Read the fields; return the work to do in another thread. Raises ``InputError`` where a field is wrong."""
        raise NotImplementedError

    def finish(self, result: Any) -> str:
        """Show the result of the work, in the thread of the viewer; return what to say."""
        raise NotImplementedError

    def stopped(self) -> str:
        """What to say after the work was stopped."""
        return "Stopped."

    @property
    def running(self) -> bool:
        """Whether work goes on, or layers of its result are being added."""
        return self.work.running or self._turn.isActive()

    def start(self) -> None:
        """Read the fields and start the work."""
        if self.running:
            return
        try:
            function = self.prepare()
        except InputError as error:
            self.refuse(str(error))
        else:
            self._begin(function, self.finish, "Starting")

    def stop(self) -> None:
        """Stop the work where it tells its progress next."""
        self.work.stop()
        if self.work.running:
            self._say("Stopping")

    def open(self, path: str | Path) -> None:
        """Open a file or folder as layers, whose voxels stay on disk, and choose it as the stack."""
        if not self.running:
            self._begin(lambda tell: layers_of(path), self._add_opened, f"Opening {path}")

    def show_progress(self, progress: tuple[float | None, str]) -> None:
        """Show the fraction done, ``None`` if it is not known, and what is being done."""
        share, doing = progress
        self.bar.setRange(*(BUSY if share is None else (0, 1000)))
        self.bar.setValue(round(1000 * (share or 0)))
        self._say(doing)

    def refuse(self, message: str) -> None:
        """Say what is wrong and what to do."""
        self._end("")
        self._say(in_words(message, FIELDS), wrong=True)

    @property
    def chosen(self) -> Image:
        """The layer that was chosen; raises ``InputError`` if there is none."""
        if self.layer.value is None:
            raise InputError("there is no stack yet; open a file, or take File > Open Sample > EMformer.")
        return self.layer.value

    def stated_size(self) -> VoxelSize:
        """Voxel size in the field, which the layer takes over.

        Raises:
            InputError: it is missing or impossible.
        """
        text = self.voxel_size.value.strip()
        if not text:
            raise InputError(
                f"layer {self.chosen.name!r} states no voxel size; give Z,Y,X in nm, section spacing first, as in "
                f"40,4,4."
            )
        size = VoxelSize.parse(text)
        check_plausible(size, self.chosen.name)
        stated = voxel_size_of(self.chosen)
        if stated is not None and text == _as_text(stated):
            return stated
        state_voxel_size(self.chosen, size)
        return size

    def stack(self) -> OpenStack:
        """The stack of the layer, with the voxel size in the field; raises ``InputError`` if it is unusable."""
        return stack_of(self.chosen, self.stated_size())

    def region(self, shapes: Shapes | None) -> Box | None:
        """Part of the stack within shapes; ``None`` without shapes."""
        return None if shapes is None else region_of(shapes, self.chosen)

    def reset_choices(self, event: Any = None) -> None:
        """Offer the layers that there are now."""
        self.form.reset_choices()

    def _images(self, widget: Widget) -> list[Image]:
        return [layer for layer in self.viewer.layers if isinstance(layer, Image)]

    def shapes(self, widget: Widget) -> list[Shapes]:
        """Layers that a region can be drawn on."""
        return [layer for layer in self.viewer.layers if isinstance(layer, Shapes)]

    def _show_voxel_size(self) -> None:
        size = None if self.layer.value is None else voxel_size_of(self.layer.value)
        self.voxel_size.value = "" if size is None else _as_text(size)
        self.voxel_size.native.setPlaceholderText("40,4,4")

    def _load(self, tell: Tell) -> None:
        for module in (*LIBRARY, *self.library):
            importlib.import_module(module)
        importlib.import_module("dask.array").zeros(1).compute()  # the first result imports as much again,
        importlib.import_module("emformer_hub.loading").load_model(DEFAULT_MODEL)  # and so does the first model

    def _begin(self, function: Callable[[Tell], Any], then: Callable[[Any], str], doing: str) -> None:
        self._then = then
        self.start_button.setEnabled(False)
        self.stop_button.setEnabled(True)
        self.bar.setVisible(True)
        self.show_progress((None, doing))
        self.work.start(function)

    def _end(self, said: str) -> None:
        self.start_button.setEnabled(True)
        self.stop_button.setEnabled(False)
        self.bar.setVisible(False)
        self._say(said)

    def _say(self, words: str, *, wrong: bool = False) -> None:
        self.message.setText(words)
        self.message.setStyleSheet("color: #ff7043" if wrong else "")

    def _finish(self, result: Any) -> None:
        self._said = self._then(result)
        self._add_next()

    def _say_stopped(self) -> None:
        self._end(self.stopped())

    def _add_opened(self, layers: Sequence[LayerData]) -> str:
        def choose_first(added: list[Image]) -> None:
            self.layer.value = added[0]

        self.add(layers, choose_first)
        return ""

    def add(self, layers: Sequence[LayerData], then: Callable[[list[Image]], None] = lambda added: None) -> None:
        """Add image layers to the viewer before the work ends, one at each turn of its event loop.

        napari takes a tenth of a second for each, in which the viewer does not answer; ``then`` is called with all.
        """
        self._to_add, self._added, self._then_added = [*layers], [], then

    def _add_next(self) -> None:
        if self._to_add:
            data, keywords, _ = self._to_add.pop(0)
            self._added.append(self.viewer.add_image(data, **keywords))
            self._turn.start(0)
            return
        added, self._added = self._added, []
        if added:
            self._then_added(added)
        self._end(self._said)

    def _choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a stack")
        if path:
            self.open(path)

    def _choose_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self, "Open an OME-Zarr, or a folder of sections")
        if path:
            self.open(path)


class Geometry:
    """Fields that say how sections sample tissue, and whether they are moved to align them.

    Args:
        panel: the panel that asks; with another stack, it forgets the files that list something of each section.
    """

    def __init__(self, panel: Panel) -> None:
        self.imaged = ComboBox(label="Sections are", choices=[THROUGH, FACE, LISTED], value=THROUGH)
        self.positions = FileEdit(label="Positions", filter="*.csv *.json", tooltip=POSITIONS, nullable=True)
        self.factor = LineEdit(label="Factor", tooltip="Section spacing over that of the planes; empty: equal sides")
        self.factor.native.setPlaceholderText("as the voxel size asks for")
        ways = [AS_THEY_ARE, BY_MEASURED, BY_LISTED]
        self.align = ComboBox(label="Align sections", choices=ways, value=AS_THEY_ARE)
        self.align.tooltip = "Each section is moved by whole voxels as it is read"
        self.translations = FileEdit(label="Translations", filter="*.csv", tooltip=TRANSLATIONS, nullable=True)
        self.widgets: list[Widget] = [self.imaged, self.positions, self.factor, self.align, self.translations]
        self.imaged.changed.connect(self.show_files)
        self.align.changed.connect(self.show_files)
        panel.layer.changed.connect(self._forget_files)

    def sampling(self, size: VoxelSize) -> Sampling:
        """How sections of this voxel size sample tissue; raises ``InputError`` if a field is wrong."""
        text = self.factor.value.strip()
        try:
            factor = float(text) if text else size.factor_to()
        except ValueError:
            raise InputError(f"factor {text!r} is not a number; expected 1 to 16, or nothing.") from None
        return sampling_of(self.imaged.value, factor, self.positions.value)

    def of(self, stack: OpenStack, size: VoxelSize) -> SectionModel:
        """Geometry of the sections of a stack; raises ``InputError`` if a field is wrong."""
        geometry = geometry_from(size, self.sampling(size))
        geometry.check_sections(len(stack.volume.data), stack.path)
        return geometry

    @property
    def aligning(self) -> str | Path | None:
        """How sections are to be aligned, as :func:`align_stack` takes it; ``None`` if they stay as they are."""
        return align_of(self.align.value, self.translations.value)

    def show_files(self) -> None:
        """Show the fields of files where one is asked for."""
        self.positions.visible = self.imaged.value == LISTED
        self.translations.visible = self.align.value == BY_LISTED

    def _forget_files(self) -> None:
        self.positions.value = self.translations.value = None


class ModelField:
    """A field to choose a model: bundled, fine-tuned or named in this session.

    Args:
        panel: the panel that asks.
        label: of the field.
    """

    def __init__(self, panel: Panel, label: str = "Model"):
        self.panel = panel
        self.field = ComboBox(label=label, choices=lambda widget: session.models, value=DEFAULT_MODEL)
        self.other = PushButton(text="Other model…")
        self.other.changed.connect(self._ask)
        self.widgets: list[Widget] = [self.field, self.other]
        session.changed.connect(panel.reset_choices)

    @property
    def name(self) -> str:
        """Name of the chosen model."""
        return str(self.field.value)

    def choose(self, name: str) -> None:
        """Choose a model by name, folder or Hub id."""
        session.add_model(name)
        self.field.value = name

    def _ask(self) -> None:
        name, given = QInputDialog.getText(self.panel, "Model", "A folder, or a Hub id such as organisation/model:")
        if given and name.strip():
            self.choose(name.strip())


def row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets side by side."""
    layout = QHBoxLayout()
    for widget in widgets:
        layout.addWidget(widget)
    return layout


def button(title: str, action: Callable[[], Any]) -> QPushButton:
    """A button."""
    made = QPushButton(title)
    made.clicked.connect(action)
    return made


def table(header: Sequence[str]) -> QTableWidget:
    """A table of texts that are read, not written, a row each."""
    made = QTableWidget(0, len(header))
    made.setHorizontalHeaderLabels(header)
    made.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    made.verticalHeader().setVisible(False)
    made.horizontalHeader().setStretchLastSection(True)
    return made


def _as_text(size: VoxelSize) -> str:
    return ",".join(f"{length:.12g}" for length in size.zyx)

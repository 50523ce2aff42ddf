"""The panel *Fine-tune*: a model adapted to a stack, its loss as it falls, and whether it helped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magicgui.widgets import ComboBox, FileEdit, FloatSpinBox
from qtpy.QtCore import QPointF, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen, QPixmap
from qtpy.QtWidgets import QLabel, QScrollArea, QWidget

from emformer_hub.app.losses import Losses
from emformer_hub.app.words import METHODS
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.napari_plugin.panel import ModelField, Panel
from emformer_hub.napari_plugin.session import session
from emformer_hub.napari_plugin.work import Tell

if TYPE_CHECKING:
    from napari import Viewer

    from emformer_hub.reconstruction.settings import OpenStack

LEAST_WIDTH = 400
"""Pixels of the picture before and after."""


class Request(NamedTuple):
    """One fine-tuning: on what, of what, and to where."""

    stack: OpenStack
    size: VoxelSize
    base: str
    method: str
    minutes: float
    steps: int | None
    output: Path
    resume: bool


class FinetunePanel(Panel):
    """Adapt a model to a stack in the background; its name then appears in *Reconstruct*.

    Args:
        napari_viewer: the viewer that the stack is in; napari passes it to an argument of this name.
    """

    library = ("emformer_hub.training.on_stack", "matplotlib.figure")

    def __init__(self, napari_viewer: Viewer):
        super().__init__(napari_viewer, "Fine-tune")
        self.base = ModelField(self, "Base")
        self.method = ComboBox(label="Train", choices=list(METHODS))
        self.minutes = FloatSpinBox(label="Minutes", value=5.0, min=0.05, max=1440.0, step=1.0)
        self.output = FileEdit(label="Folder of the model", mode="d")
        self.form.extend([*self.base.widgets, self.method, self.minutes, self.output])
        self.curve = Curve()
        self.verdict, self.picture = QLabel(), QLabel()
        self.verdict.setWordWrap(True)
        self.verdict.setTextFormat(Qt.TextFormat.MarkdownText)
        scrolled = QScrollArea()
        scrolled.setWidget(self.picture)
        scrolled.setWidgetResizable(True)
        scrolled.setMinimumHeight(140)
        for widget in (self.curve, self.verdict, scrolled):
            self.column.addWidget(widget)
        self.steps: int | None = None
        self.layer.changed.connect(self._suggest_output)
        self.output.changed.connect(self._show_verb)
        self._suggest_output()

    def prepare(self) -> Callable[[Tell], tuple[Path, str]]:
        """Read the fields."""
        stack, size, output = self.stack(), self.stated_size(), Path(self.output.value)
        if holds_model(output):
            raise InputError(f"{output} holds a model already; choose another folder, or use it as it is.")
        if not output.parent.is_dir():
            raise InputError(f"the folder {output.parent} does not exist; create it, or choose another one.")
        resume = begun(output)
        if not resume:
            self.curve.clear()
        self.verdict.setText("")
        self.picture.clear()
        method = METHODS[self.method.value]
        return partial(
            finetune, Request(stack, size, self.base.name, method, self.minutes.value, self.steps, output, resume)
        )

    def show_progress(self, progress: Any) -> None:
        """Show how far training is; the loss of a step is added to the curve."""
        if isinstance(progress, dict):
            self.curve.add(progress["loss"])
            said = f"Step {progress['step']}: loss {progress['loss']:.3f}, {progress['seconds']:.0f} s"
            progress = (min(1.0, progress["done"]), said)
        super().show_progress(progress)

    def finish(self, result: tuple[Path, str]) -> str:
        """Show the report, and offer the model in every panel."""
        folder, report = result
        self.verdict.setText(report)
        picture = QPixmap(str(folder / "comparison.png"))
        if not picture.isNull():
            across = max(LEAST_WIDTH, self.width() - 40)
            self.picture.setPixmap(picture.scaledToWidth(across, Qt.TransformationMode.SmoothTransformation))
        session.add_model(str(folder))
        self._suggest_output()
        return f"The model {folder} can be chosen in 'Reconstruct'."

    def stopped(self) -> str:
        """What is kept of a run that was stopped."""
        self._show_verb()
        return (
            "Stopped. 'Resume' goes on with it." if begun(Path(self.output.value)) else "Stopped. Nothing was written."
        )

    def _suggest_output(self) -> None:
        if self.layer.value is not None:
            path, number = Path.home() / f"emformer-{self.layer.value.name.replace('/', '-')}", 2
            while holds_model(path):
                path, number = Path.home() / f"{path.name.split('--')[0]}--{number}", number + 1
            self.output.value = path
        self._show_verb()

    def _show_verb(self) -> None:
        self.start_button.setText("Resume" if begun(Path(self.output.value)) else "Fine-tune")


class Curve(QWidget):
    """The loss of each step, and its moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumHeight(90)
        self._shown = Losses()

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return self._shown.each

    def add(self, loss: float) -> None:
        """Add a step."""
        self._shown.add(loss)
        self.update()

    def clear(self) -> None:
        """Forget all steps."""
        self._shown = Losses()
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw both curves over the whole width, within the range of the loss."""
        if len(self.losses) < 2:
            return
        low, high = min(self.losses), max(self.losses)
        across, down = self.width() / (len(self.losses) - 1), (self.height() - 4) / max(high - low, 1e-9)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for values, colour, width in ((self.losses, "#80cbc4", 1.0), (self._shown.smooth, "#ff7043", 2.0)):
            painter.setPen(QPen(QColor(colour), width))
            painter.drawPolyline(
                [QPointF(step * across, 2 + (high - value) * down) for step, value in enumerate(values)]
            )
        painter.end()


def begun(folder: Path) -> bool:
    """Whether a folder holds a run that was stopped and can be resumed."""
    return (folder / "log.jsonl").exists() and not holds_model(folder)


def holds_model(folder: Path) -> bool:
    """Whether a folder holds weights or an adapter."""
    return any((folder / name).exists() for name in ("adapter_config.json", "model.safetensors"))


def finetune(request: Request, tell: Tell) -> tuple[Path, str]:
    """Train on a stack; return the folder of the model, and the report: whether it helped, as Markdown."""
    from emformer_hub.training.on_stack import finetune_on

    tell((None, "Loading the model and measuring the stack"))
    report = finetune_on(
        request.stack,
        request.size,
        request.output,
        base=request.base,
        method=request.method,
        length={"steps": request.steps} if request.steps else {"minutes": request.minutes},
        resume=request.resume,
        progress=tell,
    )
    return request.output, report

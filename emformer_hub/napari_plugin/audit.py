"""The panel *Audit*: what a reconstruction of a stack is worth, as a report that opens in the browser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, FileEdit, LineEdit, Widget
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QTableWidgetItem

from emformer_hub.app.choices import geometry_from
from emformer_hub.app.words import KEPT
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.napari_plugin.panel import ALIGNING, Geometry, ModelField, Panel, table
from emformer_hub.napari_plugin.session import session
from emformer_hub.napari_plugin.work import Tell, align_progress

if TYPE_CHECKING:
    from napari import Viewer

    from emformer_hub.audit import Audit
    from emformer_hub.reconstruction.settings import OpenStack

HEADER = ["verdict", "what", "figure"]
ANOTHER_FACTOR = "the same model at another factor"


class AuditPanel(Panel):
    """Audit a stack in the background, write the report and open it.

    Args:
        napari_viewer: the viewer that the stack is in; napari passes it to an argument of this name.
    """

    library = ("emformer_hub.audit", "matplotlib.figure", *ALIGNING)

    def __init__(self, napari_viewer: Viewer):
        super().__init__(napari_viewer, "Audit")
        self.geometry = Geometry(self)
        self.model = ModelField(self)
        self.noise = ComboBox(label="Noise of sections is", choices=list(KEPT), value=next(iter(KEPT)))
        self.against = ComboBox(label="Compare with", choices=self._others, nullable=True)
        self.against.tooltip = "A second opinion: it predicts the same, and the report says which of both is nearer"
        self.against_factor = LineEdit(label="Its factor", tooltip="Section spacing over that of the planes, above 1")
        self.against.changed.connect(self._show_factor)
        self.part = ComboBox(label="Middle of", choices=self.shapes, nullable=True)
        self.part.tooltip = "A Shapes layer: the middle of this part is audited; without one, that of the stack"
        self.report = FileEdit(label="Report", mode="w", filter="*.html", value=Path.home() / "audit.html")
        self.overwrite = CheckBox(text="Replace what exists")
        second = [self.against, self.against_factor]
        rest = [self.noise, *second, self.part, self.report, self.overwrite]
        self.form.extend([*self.geometry.widgets, *self.model.widgets, *rest])
        self.geometry.show_files()
        self._show_factor()
        self.table = table(HEADER)
        self.column.addWidget(self.table)

    def prepare(self) -> Callable[[Tell], tuple[Audit, Path]]:
        """Read the fields."""
        from emformer_hub.audit import check_auditable, check_report

        stack, size, page = self.stack(), self.stated_size(), Path(self.report.value)
        geometry, region = self.geometry.of(stack, size), self.region(self.part.value)
        check_report(page, self.overwrite.value)
        shape = stack.volume.data.shape if region is None else tuple(side.stop - side.start for side in region)
        check_auditable(shape, geometry, self.chosen.name)
        settings: dict[str, Any] = {"model": self.model.name, "mode": KEPT[self.noise.value], "region": region}
        settings |= {"name": self.chosen.name, "against": self._second(size)}
        return partial(audit, stack, self.geometry.aligning, geometry, size, page, **settings)

    def finish(self, result: tuple[Audit, Path]) -> str:
        """Show the verdicts, and open the report."""
        found, page = result
        self.table.setRowCount(len(found.verdicts))
        for place, one in enumerate(found.verdicts):
            for column, text in enumerate((one.verdict, one.item, one.figure)):
                self.table.setItem(place, column, QTableWidgetItem(text))
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(page.absolute())))
        return f"The report is {page}."

    def _second(self, size: VoxelSize) -> str | SectionModel | None:
        """The second opinion: a model, or how the same sections sample planes at another factor."""
        if self.against.value != ANOTHER_FACTOR:
            return self.against.value
        try:
            factor = float(self.against_factor.value)
        except ValueError:
            given = self.against_factor.value
            raise InputError(f"the factor to compare with is {given!r}; expected a number above 1 to 16.") from None
        return geometry_from(size, {**self.geometry.sampling(size), "factor": factor})

    def _others(self, widget: Widget) -> list[str]:
        return [*session.models, ANOTHER_FACTOR]

    def _show_factor(self) -> None:
        self.against_factor.visible = self.against.value == ANOTHER_FACTOR


def audit(
    stack: OpenStack,
    align: str | Path | None,
    geometry: SectionModel,
    size: VoxelSize,
    page: Path,
    tell: Tell,
    **settings: Any,
) -> tuple[Audit, Path]:
    """Audit a stack, aligned if wished, and write the report."""
    from emformer_hub.audit import audit_stack, write_report
    from emformer_hub.reconstruction.aligned import align_stack

    if align is not None:
        stack = align_stack(stack, align, align_progress(tell))
    data, settings["hidden"] = stack.volume.data, stack.volume.hidden
    found = audit_stack(data, geometry, size, progress=lambda step: tell((None, f"Auditing: {step}")), **settings)
    tell((None, "Writing the report"))
    write_report(found, page)
    return found, page

"""The panel *Audit*: what a reconstruction of a stack is worth, as a report that opens in the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, FileEdit
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QTableWidgetItem

from emformer_hub.app.words import KEPT
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.napari_plugin.panel import Geometry, ModelField, Panel, table
from emformer_hub.napari_plugin.work import Tell
from emformer_hub.volumes import StoredArray

if TYPE_CHECKING:
    from napari import Viewer

    from emformer_hub.audit import Audit

HEADER = ["verdict", "what", "figure"]


class AuditPanel(Panel):
    """Audit a stack in the background, write the report and open it.

    Args:
        napari_viewer: the viewer that the stack is in; napari passes it to an argument of this name.
    """

    library = ("emformer_hub.audit", "matplotlib.figure")

    def __init__(self, napari_viewer: Viewer):
        super().__init__(napari_viewer, "Audit")
        self.geometry = Geometry()
        self.model = ModelField(self)
        self.noise = ComboBox(label="Noise of sections is", choices=list(KEPT), value=next(iter(KEPT)))
        self.part = ComboBox(label="Middle of", choices=self.shapes, nullable=True)
        self.part.tooltip = "A Shapes layer: the middle of this part is audited; without one, that of the stack"
        self.report = FileEdit(label="Report", mode="w", filter="*.html", value=Path.home() / "audit.html")
        self.overwrite = CheckBox(text="Replace what exists")
        self.form.extend(
            [*self.geometry.widgets, *self.model.widgets, self.noise, self.part, self.report, self.overwrite]
        )
        self.table = table(HEADER)
        self.column.addWidget(self.table)

    def prepare(self) -> Callable[[Tell], tuple[Audit, Path]]:
        """Read the fields."""
        from emformer_hub.audit import check_auditable, check_report

        stack, size, page = self.stack(), self.stated_size(), Path(self.report.value)
        geometry, region = self.geometry.of(size), self.region(self.part.value)
        check_report(page, self.overwrite.value)
        shape = stack.volume.data.shape if region is None else tuple(side.stop - side.start for side in region)
        check_auditable(shape, geometry, self.chosen.name)
        settings: dict[str, Any] = {"model": self.model.name, "mode": KEPT[self.noise.value], "region": region}
        settings["name"] = self.chosen.name
        return lambda tell: audit(stack.volume.data, geometry, size, page, tell, **settings)

    def finish(self, result: tuple[Audit, Path]) -> str:
        """Show the verdicts, and open the report."""
        found, page = result
        self.table.setRowCount(len(found.verdicts))
        for place, one in enumerate(found.verdicts):
            for column, text in enumerate((one.verdict, one.item, one.figure)):
                self.table.setItem(place, column, QTableWidgetItem(text))
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(page.absolute())))
        return f"The report is {page}."


def audit(
    data: np.ndarray | StoredArray, geometry: SectionModel, size: VoxelSize, page: Path, tell: Tell, **settings: Any
) -> tuple[Audit, Path]:
    """Audit a stack and write the report."""
    from emformer_hub.audit import audit_stack, write_report

    found = audit_stack(data, geometry, size, progress=lambda step: tell((None, f"Auditing: {step}")), **settings)
    tell((None, "Writing the report"))
    write_report(found, page)
    return found, page

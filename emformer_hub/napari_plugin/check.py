"""The panel *Check stack*: which sections are unfit, why, and which of them are to be repaired."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from napari.layers import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QTableWidgetItem

from emformer_hub.app.checking import chosen_repair, flagged
from emformer_hub.app.choices import in_words
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.napari_plugin.layers import finest, stack_of
from emformer_hub.napari_plugin.panel import FIELDS, Panel, button, table
from emformer_hub.napari_plugin.session import session
from emformer_hub.napari_plugin.work import Tell

if TYPE_CHECKING:
    from napari import Viewer

    from emformer_hub.inspection import Inspection
    from emformer_hub.reconstruction.repair import Repair
    from emformer_hub.reconstruction.settings import OpenStack

HEADER = ["section", "repair", "flags", "highest score"]
SECTION, CHOICE, FLAGS, SCORE = range(len(HEADER))


class Checked(NamedTuple):
    """A layer, its inspection, and what an automatic repair would replace."""

    layer: Image
    inspection: Inspection
    repair: Repair


class CheckPanel(Panel):
    """Inspect a stack; show the flagged sections, and let them be chosen for repair.

    Args:
        napari_viewer: the viewer that the stack is in; napari passes it to an argument of this name.
    """

    library = ("emformer_hub.inspection", "scipy.ndimage")

    def __init__(self, napari_viewer: Viewer):
        super().__init__(napari_viewer, "Check")
        self.table = table(HEADER)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.cellClicked.connect(lambda place, column: self.show_section(self._section(place)))
        self.table.itemChanged.connect(self._choose)
        self.add_button = button("Repair the section that is shown", self.add_shown)
        self.column.addWidget(self.table)
        self.column.addWidget(self.add_button)
        self._of: Image | None = None
        self._automatic: Repair | None = None
        self._filling = False

    def prepare(self) -> Callable[[Tell], Checked]:
        """Read the fields; a voxel size is used if there is one."""
        size = self.stated_size() if self.voxel_size.value.strip() else None
        return partial(inspect, self.chosen, stack_of(self.chosen, size), size)

    def finish(self, result: Checked) -> str:
        """Fill the table: flagged sections, with those ticked that an automatic repair would take."""
        self._of, inspection, repair = result
        self._automatic = repair
        self._filling = True
        self.table.setRowCount(0)
        for row in flagged(inspection, repair):
            self._add(*row)
        self._filling = False
        self._choose()
        found, count = self.table.rowCount(), len(inspection.sections)
        remarks = (in_words(remark, FIELDS) for remark in inspection.stack.remarks)
        return "\n".join([f"{found} of {count} sections are flagged; click one to see it.", *remarks])

    def show_section(self, section: int) -> None:
        """Move the viewer to a section of the stack that was checked, along its first axis."""
        if self._of is None or self._of not in self.viewer.layers:
            return
        place = [0.0] * self._of.ndim
        place[-3] = float(section)
        axis = self.viewer.dims.ndim - 3
        self.viewer.dims.set_point(axis, self._of.data_to_world(place)[-3])

    def add_shown(self) -> None:
        """Add the section that the viewer shows to those that are repaired."""
        try:
            layer = self.chosen
        except InputError as error:
            self.refuse(str(error))
            return
        if layer is not self._of:  # another stack: nothing of it was checked yet
            self._of, self._automatic = layer, None
            self.table.setRowCount(0)
        section = round(float(layer.world_to_data(self.viewer.dims.point)[-3]))
        section = min(max(section, 0), finest(layer).shape[-3] - 1)
        for place in range(self.table.rowCount()):
            if self._section(place) == section:
                self.table.item(place, CHOICE).setCheckState(Qt.CheckState.Checked)
                return
        self._add(section, "named", "", True)
        self._choose()

    def _add(self, section: int, flags: str, score: str, repaired: bool) -> None:
        """Add a row; the sections to repair are chosen anew once it is complete."""
        filling, self._filling = self._filling, True
        place = self.table.rowCount()
        self.table.insertRow(place)
        for column, text in ((SECTION, str(section)), (CHOICE, ""), (FLAGS, flags), (SCORE, score)):
            item = QTableWidgetItem(text)
            if column == CHOICE:
                item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
                item.setCheckState(Qt.CheckState.Checked if repaired else Qt.CheckState.Unchecked)
            self.table.setItem(place, column, item)
        self._filling = filling

    def _section(self, place: int) -> int:
        return int(self.table.item(place, SECTION).text())

    def _choose(self, item: Any = None) -> None:
        """Make the ticked sections those that are repaired of the layer, in places where they are only damaged."""
        if self._filling or self._of is None:
            return
        reasons = {
            self._section(place): self.table.item(place, FLAGS).text()
            for place in range(self.table.rowCount())
            if self.table.item(place, CHOICE).checkState() == Qt.CheckState.Checked
        }
        session.choose_repair(self._of, chosen_repair(reasons, self._automatic))


def inspect(layer: Image, stack: OpenStack, size: VoxelSize | None, tell: Tell) -> Checked:
    """Inspect the stack of a layer."""
    from emformer_hub.inspection import inspect_stack
    from emformer_hub.reconstruction.repair import repair_of

    inspection = inspect_stack(
        stack.volume.data,
        voxel_size=size,
        progress=lambda done, steps: tell((done / steps, f"Checking: {done // 2} of {steps // 2} sections")),
    )
    tell((None, "Outlining damage"))
    return Checked(layer, inspection, repair_of(inspection))

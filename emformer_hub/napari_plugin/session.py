"""What panels share: fine-tuned models, and the sections that are to be repaired."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from napari.layers import Image
from qtpy.QtCore import QObject, Signal

from emformer_hub.pretrained import registry

if TYPE_CHECKING:
    from emformer_hub.reconstruction.repair import Repair


class Session(QObject):
    """State of this program, beyond what the viewer holds.

    Attributes:
        models: bundled names, and folders or Hub ids that were fine-tuned or chosen in this session.
        repairs: sections of a layer that were chosen to be predicted from their neighbours.
        changed: emitted after either has changed.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.models = list(registry())
        self.repairs: WeakKeyDictionary[Image, Repair] = WeakKeyDictionary()

    def add_model(self, name: str) -> None:
        """Add a model to those that can be chosen."""
        if name not in self.models:
            self.models.append(name)
        self.changed.emit()

    def choose_repair(self, layer: Image, repair: Repair) -> None:
        """Choose what is repaired of a layer."""
        self.repairs[layer] = repair
        self.changed.emit()


session = Session()

"""The two grids of a reconstruction: that of the stack, and the isotropic one that it became.

On both, voxels have their centres at whole numbers, counted from 0. Along y and x the grids agree, but for where a
region begins; along z, :class:`~emformer_hub.SectionModel` says which plane coordinate a section coordinate is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.files import record_path
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.uneven import UnevenSections
from emformer_hub.volumes.boxes import Box, shape_of
from emformer_hub.volumes.remote import Remote, place
from emformer_hub.volumes.translated import Translations

Target = Literal["isotropic", "stack"]
"""The grid that something is carried to."""
TARGETS: tuple[Target, ...] = get_args(Target)
Unit = Literal["voxels", "nm", "um"]
UNITS: tuple[Unit, ...] = get_args(Unit)
_RECORDED = ("factor", "thickness", "offset", "input_shape", "region", "padding", "voxel_size", "translation")


@dataclass(frozen=True)
class Grids:
    """The grid of a stack, and the isotropic one of its reconstruction.

    Args:
        geometry: how sections sample tissue, all of the stack.
        voxel_size: voxel size of the stack, nm; only lengths and volumes need it.
        shape_zyx: shape of the stack, if it is known.
        region: part of the stack that the isotropic grid covers; default: all of it.
        first_nm: ``(z, y, x)`` centre of the first voxel of the stack, nm.
        translations: by how much each section of the stack was moved along y and x to align it, in voxels.
    """

    geometry: SectionModel
    voxel_size: VoxelSize | None = None
    shape_zyx: tuple[int, int, int] | None = None
    region: Box | None = None
    first_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    translations: Translations | None = None

    @classmethod
    def from_record(cls, output: str | os.PathLike[str] | Remote) -> Grids:
        """The grids of a run, by the record beside its output.

        Args:
            output: path or address of the output of ``reconstruct_file`` or ``emformer-hub reconstruct``, or of its
                record.

        Raises:
            InputError: there is no record, or it is not of a reconstruction.
        """
        path = place(output)
        path = path if path.suffix == ".json" and path.is_file() else record_path(path)
        try:
            record = json.loads(path.read_text())
            recorded = {name: record[name] for name in _RECORDED}
            listed = record.get("z_positions")  # which earlier versions did not know
            translations = dict(record.get("reading", ())).get("translations")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror or error}); it is the record of a run, which lies beside the "
                f"result that `reconstruct` was told to write. Give the path of that result, or --factor and the like."
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is not the record of a reconstruction ({error!r}).") from error
        return replace(cls._recorded(**recorded, z_positions=listed), translations=translations)

    @classmethod
    def _recorded(
        cls,
        *,
        factor: float,
        thickness: float,
        offset: float | None,
        input_shape: tuple[int, int, int],
        region: Any,
        padding: float | None,
        voxel_size: tuple[float, float, float],
        translation: tuple[float, float, float],
        z_positions: Any,
    ) -> Grids:
        geometry, planes = SectionModel(factor, thickness, offset), VoxelSize(*voxel_size)
        if z_positions is not None:
            geometry = UnevenSections.of(z_positions, planes.z, factor)
        size = planes.with_z(float(f"{planes.z * factor:.12g}"))
        inside = geometry.part(slice(*region[0]))
        first = inside.section_origin(size, (translation[0], translation[1], translation[2]))
        starts = (geometry.distance(region[0][0]), region[1][0], region[2][0])
        z0, y0, x0 = (at - start * side for at, start, side in zip(first, starts, size.zyx, strict=True))
        z, y, x = (slice(start, stop) for start, stop in region)
        depth, height, width = input_shape
        if padding is not None:  # which was put around the result
            y, x = slice(0, height), slice(0, width)
        return cls(geometry, size, (depth, height, width), (z, y, x), (z0, y0, x0))

    @cached_property
    def inside(self) -> SectionModel:
        """How the sections of the region sample tissue."""
        return self.geometry if self.region is None else self.geometry.part(self.region[0])

    @property
    def start(self) -> np.ndarray:
        """The voxel of the stack that the isotropic grid begins at, ``(z, y, x)``."""
        return np.array([0, 0, 0] if self.region is None else [part.start for part in self.region])

    def shape_of(self, grid: Target) -> tuple[int, int, int] | None:
        """Shape of one of the grids, ``(z, y, x)``; ``None`` if it is not known."""
        if grid == "stack" or (self.shape_zyx is None and self.region is None):
            return self.shape_zyx if grid == "stack" else None
        sections, height, width = self.shape_zyx or (0, 0, 0)
        if self.region is not None:
            sections, height, width = shape_of(self.region)
        return (self.inside.num_planes(sections), height, width)

    def lengths_of(self, grid: Target) -> tuple[VoxelSize, tuple[float, float, float]]:
        """Voxel size of one of the grids, and the centre of its first voxel ``(z, y, x)``, nm.

        Raises:
            InputError: the voxel size of the stack is not known.
        """
        size = self.voxel_size
        if size is None:
            raise InputError("lengths need the voxel size of the stack; give --voxel-size Z,Y,X in nm, as in 40,4,4.")
        if grid == "stack":
            return size, self.first_nm
        first, *lateral = self.start.tolist()
        starts = (self.geometry.distance(first), *lateral)
        z, y, x = (at + side * n for at, side, n in zip(self.first_nm, size.zyx, starts, strict=True))
        return self.inside.plane_size(size), self.inside.plane_origin(size, (z, y, x))

    def carry(self, points: np.ndarray, to: Target, unit: Unit = "voxels") -> np.ndarray:
        """Coordinates of points on the other grid.

        Args:
            points: float ``(..., 3)``, z, y, x on the grid that they come from.
            to: grid that they are carried to.
            unit: of ``points`` and of what is returned: ``"voxels"``, or ``"nm"`` or ``"um"`` in the space that the
                files of stack and result place their voxels in.

        Raises:
            InputError: an unknown grid or unit; or a unit of length, and the voxel size is not known.
        """
        if to not in TARGETS or unit not in UNITS:
            raise InputError(
                f"points are carried to {to!r} in {unit!r}; expected one of {', '.join(TARGETS)}, in one of "
                f"{', '.join(UNITS)}."
            )
        if unit == "voxels":
            return self._carry_voxels(np.asarray(points, float), to)
        nanometres = 1.0 if unit == "nm" else 1000.0
        sources = {"isotropic": self.lengths_of("stack"), "stack": self.lengths_of("isotropic")}
        (size, first), (new_size, new_first) = sources[to], self.lengths_of(to)
        voxels = (np.asarray(points, float) * nanometres - first) / size.zyx
        return (self._carry_voxels(voxels, to) * new_size.zyx + new_first) / nanometres

    def _carry_voxels(self, points: np.ndarray, to: Target) -> np.ndarray:
        """Voxel coordinates on the other grid."""
        if to == "isotropic":
            carried = points - self.start
            carried[..., 1:] += self._moved(points[..., 0])
            carried[..., 0] = self.inside.to_planes(carried[..., 0])
            return carried
        carried = points.copy()
        carried[..., 0] = self.inside.to_sections(carried[..., 0])
        carried += self.start
        carried[..., 1:] -= self._moved(carried[..., 0])
        return carried

    def _moved(self, sections: np.ndarray) -> np.ndarray | float:
        """By how many voxels the nearest sections were moved along y and x."""
        if self.translations is None:
            return 0.0
        moves = np.rint(np.array(self.translations))
        return moves[np.floor(sections + 0.5).astype(np.int64).clip(0, len(moves) - 1)]

"""Training pairs: reproducible, consistent with the section model, and never from the held-out columns."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.processing_emformer import IntensityStatistics
from emformer_hub.training.ranges import SamplingRanges
from emformer_hub.training.sampling import ClipBatches, TrainingVolume, noise_level

SMALL = SamplingRanges(frames=4, rows=5, columns=16, rescale=0.5, sharpen=0.3, tone=0.3, voxel_noise=0.5)
APPEARANCE = ["rescale", "blur", "sharpen", "tone", "contrast", "invert"]
DAMAGE = ["voxel_noise", "noise", "jump", "charging", "jitter"]
CHANCES = [*APPEARANCE, *DAMAGE, "mask", "local_mask"]
PLAIN = replace(SMALL, **dict.fromkeys(CHANCES, 0.0))  # as cut and degraded
ISOTROPIC, ANISOTROPIC = VoxelSize(8, 8, 8), VoxelSize(40, 8, 8)
SHAPE = (24, 48, 112)  # of which 64 columns are held out
SPACE = ["z", "y", "x"]


def volume(data: np.ndarray | None = None, voxel_size: VoxelSize = ISOTROPIC, **changes: Any) -> TrainingVolume:
    """Noise by default; intensities are used as they are."""
    if data is None:
        data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return TrainingVolume("test", data, voxel_size, IntensityStatistics(0.0, 1.0, data.dtype), **changes)


def ramp(axis: str) -> np.ndarray:
    """A volume whose intensity is the coordinate along one axis."""
    return np.broadcast_to(
        np.moveaxis(np.arange(SHAPE[SPACE.index(axis)], dtype=np.float32)[:, None, None], 0, SPACE.index(axis)), SHAPE
    )


def stream(volumes: list[TrainingVolume], ranges: SamplingRanges = PLAIN, **changes: Any) -> ClipBatches:
    return ClipBatches(volumes, ranges, **{"seed": 0, "batch_size": 2, **changes})


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


BOTH = pytest.mark.parametrize("voxel_size", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])


# --- the same data, however they are fetched -------------------------------------------------------------------------


@BOTH
def test_a_batch_depends_on_the_seed_and_its_number_only(voxel_size: VoxelSize) -> None:
    first, again = (stream([volume(voxel_size=voxel_size)], SMALL) for _ in range(2))
    third = again.batch(3)  # asked for first, and out of order
    for index in range(3):
        assert_same(again.batch(index), first.batch(index))
    assert_same(third, first.batch(3))
    assert not np.array_equal(first.batch(0)["target"][0], first.batch(0)["target"][1])
    assert first.batch(0)["factor"] != first.batch(1)["factor"]
    assert first.batch(0)["factor"] != stream([volume()], SMALL, seed=1).batch(0)["factor"]


@BOTH
def test_two_processes_draw_what_one_would(voxel_size: VoxelSize) -> None:
    volumes = [volume(voxel_size=voxel_size)]
    alone = stream(volumes, SMALL, batch_size=2)
    ranks = [stream(volumes, SMALL, batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    for index in range(4):
        parts = [rank.batch(index) for rank in ranks]
        together = {
            key: torch.cat([part[key] for part in parts]) if isinstance(value, torch.Tensor) else value
            for key, value in parts[0].items()
        }
        assert_same(together, alone.batch(index))


def test_a_resumed_stream_goes_on_where_it_stopped() -> None:
    whole = list(islice(stream([volume()], SMALL), 7))
    resumed = list(islice(stream([volume()], SMALL, start=4), 3))
    for found, expected in zip(resumed, whole[4:], strict=True):
        assert_same(found, expected)


def test_workers_keep_the_order() -> None:
    batches = stream([volume()], SMALL, start=3)
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
        for index, found in enumerate(islice(loader, 5)):
            assert_same(found, batches.batch(3 + index))


# --- pairs that fit the section model ----------------------------------------------------------------------------


def section_model(batch: dict[str, Any]) -> SectionModel:
    """The geometry that the network is told: the offset follows from the first position."""
    factor, thickness = batch["factor"], batch["thickness"]
    centre = 0.5 / factor - batch["positions"][0]
    offset = (centre - thickness / 2) * factor
    return SectionModel(factor, thickness, float(np.clip(offset, 0, (1 - thickness) * factor)))


@BOTH
@pytest.mark.parametrize(
    "changes", [{}, *({name: 1.0} for name in APPEARANCE), {"single_plane": 1.0, "full_thickness": 0}]
)
def test_sections_are_the_degraded_target(voxel_size: VoxelSize, changes: dict[str, float]) -> None:
    batches = stream([volume(voxel_size=voxel_size)], replace(PLAIN, **changes))
    for batch in islice(batches, 20):
        model = section_model(batch)
        for sections, target in zip(batch["sections"].numpy(), batch["target"].numpy(), strict=True):
            degraded = model.degrade(target.transpose(1, 0, 2)).transpose(1, 0, 2)
            np.testing.assert_allclose(sections, degraded, atol=1e-4)
        assert len(batch["positions"]) == batch["target"].shape[2]
        assert not batch["section_mask"].any()


def test_blur_softens_the_target_along_every_axis_and_keeps_its_brightness() -> None:
    plain, blurred = stream([volume()]), stream([volume()], replace(PLAIN, blur=1.0))
    for index in range(10):
        before, after = (target / target.std() for target in (b.batch(index)["target"] for b in (plain, blurred)))
        for axis in (1, 2, 3):
            assert after.diff(dim=axis).abs().mean() < before.diff(dim=axis).abs().mean()
    flat = volume(np.full(SHAPE, 3, np.float32))
    for batch in islice(stream([flat], replace(PLAIN, blur=1.0)), 10):
        np.testing.assert_allclose(batch["target"], 3, rtol=1e-6)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_changes_sections_and_never_the_target(damage: str) -> None:
    plain, damaged = stream([volume()]), stream([volume()], replace(PLAIN, **{damage: 1.0}))
    changed = 0
    for index in range(10):
        before, after = plain.batch(index), damaged.batch(index)
        np.testing.assert_array_equal(after["target"], before["target"])
        changed += not torch.equal(after["sections"], before["sections"])
    assert changed > 5


def test_sharpening_keeps_brightness_and_raises_contrast() -> None:
    plain, sharpened = stream([volume()]), stream([volume()], replace(PLAIN, sharpen=1.0))
    for index in range(10):
        before, after = (one.batch(index)["target"] for one in (plain, sharpened))
        assert after.std() > before.std()
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=0.05)


def test_another_tone_keeps_the_order_of_grey_values() -> None:
    plain, toned = stream([volume()]), stream([volume()], replace(PLAIN, tone=1.0))
    for index in range(20):
        before, after = (one.batch(index)["target"][0].flatten() for one in (plain, toned))
        ordered = after[before.argsort()]
        assert (ordered.diff() >= 0).all() and not torch.equal(before, after)


@pytest.mark.parametrize("axis", SPACE)
def test_rescaled_voxels_are_longer_or_shorter_along_every_axis(axis: str) -> None:
    steps = set()
    for batch in islice(stream([volume(ramp(axis))], replace(PLAIN, rescale=1.0, frame_stride_one=1.0)), 30):
        assert batch["frame_spacing"] == 1
        target = batch["target"][0]
        inner = [target.diff(dim=dim)[1:-1].abs() if target.shape[dim] > 3 else target[:0] for dim in range(3)]
        step = max(float(part.median()) for part in inner if part.numel())
        steps.add(round(step, 3))
        assert 0.55 <= step <= 1.7  # voxels are even inside: means of them lie up to a tenth off the ramp
    assert min(steps) < 0.8 and max(steps) > 1.25


def test_rescaling_a_plane_brings_sections_nearer_or_further() -> None:
    ranges = replace(PLAIN, rescale=1.0)
    for batch in islice(stream([volume(ramp("z"), ANISOTROPIC)], ranges), 30):
        assert 5 / 1.6 - 1e-6 <= batch["frame_spacing"] <= 5 / 0.6 + 1e-6
        assert (batch["target"].diff(dim=1).abs() - 1).abs().max() < 1e-4  # frames are sections as they are


@BOTH
def test_larger_voxels_hold_less_noise(voxel_size: VoxelSize) -> None:
    larger = replace(PLAIN, rescale=1.0, rescale_range=(1.5, 1.5))
    for batch in islice(stream([volume(voxel_size=voxel_size)], larger), 10):
        assert batch["target"].std() < 0.85


# --- whose noise is whose ----------------------------------------------------------------------------------------


def imaged(batch: dict[str, Any]) -> np.ndarray:
    return section_model(batch).matrix(batch["sections"].shape[2]).any(axis=0)


def test_imaged_planes_share_their_noise_and_the_others_do_not() -> None:
    for batch in islice(stream([volume()], replace(PLAIN, full_thickness=0.3)), 30):
        expected = np.broadcast_to(~imaged(batch)[:, None], batch["target"].shape)
        np.testing.assert_array_equal(batch["independent"], expected)


@pytest.mark.parametrize("kind", ["mask", "local_mask"])
def test_planes_of_masked_voxels_share_no_noise(kind: str) -> None:
    ranges = replace(PLAIN, factor=(4.0, 4.0, 4.0), full_thickness=1.0, **{kind: 1.0})
    for batch in islice(stream([volume()], ranges), 20):
        np.testing.assert_array_equal(batch["independent"], batch["section_mask"].repeat_interleave(4, dim=2))


@pytest.mark.parametrize(("noise", "drowned"), [(1.0, False), (20.0, True)])
@pytest.mark.parametrize("where", ["noise", "voxel_noise"])
def test_noise_that_drowns_what_was_shared_is_a_section_of_its_own(where: str, noise: float, drowned: bool) -> None:
    """Unit noise in the volume; what is added is drawn up to ``noise_max``."""
    ranges = replace(PLAIN, full_thickness=1.0, noise_max=noise, **{where: 1.0})
    batches = [batch["independent"].float().mean() for batch in islice(stream([volume()], ranges, batch_size=1), 20)]
    assert (np.mean(batches) > 0.7) if drowned else (np.mean(batches) == 0)


def test_a_volume_without_noise_has_none_to_share() -> None:
    for batch in islice(stream([volume(ramp("y"))]), 10):
        assert batch["independent"].all()


def test_noise_is_measured_and_tissue_is_not() -> None:
    y, x = np.mgrid[:200, :200]
    tissue = np.sin(x / 5) + np.sin(y / 6)
    noise = 0.3 * np.random.default_rng(0).normal(size=(3, 200, 200))
    assert noise_level(tissue + noise) == pytest.approx(0.3, rel=0.05)
    assert noise_level(np.broadcast_to(tissue, (3, 200, 200))) < 0.01


@pytest.mark.parametrize("kind", ["mask", "local_mask"])
def test_masks_hide_one_to_three_neighbouring_sections_or_the_same_part_of_each(kind: str) -> None:
    ranges = replace(PLAIN, frames=12, columns=48, **{kind: 1.0})
    lengths = set()
    for batch in islice(stream([volume()], ranges), 30):
        assert batch["section_mask"].shape == batch["sections"].shape
        for mask in batch["section_mask"].numpy():
            (hidden,) = np.nonzero(mask.any(axis=(0, 2)))
            assert (np.diff(hidden) == 1).all() and len(hidden) <= mask.shape[1] - 2
            lengths.add(len(hidden))
            assert (mask[:, hidden] == mask[:, hidden[:1]]).all()
            assert mask[:, hidden].all() == (kind == "mask")
    assert lengths == {1, 2, 3}


def test_a_stacks_own_sections_are_left_out_and_are_what_is_to_be_found() -> None:
    stack = volume(ramp("z"), voxel_size=ANISOTROPIC)
    lengths = set()
    for batch in islice(stream([stack], replace(PLAIN, left_out=1.0)), 30):
        sections, mask = batch["sections"], batch["section_mask"]
        assert (sections.diff(dim=2).abs() == 1).all()  # neighbours in the stack
        left_out = mask[0].any(dim=2).any(dim=0)
        assert (mask == left_out[:, None]).all()
        np.testing.assert_array_equal(batch["target"], sections[:, :, left_out])
        assert batch["independent"].all() and batch["frame_spacing"] == 1
        positions = np.reshape(batch["positions"], (-1, batch["planes_per_section"]))
        np.testing.assert_allclose(positions.mean(axis=1), np.flatnonzero(left_out), atol=1e-9)
        assert np.ptp(positions, axis=1).max() < batch["thickness"]
        lengths.add(int(left_out.sum()))
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize(
    ("stack", "recipe", "thickness"),
    [(1.0, None, lambda factor: 1), (0.0, None, lambda factor: 1 / factor), (1.0, 0.5, lambda factor: 0.5)],
    ids=["physical sections", "block faces", "as the recipe says"],
)
def test_sections_that_are_left_out_are_as_thick_as_the_stacks(stack: float, recipe: float | None, thickness) -> None:
    anisotropic = volume(voxel_size=ANISOTROPIC, thickness=stack)
    for batch in islice(stream([anisotropic], replace(PLAIN, left_out=1.0, thickness=recipe)), 10):
        assert batch["thickness"] == thickness(batch["factor"])
        assert 5 / 1.6 < batch["factor"] < 5 * 1.6


def test_a_stacks_own_sections_are_as_far_apart_as_they_are_whatever_factors_are_learned() -> None:
    for batch in islice(stream([volume(voxel_size=ANISOTROPIC)], replace(PLAIN, left_out=1.0, factors=(2.0, 8.0))), 10):
        assert batch["factor"] == 5


def test_sections_of_narrow_stacks_are_not_made_narrower_than_a_clip() -> None:
    narrow = volume(ramp("z")[:, :24, :40], voxel_size=ANISOTROPIC)
    ranges = replace(PLAIN, left_out=1.0, rescale=1.0, rescale_range=(3.0, 3.0))
    for batch in islice(stream([narrow], ranges), 10):
        assert batch["sections"].shape[3] == ranges.columns and batch["sections"].shape[1] == ranges.frames


@pytest.mark.parametrize("other", [{}, {"voxel_size": ANISOTROPIC, "aligned": False}], ids=["isotropic", "not aligned"])
def test_no_section_is_left_out_of_what_is_no_stack(other: dict[str, Any]) -> None:
    for batch in islice(stream([volume(**other)], replace(PLAIN, left_out=1.0)), 10):
        assert "planes_per_section" not in batch and not batch["section_mask"].any()


def test_masks_leave_intensities_as_they_are() -> None:
    """The network is told what is missing; what lies there is its own affair."""
    plain, masked = stream([volume()]), stream([volume()], replace(PLAIN, mask=0.5, local_mask=0.5))
    for index in range(10):
        before, after = plain.batch(index), masked.batch(index)
        assert after["section_mask"].any()
        told = ("section_mask", "independent")
        assert_same({**after, **{key: before[key] for key in told}}, before)


def test_geometry_stays_in_the_recipes_ranges() -> None:
    ranges = replace(PLAIN, factor=(1.5, 3.0, 5.0))
    batches = list(islice(stream([volume()], ranges, batch_size=1), 100))
    factors = np.array([batch["factor"] for batch in batches])
    assert factors.min() >= 1.5 and factors.max() <= 48 / 5  # a short axis holds fewer sections
    assert factors.max() <= 5 and np.ptp(factors) > 2
    thickness = np.array([batch["thickness"] for batch in batches])
    assert (thickness == 1).mean() == pytest.approx(0.5, abs=0.15)
    assert np.isclose(thickness, 1 / factors).mean() == pytest.approx(0.25, abs=0.12)
    assert (thickness >= 1 / factors - 1e-9).all()
    for batch in batches:
        frames, rows, columns = batch["sections"].shape[1:]
        assert frames <= 4 and rows <= 5 and columns <= 16


def test_intensities_are_normalised_by_the_whole_volume() -> None:
    data = np.random.default_rng(0).integers(0, 65535, SHAPE, np.uint16)
    batches = ClipBatches(
        [TrainingVolume("test", data, ISOTROPIC, IntensityStatistics(30000.0, 5000.0, data.dtype))],
        PLAIN,
        seed=0,
        batch_size=1,
    )
    target = batches.batch(0)["target"].numpy()
    assert target.dtype == np.float32
    voxels = target * 5000 + 30000
    np.testing.assert_allclose(voxels, np.rint(voxels), atol=0.05)


# --- where clips come from ---------------------------------------------------------------------------------------


@BOTH
def test_held_out_columns_are_never_seen(voxel_size: VoxelSize) -> None:
    data = np.zeros(SHAPE, np.float32)
    training = volume(data, voxel_size)
    data[:, :, -training.holdout_columns :] = 1e9
    for batch in islice(stream([training], SMALL), 150):
        assert batch["target"].max() < 1e3 and batch["sections"].max() < 1e3


@BOTH
@pytest.mark.parametrize("axis", SPACE)
def test_all_the_rest_is_seen(voxel_size: VoxelSize, axis: str) -> None:
    seen: set[int] = set()
    for batch in islice(stream([volume(ramp(axis), voxel_size)]), 150):
        seen.update(np.unique(batch["target"].numpy()).astype(int).tolist())
    held_out = 64 if axis == "x" else 0
    assert seen == set(range(SHAPE[SPACE.index(axis)] - held_out))


def test_the_holdout_is_a_share_of_the_columns_and_at_least_64() -> None:
    wide = np.zeros((8, 16, 1000), np.uint8)
    assert volume(wide, holdout=0.2).holdout_columns == 200
    assert volume(wide, holdout=0.01).holdout_columns == 64
    assert volume(wide[:, :, :80]).holdout_columns == 20  # of fewer than 96, a quarter


def test_sections_of_anisotropic_volumes_stay_frames() -> None:
    for batch in islice(stream([volume(ramp("z"), ANISOTROPIC)]), 30):
        target = batch["target"]
        assert (target == target[:, :, :1, :1]).all()  # one frame is one section
        assert (target.diff(dim=1).abs() == 1).all()  # and the next frame the next section
        assert batch["frame_spacing"] == 5


@BOTH
def test_clips_of_unaligned_volumes_are_pieces_of_one_section(voxel_size: VoxelSize) -> None:
    sections = set()
    for batch in islice(stream([volume(ramp("z"), voxel_size, aligned=False)]), 100):
        assert batch["sections"].shape[1] == batch["target"].shape[1] == 1
        assert (batch["target"] == batch["target"][:, :1, :1, :1]).all()  # neither rows nor columns run along z
        sections.update(batch["target"].flatten().tolist())
    assert sections == set(range(SHAPE[0]))


def test_planes_of_unaligned_volumes_run_along_either_lateral_axis() -> None:
    training = volume(ramp("y"), aligned=False)
    assert not training.isotropic and volume(ramp("y")).isotropic  # though the voxels are cubes
    along_planes = [(batch["target"].diff(dim=2) != 0).any() for batch in islice(stream([training]), 30)]
    assert {bool(along) for along in along_planes} == {True, False}


def test_isotropic_volumes_are_seen_from_all_sides_and_at_strides() -> None:
    orientations, strides = set(), set()
    for batch in islice(stream([volume(ramp("z"))], replace(PLAIN, frame_stride_one=0.3), batch_size=1), 100):
        target = batch["target"][0]
        steps = [int(target.diff(dim=dim).abs().max()) if target.shape[dim] > 1 else 0 for dim in range(3)]
        orientation = int(np.argmax(steps))
        orientations.add(orientation)
        if orientation == 0:
            assert steps[0] == batch["frame_spacing"]
            strides.add(steps[0])
    assert orientations == {0, 1, 2}
    assert {1, 2} < strides and max(strides) <= PLAIN.frame_stride_max


def test_volumes_are_drawn_by_weight() -> None:
    flat = [np.full(SHAPE, value, np.float32) for value in (0, 1, 2)]
    volumes = [volume(data, weight=weight) for data, weight in zip(flat, (3, 1, 0), strict=True)]
    drawn = np.array([int(batch["target"].mean()) for batch in islice(stream(volumes, batch_size=1), 200)])
    assert (drawn == 0).mean() == pytest.approx(0.75, abs=0.1)
    assert (drawn == 2).sum() == 0


def test_where_a_clip_lies_does_not_depend_on_which_volume_it_is_from() -> None:
    """Batch geometry and clips draw from streams of their own."""
    volumes = [volume(ramp("y") + offset, ANISOTROPIC) for offset in (0, 1000)]
    ranges = replace(PLAIN, factor=(2.0, 2.0, 2.0))
    starts: list[list[float]] = [[], []]
    for batch in islice(stream(volumes, ranges, batch_size=1), 300):
        which, start = divmod(float(batch["target"].min()), 1000)
        starts[int(which)].append(start)
    assert np.mean(starts[0]) == pytest.approx(np.mean(starts[1]), abs=4)  # of 38 places


def test_a_single_frame_is_hit_by_local_masks_too() -> None:
    batches = stream([volume(voxel_size=ANISOTROPIC, aligned=False)], replace(PLAIN, local_mask=1.0, columns=64))
    assert sum(bool(batch["section_mask"].any()) for batch in islice(batches, 30)) > 25

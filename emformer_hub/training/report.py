"""Did it help? The weights before and after fine-tuning, on columns that training did not see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from emformer_hub.audit.held_back import left_out_gain
from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.hub.licences import combined, licence_of_model
from emformer_hub.measurement import comparison_picture
from emformer_hub.measurement.intervals import decibel_interval, resampled_mse
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import registry
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import TrainingVolume
from emformer_hub.training.validation import restore

IN_PLANE, LEFT_OUT = "degraded in plane", "section left out"
FACTORS = (4.0, 8.0)
MAX_SECTIONS, MAX_SIDE = 32, 192
HARM = -0.05
"""Difference in dB below which real sections suffer."""


@dataclass(frozen=True)
class Comparison:
    """One task on one volume: gains in dB over an interpolation, before and after.

    Attributes:
        volume: name of the volume.
        task: the plane degraded along y and restored, or each inner section left out and predicted from the others.
        geometry: factor and thickness, in words.
        baseline: bicubic interpolation, or the mean of the neighbouring sections.
        before, after: gains over the baseline.
        interval: 95 % interval of the difference, dB: how far it depends on which part of the columns is looked at.
    """

    volume: str
    task: str
    geometry: str
    baseline: str
    before: float
    after: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.after - self.before


def compare_models(
    before: EMformerModel, after: EMformerModel, volumes: Sequence[TrainingVolume], recipe: Recipe
) -> list[Comparison]:
    """Measure both models, on one device, on the held-out columns of each volume."""
    rows: list[Comparison] = []
    for volume in tqdm(volumes, "before and after", leave=False, mininterval=5):
        rows += _compare(before.eval(), after.eval(), volume, recipe)
    return rows


def _compare(
    before: EMformerModel, after: EMformerModel, volume: TrainingVolume, recipe: Recipe
) -> Iterator[Comparison]:
    for factor in recipe.sampling.factors or FACTORS:
        if factor == 1:  # nothing is lost, so there is nothing to gain; the section left out is what counts
            continue
        geometry = SectionModel(factor, recipe.sampling.thickness_at(factor))
        first, second = (restore(model, volume, geometry, model.device) for model in (before, after))
        if first is not None and second is not None:
            words = _words(geometry)
            interval = _interval(first.error.cpu().numpy(), second.error.cpu().numpy())
            yield Comparison(volume.name, IN_PLANE, words, "bicubic", first.gain(), second.gain(), interval)
    if volume.aligned and volume.data.shape[0] >= 3:
        spacing = float(np.clip(volume.anisotropy, 1, 16))
        geometry = SectionModel(spacing, recipe.sampling.thickness_at(spacing, volume.thickness))
        stack = held_out_stack(volume)
        (gain, errors), (gain_after, errors_after) = (left_out_gain(one, stack, geometry) for one in (before, after))
        interval, baseline = _interval(errors, errors_after), "mean of both neighbours"
        yield Comparison(volume.name, LEFT_OUT, _words(geometry), baseline, gain, gain_after, interval)


def _interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Interval of the decrease of errors, dB; the same parts of both are compared."""
    return decibel_interval(resampled_mse(before) / resampled_mse(after))


def held_out_stack(volume: TrainingVolume) -> np.ndarray:
    """The middle of the held-out columns, at most 32 sections of 192 rows: float32, standard deviations."""
    sections, rows, _ = volume.data.shape
    z, y = max(0, (sections - MAX_SECTIONS) // 2), max(0, (rows - MAX_SIDE) // 2)
    held_out = volume.data[z : z + MAX_SECTIONS, y : y + MAX_SIDE, -volume.holdout_columns :]
    return volume.statistics.normalise(held_out)


def verdict(rows: Sequence[Comparison]) -> str:
    """One plain sentence: whether to use what was trained, or the base.

    Training helped if the gain is certain, and certainly larger than any loss on sections that were left out. Otherwise
    there is no reason to change from the base.
    """
    if not rows:
        return "The volumes are too small to tell whether it helped: too little could be held out."
    left_out = [row for row in rows if row.task == LEFT_OUT]
    judged = [row for row in rows if row.task == IN_PLANE] or left_out
    gain = float(np.mean([row.difference for row in judged]))
    low, high = (float(np.mean([row.interval[end] for row in judged])) for end in (0, 1))
    where = "on held-out columns" if judged is not left_out else "where a section was left out"
    said = f"{gain:+.2f} dB ({low:+.2f} to {high:+.2f}) on average {where}"
    worst = min(left_out, key=lambda row: row.difference, default=None)
    if worst is not None and judged is not left_out:
        said += f", and {worst.difference:+.2f} dB ({worst.interval[0]:+.2f} to {worst.interval[1]:+.2f}) where a real "
        said += "section was left out"
    if high < 0:
        return f"It did not help: {said}. Use the base."
    if worst is not None and worst.difference < HARM and worst.interval[1] < 0:
        return f"Take care: {said}. Use the base, or fewer minutes."
    if low <= max(0.0, 0.0 if worst is None else -worst.difference):
        return f"No certain difference: {said}. Keep the base, or give more data or minutes."
    return f"It helped: {said}."


def table(rows: Sequence[Comparison]) -> str:
    """Markdown table, one line for each row."""
    columns = ["volume", "task", "geometry", "gain over", "before dB", "after dB", "difference dB (95 %)"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        words = [row.volume, row.task, row.geometry, row.baseline]
        low, high = row.interval
        figures = [f"{row.before:+.2f}", f"{row.after:+.2f}", f"{row.difference:+.2f} ({low:+.2f} to {high:+.2f})"]
        lines.append("| " + " | ".join([*words, *figures]) + " |")
    return "\n".join(lines)


def write_report(
    folder: Path, before: EMformerModel, after: EMformerModel, volumes: Sequence[TrainingVolume], recipe: Recipe
) -> str:
    """Compare both models; leave ``report.json``, ``comparison.png`` and the card ``README.md`` in a run's folder.

    Returns:
        The table and the verdict.
    """
    rows = compare_models(before, after, volumes, recipe)
    said = f"{table(rows)}\n\n{verdict(rows)}"
    content = {"verdict": verdict(rows), "rows": [{**asdict(row), "difference": row.difference} for row in rows]}
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    try:
        picture = draw(folder / "comparison.png", before, after, volumes[0], recipe)
    except InputError as error:  # matplotlib is not installed
        said += f"\n\nThe picture was not drawn: {error}"
        picture = None
    (folder / "README.md").write_text(_card(folder, said, volumes, recipe, picture))
    return said


def _card(folder: Path, said: str, volumes: Sequence[TrainingVolume], recipe: Recipe, picture: Path | None) -> str:
    """A model page: front matter, what it is, how to use it, whether it helped."""
    adapter = recipe.method in ("lora", "dora")
    published = registry().get(str(recipe.base))
    base = published.repo_id if published else str(recipe.base)
    licence = licence_of(recipe)
    front = {
        **({"license": licence} if licence else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-to-image",
        "base_model": base,
        "base_model_relation": "adapter" if adapter else "finetune",
        "tags": ["electron-microscopy", "volume-em", "super-resolution", "isotropic", "emformer"],
    }
    what = {
        "lora": "A LoRA adapter for",
        "dora": "A DoRA adapter for",
        "head": "A new decoder for",
        "full": "New weights for" if recipe.widen == 1 else f"A network {recipe.widen} times as wide, grown from",
    }
    sources = "\n".join(_source(volume, entry) for volume, entry in zip(volumes, recipe.volumes, strict=True))
    use = f'result = reconstruct(stack, factor=10, model="{folder.name}")  # this folder, or its Hub id'
    length = f"{recipe.minutes:g} minutes" if recipe.minutes else f"{recipe.steps} steps"
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {folder.name}\n\n"
        f"{what[recipe.method]} [{base}](https://huggingface.co/{base}), fine-tuned by self-supervision on\n\n"
        f"{sources}\n\nin {length}; `recipe.yaml` beside this page has every choice. {_terms(licence)}\n\n"
        f"## Use\n\n```python\nfrom emformer_hub import reconstruct\n\n{use}\n```\n\n"
        f"## Did it help?\n\nOn columns at the far end of x, which training did not see:\n\n{said}\n"
        + (f"\n![Input, cubic interpolation, before, after, truth, error]({picture.name})\n" if picture else "")
    )


def licence_of(recipe: Recipe) -> str | None:
    """Licence that follows from the base of a run and its volumes; ``None`` where that cannot be told."""
    return combined([licence_of_model(str(recipe.base)), *(entry.licence for entry in recipe.volumes)])


def check_licence(recipe: Recipe) -> None:
    """Raise ``InputError``, before the work, if what a run makes could not be published for want of a licence."""
    if licence_of(recipe) is not None:
        return
    stated = {str(recipe.base): licence_of_model(str(recipe.base)), **{one.path: one.licence for one in recipe.volumes}}
    said = ", ".join(f"{name}: {licence or 'not known'}" for name, licence in stated.items())
    raise InputError(
        f"no licence follows from these for what the run makes ({said}). Give the volumes' with --licence, such as "
        f"--licence CC-BY-4.0; or publish later, with 'emformer-hub push DIR --licence ...'."
    )


def _terms(licence: str | None) -> str:
    """What may be done with the weights, in a sentence."""
    if licence is not None:
        return f"The licence, {licence}, follows from those of the base and of these data."
    return "No licence is stated: it would follow from those of the base and of these data, of which one is not known."


def _source(volume: TrainingVolume, entry: VolumeEntry) -> str:
    stated = [entry.modality or "", f"licence: {entry.licence}" if entry.licence else ""]
    parts = [volume.name, f"{volume.data.shape} voxels z, y, x", str(volume.voxel_size), *filter(None, stated)]
    return "- " + ", ".join(parts)


def draw(
    path: Path, before: EMformerModel, after: EMformerModel, volume: TrainingVolume, recipe: Recipe
) -> Path | None:
    """Held-out columns, degraded along y: input, cubic interpolation, before, after, truth.

    ``None`` where there is nothing to show: the columns are too small, or the only factor is 1.
    """
    factor = max(recipe.sampling.factors or FACTORS)
    if factor == 1:
        return None
    geometry = SectionModel(factor, recipe.sampling.thickness_at(factor))
    restored = [restore(model, volume, geometry, model.device) for model in (before, after)]
    if restored[0] is None or restored[1] is None:
        return None
    target = restored[0].target
    planes = [target + restored[0].cubic_error, *(target + one.error for one in restored if one), target]
    cubic, first, second, truth = (
        volume.statistics.mean + volume.statistics.std * plane.cpu().numpy().transpose(1, 0, 2) for plane in planes
    )
    comparison_picture(
        path,
        sections=geometry.degrade(truth),
        interpolated=cubic,
        before=first,
        reconstruction=second,
        truth=truth,
        voxel_size=volume.voxel_size.with_z(volume.voxel_size.lateral),
        factor=factor,
        in_plane=True,
        title=f"{volume.name}, held-out columns, degraded along y, {_words(geometry)}",
    )
    return path


def _words(geometry: SectionModel) -> str:
    return f"x{geometry.factor:g} t={geometry.thickness:.3g}"

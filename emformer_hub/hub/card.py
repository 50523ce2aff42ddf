"""The text of a model page, from what the registry, training and the benchmark wrote, and ``about.yaml`` by hand.

Every figure on a page therefore has a source file beside it, and a page without its source files cannot be written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from emformer_hub.errors import InputError
from emformer_hub.hub.assemble import QUALITY, training_stages
from emformer_hub.pretrained import PretrainedWeights

ABOUT = "about.yaml"
TEMPLATE = Path(__file__).with_name("card.md.jinja")

Row = dict[str, Any]


def gain(row: Row, baseline: str = "bicubic") -> str:
    return interval(row, f"gain_over_{baseline}")


def interval(row: Row, figure: str) -> str:
    low, high = row[f"{figure}_interval_db"]
    return f"{row[f'{figure}_db']:+.2f} ({low:+.2f} to {high:+.2f})"


Columns = dict[str, Callable[[Row], str]]

METHOD: Columns = {"method": lambda row: row["method"], "PSNR dB": lambda row: f"{row['psnr_db']:.2f}"}
GAIN: Columns = {**METHOD, "gain over bicubic dB (95 %)": gain}


def places(volume: str, geometry: str) -> Columns:
    """Columns that say what was restored, and from which sections."""
    return {volume: lambda row: row["data"], geometry: lambda row: row["geometry"]["name"]}


ALONG_Z: Columns = {
    **places("volume", "geometry"),
    **GAIN,
    "low-pass PSNR dB": lambda row: f"{row['low_pass']['psnr_db']:.2f}",
    "SSIM 3d": lambda row: f"{row['ssim']['3d']:.4f}",
    "SSIM xz": lambda row: f"{row['ssim']['xz']:.4f}",
    "SSIM yz": lambda row: f"{row['ssim']['yz']:.4f}",
    "FSC z": lambda row: f"{row['fsc']['resolution']['z']:.1f} {row['fsc']['unit']}",
}
NOT_IMAGED: Columns = {
    **places("volume", "geometry"),
    "method": lambda row: row["method"],
    "gain over the best interpolation dB (95 %)": lambda row: interval(row["not_imaged"], "gain"),
    "the same, low-passed dB": lambda row: f"{row['not_imaged']['low_pass_gain_db']:+.2f}",
    "noise in flat tissue, % of bicubic's": lambda row: f"{100 * row['flat_noise']:.0f}",
}
LEFT_OUT: Columns = {
    "stack": lambda row: row["data"],
    **METHOD,
    "gain over the mean of both neighbours dB (95 %)": lambda row: gain(row, "trilinear"),
    "gain over cubic dB (95 %)": gain,
}
IN_PLANE: Columns = {**places("stack", "geometry along y"), **GAIN}
COVERAGE: Columns = {
    **places("volume", "geometry"),
    **{
        f"{share} %": lambda row, place=place: f"{100 * row['coverage'][place]:.1f} %"  # type: ignore[misc]
        for place, share in enumerate((50, 80, 95))
    },
}
TABLES = {
    "degraded along z": ("Isotropic volumes, degraded along z and restored", ALONG_Z),
    "section left out": ("Real stacks, each inner section left out and predicted from the others", LEFT_OUT),
    "degraded in plane": ("Real stacks, degraded in their plane", IN_PLANE),
}
UNSEEN = "Isotropic volumes, judged on planes that no section imaged: the noise of the truth there is nobody's to know"
TAGS = ["biology", "microscopy", "electron-microscopy", "volume-em", "super-resolution", "isotropic", "3d"]
LEFT_OFF = ("nearest", "lanczos")
"""Methods that appear in ``quality.json`` only."""


def render(weights: PretrainedWeights, page: Path) -> str:
    """Write the Markdown of a model page.

    Args:
        weights: entry of the registry.
        page: folder with ``about.yaml``, ``training.json``, ``quality.json`` and the pictures.

    Raises:
        InputError: a file or a field is missing.
    """
    import jinja2

    try:
        about = yaml.safe_load((page / ABOUT).read_text())
        quality = json.loads((page / QUALITY).read_text())
    except OSError as error:
        raise InputError(f"{error.filename} is missing; a model page is written from it.") from error
    for picture in about["pictures"]:
        if not (page / picture["file"]).is_file():
            raise InputError(f"{page / picture['file']} is missing; {ABOUT} shows it.")
    stages = training_stages(page)
    shown = [row for row in quality["rows"] if row["method"] not in LEFT_OFF]
    own = [row for row in quality["rows"] if row["method"] == weights.name]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(TEMPLATE.read_text()).render(
            weights=weights,
            front=_front_matter(weights, about["base_model"], own),
            about=about,
            stages=stages,
            shares={volume.file: _shares(volume.file, stages) for volume in weights.data},
            run=quality["run"],
            tables=_tables(shown),
            coverage=_table("", COVERAGE, [row for row in own if "coverage" in row]),
        )
    except jinja2.UndefinedError as error:
        raise InputError(f"{page}: a value for the model page is missing: {error}.") from error


def _front_matter(weights: PretrainedWeights, base_model: str | None, own: list[Row]) -> str:
    """Metadata for the Hub: licence, task, tags, and the figures as a model index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for row in own:
        task = row["experiment"] + (f", {row['geometry']['name']}" if "geometry" in row else "")
        figures = {"psnr": ("PSNR, dB", round(row["psnr_db"], 2))}
        if "ssim" in row:
            figures["ssim"] = ("SSIM, 3-D", round(row["ssim"]["3d"], 4))
        results += [
            EvalResult(
                task_type="image-to-image",
                task_name=task,
                dataset_type=row["data"],
                dataset_name=row["data"],
                dataset_config=task,
                metric_type=metric,
                metric_name=name,
                metric_value=value,
            )
            for metric, (name, value) in figures.items()
        ]
    data = ModelCardData(
        license=weights.licence.lower(),
        library_name="transformers",
        pipeline_tag="image-to-image",
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        tags=TAGS,
        metrics=["psnr", "ssim"],
        model_name=weights.name,
        eval_results=results,
    )
    return data.to_yaml()


def _shares(file: str, stages: list[dict[str, Any]]) -> str:
    """Fraction of clips from a volume in each training stage, as ``80 %, 40 %``."""
    shares = []
    for stage in stages:
        volumes = {volume["path"]: volume["weight"] for volume in stage["recipe"]["volumes"]}
        shares.append(f"{100 * volumes.get(file, 0) / sum(volumes.values()):.0f} %")
    return ", ".join(shares)


def _tables(rows: list[Row]) -> list[dict[str, Any]]:
    """One for each experiment; where it was measured, noise that is in nothing that a method was given comes first."""
    tables = [
        _table(title, columns, [row for row in rows if row["experiment"] == experiment])
        for experiment, (title, columns) in TABLES.items()
    ]
    unseen = [row for row in rows if "not_imaged" in row]
    return [_table(UNSEEN, NOT_IMAGED, unseen), *tables] if unseen else tables


def _table(title: str, columns: Columns, rows: list[Row]) -> dict[str, Any]:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return {"title": title, "columns": list(columns), "rows": cells}

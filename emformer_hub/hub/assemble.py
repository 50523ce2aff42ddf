"""Turns a training run into the folder of a model page, ``model_cards/<name>/``, except for text and figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import click
import yaml

from emformer_hub.errors import InputError
from emformer_hub.hub.stored_outputs import write_test_tensors
from emformer_hub.model_files import WEIGHTS
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import resolve_pretrained
from emformer_hub.processing_emformer import EMformerProcessor

CONFIGURATIONS = ("config.json", "preprocessor_config.json")
TRAINING, QUALITY = "training.json", "quality.json"


def assemble(run: Path, page: Path, *, command: str, commit: str, device: str) -> dict[str, Any]:
    """Write weights, config, processor, test tensors and ``training.json`` of a finished run into a page's folder.

    ``training.json`` holds one object per stage: the stages of the weights that the run started from, and the run.

    Args:
        run: folder of the training run.
        page: folder of the model page; files of the same names are replaced.
        command, commit, device: origin of the run's figures.

    Returns:
        Values for the registry: ``{"sha256", "size", "configurations", "parameters"}``.

    Raises:
        InputError: the run is not finished.
    """
    if not (run / "model.safetensors").is_file():
        raise InputError(f"{run} holds no model.safetensors; expected the folder of a finished training run.")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    stages = training_stages(Path(resolve_pretrained(recipe["base"]))) if recipe["base"] else []
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if "voxels" in record)
    stage = {
        "command": command,
        "commit": commit,
        "device": device,
        "steps": last["step"],
        "output_voxels": last["voxels"],
        "seconds": last["seconds"],
        "recipe": recipe,
        "validation": [record for record in records if "gain_db" in record],
    }
    page.mkdir(parents=True, exist_ok=True)
    model = EMformerModel.from_pretrained(run)
    model.save_pretrained(page)
    EMformerProcessor.from_pretrained(run).save_pretrained(page)
    write_test_tensors(model, page)
    (page / TRAINING).write_text(json.dumps({"stages": [*stages, stage]}, indent=1) + "\n")
    sha256 = {file: hashlib.sha256((page / file).read_bytes()).hexdigest() for file in (WEIGHTS, *CONFIGURATIONS)}
    return {
        "sha256": sha256.pop(WEIGHTS),
        "size": (page / WEIGHTS).stat().st_size,
        "configurations": sha256,
        "parameters": model.num_parameters(),
    }


def training_stages(page: Path) -> list[dict[str, Any]]:
    """Training stages of a page's weights; empty if they were not recorded."""
    path = page / TRAINING
    return json.loads(path.read_text())["stages"] if path.is_file() else []


def headline_figures(page: Path, name: str) -> dict[str, float]:
    """Figures of a page's ``quality.json`` for the registry: gains in dB by evaluation volume and task.

    The baseline is bicubic interpolation; for sections left out it is the mean of their neighbours, which is stronger
    there; on planes that no section imaged it is the best interpolation.
    """
    figures = {}
    unseen = {}
    for row in json.loads((page / QUALITY).read_text())["rows"]:
        if row["method"] != name:
            continue
        if row["experiment"] == "section left out":
            figures[f"{row['data']}, section left out, over the mean of its neighbours"] = row["gain_over_trilinear_db"]
        elif row["geometry"]["factor"] in (4, 8):
            task = "in plane " if row["experiment"] == "degraded in plane" else ""
            figures[f"{row['data']}, {task}{row['geometry']['name']}"] = row["gain_over_bicubic_db"]
            if "not_imaged" in row:
                unseen[f"{row['data']}, {row['geometry']['name']}, planes not imaged"] = row["not_imaged"]["gain_db"]
    figures = unseen | figures
    return {what: round(gain, 2) for what, gain in figures.items()}


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("page", type=click.Path(file_okay=False, path_type=Path))
@click.option("--command", required=True, help="Command that trained the model.")
@click.option("--commit", required=True, help="Commit of the code that trained it.")
@click.option("--device", required=True, help="Device that it was trained on, in words.")
def main(run: Path, page: Path, command: str, commit: str, device: str) -> None:
    """Assemble a model page from the folder of a finished RUN, and print its facts for the registry."""
    click.echo(json.dumps(assemble(run, page, command=command, commit=commit, device=device), indent=2))


if __name__ == "__main__":
    main()

"""Recipes: strict YAML in, the same YAML out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.errors import InputError
from emformer_hub.training.ranges import SamplingRanges
from emformer_hub.training.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "finetune" / "recipes").glob("*.yaml"))
SMALLEST = {"model": {"hidden_size": 16}, "volumes": [{"path": "stack.tif"}], "steps": 10}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The smallest recipe with keys replaced, or left out where the value is ``None``."""

    def write_recipe(**changes: Any) -> Path:
        content = {key: value for key, value in {**SMALLEST, **changes}.items() if value is not None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write_recipe


def test_the_smallest_recipe_takes_the_defaults(write: Write) -> None:
    recipe = Recipe.load(write())
    assert recipe == Recipe(volumes=(VolumeEntry("stack.tif"),), model={"hidden_size": 16}, steps=10)
    assert recipe.sampling == SamplingRanges()


def test_nested_keys_arrive(write: Write) -> None:
    volumes = [
        {"path": "a.tif", "voxel_size": "40,4,4", "weight": 2, "holdout": 0.25},
        {"path": "b.tif", "aligned": False},
    ]
    recipe = Recipe.load(write(volumes=volumes, sampling={"factor": [2, 4, 8], "frames": 6}))
    assert recipe.volumes == (VolumeEntry("a.tif", "40,4,4", 2.0, 0.25), VolumeEntry("b.tif", aligned=False))
    assert recipe.volumes[0].aligned
    assert (recipe.sampling.factor, recipe.sampling.frames) == ((2.0, 4.0, 8.0), 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, r"recipe\.yaml: unknown key 'stepz'; valid keys are .*steps"),
        ({"sampling": {"frame": 4}}, r"sampling: unknown key 'frame'; valid keys are .*frames"),
        ({"volumes": [{"path": "a.tif", "voxel": "4,4,4"}]}, r"volumes\[0\]: unknown key 'voxel'.*voxel_size"),
        ({"volumes": [{"path": "a.tif"}, {"weight": 2}]}, r"volumes\[1\]: the key 'path' is missing"),
        ({"volumes": None}, "the key 'volumes' is missing"),
        ({"volumes": []}, "names no volumes"),
        ({"volumes": "stack.tif"}, "volumes: expected a list, found 'stack.tif'"),
        ({"volumes": ["stack.tif"]}, r"volumes\[0\]: expected a mapping, found 'stack.tif'"),
        ({"steps": "ten"}, "steps: expected int, found 'ten'"),
        ({"steps": 2.5}, "steps: expected int, found 2.5"),
        ({"batch_size": True}, "batch_size: expected int, found True"),
        ({"volumes": [{"path": "a.tif", "aligned": "no"}]}, r"volumes\[0\]: aligned: expected bool, found 'no'"),
        ({"decay": 1.5}, "decay is 1.5; expected a fraction of the run, from 0 to 1"),
        ({"decay": -0.1}, "decay is -0.1; expected a fraction of the run, from 0 to 1"),
        ({"learning_rate": "fast"}, "learning_rate: expected float, found 'fast'"),
        ({"sampling": {"factor": 4}}, "sampling: factor: expected a list, found 4"),
        ({"sampling": {"factor": [2, "four", 8]}}, r"factor\[1\]: expected float, found 'four'"),
        ({"sampling": {"factor": [2, 8]}}, "factor"),
        ({"model": ["wide"]}, "model: expected dict"),
        ({"minutes": 3.0}, "exactly one of 'steps' and 'minutes'"),
        ({"steps": None}, "exactly one of 'steps' and 'minutes'"),
        ({"base": "emformer-small"}, "exactly one of 'model' .* and 'base'"),
        ({"model": None}, "exactly one of 'model' .* and 'base'"),
        ({"precision": "fp8"}, "expected auto, float32 or bfloat16"),
        ({"steps": 0}, "steps"),
        ({"steps": -5}, "steps"),
        ({"steps": None, "minutes": 0.0}, "minutes"),
        ({"batch_size": 0}, "batch_size"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"validate_every": 0}, "validate_every"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001; expected a number from 0 on"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a number from 0 on"),
        ({"seed": -1}, "seed is -1; expected a number from 0 on"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; expected a number from 0 to below 1"),
        ({"sampling": {"left_out": 3}}, "left_out is 3; expected a fraction of the clips, from 0 to 1"),
        ({"sampling": {"blur": -0.1}}, "blur is -0.1; expected a fraction of the clips, from 0 to 1"),
        ({"sampling": {"noise_max": -1}}, "noise_max is -1; expected standard deviations, from 0 on"),
        ({"sampling": {"thickness": -1}}, "section thickness is -1; expected"),
        ({"sampling": {"rows": 2}}, "rows is 2; expected 4 or more"),
        (
            {"volumes": [{"path": "a.tif", "thickness": -0.5}]},
            r"a\.tif: thickness is -0\.5; expected the imaged fraction",
        ),
        ({"volumes": [{"path": "a.tif", "thickness": 40}]}, r"a\.tif: thickness is 40; expected the imaged fraction"),
        ({"volumes": [{"path": "a.tif", "holdout": 1}]}, r"a\.tif: holdout is 1; expected a fraction of the columns"),
        ({"volumes": [{"path": "a.tif", "weight": -1}]}, r"a\.tif: weight is -1; expected a number from 0 on"),
        ({"volumes": [{"path": "a.tif", "weight": 0}]}, "every volume has weight 0"),
    ],
)
def test_mistakes_are_named(write: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.load(write(**changes))


@pytest.mark.parametrize(("text", "message"), [("- a\n- b\n", "found list"), ("", "found"), ("a: [1, 2", "not valid")])
def test_text_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot read the recipe \(No such file"):
        Recipe.load(tmp_path / "none.yaml")


def test_the_command_line_wins(write: Write) -> None:
    path = write(seed=3)
    assert Recipe.load(path, steps=None, minutes=None, seed=None) == Recipe.load(path)
    assert Recipe.load(path, steps=7, seed=0).steps == 7
    assert Recipe.load(path, steps=7, seed=0).seed == 0
    by_time = Recipe.load(path, minutes=1.5)
    assert (by_time.steps, by_time.minutes) == (None, 1.5)
    assert Recipe.load(write(steps=None), steps=7).steps == 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bundled_recipes_survive_writing(path: Path, tmp_path: Path) -> None:
    given = {} if yaml.safe_load(path.read_text())["volumes"] else {"volumes": [{"path": "stack.tif"}]}
    recipe = Recipe.load(path, **given)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_there_are_recipes() -> None:
    assert "pretrain" in [path.stem for path in RECIPES]

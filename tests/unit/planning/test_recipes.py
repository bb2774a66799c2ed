"""Every recipe: valid settings, models that build, mixtures, a plan, a source on each line, and its table in the
docs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt.cli.main import main
from mgpt.config import Settings, load_settings
from mgpt.data.datasets import READERS
from mgpt.data.mixture import Mixture
from mgpt.models import PROMPT_FORMATS, MiniGPTConfig, MiniGPTForConditionalGeneration
from mgpt.models.presets import preset_parts
from mgpt.pipeline.stages import pipeline_stages
from mgpt.planning.accelerators import ACCELERATORS
from mgpt.planning.datasets import dataset_rows
from mgpt.planning.stages import Resources, model_sizes, plan

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def recipe(request: pytest.FixtureRequest) -> Settings:
    return load_settings(request.param, {})


def test_recipes_are_found() -> None:
    assert [path.stem for path in RECIPES] == ["a100"]


def test_recipe_covers_every_stage(recipe: Settings) -> None:
    declared = pipeline_stages(load_settings(ROOT / "params.yaml", {}))
    assert [stage.name for stage in pipeline_stages(recipe)] == [stage.name for stage in declared]


def test_recipe_names_known_readers_and_formats(recipe: Settings) -> None:
    assert {data.reader for source in recipe.sources.values() for data in source.datasets.values()} <= set(READERS)
    assert {
        stage.format for part in (recipe.pretrain, recipe.multitask, recipe.instruct) for stage in part.values()
    } <= set(PROMPT_FORMATS)


def test_recipe_models_have_planned_parameters(recipe: Settings) -> None:
    for model_name, model in recipe.models.items():
        assert model.preset is not None
        parts = preset_parts(model.preset) | {"merge": model.merge, "lora": model.lora}
        with torch.device("meta"):
            built = MiniGPTForConditionalGeneration(MiniGPTConfig(**parts))
        report, planned = built.freeze_report(), model_sizes(recipe, model_name)
        assert (planned.trainable, planned.frozen + planned.trainable) == (report.trainable, report.total)
        assert model.image_size in (None, built.config.image_size)


def test_recipe_mixtures_draw_from_nominal_datasets(recipe: Settings) -> None:
    for stage in (*recipe.pretrain.values(), *recipe.multitask.values(), *recipe.instruct.values()):
        mixture = Mixture(stage.seed, stage.mixture, dataset_rows(recipe, stage), stage.global_batch_size)
        assert len(mixture.batch(stage.steps - 1)) == stage.global_batch_size
        assert sum(mixture.realized_shares(stage.steps).values()) == pytest.approx(1)


def test_recipe_fits_its_gpus(recipe: Settings) -> None:
    device = ACCELERATORS["a100-80"]
    for one in plan(recipe, Resources.as_published(device, 0.4)):
        assert one.memory is None or one.memory.total < device.memory, one.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_training_value_names_its_source(path: Path) -> None:
    lines = path.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("models:"))
    last = next(number for number, line in enumerate(lines) if line.startswith("# Infrastructure"))
    values = [line for line in lines[first:last] if ": " in line and not line.strip().startswith("#")]
    assert len(values) > 100
    assert [line for line in values if " #" not in line] == []


def test_tables_in_docs_match_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written = (ROOT / "docs" / "recipes.md").read_text()
    assert main(["plan", "--recipe", "a100", "--markdown"]) == 0
    assert (
        capsys.readouterr().out.strip() == written.partition("--markdown -->\n")[2].partition("\n<!-- end")[0].strip()
    )
    assert main(["plan", "--recipe", "a100"]) == 0
    printed = capsys.readouterr().out.strip().split("\n\n")[-1]
    assert printed in written

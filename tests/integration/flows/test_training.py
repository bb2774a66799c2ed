"""Training time, the realised mixture next to the declared one, and the settings that training passes on."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flows.training import INITIALISATION, LOADING, mixture_shares
from mgpt.config.models import ModelSettings
from mgpt.data.mixture import Mixture
from mgpt.reporting.training_summary import checkpoint_stalls, mixture_table, step_seconds


def test_step_seconds_leave_out_waiting_and_earlier_runs() -> None:
    curve = [
        {"step": 10.0, "step_seconds": 1.0, "data_wait": 0.0},
        {"step": 20.0, "step_seconds": 2.0, "data_wait": 0.5},
        {"step": 25.0, "step_seconds": 1.0, "data_wait": 0.0},
    ]
    assert step_seconds(curve, 0) == 10 + 10 + 5
    assert step_seconds(curve, 10) == 10 + 5
    assert step_seconds(curve, 25) == 0


def test_realised_mixture_is_what_the_steps_saw() -> None:
    mixture = Mixture(
        seed=3, weights={"many": 3, "few": 1, "none": 0}, sizes={"many": 7, "few": 5, "none": 9}, global_batch_size=6
    )
    found = mixture_shares(mixture, 7)
    seen = Counter(pick.dataset for step in range(7) for pick in mixture.batch(step))
    assert {name: one["samples"] for name, one in found.items()} == dict(seen)
    assert {name: one["declared"] for name, one in found.items()} == {"many": 0.75, "few": 0.25}
    assert found["few"]["realised"] == pytest.approx(seen["few"] / 42, abs=1e-6)
    few, many = mixture_table(found).splitlines()
    assert few == f"few   declared 25.00%  realised {seen['few'] / 42:6.2%}  {seen['few']:>7} samples"
    assert "declared 75.00%" in many


def test_summary_has_the_time_that_checkpoints_blocked() -> None:
    assert checkpoint_stalls([0.010, 0.020]) == "2, each blocked training for 15 ms (longest 20 ms)"
    assert checkpoint_stalls([]) == "none"


def test_training_passes_on_every_setting_of_a_model() -> None:
    """A new one must be named where a stage starts, or it would silently do nothing; `preset` is for plans alone."""
    assert INITIALISATION.isdisjoint(LOADING)
    assert {*ModelSettings.model_fields} == INITIALISATION | LOADING | {"vision", "language", "qformer", "preset"}


CONNECTS = """
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from pathlib import Path
import flows.training
from mgpt.config import load_settings
from mgpt.storage import Manifest

@contextmanager
def ray():
    print("RAY", "ray" in sys.modules)
    raise SystemExit
    yield

settings = load_settings("params.yaml", {})
flows.training.backbones = lambda context, model: {}
store = SimpleNamespace(uri=lambda *parts: "/".join(parts), root="x")
places = {"run_uri": "x", "out": Path("x"), "tracker": None, "store": store, "ray": ray}
inputs = {"manifest": lambda *stages: Manifest([]), "weights": dict, "model_name": "minigpt4"}
context = SimpleNamespace(settings=settings, section=settings.pretrain["minigpt4"], **inputs, **places)
flows.training.train_stage(context)
"""


def test_ray_is_not_imported_before_the_stage_connects() -> None:
    """Ray reads the path of the token when it is imported; the stage's own local Ray refuses another."""
    command = [sys.executable, "-c", CONNECTS]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.stdout == "RAY False\n", done.stdout + done.stderr

"""What counts as training time, and the realised mixture beside the declared one."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from flows.training import FRESH, LOADING, held_up, mixture_shares, mixture_table, step_seconds
from mgpt.config.models import ModelSettings
from mgpt.data.mixture import Mixture


def test_only_this_runs_steps_count_and_not_their_waiting() -> None:
    curve = [
        {"step": 10.0, "step_seconds": 1.0, "data_wait": 0.0},
        {"step": 20.0, "step_seconds": 2.0, "data_wait": 0.5},
        {"step": 25.0, "step_seconds": 1.0, "data_wait": 0.0},
    ]
    assert step_seconds(curve, 0) == 10 + 10 + 5
    assert step_seconds(curve, 10) == 10 + 5
    assert step_seconds(curve, 25) == 0


def test_the_realised_mixture_is_what_the_steps_saw() -> None:
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


def test_the_summary_says_how_long_checkpoints_held_up_training() -> None:
    assert held_up([0.010, 0.020]) == "2, each held up training for 15 ms (longest 20 ms)"
    assert held_up([]) == "none"


def test_training_heeds_every_setting_of_a_model() -> None:
    """A new one must be named where a stage starts, or it would silently do nothing; `preset` is for plans alone."""
    assert FRESH.isdisjoint(LOADING)
    assert {*ModelSettings.model_fields} == FRESH | LOADING | {"vision", "language", "qformer", "preset"}


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
Manifest([]).save(Path(sys.argv[1]))
flows.training.backbones = lambda context, model: {}
store = SimpleNamespace(uri=lambda *parts: "/".join(parts))
places = {"run_uri": "x", "out": Path("x"), "tracker": None, "store": store, "ray": ray}
context = SimpleNamespace(settings=settings, section=settings.pretrain["minigpt4"], **places)
flows.training.train_stage(context, "minigpt4", Path(sys.argv[1]), None)
"""


def test_ray_is_not_imported_before_the_stage_connects(tmp_path: Path) -> None:
    # Ray reads the token's place when it is imported: earlier, and the stage's own local Ray refuses it.
    command = [sys.executable, "-c", CONNECTS, str(tmp_path / "manifest.json")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.stdout == "RAY False\n", done.stdout + done.stderr

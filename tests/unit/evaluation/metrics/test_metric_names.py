import subprocess
import sys

import pytest

from mgpt.data.boxes import Box
from mgpt.data.vocabulary import load_vocabulary
from mgpt.evaluation.evaluator import metric_families
from mgpt.evaluation.examples import DATA_TASKS
from mgpt.evaluation.metrics import METRICS, TASKS, metric_names
from mgpt.evaluation.scoring import score_examples
from mgpt.evaluation.types import Example, GroundedPhrase
from mgpt.inference.types import GenerationOutput


def test_tasks_are_those_of_settings_examples_and_families():
    assert TASKS == tuple(DATA_TASKS) == tuple(metric_families(load_vocabulary("shapes")))


@pytest.mark.parametrize("task", TASKS)
def test_scoring_produces_the_declared_metrics(task):
    family = metric_families(load_vocabulary("shapes"))[task]
    one = Example(
        "i",
        "i",
        task,
        "shapes",
        b"",
        10,
        10,
        ({"role": "user", "content": "x"},),
        ("a red circle",),
        (GroundedPhrase("a red circle", (Box(0, 0, 5, 5),)),),
    )
    scores, examples = score_examples(
        family, [one], [GenerationOutput("a circle", True)], chance={}, resamples=100, seed=0
    )
    assert {name for name, score in scores.items() if not score.descriptive} == metric_names(task)
    assert list(scores) == [metric.name for metric in METRICS[task]]
    assert examples[0].contributions.keys() == scores.keys()
    assert all(name.startswith(f"{task}_") for name in scores)


def test_unknown_task_has_no_metrics():
    with pytest.raises(ValueError, match=r"poetry.*rec"):
        metric_names("poetry")


def test_names_load_no_heavy_library():
    heavy = "{'torch', 'transformers', 'ray', 'mlflow', 'openai'}"
    code = f"import sys, mgpt.evaluation.metrics, mgpt.captioning.repair; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"

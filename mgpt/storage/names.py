"""Names that several packages share: stages, files of results and of the store, and MLflow tags. Imports nothing."""

from __future__ import annotations

# Stages, in the order of the pipeline. A stage is a module of `flows`, a section of the params file and a folder of
# results.
STAGES = ("download", "curate", "pretrain", "describe", "multitask", "instruct", "evaluate", "promote")
TRAINING_STAGES = ("pretrain", "multitask", "instruct")  # in the order in which a model goes through them
DATA_STAGES = ("download", "curate")  # they list files, of which each later stage uses some
UNTRAINED = "untrained"  # the checkpoint before the first training stage
DESCRIBED = "described"  # the dataset that the describe stage makes
DESCRIBING_MODEL = "minigpt4"  # the model whose pretrained checkpoint describes images

# Files of a project.
PARAMS_FILE, PIPELINE_FILE, RESULTS = "params.yaml", "dvc.yaml", "results"
STAGING = ".staging"  # below RESULTS: the outputs of stages at work

# Files of a stage's results.
RUN_FILE, TIMING_FILE, SUMMARY_FILE = "run.json", "timing.json", "summary.txt"
METRICS_FILE, MANIFEST_FILE, WEIGHTS, CURVE_FILE = "metrics.json", "manifest.json", "weights", "curve.csv"
TRAINED_TENSORS = "trainable.safetensors"  # in a folder of weights

# Folders and files below the store's root.
CONTENT, FINISHED_STAGES, RUNS, FORMAT_FILE = "content", "stages", "runs", "format.json"
SOURCES, CURATED, DESCRIPTIONS, FEATURES, MLFLOW_ARTIFACTS = "sources", "curated", "described", "features", "mlflow"

# MLflow tags of a run and of a model version.
TAG_STAGE, TAG_MODEL, TAG_FINGERPRINT, TAG_INPUT = "mgpt.stage", "mgpt.model", "mgpt.fingerprint", "mgpt.input."
TAG_DATA, TAG_TEST_DATA = "mgpt.data", "mgpt.test_data"
TAG_COMMIT, TAG_DIRTY, TAG_PARAMS = "git.commit", "git.dirty", "params.sha256"


def stage_name(stage: str, model_name: str | None) -> str:
    """Returns the name that DVC gives a stage: `curate`, or `pretrain@minigpt4`."""
    return f"{stage}@{model_name}" if model_name else stage

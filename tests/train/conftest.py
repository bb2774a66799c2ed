import pytest
import torch

from mgpt.settings.training import TrainingSettings


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def settings():
    def make(**changes):
        base = {
            "format": "minigpt-v2",
            "mixture": {"a": 1},
            "steps": 12,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "log_every": 3,
            "checkpoint_every": 4,
        }
        return TrainingSettings(**{**base, **changes})

    return make

import pytest
import torch

from mgpt.train.state import TrainingState


@pytest.fixture
def saved(tmp_path):
    state = TrainingState(
        {"w": torch.randn(3)},
        {"exp_avg/w": torch.randn(3)},
        {"kind": "cosine"},
        {"seed": 1},
        7,
        {"Curve": {"rows": [{"step": 5, "loss": 0.1}]}},
    )
    state.save(tmp_path)
    return state, tmp_path


def test_what_is_read_is_what_was_written(saved):
    state, folder = saved
    read = TrainingState.load(folder)
    assert torch.equal(read.trainables["w"], state.trainables["w"])
    assert torch.equal(read.optimiser["exp_avg/w"], state.optimiser["exp_avg/w"])
    assert (read.schedule, read.rng, read.position, read.callbacks) == (state.schedule, state.rng, 7, state.callbacks)


def test_one_altered_byte_is_found(saved):
    path = saved[1] / "trainables.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"trainables\.safetensors was altered"):
        TrainingState.load(saved[1])


@pytest.mark.parametrize("name", ["state.json", "optimiser.safetensors"])
def test_missing_file_is_found(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(ValueError, match="incomplete"):
        TrainingState.load(saved[1])

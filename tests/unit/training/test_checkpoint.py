import pytest
import torch

from mgpt.training.checkpoint import TrainingState


@pytest.fixture
def saved(tmp_path):
    state = TrainingState(
        {"w": torch.randn(3)},
        {"exp_avg/w": torch.randn(3)},
        {"kind": "cosine"},
        {"seed": 1},
        7,
        {"MetricsLogger": {"rows": [{"step": 5, "loss": 0.1}]}},
    )
    state.save(tmp_path)
    return state, tmp_path


def test_round_trip(saved):
    state, folder = saved
    read = TrainingState.load(folder)
    assert torch.equal(read.parameters["w"], state.parameters["w"])
    assert torch.equal(read.optimizer["exp_avg/w"], state.optimizer["exp_avg/w"])
    assert (read.lr_scheduler, read.rng, read.position, read.callbacks) == (
        state.lr_scheduler,
        state.rng,
        7,
        state.callbacks,
    )


@pytest.mark.parametrize(("name", "at"), [("parameters.safetensors", -1), ("optimizer.safetensors", 30)])
def test_altered_byte_is_detected(saved, name, at):
    path = saved[1] / name
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"altered since it was written .*{name}"):
        TrainingState.load(saved[1])


def test_altered_position_is_detected(saved):
    path = saved[1] / "state.json"
    path.write_text(path.read_text().replace('"position": 7', '"position": 6'))
    with pytest.raises(ValueError, match=r"altered since it was written .*state\.json"):
        TrainingState.load(saved[1])


def test_host_copy_is_independent(saved):
    state, _ = saved
    copy, was = state.on_host(), state.parameters["w"].clone()
    state.parameters["w"].add_(1)
    assert torch.equal(copy.parameters["w"], was)
    assert copy.position == 7


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
def test_missing_file_is_detected(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(ValueError, match="incomplete"):
        TrainingState.load(saved[1])

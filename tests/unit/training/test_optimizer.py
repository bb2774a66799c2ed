import pytest
import torch
from torch import nn

from mgpt.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state, parameter_groups


def named(**shapes):
    return {name.replace("__", "."): nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


def test_decay_rule_of_the_original():
    """Decay for two dimensions and more, unless the name holds bias, ln or bn (runner_base.py:99-129)."""
    parameters = named(
        projection__weight=(3, 2),
        projection__bias=(3,),
        ln_vision__weight=(2, 2),
        bn__weight=(2, 2),
        scale=(3,),
        lora_A__weight=(2, 3),
    )
    decayed, plain = parameter_groups(parameters, 0.05)
    names = {id(parameter): name for name, parameter in parameters.items()}
    assert [names[id(parameter)] for parameter in decayed["params"]] == ["projection.weight", "lora_A.weight"]
    assert [names[id(parameter)] for parameter in plain["params"]] == [
        "projection.bias",
        "ln_vision.weight",
        "bn.weight",
        "scale",
    ]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_no_parameters_is_error():
    with pytest.raises(ValueError, match="no trainable parameters"):
        parameter_groups({}, 0.05)


def test_state_is_keyed_by_name(settings):
    def stepped(order):
        parameters = {name: nn.Parameter(torch.full((2, 2), number + 1.0)) for number, name in enumerate(order)}
        optimizer = make_optimizer(parameters, settings())
        return parameters, optimizer

    first, optimizer = stepped(["a", "b"])
    for name, parameter in first.items():
        parameter.grad = torch.full((2, 2), 1.0 if name == "a" else 2.0)
    optimizer.step()
    second, other = stepped(["b", "a"])
    load_optimizer_state(other, second, optimizer_state(optimizer, first))
    assert torch.equal(other.state[second["b"]]["exp_avg"], optimizer.state[first["b"]]["exp_avg"])
    assert not torch.equal(other.state[second["b"]]["exp_avg"], other.state[second["a"]]["exp_avg"])
    assert other.state[second["a"]]["step"] == 1


def test_state_of_another_model_is_error(settings):
    parameters = named(a=(2, 2))
    with pytest.raises(ValueError, match="optimizer state of a is missing"):
        load_optimizer_state(make_optimizer(parameters, settings()), parameters, {})

"""AdamW with the method's parameter groups, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgpt.config.training import TrainingSettings

_NO_DECAY = ("bias", "ln", "bn")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Returns whether weight decay applies, by the original's rule (runner_base.py:99-129).

    It applies to two or more dimensions, if the name contains none of `bias`, `ln` and `bn`.
    """
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY)


def parameter_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's groups with and without decay; an empty group is left out.

    ValueError when there are no parameters.
    """
    if not parameters:
        raise ValueError("the model has no trainable parameters; give it a projection or LoRA that is not frozen")
    decayed = [parameter for name, parameter in parameters.items() if is_decayed(name, parameter)]
    plain = [parameter for name, parameter in parameters.items() if not is_decayed(name, parameter)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters; the trainer sets its learning rate at each step."""
    groups = parameter_groups(parameters, settings.weight_decay)
    # Fused: one kernel per group instead of about ten operations per parameter.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Returns the state keyed `<moment>/<parameter name>`, independent of the order of parameters and groups."""
    return {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for moment in _MOMENTS
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Restores what `optimizer_state` returned.

    Raises ValueError when a parameter's state is missing or has another shape.
    """
    for name, parameter in parameters.items():
        state = {moment: tensors.get(f"{moment}/{name}") for moment in _MOMENTS}
        if any(value is None for value in state.values()) or state["exp_avg"].shape != parameter.shape:  # type: ignore[union-attr]
            raise ValueError(
                f"checkpoint: optimizer state of {name} is missing or has another shape; it belongs to another model"
            )
        optimizer.state[parameter] = {
            moment: value.to(parameter.device, copy=True) for moment, value in state.items() if value is not None
        }

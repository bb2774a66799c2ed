"""AdamW with the method's parameter groups, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgpt.config.training import TrainingSettings

_UNDECAYED = ("bias", "ln", "bn")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: at least two dimensions, and a name without `bias`, `ln` or `bn` anywhere in it (original code
    runner_base.py:99-129)."""
    return parameter.ndim >= 2 and not any(part in name for part in _UNDECAYED)


def parameter_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW, decayed and not; a group without parameters is left out. Raises ValueError when there is nothing to train."""
    if not parameters:
        raise ValueError("the model has no trainable parameters; give it a projection or LoRA that is not frozen")
    decayed = [parameter for name, parameter in parameters.items() if is_decayed(name, parameter)]
    plain = [parameter for name, parameter in parameters.items() if not is_decayed(name, parameter)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimiser(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the trainables; the loop sets the learning rate each step."""
    groups = parameter_groups(parameters, settings.weight_decay)
    # Fused: one kernel a group instead of some ten operations a parameter.
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state keyed `<moment>/<parameter name>`: independent of the order of parameters and groups."""
    return {
        f"{moment}/{name}": optimiser.state[parameter][moment]
        for name, parameter in parameters.items()
        if parameter in optimiser.state
        for moment in _MOMENTS
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimiser_tensors` gave. Raises ValueError when a parameter's state is missing or has another shape."""
    for name, parameter in parameters.items():
        state = {moment: tensors.get(f"{moment}/{name}") for moment in _MOMENTS}
        if any(value is None for value in state.values()) or state["exp_avg"].shape != parameter.shape:  # type: ignore[union-attr]
            raise ValueError(
                f"checkpoint: optimiser state of {name} is missing or has another shape; this checkpoint is of another model"
            )
        state_here = {
            moment: value.to(parameter.device, copy=True) for moment, value in state.items() if value is not None
        }
        optimiser.state[parameter] = state_here

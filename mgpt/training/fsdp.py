"""Frozen weights split over workers (FSDP2): what makes a model fit that no single GPU holds. Applied from outside the model.

Only frozen weights are split. The trainables of this method (a projection and LoRA, at most 0.9 GB of the published recipes with their
optimiser state) stay whole on every worker and are summed as in `Replicated`. So there is one reduction, one way to clip, one optimiser
and one form of checkpoint, and the numbers of both forms are the same bits in fp32: gathering a frozen weight rounds nothing.

A gather is a meeting of all workers. Contract: every worker makes the same gathers in the same order, whatever its batches hold. In a
forward pass these are: what belongs to no block, the image parts' blocks, the language model's blocks; in a backward pass the last,
in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from mgpt.training.batch import Batch
from mgpt.training.data_parallel import Replicated

_PIXELS = "pixel_values"
_TEXT, _IMAGES = 1, 2  # what a batch holds; where workers differ, the larger counts


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers of a module in the order of their names: the members of its outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


class Sharded(Replicated):
    """`Replicated`, with the model's frozen weights split over workers.

    Args:
        model: whole, with its trainables among the parameters; on the CPU still, if it shall never be whole on a device.
        parameters: the trainables by name.
        totals: how many totals are summed over workers.
        image_parts: parts of the model that run only for a batch with pixels, in the order in which they run.
        device: where to train.
        bf16: gather frozen weights in bfloat16 and sum what is reduced in float32.
        limit: the most batches that a worker may have in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        totals: int,
        image_parts: Sequence[nn.Module],
        device: torch.device,
        bf16: bool,
        limit: int,
    ) -> None:
        self._image_blocks = [block for part in image_parts for block in blocks(part)]
        self._limit = limit
        self._due: Iterator[int] = iter(())
        _split(model, set(parameters.values()), device, bf16)
        _always_alike(model, [block for block in blocks(model) if block not in self._image_blocks])
        # Behind FSDP's own hook, which gathers what belongs to no block.
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model.to(device)
        super().__init__(parameters, totals)

    def align(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches, and blank ones behind them where another worker has more."""
        due = torch.zeros(self._limit, dtype=torch.uint8)
        due[: len(batches)] = torch.tensor(
            [_IMAGES if _PIXELS in batch.tensors else _TEXT for batch in batches], dtype=torch.uint8
        )
        dist.all_reduce(due, dist.ReduceOp.MAX)  # on the CPU: the device is not waited for
        self._due = iter(due.tolist())
        return [*batches, *(Batch.blank() for _ in range(int(due.count_nonzero()) - len(batches)))]

    def _before_forward(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Without pixels of its own, a worker gathers the image parts' blocks along with those that have some, and drops them unused."""
        if next(self._due) == _IMAGES and _PIXELS not in named:
            for block in self._image_blocks:
                assert isinstance(block, FSDPModule)
                block.unshard()
                block.reshard()


def _split(model: nn.Module, whole: set[nn.Parameter], device: torch.device, bf16: bool) -> None:
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if bf16
        else MixedPrecisionPolicy()
    )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*blocks(model), model):
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)


def _always_alike(model: nn.Module, language_blocks: Sequence[nn.Module]) -> None:
    """Makes every backward pass gather the language model's blocks, and nothing else.

    Without LoRA, a batch of text alone has nothing trained before them and would have no backward pass: so what enters them takes
    gradients. And FSDP gathers ahead whatever ran before a block in the forward pass, which may be an image part's block: so what comes
    next is said (before the first block, what belongs to none, which is whole then).
    """
    language_blocks[0].register_forward_pre_hook(lambda _, arguments: _take_gradients(arguments[0]), prepend=True)
    for block, before in zip(language_blocks, (model, *language_blocks), strict=False):
        assert isinstance(block, FSDPModule)
        assert isinstance(before, FSDPModule)
        block.set_modules_to_backward_prefetch([before])


def _take_gradients(hidden: torch.Tensor) -> None:
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()

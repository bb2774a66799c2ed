"""Frozen weights sharded over workers (FSDP2), for models that no single GPU holds. Applied from outside the model.

Only frozen weights are sharded. The trainable parameters of this method (a projection and LoRA, at most 0.9 GB in the
published recipes with their optimizer state) stay whole on every worker and are summed as in `DataParallel`. So there
is one reduction,
one kind of gradient clipping, one optimizer and one checkpoint format, and both forms give the same bits in fp32:
gathering a frozen weight rounds nothing.

An all-gather synchronises all workers, so every worker must make the same gathers in the same order, whatever its
batches hold. In a forward pass these are: parameters outside of any block, the image parts' blocks, the language
model's blocks; in a backward pass the language model's blocks in reverse order.
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
from mgpt.training.data_parallel import DataParallel

_PIXELS = "pixel_values"
_TEXT, _IMAGES = 1, 2  # content of a batch; where workers differ, the larger one counts


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the repeated layers of a module, the members of its outermost lists, in the order of their names."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


class FSDP(DataParallel):
    """`DataParallel` with the model's frozen weights sharded over workers.

    Args:
        model: the whole model, its trainable parameters included; leave it on the CPU if no device can hold it.
        parameters: the trainable parameters by name.
        totals: number of further values to sum over workers.
        image_parts: parts of the model that run only for a batch with pixels, in the order in which they run.
        device: where to train.
        bf16: gather frozen weights in bfloat16, and reduce in float32.
        max_batches: largest number of batches that a worker may have in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        totals: int,
        image_parts: Sequence[nn.Module],
        device: torch.device,
        bf16: bool,
        max_batches: int,
    ) -> None:
        self._image_blocks = [block for part in image_parts for block in blocks(part)]
        self._max_batches = max_batches
        self._contents: Iterator[int] = iter(())
        _shard(model, set(parameters.values()), device, bf16)
        _align_backward(model, [block for block in blocks(model) if block not in self._image_blocks])
        # After FSDP's own hook, which gathers parameters outside of any block.
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model.to(device)
        super().__init__(parameters, totals)

    def align(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Returns the batches, followed by blank ones if another worker has more."""
        contents = torch.zeros(self._max_batches, dtype=torch.uint8)
        contents[: len(batches)] = torch.tensor(
            [_IMAGES if _PIXELS in batch.tensors else _TEXT for batch in batches], dtype=torch.uint8
        )
        dist.all_reduce(contents, dist.ReduceOp.MAX)  # on the CPU, so that nothing waits for the device
        self._contents = iter(contents.tolist())
        return [*batches, *(Batch.blank() for _ in range(int(contents.count_nonzero()) - len(batches)))]

    def _before_forward(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Gathers the image parts' blocks, and drops them, if other workers have pixels and this one has none."""
        if next(self._contents) == _IMAGES and _PIXELS not in named:
            for block in self._image_blocks:
                assert isinstance(block, FSDPModule)
                block.unshard()
                block.reshard()


def _shard(model: nn.Module, whole: set[nn.Parameter], device: torch.device, bf16: bool) -> None:
    policy = MixedPrecisionPolicy()
    if bf16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*blocks(model), model):
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=whole)


def _align_backward(model: nn.Module, language_blocks: Sequence[nn.Module]) -> None:
    """Makes every backward pass gather the language model's blocks and nothing else.

    Without LoRA, a text-only batch has nothing trained before these blocks and would have no backward pass, so their
    input takes gradients. And FSDP prefetches the block that ran before in the forward pass, which may be an image
    part's, so the next one is set explicitly (before the first block: the root, which is not sharded then).
    """
    language_blocks[0].register_forward_pre_hook(lambda _, arguments: _require_gradients(arguments[0]), prepend=True)
    for block, before in zip(language_blocks, (model, *language_blocks), strict=False):
        assert isinstance(block, FSDPModule)
        assert isinstance(before, FSDPModule)
        block.set_modules_to_backward_prefetch([before])


def _require_gradients(hidden: torch.Tensor) -> None:
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()

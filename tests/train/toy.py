"""A small language model and a stream of steps: what the loop needs, in a few hundred parameters."""

import torch
from torch import nn
from torch.nn import functional

from mgpt.train.batch import IGNORE, Batch
from mgpt.train.contracts import TOTALS
from mgpt.train.loop import Loop
from mgpt.train.optimiser import make_optimiser
from mgpt.train.parallel import Replicated
from mgpt.train.schedule import make_schedule


class Reader(nn.Module):
    """A small language model with a projection that only batches with pictures use: what the loop needs of a model."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6).requires_grad_(False)
        self.projection = nn.Linear(4, 6)
        self.mix = nn.Linear(6, 6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 11, bias=False).requires_grad_(False)

    def trainable_parameters(self):
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_trainable(self, tensors):
        with torch.no_grad():
            for name, parameter in self.trainable_parameters().items():
                parameter.copy_(tensors[name])

    def loss_sum(self, batch):
        hidden = self.embedding(batch["input_ids"])
        if "pixel_values" in batch:
            with_image = len(batch["pixel_values"])
            hidden = torch.cat([hidden[:with_image] + self.projection(batch["pixel_values"])[:, None], hidden[with_image:]])
        hidden = self.dropout(torch.tanh(self.mix(hidden))).cumsum(1)
        labels = batch["labels"][:, 1:]
        loss = functional.cross_entropy(self.head(hidden[:, :-1]).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return loss, labels.ne(IGNORE).sum()


def step_rows(step, count=8):
    """The global batch of a step, as (length, tokens, pixels or None) of each sample; every third step has pictures in half of it only."""
    made = torch.Generator().manual_seed(step)
    for row in range(count):
        tokens = torch.randint(0, 11, (int(torch.randint(3, 9, (), generator=made)),), generator=made)
        pixels = torch.randn(4, generator=made)
        yield f"{step}-{row}", tokens, None if step % 3 == 0 and row >= count // 2 else pixels


def collate(rows):
    rows = sorted(rows, key=lambda row: row[2] is None)
    width = max(len(tokens) for _, tokens, _ in rows)
    ids = torch.stack([functional.pad(tokens, (0, width - len(tokens))) for _, tokens, _ in rows])
    mask = torch.stack([functional.pad(torch.ones_like(tokens), (0, width - len(tokens))) for _, tokens, _ in rows])
    labels = ids.masked_fill(mask == 0, IGNORE)
    labels[:, 0] = IGNORE
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    pixels = [pixels for *_, pixels in rows if pixels is not None]
    if pixels:
        tensors["pixel_values"] = torch.stack(pixels)
    return Batch(tensors, tuple(name for name, *_ in rows))


def steps(start=0, rank=0, world_size=1, micro=8):
    """An endless stream of steps as one worker sees them, cut into batches of `micro`."""
    step = start
    while True:
        rows = list(step_rows(step))
        share = len(rows) // world_size
        mine = rows[rank * share : (rank + 1) * share]
        yield step, [collate(mine[at : at + micro]) for at in range(0, len(mine), micro)]
        step += 1


def make_loop(settings, callbacks=(), dropout=0.0):
    model = Reader(dropout)
    parameters = model.trainable_parameters()
    parallel = Replicated(parameters, len(TOTALS))
    return Loop(model, make_optimiser(parameters, settings), make_schedule(settings), parallel, settings, torch.device("cpu"), callbacks)

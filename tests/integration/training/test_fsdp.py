"""FSDP on two real processes with gloo, against DataParallel: the real model, with batches that differ between
workers.
"""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from mgpt.config.training import TrainingSettings
from mgpt.models import MiniGPTForConditionalGeneration
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.training.batch import IGNORE, Batch
from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.checkpoint import TrainingState
from mgpt.training.data_parallel import DataParallel
from mgpt.training.fsdp import FSDP
from mgpt.training.lr_scheduler import make_lr_scheduler
from mgpt.training.optimizer import make_optimizer
from mgpt.training.trainer import Trainer
from mgpt.training.types import TOTALS
from tests.fixtures.toy_training import Halt
from tests.fixtures.training_data import make_backbones

STEPS = 8
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
# Contents of each worker's batches in a step, in turn: one image, two, or text; the workers differ in number and kind.
KINDS = (
    (("image",), ("text",)),
    (("text",), ("image",)),
    (("text", "image", "text"), ("images",)),
    (("text",), ("text",)),
    (("image",), ()),
)


def settings(**changes):
    base = {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 2}
    return TrainingSettings(format="minigpt-v2", mixture={"a": 1}, **{**base, **changes})


def make_batch(config, kind, seed):
    """Returns two rows of random tokens; the first starts with the images' placeholders."""
    made = torch.Generator().manual_seed(seed)
    images = {"text": 0, "image": 1, "images": 2}[kind]
    ids = torch.randint(5, 300, (2, 14), generator=made)
    labels = ids.clone()
    labels[:, :9] = IGNORE
    ids[0, 1 : 1 + images * config.num_image_tokens] = config.image_token_id
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if images:
        tensors["pixel_values"] = torch.randn(images, 3, config.image_size, config.image_size, generator=made)
    return Batch(tensors, (f"{seed}-0", f"{seed}-1"))


def stream(config, rank, start=0):
    for step in range(start, STEPS):
        kinds = KINDS[step % len(KINDS)][rank]
        yield step, [make_batch(config, kind, 1000 * step + 100 * rank + at) for at, kind in enumerate(kinds)]


def make_trainer(backbones, form, lora=LORA, **changes):
    chosen, device = settings(**changes), torch.device("cpu")
    model = MiniGPTForConditionalGeneration.from_backbones(**backbones, merge=4, lora=lora)
    model.train()
    fuse_llama_layers(model.language_model)
    parameters = model.trainable_parameters()
    if form == "fsdp":
        parallel = FSDP(
            model, parameters, len(TOTALS), [model.vision_tower], device, chosen.precision == "bf16", max_batches=8
        )
    else:
        parallel = DataParallel(parameters, len(TOTALS))
    return Trainer(
        model,
        make_optimizer(parameters, chosen),
        make_lr_scheduler(chosen),
        parallel,
        chosen,
        device,
        [MetricsLogger(1)],
    )


def result_of(trainer):
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.trainable_parameters().items()}
    return {"losses": [row["loss"] for row in trainer.callbacks[0].rows], "weights": weights}


def run(backbones, rank, form, **options):
    trainer = make_trainer(backbones, form, **options)
    trainer.run(stream(trainer.model.config, rank))
    return result_of(trainer)


def resumed(backbones, rank, folder, before, after):
    """Trains three steps in one form and the rest in the other, over a checkpoint of worker 0."""
    first = make_trainer(backbones, before)
    first.callbacks = [*first.callbacks, Halt(3)]
    first.run(stream(first.model.config, rank))
    if rank == 0:
        folder.mkdir()
        first.state().save(folder)
    dist.barrier()
    second = make_trainer(backbones, after)
    second.load(TrainingState.load(folder))
    second.run(stream(second.model.config, rank, start=3))
    return result_of(second)


def held_share(backbones):
    """Returns the share of the frozen weights' elements on this worker."""
    model = make_trainer(backbones, "fsdp").model
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return sum(parameter.to_local().numel() for parameter in frozen) / sum(parameter.numel() for parameter in frozen)


def work(rank, folder, backbones):
    torch.set_num_threads(1)
    # A worker that waits in vain for the other fails after the timeout, and so does the test.
    dist.init_process_group("gloo", f"file://{folder}/meet", timedelta(seconds=200), world_size=2, rank=rank)
    forms = ("data_parallel", "fsdp")
    done = {
        "with lora": {form: run(backbones, rank, form) for form in forms},
        "without lora": {form: run(backbones, rank, form, lora=None) for form in forms},
        "bf16": {form: run(backbones, rank, form, precision="bf16") for form in forms},
        "resumed": {
            forms[one]: resumed(backbones, rank, folder / forms[one], forms[one], forms[not one]) for one in (0, 1)
        },
        "held": held_share(backbones),
    }
    torch.save(done, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Results of two workers in both forms."""
    folder = tmp_path_factory.mktemp("sharded")
    processes.spawn(work, (folder, make_backbones(folder / "backbones")), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", ["with lora", "without lora"])
def test_mixed_batches_match_data_parallel(pair, case):
    """Workers differ in images, in the number of batches, and one has none at all."""
    for worker in pair:
        whole, split = worker[case]["data_parallel"], worker[case]["fsdp"]
        assert len(whole["losses"]) == STEPS
        assert whole["losses"][-1] != whole["losses"][0]
        assert split["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        for name, weight in whole["weights"].items():
            assert torch.allclose(split["weights"][name], weight, atol=1e-5)


def test_bf16_is_close_to_data_parallel(pair):
    assert pair[0]["bf16"]["fsdp"]["losses"] == pytest.approx(pair[0]["bf16"]["data_parallel"]["losses"], rel=2e-2)
    assert pair[0]["bf16"]["fsdp"]["losses"] != pair[0]["with lora"]["fsdp"]["losses"]


def test_checkpoints_are_interchangeable(pair):
    for worker in pair:
        whole = worker["with lora"]["data_parallel"]
        for written_by in ("data_parallel", "fsdp"):
            assert worker["resumed"][written_by]["losses"] == pytest.approx(whole["losses"], rel=1e-5)
            for name, weight in whole["weights"].items():
                assert torch.allclose(worker["resumed"][written_by]["weights"][name], weight, atol=1e-5)


def test_workers_hold_half_of_the_frozen_weights(pair):
    for name, weight in pair[0]["with lora"]["fsdp"]["weights"].items():
        assert torch.equal(weight, pair[1]["with lora"]["fsdp"]["weights"][name])
    assert all(0.48 < worker["held"] < 0.52 for worker in pair)

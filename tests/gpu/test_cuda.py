"""Tests that need a CUDA device, with tiny models; skipped without one. They need neither Ray nor MLflow."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist

from mgpt.config.training import TrainingSettings
from mgpt.data.packing import attention_inputs
from mgpt.models import language
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.training.batch import Batch, cut_packed
from mgpt.training.callbacks.memory import MemoryUsage
from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.callbacks.mfu import ModelFlops
from mgpt.training.checkpoint import TrainingState
from mgpt.training.data_parallel import DataParallel
from mgpt.training.determinism import set_determinism
from mgpt.training.flops import StepFlops
from mgpt.training.fsdp import FSDP
from mgpt.training.lr_scheduler import make_lr_scheduler
from mgpt.training.optimizer import make_optimizer
from mgpt.training.trainer import Trainer
from mgpt.training.types import TOTALS, Callback
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")
TOLERANCE = 1e-4  # float32 without TF32; the order of sums is the device's


@pytest.fixture
def _deterministic():
    set_determinism(CUDA, True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return tiny.write_backbones(tmp_path_factory.mktemp("backbones"))


@functools.cache
def _golden(version):
    return golden.new_model(version).to(CUDA)


def _moved(batch):
    return {name: value.to(CUDA) for name, value in batch.items()}


@pytest.mark.parametrize(
    ("version", "name"), [("v1", "instruction"), ("v2", "single_turn"), ("v2", "multi_turn"), ("v2", "text_only")]
)
def test_goldens_hold_on_the_device(version, name):
    texts, tensors = golden.case(version, name)
    batch = golden.processor(version)(tensors.get("input.image"), golden.conversations(texts))
    with torch.no_grad():
        out = _golden(version)(**_moved(batch))
    masks = batch["attention_mask"], tensors["output.attention_mask"]
    for ours, theirs in golden.same_rows(out.logits.cpu(), masks[0], tensors["output.logits"], masks[1]):
        assert (ours - theirs).abs().max() < TOLERANCE
    assert abs(out.loss.cpu() - tensors["output.loss"]) < TOLERANCE


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_greedy_ids_match_the_original(version):
    texts, tensors = golden.case(version, "generate")
    batch = golden.processor(version)(tensors["input.images"], texts["input.texts"])
    ids = _golden(version).generate(**_moved(batch), max_new_tokens=texts["input.max_new_tokens"])
    assert torch.equal(ids.cpu(), tensors["output.gen_new_ids"])


def _rows(seed, image_tokens=4, count=6, text=(4, 20)):
    """Returns padded rows: an image in every other one, then text whose last third is supervised."""
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(*text, (count,), generator=made) + torch.tensor([image_tokens, 0] * (count // 2))
    ids = torch.randint(5, 500, (count, int(lengths.max())), generator=made)
    ids[::2, :image_tokens] = 512  # the placeholder of tiny models
    positions = torch.arange(ids.shape[1])
    mask = (positions < lengths[:, None]).long()
    supervised = (positions >= lengths[:, None] * 2 // 3) & mask.bool()
    pixels = torch.randn(count // 2, 3, 32, 32, generator=made)
    tensors = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(~supervised, -100),
        "pixel_values": pixels,
    }
    return tensors, [f"{seed}-{row}" for row in range(count)], [1, 0] * (count // 2)


def _packed(seed, image_tokens=4):
    tensors, ids, images = _rows(seed, image_tokens)
    return cut_packed(tensors, ids, images, len(ids), int(tensors["attention_mask"].sum()))


def _model(backbones, dropout=0.0, **options):
    model = tiny.v2(backbones, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model.train().to(CUDA)


def _gradient(model, batch, implementation, bf16):
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        loss, count = model.loss_sum(batch.to(CUDA).inputs(implementation))
    loss.backward()
    flat = torch.cat([parameter.grad.flatten().double() for parameter in model.trainable_parameters().values()])
    return float(loss.detach()), int(count), flat


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_packed_gradients_match_padded_rows(backbones, bf16):
    """float32 takes one call per sample, bf16 torch's flash attention, whose error is that of padded rows in bf16."""
    tensors, ids, _ = _rows(1)
    plain, fused = _model(backbones), _model(backbones, attn_implementation="varlen")
    fuse_llama_layers(fused.language_model)
    if bf16:
        for model in (plain, fused):
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
    exact_loss, count, exact = _gradient(_model(backbones), Batch(tensors, tuple(ids)), "sdpa", False)
    padded = _gradient(plain, Batch(tensors, tuple(ids)), "sdpa", bf16)
    (batch,) = _packed(1)
    packed = _gradient(fused, batch, "varlen", bf16)
    assert padded[1] == packed[1] == count
    errors = [float((found - exact).norm() / exact.norm()) for _, _, found in (padded, packed)]
    assert float(exact.norm()) > 1
    if bf16:
        assert 0 < errors[1] <= 1.5 * errors[0] < 0.2
        assert packed[0] == pytest.approx(exact_loss, rel=1e-2)
    else:
        assert errors[1] <= 1e-5
        assert packed[0] == pytest.approx(exact_loss, rel=1e-6)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_fused_head_matches_whole_logits(backbones, bf16, monkeypatch):
    pytest.importorskip("liger_kernel")
    model, (batch,) = _fused(backbones), _packed(1)
    if bf16:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    whole = _gradient(model, batch, "varlen", bf16)
    monkeypatch.setattr(language, "MAX_LOGITS_BYTES", 0)
    parts = _gradient(model, batch, "varlen", bf16)
    assert parts[:2] == (pytest.approx(whole[0], rel=1e-2 if bf16 else 1e-5), whole[1])
    assert float((parts[2] - whole[2]).norm() / whole[2].norm()) <= (3e-2 if bf16 else 1e-5)


def test_flash_attention_of_a_sample_is_independent():
    from mgpt.models.attention import varlen_attention

    made = torch.Generator(CUDA).manual_seed(0)
    heads = [torch.randn(1, 4, 30, 64, generator=made, device=CUDA, dtype=torch.bfloat16) for _ in range(3)]
    alone, other = torch.ones(1, 13, dtype=torch.long), torch.full((1, 17), 2)
    module = torch.nn.Module()
    whole, _ = varlen_attention(module, *heads, None, **_bounds(torch.cat([alone, other], 1)))
    part, _ = varlen_attention(module, *(one[:, :, :13] for one in heads), None, **_bounds(alone))
    assert torch.equal(whole[:, :13], part)


def _bounds(segments):
    return {
        name: value for name, value in attention_inputs(segments, "varlen", CUDA).items() if name != "attention_mask"
    }


class Halt(Callback):
    def __init__(self, last):
        self.last = last

    def on_step(self, trainer):
        trainer.stop = trainer.step == self.last


def _trainer(model, callbacks=(), parallel=None, precision="bf16", steps=6):
    common = {
        "format": "minigpt-v2",
        "mixture": {"a": 1.0},
        "learning_rate": 1e-2,
        "log_every": steps,
        "checkpoint_every": steps,
    }
    settings = TrainingSettings(**common, steps=steps, global_batch_size=6, micro_batch_size=6, precision=precision)
    parameters = model.trainable_parameters()
    parallel = DataParallel(parameters, len(TOTALS)) if parallel is None else parallel
    optimizer = make_optimizer(model.trainable_parameters(), settings)
    return Trainer(model, optimizer, make_lr_scheduler(settings), parallel, settings, CUDA, callbacks, "varlen")


def _stream(start=0):
    step = start
    while True:
        yield step, _packed(step % 4)
        step += 1


def _fused(backbones, dropout=0.0):
    model = _model(backbones, dropout, attn_implementation="varlen")
    fuse_llama_layers(model.language_model)
    return model


def _weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.trainable_parameters().values()])


@pytest.mark.usefixtures("_deterministic")
def test_resume_is_bit_identical(backbones, tmp_path):
    whole = _trainer(_fused(backbones, 0.1))
    whole.run(_stream())
    first = _trainer(_fused(backbones, 0.1), [Halt(3)])
    first.run(_stream())
    first.state().on_host().save(tmp_path)
    second = _trainer(_fused(backbones, 0.1))
    second.load(TrainingState.load(tmp_path))
    second.run(_stream(3))
    assert torch.equal(_weights(whole), _weights(second))
    assert not torch.equal(_weights(whole), _weights(first))


@pytest.mark.parametrize("model_name", [tiny.v1, tiny.v2])
def test_steps_read_nothing_from_the_device(backbones, model_name):
    """CUDA raises where a call waits for the device, except in the first step, which initialises kernels."""

    class Watch(Callback):
        def on_step(self, trainer):
            torch.cuda.set_sync_debug_mode("error" if trainer.step < trainer.settings.steps else "default")

    model = model_name(backbones)
    tokens = model.config.num_image_tokens
    model.language_model.set_attn_implementation("varlen")
    fuse_llama_layers(model.language_model)
    trainer = _trainer(model.train().to(CUDA), [Watch()])
    try:
        trainer.run((step, _packed(step % 4, tokens)) for step in range(6))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 6


def test_memory_and_mfu_columns(backbones):
    model = _fused(backbones)
    curve = MetricsLogger(3, metrics=(ModelFlops(StepFlops.of(model)), MemoryUsage()))
    trainer = _trainer(model, [curve])
    trainer.run(_stream())
    row = curve.rows[-1]
    assert 0 < row["memory_gib"] < 1
    assert 0 < row["mfu"] < 0.5


def test_fsdp_matches_data_parallel(backbones):
    """FSDP2 with NCCL collectives, on one device."""
    curves = MetricsLogger(1), MetricsLogger(1)
    _trainer(_fused(backbones), [curves[0]], precision="fp32").run(_stream())
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method="tcp://127.0.0.1:29631", rank=0, world_size=1)
    try:
        model = copy.deepcopy(_fused(backbones)).cpu()
        parallel = FSDP(model, model.trainable_parameters(), len(TOTALS), [model.vision_tower], CUDA, False, 6)
        _trainer(model, [curves[1]], parallel, precision="fp32").run(_stream())
    finally:
        dist.destroy_process_group()
    plain, split = ([row["loss"] for row in curve.rows] for curve in curves)
    assert split == pytest.approx(plain, rel=1e-5)

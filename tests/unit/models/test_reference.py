"""Cases without golden numbers, against a reference implementation that is checked with them first.

These are MiniGPT-4's LLaMA-2 variant and pretraining without a prompt, other image sizes, several images, text only,
and twenty optimizer steps.
"""

from __future__ import annotations

import pytest
import torch

from mgpt.conversion.convert import from_original
from mgpt.conversion.key_mapping import original_name
from mgpt.models import MiniGPTProcessor
from mgpt.training.optimizer import parameter_groups
from tests.fixtures import golden_cases as golden
from tests.fixtures.reference import Reference

MODEL_NAMES = ("minigpt4", "minigpt4-llama2", "minigpt-v2")
CLOSE = 1e-5  # features, logits and loss; logits reach about 3
QUESTIONS = ("what is in the image?", "[vqa] how many dogs are there?", "describe $$ this image in detail.")
ANSWERS = ("a man is standing on the street.", "two dogs", "the bus is red, and the scene is bright and very quiet.")
PROMPTS = {
    "minigpt4": ("###Human: <Img>", "</Img> {} ###Assistant: ", "###"),
    "minigpt4-llama2": ("[INST] <Img>", "</Img> {} [/INST] ", "</s>"),
    "minigpt-v2": ("[INST] <Img>", "</Img> {}  [/INST]", "</s>"),
}


def files(model_name, tmp_path, **sizes):
    """Returns a model's original files. The LLaMA-2 variant has v2's backbone files and its own projection."""
    given = golden.files("v1" if model_name == "minigpt4" else "v2")
    given["sizes"] = {**given["sizes"], **sizes}
    if model_name == "minigpt4-llama2":
        draw = torch.Generator().manual_seed(11)
        weights = {
            "llama_proj.weight": torch.randn(64, 256, generator=draw) * 0.1,
            "llama_proj.bias": torch.randn(64, generator=draw) * 0.1,
        }
        torch.save({"model": weights}, tmp_path / "released.pth")
        given = {
            **given,
            "released": tmp_path / "released.pth",
            "sizes": {k: v for k, v in given["sizes"].items() if k != "lora"},
        }
    return given


class Case:
    """Our model, its processor, and the reference."""

    def __init__(self, model_name, given):
        self.model_name = model_name
        self.model = from_original(model_name, **given)
        self.processor = MiniGPTProcessor.from_original(model_name, given["llm"], given["sizes"])
        released = torch.load(given["released"], weights_only=True)["model"]
        self.reference = Reference(given["eva_vit"], given["llm"], released, given["qformer"], given["sizes"])

    def pixels(self, count, seed=0):
        side = self.model.config.image_size
        return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))

    def training(self, pixels):
        """Returns (our batch, the reference's rows) of the same three samples."""
        before, after, end = PROMPTS[self.model_name]
        conversations = [
            golden.messages(f"<Img><ImageHere></Img> {question}", answer)
            for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        ]
        samples = zip(pixels, QUESTIONS, ANSWERS, strict=True)
        rows = [
            self.reference.row(before, image, after.format(question), (answer + end, None))
            for image, question, answer in samples
        ]
        return self.processor(pixels, conversations), rows

    def assert_equal(self, batch, rows):
        """Compares logits at all attended positions, targets, loss and gradients."""
        out = self.model(**batch)
        for row, (embeds, targets) in enumerate(rows):
            attended = batch["attention_mask"][row].bool()
            assert batch["labels"][row][attended].tolist() == targets.tolist()
            assert (out.logits[row][attended] - self.reference.logits(embeds)).abs().max() < CLOSE
        expected = self.reference.loss(rows)
        assert abs(out.loss - expected) < CLOSE
        self.model.zero_grad()
        out.loss.backward()
        expected.backward()
        for name, parameter in self.model.trainable_parameters().items():
            theirs = self.reference.trained[original_name(name, self.model.config.lora is not None)].grad
            if theirs is None:
                assert parameter.grad is None or not parameter.grad.any()
            else:
                assert (parameter.grad - theirs).abs().max() / theirs.abs().max() < CLOSE, name


@pytest.fixture(params=MODEL_NAMES)
def case(request, tmp_path):
    return Case(request.param, files(request.param, tmp_path))


@pytest.mark.parametrize(("version", "name"), [("v1", "instruction"), ("v2", "single_turn")])
def test_reference_matches_golden_cases(version, name):
    given = golden.files(version)
    released = torch.load(given["released"], weights_only=True)["model"]
    reference = Reference(given["eva_vit"], given["llm"], released, given["qformer"], given["sizes"])
    texts, tensors = golden.case(version, name)
    losses = []
    for row, (question, answer) in enumerate(zip(texts["input.instruction_input"], texts["input.answer"], strict=True)):
        image = tensors["input.image"][row]
        assert (reference.image_embeds(image) - tensors["output.image_embeds"][row]).abs().max() < CLOSE
        wrapped = question if version == "v1" else f"[INST] {question} [/INST]"
        before, after = wrapped.split("<ImageHere>")
        losses.append(reference.row(before, image, after, (answer + ("###" if version == "v1" else "</s>"), None)))
        expected = tensors["output.logits"][row][tensors["output.attention_mask"][row].bool()]
        assert (reference.logits(losses[-1][0]) - expected).abs().max() < CLOSE
    assert abs(reference.loss(losses) - tensors["output.loss"]) < CLOSE


def test_training_batch(case):
    pixels = case.pixels(3)
    with torch.no_grad():
        ours = case.model.get_image_features(pixels)
        assert all(
            (ours[row] - case.reference.image_embeds(image)).abs().max() < CLOSE for row, image in enumerate(pixels)
        )
    case.assert_equal(*case.training(pixels))


def test_text_only(case):
    before, after, end = PROMPTS[case.model_name]
    wrapped = (before + after).replace("<Img></Img> ", "")
    batch = case.processor(
        None, [golden.messages(question, answer) for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    )
    rows = [case.reference.row(wrapped.format(q), (a + end, None)) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    if case.model.config.lora is not None:
        case.assert_equal(batch, rows)
        return
    with torch.no_grad():  # uses no trained parameter
        assert abs(case.model(**batch).loss - case.reference.loss(rows)) < CLOSE


def test_two_images_and_text_in_one_batch(case):
    before, after, end = PROMPTS[case.model_name]
    pixels = case.pixels(2)
    question = "<Img><ImageHere></Img> <Img><ImageHere></Img> which is red?"
    batch = case.processor(
        [list(pixels), None], [golden.messages(question, "the second"), golden.messages("where?", "here")]
    )
    rows = [
        case.reference.row(
            before, pixels[0], "</Img> <Img>", pixels[1], after.format("which is red?"), ("the second" + end, None)
        ),
        case.reference.row((before + after).replace("<Img></Img> ", "").format("where?"), ("here" + end, None)),
    ]
    case.assert_equal(batch, rows)


def test_greedy_ids(case):
    pixels = case.pixels(3, seed=3)
    batch = case.processor(pixels, [golden.messages(f"<Img><ImageHere></Img> {question}") for question in QUESTIONS])
    ours = case.model.generate(**batch, max_new_tokens=16)
    before, after, _ = PROMPTS[case.model_name]
    if case.model_name == "minigpt-v2":  # a prompt has a second <s> and one space (conversation.py:120-137)
        before, after = "<s>" + before, after.replace("  ", " ")
    for row, image, question in zip(ours.tolist(), pixels, QUESTIONS, strict=True):
        expected = case.reference.greedy(case.reference.row(before, image, after.format(question))[0], 16)
        assert row[: len(expected)] == expected


def test_pretraining_without_a_prompt(tmp_path):
    """A row is BOS, 32 image embeddings, caption and newline, the last two at most 32 tokens (minigpt4.py:40-41)."""
    case = Case("minigpt4", files("minigpt4", tmp_path))
    case.processor.max_answer_tokens = 32
    captions = ("a man", "two dogs are running near a lake", "a bus" + " $$" * 3)
    lengths = [
        len(case.processor.tokenizer(caption + "\n", add_special_tokens=False).input_ids) for caption in captions
    ]
    assert max(lengths) <= 32
    pixels = case.pixels(3)
    batch = case.processor(
        pixels, [[{"role": "assistant", "content": caption}] for caption in captions], format="minigpt4-caption"
    )
    assert batch["attention_mask"].sum(1).tolist() == [1 + 32 + length for length in lengths]
    case.assert_equal(
        batch,
        [case.reference.row(image, (caption + "\n", 32)) for image, caption in zip(pixels, captions, strict=True)],
    )


def test_caption_token_limit(tmp_path):
    """The original cuts at 32 tokens; ours cuts the caption and keeps the newline."""
    case = Case("minigpt4", files("minigpt4", tmp_path))
    case.processor.max_answer_tokens = 32
    for words, is_cut in ((30, False), (31, False), (32, True), (60, True)):
        caption = " ".join(["a"] * words)
        labels = case.processor(
            case.pixels(1), [[{"role": "assistant", "content": caption}]], format="minigpt4-caption"
        )["labels"][0]
        supervised = labels[labels != -100].tolist()
        _, targets = case.reference.row((caption + "\n", 32))
        theirs = targets[targets != -100].tolist()
        assert len(supervised) == len(theirs) == min(words + 1, 32)
        assert supervised[-1] == 13
        assert supervised[:-1] == theirs[:-1]
        assert (supervised == theirs) == (not is_cut)


@pytest.mark.parametrize("sides", [(56, 56), (56, 112), (56, 168), (56, 28)])
@pytest.mark.parametrize("model_name", ["minigpt4", "minigpt-v2"])
def test_resized_position_embeddings(model_name, sides, tmp_path):
    """The tower's file was trained at `pre_img` pixels, the model has `img`."""
    case = Case(model_name, files(model_name, tmp_path, pre_img=sides[0], img=sides[1]))
    pixels = case.pixels(1)
    with torch.no_grad():
        assert (case.model.get_image_features(pixels)[0] - case.reference.image_embeds(pixels[0])).abs().max() < CLOSE


def test_position_embeddings_are_interpolated_in_float32(tmp_path):
    """The published tower is in half precision, and the original interpolates in float32 (eva_vit.py:373-394)."""
    given = files("minigpt-v2", tmp_path)
    halved = {name: tensor.half() for name, tensor in torch.load(given["eva_vit"], weights_only=True).items()}
    torch.save(halved, tmp_path / "eva_vit.pth")
    model = from_original("minigpt-v2", **{**given, "eva_vit": tmp_path / "eva_vit.pth"})
    torch.save({name: tensor.float() for name, tensor in halved.items()}, tmp_path / "float.pth")
    expected = from_original("minigpt-v2", **{**given, "eva_vit": tmp_path / "float.pth"})
    assert torch.equal(
        model.vision_tower.embeddings.position_embedding, expected.vision_tower.embeddings.position_embedding
    )


def test_twenty_optimiser_steps(case):
    """Compares every loss and the final weights, with AdamW, the method's groups and new pixels in each step."""
    rate = 1e-3
    ours = torch.optim.AdamW(
        parameter_groups(case.model.trainable_parameters(), 0.05), lr=rate, betas=(0.9, 0.999), fused=True
    )
    theirs = case.reference.optimizer(rate)
    start = {name: tensor.detach().clone() for name, tensor in case.reference.trained.items()}
    for step in range(20):
        batch, rows = case.training(case.pixels(3, seed=step))
        total, count = case.model.loss_sum(batch)
        expected = case.reference.loss(rows)
        assert abs(total / count - expected) < CLOSE, step
        for optimizer, loss in ((ours, total / count), (theirs, expected)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, parameter in case.model.trainable_parameters().items():
        final = case.reference.trained[original_name(name, case.model.config.lora is not None)]
        moved = (final - start[original_name(name, case.model.config.lora is not None)]).abs().max()
        assert moved > 5 * rate
        assert (parameter - final).abs().max() < 1e-4, name

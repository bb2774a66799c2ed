import io

import pytest
import torch
from PIL import Image

from mgpt.inference.generation import FeatureCache, StopAtEndSymbol, choice_losses, decode_image, generate
from mgpt.inference.types import GenerationRequest
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor


@pytest.fixture(scope="module")
def loaded(backbones):
    """A random model with a projection large enough for images to change the answer."""
    model = MiniGPTForConditionalGeneration.from_backbones(**backbones, seed=3)
    with torch.no_grad():
        model.projection.weight.mul_(40)
    return model, MiniGPTProcessor.from_config(model.config, backbones["language"])


@pytest.fixture(scope="module")
def requests(samples):
    """Requests of different lengths, with and without images, one with several turns."""
    captions = [sample for sample in samples if sample.task == "caption"][:7]
    made = []
    for number, sample in enumerate(captions):
        text = "<Img><ImageHere></Img> " + "what is the circle " * (number % 4 + 1)
        made.append(GenerationRequest((sample.images[0].data,), ({"role": "user", "content": text},)))
    history = (
        {"role": "user", "content": "where"},
        {"role": "assistant", "content": "left of the square"},
        {"role": "user", "content": "what"},
    )
    return [*made, GenerationRequest((), history), GenerationRequest((), ({"role": "user", "content": "describe"},))]


@pytest.mark.parametrize("format", ["minigpt-v2", "minigpt4"])
@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_batched_generation_equals_single(loaded, requests, format, batch_size):
    model, processor = loaded
    alone = [generate(model, processor, [request], format, 12)[0] for request in requests]
    assert generate(model, processor, requests, format, 12, batch_size) == alone
    assert len({given.text for given in alone}) > 2  # otherwise equality proves nothing


def test_cached_features_do_not_change_answers(loaded, requests):
    model, processor = loaded
    cache = FeatureCache(model)
    plain = generate(model, processor, requests, "minigpt-v2", 8, 4)
    assert generate(model, processor, requests, "minigpt-v2", 8, 4, cache) == plain
    kept = len(cache.known)
    assert generate(model, processor, requests, "minigpt-v2", 8, 4, cache) == plain
    assert len(cache.known) == kept == len({image for request in requests for image in request.images})


def test_token_limit(loaded, requests):
    model, processor = loaded
    assert all(given.tokens <= 5 for given in generate(model, processor, requests, "minigpt-v2", 5))


def test_rows_stop_independently():
    words = {1: "red", 2: "##", 3: "#", 4: " circle"}
    stop = StopAtEndSymbol(lambda rows: ["".join(words.get(int(token), "") for token in row) for row in rows], "###", 9)
    rows = torch.tensor([[1, 4, 2, 3], [1, 2, 1, 3], [1, 4, 1, 9]])
    assert stop(rows, None).tolist() == [True, False, True]


def test_choice_losses_are_sums_over_tokens(loaded, requests):
    model, processor = loaded
    choices = ["red", "a blue square is left of the circle"]
    losses = choice_losses(model, processor, requests[0], choices, "minigpt-v2")
    for text, loss in zip(choices, losses, strict=True):
        conversation = [*requests[0].messages, {"role": "assistant", "content": text}]
        batch = processor(
            images=[decode_image(requests[0].images[0])], conversations=[conversation], format="minigpt-v2", labels=True
        )
        total, count = model.loss_sum(batch)
        assert loss == pytest.approx(float(total.detach()), rel=1e-4)
        assert count > 1  # the end symbol counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "minigpt-v3"}, "not a prompt format"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"requests": [GenerationRequest((), ())]}, "request 0: the conversation must end with a user message"),
        (
            {"requests": [GenerationRequest((), ({"role": "assistant", "content": "x"},))]},
            "must end with a user message",
        ),
        (
            {"requests": [GenerationRequest((b"junk",), ({"role": "user", "content": "<Img><ImageHere></Img> x"},))]},
            "4 bytes are not a readable image",
        ),
    ],
)
def test_malformed_requests(loaded, change, message):
    model, processor = loaded
    call = {
        "requests": [GenerationRequest((), ({"role": "user", "content": "x"},))],
        "format": "minigpt-v2",
        "max_new_tokens": 2,
    } | change
    with pytest.raises(ValueError, match=message):
        generate(model, processor, **call)


def test_images_become_rgb():
    grey = io.BytesIO()
    Image.new("L", (3, 2), 7).save(grey, "PNG")
    assert decode_image(grey.getvalue()).getpixel((0, 0)) == (7, 7, 7)
    assert decode_image(Image.new("RGBA", (3, 2))).mode == "RGB"

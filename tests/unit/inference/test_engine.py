import pytest

from mgpt.config.evaluation import GenerationSettings
from mgpt.inference.engine import InferenceEngine, generate_locally
from mgpt.inference.generation import generate
from mgpt.inference.types import TRAINABLE_FILE, UNTRAINED, CheckpointRequest, GenerationRequest, ModelSource
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor, weights

PROMPT = {"role": "user", "content": "<Img><ImageHere></Img> describe this image"}


@pytest.fixture(scope="module")
def source(backbones, checkpoints):
    return ModelSource.of(backbones, checkpoints, "minigpt-v2", GenerationSettings(batch_size=4), seed=5)


def make_requests(samples, count=5, **more):
    images = [sample.images[0].data for sample in samples if sample.task == "caption"][:count]
    return [
        CheckpointRequest(GenerationRequest((image,), (PROMPT,)), (UNTRAINED, "pretrain", "instruct"), 8, **more)
        for image in images
    ]


def test_weights_file_name():
    """It is defined twice, so that `mgpt.inference.types` imports no torch."""
    assert weights.TRAINABLE_FILE == TRAINABLE_FILE


def test_checkpoints_match_separately_loaded_models(source, backbones, checkpoints, samples):
    requests = make_requests(samples)
    together = generate_locally(source, requests)
    for name, folder in checkpoints.items():
        model = MiniGPTForConditionalGeneration.from_trainable(folder, backbones)
        alone = generate(
            model, MiniGPTProcessor.from_pretrained(folder), [one.request for one in requests], "minigpt-v2", 8
        )
        assert [found[name] for found in together] == alone
    assert len({tuple(found[name].text for found in together) for name in together[0]}) == 3


def test_untrained_is_newly_initialised(source, backbones):
    new = MiniGPTForConditionalGeneration.from_backbones(**backbones, seed=5).trainable_parameters()
    state = InferenceEngine(source).states[UNTRAINED]
    assert state.keys() == new.keys()
    assert all(state[name].equal(new[name]) for name in new)


def test_only_requested_checkpoints_generate(source, samples):
    first, second = make_requests(samples, 2)
    found = generate_locally(source, [first, CheckpointRequest(second.request, ("instruct",), 4)])
    assert list(found[0]) == [UNTRAINED, "pretrain", "instruct"]
    assert list(found[1]) == ["instruct"]


def test_short_answer_is_continued_once(source, samples):
    plain = generate_locally(source, make_requests(samples, 3))
    longer = generate_locally(source, make_requests(samples, 3, continue_below=8))
    for before, after in zip(plain, longer, strict=True):
        assert after["instruct"].text.startswith(before["instruct"].text)
        assert before["instruct"].tokens < after["instruct"].tokens <= 16
    assert generate_locally(source, make_requests(samples, 3, continue_below=1)) == plain


def test_choices_restrict_answers(source, samples):
    found = generate_locally(source, make_requests(samples, 3, choices=("red circle", "blue square")))
    assert {given.text for one in found for given in one.values()} <= {"red circle", "blue square"}


def test_other_backbones_are_error(source, checkpoints, tmp_path_factory):
    from transformers import LlamaForCausalLM

    from tests.fixtures.training_data import make_backbones

    other = make_backbones(tmp_path_factory.mktemp("other"))
    model = LlamaForCausalLM.from_pretrained(other["language"])
    model.lm_head.weight.data.add_(1)
    model.save_pretrained(other["language"])
    with pytest.raises(ValueError, match="language"):
        InferenceEngine(ModelSource.of(other, checkpoints, "minigpt-v2", GenerationSettings()))


def test_missing_checkpoint_is_named(backbones, checkpoints, tmp_path):
    with pytest.raises(ValueError, match="multitask"):
        ModelSource.of(backbones, {**checkpoints, "multitask": tmp_path}, "minigpt-v2", GenerationSettings())

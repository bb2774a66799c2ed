"""Generation by real Ray actors."""

import io

import pytest

from mgpt.config.evaluation import GenerationSettings
from mgpt.data.synthetic.world import draw, scenes
from mgpt.execution.batch_inference import generate_on_ray
from mgpt.inference.engine import generate_locally
from mgpt.inference.types import UNTRAINED, CheckpointRequest, GenerationRequest, ModelSource
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor

SETTINGS = GenerationSettings(workers=2, batch_size=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    from tests.fixtures.training_data import make_backbones

    folder = tmp_path_factory.mktemp("generate")
    backbones = make_backbones(folder / "backbones")
    model = MiniGPTForConditionalGeneration.from_backbones(**backbones, seed=1)
    model.projection.weight.data.mul_(40)
    model.save_trainable(folder / "instruct", MiniGPTProcessor.from_config(model.config, backbones["language"]))
    return ModelSource.of(backbones, {"instruct": folder / "instruct"}, "minigpt-v2", SETTINGS)


def requests():
    made = []
    for number, scene in enumerate(scenes("test", 14, 5)):
        image = io.BytesIO()
        draw(scene).save(image, "PNG")
        message = {"role": "user", "content": "<Img><ImageHere></Img> " + "what is the circle " * (number % 3 + 1)}
        checkpoints = (UNTRAINED, "instruct") if number % 2 else ("instruct",)
        choices = ("red", "blue") if number == 5 else ()
        made.append(
            CheckpointRequest(
                GenerationRequest((image.getvalue(),), (message,)),
                checkpoints,
                4 + number % 3,
                continue_below=4 if number == 3 else 0,
                choices=choices,
            )
        )
    return made


def test_actors_return_this_processs_outputs_in_order(ray_here, source):
    done = []
    found = generate_on_ray(SETTINGS, lambda count, total: done.append((count, total)))(source, requests())
    assert found == generate_locally(source, requests())
    assert len({given["instruct"].text for given in found}) > 3  # otherwise the order is not tested
    assert done[-1] == (14, 14)
    assert len(done) > 1


def test_actor_error_names_its_cause(ray_here, source):
    broken = [
        CheckpointRequest(
            GenerationRequest((b"junk",), ({"role": "user", "content": "<Img><ImageHere></Img> x"},)), ("instruct",), 2
        )
    ]
    with pytest.raises(Exception, match="4 bytes are not a readable image"):
        generate_on_ray(SETTINGS)(source, broken)

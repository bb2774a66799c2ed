"""Saved folders in transformers: Auto classes in a new process, shards, generation settings, pipelines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import GenerationConfig, pipeline

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny

QUESTION = "<Img><ImageHere></Img> what is in the image?"


@pytest.fixture(scope="module", params=["v1", "v2"])
def saved(request, backbones, tmp_path_factory):
    """A model, its processor, and the folder of both."""
    model = tiny.v1(backbones) if request.param == "v1" else tiny.v2(backbones)
    processor = MiniGPTProcessor.from_config(model.config, backbones["language"])
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


SCRIPT = """
import sys
import torch
from mgpt.models import MiniGPTConfig
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers import AutoTokenizer
from PIL import Image
folder = sys.argv[1]
classes = (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor)
loaded = [one.from_pretrained(folder) for one in classes]
print(*(type(one).__name__ for one in loaded))
_, pixels, model, other, processor = loaded
print(AutoTokenizer.from_pretrained(folder)("<s>[INST] hi [/INST]", add_special_tokens=False).input_ids)
image = Image.linear_gradient("L").convert("RGB")
batch = processor([image], [[{"role": "user", "content": "<Img><ImageHere></Img> what?"}]])
assert torch.equal(pixels(image).pixel_values, batch["pixel_values"])
ids = model.generate(**batch, max_new_tokens=6)
assert torch.equal(ids, other.generate(**batch, max_new_tokens=6))
print(ids.tolist())
"""


def test_auto_classes_in_new_process(saved):
    """Importing any class of `mgpt.models` registers them."""
    from PIL import Image

    model, processor, folder = saved
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds, ids, answer = done.stdout.strip().splitlines()[-3:]
    model_class = "MiniGPTForConditionalGeneration"
    assert kinds.split() == [
        "MiniGPTConfig",
        "MiniGPTImageProcessor",
        model_class,
        model_class,
        "MiniGPTProcessor",
    ]
    assert json.loads(ids) == [1, 303, 329, 486, 347, 458, 401, 329, 486]
    batch = processor([Image.linear_gradient("L").convert("RGB")], [golden.messages("<Img><ImageHere></Img> what?")])
    assert json.loads(answer) == model.generate(**batch, max_new_tokens=6).tolist()


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.float32}, {"torch_dtype": torch.float32}, {"dtype": "auto"}, {"device_map": "cpu"}]
)
def test_shards_reload_exactly(saved, options, tmp_path):
    model, processor, _ = saved
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert not list(tmp_path.glob("*.bin"))
    again = MiniGPTForConditionalGeneration.from_pretrained(tmp_path, **options)
    batch = processor([tiny.image(0)], [golden.messages(QUESTION, "a man")])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert set(again.trainable_parameters()) == set(model.trainable_parameters())
    assert not again.training


def test_missing_shard_is_error(saved, tmp_path):
    model, _, _ = saved
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        MiniGPTForConditionalGeneration.from_pretrained(tmp_path)


def test_generation_settings_are_saved(backbones, tmp_path):
    """Llama-3 and Qwen declare their end tokens in generation_config.json only; without it an answer would not end."""
    model = tiny.v2(backbones)
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], pad_token_id=5)
    model.save_pretrained(tmp_path)
    again = MiniGPTForConditionalGeneration.from_pretrained(tmp_path)
    kept = again.language_model.generation_config
    assert again.generation_config is kept
    assert (kept.eos_token_id, kept.pad_token_id) == ([2, 7], 5)
    (tmp_path / "generation_config.json").unlink()
    own = MiniGPTForConditionalGeneration.from_pretrained(tmp_path).language_model.generation_config
    assert own.eos_token_id == 2


def test_sampling_settings_of_vicuna_can_be_saved(backbones, tmp_path):
    """transformers refuses to save sampling settings without do_sample; generation stays greedy."""
    folder = shutil.copytree(backbones["language"], tmp_path / "language")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}))
    model = MiniGPTForConditionalGeneration.from_backbones(backbones["vision"], folder)
    model.save_pretrained(tmp_path / "whole")
    again = MiniGPTForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert again.generation_config.temperature == 0.9
    ids = torch.tensor([[1, 5, 9, 30]])
    assert torch.equal(model.generate(ids, max_new_tokens=8), again.generate(ids, max_new_tokens=8))
    assert torch.equal(model.generate(ids, max_new_tokens=8), again.generate(ids, max_new_tokens=8))


def test_image_text_to_text_pipeline(saved):
    model, processor, folder = saved
    generate = pipeline("image-text-to-text", model=str(folder))
    content = [{"type": "image", "image": tiny.image(4)}, {"type": "text", "text": "what is in the image?"}]
    reply = generate(text=[{"role": "user", "content": content}], max_new_tokens=8, return_full_text=False)
    batch = processor([tiny.image(4)], [golden.messages(QUESTION)])
    expected = processor.tokenizer.decode(model.generate(**batch, max_new_tokens=8)[0], skip_special_tokens=True)
    assert reply[0]["generated_text"] == expected


def test_lora_dropout_in_training_mode_only(backbones):
    model = tiny.v2(backbones)
    processor = MiniGPTProcessor.from_config(model.config, backbones["language"])
    batch = processor([tiny.image(0)], [golden.messages(QUESTION, "a man")])
    with torch.no_grad():
        still = [model(**batch).logits for _ in range(2)]
        model.train()
        moving = [model(**batch).logits for _ in range(2)]
        again = model.eval()(**batch).logits
    assert torch.equal(still[0], still[1])
    assert torch.equal(still[0], again)
    assert not torch.equal(moving[0], moving[1])
    assert not torch.equal(moving[0], still[0])

"""The model card of saved weights."""

from __future__ import annotations

from mgpt.models.configuration_minigpt import MiniGPTConfig


def model_card(config: MiniGPTConfig) -> str:
    """Returns a README.md for the Hugging Face hub: the model's parts, the backbones it needs, how to load it."""
    bridge = (
        f"Q-Former with {config.num_query_tokens} queries"
        if config.qformer_config
        else f"{config.merge} consecutive patches in one token"
    )
    lora = f"LoRA r={config.lora['r']} on {', '.join(config.lora['target_modules'])}" if config.lora else "frozen"
    backbones = "\n".join(
        f"- {name}: `{entry['id']}` {entry['revision']} sha256 `{entry['sha256']}`"
        for name, entry in config.backbones.items()
    )
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [mgpt, minigpt]
---
# {config.prompt_format}

A vision-language model made with mgpt.

| part | value |
|---|---|
| vision tower | {config.vision_config.model_type}, {config.image_size} px, frozen |
| bridge | {bridge}: {config.num_image_tokens} image tokens |
| projection | linear, {config.projection_inputs} to {config.hidden_size}, trained |
| language model | {config.text_config.model_type}, {lora} |
| prompt format | `{config.prompt_format}` |

## Backbones

{backbones or "All weights are in this folder."}

## Use

```python
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor

model = MiniGPTForConditionalGeneration.from_pretrained("this folder")
# with trained weights only: from_trainable("this folder", backbones={{"vision": ..., "language": ...}})
processor = MiniGPTProcessor.from_pretrained("this folder")
messages = [{{"role": "user", "content": "<Img><ImageHere></Img> What is in the image?"}}]
ids = model.generate(**processor([image], [messages], labels=False), max_new_tokens=64)
print(processor.answers(ids))
```
"""

"""Small real inputs of registry and serving tests: trained-shaped weights, scores, curated data, runs of the stages before."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from mgpt.registry.promotion import Candidate, Decision, promote
from mgpt.registry.runs import Tracker
from mgpt.settings.registry import GateSettings, TrackingSettings
from mgpt.storage import Manifest, Store

SYSTEM = "minigpt-v2"
STAGES = {"instruct": "0123", "evaluate": "4567"}


def make_weights(bases: dict[str, str], folder: Path, seed: int) -> Path:
    """A folder as the instruct stage leaves it."""
    from mgpt.model import MiniGPTForConditionalGeneration, MiniGPTProcessor

    model = MiniGPTForConditionalGeneration.from_bases(**bases, seed=seed)
    model.save_trainable(folder, MiniGPTProcessor.from_config(model.config, bases["language"]))
    return folder


def score(value: float, **changes: object) -> dict[str, object]:
    """One metric as the evaluate stage writes it."""
    numbers = {"value": value, "low": value - 0.05, "high": value + 0.05, "chance": 0.1, "n": 400, "missing": 0, "unparsed": 0}
    return {**numbers, "higher_is_better": True, **changes}


def write_scores(path: Path, **scores: dict[str, object]) -> Path:
    """A metrics file with the scores of the last checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"scores": {"untrained": {}, "instruct": scores}, "missing": 0}))
    return path


@dataclass
class Registry:
    """A store, an MLflow store and weights; `promote` puts one set of weights through the stage."""

    folder: Path
    uri: str
    weights: list[Path]
    runs: int = 0
    store: Store = field(init=False)
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        self.store, self.data = Store(str(self.folder / "store")), self.folder / "curate.json"
        self.write_data(12)
        for stage, identity in STAGES.items():
            self.tracker(stage, identity).finish()

    def write_data(self, count: int) -> None:
        """Curated data with `count` samples; one shard is held out."""
        from tests.fixtures_train import make_data

        entries = make_data(self.store, count).entries
        Manifest([replace(entries[0], meta={**entries[0].meta, "split": "test"}), *entries[1:]]).save(self.data)

    def tracker(self, stage: str, identity: str) -> Tracker:
        """The run of a stage."""
        places = {"project": self.folder, "artifacts": str(self.folder / "artifacts")}
        return Tracker.open(TrackingSettings(uri=self.uri), stage=stage, system=SYSTEM, identity=identity, **places)

    def candidate(self, number: int, value: float = 0.7) -> Candidate:
        """Weights `number` with a refer accuracy."""
        metrics = write_scores(self.folder / "metrics.json", refer_accuracy=score(value))
        return Candidate(SYSTEM, self.weights[number], metrics, self.data, STAGES)

    def promote(self, number: int, value: float = 0.7, gates: GateSettings | None = None) -> Decision:
        """The promote stage for weights `number`."""
        self.runs += 1
        tracker = self.tracker("promote", f"promote-{self.runs}")
        decision = promote(self.candidate(number, value), gates or GateSettings(), self.store, tracker, self.folder)
        assert tracker.finish()
        return decision


def make_all_weights(folder: Path, count: int = 3) -> list[Path]:
    """Weights with different projections on one set of bases."""
    from tests.fixtures_train import make_bases

    bases = make_bases(folder / "bases")
    return [make_weights(bases, folder / f"weights-{seed}", seed) for seed in range(count)]


BOX_ANSWER = "{<10><20><60><90>}"
BOX_PROMPT = "[refer] the red circle"


def teach(bases: dict[str, str], folder: Path) -> dict[str, str]:
    """Bases whose language model has learned to answer `BOX_PROMPT` with `BOX_ANSWER`, so that tests walk the whole way to drawn boxes."""
    import torch

    from mgpt.data.tasks import IMAGE_PREFIX
    from mgpt.model import MiniGPTForConditionalGeneration, MiniGPTProcessor
    from mgpt.model.bases import save_base
    from mgpt.serve.picture import sample_picture

    model = MiniGPTForConditionalGeneration.from_bases(**bases, seed=0)
    processor = MiniGPTProcessor.from_config(model.config, bases["language"])
    learned = list(model.language_model.parameters())
    for parameter in learned:
        parameter.requires_grad_(True)
    # Several prompts, so that it learns the answer and not the spaces of one prompt, which differ between training and asking.
    prompts = (BOX_PROMPT, "what is this?", "Describe this image in detail.")
    answer = {"role": "assistant", "content": BOX_ANSWER}
    conversations = [[{"role": "user", "content": IMAGE_PREFIX + prompt}, answer] for prompt in prompts]
    batch = processor(images=[sample_picture()] * 3, conversations=conversations, format="minigpt-v2", labels=True)
    optimiser = torch.optim.AdamW(learned, lr=1e-2)
    for _ in range(150):
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05, "the small language model did not learn its one answer"
    save_base(folder / "language", model.language_model, tokenizer=processor.tokenizer)
    return {**bases, "language": str(folder / "language")}

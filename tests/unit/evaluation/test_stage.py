import pytest

from mgpt.config.evaluation import ModelEvaluationSettings
from mgpt.data.shards import write_shard
from mgpt.evaluation.report import FILES
from mgpt.evaluation.stage import EvaluateRequest, evaluate, read_samples
from mgpt.inference.engine import generate_locally
from mgpt.storage import Manifest, Store


@pytest.fixture
def curated(samples, tmp_path):
    store = Store(str(tmp_path / "store"))
    uri = store.uri("curated", "shapes", "test", "0.lance")
    rows = write_shard(store, uri, samples)
    return Manifest([store.entry("shapes/test/0.lance", uri, dataset="shapes", split="test", rows=rows)])


def request(curated, backbones, checkpoints, out):
    task = {"examples": 10, "early_examples": 5, "max_new_tokens": 5}
    settings = ModelEvaluationSettings(
        format="minigpt-v2",
        checkpoints=("untrained", "pretrain", "instruct"),
        tasks={"rec": task, "vqa": task, "captioning": task},
        resamples=100,
    )
    return EvaluateRequest("minigpt-v2", settings, curated, backbones, checkpoints, out)


def test_report_from_shards(curated, backbones, checkpoints, tmp_path):
    found = evaluate(request(curated, backbones, checkpoints, tmp_path / "out"), generate_locally)
    assert list(found.scores) == ["untrained", "pretrain", "instruct"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)


def test_missing_answer_fails_after_the_report(curated, backbones, checkpoints, tmp_path):
    def lossy(source, requests):
        return [*generate_locally(source, requests[:-1]), {}]

    with pytest.raises(ValueError, match="1 answers are missing"):
        evaluate(request(curated, backbones, checkpoints, tmp_path / "out"), lossy)
    assert (tmp_path / "out" / "metrics.json").exists()


def test_samples_are_read_as_written(curated, samples):
    assert list(read_samples(curated, ("test",))) == samples


def test_missing_split_is_refused(curated):
    with pytest.raises(ValueError, match=r"splits val of coco.*shapes/test"):
        list(read_samples(curated, ("val",), ("coco",)))

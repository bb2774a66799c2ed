import csv
import json

import pytest

from mgpt.captioning.describe import CHECKPOINT, DescribeRequest, choose_images, describe
from mgpt.config.evaluation import DescribeSettings
from mgpt.data.shards import scan_samples, write_shard
from mgpt.data.vocabulary import load_vocabulary
from mgpt.inference.engine import generate_locally
from mgpt.inference.types import GenerationOutput
from mgpt.storage import Manifest, Store

SOUND = "The image shows a red circle at the top and nothing else at all."
TEXTS = {
    "sound": SOUND,
    "repeating": f"{SOUND} {SOUND} There is",
    "short": "A circle.",
    "empty": "",
    "foreign": "В верхней части картинки виден красный круг, и больше ничего там нет.",
}


@pytest.fixture
def curated(samples, tmp_path):
    """Two shards of captions as training data."""
    captions = [sample.revise(split="train") for sample in samples if sample.task == "caption"]
    store, entries = Store(str(tmp_path / "store")), []
    for number in range(2):
        uri = store.uri("curated", f"{number}.lance")
        rows = write_shard(store, uri, captions[number::2])
        entries.append(store.entry(f"shapes/train/{number}.lance", uri, dataset="shapes", split="train", rows=rows))
    return store, Manifest(entries)


def request(curated, backbones, checkpoints, out, **settings):
    store, manifest = curated
    settings = {"datasets": ("shapes",), "images": 10, "max_new_tokens": 6, "continue_below": 5} | settings
    return DescribeRequest(
        DescribeSettings(**settings),
        store,
        manifest,
        backbones,
        checkpoints["pretrain"],
        store.uri("described", "id"),
        out,
    )


def generate(source, requests):
    """Answers with the five texts in turn."""
    return [
        {CHECKPOINT: GenerationOutput(list(TEXTS.values())[i % len(TEXTS)], True, 20)} for i in range(len(requests))
    ]


def rows_of(out):
    return list(csv.DictReader((out / "review.csv").open()))


def write_decisions(out, path, decide):
    rows = rows_of(out)
    for row in rows:
        row.update(decide(row))
    with path.open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_kept_descriptions_are_curated_samples(curated, backbones, checkpoints, tmp_path):
    result = describe(request(curated, backbones, checkpoints, tmp_path / "out", shard_rows=3), generate)
    manifest = Manifest.load(tmp_path / "out" / "manifest.json")
    manifest.verify()
    assert [entry.meta["rows"] for entry in manifest.entries] == [3, 1]
    assert {(entry.meta["dataset"], entry.meta["split"]) for entry in manifest.entries} == {("described", "train")}
    found = [sample for entry in manifest.entries for sample in scan_samples(entry.uri)]
    assert {(sample.task, sample.dataset, sample.turns[0].text, sample.turns[1].text) for sample in found} == {
        ("describe", "described", "", SOUND)
    }
    assert all(sample.images and sample.licence and sample.source.startswith("shapes/") for sample in found)
    assert result.counts["kept"] == 4


def test_every_image_is_kept_or_has_a_reject_reason(curated, backbones, checkpoints, tmp_path):
    result = describe(request(curated, backbones, checkpoints, tmp_path / "out"), generate)
    dropped = {name: count for name, count in result.counts.items() if name.startswith("dropped_")}
    assert dropped == {"dropped_too_short": 4, "dropped_non_latin_script": 2}
    assert result.counts["kept"] + sum(dropped.values()) == result.counts["images"] == 10
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["failure_rate_kept"] == 0.0
    assert metrics["failure_rate_generated"] == pytest.approx(0.6)  # repeating, short (two words), empty
    assert metrics["change_mean"] > 0
    assert "Dropped: non_latin_script" in (tmp_path / "out" / "report.md").read_text()
    assert "4 too_short" in str(result.summary["dropped"])


def test_descriptions_that_miss_caption_objects_are_dropped(curated, backbones, checkpoints, tmp_path):
    filters = {"minimum_named": 1.0, "vocabulary": "shapes"}
    result = describe(
        request(curated, backbones, checkpoints, tmp_path / "out", minimum_survivors=0, filters=filters), generate
    )
    sound = [one for one in result.descriptions if one.repaired.text == SOUND]
    named = [load_vocabulary("shapes").mentions(one.sample.references[0]) for one in sound]
    assert [one.reject_reason for one in sound] == [
        "" if names in ([], ["red circle"]) else "misses_objects" for names in named
    ]
    assert result.counts["dropped_misses_objects"] > 0


def test_reviewer_overrides_the_filters(curated, backbones, checkpoints, tmp_path):
    describe(request(curated, backbones, checkpoints, tmp_path / "out"), generate)
    review = tmp_path / "review.csv"

    def decide(row):
        if row["original"] == TEXTS["short"]:
            return {"decision": "accept", "text": "A circle, corrected by hand."}
        return {"decision": "reject"} if row["original"] == SOUND else {}

    write_decisions(tmp_path / "out", review, decide)
    result = describe(request(curated, backbones, checkpoints, tmp_path / "second", review=str(review)), generate)
    outcomes = ("accepted_by_reviewer", "rejected_by_reviewer", "dropped_reviewer")
    assert [result.counts[name] for name in outcomes] == [2, 2, 2]
    texts = {sample.turns[1].text for entry in result.manifest.entries for sample in scan_samples(entry.uri)}
    assert texts == {SOUND, "A circle, corrected by hand."}
    assert {row["decision"] for row in rows_of(tmp_path / "second")} == {"", "accept", "reject"}


def test_endpoint_repairs_before_the_filters(curated, backbones, checkpoints, tmp_path, endpoint):
    endpoint.repair = lambda paragraph: SOUND.replace("red", "blue") if paragraph == TEXTS["short"] else paragraph
    settings = {"repair": endpoint.settings, "filters": {"maximum_change": 1.0}}
    result = describe(request(curated, backbones, checkpoints, tmp_path / "out", **settings), generate)
    assert sorted(body["messages"][1]["content"] for _, _, body in endpoint.seen) == sorted([*TEXTS.values()] * 2)
    assert (result.counts["kept"], result.counts["dropped_too_short"]) == (6, 2)
    repaired = [row for row in rows_of(tmp_path / "out") if row["original"] == TEXTS["short"]]
    assert {(row["text"], row["steps"]) for row in repaired} == {(SOUND.replace("red", "blue"), "endpoint")}


def test_only_accepted_are_kept_without_accept_unreviewed(curated, backbones, checkpoints, tmp_path):
    describe(request(curated, backbones, checkpoints, tmp_path / "out"), generate)
    review = tmp_path / "review.csv"
    first = rows_of(tmp_path / "out")[0]["key"]
    write_decisions(tmp_path / "out", review, lambda row: {"decision": "accept"} if row["key"] == first else {})
    strict = request(curated, backbones, checkpoints, tmp_path / "second", review=str(review), accept_unreviewed=False)
    result = describe(strict, generate)
    assert (result.counts["kept"], result.counts["dropped_unreviewed"]) == (1, 3)


def test_decision_on_another_text_is_stale(curated, backbones, checkpoints, tmp_path):
    describe(request(curated, backbones, checkpoints, tmp_path / "out"), generate)
    review = tmp_path / "review.csv"
    write_decisions(tmp_path / "out", review, lambda row: {"decision": "reject"})

    def others(source, requests):
        return [{CHECKPOINT: GenerationOutput(SOUND.replace("red", "blue"), True, 20)} for _ in requests]

    result = describe(request(curated, backbones, checkpoints, tmp_path / "second", review=str(review)), others)
    outcomes = ("stale_decisions", "rejected_by_reviewer", "kept")
    assert [result.counts[name] for name in outcomes] == [10, 0, 10]


def test_same_run_gives_same_bytes(curated, backbones, checkpoints, tmp_path):
    for name in ("first", "second"):
        describe(request(curated, backbones, checkpoints, tmp_path / name), generate)
    for name in ("manifest.json", "review.csv", "report.md", "metrics.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_too_few_kept_fail_before_anything_is_curated(curated, backbones, checkpoints, tmp_path):
    with pytest.raises(ValueError, match=r"describe\.minimum_survivors: 4 of 10 .* 5"):
        describe(request(curated, backbones, checkpoints, tmp_path / "out", minimum_survivors=5), generate)
    assert (tmp_path / "out" / "review.csv").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert curated[0].list(curated[0].uri("described")) == []


def test_real_model_gets_the_papers_prompt_and_continue_turn(curated, backbones, checkpoints, tmp_path):
    seen, sources = [], []

    def recorded(source, requests):
        seen.extend(requests)
        sources.append(source)
        return generate_locally(source, requests)

    # the text of a random model may be beyond repair, so none needs to be kept
    four = request(curated, backbones, checkpoints, tmp_path / "out", images=4, continue_below=6, minimum_survivors=0)
    result = describe(four, recorded)
    assert [one.answer for one in result.descriptions] == [
        found[CHECKPOINT] for found in generate_locally(sources[0], seen)
    ]
    prompt = seen[0].request.messages[0]["content"]
    assert prompt.startswith("<Img><ImageHere></Img> Describe this image in detail. Give as many details")
    assert seen[0].continue_below == 6
    assert len(rows_of(tmp_path / "out")) == 4


def test_images_are_distinct_and_seeded(curated):
    _, manifest = curated
    settings = DescribeSettings(datasets=("shapes",), images=15, seed=1)
    chosen = choose_images(manifest, settings)
    assert len({sample.images for sample in chosen}) == 15
    assert choose_images(manifest, settings) == chosen
    assert choose_images(manifest, DescribeSettings(datasets=("shapes",), images=15, seed=2)) != chosen
    assert len(choose_images(manifest, DescribeSettings(datasets=("shapes",), images=9999))) == 40


def test_datasets_without_training_images_are_refused(curated):
    with pytest.raises(ValueError, match=r"describe\.datasets: cc_sbu .*shapes"):
        choose_images(curated[1], DescribeSettings(datasets=("cc_sbu",)))

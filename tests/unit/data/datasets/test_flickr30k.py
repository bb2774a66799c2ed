"""Readers of the grounded sets on Flickr30k."""

import random

from mgpt.data.boxes import Box
from mgpt.data.tasks import render

CAPTION = "a <p>wooden table</p> {<10><20><50><60>}<delim>{<0><0><9><9>} in <p>the room</p> {<29><0><100><100>}"


def test_grounded_caption_round_trip(dataset, turn_texts):
    dataset.image("flickr30k-images/1000092795.jpg", 500, 333)
    dataset.file("groundedcaption.json", [{"image_id": "1000092795", "grounded_caption": CAPTION}])
    (sample,) = dataset.samples("flickr_grounded_caption")
    assert turn_texts(sample) == [
        ("user", ""),
        ("assistant", "a <p>wooden table</p> <box:0><box:1> in <p>the room</p> <box:2>"),
    ]
    assert (sample.task, len(sample.boxes)) == ("grounding", 3)
    assert render(sample, random.Random(0))[1]["content"] == CAPTION


def test_phrases(dataset, turn_texts):
    dataset.image("17.jpg", 100, 100)
    dataset.file(
        "captiontobbox.json",
        [
            {
                "image_id": 17,
                "caption": "A man and a dog.",
                "output": "<p>man</p> {<1><2><30><40>} <p>dog</p> {<5><5><6><6>}",
            }
        ],
    )
    dataset.file(
        "phrasetobbox.json",
        [
            {"image_id": 17, "phrase": "a dog", "bbox": "{<5><5><6><6>}"},
            {"image_id": 17, "phrase": "a cat", "bbox": "none"},
            {"image_id": 18, "phrase": "a cat", "bbox": "{<5><5><6><6>}"},
        ],
    )
    (caption,) = dataset.samples("flickr_caption_to_phrase")
    assert (caption.task, turn_texts(caption)) == (
        "detection",
        [("user", "A man and a dog."), ("assistant", "<p>man</p> <box:0> <p>dog</p> <box:1>")],
    )
    phrase, *problems = dataset.read("flickr_phrase_to_box")
    assert turn_texts(phrase) == [("user", "a dog"), ("assistant", "<p>a dog</p> <box:0>")]
    assert phrase.boxes == (Box(5, 5, 6, 6),)
    assert [problem.reason for problem in problems] == ["missing box", "missing image"]


SENTENCES = (
    "[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] at "
    "[/EN#3/bodyparts their hands] in [/EN#0/notvisual the yard] .\n"
    "[/EN#1/people Two men] near [/EN#4/scene a bush] .\n"
)
VOC = """<annotation><filename>36979.jpg</filename><size><width>64</width><height>48</height></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
<object><name>1</name><bndbox><xmin>21</xmin><ymin>2</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
<object><name>2</name><name>3</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>4</name><bndbox><xmin>50</xmin><ymin>0</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>
<object><name>0</name><nobndbox>1</nobndbox></object></annotation>"""


def entities(dataset, sentences: str = SENTENCES, annotation: str = VOC) -> None:
    dataset.image("images/36979.jpg")
    dataset.file("Sentences/36979.txt", sentences)
    dataset.file("Annotations/36979.xml", annotation)


def test_entities_grounded_captions(dataset, turn_texts):
    entities(dataset)
    first, second = dataset.samples("flickr30k_entities_grounded_caption")
    assert turn_texts(first)[1][1] == (
        "<p>Two young guys</p> <box:0><box:1> with <p>shaggy hair</p> <box:2> at "
        "<p>their hands</p> <box:3> in the yard ."
    )
    assert first.boxes == (Box(1, 2, 20, 30), Box(21, 2, 40, 30), Box(5, 5, 9, 9), Box(5, 5, 9, 9))
    assert turn_texts(second)[1][1] == "<p>Two men</p> <box:0><box:1> near <p>a bush</p> <box:2> ."
    assert first.split == "train"


def test_entities_phrases(dataset, turn_texts):
    entities(dataset)
    caption = dataset.samples("flickr30k_entities_caption_to_phrase")[1]
    assert turn_texts(caption) == [
        ("user", "Two men near a bush ."),
        ("assistant", "<p>Two men</p> <box:0><box:1> <p>a bush</p> <box:2>"),
    ]
    phrases = dataset.samples("flickr30k_entities_phrase_to_box")
    assert [turn_texts(sample)[0][1] for sample in phrases] == [
        "Two young guys",
        "shaggy hair",
        "their hands",
        "Two men",
        "a bush",
    ]
    assert phrases[0].boxes == (Box(1, 2, 20, 30), Box(21, 2, 40, 30))


def test_entities_with_few_phrases(dataset):
    entities(dataset, SENTENCES.splitlines()[1] + "\n")
    (problem,) = dataset.read("flickr30k_entities_grounded_caption")
    assert (problem.reason, problem.detail) == ("not used", "2 grounded phrases, fewer than 5")
    assert len(dataset.samples("flickr30k_entities_phrase_to_box")) == 2


def test_entities_splits(dataset):
    entities(dataset)
    dataset.file("val.txt", "36979\n404\n")
    sample, *_, problem = dataset.read("flickr30k_entities_grounded_caption")
    assert (sample.split, sample.source) == ("validation", "val.txt#36979/0")
    assert (problem.source, problem.reason) == ("val.txt#404", "missing box")


def test_damaged_annotations(dataset):
    for annotation in (
        "<annotation><object>",
        '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
        VOC.replace("<xmin>1</xmin>", ""),
    ):
        entities(dataset, annotation=annotation)
        assert len(dataset.reasons("flickr30k_entities_grounded_caption")) == 1

"""Near-duplicate images: planted copies are found, distinct images are kept."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mgpt.config.sources import CurateSettings
from mgpt.curation.image_checks import check_image
from mgpt.curation.near_duplicates import (
    RADIUS,
    NearDuplicate,
    _coefficients,
    _verify,
    find_matches,
    find_near_duplicates,
    register,
)
from mgpt.data.synthetic.world import draw, scenes

COPIES = 200


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def thumbnail(data):
    return np.frombuffer(check_image(data, CurateSettings()).thumbnail, np.uint8).reshape(32, 32, 3)


def cropped(image, rng, share=0.05):
    width, height = (round(side * (1 - share)) for side in image.size)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def resized(image, factor):
    return image.resize([round(side * factor) for side in image.size], Image.Resampling.BICUBIC)


CHANGES = {
    "re-encoded at quality 60": lambda image, rng: encoded(image, "JPEG", quality=60),
    "re-encoded at quality 90": lambda image, rng: encoded(image, "JPEG", quality=90),
    "enlarged by a quarter": lambda image, rng: encoded(resized(image, 1.25)),
    "reduced by a quarter": lambda image, rng: encoded(resized(image, 0.75), "JPEG", quality=85),
    "cropped by a twentieth": lambda image, rng: encoded(cropped(image, rng)),
    "cropped and re-encoded": lambda image, rng: encoded(cropped(image, rng), "JPEG", quality=85),
}


@pytest.fixture(scope="module")
def images():
    return [draw(scene) for scene in scenes("train", 2000, 11)]


@pytest.fixture(scope="module")
def originals(images):
    return np.stack([thumbnail(encoded(image)) for image in images])


@pytest.mark.parametrize("change", CHANGES)
def test_modified_copies_are_found(change, images, originals):
    rng = np.random.default_rng(3)
    copies = np.stack([thumbnail(CHANGES[change](image, rng)) for image in images[:COPIES]])
    both = np.concatenate([originals[:COPIES], copies])
    found = find_matches(both, np.arange(COPIES, 2 * COPIES), np.arange(COPIES))
    assert len(found) >= 0.95 * COPIES


def test_precision_is_at_least_99_percent(images, originals):
    rng = np.random.default_rng(5)
    copies = [thumbnail(change(image, rng)) for change in CHANGES.values() for image in images[:COPIES]]
    everything = np.concatenate([originals, np.stack(copies)])
    dropped = [pair.second for pair in find_near_duplicates(everything, np.arange(len(everything)))]
    planted = sum(place >= len(originals) for place in dropped)
    assert planted >= 0.95 * len(copies)
    assert planted >= 0.99 * len(dropped), f"{len(dropped) - planted} distinct scenes were dropped as copies"


def test_matches_equal_brute_force(images, originals):
    rng = np.random.default_rng(9)
    copies = [thumbnail(change(image, rng)) for change in CHANGES.values() for image in images[:30]]
    everything = np.concatenate([originals[:1200], np.stack(copies), originals[:10]])
    points = _coefficients(everything).astype(np.float64)
    first, second = np.nonzero(np.triu(np.stack([((points - point) ** 2).sum(1) for point in points]) <= RADIUS**2, 1))
    dropped: dict[int, NearDuplicate] = {}
    for pair in sorted(_verify(everything, first, second), key=lambda pair: (pair.second, pair.first)):
        if pair.first not in dropped and pair.second not in dropped:
            dropped[pair.second] = pair
    assert len(first) > 10_000
    assert len(dropped) > 170
    found = {pair.second: pair for pair in find_near_duplicates(everything, np.arange(len(everything)))}
    assert {second: pair.first for second, pair in found.items()} == {
        second: pair.first for second, pair in dropped.items()
    }
    np.testing.assert_allclose(
        [found[second].distance for second in dropped], [pair.distance for pair in dropped.values()], atol=0.01
    )


def test_small_difference_makes_scenes_distinct():
    base = Image.new("RGB", (64, 64), (128, 128, 128))
    one, moved, other = base.copy(), base.copy(), base.copy()
    one.paste((214, 40, 40), (20, 20, 34, 34))
    moved.paste((214, 40, 40), (26, 20, 40, 34))
    other.paste((38, 84, 214), (20, 20, 34, 34))
    found = find_near_duplicates(np.stack([thumbnail(encoded(image)) for image in (one, moved, other)]), np.arange(3))
    assert found == []


def test_modified_photographs():
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    rng = np.random.default_rng(0)
    originals = [thumbnail(encoded(photo)) for photo in (china, flower)]
    changed = [thumbnail(change(photo, rng)) for change in CHANGES.values() for photo in (china, flower)]
    everything = np.stack(originals + changed)
    assert find_near_duplicates(everything, np.arange(2)) == []
    assert [pair.first for pair in find_matches(everything, np.arange(2, len(everything)), np.arange(2))] == [
        0,
        1,
    ] * len(CHANGES)


def test_registration_measures_the_crop():
    china = Image.fromarray(load_sample_images().images[0])
    cut = china.crop((32, 0, 640, 427 - 21))
    motion, difference = register(thumbnail(encoded(china))[None], thumbnail(encoded(cut))[None])
    np.testing.assert_allclose(motion[0], [0.95, 0.05, 0.951, 0.0], atol=0.006)
    assert difference[0] < 20


def test_one_of_many_equal_images_stays():
    same = np.repeat(thumbnail(encoded(draw(next(scenes("train", 1, 1)))))[None], 300, axis=0)
    assert [pair.first for pair in find_near_duplicates(same, np.arange(300))] == [0] * 299


def test_no_images():
    empty = np.zeros((0, 32, 32, 3), np.uint8)
    assert find_near_duplicates(empty, np.arange(0)) == []
    assert find_matches(empty, np.arange(0), np.arange(0)) == []


def tiles(side=128):
    """Yields disjoint pieces of two photographs."""
    for image in load_sample_images().images:
        for top in range(0, image.shape[0] - side + 1, side):
            for left in range(0, image.shape[1] - side + 1, side):
                yield Image.fromarray(image[top : top + side, left : left + side])


def textures(count, side=128):
    """Yields textures as dense as photographs of foliage, cloth and walls: noise of many scales, waves, mosaics."""
    rng = np.random.default_rng(8)
    down, across = np.mgrid[0:side, 0:side] / side
    for number in range(count):
        if number % 3 == 0:
            pixels = np.zeros((side, side, 3))
            for cells in (3, 6, 12, 24):
                coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
                pixels += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=float) / cells
            pixels *= 255 / pixels.max()
        elif number % 3 == 1:
            angles, lengths, phases = (rng.uniform(*span, (3, 3)) for span in ((0, 3.14), (3, 20), (0, 6.28)))
            waves = [
                np.sin(length * (across * np.cos(angle) + down * np.sin(angle)) + phase)
                for angle, length, phase in zip(angles.flat, lengths.flat, phases.flat, strict=True)
            ]
            pixels = np.stack([sum(waves[n::3]) for n in range(3)], axis=-1) * 40 + 128
        else:
            centres, colours = rng.random((40, 2)), rng.integers(0, 256, (40, 3))
            nearest = ((down[..., None] - centres[:, 0]) ** 2 + (across[..., None] - centres[:, 1]) ** 2).argmin(-1)
            pixels = colours[nearest]
        yield Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_realistic_images_precision_and_recall():
    distinct = [*tiles(), *textures(90)]
    rng = np.random.default_rng(6)
    originals = [thumbnail(encoded(image)) for image in distinct]
    copies = {name: [thumbnail(change(image, rng)) for image in distinct] for name, change in CHANGES.items()}
    everything = np.stack(originals + [copy for changed in copies.values() for copy in changed])
    count = len(distinct)
    found = find_matches(everything, np.arange(count, len(everything)), np.arange(count))
    right = {pair.second for pair in found if pair.first == pair.second % count}
    recall = {name: sum(place // count == number for place in right) / count for number, name in enumerate(CHANGES, 1)}
    assert min(recall.values()) >= 0.95, recall
    dropped = [pair.second for pair in find_near_duplicates(everything, np.arange(len(everything)))]
    planted = sum(place >= count for place in dropped)
    assert planted >= 0.99 * len(dropped), f"{len(dropped) - planted} of {count} distinct images were dropped as copies"
    assert planted >= 0.95 * len(CHANGES) * count

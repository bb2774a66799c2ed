"""Settings of `sources`, `download` and `curate`: where data is, how it is fetched, and which records are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mgpt.config.base import Section, rule_error

WorldSplit = Literal["train", "validation", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SCHEMES = ("https://", "http://", "s3://", "hf://datasets/", "package://")


def check_scheme(location: str) -> None:
    """Raises a rule error for a location with an unknown scheme."""
    if "://" in location and not location.startswith(SCHEMES):
        raise rule_error(
            f"{location!r} has an unknown scheme", f"use a local path, or a URI with one of {', '.join(SCHEMES)}"
        )


class DatasetSettings(Section):
    """One dataset in a source's files; its key is its name in mixtures.

    Attributes:
        reader: name of the reader, a key of `mgpt.data.datasets.READERS`.
        root: folder below the source's; by default the source's folder (the synthetic world knows its own).
        images: folder of the images below the source's.
        splits: the splits to read; all when empty. Every split but `train` is for evaluation, and no training image may
            equal one of its
            images.
        text: normalisation. `original` applies the caption processor of the released code to the turns that the
            released code passed
            through it, as the released weights were trained; `none` leaves texts as they are.
        duplicates: what counts as a duplicate. `samples`: same task, image and text. `images`: also every text about an
            image that nearly
            equals an earlier, different image of the dataset. `records`: also later records of the very same image (web
            pairs).
    """

    reader: str
    root: str | None = None
    images: str | None = None
    splits: tuple[str, ...] = ()
    text: Literal["none", "original"] = "original"
    cap: int | None = Field(default=None, ge=1, description="most samples kept of a split: the first by content hash")
    duplicates: Literal["samples", "images", "records"] = "images"
    duplicate_captions: float | None = Field(
        default=None, gt=0, le=1, description="MinHash similarity from which a caption is dropped"
    )


class SourceSettings(Section):
    """The files of one source.

    A location is a local file or folder, an `https://` file (or folder, ending in `/`, with the file names in
    `include`), `s3://bucket/prefix`, `hf://datasets/owner/name@revision` or `package://mgpt/...` (files that ship with
    this package). A file `SHA256SUMS` among them is verified.

    Attributes:
        locations: mirrors of the same files, tried in order.
        files: mirrors of single files, by file name, for files with locations of their own.
        include: patterns of the files to fetch.
        sha256: digests that must match, by file name.
        unpack: patterns of the archives to extract. A plain `.tar` is a webdataset shard and stays as it is.
        success_floor: share of the files that must be fetched; overrides `download.success_floor`.
        seed, counts: of the synthetic world (`kind: scenes`).
        datasets: the datasets in these files, by name.
    """

    kind: Literal["files", "scenes", "url-list", "backbones"] = "files"
    locations: tuple[str, ...] = ()
    files: dict[str, tuple[str, ...]] = {}
    include: tuple[str, ...] = ("*",)
    sha256: dict[str, Sha256] = {}
    unpack: tuple[str, ...] = ("*.zip", "*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz")
    licence: str = "unknown"
    success_floor: float | None = Field(default=None, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    counts: dict[WorldSplit, Annotated[int, Field(ge=0)]] = {}
    datasets: dict[str, DatasetSettings] = {}

    @field_validator("locations")
    @classmethod
    def _have_known_schemes(cls, locations: tuple[str, ...]) -> tuple[str, ...]:
        for location in locations:
            check_scheme(location)
        return locations

    @field_validator("files")
    @classmethod
    def _have_known_mirrors(cls, files: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, mirrors in files.items():
            if not mirrors:
                raise rule_error(f"{name!r} has no location", "add at least one")
            for mirror in mirrors:
                check_scheme(mirror)
        return files

    @model_validator(mode="after")
    def _has_origin(self) -> SourceSettings:
        if self.kind == "scenes" and not self.counts:
            fix = "add counts: {train: 1000, validation: 100, test: 100}"
            raise rule_error("a source of kind 'scenes' needs counts", fix, "counts")
        if self.kind != "scenes" and not self.locations and not self.files:
            rule = f"a source of kind {self.kind!r} needs at least one location"
            raise rule_error(rule, "add one under locations or files", "locations")
        return self


class DownloadSettings(Section):
    """Fetching of files. A source below its success floor fails the stage after everything was tried."""

    parallel: int = Field(default=8, ge=1, le=256)
    attempts: int = Field(default=5, ge=1)
    timeout_seconds: float = Field(default=30, gt=0)
    backoff_seconds: float = Field(default=0.5, ge=0)
    success_floor: float = Field(default=1.0, ge=0, le=1)
    images_per_shard: int = Field(default=10_000, ge=1)
    bundle_files: int = Field(default=64, ge=1, description="a folder of more files is stored as tar bundles")


class CurateSettings(Section):
    """Conditions that a sample must meet. Rejected rows are kept in the quarantine table with their reasons."""

    minimum_side: int = Field(default=16, ge=1, description="pixels of the shorter side")
    maximum_aspect: float = Field(default=20.0, ge=1, description="longer side over shorter side")
    maximum_pixels: int = Field(
        default=64_000_000, ge=1, description="read from the header, before anything is decoded"
    )
    maximum_bytes: int = Field(default=64_000_000, ge=1, description="of one encoded image")
    caption_minimum_characters: int = Field(default=3, ge=0)
    text_maximum_characters: int = Field(default=20_000, ge=1, description="of one turn")
    box_tolerance: float = Field(
        default=1.0, ge=0, description="pixels that a box may extend beyond its image; it is then clipped"
    )
    box_minimum_side: float = Field(default=1.0, ge=0, description="pixels")
    licences: tuple[str, ...] = Field(default=(), description="licences to keep; empty keeps all")
    decontaminate: bool = Field(
        default=True,
        description="drop training samples whose image (nearly) equals one of an evaluation split",
    )
    rows_per_shard: int = Field(default=2_000, ge=1)
    part_records: int = Field(default=20_000, ge=1, description="rows of a large annotation file in one task")
    workers: int = Field(
        default=2, ge=0, description="parts processed in parallel on Ray; 0: in this process, without Ray"
    )
    card_samples: int = Field(default=40, ge=0)

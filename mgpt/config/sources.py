"""Settings of `sources`, `download` and `curate`: where data comes from, how it is fetched, and what may stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mgpt.config.base import Section, mistake

WorldSplit = Literal["train", "validation", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SCHEMES = ("https://", "http://", "s3://", "hf://datasets/", "package://")


def check_scheme(location: str) -> None:
    """Raises ValueError for a location of an unknown kind."""
    if "://" in location and not location.startswith(SCHEMES):
        raise mistake(
            f"{location!r} is no location that can be read", f"use a local path or one of {', '.join(SCHEMES)}"
        )


class DatasetSettings(Section):
    """One dataset that a reader finds in a source's files; its key is the dataset's name in the mixture.

    `root` and `images` are folders below the source's (the shapes world knows its own; else the source's folder is meant); `splits` are
    those wanted (all, when empty). Every split but `train` is for evaluation: nothing in training may equal its images. `text` is the
    named normalisation: `original` is the released code's caption processor on the turns that the released code passed through it (the
    released weights were trained so), `none` leaves texts alone. `duplicates` says what counts as one: `samples` (the same task, image
    and text), `images` (also everything said of an image that nearly equals an earlier, different image of the dataset), `records` (also
    later records of the very same image: web pairs).
    """

    reader: str
    root: str | None = None
    images: str | None = None
    splits: tuple[str, ...] = ()
    text: Literal["none", "original"] = "original"
    cap: int | None = Field(default=None, ge=1, description="most samples of a split kept: the first by content hash")
    duplicates: Literal["samples", "images", "records"] = "images"
    duplicate_captions: float | None = Field(
        default=None, gt=0, le=1, description="MinHash similarity from which a caption is dropped"
    )


class SourceSettings(Section):
    """Where one source's files are: `locations` are tried in order, each a mirror of the same files; `files` names single files and
    their mirrors where they lie in different places.

    A location is a local file or folder, an `https://` file (or folder, ending in `/`, with the file names in `include`),
    `s3://bucket/prefix`, `hf://datasets/owner/name@revision` or `package://mgpt/...` (files that ship with this package). `include` are
    patterns of the files wanted, `unpack` of the archives to open (a plain `.tar` is a webdataset shard and stays); `sha256` maps file
    names to digests that must match. A file `SHA256SUMS` among them is obeyed.
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
    def known_schemes(cls, locations: tuple[str, ...]) -> tuple[str, ...]:
        for location in locations:
            check_scheme(location)
        return locations

    @field_validator("files")
    @classmethod
    def known_file_schemes(cls, files: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, mirrors in files.items():
            if not mirrors:
                raise mistake(f"{name!r} has no location", "name at least one")
            for mirror in mirrors:
                check_scheme(mirror)
        return files

    @model_validator(mode="after")
    def has_origin(self) -> SourceSettings:
        if self.kind == "scenes" and not self.counts:
            raise mistake(
                "a source of kind 'scenes' needs counts",
                "write counts: {train: 1000, validation: 100, test: 100}",
                "counts",
            )
        if self.kind != "scenes" and not self.locations and not self.files:
            raise mistake(
                f"a source of kind {self.kind!r} needs at least one location",
                "name one under locations or files",
                "locations",
            )
        return self


class DownloadSettings(Section):
    """How files are fetched. Rates are per source; a source below its floor fails the stage after everything was tried."""

    parallel: int = Field(default=8, ge=1, le=256)
    attempts: int = Field(default=5, ge=1)
    timeout_seconds: float = Field(default=30, gt=0)
    backoff_seconds: float = Field(default=0.5, ge=0)
    success_floor: float = Field(default=1.0, ge=0, le=1)
    images_per_shard: int = Field(default=10_000, ge=1)
    bundle_files: int = Field(default=64, ge=1, description="a folder with more files than this travels as tar bundles")


class CurateSettings(Section):
    """What a sample must be to stay. Everything that goes is kept, with its reason, in the quarantine table."""

    minimum_side: int = Field(default=16, ge=1, description="pixels of the shorter side")
    maximum_aspect: float = Field(default=20.0, ge=1, description="longer side over shorter side")
    maximum_pixels: int = Field(
        default=64_000_000, ge=1, description="read from the header, before anything is decoded"
    )
    maximum_bytes: int = Field(default=64_000_000, ge=1, description="of one encoded image")
    caption_minimum_characters: int = Field(default=3, ge=0)
    text_maximum_characters: int = Field(default=20_000, ge=1, description="of one turn")
    box_tolerance: float = Field(
        default=1.0, ge=0, description="pixels that a box may overshoot its image by; it is clipped then"
    )
    box_minimum_side: float = Field(default=1.0, ge=0, description="pixels; a smaller box shows nothing")
    licences: tuple[str, ...] = Field(default=(), description="the licences that may stay; empty means every one")
    decontaminate: bool = Field(
        default=True, description="drop training samples whose image is, or nearly is, one of an evaluation split"
    )
    rows_per_shard: int = Field(default=2_000, ge=1)
    part_records: int = Field(default=20_000, ge=1, description="rows of a large annotation file that one task takes")
    workers: int = Field(
        default=2, ge=0, description="parts handled at a time by Ray; 0 works in this process, without Ray"
    )
    card_samples: int = Field(default=40, ge=0)

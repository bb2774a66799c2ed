"""Settings of the `tracking` and `promote` sections: where runs and versions are kept, and what a model must show to become champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from mgpt.config.base import Section, mistake

DATABASES = ("sqlite:///", "postgresql", "mysql", "mssql")
SERVERS = ("http://", "https://")


class TrackingSettings(Section):
    """The MLflow store, of runs and of model versions. A relative `sqlite:///` path is relative to the project's folder."""

    uri: str = "sqlite:///mlflow.db"
    experiment: Annotated[str, Field(min_length=1)] = "mgpt"
    # The longest that the end of a stage waits for an MLflow server that does not answer. Training itself never waits.
    patience_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0

    @field_validator("uri")
    @classmethod
    def _is_a_store(cls, uri: str) -> str:
        if not uri.startswith(DATABASES + SERVERS):
            raise mistake(
                "the address of an MLflow database or server",
                "write sqlite:///FILE.db, a database address, or http(s)://HOST:PORT; MLflow 3 refuses plain folders (./mlruns)",
            )
        return uri


class GateSettings(Section):
    """What one model's candidate must show to become champion. Names are those of its metrics file."""

    floors: dict[str, float] = Field(default_factory=dict)  # least value of a metric where higher is better
    ceilings: dict[str, float] = Field(default_factory=dict)  # largest value of a metric where lower is better
    # Metrics in which the candidate may not be worse than the champion; empty: all that the champion has.
    compare: tuple[str, ...] = ()
    smoke_prompt: Annotated[str, Field(min_length=1)] = "Describe this image in detail."
    # A champion measured on other test data cannot be compared: the candidate is held back unless this says that it may pass.
    other_test_data: bool = False
    # Weights that someone rolled back stay back when they come again, unless this says otherwise.
    rolled_back: bool = False

    @model_validator(mode="after")
    def _directions_are_clear(self) -> GateSettings:
        both = sorted(set(self.floors) & set(self.ceilings))
        if both:
            rule = f"{', '.join(both)} stands under floors and ceilings; a metric is better either higher or lower"
            raise mistake(rule, "keep one of the two", "floors")
        return self

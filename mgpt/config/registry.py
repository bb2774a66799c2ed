"""Settings of the `tracking` and `promote` sections: the MLflow store, and the conditions for becoming champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from mgpt.config.base import Section, rule_error

DATABASES = ("sqlite:///", "postgresql", "mysql", "mssql")
SERVERS = ("http://", "https://")


class TrackingSettings(Section):
    """The MLflow store of runs and model versions. A relative `sqlite:///` path is relative to the project's folder."""

    uri: str = "sqlite:///mlflow.db"
    experiment: Annotated[str, Field(min_length=1)] = "mgpt"
    # Longest wait at the end of a stage for an MLflow server that does not respond. Training itself never waits.
    patience_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0

    @field_validator("uri")
    @classmethod
    def _is_database_or_server(cls, uri: str) -> str:
        if not uri.startswith(DATABASES + SERVERS):
            raise rule_error(
                "the address of an MLflow database or server",
                "use sqlite:///FILE.db, a database address or http(s)://HOST:PORT; MLflow 3 refuses folders (./mlruns)",
            )
        return uri


class GateSettings(Section):
    """Conditions that a candidate must meet to become champion. Metric names are those of its metrics file."""

    floors: dict[str, float] = Field(default_factory=dict)  # minimum of a metric where higher is better
    ceilings: dict[str, float] = Field(default_factory=dict)  # maximum of a metric where lower is better
    # Metrics in which the candidate may not be worse than the champion; empty: all that the champion has.
    compare: tuple[str, ...] = ()
    smoke_prompt: Annotated[str, Field(min_length=1)] = "Describe this image in detail."
    # Accepts a candidate whose champion was measured on other test data, so that the two cannot be compared.
    other_test_data: bool = False
    # Accepts weights that were rolled back before.
    rolled_back: bool = False

    @model_validator(mode="after")
    def _each_metric_has_one_limit(self) -> GateSettings:
        both = sorted(set(self.floors) & set(self.ceilings))
        if both:
            rule = f"{', '.join(both)} is in floors and in ceilings; a metric is better either higher or lower"
            raise rule_error(rule, "keep one of the two", "floors")
        return self

"""Settings of the `tracking` and `promote` sections: where runs and versions are kept, and what a model must show to become champion."""

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DATABASES = ("sqlite:///", "postgresql", "mysql", "mssql")
SERVERS = ("http://", "https://")


class TrackingSettings(BaseModel):
    """The MLflow store. A relative `sqlite:///` path is relative to the project's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = "sqlite:///mlflow.db"
    experiment: str = Field("mgpt", min_length=1)
    # The longest that the end of a stage waits for an MLflow server that does not answer. Training itself never waits.
    patience_seconds: float = Field(20.0, gt=0, le=600)

    @field_validator("uri")
    @classmethod
    def _is_a_store(cls, uri: str) -> str:
        if not uri.startswith(DATABASES + SERVERS):
            raise ValueError(f"{uri!r} is no MLflow store: use sqlite:///FILE.db, a database address, or http(s)://HOST:PORT of a server")
        return uri


class GateSettings(BaseModel):
    """What one system's candidate must show. Metrics under `ceilings` are the ones where lower is better."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floors: dict[str, float] = Field(default_factory=dict)
    ceilings: dict[str, float] = Field(default_factory=dict)
    smoke_prompt: str = Field("Describe this image in detail.", min_length=1)
    # A champion measured on other test data cannot be compared: the gate holds the candidate back unless this says that it may pass.
    other_test_data: bool = False
    # A version that someone rolled back stays back, also when the same weights come again, unless this says otherwise.
    rolled_back: bool = False

    @model_validator(mode="after")
    def _directions_are_clear(self) -> "GateSettings":
        both = sorted(set(self.floors) & set(self.ceilings))
        if both:
            raise ValueError(f"{', '.join(both)}: named under floors and ceilings; a metric is better either higher or lower, keep one")
        return self

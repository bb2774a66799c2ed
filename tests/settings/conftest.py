"""The default experiment, to be damaged, and what is then told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgpt.settings import SettingsError, load
from mgpt.settings.loader import read_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The default experiment, to be damaged; paths in it are looked for in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return read_params(ROOT / "params.yaml")


def refused(params: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The mistakes of the settings by key; each says what the rule is and how to keep it."""
    Path("params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError) as caught:
        load("params.yaml", environment or {})
    for one in caught.value.mistakes:
        assert one.rule, one
        assert one.fix, one
        assert one.key in str(caught.value)
    return {one.key: one for one in caught.value.mistakes}

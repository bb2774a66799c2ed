"""A stage reads the keys that it declared, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt.config import load_settings, section
from mgpt.config.restricted_view import DeclaredView, UndeclaredRead

ROOT = Path(__file__).parents[3]
DECLARED = ("download", "pretrain.minigpt-v2", "evaluate.minigpt-v2.seed")


@pytest.fixture
def view() -> DeclaredView:
    return DeclaredView(load_settings(ROOT / "params.yaml", {}), DECLARED, "test")


def test_declared_keys_are_readable(view: DeclaredView) -> None:
    settings = load_settings(ROOT / "params.yaml", {})
    assert view.download == settings.download
    assert section(view, "pretrain", "minigpt-v2") == section(settings, "pretrain", "minigpt-v2")
    assert view.evaluate["minigpt-v2"].seed == settings.evaluate["minigpt-v2"].seed


def test_infrastructure_needs_no_declaration(view: DeclaredView) -> None:
    assert view.storage.root
    assert view.cluster.training.workers >= 2
    assert view.tracking.experiment


@pytest.mark.parametrize(
    "read",
    [
        lambda view: view.curate,
        lambda view: view.pretrain["minigpt4"],
        lambda view: view.evaluate["minigpt-v2"].splits,
        lambda view: list(view.pretrain),
        lambda view: len(view),
    ],
)
def test_undeclared_read_fails(view: DeclaredView, read) -> None:
    with pytest.raises(UndeclaredRead, match=r"dvc\.yaml"):
        read(view)

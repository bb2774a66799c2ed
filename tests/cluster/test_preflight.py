"""What preflight says of nodes that are not fit."""

from __future__ import annotations

from mgpt.cluster.preflight import differences, versions


def test_equal_nodes_are_fit() -> None:
    assert differences(versions(), {"node": "10.0.0.1", "versions": versions(), "store": ""}) == []


def test_every_difference_is_told_with_both_versions() -> None:
    there = {**versions(), "torch": "1.0", "peft": "missing"}
    lines = differences(versions(), {"node": "10.0.0.1", "versions": there, "store": "storage.root: s3://b cannot be written"})
    assert len(lines) == 3
    assert all(line.startswith("10.0.0.1: ") for line in lines)
    torch = next(line for line in lines if "torch" in line)
    assert "1.0" in torch
    assert versions()["torch"] in torch
    assert "cannot be written" in lines[-1]

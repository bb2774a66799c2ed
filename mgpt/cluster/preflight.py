"""Looks at every node of a cluster before work is placed there: the same Python and libraries everywhere, and the store within reach."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mgpt.storage import Store

# A difference in any of these between nodes changes results or breaks unpickling.
PACKAGES = ("ray", "torch", "transformers", "peft", "numpy", "pyarrow", "s3fs")
_SECONDS = 60.0


def versions() -> dict[str, str]:
    """This process's Python and library versions; "missing" where a library is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def check_nodes(store: Store) -> list[dict[str, Any]]:
    """Asks every node of the connected cluster for its versions and whether it reaches the store.

    Raises:
        ValueError: nodes differ from this process or cannot use the store; names node, library, both versions and the fix.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0)(_look)
    asked = [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(store) for node in nodes]
    answers = ray.get(asked, timeout=_SECONDS)
    reports = [{"node": node["NodeManagerAddress"], **answer} for node, answer in zip(nodes, answers, strict=True)]
    wrong = [line for report in reports for line in differences(versions(), report)]
    if wrong:
        raise ValueError("the cluster's nodes are not fit for this stage:\n  " + "\n  ".join(wrong))
    return reports


def differences(here: Mapping[str, str], report: Mapping[str, Any]) -> list[str]:
    """What is wrong with one node's report, a line each."""
    lines = [
        f"{report['node']}: {name} is {report['versions'].get(name)}, here {wanted}; install the same, as constraints.txt has it"
        for name, wanted in here.items()
        if report["versions"].get(name) != wanted
    ]
    return lines + ([f"{report['node']}: {report['store']}"] if report["store"] else [])


def _look(store: Store) -> dict[str, Any]:
    try:
        store.check()
        problem = ""
    except ValueError as error:
        problem = str(error)
    return {"versions": versions(), "store": problem}

"""A Ray cluster on this machine whose nodes can be killed, preempted and replaced."""

from __future__ import annotations

import contextlib
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

NODES = 3  # two of them have a worker, so one can die
NODE_CPUS = 3.0  # a worker and a task that builds batches


class Cluster:
    """Ray nodes on this machine that can be killed one by one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        # A dead node is found in seconds, not in half a minute.
        health = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        self._options = {"num_cpus": NODE_CPUS, "object_store_memory": 100 << 20}
        head = {**self._options, "include_dashboard": False, "_system_config": health}
        self._nodes = Nodes(initialize_head=True, head_node_args=head)
        self._others = [self._nodes.add_node(**self._options) for _ in range(NODES - 1)]

    @property
    def address(self) -> str:
        return str(self._nodes.address)

    def replace_node(self) -> None:
        """Kills a node with a training worker and all its processes, not the head, and starts another."""
        node = self._node_with_worker()
        self._kill(node)
        self.grow()

    def preempt_node(self, seconds: int) -> Callable[[], None]:
        """Notifies Ray that a node with a worker will end in `seconds`; returns a function that replaces it."""
        node = self._node_with_worker()
        options = {
            "address": self.address,
            "node-id": node.node_id,
            "reason": "DRAIN_NODE_REASON_PREEMPTION",
            "reason-message": "preempted",
            "deadline-remaining-seconds": seconds,
        }
        ray = Path(sysconfig.get_path("scripts")) / "ray"
        subprocess.run([ray, "drain-node", *(f"--{name}={value}" for name, value in options.items())], check=True)

        def end() -> None:
            self._kill(node)
            self.grow()

        return end

    def _node_with_worker(self) -> Any:
        node = next((node for node in self._others if any(map(is_worker, processes_of(node)))), None)
        assert node is not None, "no node but the head has a worker"
        return node

    def shrink(self) -> None:
        """Kills all nodes but the head."""
        for node in list(self._others):
            self._kill(node)

    def grow(self) -> None:
        """Starts one more node."""
        self._others.append(self._nodes.add_node(**self._options))

    def _kill(self, node: Any) -> None:
        for process in processes_of(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._others.remove(node)

    def workers(self) -> list[psutil.Process]:
        """Returns the training workers of all nodes."""
        mine = psutil.Process().children(recursive=True)
        return [process for process in mine if is_worker(process)]

    def stop(self) -> None:
        self._nodes.shutdown()


def processes_of(node: Any) -> list[psutil.Process]:
    """Returns the raylet of a node, and all processes that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def is_worker(process: psutil.Process) -> bool:
    """Returns whether a process is a training worker."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False

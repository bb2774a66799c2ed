"""What a fork server saves where Ray starts processes that need the model's code: seconds until they have it, CPU time and memory.

`--workers` actors of a local Ray, each a process, are asked for at once, import what a training worker imports, and say so; then they end,
and so on for `--rounds`: once with Ray's own way to start a process (`plain`), once as forks of one that has imported packages (`forked`,
`mgpt.execution.forks`), each in a Ray of its own, one after the other. The first round of each, in which Ray and the server come up, is left
out. CPU seconds are those of the workers from their start, of which a fork has spent none when it begins (nor counted are the server's own
imports, once a Ray); memory is the sum of their proportional set sizes, with the server's and the launchers'.

Run: python benchmarks/worker_start.py [--workers 4] [--rounds 6] [--out FILE]. The last line is JSON; ratios are plain / forked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from train_step import machine

from mgpt.execution import forks, launch

_IMPORT_SECONDS = 20  # the server's, which is not measured


class Worker:
    """Imports what a training worker does."""

    def ready(self) -> tuple[float, int]:
        """(CPU seconds of this process until now, its proportional set size in bytes)."""
        import mgpt.execution.train_worker  # noqa: F401

        times = psutil.Process().cpu_times()
        return times.user + times.model_name, psutil.Process().memory_full_info().pss


def rounds(workers: int, count: int, forked: bool) -> dict[str, float]:
    """Medians over rounds: seconds until all are ready, CPU seconds of one, MiB of all."""
    import ray

    seconds, cpu, memory = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        if forked:
            forks.start(Path(folder))
            time.sleep(_IMPORT_SECONDS)
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=150 << 20,
            log_to_driver=False,
        )
        for number in range(count):
            # Variables that no process has yet: a new one each.
            options: dict[str, Any] = {"runtime_env": {"env_vars": {"MGPT_BENCHMARK_ROUND": str(number)}}}
            begun = time.perf_counter()
            actors = [ray.remote(num_cpus=0, **options)(Worker).remote() for _ in range(workers)]
            seen = ray.get([actor.ready.remote() for actor in actors])
            seconds.append(time.perf_counter() - begun)
            cpu.extend([one for one, _ in seen] if number else [])
            memory.append(sum(size for _, size in seen) + _helper_bytes())
            for actor in actors:
                ray.kill(actor)
            time.sleep(2)
        ray.shutdown()
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu),
        "mib": statistics.median(memory[1:]) / 2**20,
    }


def _helper_bytes() -> int:
    """What the server and the launchers hold."""
    helpers = [
        one
        for one in psutil.Process().children(recursive=True)
        if {forks.__name__, launch.__file__} & set(one.cmdline())
    ]
    return sum(int(helper.memory_full_info().pss) for helper in helpers if "ray::" not in helper.cmdline()[0])


def main() -> None:
    """Measure both ways, print them, and end with the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["plain", "forked"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(rounds(asked.workers, asked.rounds, asked.only == "forked")))
        return
    result: dict[str, Any] = {"workers": asked.workers, "rounds": asked.rounds} | machine()
    for way in ("plain", "forked"):
        command = [
            sys.executable,
            __file__,
            "--only",
            way,
            "--workers",
            str(asked.workers),
            "--rounds",
            str(asked.rounds),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        result[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:8s}", *(f"{name} {value:.2f}" for name, value in result[way].items()), sep="  ")
    result |= {f"{name}_ratio": result["plain"][name] / result["forked"][name] for name in result["plain"]}
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

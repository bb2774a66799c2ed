"""Workers of a local Ray are forks of one process that has imported what takes long; where it cannot serve, Ray starts them as ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mgpt.cluster import launch

ROOT = Path(__file__).parents[2]
WORKER = ["/ray/default_worker.py", "--node-id=1"]
# A worker that says who it is and what was imported before it ran, and waits to be told to end.
SCRIPT = """
import json, os, sys
seen = {"pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd(), "variable": os.environ.get("VARIABLE")}
seen["modules"] = sorted(sys.modules)
print(json.dumps(seen), flush=True)
sys.stdin.read()
print("ends", file=sys.stderr)
"""
# Starts a server, says so, and waits to be told to end.
OWNER = """
import os, sys
from pathlib import Path
from mgpt.cluster import forks
forks.PRELOADED, forks.PACKAGES = ("json", "pandas"), Path(sys.argv[1]) / "packages"
forks.start(Path(sys.argv[1]))
print(os.environ["MGPT_FORKS_INSTEAD"], flush=True)
sys.stdin.read()
"""


def context(**values: object) -> str:
    return f"--serialized-runtime-env-context={json.dumps(values)}"


@pytest.mark.parametrize(
    "arguments",
    [
        [*WORKER, context(command_prefix=["nsys", "profile"]), "--language=PYTHON"],
        [*WORKER, context(override_worker_entrypoint="/other.py"), "--language=PYTHON"],
        [*WORKER, context(py_executable="/other/python"), "--language=PYTHON"],
        [*WORKER, context(env_vars={"PYTHONPATH": "/other"}), "--language=PYTHON"],
        [*WORKER, context(env_vars={"OMP_NUM_THREADS": "4"}), "--language=PYTHON"],
        [*WORKER, context(env_vars={"VARIABLE": "${HOME}/x"}), "--language=PYTHON"],
        [*WORKER, context(), "--language=JAVA"],
        ["-S", *WORKER, context(), "--language=PYTHON"],
        [context(), "--language=PYTHON"],
    ],
)
def test_what_a_running_process_cannot_follow_is_left_to_ray(arguments: list[str]) -> None:
    assert launch.request(arguments) is None


def test_a_plain_worker_is_asked_for_with_its_variables() -> None:
    asked = launch.request([*WORKER, context(env_vars={"VARIABLE": "1"}, py_executable=sys.executable), "--language=PYTHON"])
    assert asked is not None
    assert asked["arguments"] == WORKER
    assert asked["environment"] == {**os.environ, "VARIABLE": "1"}


class Server:
    """A fork server and its launchers."""

    def __init__(self, folder: Path) -> None:
        (folder / "packages").mkdir()
        (folder / "worker.py").write_text(SCRIPT)
        (folder / "instead.py").write_text("import sys; print(sys.argv[1:])")
        self.folder, self.environment = folder, {**os.environ, "PYTHONPATH": str(ROOT), launch.ADDRESS: str(folder / "forks")}
        command = [sys.executable, "-c", OWNER, str(folder)]
        self.owner = subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.owner.stdout is not None
        assert self.owner.stdout.readline().strip().endswith("setup_worker.py")
        self.environment[launch.INSTEAD] = str(folder / "instead.py")

    def launch(self, **variables: str) -> subprocess.Popen[str]:
        arguments = [str(self.folder / "worker.py"), "--one", context(env_vars=variables), "--language=PYTHON"]
        pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
        command = [sys.executable, launch.__file__, *arguments]
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, text=True, **pipes)  # type: ignore[no-any-return,call-overload]

    def end(self) -> None:
        self.owner.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    if made.owner.poll() is None:
        made.end()


def first_line(launcher: subprocess.Popen[str]) -> str:
    assert launcher.stdout is not None
    return launcher.stdout.readline()


def soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_workers_are_forks_with_their_own_variables_arguments_and_streams(server: Server) -> None:
    launchers = [server.launch(VARIABLE=str(number)) for number in range(2)]
    seen = [json.loads(first_line(launcher)) for launcher in launchers]
    assert seen[0]["parent"] == seen[1]["parent"] not in (os.getpid(), *(launcher.pid for launcher in launchers))
    assert [one["variable"] for one in seen] == ["0", "1"]
    assert {"pandas", "numpy"} <= set(seen[0]["modules"])
    assert not [name for name in seen[0]["modules"] if name.startswith("ray")]
    assert seen[0]["arguments"] == [str(server.folder / "worker.py"), "--one"]
    assert seen[0]["folder"] == str(server.folder)
    assert psutil.pid_exists(seen[0]["pid"])
    assert launchers[0].communicate()[1] == "ends\n"  # its standard input ended, and so it did, and its launcher
    assert soon(lambda: not psutil.pid_exists(seen[0]["pid"]))
    assert launchers[1].poll() is None
    launchers[1].kill()
    launchers[1].communicate()
    assert soon(lambda: not psutil.pid_exists(seen[1]["pid"])), "a worker outlived its launcher"


def test_a_launcher_passes_on_a_request_to_end_and_ends_with_a_killed_worker(server: Server) -> None:
    asked, killed = server.launch(), server.launch()
    pids = [json.loads(first_line(launcher))["pid"] for launcher in (asked, killed)]
    asked.terminate()
    psutil.Process(pids[1]).kill()
    assert soon(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    for launcher in (asked, killed):
        assert launcher.wait(20) is not None
        launcher.communicate()


def test_without_a_server_ray_starts_workers_itself(server: Server) -> None:
    server.end()
    child = server.launch(VARIABLE="x")
    assert first_line(child).startswith(f"['{server.folder}/worker.py', '--one', '--serialized-runtime-env-context=")
    assert child.wait(20) == 0
    child.communicate()


def test_what_was_imported_serves_until_a_package_is_installed(server: Server) -> None:
    before = server.launch()
    json.loads(first_line(before))
    (server.folder / "packages" / "new").touch()
    after = server.launch()
    assert first_line(after).startswith("[")
    for launcher in (before, after):
        launcher.communicate()


@pytest.mark.usefixtures("ray_here")
def test_a_worker_of_ray_has_imported_the_models_packages_but_nothing_of_this_project() -> None:
    import ray

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"MGPT_TEST_FORKS": "1"}})
    def look() -> tuple[list[str], list[str]]:
        return psutil.Process().parent().cmdline(), [name for name in sys.modules if name.partition(".")[0] in ("mgpt", "peft")]

    parent, modules = ray.get(look.remote())
    assert "mgpt.cluster.forks" in parent
    assert "peft" in modules
    assert not [name for name in modules if name.startswith("mgpt") and name not in ("mgpt", "mgpt.cluster", "mgpt.cluster.launch")]

"""Workers of a local Ray are forks of one process that has imported what takes long; where it cannot serve, Ray starts them as ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mgpt.execution import launch

ROOT = Path(__file__).parents[3]
WORKER = ["/ray/default_worker.py", "--node-id=1"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a local Ray has a fork server on Linux alone")
# A worker that says who it is and what was imported before it ran, and waits to be told to end.
SCRIPT = """
import json, numpy, os, resource, signal, sys, tempfile
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("asked to end", file=sys.stderr)))
seen = {"pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd()}
seen["variable"] = os.environ.get("MGPT_VARIABLE")
seen["modules"] = sorted(sys.modules)
seen["drawn"], seen["temporary"] = int(numpy.random.randint(2**30)), tempfile.gettempdir()
seen["files"], seen["score"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0], open("/proc/self/oom_score_adj").read().strip()
seen["blocked"] = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
print(json.dumps(seen), flush=True)
sys.stdin.read()
print("ends", file=sys.stderr)
"""
# Starts a server, says so, and waits to be told to end.
OWNER = """
import os, sys
from pathlib import Path
from mgpt.execution import forks
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
        [*WORKER, context(env_vars={"TMPDIR": "/other"}), "--language=PYTHON"],
        [*WORKER, context(env_vars={"MGPT_VARIABLE": "${HOME}/x"}), "--language=PYTHON"],
        [*WORKER, context(), "--language=JAVA"],
        ["-S", *WORKER, context(), "--language=PYTHON"],
        [context(), "--language=PYTHON"],
    ],
)
def test_what_a_running_process_cannot_follow_is_left_to_ray(arguments: list[str]) -> None:
    assert launch.request(arguments) is None


def test_a_plain_worker_is_asked_for_with_its_variables() -> None:
    asked = launch.request(
        [*WORKER, context(env_vars={"MGPT_VARIABLE": "1"}, py_executable=sys.executable), "--language=PYTHON"]
    )
    assert asked is not None
    assert asked["arguments"] == WORKER
    assert asked["environment"] == {**os.environ, "MGPT_VARIABLE": "1"}


class Server:
    """A fork server and its launchers."""

    def __init__(self, folder: Path) -> None:
        (folder / "packages").mkdir()
        (folder / "worker.py").write_text(SCRIPT)
        (folder / "instead.py").write_text("import sys; print(sys.argv[1:])")
        self.folder, self.environment = (
            folder,
            {**os.environ, "PYTHONPATH": str(ROOT), launch.ADDRESS: str(folder / "forks")},
        )
        command = [sys.executable, "-c", OWNER, str(folder)]
        self.owner = subprocess.Popen(
            command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.owner.stdout is not None
        assert self.owner.stdout.readline().strip().endswith("setup_worker.py")
        self.environment[launch.INSTEAD] = str(folder / "instead.py")

    def launch(self, **variables: str) -> subprocess.Popen[str]:
        arguments = [str(self.folder / "worker.py"), "--one", context(env_vars=variables), "--language=PYTHON"]
        pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
        limited = "import os, resource, signal, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (300, resource.getrlimit(7)[1]));"
        limited += "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); open('/proc/self/oom_score_adj', 'w').write('900');"
        command = [
            sys.executable,
            "-c",
            limited + "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
            launch.__file__,
            *arguments,
        ]
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, text=True, **pipes)  # type: ignore[no-any-return,call-overload]

    @property
    def process(self) -> psutil.Process:
        """The server's."""
        (child,) = psutil.Process(self.owner.pid).children()
        return child

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
    launchers = [server.launch(MGPT_VARIABLE=str(number)) for number in range(2)]
    seen = [json.loads(first_line(launcher)) for launcher in launchers]
    assert seen[0]["parent"] == seen[1]["parent"] not in (os.getpid(), *(launcher.pid for launcher in launchers))
    assert [one["variable"] for one in seen] == ["0", "1"]
    assert {"pandas", "numpy"} <= set(seen[0]["modules"])
    assert not [name for name in seen[0]["modules"] if name.startswith("ray")]
    assert seen[0]["arguments"] == [str(server.folder / "worker.py"), "--one"]
    assert seen[0]["folder"] == str(server.folder)
    assert seen[0]["drawn"] != seen[1]["drawn"]
    assert psutil.pid_exists(seen[0]["pid"])
    assert launchers[0].communicate()[1] == "ends\n"  # its standard input ended, and so it did, and its launcher
    assert soon(lambda: not psutil.pid_exists(seen[0]["pid"]))
    assert launchers[1].poll() is None
    launchers[1].kill()
    launchers[1].communicate()
    assert soon(lambda: not psutil.pid_exists(seen[1]["pid"])), "a worker outlived its launcher"


def test_a_worker_has_the_limits_of_its_launcher(server: Server) -> None:
    seen = json.loads(
        first_line(launcher := server.launch(MGPT_VARIABLE="x" * 100_000))
    )  # more than a socket takes at once
    launcher.communicate()
    assert (seen["files"], seen["score"], seen["blocked"]) == (300, "900", [signal.SIGUSR2])
    assert len(seen["variable"]) == 100_000


def test_a_launcher_passes_on_a_request_to_end_and_ends_with_a_killed_worker(server: Server) -> None:
    asked, killed = server.launch(), server.launch()
    pids = [json.loads(first_line(launcher))["pid"] for launcher in (asked, killed)]
    asked.terminate()
    assert asked.wait(20) == 0
    assert asked.communicate()[1] == "asked to end\n"
    psutil.Process(pids[1]).kill()
    killed.communicate()
    assert soon(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_launchers_that_die_or_say_nothing_hold_up_no_other(server: Server) -> None:
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(server.environment[launch.ADDRESS])
    before = server.process.num_fds()
    for sent in (b"", b"1234", (50).to_bytes(8, "big") + b"{}"):
        with socket.socket(socket.AF_UNIX) as dying:
            dying.connect(server.environment[launch.ADDRESS])
            socket.send_fds(dying, [sent or b"\0"], [0, 1, 2])
    launcher = server.launch()
    assert json.loads(first_line(launcher))
    launcher.communicate()
    assert soon(lambda: server.process.num_fds() <= before)
    silent.close()


def test_a_killed_owner_takes_its_server_along(server: Server) -> None:
    launcher = server.launch()
    json.loads(first_line(launcher))
    process = server.process
    server.owner.kill()
    server.owner.communicate()
    assert soon(lambda: not process.is_running())
    launcher.communicate()


def test_without_a_server_ray_starts_workers_itself(server: Server) -> None:
    server.end()
    child = server.launch(MGPT_VARIABLE="x")
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
    def look() -> tuple[list[str], list[str], str]:
        score = Path("/proc/self/oom_score_adj").read_text()
        return (
            psutil.Process().parent().cmdline(),
            [name for name in sys.modules if name.partition(".")[0] in ("mgpt", "peft")],
            score,
        )

    parent, modules, score = ray.get(look.remote())
    assert int(score) > 0  # a worker goes before the rest of the machine
    assert "mgpt.execution.forks" in parent
    assert "peft" in modules
    assert not [
        name
        for name in modules
        if name.startswith("mgpt") and name not in ("mgpt", "mgpt.execution", "mgpt.execution.launch")
    ]

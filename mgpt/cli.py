"""The `mgpt` command. Each subcommand imports what it needs when it runs, so that help and the light ones stay light."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; a user's mistake ends with its message and code 2."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if not hasattr(asked, "call"):
        parser.print_help()
        return 2
    try:
        return int(asked.call(asked) or 0)
    except ValueError as error:
        print(f"mgpt {asked.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgpt", description="Train, judge, promote and use MiniGPT-4 and MiniGPT-v2. `dvc repro` runs the chain."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add(commands, "check", "judge params.yaml and the environment: every mistake at once", _check).add_argument(
        "--params", default="params.yaml"
    )
    _add(commands, "report", "the chain's scores, times and champions; writes results/summary.json", _report)
    verify = _add(commands, "verify", "compare stored files with a manifest: one altered byte is found", _verify)
    verify.add_argument("manifest", nargs="+", type=Path)
    cluster = _add(commands, "cluster", "the local Ray that stages share", _cluster)
    cluster.add_argument("action", choices=("status", "stop"))
    promote = _add(commands, "promote", "the registry's champion: --rollback brings back the one before", _promote)
    promote.add_argument("system")
    promote.add_argument("--rollback", action="store_true", required=True)
    promote.add_argument("--reason", default="", help="kept in the decision journal")
    _add(commands, "models", "every registered version with its aliases and the decision about it", _models)
    audit = _add(commands, "audit", "find what was changed past the promote stage; code 1 when something was", _audit)
    audit.add_argument("system", nargs="?", help="one registered model (all)")
    trace = _add(commands, "trace", "what a registered model was made of: code, params, data, bases, runs, decisions", _trace)
    trace.add_argument("model", nargs="?", default="models:/minigpt-v2@champion", help="models:/NAME@ALIAS or models:/NAME/NUMBER")
    chat = _add(commands, "chat", "ask a model about a picture; writes the picture with its boxes", _chat)
    chat.add_argument("--image", type=Path, required=True)
    chat.add_argument("--prompt", required=True, help="for instance: [refer] the red circle")
    chat.add_argument("--out", type=Path, help="the picture with the boxes (IMAGE-answer.png beside the image)")
    predict = _add(commands, "predict", "answer every line of a JSONL file of image and prompt", _predict)
    predict.add_argument("questions", type=Path)
    predict.add_argument("answers", type=Path)
    for command in (chat, predict):
        command.add_argument("--model", default="models:/minigpt-v2@champion", help="a registered model, or a folder of trained weights")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, call: Callable[[argparse.Namespace], object]
) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(call=call)
    return added


def _check(asked: argparse.Namespace) -> None:
    from mgpt.settings import load
    from mgpt.storage import Store

    settings = load(asked.params)
    Store(settings.storage.root).check()
    print(f"{asked.params}: no mistakes; the store {settings.storage.root} can be written")


def _report(_: argparse.Namespace) -> None:
    from mgpt.report import report

    print(report(Path.cwd()))


def _verify(asked: argparse.Namespace) -> None:
    from mgpt.storage import Manifest

    for path in asked.manifest:
        manifest = Manifest.load(path)
        manifest.verify()
        print(f"{path}: {len(manifest.entries)} files are as written")


def _cluster(asked: argparse.Namespace) -> None:
    from mgpt.cluster import connect

    if asked.action == "stop":
        print("\n".join(connect.stop(Path.cwd())) or "no local Ray of this project runs")
        return
    states = [state for shared in connect.every_local_ray(Path.cwd()) if (state := shared.read())]
    print(
        "\n".join(f"local Ray at {state['address']}, owner pid {state['pid']}" for state in states) or "no local Ray of this project runs"
    )


def _promote(asked: argparse.Namespace) -> None:
    from mgpt.registry.promotion import rollback
    from mgpt.settings import load
    from mgpt.storage import Store

    print(rollback(asked.system, Store(load().storage.root), _tracking(), asked.reason).text())


def _models(_: argparse.Namespace) -> None:
    from mgpt.registry.audit import overview

    print(overview(_tracking()))


def _audit(asked: argparse.Namespace) -> int:
    from mgpt.registry.audit import audit
    from mgpt.settings import load
    from mgpt.storage import Store

    findings = audit(Store(load().storage.root), _tracking(), asked.system)
    print("\n".join(findings) or "the registry is as the promote stage left it")
    return 1 if findings else 0


def _trace(asked: argparse.Namespace) -> None:
    from mgpt.registry.audit import trace
    from mgpt.settings import load
    from mgpt.storage import Store

    print(trace(Store(load().storage.root), _tracking(), asked.model))


def _chat(asked: argparse.Namespace) -> None:
    from mgpt.serve.chat import chat

    reply, picture = chat(asked.image, asked.prompt, _tracking(), asked.model, asked.out)
    print(reply.text)
    if picture is not None:
        print(f"boxes drawn into {picture}")


def _predict(asked: argparse.Namespace) -> None:
    from mgpt.serve.chat import predict

    print(f"{predict(asked.questions, asked.answers, _tracking(), asked.model)} answers in {asked.answers}")


def _tracking() -> str:
    from mgpt.registry.client import absolute_uri
    from mgpt.settings import load

    return absolute_uri(load().tracking.uri, Path.cwd())

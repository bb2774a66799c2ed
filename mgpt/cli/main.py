"""The `mgpt` command. Each subcommand imports what it needs when it runs, so that help and the light ones stay light."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mgpt.storage import Store
    from mgpt.storage.types import WeightsReference

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Call: TypeAlias = Callable[[argparse.Namespace], object]
Arguments: TypeAlias = Callable[[argparse.ArgumentParser], None]


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; a user's mistake ends with its message and code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = _parser(next(iter(given), ""))
    asked = parser.parse_args(given)
    if not hasattr(asked, "call"):
        parser.print_help()
        return 2
    try:
        return int(asked.call(asked) or 0)
    except ValueError as error:
        print(f"mgpt {asked.command}: {error}", file=sys.stderr)
        return 2


def _parser(asked_for: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgpt", description="Train, judge, promote and use MiniGPT-4 and MiniGPT-v2. `dvc repro` runs the chain."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add(commands, "check", "judge params.yaml and the environment: every mistake at once", _check).add_argument(
        "--params", default="params.yaml"
    )
    # Its choices come with the plan's own code: only for those who plan.
    _add(
        commands,
        "plan",
        "parameters, memory, hours and cost of every stage, before anything runs",
        _plan,
        _plan_arguments if asked_for == "plan" else None,
    )
    _add(commands, "report", "the chain's scores, times and champions; writes results/summary.json", _report)
    verify = _add(commands, "verify", "compare stored files with a manifest: one altered byte is found", _verify)
    verify.add_argument("manifest", nargs="+", type=Path)
    cluster = _add(commands, "cluster", "the local Ray that stages share", _cluster)
    cluster.add_argument("action", choices=("status", "stop"))
    _add_registry(commands)
    _add_data(commands)
    # Its choices come from the models' presets, whose import is slow: only for those who convert.
    _add(
        commands,
        "convert",
        "original files of both models into folders, and back",
        _convert,
        _convert_arguments if asked_for == "convert" else None,
    )
    chat = _add(commands, "chat", "ask a model about an image; writes the image with its boxes", _chat)
    chat.add_argument("--image", type=Path, required=True)
    chat.add_argument("--prompt", required=True, help="for instance: [refer] the red circle")
    chat.add_argument("--out", type=Path, help="the image with the boxes (IMAGE-answer.png beside the image)")
    predict = _add(commands, "predict", "answer every line of a JSONL file of image and prompt", _predict)
    predict.add_argument("questions", type=Path)
    predict.add_argument("answers", type=Path)
    for command in (chat, predict):
        command.add_argument(
            "--model", default="models:/minigpt-v2@champion", help="a registered model, or a folder of trained weights"
        )
    return parser


def _add_registry(commands: Commands) -> None:
    promote = _add(commands, "promote", "the registry's champion: --rollback brings back the one before", _promote)
    promote.add_argument("model_name")
    promote.add_argument("--rollback", action="store_true", required=True)
    promote.add_argument("--reason", default="", help="kept in the decision journal")
    _add(commands, "models", "registered versions with their aliases", _models)
    audit = _add(commands, "audit", "what was changed past the promote stage; code 1 where there is anything", _audit)
    audit.add_argument("model_name", nargs="?")
    trace = _add(commands, "trace", "what a version was made of, and every decision about it", _trace)
    trace.add_argument("model", help="for instance models:/minigpt-v2@champion")


def _add_data(commands: Commands) -> None:
    data = _add(commands, "data", "datasets that can be read; a check of your own data", _data)
    forms = data.add_subparsers(dest="form", required=True, metavar="FORM")
    forms.add_parser("sources", help="every reader, or all about one").add_argument("name", nargs="?")
    validate = forms.add_parser("validate", help="judge a folder or a JSONL file as the chain would")
    validate.add_argument("path", type=Path)
    validate.add_argument("--reader", default="jsonl")
    card = forms.add_parser(
        "card", help="the data card of curated data with a model's exact training text, token by token"
    )
    card.add_argument("model_name", help="for instance minigpt-v2")
    card.add_argument("--stage", help="whose prompt format is shown: multitask, instruct or pretrain")
    card.add_argument("--out", type=Path, help="the page (card-SYSTEM.html)")


def _add(
    commands: Commands, name: str, text: str, call: Call, arguments: Arguments | None = None
) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=text, description=text)
    added.set_defaults(call=call)
    if arguments is not None:
        arguments(added)
    return added


def _check(asked: argparse.Namespace) -> None:
    from mgpt.config import load
    from mgpt.storage import Store

    settings = load(asked.params)
    Store(settings.storage.root).check()
    print(f"{asked.params}: no mistakes; the store {settings.storage.root} can be written")


def _plan(asked: argparse.Namespace) -> None:
    from mgpt.cli import plan

    plan.run(asked)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    from mgpt.cli import plan

    plan.add_arguments(parser)


def _report(_: argparse.Namespace) -> None:
    from mgpt.pipeline.summary import report

    print(report(Path.cwd()))


def _verify(asked: argparse.Namespace) -> None:
    from mgpt.storage import Manifest

    for path in asked.manifest:
        manifest = Manifest.load(path)
        manifest.verify()
        print(f"{path}: {len(manifest.entries)} files are as written")


def _cluster(asked: argparse.Namespace) -> None:
    from mgpt.execution import session

    if asked.action == "stop":
        print("\n".join(session.stop(Path.cwd())) or "no local Ray of this project runs")
        return
    states = [state for shared in session.every_local_ray(Path.cwd()) if (state := shared.read())]
    print(
        "\n".join(f"local Ray at {state['address']}, owner pid {state['pid']}" for state in states)
        or "no local Ray of this project runs"
    )


def _promote(asked: argparse.Namespace) -> None:
    from mgpt.registry.promotion import rollback

    print(rollback(asked.model_name, _store(), _tracking(), asked.reason).text())


def _models(_: argparse.Namespace) -> None:
    from mgpt.registry.audit import overview

    print(overview(_tracking()))


def _audit(asked: argparse.Namespace) -> int:
    from mgpt.registry.audit import audit

    found = audit(_store(), _tracking(), asked.model_name)
    print("\n".join(found) or "the registry is as the promote stage left it")
    return 1 if found else 0


def _trace(asked: argparse.Namespace) -> None:
    from mgpt.registry.audit import lineage

    print(lineage(_store(), _tracking(), asked.model))


def _data(asked: argparse.Namespace) -> None:
    if asked.form == "sources":
        from mgpt.cli.datasets import sources_text

        print(sources_text(asked.name))
    elif asked.form == "card":
        from mgpt.reporting.training_card import training_card

        print(
            training_card(Path.cwd(), asked.model_name, asked.out or Path(f"card-{asked.model_name}.html"), asked.stage)
        )
    else:
        from mgpt.pipeline.validate import validate

        print(validate(asked.path, asked.reader).text())


def _convert(asked: argparse.Namespace) -> None:
    from mgpt.cli import convert

    convert.run(asked)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    from mgpt.cli import convert

    convert.add_arguments(parser)


def _chat(asked: argparse.Namespace) -> None:
    from mgpt.serving.chat import chat

    reply, image = chat(asked.image, asked.prompt, _weights(asked.model), _store(), asked.out)
    print(reply.text)
    if image is not None:
        print(f"boxes drawn into {image}")


def _predict(asked: argparse.Namespace) -> None:
    from mgpt.serving.chat import predict

    count = predict(asked.questions, asked.answers, _weights(asked.model), _store())
    print(f"{count} answers in {asked.answers}")


def _weights(model: str) -> WeightsReference | Path:
    """A registered model's weights by reference, or the folder that `model` names."""
    from mgpt.registry.versions import PREFIX, find

    return find(_tracking(), model).weights if model.startswith(PREFIX) else Path(model)


def _tracking() -> str:
    from mgpt.config import load
    from mgpt.tracking.client import absolute_uri

    return absolute_uri(load().tracking.uri, Path.cwd())


def _store() -> Store:
    from mgpt.config import load
    from mgpt.storage import Store

    return Store(load().storage.root)

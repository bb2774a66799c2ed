"""`python -m flows STAGE [MODEL] [--dry]`: the command of every stage in dvc.yaml."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys

STAGES = ("download", "curate", "pretrain", "describe", "multitask", "instruct", "evaluate", "promote")


def main() -> int:
    """Runs one stage and returns the exit code. An error that a user can cause ends with its message and code 2."""
    parser = argparse.ArgumentParser(prog="python -m flows", description="Run one stage of the pipeline.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "model_name", nargs="?", metavar="MODEL", help="for stages that run once per model: minigpt4 or minigpt-v2"
    )
    parser.add_argument(
        "--dry", action="store_true", help="print only the fingerprint and whether the work is finished, running or due"
    )
    options = parser.parse_args()
    # Imports leave no garbage, but collecting it took a fifth of their time, and a second or two at exit.
    gc.set_threshold(100_000, 50, 50)
    try:
        importlib.import_module(f"flows.{options.stage}").main(options.model_name, dry=options.dry)
    except ValueError as error:
        print(f"{options.stage}: {error}", file=sys.stderr)
        return 2
    finally:
        gc.freeze()
    return 0


if __name__ == "__main__":
    sys.exit(main())

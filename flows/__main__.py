"""`python -m flows STAGE [SYSTEM] [--dry]`: what dvc.yaml calls."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys

STAGES = ("download", "curate", "pretrain", "describe", "multitask", "instruct", "evaluate", "promote")


def main() -> int:
    """Runs one stage; a user's mistake ends with its message and code 2."""
    parser = argparse.ArgumentParser(prog="python -m flows", description="Runs one stage of the pipeline.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("model_name", nargs="?", help="where the stage runs once a model: minigpt4 or minigpt-v2")
    parser.add_argument(
        "--dry", action="store_true", help="only say what would happen: fingerprint and state, or job id and state"
    )
    asked = parser.parse_args()
    # Looking for garbage, of which they leave none, took a fifth of the imports' time, and a second or two at the end.
    gc.set_threshold(100_000, 50, 50)
    try:
        importlib.import_module(f"flows.{asked.stage}").main(asked.model_name, dry=asked.dry)
    except ValueError as error:
        print(f"{asked.stage}: {error}", file=sys.stderr)
        return 2
    finally:
        gc.freeze()
    return 0


if __name__ == "__main__":
    sys.exit(main())

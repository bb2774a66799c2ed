"""Train the toy backbones (`--output DIR`), or check the files shipped in mgpt/models/shapes (`--check`)."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "mgpt" / "models" / "shapes"
CHECKSUM_FILE = "SHA256SUMS"


def instruction_sentences() -> tuple[str, ...]:
    """Returns the instructions of all shipped tasks, which the language model learns to repeat, without images."""
    from mgpt.data.tasks import load_tasks

    found = {
        text.replace("{}", "the red circle")
        for task in load_tasks().values()
        for text in task.instructions
        if text != "{}"
    }
    return tuple(sorted(found))


def train(output: Path, vision_steps: tuple[int, ...], qformer_steps: int) -> None:
    """Trains the three backbones and saves them as Hugging Face folders with fp16 weights."""
    from tools.toy_backbones.language import train_language_model
    from tools.toy_backbones.qformer import train_qformer
    from tools.toy_backbones.vision import train_tower

    tower, _ = train_tower(vision_steps)
    qformer, queries, _ = train_qformer(tower, qformer_steps)
    language_model, _, tokenizer = train_language_model(instruction_sentences())
    write(output, tower, qformer, queries, language_model, tokenizer)


def write(
    output: Path, tower: object, qformer: object, queries: object, language_model: object, tokenizer: bytes
) -> None:
    """Saves the folders and their checksums."""
    import tempfile

    import torch

    from mgpt.models.backbones import save_backbone
    from mgpt.models.tokenizer import build_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tokenizer.model").write_bytes(tokenizer)
        exact = build_tokenizer(scratch)
    save_backbone(output / "vision", tower, dtype=torch.float16)  # type: ignore[arg-type]
    save_backbone(output / "qformer", qformer, query_tokens=queries, dtype=torch.float16)  # type: ignore[arg-type]
    save_backbone(output / "language", language_model, tokenizer=exact, dtype=torch.float16)  # type: ignore[arg-type]
    lines = [f"{digest}  {name}\n" for name, digest in file_checksums(output).items()]
    (output / CHECKSUM_FILE).write_text("".join(lines))


def file_checksums(folder: Path) -> dict[str, str]:
    """Returns relative name -> sha256 of every file below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUM_FILE)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def recorded_checksums(folder: Path) -> dict[str, str]:
    """Returns relative name -> sha256 as recorded in the folder's SHA256SUMS."""
    lines = (folder / CHECKSUM_FILE).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def check(folder: Path) -> None:
    """Compares the files of a folder with its SHA256SUMS.

    Raises:
        ValueError: files are missing, altered or not recorded; the message lists them.
    """
    found, expected = file_checksums(folder), recorded_checksums(folder)
    wrong = [
        f"{name}: {'missing' if name not in found else 'not recorded' if name not in expected else 'altered'}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{folder}: files differ from {CHECKSUM_FILE}: {'; '.join(wrong)}. Restore them with git checkout {folder}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.toy_backbones", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare the shipped files with their checksums and stop")
    parser.add_argument("--output", type=Path, help="write newly trained backbones here")
    parser.add_argument(
        "--vision-steps", type=int, nargs="+", default=[3500, 3000], help="steps of each warm-up-and-decay cycle"
    )
    parser.add_argument("--qformer-steps", type=int, default=1500)
    arguments = parser.parse_args()
    if arguments.check:
        check(SHIPPED)
        print(f"{len(recorded_checksums(SHIPPED))} files match {CHECKSUM_FILE}")
    elif arguments.output:
        train(arguments.output, tuple(arguments.vision_steps), arguments.qformer_steps)
    else:
        parser.error("give --check or --output DIR")


if __name__ == "__main__":
    main()

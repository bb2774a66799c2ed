"""Train the shipped backbones again, or check the files that ship: `python -m tools.toy_backbones --output DIR` / `--check`."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "mgpt" / "models" / "shapes"
CHECKSUM_FILE = "SHA256SUMS"


def instruction_sentences() -> tuple[str, ...]:
    """The wording of every shipped task's instructions: the language model repeats them as plain sentences, without images."""
    from mgpt.data.tasks import load_tasks

    found = {
        text.replace("{}", "the red circle")
        for task in load_tasks().values()
        for text in task.instructions
        if text != "{}"
    }
    return tuple(sorted(found))


def train(output: Path, vision_steps: tuple[int, ...], qformer_steps: int) -> None:
    """The three backbones, one after the other, as Hugging Face folders of fp16 weights."""
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
    """Save the folders and their checksums."""
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
    (output / CHECKSUM_FILE).write_text(
        "".join(f"{digest}  {name}\n" for name, digest in file_checksums(output).items())
    )


def file_checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUM_FILE)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def recorded_checksums(folder: Path) -> dict[str, str]:
    """The checksums that the folder's SHA256SUMS pins."""
    return {
        name: digest
        for digest, name in (line.split("  ", 1) for line in (folder / CHECKSUM_FILE).read_text().splitlines())
    }


def check(folder: Path) -> None:
    """Raises ValueError naming every file that is missing, altered or not recorded."""
    found, expected = file_checksums(folder), recorded_checksums(folder)
    wrong = [
        f"{name}: {'missing' if name not in found else 'not recorded_checksums' if name not in expected else 'altered'}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ValueError(
            f"{folder}: the backbones are not the ones that {CHECKSUM_FILE} pins: {'; '.join(wrong)}. Restore them from the repository."
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
        print(f"{len(recorded_checksums(SHIPPED))} files as pinned")
    elif arguments.output:
        train(arguments.output, tuple(arguments.vision_steps), arguments.qformer_steps)
    else:
        parser.error("say --check or --output DIR")


if __name__ == "__main__":
    main()

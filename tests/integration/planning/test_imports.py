"""`mgpt plan` must work on a laptop without torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_planning_imports_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'ray'} & set(sys.modules)"
    script = f"import sys; from mgpt.cli.main import main; main(['plan', '--recipe', 'a100']); sys.exit(len({heavy}))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False).returncode == 0

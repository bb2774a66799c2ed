"""The `mgpt` command as `python -m mgpt`."""

import sys

from mgpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

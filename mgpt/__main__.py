"""`python -m mgpt` is the `mgpt` command."""

import sys

from mgpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

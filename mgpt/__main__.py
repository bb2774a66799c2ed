"""`python -m mgpt` is the `mgpt` command."""

from mgpt.cli import main

if __name__ == "__main__":
    main()

"""Runs the command line: python -m kqgen."""

from kqgen.cli import main

if __name__ == "__main__":
    main()

"""Runs the command line: python -m kqgen, and the `kqgen` command."""

import os


def main() -> None:
    """The command line, with torch's worker threads told to sleep when they have nothing to do.

    By default they spin, which on two cores beside other work costs several times the time it saves. The setting must stand
    before torch is first imported, so the import waits for it; a setting of the user's own is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from kqgen import cli  # noqa: PLC0415 - see above

    cli.main()


if __name__ == "__main__":
    main()

"""The errors kqgen raises on purpose, and the exit status each one gives the command line.

    KqgenError
    ├── InputError         2  the user's file, array, option or board file is wrong
    │   └── UnsupportedError  2  the model holds something kqgen cannot compile
    ├── MismatchError      1  two targets that must agree do not
    ├── CapacityError      3  the network does not fit the board
    ├── ToolchainError     4  a compiler or emulator is missing or failed
    └── InternalError      70 our own invariant is broken: a bug in kqgen

Every message says where (layer, file or key), what was wanted, what was found, and what to do.
"""

from __future__ import annotations


class KqgenError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: one line that names the layer, file or option and the failure.
        found: what was there, with numbers.
        wanted: what would have been accepted.
        do: the way out.
    """

    exit_status = 70

    def __init__(self, what: str, *, found: str = "", wanted: str = "", do: str = "") -> None:
        self.what, self.found, self.wanted, self.do = what, found, wanted, do
        super().__init__(self.render())

    def render(self) -> str:
        """The message as the user reads it: one headline, then `found`, `wanted`, `do`; further lines of a text stand under its first."""
        rows = (("found", self.found), ("wanted", self.wanted), ("do", self.do))
        under = "\n" + " " * 11
        return "\n".join([self.what, *(f"  {label:<8} {text.replace(chr(10), under)}" for label, text in rows if text)])


class InputError(KqgenError):
    """A file, array, option or board description the user gave is wrong."""

    exit_status = 2


class UnsupportedError(InputError):
    """The model holds an operator, shape or value that kqgen does not compile."""


class MismatchError(KqgenError):
    """Two targets that must agree in every byte do not."""

    exit_status = 1


class CapacityError(KqgenError):
    """The network needs more flash or RAM than the board has."""

    exit_status = 3


class ToolchainError(KqgenError):
    """A compiler, linker or emulator is missing, or ran and failed; its stderr is kept in the message."""

    exit_status = 4


class InternalError(KqgenError):
    """An invariant of kqgen itself does not hold; please report it."""

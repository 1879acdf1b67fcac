"""Errors with their exit codes, and the nearest name to an unknown one."""

import errno
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 3
EXIT_RETRY = 75
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143  # as in shells: 128 + the signal's number
# Exit codes of a stop: saved, or before there was anything to save.
STOPS = (EXIT_STOPPED, EXIT_INTERRUPTED, EXIT_TERMINATED)


class TataraError(Exception):
    """A failure with a sentence for the person who reads it and an exit code for the shell."""

    exit_code = EXIT_FAILED


class UserError(TataraError):
    """Something the user can fix: "expected X, found Y; do Z"; printed without a traceback."""

    exit_code = EXIT_USER


class Stopped(TataraError):
    """Stopped on request; `code` is 3 where something is saved, else 130 or 143."""

    exit_code = EXIT_STOPPED

    def __init__(self, text: str, code: int = EXIT_STOPPED) -> None:
        super().__init__(text)
        self.exit_code = code


def file_problem(error: OSError) -> TataraError | None:
    """What a person can do about a file that cannot be read or written; None for another error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "standard output, or a file"
        return TataraError(f"{where}: no room is left there; free some, and run it again")
    if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            f"{error.filename}: {error.strerror}; give yourself the right to read and write there, "
            "or name another folder"
        )
    return None


class Retry(TataraError):
    """Worth retrying: network, NCCL, a lost peer."""

    exit_code = EXIT_RETRY


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Suggest the nearest known names by letters or initials, or else list all."""
    import difflib  # loaded only when a name is misspelt

    names = sorted(known)
    word = str(name)
    close = [item for item in names if "".join(part[:1] for part in item.split("_")) == word]
    close = close or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(names)}"

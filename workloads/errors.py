"""What can go wrong, and the exit code that says so."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 3
EXIT_RETRY = 75


class TataraError(Exception):
    """A failure with a sentence for the person who reads it and an exit code for the shell."""

    exit_code = EXIT_FAILED


class UserError(TataraError):
    """Something the user can mend: "expected X, found Y; do Z"; printed without a traceback."""

    exit_code = EXIT_USER


class Stopped(TataraError):
    """The run was asked to stop and has ended in order."""

    exit_code = EXIT_STOPPED


class Retry(TataraError):
    """Worth another try: network, NCCL, a lost peer."""

    exit_code = EXIT_RETRY

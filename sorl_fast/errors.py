"""The errors that a user can cause or must act on, each with its exit code of the command line."""


class BadInput(ValueError):
    """Something the user gave is wrong. The message names the value, the bound and the remedy."""

    exit_code = 2


class Diverged(ArithmeticError):
    """Training met a non-finite loss. The message names the culprit and the checkpoint kept."""

    exit_code = 3


class Stopped(Exception):
    """SIGTERM arrived and everything was saved. The message says how to go on."""

    exit_code = 75

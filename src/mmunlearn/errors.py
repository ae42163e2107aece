"""The errors a user can cause, and the "did you mean" helper.

Every message says what is wrong, where, why it matters and what to do. The command line prints them without a traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the person at the keyboard can mend; shown as one message."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or clashes with another one."""


class DataError(UserError):
    """A file or a row of the data is missing, damaged or contradicts the others."""


class NoQuestionsError(DataError):
    """The data are sound but hold no question of the wanted kind; a caller may know a better remedy."""


class RunError(UserError):
    """A run cannot start, go on or be saved: folder in use, disk full, loss not finite."""


class StoppedError(UserError):
    """The process was told to stop (SIGTERM), has saved its state and ends."""

    exit_code = 143
    """What a shell reports of a process that SIGTERM has ended."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that points from a misspelt word to the nearest known ones, or lists all of them.

    Args:
        word: what the user wrote.
        known: the words that would have been accepted.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    return f"Known: {', '.join(known)}."

"""What the user can mend: said in one sentence, never as a traceback."""

from __future__ import annotations

import logging

log = logging.getLogger(__package__)


class BadInput(ValueError):
    """Input that cannot be used; the message says what is wrong, where, and what to do about it.

    It is one line, also where a file's name has several.
    """

    def __init__(self, said: str):
        super().__init__(" ".join(said.splitlines()))


def in_a_sentence(error: Exception, where) -> str:
    """A failure that nobody expected, of one session among many: the others go on. The traceback is logged (debug)."""
    log.debug("%s", where, exc_info=error)
    reason = " ".join(str(error).split())[:200]
    return f"{where}: failed unexpectedly ({type(error).__name__}: {reason}): leave it out, and report this as a bug"

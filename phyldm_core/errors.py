"""What the user can mend: said in one sentence, never as a traceback."""

from __future__ import annotations


class BadInput(ValueError):
    """Input that cannot be used; the message says what is wrong, where, and what to do about it."""

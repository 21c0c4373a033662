"""What a user can mend is said in one sentence on the command line; a bug keeps its traceback."""

from __future__ import annotations

import errno
import sys

import typer
from typer.core import TyperGroup

from .errors import BadInput

ADVICE = {
    errno.ENOSPC: "make room and run again, finished work is reused",
    errno.EACCES: "choose a folder you may write in",
    errno.EROFS: "choose a folder you may write in",
}


class OneSentence(TyperGroup):
    """Says what the user can mend in one sentence and exits 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx):
        for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8, or ° where there is only ASCII
            stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("phyldm: stopped; run the same command again to go on from what is finished", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output left; typer ends quietly
                raise
            said = f"{error.filename or 'a file'}: {error.strerror}" if error.strerror else str(error)
            advice = f" ({ADVICE[error.errno]})" if error.errno in ADVICE else ""
            typer.echo(f"phyldm: {said}{advice}", err=True)
            raise typer.Exit(1) from None
        except BadInput as error:
            typer.echo(f"phyldm: {error}", err=True)
            raise typer.Exit(1) from None

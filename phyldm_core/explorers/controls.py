"""What every explorer is made of: a status line, controls that code can set, a mouse on a picture, long work.

No ``tooltip`` on a ``widgets.Image``, which has no description: the browser shows an error in its place. Neither
``widgets.Output`` nor ``interact``: papermill waits for ever on them (nbclient #312), and a
``widgets.Image`` fed with PNG bytes repaints twenty times faster. Every callback is an ordinary method, so all
of it runs, and is tested, without a browser.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from html import escape

import ipywidgets as widgets
from ipyevents import Event

from ..machine.errors import BadInput

CLICK = 0.01  # of the picture's size: a hand that moved less has clicked, not dragged
DRAG_EVERY = 60  # ms between two positions of a dragging mouse

STYLE_SHEET = """<style onload="this.closest('.phyldm')?.addEventListener('keydown', key => key.stopPropagation())">
.phyldm { --letters: max(15px, 1.6vh); }
.phyldm .widget-label, .phyldm .widget-readout, .phyldm select, .phyldm input, .phyldm button,
.phyldm label, .phyldm label span, .phyldm table { font-size: var(--letters) !important; }
.phyldm .widget-image { cursor: crosshair; max-width: none; }
.phyldm table.numbers { line-height: 1.2; border-spacing: 0; margin: 0; }
.phyldm table.numbers td, .phyldm table.numbers th { padding: 3px 11px 3px 0; text-align: left; white-space: nowrap; }
.phyldm p, .phyldm li { font-size: max(14px, 1.5vh); line-height: 1.4; margin: 0 0 4px; }
.phyldm .widget-toggle-buttons { display: flex; align-items: center; }
.phyldm .widget-toggle-buttons > .widget-label { flex: none; text-align: right; margin-right: 8px; }
.phyldm .widget-toggle-buttons .widget-toggle-button { padding: 0; }
.phyldm :focus-visible { outline: 2px solid #0173b2; }
</style>"""
"""Letters that are read from the last row, a visible focus, and keys for the controls alone: JupyterLab would go to the
next cell at an arrow key on a list, and delete the cell at two letters d."""


def letters(n: float) -> str:
    """A width that grows with the letters, n times their height."""
    return f"calc({n:g} * var(--letters))"


class Explorer(widgets.VBox):
    """Controls that code can set without being called back, and a line that says in one sentence what is.

    A hand and a finished computation are two threads. What both of them set or paint is set and painted
    :func:`in_turn`; and each is silenced for itself, or a hand would not be heard while the other sets controls.
    """

    _turn = threading.RLock()  # of all explorers: matplotlib's caches are not made for two threads either
    _silenced = threading.local()

    def __init__(self, children=()):
        self.style_sheet = widgets.HTML(STYLE_SHEET, layout=widgets.Layout(display="none"))
        super().__init__([self.style_sheet, *children])
        self.add_class("phyldm")

    @property
    def _listening(self) -> bool:
        return getattr(self._silenced, "depth", 0) == 0

    @contextmanager
    def _silence(self):
        """Controls set from code do not call back in this thread, whose turn it is."""
        with self._turn:
            self._silenced.depth = getattr(self._silenced, "depth", 0) + 1
            try:
                yield
            finally:
                self._silenced.depth -= 1

    def _say(self, text: str, wrong: bool = False):
        look = f"font-size: max(17px, 1.8vh); color: {'#b03000' if wrong else 'inherit'}"
        self.status.value = f'<span role="status" style="{look}">{escape(text)}</span>'


def in_turn(method):
    """A method of an explorer that runs in one thread at a time."""

    @wraps(method)
    def one_at_a_time(self, *args, **kwargs):
        with self._turn:
            return method(self, *args, **kwargs)

    return one_at_a_time


def each_of(widget: widgets.DOMWidget) -> Iterator[widgets.Widget]:
    """A widget, its layout, and the same of all within it."""
    yield widget
    yield widget.layout
    for child in getattr(widget, "children", ()):
        yield from each_of(child)


def to_html(rows: list[tuple[str, ...]]) -> str:
    """An HTML table, first row and column as heads; the last cell of a short row takes the rest of the width."""
    columns, lines = max(map(len, rows)), []
    for i, row in enumerate(rows):
        cells = []
        for k, text in enumerate(row):
            tag = "th" if i == 0 or k == 0 else "td"
            span = f' colspan="{columns - k + 1}"' if k == len(row) - 1 else ""
            cells.append(f"<{tag}{span}>{escape(text)}</{tag}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="numbers">{"".join(lines)}</table>'


class Stopped(Exception):
    """Raised inside a computation that nobody waits for any more."""


class Task(widgets.HBox):
    """A long computation in a thread, with its progress bar and a button that stops it; hidden while nothing runs.

    A kernel that computes in a callback hears neither button nor slider.

    Parameters
    ----------
    say
        Called as ``say(text, wrong)`` with the sentences for the status line.
    """

    def __init__(self, say: Callable[[str, bool], None]):
        self.say, self._what = say, ""
        self._thread, self._ended = None, threading.Event()  # the event: nobody waits for this thread any more
        self.bar = widgets.FloatProgress(0, min=0, max=1, layout=widgets.Layout(width="200px"))
        self.stop = widgets.Button(description="Stop", layout=widgets.Layout(width="100px"))
        self.stop.on_click(lambda button: self._stop())
        super().__init__([self.bar, self.stop], layout=widgets.Layout(display="none"))

    def start(
        self,
        what: str,
        work: Callable[[Callable[[float], None]], object],
        then: Callable[[object], None] = lambda result: None,
        instead: bool = False,
    ):
        """Run ``work(progress)`` and hand its result to ``then``.

        Parameters
        ----------
        what
            Said while it runs: "Drawing a brain".
        work
            Calls ``progress(share)`` between its steps, 0 to 1; that is where it ends, by :class:`Stopped`, once it was
            stopped or replaced. What it raises of :class:`BadInput` and :class:`ProtocolError` becomes the status line.
        instead
            End what runs, silently; else a second task is refused while one runs.
        """
        running = self._thread is not None and self._thread.is_alive() and not self._ended.is_set()
        if running and not instead:
            self.say("Something is being computed already: wait for it, or stop it first.", True)
            return
        self._ended.set()
        self._what, self._ended = what, threading.Event()
        self.bar.value, self.layout.display = 0, ""
        self.say(f"{what} …", False)
        run = (self._thread, self._ended, what, work, then)
        self._thread = threading.Thread(target=self._run, args=run, daemon=True)
        self._thread.start()

    def wait(self):
        """Until nothing runs: for code, which has no eyes for a bar."""
        while (thread := self._thread) is not None and thread.is_alive():
            thread.join()

    def _stop(self):
        self._ended.set()
        self.say(f"{self._what}: stopped. What was shown before stays.", True)

    def _run(self, before, ended, what, work, then):
        def progress(share: float):
            if ended.is_set():
                raise Stopped
            self.bar.value = share

        wrong = ""
        try:
            if before is not None:
                before.join()
            progress(0)
            result = work(progress)
            progress(1)
            then(result)
        except Stopped:
            pass  # whoever ended it has said so, or has begun another
        except BadInput as error:
            wrong = str(error)
        except Exception as error:
            wrong = f"{what} failed ({type(error).__name__}: {error}): what was shown before stays."
            raise
        finally:
            if ended is self._ended:  # nothing has begun in its place
                self.layout.display = "none"
            if wrong and not ended.is_set():
                self.say(wrong, True)


LISTENS_AFTER = 3.0  # s, a page that a busy machine loads


class Slow(Explorer):
    """An explorer whose pictures take a while: every change of its controls ends what is computed and starts anew."""

    _size = {"layout": widgets.Layout(width=letters(28)), "style": {"description_width": letters(8)}}

    def __init__(self):
        self.task, self.status = Task(self._say), widgets.HTML()
        self.waiting = widgets.Box([self.task], layout=widgets.Layout(height=letters(2.5)))  # nothing moves as it comes
        super().__init__([self.status, self._arrange()])
        self.recompute()
        threading.Thread(target=self._tell_again, daemon=True).start()

    def _tell_again(self) -> None:
        """Voilà's page asks for all that is, and listens a moment later: what ends in between it would never hear."""
        self.task.wait()
        time.sleep(LISTENS_AFTER)
        for widget in each_of(self):
            widget.send_state()

    def recompute(self, change=None) -> None:
        """Start over with the controls as they are; what is shown stays until the new is there."""
        if self._listening:
            self.task.start("Computing", self._compute, instead=True)

    @in_turn
    def _repaint(self) -> None:
        self._paint()

    def _arrange(self) -> widgets.Widget:
        raise NotImplementedError

    def _compute(self, progress: Callable[[float], None]) -> None:
        raise NotImplementedError

    def _paint(self) -> None:
        raise NotImplementedError


class Mouse:
    """Clicks and drags on a picture.

    Parameters
    ----------
    picture
        The widget to watch. Its whole area must show the picture.
    on_click
        Called as ``on_click(y, x)``, fractions of the picture's height and width from its top left.
    on_drag
        Called as ``on_drag(dy, dx)`` while the button is held, fractions moved since it was pressed.
    on_press
        Called when a drag may begin.
    """

    def __init__(self, picture: widgets.DOMWidget, on_click, on_drag, on_press=lambda: None):
        self.on_click, self.on_drag, self.on_press, self._from = on_click, on_drag, on_press, None
        self._dragged = False
        buttons = ["mousedown", "mouseup", "mouseleave"]
        self.buttons = Event(source=picture, watched_events=buttons, prevent_default_action=True)
        self.moves = Event(source=picture, watched_events=[], wait=DRAG_EVERY)  # none until the button is down
        self.buttons.on_dom_event(self.hear)
        self.moves.on_dom_event(self.hear)

    def hear(self, event: dict):
        """One event as the browser reports it: ``type``, ``relativeY``, ``boundingRectHeight`` and so on."""
        here = (event["relativeY"] / event["boundingRectHeight"], event["relativeX"] / event["boundingRectWidth"])
        if event["type"] == "mousedown":
            self._from, self._dragged = here, False
            self.moves.watched_events = ["mousemove"]
            self.on_press()
        elif self._from is not None:
            moved = here[0] - self._from[0], here[1] - self._from[1]
            if self._dragged or max(map(abs, moved)) > CLICK:
                self._dragged = True
                self.on_drag(*moved)
            elif event["type"] == "mouseup":
                self.on_click(*here)
            if event["type"] != "mousemove":
                self._from, self.moves.watched_events = None, []

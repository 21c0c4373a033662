"""What explorers are made of: long work that can be stopped, and a mouse."""

from __future__ import annotations

import threading

import ipywidgets
import pytest

from phyldm_core.explorers.controls import Explorer, Mouse, Stopped, Task
from phyldm_core.machine.errors import BadInput


@pytest.fixture
def said():
    return []


@pytest.fixture
def task(said):
    return Task(lambda text, wrong: said.append((text, wrong)))


def test_a_task_shows_its_progress_and_hands_on_its_result(task, said):
    seen, results = [], []

    def work(progress):
        for share in (0.25, 1.0):
            progress(share)
            seen.append((task.bar.value, task.layout.display))
        return "brain"

    task.start("Drawing", work, results.append)
    task.wait()
    assert seen == [(0.25, ""), (1.0, "")]
    assert results == ["brain"]
    assert task.layout.display == "none"
    assert said == [("Drawing …", False)]


def test_the_button_stops_it_and_the_result_is_not_shown(task, said):
    reached, pressed, results = threading.Event(), threading.Event(), []

    def work(progress):
        reached.set()
        pressed.wait(10)
        progress(0.5)
        return "brain"

    task.start("Drawing", work, results.append)
    reached.wait(10)
    task.stop.click()
    pressed.set()
    task.wait()
    assert not results
    assert said[-1] == ("Drawing: stopped. What was shown before stays.", True)
    task.start("Drawing", lambda progress: progress(1.0) or "brain", results.append)  # and can begin again
    task.wait()
    assert results == ["brain"]


def test_a_second_task_is_refused_while_one_runs(task, said):
    go = threading.Event()
    task.start("Drawing", lambda progress: go.wait(10), lambda result: None)
    task.start("Reading", lambda progress: None, lambda result: None)
    go.set()
    task.wait()
    assert said[-1] == ("Something is being computed already: wait for it, or stop it first.", True)


def test_what_replaces_a_task_ends_it_without_a_word(task, said):
    started, go, results = threading.Event(), threading.Event(), []

    def work(progress):
        started.set()
        go.wait(10)
        progress(0.5)

    task.start("Drawing", work, results.append)
    started.wait(10)
    task.start("Reading", lambda progress: "maps", results.append, instead=True)
    go.set()
    task.wait()
    assert results == ["maps"] and said == [("Drawing …", False), ("Reading …", False)]
    assert task.layout.display == "none"


def test_a_task_that_was_stopped_makes_room_at_once(task):
    started, go, results = threading.Event(), threading.Event(), []
    task.start("Drawing", lambda progress: started.set() or go.wait(10), results.append)
    started.wait(10)
    task.stop.click()
    task.start("Reading", lambda progress: "maps", results.append)
    go.set()
    task.wait()
    assert results == ["maps"]


def test_bad_input_becomes_one_sentence(task, said):
    def work(progress):
        raise BadInput("maps: no such folder")

    task.start("Reading", work, lambda result: None)
    task.wait()
    assert said[-1] == ("maps: no such folder", True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_is_told_too_and_keeps_its_traceback(task, said):
    task.start("Drawing", lambda progress: 1 / 0, lambda result: None)
    task.wait()
    assert "Drawing failed (ZeroDivisionError" in said[-1][0]


def test_progress_of_nothing_stopped_raises_nothing(task):
    raised = []

    def work(progress):
        progress(0.5)
        task.stop.click()
        with pytest.raises(Stopped) as caught:
            progress(0.6)
        raised.append(caught.type)

    task.start("Drawing", work, lambda result: None)
    task.wait()
    assert raised == [Stopped]


def test_a_mouse_that_leaves_the_picture_lets_go():
    heard = []
    mouse = Mouse(ipywidgets.Image(), lambda *at: heard.append(("click", *at)), lambda *by: heard.append(("drag", *by)))

    def event(kind, y, x):
        at = {"relativeY": y, "relativeX": x, "boundingRectHeight": 100, "boundingRectWidth": 100}
        mouse.hear({"type": kind} | at)

    event("mouseup", 1, 1)  # pressed elsewhere
    event("mousedown", 10, 10)
    event("mouseleave", 10, 100)
    event("mousemove", 50, 50)
    assert heard == [("drag", 0, 0.9)]
    event("mousedown", 20, 30)
    event("mousemove", 20.4, 30)  # a hand trembles
    event("mouseup", 20, 30)
    assert heard[1:] == [("click", 0.2, 0.3)]


class Counted(Explorer):
    """A slider whose moves by a hand are counted."""

    def __init__(self):
        self.slider, self.heard = ipywidgets.IntSlider(0, max=100), []
        self.slider.observe(lambda change: self._listening and self.heard.append(change.new), "value")
        super().__init__([self.slider])


def test_a_hand_is_heard_while_a_computation_sets_controls():
    explorer, silent, moved = Counted(), threading.Event(), threading.Event()

    def compute():
        with explorer._silence():
            explorer.slider.value = 5
            silent.set()
            assert moved.wait(10)

    thread = threading.Thread(target=compute)
    thread.start()
    assert silent.wait(10)
    explorer.slider.value = 7
    moved.set()
    thread.join()
    assert explorer.heard == [7]


def test_two_threads_that_silence_in_turn_leave_the_explorer_listening():
    explorer, inside = Counted(), threading.Event()

    def compute():
        with explorer._silence():
            inside.set()

    thread = threading.Thread(target=compute)
    with explorer._silence():
        thread.start()
        assert not inside.wait(0.2)  # nobody sets half of what this one sets
    thread.join()
    explorer.slider.value = 3
    assert inside.is_set() and explorer.heard == [3]


def test_silence_can_be_nested():
    explorer = Explorer()
    with explorer._silence():
        with explorer._silence():
            pass
        assert not explorer._listening
    assert explorer._listening

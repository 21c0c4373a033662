"""The latent explorer, driven as a hand would drive it, without a browser."""

from __future__ import annotations

import io
import re
import shutil
import threading
import time
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
import torch
from conftest import all_widgets
from PIL import Image

from phyldm_core.explorers import controls
from phyldm_core.explorers.latents import (
    STAGES,
    STOPS,
    WAYS,
    ExpertSwitchboard,
    LatentExplorer,
    NoiseExplorer,
    on_the_sphere,
    straight,
)
from phyldm_core.inference import infer
from phyldm_core.physics import TissueMaps
from phyldm_core.running.run import open_run

PATIENCE = 20  # s; only a test that fails waits so long


def told(explorer) -> str:
    return re.sub("<style>.*</style>|<[^>]*>", "", getattr(explorer, "status", explorer).value)


def settled(explorer):
    explorer.task.wait()
    return explorer


class FakePipeline:
    """Instant brains whose T1 tells their noise; ``gate`` holds each denoising step until it is let go."""

    conditional = True

    def __init__(self, gate: threading.Event | None = None):
        self.config = SimpleNamespace(latent_mean=[0.0, 0.0], latent_size=[4, 3], voxel_mm=6.0)
        self.gate, self.steps_done, self.first_step = gate, 0, threading.Event()

    def denoise(self, noise, n, height, csf_share, on_step):
        x = noise
        for i in range(n):
            self.first_step.set()
            if self.gate is not None:
                assert self.gate.wait(PATIENCE)
            x = 0.9 * x + 0.01 * (height + csf_share)
            self.steps_done += 1
            on_step(i, x)
        return x

    def decode(self, x):
        t1 = x.abs().mean(1).repeat_interleave(4, 1).repeat_interleave(4, 2)
        return TissueMaps(torch.full_like(t1, 0.8), t1, 0.1 * t1)


@pytest.fixture
def noise():
    return settled(NoiseExplorer(FakePipeline(), steps=20))


# --- between two noises -----------------------------------------------------------------------------------------


def test_on_the_sphere_noise_keeps_its_length_and_straight_it_does_not():
    a, b = (torch.randn(1, 24, 7, 5, generator=torch.Generator().manual_seed(k)) for k in (7, 8))
    weights = torch.linspace(0, 1, 9)
    length = {walk: walk(a, b, weights).flatten(1).norm(dim=1) / a.norm() for walk in (on_the_sphere, straight)}
    assert length[on_the_sphere].sub(1).abs().max() < 0.05
    assert length[straight][4] == pytest.approx(2**-0.5, abs=0.05)
    for walk in (on_the_sphere, straight):
        torch.testing.assert_close(walk(a, b, weights)[[0, -1]], torch.cat([a, b]))


def test_from_a_noise_to_itself_there_is_no_way():
    a = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(on_the_sphere(a, a, torch.linspace(0, 1, 5)), a.expand(5, -1, -1, -1))


# --- noise to tissue --------------------------------------------------------------------------------------------


def test_a_and_b_are_the_brains_that_their_seeds_stand_for(smoke_run):
    pipe = smoke_run.pipeline()
    explorer = settled(NoiseExplorer(pipe, (3, 4), steps=2))
    explorer.height.value = 0.5
    settled(explorer)
    for stop, seed in ((0, 3), (STOPS - 1, 4)):
        explorer.between.value = stop
        drawn = pipe(1, seed=seed, num_inference_steps=2, height=0.5, csf_share=0.2)
        for one, other in zip(explorer.chosen(), drawn, strict=True):
            torch.testing.assert_close(one, other[0], rtol=1e-4, atol=1e-5)


def test_the_strip_runs_from_noise_to_the_last_step(noise):
    assert noise.labels[0] == "noise" and noise.labels[-1] == "step 20" and len(noise.labels) == STAGES
    assert noise.stage.value == noise.stage.max == STAGES - 1  # tissue is what is seen first
    noise.steps.value = 1
    assert settled(noise).labels == ["noise", "step 1"]
    assert noise.stage.value == noise.stage.max == 1


def test_sliders_choose_among_finished_pictures_and_compute_nothing(noise):
    done = noise.pipeline.steps_done
    noise.pipeline.decode = None  # would fail
    before = noise.brain.value, noise.along.value, noise.path.value
    noise.between.value = 4
    changed = noise.brain.value, noise.along.value, noise.path.value
    assert all(old != new for old, new in zip(before, changed, strict=True))
    for stage in range(STAGES):
        noise.stage.value = stage
    assert noise.pipeline.steps_done == done


@pytest.mark.parametrize("name", ["PD", "T1", "T2", "T1w", "T2w", "FLAIR"])
def test_maps_and_scans_can_be_shown(noise, name):
    noise.shown.value = name
    assert np.asarray(Image.open(io.BytesIO(noise.brain.value))).std() > 5


def test_tissue_is_shown_before_its_way_there_is_known(noise):
    seen, decode = [], noise.pipeline.decode

    def decode_and_look(x):
        seen.append((noise.brain.value, noise.maps.t1.isnan().all((1, 2, 3)).tolist()))
        return decode(x)

    before, noise.pipeline.decode = noise.brain.value, decode_and_look
    noise.a.value = 50
    settled(noise)
    assert seen[0][0] == before and seen[1][0] not in (before, b"")  # a new brain, after the first of all stages
    assert seen[1][1] == [True] * (STAGES - 1) + [False]
    assert not noise.maps.t1.isnan().any()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_starts_at_a_and_ends_at_b(noise, way):
    ends = noise.maps.t1[-1, [0, -1]]
    noise.way.value = way
    torch.testing.assert_close(settled(noise).maps.t1[-1, [0, -1]], ends)


def test_the_middle_of_two_latents_is_not_the_brain_of_the_middle_noise(noise):
    middle = {}
    for way in WAYS:
        noise.way.value = way
        middle[way] = settled(noise).maps.t1[-1, STOPS // 2].mean()
    assert middle[WAYS[0]] > 1.2 * middle[WAYS[2]]  # the straight way passes nearer to the mean


@pytest.mark.parametrize(
    ("control", "value"), [("a", 99), ("b", 99), ("height", 1.0), ("csf_share", 0.3), ("steps", 4)]
)
def test_what_changes_the_brains_draws_them_anew(noise, control, value):
    before = noise.maps.t1.clone()
    getattr(noise, control).value = value
    after = settled(noise).maps.t1
    assert after.shape != before.shape or not torch.equal(after, before)


# --- long computations ------------------------------------------------------------------------------------------


def test_stop_keeps_what_is_shown(noise):
    shown = noise.brain.value
    noise.pipeline = FakePipeline(gate=threading.Event())
    noise.a.value = 50
    assert noise.pipeline.first_step.wait(PATIENCE) and noise.task.layout.display == ""
    noise.task.stop.click()
    assert "stopped" in told(noise)
    noise.pipeline.gate.set()
    settled(noise)
    assert noise.brain.value == shown and noise.pipeline.steps_done == 1 and "stopped" in told(noise)
    assert noise.task.layout.display == "none"
    noise.a.value = 51
    assert settled(noise).brain.value != shown


def test_the_next_change_ends_the_computation_before(noise):
    noise.pipeline = FakePipeline(gate=threading.Event())
    noise.a.value = 50
    assert noise.pipeline.first_step.wait(PATIENCE)
    noise.a.value = 51
    noise.pipeline.gate.set()
    settled(noise)
    assert noise.pipeline.steps_done == 1 + 20  # one step of the first, all of the second
    assert told(noise).startswith("Seeds 51 and 8")


def test_progress_is_shown(noise):
    seen = []
    noise.task.bar.observe(lambda change: seen.append(change.new), "value")
    noise.a.value = 50
    settled(noise)
    assert len(seen) > 20 and seen[-1] == 1 and seen[1:] == sorted(seen[1:])
    assert noise.task.layout.display == "none"  # until there is work again


def test_what_a_page_missed_while_it_was_loaded_is_told_again(monkeypatch):
    monkeypatch.setattr(controls, "LISTENS_AFTER", 0.0)
    told_whole = set()
    monkeypatch.setattr(ipywidgets.Widget, "send_state", lambda w, key=None: key is None and told_whole.add(id(w)))
    shown = NoiseExplorer(FakePipeline())
    needed = {id(w) for w in (shown.status, shown.brain, shown.task.layout, shown.stage)}
    end = time.monotonic() + PATIENCE
    while not needed <= told_whole:
        assert time.monotonic() < end, "not told"
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_computation_that_fails_says_so(noise):
    def fail(*_):
        raise RuntimeError("not enough memory")

    shown, noise.pipeline.decode = noise.brain.value, fail
    noise.a.value = 50
    assert "failed (RuntimeError: not enough memory)" in told(settled(noise))
    assert noise.brain.value == shown


# --- the switchboard --------------------------------------------------------------------------------------------


@pytest.fixture
def board(smoke_run):
    return settled(ExpertSwitchboard(smoke_run.vae(), smoke_run.scans("test"), smoke_run.truth("test")))


def test_what_is_shown_is_what_inference_says_of_the_scans_ticked(board, smoke_run):
    board.ticks[1].value = False
    settled(board)
    rows = board.slices.subject == board.person.value
    shown = torch.tensor([True, False, True]).expand(int(rows.sum()), -1)
    _, maps = infer(smoke_run.vae(), board.slices[rows], True, shown)
    for one, other in zip(board.mean, maps, strict=True):
        torch.testing.assert_close(one, other)
    assert "T1w × FLAIR" in told(board)


def test_every_tick_changes_mean_and_sd(board):
    for tick in board.ticks[:2]:
        before = board.mean.t1.clone(), board.sd.t1.clone(), board.maps.value, board.scans.value
        tick.value = False
        settled(board)
        assert not torch.equal(board.mean.t1, before[0]) and not torch.equal(board.sd.t1, before[1])
        assert board.maps.value != before[2] and board.scans.value != before[3]


def test_without_any_scan_it_says_what_is_missing(board):
    shown = board.maps.value
    for tick in board.ticks:
        tick.value = False
    assert "Tick at least one scan" in told(settled(board))
    assert board.maps.value == shown
    board.ticks[0].value = True
    assert told(settled(board)).startswith("T1w:")


def test_a_scan_that_the_person_lacks_cannot_be_ticked(smoke_run):
    scans = smoke_run.scans("test")
    scans.observed[scans.subject == 1, 2] = False
    board = settled(ExpertSwitchboard(smoke_run.vae(), scans))
    assert not any(tick.disabled for tick in board.ticks) and board.below.options == ("SD",)
    board.person.value = 1
    settled(board)
    assert [tick.disabled for tick in board.ticks] == [False, False, True] and not board.ticks[2].value


def test_the_error_is_that_of_the_truth(board):
    sd = board.maps.value
    board.below.value = "error"
    assert board.maps.value != sd
    rows, k = board.slices.subject == board.person.value, board.slice.value
    true, brain = board.truth.maps[rows][k, 1], board.truth.brain[rows][k]
    error = 100 * np.median(np.abs(board.mean.t1[k] / true - 1)[brain])
    assert board.summary().loc["T1", "error"] == pytest.approx(error, rel=1e-3)
    assert f"{error:.2f} %" in board.numbers.value


# --- a whole run ------------------------------------------------------------------------------------------------


def test_a_run_has_both_and_nothing_that_hangs_papermill(smoke_run):
    explorer = LatentExplorer(smoke_run)
    assert ipywidgets.Output not in [type(widget) for widget in all_widgets(explorer)]
    for part in (explorer.noise, explorer.experts):
        page = Image.open(io.BytesIO(part.still().data))
        assert page.width > page.height > 400 and part.still().alt
    assert explorer.noise.a.value == smoke_run.seed


def test_a_run_that_is_not_there_is_told_in_a_sentence(tmp_path):
    explorer = LatentExplorer(open_run(tmp_path / "nothing", "smoke"))
    assert "run notebook 04_train_diffusion first" in told(explorer.noise)
    assert "run notebook 03_train_vae first" in told(explorer.experts)


def test_damaged_weights_are_told_in_a_sentence(smoke_run, tmp_path):
    shutil.copytree(smoke_run.folder, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    explorer = LatentExplorer(open_run(tmp_path / "run", "smoke"))
    for part in (explorer.noise, explorer.experts):
        assert "cannot be read" in told(part) and told(part).startswith(str(tmp_path / "run"))
        assert "\n" not in told(part)


def test_a_damaged_cohort_is_told_in_a_sentence(smoke_run, tmp_path):
    folder = shutil.copytree(smoke_run.folder, tmp_path / "run")
    for path in (folder / "cohort" / "derivatives").rglob("*_gains.json"):
        path.write_text("{")
    explorer = LatentExplorer(folder)
    assert "_gains.json: not a readable JSON file" in told(explorer.experts)
    assert "make it again (notebook 03_train_vae)" in told(explorer.experts) and "\n" not in told(explorer.experts)
    assert isinstance(settled(explorer.noise), NoiseExplorer)  # which needs no cohort

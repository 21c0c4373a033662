"""The latent, played with: brains between two noises, noise becoming tissue, experts switched on and off.

What takes long is computed in the background, shows its progress and ends at the next change or at Stop; sliders then
only choose among finished pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas
import torch
from IPython.display import Image as StillImage
from safetensors import SafetensorError

from ..calibration import posterior_sd
from ..evaluation import metrics
from ..figures.style import percentile_window, to_png
from ..inference import infer
from ..machine.errors import BadInput
from ..physics import REFERENCE, TissueMaps, effective_protocol, render
from ..running.chapter import open_model
from ..running.run import Run, reopen
from ..slices import MAPS, MODALITIES, Slices, Truth
from ..tissue import AIR_PD
from ..vae import Posterior
from .controls import Slow, letters, to_html
from .pictures import HEIGHT, beside, opened, picture, strip, titled, under

STOPS = 9  # brains from A to B, both included
STAGES = 7  # pictures from noise to tissue, at most
STEPS = (1, 2, 4, 8, 20, 50)
WAYS = ("noise, on the sphere", "noise, straight", "latents, straight")
SD_SAMPLES = 16  # an SD from 16 is known to 18 %


class NoiseExplorer(Slow):
    """Two seeds, the brains between them, and each brain's way from noise to tissue.

    Parameters
    ----------
    pipeline
        A :class:`diffusion.TissuePipeline`.
    seeds
        A and B; a seed is the brain that ``pipeline(1, seed, steps, height)`` draws.
    steps
        Denoising steps to begin with, one of :data:`STEPS`.
    """

    def __init__(self, pipeline, seeds: tuple[int, int] = (7, 8), steps: int = 20):
        self.pipeline = pipeline
        self.maps: TissueMaps | None = None  # each (stages, stops, y, x)
        self.labels: list[str] = []  # of the stages

        def seed(name, value):
            return widgets.BoundedIntText(value, min=0, max=2**31 - 1, description=f"seed {name}", **self._size)

        self.a, self.b = seed("A", seeds[0]), seed("B", seeds[1])
        self.way = widgets.Dropdown(options=WAYS, description="between", **self._size)
        self.between = widgets.IntSlider(0, min=0, max=STOPS - 1, description="A → B", **self._size)
        counts = sorted({*STEPS, steps})
        self.steps = widgets.SelectionSlider(
            options=counts, value=steps, description="steps", continuous_update=False, **self._size
        )
        self.stage = widgets.IntSlider(0, min=0, max=0, description="noise → tissue", **self._size)
        about = {"min": -1, "max": 1, "step": 0.25, "continuous_update": False}
        self.height = widgets.FloatSlider(0, description="height in stack", **about, **self._size)
        share = {"min": 0.1, "max": 0.4, "step": 0.02, "readout_format": ".0%", "continuous_update": False}
        self.csf_share = widgets.FloatSlider(0.2, description="share of CSF", **share, **self._size)
        if not pipeline.conditional:  # the paper's denoiser takes no wishes
            self.height.disabled = self.csf_share.disabled = True
        self.shown = widgets.Dropdown(options=(*MAPS, *REFERENCE), value="T1", description="show", **self._size)
        self.brain, self.along, self.path = (_picture() for _ in range(3))
        for control in (self.a, self.b, self.way, self.steps, self.height, self.csf_share):
            control.observe(self.recompute, "value")
        for control in (self.between, self.stage, self.shown):
            control.observe(lambda change: self._repaint(), "value")
        super().__init__()

    def __repr__(self):
        return f"NoiseExplorer(seeds {self.a.value} and {self.b.value}); run this notebook to use it"

    def _arrange(self):
        controls = [self.a, self.b, self.way, self.between, self.steps, self.stage, self.height, self.csf_share]
        controls += [self.shown, self.waiting]
        strips = widgets.VBox([self.along, self.path], layout=widgets.Layout(max_width="100%"))
        return _in_a_row(widgets.VBox(controls), self.brain, strips)

    def chosen(self) -> TissueMaps:
        """PD, T1 (s) and T2 (s) of the brain shown large, each ``(y, x)``."""
        return TissueMaps(*(m[self.stage.value, self.between.value] for m in self.maps))

    def _compute(self, progress):
        a, b, n, way, height = self.a.value, self.b.value, self.steps.value, self.way.value, self.height.value
        csf_share = self.csf_share.value
        kept = np.unique(np.linspace(0, n, STAGES).round().astype(int)).tolist()
        done = itertools.count(1)

        def advance(*_):
            progress(next(done) / (n + len(kept)))

        config, weights = self.pipeline.config, torch.linspace(0, 1, STOPS)
        shape = (1, len(config.latent_mean), *config.latent_size)
        ends = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (a, b)]
        walk = {WAYS[0]: on_the_sphere, WAYS[1]: straight}
        states = [walk[way](*ends, weights) if way in walk else torch.cat(ends)]
        self.pipeline.denoise(states[0], n, height, csf_share, lambda i, x: (advance(), states.append(x)))
        maps = None
        for stage, k in reversed(list(enumerate(kept))):  # tissue first, its way there is black until it is known
            latent = states[k] if way in walk else straight(*states[k].split(1), weights)
            found = self.pipeline.decode(latent)
            if maps is None:
                maps = TissueMaps(*(torch.full((len(kept), *m.shape), torch.nan) for m in found))
            with self._turn:
                for of_all, of_stage in zip(maps, found, strict=True):
                    of_all[stage] = of_stage
            if stage == len(kept) - 1:
                self._show(maps, ["noise" if k == 0 else f"step {k}" for k in kept])
            advance()
        self._repaint()
        asked = f"height {height:+.2f}, {csf_share:.0%} CSF"
        self._say(f"Seeds {a} and {b}, {n} step{'s' * (n > 1)}, {asked}: {STOPS} brains from A to B")

    def _show(self, maps: TissueMaps, labels: list[str]):
        with self._silence():
            self.maps, self.labels = maps, labels
            last = self.stage.value == self.stage.max  # who looked at tissue goes on looking at tissue
            self.stage.max = len(labels) - 1
            self.stage.value = self.stage.max if last else min(self.stage.value, self.stage.max)
        self._repaint()

    def _paint(self):
        if not self._listening or self.maps is None:
            return
        stage, stop, name = self.stage.value, self.between.value, self.shown.value
        values, window = self._values(name)
        mm = self.pipeline.config.voxel_mm
        self.brain.value = to_png(picture(values[stage, stop], name, window, HEIGHT, mm, bar=True))
        names = ["A", *[f"{k}/{STOPS - 1}" for k in range(1, STOPS - 1)], "B"]
        along = strip(values[:, stop], name, window, self.labels, stage)
        path = strip(values[stage], name, window, names, stop)
        for image, page, title in (
            (self.along, along, f"this brain ({names[stop]}), from noise to tissue"),
            (self.path, path, f"from A to B, each at the same stage ({self.labels[stage]})"),
        ):
            image.value = to_png(np.asarray(titled(page, title)))

    def _values(self, name: str):
        """``(stages, stops, y, x)`` of what is shown, NaN where it means nothing, and the window of an image."""
        if name in MAPS:
            values = self.maps[MAPS.index(name)].numpy()
            return np.where(self.maps.pd.numpy() > AIR_PD, values, np.nan) if name != "PD" else values, None
        images = render(self.maps, effective_protocol(REFERENCE[name])).numpy()
        return images, percentile_window(images[-1])  # one window from noise to tissue: that of the tissue

    def still(self) -> StillImage:
        """What is shown as one picture, for readers without a running kernel; waits for what is being computed."""
        self.task.wait()
        page = beside([opened(self.brain.value), under([opened(self.along.value), opened(self.path.value)])])
        seeds = f"{self.a.value} and {self.b.value}"
        alt = f"A generated brain, its way from noise to tissue, and the brains between seeds {seeds}"
        return StillImage(to_png(np.asarray(page)), alt=alt)


class ExpertSwitchboard(Slow):
    """Tick the scans that exist, and watch what the product of their experts says of the tissue, and how surely.

    Parameters
    ----------
    vae
        A trained :class:`vae.PoEVAE`.
    slices
        People to choose from, with the scans they have.
    truth
        Of the same slices, where it is known.
    common_scale
        Whether ``slices.images`` share the scale of PD.
    voxel_mm
        In the plane.
    """

    def __init__(self, vae, slices: Slices, truth: Truth | None = None, common_scale: bool = True, voxel_mm: float = 2):
        self.vae, self.slices, self.truth, self.common_scale, self.voxel_mm = vae, slices, truth, common_scale, voxel_mm
        self.mean: TissueMaps | None = None  # each (n, y, x), n slices of the person shown
        people = slices.subject.unique().tolist()
        names = [(f"test person {k + 1}", k) for k in people]
        self.person = widgets.Dropdown(options=names, description="person", **self._size)
        self.slice = widgets.IntSlider(0, min=0, max=0, description="slice ↑", **self._size)
        self.ticks = [widgets.Checkbox(True, description=name, indent=False) for name in MODALITIES]
        below = ["SD", "error"] if truth is not None else ["SD"]
        style = {"description_width": letters(8), "button_width": letters(6)}
        self.below = widgets.ToggleButtons(options=below, description="second row", style=style)
        self.maps, self.scans = _picture(), _picture()
        self.numbers = widgets.HTML()
        self._choose_person()
        self.person.observe(self._on_person, "value")
        for tick in self.ticks:
            tick.observe(self.recompute, "value")
        for control in (self.slice, self.below):
            control.observe(lambda change: self._repaint(), "value")
        super().__init__()

    def __repr__(self):
        return f"ExpertSwitchboard({', '.join(self._ticked()) or 'no scan'}); run this notebook to use it"

    def _arrange(self):
        ticks = [widgets.Label("scans that exist"), *self.ticks]
        controls = [self.person, self.slice, *ticks, self.below, self.waiting, self.numbers]
        return _in_a_row(widgets.VBox(controls), self.scans, self.maps)

    @property
    def _k(self) -> int:
        """The slice in view; the person still shown while another is computed may have fewer."""
        return min(self.slice.value, len(self.mean.pd) - 1)

    def _rows(self) -> torch.Tensor:
        return (self.slices.subject == self.person.value).nonzero()[:, 0]

    def _ticked(self) -> list[str]:
        return [tick.description for tick in self.ticks if tick.value]

    def _choose_person(self):
        rows = self._rows()
        with self._silence():
            for tick, exists in zip(self.ticks, self.slices.observed[rows[0]].tolist(), strict=True):
                tick.value, tick.disabled = exists, not exists
            self.slice.max = len(rows) - 1
            self.slice.value = len(rows) // 2

    def _on_person(self, change):
        self._choose_person()
        self.recompute()

    def _compute(self, progress):
        rows, shown = self._rows(), torch.tensor([tick.value for tick in self.ticks])
        if not shown.any():
            self._say("Tick at least one scan: without any only the prior is left, and it knows no person.", wrong=True)
            return
        person = self.slices[rows]
        posterior, mean = infer(self.vae, person, self.common_scale, shown.expand(len(rows), -1))
        progress(1 / (len(rows) + 1))
        spread = torch.full_like(mean.stack(), torch.nan)  # black until known
        truth = None if self.truth is None else Truth(self.truth.maps[rows], self.truth.fractions[rows])
        in_view_first = sorted(range(len(rows)), key=lambda k: abs(k - self.slice.value))
        for done, k in enumerate(in_view_first, 2):
            part, generator = Posterior(*(t[k : k + 1] for t in posterior)), torch.Generator().manual_seed(k)
            spread[k] = posterior_sd(self.vae, part, SD_SAMPLES, generator).stack()[0]
            progress(done / (len(rows) + 1))
            if k == self.slice.value:
                with self._turn:
                    self.mean, self.sd, self._seen = mean, TissueMaps.from_stack(spread), (person, truth, shown)
                    self._repaint()
        self._repaint()
        self._say(f"{' × '.join(self._ticked())}: posterior mean, and SD over {SD_SAMPLES} samples")

    def _paint(self):
        if not self._listening or self.mean is None:
            return
        (person, _, shown), k = self._seen, self._k
        inside = self.mean.pd[k].numpy() > AIR_PD
        size = HEIGHT // 2 - 16
        upper, lower = [], []
        kind = self.below.value
        title = {"SD": "SD % of mean", "error": "error % of truth"}[kind]
        for name, mean, second in zip(MAPS, self.mean, self._second_row(), strict=True):
            where = None if name == "PD" else inside
            shown_mean = picture(mean[k].numpy(), name, None, size, self.voxel_mm, where, bar=True)
            shown_second = picture(second[k].numpy(), kind, None, size, self.voxel_mm, inside, bar=True)
            upper.append(titled(shown_mean, f"{name}, mean"))
            lower.append(titled(shown_second, f"{name}, {title}"))
        self.maps.value = to_png(np.asarray(under([beside(upper), beside(lower)])))
        images = person.images[k].numpy()
        columns = []
        for name, image, on in zip(MODALITIES, images, shown.tolist(), strict=True):
            frame = picture(image if on else np.zeros_like(image), "", None, HEIGHT // 3 - 30, self.voxel_mm)
            columns.append(titled(frame, name if on else f"no {name}"))
        self.scans.value = to_png(np.asarray(under(columns)))
        summary = self.summary().map("{:.2f} %".format)
        self.numbers.value = to_html([("brain median", *summary.columns), *summary.itertuples(name=None)])

    def _second_row(self):
        """SD in % of the mean, or signed error in % of the truth, each ``(n, y, x)``."""
        if self.below.value == "SD":
            return [100 * sd / mean.clamp_min(1e-6) for sd, mean in zip(self.sd, self.mean, strict=True)]
        true = self._seen[1].maps.unbind(1)
        return [100 * (mean / t.clamp_min(1e-6) - 1) for mean, t in zip(self.mean, true, strict=True)]

    def summary(self) -> pandas.DataFrame:
        """Medians over the brain of this slice in %, a row a quantity: "SD", and absolute "error" where it is known."""
        (_, truth, _), k = self._seen, self._k
        brain = self.mean.pd[k] > AIR_PD if truth is None else truth.brain[k]
        table = pandas.DataFrame(index=MAPS)
        table["SD"] = [100 * float((sd[k] / m[k])[brain].median()) for m, sd in zip(self.mean, self.sd, strict=True)]
        if truth is not None:
            pairs = zip(self.mean, truth.maps[k], strict=True)
            table["error"] = [100 * metrics.median_absolute_error(m[k], t, brain) for m, t in pairs]
        return table

    def still(self) -> StillImage:
        """What is shown as one picture, for readers without a running kernel; waits for what is being computed."""
        self.task.wait()
        page = beside([opened(self.scans.value), opened(self.maps.value)])
        alt = f"PD, T1 and T2 inferred from {', '.join(self._ticked())}: posterior mean above, {self.below.value} below"
        return StillImage(to_png(np.asarray(page)), alt=alt)


class LatentExplorer(widgets.VBox):
    """Brains drawn by the release, sharper than a laptop's, and a run's experts; a sentence where a part is missing.

    Parameters
    ----------
    run
        From :func:`run.open_run`, or the folder of a run.
    """

    def __init__(self, run):
        def opened_run():
            return run if isinstance(run, Run) else reopen(run)

        def noise():
            run = opened_run()
            run.pipeline()  # a run without one says so
            model = open_model(run)
            return NoiseExplorer(model.pipeline, (run.seed, run.seed + 1), model.steps)

        def experts():
            run = opened_run()
            scans = run.scans("test")
            return ExpertSwitchboard(
                run.vae(), scans, run.truth("test") if run.common_scale else None, run.common_scale, run.recipe.voxel_mm
            )

        folder = run.folder if isinstance(run, Run) else Path(run)
        self.noise, self.experts = _or_sentence(noise, folder / "pipeline"), _or_sentence(experts, folder / "vae")
        super().__init__([self.noise, self.experts])


def _picture() -> widgets.Image:
    """No wider than the page less its margins: a notebook's is narrower than three maps."""
    return widgets.Image(format="png", layout=widgets.Layout(max_width="calc(100% - 4px)", height="auto"))


def _in_a_row(*children: widgets.Widget) -> widgets.Box:
    """Side by side, one below the other where the page is narrow."""
    return widgets.Box(children, layout=widgets.Layout(flex_flow="row wrap", grid_gap="12px"))


def _or_sentence(make: Callable[[], Slow], weights: Path) -> Slow | widgets.HTML:
    try:
        return make()
    except BadInput as error:
        sentence = str(error)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # what the readers of weights raise
        first = str(error).splitlines()[0]
        sentence = f"{weights}: cannot be read ({first}): remove that folder and run phyldm reproduce again."
    return widgets.HTML(f'<p role="alert" style="font-size: max(17px, 1.8vh); color: #b03000">{escape(sentence)}</p>')


# --- between two latents ---------------------------------------------------------------------------


def straight(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``(n, c, y, x)``: (1 − w)·a + w·b for ``a`` and ``b`` ``(1, c, y, x)`` and each of n weights."""
    w = weights.view(-1, 1, 1, 1)
    return (1 - w) * a + w * b


def on_the_sphere(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The same on the great circle from ``a`` to ``b``, where noise keeps the length that noise has (Shoemake 1985)."""
    angle = torch.arccos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).clamp(-1, 1))
    w = weights.view(-1, 1, 1, 1)
    if angle.sin() < 1e-4:  # one and the same noise: there is no way to go
        return straight(a, b, weights)
    return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()

"""Drawing tissue: our few steps in a small latent, against 50 steps of DDIM with the paper's U-Net.

Time needs no training. Quality does: of a run, :func:`quality_and_time` says how far its samples' tissue is from that
of true people, for each solver and number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pandas
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from phyldm_core.composition import BRAIN_PARTS, CompositionVAE
from phyldm_core.diffusion import CONDITIONS, TissuePipeline, TissueTransformer, make_scheduler, paper_noise, paper_unet
from phyldm_core.evaluation.tables import sample_histograms
from phyldm_core.running.profiles import LAPTOP, PAPER
from phyldm_core.running.run import Run
from phyldm_core.vae import PoEVAE

from .timing import Row, compare, slope, take_turns

N_MAPS = 16
TIMED_STEPS = 2  # of DDIM's 50, which cost the same each: one image takes minutes


def laptop_pipeline() -> TissuePipeline:
    """The laptop profile's networks, untrained."""
    composition = CompositionVAE(BRAIN_PARTS, **LAPTOP.composition)
    size = [side // composition.downsampling for side in LAPTOP.cohort.shape]
    channels = composition.drawn_channels
    denoiser = TissueTransformer(channels + 2 * len(CONDITIONS), channels, tuple(size), **LAPTOP.denoiser)
    return _pipeline(denoiser, make_scheduler("flow"), composition, channels, size)


def paper_pipeline() -> TissuePipeline:
    """The paper's U-Net, DDIM and VAE at the paper's size, untrained."""
    vae = PoEVAE(**PAPER.vae)
    size = [side // vae.downsampling for side in PAPER.cohort.shape]
    channels = vae.config.latent_channels
    return _pipeline(paper_unet(channels, tuple(size)), DDIMScheduler(**paper_noise()), vae, channels, size)


def _pipeline(denoiser, scheduler, decoder, channels: int, size: list[int]) -> TissuePipeline:
    pipe = TissuePipeline(denoiser.eval(), scheduler, decoder.eval(), [0.0] * channels, [1.0] * channels, size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rows(rounds: int) -> Iterator[Row]:
    ours, paper, steps = laptop_pipeline(), paper_pipeline(), PAPER.sampling_steps
    latents = paper.sample_latents(1, 0, TIMED_STEPS)
    ways = {
        "ours": lambda: ours(N_MAPS, 0, LAPTOP.sampling_steps),
        "U-Net": lambda: paper.sample_latents(1, 0, TIMED_STEPS),
        "decoder": lambda: paper.decode(latents),
    }
    seconds = take_turns(ways, min(rounds, 3))
    whole = f"U-Net, DDIM {steps}"
    seconds[whole] = N_MAPS * (seconds["U-Net"] * steps / TIMED_STEPS + seconds["decoder"])
    counts = {n: lambda n=n: ours(n, 0, LAPTOP.sampling_steps) for n in (4, 16, 64)}
    exponent = slope(list(counts), take_turns(counts, min(rounds, 3)).median())
    note = f"{TIMED_STEPS} of {steps} steps of the U-Net timed, for one image; time only, these weights are untrained"
    what = f"draw {N_MAPS} brains"
    yield compare(f"{what}, ours 2 mm, theirs 1 mm", seconds, "ours", whole, growth_with_maps=exponent, note=note)
    voxels = torch.tensor(PAPER.cohort.shape).prod() / torch.tensor(LAPTOP.cohort.shape).prod()
    seconds[f"{whole}, per voxel"] = seconds[whole] / float(voxels)
    yield compare(f"{what}, as many voxels", seconds, "ours", f"{whole}, per voxel", floor=20.0, aim=60.0, note=note)


def quality_and_time(run: Run, n: int, steps=(1, 2, 5, 10, 20, 50), orders=(1, 2)) -> pandas.DataFrame:
    """A trained run's solvers: ``solver, steps, seconds`` (a brain), ``distance``.

    ``distance`` is the mean over WM and GM, T1 and T2 of :func:`metrics.histogram_distance` between ``n`` drawn slices
    and those of the run's test people; ``floor`` that between two halves of these people.
    """
    pipe, truth, slices = run.pipeline(), run.truth("test"), run.scans("test")
    usual, found = pipe.scheduler, []
    flow = "solver_order" in usual.config
    pipe(n, 0, 1)  # warms up
    for order in orders if flow else (1,):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(usual.config, solver_order=order) if flow else usual
        for count in steps:
            began = time.perf_counter()
            maps = pipe(n, run.seed, count)
            seconds = (time.perf_counter() - began) / n
            table = sample_histograms(maps, truth, slices)
            table = table[table.tissue.isin(["WM", "GM"]) & table.quantity.isin(["T1", "T2"])]
            mean = table.groupby("metric").value.mean()
            name = f"DPM-Solver++, order {order}" if flow else "DDIM"
            found.append({"solver": name, "steps": count, "seconds": seconds, "distance": mean.get("wasserstein"),
                          "floor": mean.get("wasserstein_floor")})  # fmt: skip
    pipe.scheduler = usual
    return pandas.DataFrame(found)

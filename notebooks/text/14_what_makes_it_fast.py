# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · What makes it fast
#
# **Question.** Where do the seconds go, what saves them, and does saving them cost quality?
#
# **You will** measure four savings on your own machine, each against the straightforward way on the same input, hold
# one of them against what the machine can do at all, and find how many steps a drawn brain needs. *CPU, 5 min; not
# part of the plain run: `phyldm reproduce --only 14`.*
#
# [Contents](00_overview.ipynb) · before: [05 Sample tissue](05_sample_tissue.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7
rounds = 5

# %%
import sys

import matplotlib.pyplot as plt
import pandas
from matplotlib.ticker import LogLocator

from phyldm_core.machine.carried import carried
from phyldm_core.running.chapter import open_chapter
from phyldm_core.running.profiles import find_profile
from phyldm_core.running.report import with_interval

sys.path.append(str(carried(".")))  # holds tests/speed, which is not part of the package
from tests.speed import diffusion_step, drawing, rendering, timing, vae_step  # noqa: E402

settings, small = find_profile(profile), profile == "smoke"
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
run.pipeline()  # says which notebook makes it, if it is not there
rows = []

# %% [markdown]
# A time says little, a ratio more: two ways take turns, round by round, so that a slow moment of the machine is a slow
# moment for both. What is printed is the median over the rounds, and the quartiles. The whole table, with memory,
# growth and several processes, is `python -m tests.speed`.

# %%
pandas.Series(timing.machine()).to_frame("this machine")


# %%
def show(new):
    """Keep rows of the benchmark and display them."""
    new = list(new)
    rows.extend(new)
    return pandas.DataFrame(
        {"": r.what, "ours": r.ours, "against": r.against, "ratio": with_interval(r.ratio, r.low, r.high)}
        for r in new
    ).style.hide()


# %% [markdown]
# ## The equation
# A FLAIR of a whole brain at 1 mm has 7 million voxels, and each needs three exponentials:
# $$S = \rho\,|1 - 2e^{-TI/T_1} + e^{-TR/T_1}|\,e^{-TE/T_2}$$
# No program can be faster than its exponentials, nor than the memory that three maps are read from and one image is
# written to. The slower of the two is this machine's limit, and it is measured beside the rest.
#
# **Predict:** written in NumPy as it stands, is the equation bound by memory or by exponentials? And by how much does it
# miss that limit?

# %%
show(rendering.rows(rounds, (16, 64, 64) if small else rendering.SHAPE))

# %% [markdown]
# Both ways compute the same numbers. NumPy goes through the whole volume once for every operation, and each time the
# intermediate result leaves the processor and comes back. `physics.render` takes a part that fits the cache through all
# operations, and computes $2^{x/\ln 2}$ in place of $e^x$, for which processors have a shorter way.
#
# ## The step of the VAE
# In OASIS-3, 18 % of the sessions hold all three contrasts. The plain way gives the encoder three images of everybody,
# zeros where there was no scan, and multiplies their opinions by nothing. Ours encodes the scans that exist and are shown.
#
# **Predict:** 1.6 of three scans are shown on average. Is the step then nearly twice as fast?

# %%
network = "laptop's network" if profile == "laptop" else f"network of profile {profile}"
show(vae_step.rows_of(network, settings.vae, rounds, shape=(32, 32) if small else vae_step.SHAPE))

# %% [markdown]
# No: the decoder runs once for a person, however many scans there were, and it costs about as much as two encoders.
# What is saved is exactly the absent scans, and the loss is the same to the last digits but one, which the cell checks.
# Where this machine is faster in bf16, training uses it: the first row then compares it with the float32 of the paper.
#
# ## The step of the diffusion model
# The published code encodes the scans again whenever a step draws them. The encoder is finished by then: its answer
# cannot change.
#
# **Predict:** which is larger, the encoder's work on 48 slices, or the denoiser's step on their latents?

# %%
show(diffusion_step.rows(rounds, settings)) if settings.composition is not None else "no compositions here"

# %% [markdown]
# ## Drawing
# Each step of a sampler asks the network once. The paper asks 184 million parameters fifty times for one brain. Here a
# network fifty times smaller is asked twenty times, on a latent of 35 cells, and many brains at once.
#
# Fewer steps are a saving that *can* cost quality. So quality is measured with it: how far is the tissue of drawn brains
# from that of true people ([07](07_tissue_histograms.ipynb)), against the seconds that a brain takes?
#
# **Predict:** from how many steps on does the distance stop falling? Does the second order help at 2 steps?

# %%
n_drawn = 4 if small else 64
curve = drawing.quality_and_time(run, n_drawn, steps=(1, 2, 4) if small else (1, 2, 3, 5, 10, 20, 50))
run.write_metrics("quality_and_time", curve)
curve.round(4)

# %%
fig, ax = plt.subplots(figsize=(4.2, 2.6), layout="constrained")
for (solver, points), style, below in zip(curve.groupby("solver"), ("o--", "o-"), (3, -9), strict=False):
    ax.plot(1000 * points.seconds, points.distance, style, color="0.25", mfc="white", label=solver)
    for point in points.itertuples():
        ax.annotate(point.steps, (1000 * point.seconds, point.distance), (3, below), textcoords="offset points", size=7)
ax.axhline(curve.floor.mean(), color="#d55e00", lw=0.8, ls=":", label="two halves of the true people")
ax.set(xscale="log", xlabel="ms a brain", ylabel="distance / median", ylim=(0, None))
ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
ax.xaxis.set_major_formatter("{x:g}")
ax.minorticks_off()
ax.legend()
caption = f"""Quality against time: Wasserstein-1 distance between the tissue of drawn and of true people, over its
median, mean of T1 and T2 in white and grey matter (n = {n_drawn} drawn slices, seed {seed}).
Numbers at the dots are steps."""
alt = "Falling curves of distance against milliseconds that become level after a few steps, above a dotted floor."
publish(fig, "fig91_quality_and_time", caption, alt)

# %% [markdown]
# **Figure 91.** Where the curve is level, steps are spent for nothing: what is left above the dotted line is the
# network's, and no solver will mend it. Left of that, each step is worth its time.
#
# ## All ratios
# **Predict:** which of the bars would be shorter on a machine with sixteen cores, and which longer?

# %%
shown = [row for row in rows if "limit" not in row.against]
fig, ax = plt.subplots(figsize=(6, 0.42 * len(shown) + 0.8), layout="constrained")
for i, row in enumerate(reversed(shown)):
    ax.plot([row.low, row.high], [i, i], color="0.25", lw=1)
    ax.plot(row.ratio, i, "o", color="0.25", mfc="white")
ax.axvline(1, color="#d55e00", lw=0.8, ls=":")
ax.set_yticks(range(len(shown)), [f"{r.what.split(',')[0]}: {r.ours}\nagainst {r.against}" for r in reversed(shown)])
ax.set(xlabel="times faster", xlim=(0, None), ylim=(-0.6, len(shown) - 0.4))
caption = f"""How many times faster than the straightforward way: median (dot) and quartiles (line) of rounds in which
both took turns (n = {rounds} rounds) on one machine. FLAIR with TE 91 ms, TR 9 s, TI 2.5 s."""
alt = "A dot with a short line for every saving, most of them right of 1."
publish(fig, "fig92_ratios", caption, alt)

# %% [markdown]
# **Figure 92.** The reasons, from top to bottom: numbers that stay in the cache; work that is not done because nothing is
# there to be done; work that is done once. None of them changes a result but bf16, by less than the error of a map, and the
# number of steps: Figure 91 says when.

# %%
run.write_metrics("ratios", pandas.DataFrame([row.as_dict() for row in rows]).drop(columns="details"));

# %% [markdown]
# ## What we learned
# - Ratios and quartiles of four savings on this machine (`metrics/ratios.csv`), each with the same result as the plain way.
# - How near the equation comes to the limit of memory and exponentials.
# - From how many steps on more steps buy nothing (`metrics/quality_and_time.csv`, Figure 91).
#
# ## Exercises
# 1. **Predict first:** how does the time of an image grow with its voxels, and where does the exponent leave 1?
# 2. Show the encoder every scan that exists. What becomes of the ratio, and what would it be if all sessions were
#    complete?
# 3. Measure a way against itself. How far from 1 is the ratio, and what does that say about Figure 92?
#
# <details><summary>Solution 1</summary>
#
# ```python
# sizes = [(2**k, 64, 64) for k in range(2, 6)]
# ways = {shape[0]: lambda m=rendering.tissue(shape): rendering.render(m, rendering.FLAIR) for shape in sizes}
# taken = timing.take_turns(ways, rounds).median()
# taken / taken.index, timing.slope(taken.index, taken)
# ```
# In proportion, as soon as there is enough to do: starting an operation costs microseconds, whatever its size. The
# exponent would rise above 1 where intermediate results leave the cache, which parts prevent.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# next(vae_step.rows_of(network, settings.vae, rounds, hide=False, shape=(32, 32))).ratio
# ```
# Smaller: 2.1 scans a session instead of 1.6. With complete sessions only what the decoder saves would be left, nothing in
# a network that never doubles its grid.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# maps = rendering.tissue((16, 64, 64))
# ways = {name: lambda: rendering.render(maps, rendering.FLAIR) for name in ("one", "other")}
# timing.compare("itself", timing.take_turns(ways, 10), "one", "other")
# ```
# The quartiles hold 1, or something else was running. A difference smaller than this spread is none.
# </details>
#
# ## Limits
# Times hold for this machine and this profile; on a GPU the encoder and the exponentials cost less, and starting an
# operation more. The paper's U-Net is not timed here, because one of its brains takes minutes on two cores:
# `python -m tests.speed --only drawing` does that, and as its weights are not published, it compares time alone.
#
# ## References
# - J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, 2021, arXiv 2010.02502.
# - C. Lu et al., *DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models*, 2022, arXiv 2211.01095.
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Commun ACM 2009;52:65.

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
# # 04 · Train the generator: from noise to tissue
#
# **Question.** The VAE needs scans before it can say anything. How can tissue be drawn that belongs to nobody?
#
# **You will** look at what a latent holds, train a model that removes noise from latents, watch tissue come out of
# noise beside the release's, and check that the model does not copy. *The `laptop` profile needs eleven minutes the first
# time, and two afterwards.*
#
# [Contents](00_overview.ipynb) · before: [03 Train the VAE](03_train_vae.ipynb) · next:
# [05 Sample tissue](05_sample_tissue.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
anatomies = ""
seed = 7

# %%
from dataclasses import replace

import numpy as np
import pandas
import torch
from IPython.display import clear_output

from phyldm_core import figures
from phyldm_core.diffusion import with_conditions
from phyldm_core.evaluation import metrics
from phyldm_core.inference import infer
from phyldm_core.people import segmentation
from phyldm_core.physics import REFERENCE, TissueMaps, render
from phyldm_core.running.chapter import Model, open_chapter, release_beside, say

# %% [markdown]
# ## What a latent holds
# The VAE describes each slice by a few channels on a coarse grid. The *spread of the means* says how much a channel
# differs from place to place and from person to person. The *posterior SD* says how much of a single value is noise.
#
# **Predict:** the published code trains its diffusion model on $\mu + \sigma\varepsilon$. How much of the variance is
# noise: 1 %, 10 % or half?

# %%
torch.set_grad_enabled(False)  # training switches it on for itself
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe, vae, val = run.recipe, run.vae(), run.scans("val")
posterior, val_maps = infer(vae, val)
spread, sd = posterior.mean.std((0, 2, 3)), (posterior.log_variance / 2).exp().mean((0, 2, 3))
channels = pandas.DataFrame({"spread of the means": spread, "posterior SD": sd}).rename_axis("channel")
channels["noise in μ + σε (%)"] = 100 * sd**2 / (spread**2 + sd**2)
run.write_metrics("latent_channels", channels.reset_index())
channels.round(2)

# %%
say(f"""On average {channels["noise in μ + σε (%)"].mean():.1f} % of the variance is noise. We train on the means,
because noise says nothing of tissue; where it is below a per cent, the choice matters little. Channels differ in
scale, so each is brought to unit spread.""")

# %% [markdown]
# ## A second latent, of tissue shares
# Inference needs a fine latent. A diffusion model that trains for minutes needs a small one. So the laptop profile has
# a second autoencoder, which stores for each place *which tissue* it is. It is trained by cross-entropy on the inferred
# maps. PD, T1 and T2 are then mixed from values of the tissues, which are drawn together with the anatomy. The paper's
# profile has no second latent.
#
# A small latent does not tell every fold. So the decoder draws. It starts from noise, and in a few steps it says which
# tissue is likely, given the latent and the shares so far. In one step it gives the mean of all slices that the latent
# allows.

# %%
def train(steps, name):
    """Run a training to its end and show where it is."""
    with torch.enable_grad():
        for step in steps:
            if step.step % 50 == 0:
                print(f"{name}, step {step.step}: loss {step.losses['total']:.3f}", end="\r")
    clear_output()


train(run.train_composition(), "compositions")
composition = run.composition()

# %% [markdown]
# ## From data to noise and back
# Diffusion destroys a latent in steps, which is easy, and learns the way back. In profile `laptop` a latent at noise
# level σ is $x_\sigma = (1 - \sigma)\,x_0 + \sigma\,\varepsilon$, and a small transformer answers with a guess of the
# clean latent. In profile `paper` a U-Net works on 1000 steps. Two numbers can be asked for: the height of the slice
# and the share of CSF.
#
# The weights of half of the training are kept as a *guide*. Where the finished network and the guide differ, a step goes
# on in the direction from the guide to the network (autoguidance, Karras et al. 2024). Figure 16 and chapter 05
# show the result.

# %%
train(run.train_diffusion(), "diffusion")
ours = Model(run)
pipe, log = ours.pipeline, run.training_log("pipeline")
size = sum(p.numel() for p in pipe.denoiser.parameters()) / 1e6
print(f"{type(pipe.denoiser).__name__}, {size:.2f} M parameters, {log.seconds.max() / 60:.1f} minutes of training")

# %% [markdown]
# Some detail is lost before any diffusion: what the small latent cannot hold.
#
# **Predict:** a T1w goes through the small latent and back. Which answer has as much fine detail as the T1w had, and
# which is nearer to it voxel by voxel: the mean of one step, or the slice that is drawn?

# %%
held_out, brain = run.drawn_latents("val"), run.truth("val").brain
latent = held_out.values[: len(val)] * held_out.scale[:, None, None] + held_out.mean[:, None, None]
ways = {"mean, one step": {"steps": 1}, "drawn, a few steps": {}} if composition else {"decoded": {}}
back = {name: render(pipe.decoder.to_maps(latent, **how), REFERENCE["T1w"]) for name, how in ways.items()}
seen = render(val_maps, REFERENCE["T1w"])
fine = {name: 100 * metrics.fine_detail(t1w, brain) / metrics.fine_detail(seen, brain) for name, t1w in back.items()}
near = {name: metrics.psnr(t1w, seen, brain) for name, t1w in back.items()}
through = pandas.DataFrame({"fine detail (%)": fine, "PSNR (dB)": near}).rename_axis("through the small latent")
run.write_metrics("through_the_latent", through.reset_index())
through.round(1)

# %%
first, last = ((name, *through.loc[name]) for name in (through.index[0], through.index[-1]))
say(f"""{last[0].capitalize()}: {last[1]:.0f} % of the fine detail at {last[2]:.1f} dB. {first[0].capitalize()}:
{first[1]:.0f} % at {first[2]:.1f} dB. The mean has the smallest squared error, and it is blurred. What is drawn is a
fold that might be there. It need not lie where the fold was.""")

# %% [markdown]
# **Predict:** at which noise levels can a network guess the clean latent well, and at which can nobody?

# %%
def guess(pipe, x, clock, conditions):
    """What the network takes for the clean latent."""
    answer = pipe.denoiser(with_conditions(pipe.denoiser, x, conditions), clock).sample
    if run.profile.process == "flow":
        return x - clock / 1000 * answer
    kept = pipe.scheduler.alphas_cumprod[clock.long()]
    return (x - (1 - kept).sqrt() * answer) / kept.sqrt()


# %%
def noisy(x, level, generator):
    """A latent at noise level 0 … 1, and the clock that tells the network."""
    noise, clock = torch.randn(x.shape, generator=generator), torch.tensor(1000.0 * level)
    if run.profile.process == "flow":
        return (1 - level) * x + level * noise, clock
    kept = pipe.scheduler.alphas_cumprod[min(round(float(clock)), 999)]
    return kept.sqrt() * x + (1 - kept).sqrt() * noise, clock.round().clamp_max(999)


# %%
sets = {"training": run.drawn_latents("train"), "held out": held_out}
levels, explained, generator = np.linspace(0.05, 0.95, 10), {}, torch.Generator().manual_seed(seed)
for name, some in sets.items():
    x, conditions = some.values[: len(val)], some.conditions[: len(val)]
    off = [guess(pipe, *noisy(x, float(level), generator), conditions) - x for level in levels]
    explained[f"{name}, n = {len(x)}"] = [100 * (1 - float((o**2).mean() / x.var())) for o in off]
explained = pandas.DataFrame(explained, index=levels).rename_axis("noise level")
run.write_metrics("diffusion_variance_explained", explained.reset_index());

# %%
losses = log.pivot(index="step", columns="loss", values="value").reset_index()
fig = figures.diffusion_training(losses, explained)
caption = f"""Training of the diffusion model. (a) Loss of every step (faint), its running median, and on latents of n =
{recipe.n_val} held-out people. (b) How much of a latent's variance the guess explains, by noise level."""
alt = "The loss falls and levels off; the variance explained falls from near 100 per cent to a quarter as noise grows."
publish(fig, "fig16_diffusion_training", caption, alt)

# %%
trained, new = explained.iloc[:, 0], explained.iloc[:, 1]
say(f"""**Figure 16.** At a noise level of {levels[0]:.2f} the guess explains {new.iloc[0]:.0f} % of the variance of
held-out latents, and at {levels[-1]:.2f} it explains {new.iloc[-1]:.0f} %: in nearly pure noise only what all brains
share can be known. On training people it explains up to {max(0.0, float((trained - new).max())):.1f} points more: that
much was learned by heart.""")

# %% [markdown]
# ## Tissue out of noise
# **Predict:** what can be recognised first: the ventricles, the outline, or the folds?

# %%
def way_of(model, n_shown=7):
    """Rows of panels: the sampler's state before some steps, and the guess of the clean latent there; T1w."""
    pipe, n = model.pipeline, model.steps
    noise = torch.Generator().manual_seed(seed)  # the sampler starts from this very noise
    frames = [torch.randn(1, len(pipe.config.latent_mean), *pipe.config.latent_size, generator=noise)]
    pipe.sample_latents(1, seed, n, on_step=lambda i, x: frames.append(x.clone()))
    shown, free = np.unique(np.linspace(0, n - 1, n_shown).round().astype(int)), torch.tensor([[0.0, torch.nan, 1.0]])
    guesses = [guess(pipe, frames[i], pipe.scheduler.timesteps[i].float(), free) for i in shown]
    states = torch.cat([*(frames[i] for i in shown), frames[-1], *guesses, frames[-1]])
    maps, titles = pipe.decode(states), [*(f"step {i + 1}" for i in shown), "result"]
    images = render(maps, REFERENCE["T1w"])
    window = figures.percentile_window(images[-1], segmentation.brain_of(maps)[-1])
    named = zip(images, titles + [""] * len(titles), strict=True)
    panels = [figures.Panel(image, window=window, title=title) for image, title in named]
    return panels[: len(titles)], panels[len(titles) :]


# %%
release, rows = release_beside(run), [*way_of(ours)]
sides = ["state", "guess"]
if release:
    rows, sides = [*rows, way_of(release)[1]], [*sides, "guess, release"]
for row, side in zip(rows, sides, strict=True):
    row[0] = replace(row[0], side=side)
fig = figures.map_grid(rows, voxel_mm=recipe.voxel_mm)
caption = f"""From noise to tissue in {ours.steps} steps (n = 1, seed {seed}), as T1w (MPRAGE, TE 3 ms, TR 2.4 s, TI 1
s). First row: the state of the sampler before a step. Second: the network's guess of the clean latent. Third: the
guess of the release (1 mm)."""
alt = "Rows of T1w images: noise turning into a brain, and the guesses, which are brains from the first step on."
publish(fig, "fig17_noise_to_tissue", caption, alt)

# %% [markdown]
# **Figure 17.** The first guess of the latent is an average, since nothing else can be known from pure noise. The
# run's decoder still draws a sharp brain from it. The release's decoder, which has learned more folds, speckles it. From
# step to step outline, ventricles and folds move less. The release has seen 58 heads for hours instead of
# one head for minutes, and its slices have 1 mm and a skull.
#
# ## How many steps?
# Each step is one pass of the network.
#
# **Predict:** from how many steps on does a brain hardly change?

# %%
counts = (1, 2, 4, 8, 20, 50)
drawn = {n: pipe(4, seed=seed, num_inference_steps=n) for n in counts}
inside = segmentation.brain_of(drawn[50])
off = {n: 100 * float(((m.t1 - drawn[50].t1).abs() / drawn[50].t1)[inside].nanmedian()) for n, m in drawn.items()}
steps = pandas.Series(off, name="T1 off from that of 50 steps (%, median)").rename_axis("steps").to_frame()
run.write_metrics("solver_steps", steps.reset_index())
steps.round(2).T

# %% [markdown]
# The table answers it. Once the difference is small beside the few per cent by which people differ, more steps cost
# time and change nothing that matters.
#
# ## Drawn or remembered?
# A generator that copies its training set is useless. A copy would be much nearer to *one* training person than to the
# next. So we take the ratio of both distances, and people who were held out say which ratio is normal.
#
# **Predict:** what is the ratio of a perfect copy, and what that of somebody new?

# %%
def nearest(queries):
    """Ratio of the distance to the nearest training slice (also mirrored) to that of the next nearest person."""
    both = torch.stack([torch.cdist(q.flatten(1), train_t1w) for q in (queries, queries.flip(-1))]).amin(0)
    distance, row = both.min(1)
    others = both.masked_fill(person[row][:, None] == person, torch.inf)
    return distance / others.amin(1)


parts = run.truth("train").maps.split(256)
train_t1w = torch.cat([render(TissueMaps.from_stack(part), REFERENCE["T1w"]).flatten(1) for part in parts])
person = torch.arange(len(train_t1w)) // recipe.n_slices

# %%
slices = {"generated": pipe(16, seed=seed, num_inference_steps=ours.steps), "held-out people": val_maps}
found = {name: nearest(render(maps, REFERENCE["T1w"])) for name, maps in slices.items()}
rows = {name: {"n": len(r), "median ratio": float(r.median()), "smallest": float(r.min())} for name, r in found.items()}
memory = pandas.DataFrame(rows).T.rename_axis("slices of")
run.write_metrics("memorisation", memory.reset_index())
memory.round(3)

# %% [markdown]
# A perfect copy has a ratio of 0, and somebody new is about as far from one stranger as from the next, near 1. As long
# as the smallest ratio of generated slices is not below that of held-out people, no person was copied. With one head
# behind all people this says nothing about copies of an *anatomy*.
#
# ## What we learned
# - Below a per cent or so of a latent's variance is noise. The small latent does not tell every fold, and a decoder
#   that draws puts one there (the table above).
# - Guesses are good where noise is weak, and an average brain where it is strong (Figure 16).
# - The outline is decided first, and the folds last (Figure 17).
# - Ratios of distances show whether people were copied.
#
# ## Exercises
# 1. Draw the same seed at the bottom, the middle and the top of the stack, then with little and with much CSF. What
#    changes?
# 2. Decode the mean latent. Is it a brain? Whose?
#
# <details><summary>Solution 1</summary>
#
# ```python
# asked = [{"height": h} for h in (-1.0, 0.0, 1.0)] + [{"height": 0.0, "csf_share": s} for s in (0.15, 0.25, 0.35)]
# figures.mosaic([pipe(1, seed, ours.steps, **a).t1[0] for a in asked], "T1", columns=3)
# ```
# The height decides which ventricles and nuclei there are, and the share of CSF how wide ventricles and sulci are. The
# paper's U-Net takes neither.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# means = posterior.mean
# average = means.mean((0, 2, 3))[None, :, None, None].expand(1, -1, *means.shape[2:])
# figures.mosaic([vae.decode(average).t1[0], vae.decode(means.mean(0, keepdim=True)).t1[0]], "T1", columns=2)
# ```
# One value per channel for all places decodes to no brain. One value per place gives a blurred brain of nobody, like
# the first guess in Figure 17.
# </details>
#
# ## Limits
# Slices are drawn one by one: two heights of one seed are not a volume. Distances between T1w images notice copies of a
# shape and not of a tissue value.
#
# ## References
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, arXiv 2006.11239. R. Rombach et al.,
#   *Latent Diffusion*, 2022, arXiv 2112.10752.
# - Y. Lipman et al., *Flow Matching*, 2023, arXiv 2210.02747. C. Lu et al., *DPM-Solver++*, 2022, arXiv 2211.01095.
# - N. Carlini et al., *Extracting Training Data from Diffusion Models*, 2023, arXiv 2301.13188: why to look for copies.
# - K. Preechakul et al., *Diffusion Autoencoders*, 2022, arXiv 2111.15640. S. Dieleman et al., *Continuous Diffusion for
#   Categorical Data*, 2022, arXiv 2211.15089: the decoder that draws.
# - T. Karras et al., *Guiding a Diffusion Model with a Bad Version of Itself*, 2024, arXiv 2406.02507: autoguidance.

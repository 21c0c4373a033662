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
# # 04 · Train the diffusion model: from noise to a latent
#
# **Question.** The VAE needs scans before it can say anything. How can tissue be drawn that belongs to nobody?
#
# **You will** look at what a latent holds, train a model that removes noise from latents, watch tissue come out of
# noise, and check that the model does not simply remember. *CPU: the `laptop` profile trains for a quarter of an
# hour, once; the rest takes half a minute.*
#
# [Contents](00_overview.ipynb) · before: [03 Train the VAE](03_train_vae.ipynb) · next:
# [05 Sample tissue](05_sample_tissue.ipynb)
#
# > **Kept outputs.** The pictures and numbers below come from the previous generator. The text and code describe the present
# > one. `make reproduce` makes pictures and numbers anew.

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import time
from dataclasses import replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn as sns
import torch
from diffusers import DPMSolverMultistepScheduler
from IPython.display import clear_output
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from phyldm_core import figures
from phyldm_core.diffusion import with_conditions
from phyldm_core.evaluation import metrics
from phyldm_core.inference import infer
from phyldm_core.people import segmentation
from phyldm_core.physics import REFERENCE, TissueMaps, render
from phyldm_core.running.chapter import open_chapter

torch.set_grad_enabled(False)  # nothing here is differentiated; training switches it on for itself
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe, vae = run.recipe, run.vae()

# %% [markdown]
# ## What a latent holds
# The VAE describes each slice by a few channels at a coarse resolution. Here they are for the people of the
# validation set, whom neither model learns from. Two spreads matter. The *spread of the means* says how much a
# channel differs from place to place and from person to person: its message. The *posterior SD* says how much of a
# single value is noise.
#
# The published code trains its diffusion model on $\mu + \sigma\varepsilon$, message and noise together, and so asks
# for something nobody can predict. We train on the means.

# %%
val = run.scans("val")
posterior, val_maps = infer(vae, val)
means = posterior.mean
channels = pandas.DataFrame(
    {
        "mean": means.mean((0, 2, 3)),
        "spread of the means": means.std((0, 2, 3)),
        "posterior SD": (posterior.log_variance / 2).exp().mean((0, 2, 3)),
    }
).rename_axis("channel")
noise_power, power = channels["posterior SD"] ** 2, channels["spread of the means"] ** 2
channels["noise in μ + σε (%)"] = 100 * noise_power / (power + noise_power)
run.write_metrics("latent_channels", channels.reset_index())
channels.round(2)

# %% [markdown]
# Channels differ in scale, so each is brought to zero mean and unit spread by itself before diffusion; one scale for
# all would bury the quiet ones in noise at once.
#
# **Predict:** raise one channel by one spread everywhere. Will only T1 change, or only T2? And how far does it reach,
# if a single value of the latent is raised?

# %%
spread, centre = means.std((0, 2, 3)), means[recipe.n_slices // 2 : recipe.n_slices // 2 + 1]
base = vae.decode(centre).stack()[0].log()
inside = run.truth("val").brain[recipe.n_slices // 2]
effect = []
for c, one in enumerate(spread):
    raised = centre.clone()
    raised[0, c] += one
    effect.append((vae.decode(raised).stack()[0].log() - base)[:, inside].mean(1))
effect = 100 * torch.stack(effect)
strongest = int(effect.abs().sum(1).argmax())
poked = centre.clone()
poked[0, strongest, poked.shape[2] // 2, poked.shape[3] // 3] += 4 * spread[strongest]
reach = 100 * ((vae.decode(poked).stack()[0].log() - base).exp() - 1)

# %%
n_shown = min(len(spread), 8)
fig = plt.figure(figsize=(7, 3.6), layout="constrained")
above, below = fig.subfigures(2, 1, height_ratios=(1, 1.35))
for c, ax in enumerate(above.subplots(1, n_shown)):
    picture = (centre[0, c] - means[:, c].mean()) / spread[c]
    figures.show_image(ax, picture, (-3, 3), voxel_mm=recipe.voxel_mm * vae.downsampling, marks="RLA" if c == 0 else "")
    ax.images[0].set_cmap("PuOr")
    ax.set_title(f"channel {c}", size=7)
above.colorbar(ax.images[0], ax=above.axes, extend="both", ticks=(-3, 0, 3), label="spreads from mean")
axes = below.subplots(1, 4, width_ratios=(3, 1, 1, 1))
look = {"cmap": figures.QUANTITIES["error"].cmap, "center": 0, "cbar": False, "annot": True, "annot_kws": {"size": 6.5}}
sns.heatmap(effect.T.numpy(), ax=axes[0], fmt=".1f", linewidths=0.5, yticklabels=figures.MAPS, **look)
axes[0].set(xlabel="channel raised by one spread", title="mean change in the brain (%)")
axes[0].tick_params(rotation=0, length=0)
for ax, change, quantity in zip(axes[1:], reach, figures.MAPS, strict=True):
    figures.show_map(ax, change, "error", inside=inside, voxel_mm=recipe.voxel_mm, marks="")
    ax.set_xlabel(quantity, size=7)
below.colorbar(ax.images[0], ax=ax, extend="both", shrink=0.8, ticks=(-30, 0, 30), label="change (%)")
axes[2].set_title("one value raised by four spreads", size=8)
caption = f"""What a latent holds (validation set, n = 1 slice). Above: its channels, in units of their spread. Below:
mean change of PD, T1 and T2 when a channel is raised, and change when one value of channel {strongest} is."""
alt = "Coarse pictures of latent channels, their effect on PD, T1 and T2, and the small patch that one value changes."
publish(fig, "fig21_latent", caption, alt)

# %% [markdown]
# **Figure 21.** A channel is not a tissue property: most change PD, T1 and T2 together, because in the loss only
# their scans counted. A single value reaches a patch a little wider than its own cell. So the latent is a coarse
# picture of the brain, and a model of latents must learn what a model of pictures learns: outlines, symmetry, which
# shapes go together.
#
# ## A second latent, of choices
# Inference needs a fine latent; a diffusion model that trains for minutes needs a small one. On the fine latent it
# learnt outlines filled with blobs, and an autoencoder that squeezed it into few numbers answered doubt about a fold
# with the mean of all folds: a blur. So the laptop profile has a second autoencoder that does not answer with numbers.
# The inferred maps are told apart into shares of tissue, voxel by voxel; the autoencoder is asked *which tissue*, by
# cross-entropy, and a classifier in doubt still puts an edge somewhere. PD, T1 and T2 are mixed from the tissues' own
# values, which are drawn together with the anatomy, as is a smooth texture. Inference never passes through it. The
# paper's profile has none and generates in the VAE's own latent.

# %%
def train(steps, total, name):
    """Run a training to its end behind a progress bar that leaves nothing."""
    progress = tqdm(total=total, desc=name, leave=False, mininterval=2)
    with torch.enable_grad():
        for step in steps:
            progress.update(step.step + 1 - progress.n)
            progress.set_postfix(loss=f"{step.losses['total']:.3f}", refresh=False)
    progress.close()
    clear_output()


train(run.train_composition(), run.profile.composition_schedule.steps, "compositions")
composition = run.composition()
if composition is None:
    print("this profile generates in the VAE's own latent")
else:
    minutes = run.training_log("composition").seconds.max() / 60
    print(f"compositions: {composition.num_parameters() / 1e6:.1f} M parameters, {minutes:.1f} minutes of training")

# %% [markdown]
# ## A road from data to noise
# Diffusion destroys a latent step by step, which is easy, and learns the way back. The profile's process is one of
# two. *Flow*: $x_\sigma = (1 - \sigma)\,x_0 + \sigma\,\varepsilon$ with $\sigma$ from 0 to 1, for the small
# transformer. *DDPM*: the paper's 1000 steps, for its U-Net. In both the network sees the noisy latent and the noise
# level, and its answer amounts to a guess of the clean one, $\hat x_0$. Two more numbers go in where there is room,
# and each may be left out: how high the slice lies in the stack, and what share of the skull's inside is CSF.

# %%
schedule = run.profile.diffusion_schedule
train(run.train_diffusion(), schedule.steps, "diffusion")
pipe, log = run.pipeline(), run.training_log("pipeline")
size = sum(p.numel() for p in pipe.denoiser.parameters()) / 1e6
print(f"{type(pipe.denoiser).__name__}, {size:.2f} M parameters, process {run.profile.process!r}")
print(f"{schedule.steps} steps of {schedule.batch_size} latents, {log.seconds.max() / 60:.1f} minutes of training")

# %% [markdown]
# First what no training of the diffusion model can bring back: held-out people, as inferred, and come back from the
# latent that is generated.
#
# **Predict:** what is lost on the way through so few numbers, ventricles or folds?

# %%
held_out_latents = run.drawn_latents("val")
chosen = torch.linspace(0, len(val) - 1, 6).long()
through = {"inferred": val_maps}
if composition is not None:
    through["and back"] = pipe.decode(held_out_latents.values[: len(val)])
t1w = {name: render(maps, REFERENCE["T1w"]) for name, maps in through.items()}
rows = [[figures.Panel(image) for image in images[chosen]] for images in t1w.values()]
rows = [[replace(row[0], side=name), *row[1:]] for name, row in zip(through, rows, strict=True)]
fig = figures.map_grid(rows, voxel_mm=recipe.voxel_mm)
numbers = [int(np.prod(z.shape[1:])) for z in (means, held_out_latents.values)]
caption = f"""Slices of held-out people (n = 6) as T1w (MPRAGE, TE 3 ms, TR 2.4 s, TI 1 s): from the VAE's latent
({numbers[0]} numbers a slice) and from the latent that is generated ({numbers[1]} numbers)."""
alt = "Two rows of T1-weighted slices; in the second small folds are missing or elsewhere, edges are as sharp."
publish(fig, "fig22_compositions", caption, alt)
brain = run.truth("val").brain
detail = {name: metrics.fine_detail(images, brain) for name, images in t1w.items()}
for name, images in t1w.items():
    off, sharp = metrics.psnr(images, t1w["inferred"], brain), 100 * detail[name] / detail["inferred"]
    print(f"{name}, T1w in the brain: {f'PSNR {off:.1f} dB, ' * (name != 'inferred')}fine detail {sharp:.0f} %")

# %% [markdown]
# **Figure 22.** Ventricles and large folds are kept, small ones are simplified; edges stay edges. What the second row
# has lost, no sample will have.
#
# **Predict:** at which noise levels can a network do well, and at which can nobody?
#
# The loss averages over noise levels, and most of it can never be learnt: when all is noise, the best guess is the
# mean of everything. More telling is how much of a latent's variance the guess $\hat x_0$ explains at each level, for
# held-out people.

# %%
def with_noise(x, level, generator):
    """A latent at noise level 0 … 1 of the process, and the clock that tells the network."""
    noise = torch.randn(x.shape, generator=generator)
    if run.profile.process == "flow":
        return (1 - level) * x + level * noise, torch.tensor(1000.0 * level)
    clock = torch.tensor(round(999 * level))
    kept = pipe.scheduler.alphas_cumprod[clock]
    return kept.sqrt() * x + (1 - kept).sqrt() * noise, clock.float()


def guess(x, clock, conditions):
    """What the network takes to be the clean latent."""
    answer = pipe.denoiser(with_conditions(pipe.denoiser, x, conditions), clock).sample
    if run.profile.process == "flow":
        return x - clock / 1000 * answer
    kept = pipe.scheduler.alphas_cumprod[clock.long()]
    return (x - (1 - kept).sqrt() * answer) / kept.sqrt()


clean = {"training": run.drawn_latents("train"), "held out": held_out_latents}
clean = {name: (some.values[: len(val)], some.conditions[: len(val)]) for name, some in clean.items()}
levels, explained, generator = np.linspace(0.05, 0.95, 10), {}, torch.Generator().manual_seed(seed)
for name, (x, conditions) in clean.items():
    for level in levels:
        noisy, clock = with_noise(x, float(level), generator)
        wrong = (guess(noisy, clock, conditions) - x) ** 2
        explained.setdefault(name, []).append(100 * (1 - float(wrong.mean() / x.var())))
explained = pandas.DataFrame(explained, index=levels).rename_axis("noise level")
run.write_metrics("diffusion_variance_explained", explained.reset_index());

# %%
wide = log.pivot(index="step", columns="loss", values="value").reset_index()
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.5), layout="constrained")
left.plot(wide.step, wide.total, color="0.25", alpha=0.25, lw=0.6)
left.plot(wide.step, wide.total.rolling(25, center=True, min_periods=1).median(), color="0.25", label="training")
held_out = wide[["step", "val_total"]].dropna()
left.plot(held_out.step, held_out.val_total, "o", mfc="white", mec="#d55e00", label="held out, averaged weights")
left.set(xlabel="step", ylabel="loss", ylim=(0, 1.05 * float(wide.total.quantile(0.98))))
left.legend()
for (name, values), style in zip(explained.items(), ({"color": "0.25"}, {"color": "#d55e00", "ls": "--"}), strict=True):
    right.plot(levels, values, marker="o", mfc="white", label=f"{name}, n = {len(clean[name][0])} latents", **style)
right.axhline(0, color="0.6", lw=0.6)
right.set(xlabel="noise level (0: the latent, 1: noise)", ylabel="variance explained (%)", ylim=(None, 105))
right.legend()
for letter, ax in zip("ab", (left, right), strict=True):
    ax.set_title(letter, loc="left", weight="bold")
caption = f"""Training of the diffusion model. (a) Loss of every step (faint), its running median, and on the latents of
n = {recipe.n_val} held-out people. (b) How much of a latent's variance the guess explains, by noise level."""
alt = "The loss falls and levels off; the variance explained falls from near 100 per cent to near zero as noise grows."
publish(fig, "fig23_diffusion_training", caption, alt)

# %% [markdown]
# **Figure 23.** At the noisy end a network can only know what all brains share; towards the clean end it has to say
# where each gyrus is. A gap between the two curves of (b) is what it knows of its training people only; where the
# circles of (a) rise again, training went on too long.
#
# ## Tissue out of noise
# **Predict:** in the strip below, what can be told first: the ventricles, the outline, or the folds?

# %%
n_steps, frames = run.profile.sampling_steps, []
size = tuple(pipe.config.latent_size)
noise = torch.Generator().manual_seed(seed)  # what the seed means
start = torch.randn(1, len(pipe.config.latent_mean), *size, generator=noise)
pipe.sample_latents(1, seed, n_steps, on_step=lambda i, x: frames.append(x.clone()))
frames = [start, *frames]
shown = np.unique(np.linspace(0, n_steps - 1, 7).round().astype(int))
clocks, middle = pipe.scheduler.timesteps, torch.tensor([[0.0, torch.nan]])  # any share of CSF
guesses = [guess(frames[i], clocks[i].float(), middle) for i in shown]
states = torch.cat([*(frames[i] for i in shown), frames[-1], *guesses, frames[-1]])
seen = render(pipe.decode(states), REFERENCE["T1w"])
window, titles = figures.percentile_window(seen[-1]), [*(f"step {i + 1}" for i in shown), "result"]
above_each = titles + [""] * len(titles)
panels = [figures.Panel(image, window=window, title=t) for image, t in zip(seen, above_each, strict=True)]
rows = [panels[: len(titles)], panels[len(titles) :]]
for row, side in zip(rows, ("state", "guess"), strict=True):
    row[0] = replace(row[0], side=side)
fig = figures.map_grid(rows, voxel_mm=recipe.voxel_mm)
caption = f"""From noise to tissue in {n_steps} steps (n = 1, seed {seed}, middle of the stack), as T1w (MPRAGE, TE 3
ms, TR 2.4 s, TI 1 s). Above: the state of the sampler before a step. Below: the network's guess of the clean latent."""
alt = "Two rows of T1w images: noise turning into a brain, and the guesses, at first a blurred average, then a brain."
publish(fig, "fig24_noise_to_tissue", caption, alt)

# %% [markdown]
# **Figure 24.** The state begins as scrambled pieces, of tissue where the decoder can say nothing else; the guess is a
# brain from the first step on. At first it is everybody's brain, the average; every step decides something, and what
# is decided early (outline, ventricles) constrains what comes later (folds).
#
# ## How many steps?
# Each step is one pass of the network. The solver extrapolates from its last two guesses (second order), and so may
# take longer strides than one that trusts the present guess alone (first order, which is what the paper's DDIM is).
# We draw the same brains from the same noise with ever more steps and measure how far T1 still is from what very many
# steps give. ([05](05_sample_tissue.ipynb) shows the pictures.)
#
# **Predict:** how many steps does the first order need to be as good as the second order with ten?

# %%
n_brains, counts, default = 4, (2, 4, 8, 16, 32), pipe.scheduler
solvers = {order: DPMSolverMultistepScheduler.from_config(default.config, solver_order=order) for order in (1, 2)}
pipe.scheduler = solvers[2]
limit = pipe(n_brains, seed=seed, num_inference_steps=100)
brain = segmentation.brain_of(limit)
rows = []
for order, steps in product(solvers, counts):
    pipe.scheduler, began = solvers[order], time.perf_counter()
    maps = pipe(n_brains, seed=seed, num_inference_steps=steps)
    seconds = (time.perf_counter() - began) / n_brains
    off = 100 * ((maps.t1 - limit.t1).abs() / limit.t1)[brain].median() if brain.any() else torch.tensor(torch.nan)
    rows.append({"order": order, "steps": steps, "T1 off by (%)": float(off), "seconds a brain": seconds})
pipe.scheduler = default
steps_table = pandas.DataFrame(rows)
run.write_metrics("solver_steps", steps_table)
steps_table.pivot(index="steps", columns="order").round(2)

# %%
fig, ax = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
for (order, rows), style in zip(steps_table.groupby("order"), ("o--", "o-"), strict=True):
    ax.loglog(rows.steps, rows["T1 off by (%)"], style, color="0.25", mfc="white", label=f"order {order}")
ax.axvline(n_steps, color="#d55e00", lw=0.8, ls=":", label=f"default, {n_steps} steps")
ax.set(xlabel="steps", ylabel="T1 off by (%, median)")
ax.set_xticks(counts, labels=counts)
ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
ax.yaxis.set_major_formatter("{x:g}")
ax.minorticks_off()
ax.legend()
caption = f"""Solver error against number of steps: median difference of T1 from that of 100 steps of order 2, the same
noise (n = {n_brains} brains, seed {seed})."""
alt = "Two falling lines on logarithmic axes; the second order falls faster than the first."
publish(fig, "fig25_solver_order", caption, alt)

# %% [markdown]
# **Figure 25.** Once its error is small beside the differences between people, a solver is good enough: what is then
# still wrong with a brain is the network's doing, and more steps will not mend it.
#
# ## Drawn or remembered?
# A generator that copies its training set is of no use, and tells on the people it was trained with. Copying shows in
# two places. In training, the model would know training latents better than held-out ones: the two curves of Figure
# 23 (b). In sampling, a generated slice would be much nearer to *one* person than to the next. A small distance alone
# proves nothing, since a smooth picture is near everything; so we take the ratio of the distance to the nearest
# training person and to the next. Held-out people, seen through the same VAE, say which ratio is normal.
#
# **Predict:** what would the ratio be for a perfect copy, and roughly what for somebody new?

# %%
def t1w_of(maps):
    return render(maps, REFERENCE["T1w"]).flatten(1)


def nearest(queries):
    """Distance to the nearest training slice (also mirrored), and its ratio to that of the next nearest person."""
    flat = queries.unflatten(1, recipe.shape)
    both = torch.stack([torch.cdist(q.flatten(1), train_t1w) for q in (flat, flat.flip(-1))]).amin(0)
    distance, row = both.min(1)
    others = both.masked_fill(person[row][:, None] == person, torch.inf)
    return 100 * distance / queries.shape[1] ** 0.5, distance / others.amin(1)


train_maps = run.truth("train").maps
train_t1w = torch.cat([t1w_of(TissueMaps.from_stack(part)) for part in train_maps.split(256)])
person = torch.arange(len(train_t1w)) // recipe.n_slices
del train_maps
found = {
    "generated": nearest(t1w_of(pipe(16, seed=seed, num_inference_steps=n_steps))),
    "held-out people": nearest(t1w_of(val_maps)),
}
rows = {
    name: {
        "slices": len(ratio),
        "RMS distance (% of water), median": float(distance.median()),
        "ratio, median": float(ratio.median()),
        "ratio, smallest": float(ratio.min()),
    }
    for name, (distance, ratio) in found.items()
}
memory = pandas.DataFrame(rows).T.rename_axis("slices of")
run.write_metrics("memorisation", memory.reset_index())
memory.round(3)

# %% [markdown]
# A copy has a ratio near 0; somebody new is about as far from one stranger as from the next, so near 1. As long as
# the smallest ratio of the generated slices is not below that of people the model never met, nobody was copied. With
# one head as the source of all people everyone is a relative: the check tells whether a *person* is copied, not
# whether an *anatomy* is. [05](05_sample_tissue.ipynb) looks at the closest pairs.
#
# ## What we learned
# - A latent is a coarse picture; its channels mix PD, T1 and T2 (Figure 21). What is generated is a choice of tissue, at
#   the price of Figure 22.
# - Trained on means, scaled channel by channel, the model explains held-out latents as Figure 23 says, least where
#   noise is strongest.
# - The guess starts from the average brain and is decided step by step (Figure 24); the order of the solver pays
#   (Figure 25).
# - Whether it remembers can be measured, in training and in samples: Figure 23 (b) and the last table do.
#
# ## Exercises
# 1. Draw the same seed at the bottom, the middle and the top of the stack, then with little and with much CSF. What
#    changes, what stays?
# 2. Decode the mean latent. Is it a brain? Whose?
# 3. Had we trained on $\mu + \sigma\varepsilon$, how much of the spread of the data would have been noise that nobody
#    can predict?
#
# <details><summary>Solution 1</summary>
#
# ```python
# asked = [{"height": h} for h in (-1.0, 0.0, 1.0)] + [{"height": 0.0, "csf_share": s} for s in (0.15, 0.25, 0.35)]
# figures.mosaic([pipe(1, seed, n_steps, **a).t1[0] for a in asked], "T1", columns=3)
# ```
# The noise fixes where asymmetries lie; the height decides which ventricles and nuclei there are, and the share of CSF
# how wide ventricles and sulci are. (The paper's U-Net has no input for either, so there nothing changes.)
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# average = means.mean((0, 2, 3))[None, :, None, None].expand(1, -1, *means.shape[2:])
# figures.mosaic([vae.decode(average).t1[0], vae.decode(means.mean(0, keepdim=True)).t1[0]], "T1", columns=2)
# ```
# The mean per channel is one value for all places and decodes to no brain at all. The mean per place is a blurred
# brain of nobody, much like the first guess in Figure 24.
# </details>
#
# <details><summary>Solution 3</summary>
#
# It is the last column of the first table; its average over channels:
#
# ```python
# channels["noise in μ + σε (%)"].mean()
# ```
# </details>
#
# ## Limits
# Slices are drawn one by one: two heights of one seed are not a volume. The model is unconditional but for the
# height. Sharpness is bounded by the decoder, however good the latents are. Distances between T1w images notice
# copies of shape, not of a tissue value.
#
# ## References
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, arXiv 2006.11239. R. Rombach et al.,
#   *Latent Diffusion*, 2022, arXiv 2112.10752.
# - Y. Lipman et al., *Flow Matching*, 2023, arXiv 2210.02747. P. Esser et al., 2024, arXiv 2403.03206: noise levels
#   in training.
# - T. Li, K. He, 2025, arXiv 2511.13720: guess the clean picture, not the noise. C. Lu et al., *DPM-Solver++*, 2022,
#   arXiv 2211.01095.
# - N. Carlini et al., *Extracting Training Data from Diffusion Models*, 2023, arXiv 2301.13188: why to look for copies.

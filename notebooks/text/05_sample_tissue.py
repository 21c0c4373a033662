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
# # 05 · Brains that never existed
#
# **Question.** The model has learned what tissue looks like. Are the brains that it draws new, and how do they differ
# from true ones?
#
# **You will** draw brains from noise, render their scans (F3 of the paper), try to tell them from true ones, let a
# classifier try, look for copies, measure their anatomy, and walk between two brains. *A minute; with the networks
# of the release.*
#
# [Contents](00_overview.ipynb) · before: [04 Train the generator](04_train_diffusion.ipynb) · next:
# [06 Contrasts nobody acquired](06_unseen_contrasts.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
anatomies = ""
seed = 7

# %%
import numpy as np
import pandas
import torch
from scipy.spatial.distance import cdist

from phyldm_core import figures, physics
from phyldm_core.evaluation import brain_sets, told_apart
from phyldm_core.explorers.latents import NoiseExplorer, on_the_sphere, straight
from phyldm_core.figures import Panel, percentile_window
from phyldm_core.people import segmentation
from phyldm_core.physics import REFERENCE, TissueMaps, render
from phyldm_core.running.chapter import open_chapter, open_model, say

# %% [markdown]
# ## From noise to tissue
# A sample starts as Gaussian noise in a small latent. The network of chapter 04 removes the noise in a few steps, and a
# decoder turns the result into PD, T1 and T2. No scan is involved. The samples are spread evenly over the slice heights
# of the training data.
#
# **Predict:** will T1w, T2w and FLAIR of one sample agree about where the ventricles are?

# %%
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
model = open_model(run)
samples, pipe, voxel_mm = model.samples, model.pipeline, model.voxel_mm
n_samples, heights = len(samples.pd), torch.linspace(-1, 1, len(samples.pd))
print(f"{model.name}: {n_samples} brains of {samples.pd.shape[1]} × {samples.pd.shape[2]} voxels, {voxel_mm:g} mm")


def take(maps, i):
    """One slice, or several, of a batch of maps."""
    return TissueMaps(*(m[i] for m in maps))


# %%
settings = {name: physics.effective_protocol(p) for name, p in REFERENCE.items()}
chosen = torch.linspace(0, n_samples - 1, 5).long()[1:-1]
people, brains = [take(samples, i) for i in chosen], segmentation.brain_of(samples)
scans = {name: [render(person, p) for person in people] for name, p in settings.items()}
fig = figures.samples(people, scans, brains=brains[chosen], voxel_mm=voxel_mm)
caption = f"""F3 of the paper: generated tissue and the scans rendered from it. n = {len(chosen)} of {n_samples}
samples (seed {seed}, {model.steps} steps) by {model.name}, from low to high in the brain:
{"; ".join(map(str, settings.values()))}."""
alt = "Three rows: generated maps of PD, T1 and T2 of a brain slice, and T1w, T2w and FLAIR images rendered from them."
publish(fig, "fig03_samples", caption, alt)

# %%
def fluid_agrees(person, brain):
    """Of the darkest tenth of the T1w in the brain, the share that is also among the brightest fifth of the T2w."""
    t1w, t2w = (render(person, settings[name])[brain] for name in ("T1w", "T2w"))
    return float((t2w > t2w.quantile(0.8))[t1w < t1w.quantile(0.1)].float().mean())


agree = np.mean([fluid_agrees(person, brains[i]) for person, i in zip(people, chosen, strict=True)])
say(f"""**Figure 3 (F3 of the paper).** They agree: {100 * agree:.0f} % of the darkest tenth of the T1w is among the
brightest fifth of the T2w. All three scans are rendered from one tissue, so the agreement needs no learning. The paper
renders T2w at its nominal TE of 450 ms. We use the effective TE ([01](01_signal_physics.ipynb)).""")

# %% [markdown]
# ## Can you tell?
# The T1w images below are shuffled. Half are rendered from true maps of test people, half from generated maps of the
# same heights.
#
# **Predict:** which are generated? Write down the letters before you read on.

# %%
true_maps, n_z = TissueMaps.from_stack(model.truth.maps), model.recipe.n_slices
n_people = len(true_maps.pd) // n_z
level = ((heights + 1) / 2 * (n_z - 1)).round().long()
true_rows = torch.arange(n_samples) % n_people * n_z + level  # for each sample a true slice of the same height
shown = torch.linspace(0, n_samples - 1, min(8, n_samples)).long()
pool = [("generated", take(samples, i), brains[i]) for i in shown]
inside = segmentation.brain_of(take(true_maps, true_rows[shown]))
pool += [("true", take(true_maps, i), mask) for i, mask in zip(true_rows[shown], inside, strict=True)]
order = np.random.default_rng(seed).permutation(len(pool))

# %%
letters, panels = "abcdefghijklmnop", []
for letter, k in zip(letters, order, strict=False):
    image = render(pool[k][1], REFERENCE["T1w"]) * pool[k][2]
    panels.append(Panel(image, window=percentile_window(image, pool[k][2]), note=letter))
fig = figures.map_grid([panels[: len(panels) // 2], panels[len(panels) // 2 :]], voxel_mm=voxel_mm)
caption = f"""Can you tell? True and generated T1w images, shuffled: {settings["T1w"]}, n = {len(shown)} and
{len(shown)}, each windowed inside its brain. The answer is in chapter 05."""
publish(fig, "fig18_can_you_tell", caption, "T1-weighted slices in two rows, half of them generated, lettered.")

# %%
answer = ", ".join(letter for letter, k in zip(letters, order, strict=False) if pool[k][0] == "generated")
detail = [float(np.mean([render(m, REFERENCE["T1w"])[b].diff().abs().mean() for kind, m, b in pool if kind == name]))
          for name in ("generated", "true")]  # fmt: skip
say(f"""**Figure 18.** The generated images are **{answer}**. Ventricles and folds are sharp. Some are
given away by a lopsided outline. Without label maps of people the true ones are deformations of one template,
MNI152: an average of many heads, smoother and more symmetric than a person. The mean change of the T1w from voxel to
voxel is {100 * detail[0] / detail[1]:.0f} % of that in true brains.""")

# %% [markdown]
# ## Can a classifier tell?
# The area under the ROC curve (AUC) measures how well a classifier separates two sets: 0.5 is chance, and 1 is always
# right. Here logistic regression sees full-resolution slices through fixed random filters. No person has slices in both
# its training set and its test set.
#
# **Predict:** what AUC do you expect after the figure above: 0.6, 0.8 or 1?

# %%
compared = {"generated": samples, "true": take(true_maps, true_rows)}
features = {name: brain_sets.features(brain_sets.pictures(maps)) for name, maps in compared.items()}
groups = 1000 + np.arange(n_samples), (true_rows // n_z).numpy()
if n_people >= 3 and n_samples >= 3:
    auc = told_apart.auc_of_features(features["generated"], features["true"], groups, seed)
    say(f"""The AUC is {auc:.2f}, with {n_samples} slices of each kind.""")

# %% [markdown]
# ## Is it a copy?
# [Chapter 04](04_train_diffusion.ipynb) compares samples with the people that a run was trained on, and the model card
# has the release's numbers. Below are the samples that lie nearest to a true slice of people whom the model never saw.
# They show how near two different brains can be.
#
# **Predict:** will a sample's nearest true slice share its folds?

# %%
def coarse(maps):
    """``(n, k)``: the reference T1w of each slice's brain on a grid four times coarser."""
    t1w = render(maps, REFERENCE["T1w"]) * segmentation.brain_of(maps)
    return torch.nn.functional.avg_pool2d(t1w[:, None], 4).flatten(1).numpy()


apart, among = cdist(coarse(samples), coarse(true_maps)), cdist(coarse(true_maps), coarse(true_maps))
of = np.arange(len(true_maps.pd)) // n_z
among[of[:, None] == of] = np.inf
row, headings = [], []
for i in np.argsort(apart.min(1))[:4].tolist():
    for title, maps in (("sample", take(samples, [i])), ("nearest", take(true_maps, [int(apart[i].argmin())]))):
        image, mask = render(maps, REFERENCE["T1w"])[0], segmentation.brain_of(maps)[0]
        row += [Panel(image * mask, window=percentile_window(image, mask), title=title)]
    headings.append((f"distance {apart[i].min():.2f}", 2))

# %%
fig = figures.map_grid([row], groups=headings, voxel_mm=voxel_mm)
caption = f"""The samples nearest to true slices. n = 4 of {n_samples} samples (Euclidean distance of T1w images
averaged over 4 × 4 voxels), each beside its nearest of {len(true_maps.pd)} slices of test people. {settings["T1w"]},
each windowed inside its brain."""
publish(fig, "fig19_nearest", caption, "Four pairs of T1-weighted slices: sample and nearest true slice.")
finite = among.min(1)[np.isfinite(among.min(1))]
people_apart = f"{np.median(finite):.2f}" if finite.size else "unknown"
say(f"""**Figure 19.** The median distance from a sample to its nearest true slice is {np.median(apart.min(1)):.2f}.
From a true slice to the nearest slice of another person it is {people_apart}. In the pairs shown the
folds differ.""")

# %% [markdown]
# ## Anatomy in numbers
# How much of each tissue a slice holds can be measured without a template. Tissue is told by thresholds on the rendered
# T1w, in the same way for samples and truth.
#
# **Predict:** will generated brains hold as much CSF as true ones?

# %%
def shares(maps):
    """Share of CSF, GM and WM in the brain of all slices, in %."""
    labels = segmentation.segment_slices(maps)
    total = max((labels > 0).sum(), 1)
    return {name: 100 * float((labels == k).sum() / total) for k, name in enumerate(("CSF", "GM", "WM"), 1)}


held = pandas.DataFrame({name: shares(maps) for name, maps in compared.items()}).rename_axis("% of the brain")
run.write_metrics("samples", held.rename_axis("tissue").reset_index())
held.round(1)

# %%
more = held.generated["CSF"] / held.true["CSF"]
say(f"""CSF fills {held.generated["CSF"]:.0f} % of generated brains and {held.true["CSF"]:.0f} % of true ones,
{more:.2f} times as much.""")

# %% [markdown]
# ## Explore: noise to tissue, and the way between two brains
# A seed stands for one noise, and a noise for one brain on one machine (another processor may round differently). Move
# *A → B* to walk from one brain to another, and *noise → tissue* to follow the steps. Another seed, number of steps or
# height draws nine new brains, which takes a moment.
#
# **Predict:** half-way from A to B, will there be one brain, or two that shine through each other?

# %%
explorer = NoiseExplorer(pipe, (seed, seed + 1), model.steps)
explorer

# %%
explorer.still()

# %% [markdown]
# There is one brain. In many dimensions Gaussian noise lies close to a sphere, and the network was trained on such
# noise only. A great circle from A to B stays on the sphere, and a straight line leaves it:

# %%
shape = (1, len(pipe.config.latent_mean), *pipe.config.latent_size)
a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in (seed, seed + 1))
ways = {"on the sphere": on_the_sphere, "straight": straight}
length = {n: f(a, b, torch.linspace(0, 1, 5)).flatten(1).norm(dim=1) / a.numel() ** 0.5 for n, f in ways.items()}
pandas.DataFrame(length, index=["A", "1/4", "1/2", "3/4", "B"]).T.round(2)  # relative to unit noise

# %% [markdown]
# ## What we learned
# - Noise, a few steps and a decoder give PD, T1 and T2, and any scan follows by physics (Figure 3).
# - Some generated slices are told from true ones by their outline (Figure 18), and a classifier separates
#   them.
# - Four samples are shown beside their nearest true slices (Figure 19), and the share of CSF is measured.
# - What each part of the generator is worth, and what another output layer costs: [a
#   page](../data/generators/README.md).
#
# ## Exercises
# 1. **Predict first:** two seeds stand for two latents `a` and `b`. What does the brain of $(a + b)/2$ look like?
# 2. Ask for a height that the model never saw, `height=1.5`. Does the anatomy go on, stop, or break?
#
# <details><summary>Solution 1</summary>
#
# ```python
# a, b = (pipe.sample_latents(1, k, model.steps, height=0.0) for k in (seed, seed + 1))
# way = [take(pipe.decode((1 - w) * a + w * b), 0) for w in np.linspace(0, 1, 5)]
# figures.mosaic([m.t1 for m in way], "T1", columns=5, voxel_mm=voxel_mm)
# ```
# The two ends cross-fade: folds that do not lie in the same place blur in the middle. Mixing the *noise* on the sphere
# and then removing it gives one brain at each step.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# beyond = [take(pipe(1, seed=seed, num_inference_steps=model.steps, height=z), 0) for z in (0.5, 1.0, 1.5, 2.5)]
# figures.mosaic([m.t1 for m in beyond], "T1", labels=["0.5", "1.0", "1.5", "2.5"], columns=4, voxel_mm=voxel_mm)
# ```
# Just beyond the trained heights the trend goes on. Far outside them, the brain stops changing or breaks up. Trust a
# condition only in the range of the training data.
# </details>
#
# ## Limits
# The model draws slices and not heads: neighbouring slices share only their noise. "True" means simulated. A
# radiologist who looks at sixteen pictures for an hour would tell us more than a distance does.
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532: F3.
# - D. Lopez-Paz, M. Oquab, *Revisiting classifier two-sample tests*, ICLR 2017.
# - K. Shoemake, *Animating rotation with quaternion curves*, SIGGRAPH 1985: the way on the sphere.
# - J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, ICLR 2021: interpolation in noise.

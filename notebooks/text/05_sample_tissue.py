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
# **Question.** The model has learnt what tissue looks like. Are the brains it draws new, do they look like brains, and
# in what can they be told from true ones?
#
# **You will** draw brains from noise, render their scans (the paper's Figure 3), try to tell them from true ones, let a
# machine try, look for copies of the training set, and count how many denoising steps a brain takes. *CPU, 2 min.*
#
# [Contents](00_overview.ipynb) · before: [04 Train the diffusion model](04_train_diffusion.ipynb) · next:
# [06 Contrasts nobody acquired](06_unseen_contrasts.ipynb)
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

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from phyldm_core import figures, physics, tissue
from phyldm_core.evaluation import metrics
from phyldm_core.explorers.console import CLINIC
from phyldm_core.figures import Panel
from phyldm_core.inference import infer
from phyldm_core.people import segmentation
from phyldm_core.physics import REFERENCE, TissueMaps, render
from phyldm_core.running.chapter import open_chapter

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
voxel_mm = run.recipe.voxel_mm

# %% [markdown]
# ## From noise to tissue
# A sample starts as Gaussian noise in the small latent space. The network of notebook 04 removes the noise in a few
# steps, and the decoder of notebook 03 reads the result as PD, T1 and T2. No scan is involved anywhere.
#
# **Predict:** how long do 16 brains take on your machine: seconds, minutes?

# %%
pipe, steps = run.pipeline(), run.profile.sampling_steps
began = time.perf_counter()
pipe(16, seed=seed, num_inference_steps=steps)
seconds = time.perf_counter() - began
print(f"16 brains, {steps} steps each: {seconds:.1f} s")

# %% [markdown]
# The figures here and in notebooks 06 and 07 share one set of samples, drawn once from the seed and kept in the run's
# folder. Their heights are spread evenly over the stack of slices that the model was trained on.

# %%
samples = run.make_samples()
n_samples = len(samples.pd)
heights = torch.linspace(-1, 1, n_samples)  # −1 is the lowest slice of the stack, 1 the highest
print(f"{n_samples} brains of {samples.pd.shape[1]} × {samples.pd.shape[2]} voxels, {voxel_mm:g} mm")


# %%
def take(maps, i):
    """One slice, or several, of a batch of maps."""
    return TissueMaps(*(m[i] for m in maps))


def without_air(maps):
    """PD 0 where a PD-weighted scan shows less than half of what any tissue gives: T1 and T2 mean nothing in air."""
    return maps._replace(pd=maps.pd * (render(maps, CLINIC["PDw spin echo"]) > 0.3))


# %%
settings = {name: physics.effective_protocol(p) for name, p in REFERENCE.items()}
chosen = torch.linspace(0, n_samples - 1, 5).long()[1:-1]
people = [without_air(take(samples, i)) for i in chosen]
scans = {name: [render(person, p) for person in people] for name, p in settings.items()}
fig = figures.samples(people, scans, voxel_mm=voxel_mm)
caption = f"""Generated tissue, n = {len(chosen)} of {n_samples} samples (seed {seed}, {steps} steps), from low to high
in the brain, and the scans rendered from it: {"; ".join(map(str, settings.values()))}."""
alt = "Three rows: generated maps of PD, T1 and T2 of a brain slice, and T1w, T2w and FLAIR images rendered from them."
publish(fig, "fig03_samples", caption, alt)

# %% [markdown]
# **Figure 3.** Each row is one brain that nobody has. Its three scans agree with each other, because they are three
# views of the same tissue: a ventricle that is dark in T1w is bright in T2w and dark again in FLAIR. A model that
# generated images would have to learn that agreement; here the physics grants it. (The paper renders T2w at its nominal
# TE of 450 ms. Notebook [01](01_signal_physics.ipynb) shows why we take the effective one.)
#
# ## Can you tell?
# Below are T1w images of true test people, rendered from their true maps, and of as many generated ones from the same
# heights, shuffled. **Predict:** which are generated? Note eight letters before you read on.

# %%
truth, test = run.truth("test"), run.scans("test")
true_maps, n_z = TissueMaps.from_stack(truth.maps), run.recipe.n_slices
n_people = len(truth.maps) // n_z


def true_rows(rows):
    """For each sample a true slice of the same height, from one person after the other."""
    level = ((heights[rows] + 1) / 2 * (n_z - 1)).round().long()
    return torch.arange(len(rows)) % n_people * n_z + level


# %%
shown = torch.linspace(0, n_samples - 1, 8).long()
pool = [(i, "generated") for i in shown] + [(i, "true") for i in true_rows(shown)]
order = np.random.default_rng(seed).permutation(len(pool))
maps_of = {"generated": samples, "true": true_maps}
pictures = [render(take(maps_of[kind], i), REFERENCE["T1w"]) for i, kind in (pool[k] for k in order)]
letters = "abcdefghijklmnop"
fig = figures.mosaic(pictures, None, labels=list(letters), voxel_mm=voxel_mm)
caption = f"""True and generated T1w images, shuffled: {settings["T1w"]}, n = 8 and 8. The answer is in notebook 05."""
publish(fig, "fig26_can_you_tell", caption, "Sixteen T1-weighted slices, half of them generated, lettered a to p.")

# %% [markdown]
# The answer:

# %%
answer = [pool[k][1] for k in order]
print("generated:", ", ".join(letter for letter, kind in zip(letters, answer, strict=True) if kind == "generated"))

# %% [markdown]
# **Figure 26.** Look at the cortex. The large forms (outline, ventricles, insula, midline) are the easy part; the folds
# of the cortex, one or two voxels thick, are where a short training runs out. Two networks can be at fault: the
# decoder, which cannot draw what its latent does not hold, and the diffusion model, which may ask it for something odd.
#
# ## Can a machine tell?
# A nearest-neighbour test makes "can you tell" a number. Put generated and true slices in one heap, and let each guess
# its kind from its nearest neighbour. If both come from one distribution the guesses are right half the time. If the
# kinds keep to themselves, nearly always. Slices are compared as T1w images averaged over 4 × 4 voxels, where detail
# the decoder cannot draw counts for little. Slices of one person never count as neighbours: they are alike for a reason
# of their own.
#
# To separate the two suspects we also test *inferred* maps, which the same decoder makes from the test people's scans.
#
# **Predict:** which pair will be harder to tell apart, inferred and true, or generated and inferred?

# %%
inferred = infer(run.vae(), test)[1]


def coarse(maps):
    """``(n, k)``: the reference T1w of each slice on a grid four times coarser."""
    t1w = render(maps, REFERENCE["T1w"])
    return torch.nn.functional.avg_pool2d(t1w[:, None], 4).flatten(1).numpy()


def told_apart(one, other):
    """How often the nearest slice of anybody else is of the same kind; each is (slices, whose they are)."""
    images, people = (np.concatenate(parts) for parts in zip(one, other, strict=True))
    apart = cdist(images, images)
    apart[people[:, None] == people] = np.inf
    kind = np.repeat([0, 1], [len(one[1]), len(other[1])])
    return float((kind[apart.argmin(1)] == kind).mean())


# %%
everyone = torch.arange(n_samples)
rows = true_rows(everyone)
generated_c, true_c, inferred_c = coarse(samples), coarse(take(true_maps, rows)), coarse(take(inferred, rows))
heap = {"generated": (generated_c, -1 - np.arange(n_samples))}  # every sample is a person of its own
heap |= {"true": (true_c, rows // n_z), "inferred": (inferred_c, rows // n_z)}
pairs = [("generated", "true"), ("inferred", "true"), ("generated", "inferred")]
tests = {", ".join(pair): told_apart(*(heap[kind] for kind in pair)) for pair in pairs}
pandas.Series(tests, name="told apart (0.5: chance)").round(2).to_frame()

# %% [markdown]
# Read the table against 0.5. The second row is the decoder's doing; what the third has in excess of 0.5 is the
# diffusion model's; the first has both. Below 0.5 a test can fall, too: samples that keep to the middle of the true
# ones are nearer to everybody than people are to each other. Nor does a number near 0.5 contradict the eye: averaged over
# 4 × 4 voxels there is no cortex left to be soft (put 1 for the 4 in `coarse` to let the test see what you see). And with
# this many slices chance itself scatters:

# %%
print(f"chance alone: 0.50 ± {2 * np.sqrt(0.25 / (2 * n_samples)):.2f} (two SD, {2 * n_samples} independent guesses)")

# %% [markdown]
# ## Is it a copy?
# A model can also make perfect brains by remembering some. Notebook [04](04_train_diffusion.ipynb) put a number on it;
# here is the evidence for the eye: the four samples that lie closest to any training slice, or to its mirror image.
#
# **Predict:** which will be nearer to the training set, samples or true people it has never seen?

# %%
train_maps = TissueMaps.from_stack(run.truth("train").maps)
train_c = coarse(train_maps)


def to_train(maps):
    """Distance of every slice, as it is and mirrored, to every training slice: ``(2, n, n_train)``."""
    mirrored = TissueMaps(*(m.flip(-1) for m in maps))
    return np.stack([cdist(coarse(m), train_c) for m in (maps, mirrored)])


apart = to_train(samples)
nearest = {"generated": apart.min((0, 2)), "true, held out": to_train(take(true_maps, rows)).min((0, 2))}
pandas.DataFrame({name: np.percentile(d, (0, 25, 50, 75)) for name, d in nearest.items()},
                 index=["minimum", "lower quartile", "median", "upper quartile"]).T.round(3)  # fmt: skip

# %%
row, headings = [], []
for i in np.argsort(nearest["generated"])[:4].tolist():  # the most suspicious
    mirrored, j = np.unravel_index(apart[:, i].argmin(), apart[:, i].shape)
    twin = render(take(train_maps, int(j)), REFERENCE["T1w"])
    row.append(Panel(render(take(samples, i), REFERENCE["T1w"]), title="sample"))
    row.append(Panel(twin.flip(-1) if mirrored else twin, title="mirrored" if mirrored else "training"))
    headings.append((f"distance {nearest['generated'][i]:.2f}", 2))
fig = figures.map_grid([row], groups=headings, voxel_mm=voxel_mm)
caption = f"""The four samples closest to the training set (of n = {n_samples}; Euclidean distance of T1w images
averaged over 4 × 4 voxels), each beside its nearest of {len(train_c)} training slices and their mirror images.
{settings["T1w"]}."""
publish(fig, "fig27_nearest_training", caption, "Four pairs of T1-weighted slices: sample and nearest training slice.")
del train_maps, train_c

# %% [markdown]
# **Figure 27.** Copies would give the samples a minimum far below that of the held-out people, and pairs that agree
# fold by fold. Note what the test cannot see: with one anatomy all people, held out or not, are deformations of one
# head, so that "new" means a new deformation. A run with `--anatomies` and many heads asks the harder question.
#
# ## Height is a condition
# The diffusion model is told the height of the slice. The same noise at several heights should give one head, cut at
# several levels: nothing in the training asked for that, since every slice was learnt on its own.
#
# **Predict:** will the rows below look like one person?

# %%
def t1_row(slices, side, titles=()):
    """T1 of several slices in a row; its name is written once."""
    return [
        Panel(s.t1, "T1", side=side * (i == 0), title=titles[i] if titles else "", inside=s.pd > 0)
        for i, s in enumerate(map(without_air, slices))
    ]


levels = torch.linspace(-1, 1, 7)
stacks = {
    f"seed {k}": [take(pipe(1, seed=k, num_inference_steps=steps, height=float(z)), 0) for z in levels]
    for k in (seed, seed + 1)
}
stacks["true"] = [take(true_maps, i) for i in ((levels + 1) / 2 * (n_z - 1)).round().long()]
titles = [f"height {round(float(z), 2) + 0.0:+.2f}".replace("-", "−") for z in levels]
grid = [t1_row(stack, name, titles * (k == 0)) for k, (name, stack) in enumerate(stacks.items())]
fig = figures.map_grid(grid, voxel_mm=voxel_mm)
caption = f"""The height of the slice as a condition: T1 of n = 2 samples, each from one noise at seven heights
({steps} steps), and of one true test person. The stack of slices is {(n_z - 1) * run.recipe.slice_mm:g} mm high."""
publish(fig, "fig28_height", caption, "Three rows of seven T1 maps, low to high: two generated, one true.")

# %% [markdown]
# **Figure 28.** What must change with height are the ventricles, the insula and the outline. What should stay is the
# person: the asymmetries, the width of the fissures, the T1 of white matter.
#
# ## How many steps?
# The paper takes 50 steps (DDIM). Notebook [04](04_train_diffusion.ipynb) followed the noise on its way and measured
# what a solver leaves undone; here are the brains. Each row is one brain, drawn from one noise in 1, 2, 4 … steps.
#
# **Predict:** what will a brain drawn in a single step look like? (It is the network's best guess at a clean brain from
# pure noise.)

# %%
counts, drawn, costs = (1, 2, 4, 8, 20, 50), {}, {}
for n in counts:
    began = time.perf_counter()
    drawn[n] = pipe(6, seed=seed, num_inference_steps=n, height=torch.linspace(-0.9, 0.9, 6))
    costs[n] = (time.perf_counter() - began) / 6
titles = [f"{n} step{'s' * (n > 1)}" for n in counts]
grid = [t1_row([take(drawn[n], k) for n in counts], f"brain {k + 1}", titles * (k == 1)) for k in (1, 4)]
fig = figures.map_grid(grid, voxel_mm=voxel_mm)
caption = f"T1 of n = 2 samples (seed {seed}), each drawn from the same noise in 1 to 50 steps of the default solver."
alt = "Two rows of T1 maps: a brain that grows sharper as more denoising steps are taken, and stops changing."
publish(fig, "fig29_steps", caption, alt)

# %%
t1w = {n: render(drawn[n], REFERENCE["T1w"]) for n in counts}
between = (t1w[50] - t1w[50].flip(0)).square().mean().sqrt()  # of one brain from another
from_50 = {n: float((t1w[n] - t1w[50]).square().mean().sqrt() / between) for n in counts}
pandas.DataFrame({"difference from 50 steps (of that between brains)": from_50, "s a brain": costs}).round(3)

# %% [markdown]
# **Figure 29.** One step gives an average of many brains: soft, and right in the large. Each further step decides
# something. When the difference from 50 steps is small beside that between two samples, more steps cost time and change
# nothing that matters.
#
# ## Reproducible, not repeated
# A seed stands for one brain, on any machine. **Predict:** are the brains of seed 7 and seed 8 neighbours?

# %%
one, again, other = (pipe(1, seed=k, num_inference_steps=steps, height=0.0) for k in (seed, seed, seed + 1))
print("same seed, largest difference of T1:", float((one.t1 - again.t1).abs().max()), "s")
print(f"next seed, mean difference of log T1: {float((one.t1 / other.t1).log().abs().mean()):.3f}")

# %% [markdown]
# Neighbouring seeds are as unlike as any two: a seed starts a stream of random numbers, it is not a place on a map.
#
# ## Anatomy in numbers
# Eyes forgive. Two properties of a slice can be measured without a template: how much of each tissue it holds, and how
# symmetric it is. Tissue is told by three-class thresholds on the rendered T1w (`segmentation.segment_tissue`), in the same
# way for samples and truth; symmetry is the correlation of the T1w with its mirror image, both centred.

# %%
def measure(maps, where):
    """A row a slice: area of each tissue (cm²), symmetry, height."""
    t1w, brain = render(maps, REFERENCE["T1w"]).numpy(), segmentation.brain_of(maps).numpy()
    rows = []
    for image, inside, height in zip(t1w, brain, where.tolist(), strict=True):
        labels = segmentation.segment_tissue(image, inside)
        centre = round((image.shape[1] - 1) / 2 - np.argwhere(inside)[:, 1].mean())
        image, inside = (np.roll(a, centre, axis=1) for a in (image, inside))
        both = inside & inside[:, ::-1]
        areas = {name: (labels == k).sum() * voxel_mm**2 / 100 for k, name in enumerate(tissue.CLASSES, 1)}
        symmetry = metrics.correlation(image, image[:, ::-1], both) if both.any() else np.nan
        rows.append({"height": height, "symmetry": symmetry, **areas})
    return pandas.DataFrame(rows)


measured = {"true": measure(true_maps, test.position), "generated": measure(samples, heights)}

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), width_ratios=(1.7, 1), layout="constrained")
for name in tissue.CLASSES:
    colour = figures.TISSUE_COLOURS[name]
    by_height = measured["true"].groupby("height")[name].quantile([0.05, 0.5, 0.95]).unstack()
    axes[0].fill_between(by_height.index, by_height[0.05], by_height[0.95], color=colour, alpha=0.2, lw=0)
    axes[0].plot(by_height.index, by_height[0.5], color=colour)
    axes[0].plot("height", name, "o", data=measured["generated"], color=colour, mec="white", mew=0.4, ms=4, label=name)
axes[0].set(xlabel="height in the stack", ylabel="area (cm²)", ylim=(0, None))
axes[0].legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))
found = [measured[kind].symmetry.dropna() for kind in measured]
bins = np.linspace(min(map(min, found)) - 0.01, 1, 25)
for values, kind, look in zip(found, measured, ({"color": "0.7"}, {"histtype": "step", "color": "black"}), strict=True):
    axes[1].hist(values, bins, weights=np.full(len(values), 1 / len(values)), label=kind, **look)
axes[1].set(xlabel="correlation with the mirror image", yticks=[])
axes[1].spines["left"].set_visible(False)
axes[1].legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.14))
caption = f"""Anatomy in numbers. Left: area of each tissue in a slice against its height: true test people (median and
5th to 95th percentile, n = {n_people}) and samples (dots, n = {n_samples}). Right: left–right symmetry of the T1w
image ({REFERENCE["T1w"]})."""
publish(fig, "fig30_anatomy", caption, "Tissue areas against height, dots over bands, and two histograms of symmetry.")

# %%
columns = [*tissue.CLASSES, "symmetry"]
table = pandas.DataFrame({kind: frame[columns].median() for kind, frame in measured.items()})
pairs = {c: [measured[kind][c].dropna() for kind in ("generated", "true")] for c in columns}
table["distance"] = [wasserstein_distance(*pairs[c]) / pairs[c][1].median() for c in columns]
long = [{"metric": "told_apart", "quantity": name, "value": v, "n": n_samples} for name, v in tests.items()]
long += [{"metric": "wasserstein", "quantity": "symmetry" if c == "symmetry" else "area", "value": v, "n": n_samples,
          "tissue": "" if c == "symmetry" else c} for c, v in table.distance.items()]  # fmt: skip
long += [{"metric": "seconds_for_16_samples", "quantity": "T1, T2, PD", "value": seconds, "n": 16}]
run.write_metrics("samples", metrics.long_form(long))
table.round(3)

# %% [markdown]
# **Figure 30.** Dots inside the bands have the right amount of tissue for their height. Dots that cling to the median
# tell of a model that draws average people; dots beyond the bands, of one that makes up anatomy. The distance in the
# table is Wasserstein-1 over the median of the truth, as in notebook [07](07_tissue_histograms.ipynb).
#
# ## What we learned
# - Noise, a few steps and a decoder give PD, T1 and T2 in physical units; any scan follows by physics (Figure 3).
# - Seeing is not enough: the nearest-neighbour test says how often true and generated are told apart, and which of the
#   two networks is to blame.
# - The closest training slice of each sample is on show, so that copying cannot hide (Figure 27).
# - One noise at several heights makes a head (Figure 28), a few steps are as good as fifty (Figure 29), and tissue
#   areas and symmetry can be held against those of people (Figure 30).
#
# ## Exercises
# 1. **Predict first:** two seeds stand for two latents, `a` and `b`. What does the brain of $(a + b)/2$ look like, and
#    why not half old, half new? Draw five brains on the way from `a` to `b`.
# 2. The mean of all samples is a brain, too. How does it differ from the mean of all true slices of the same heights?
# 3. Ask for a height the model never saw, `height=1.5`. Does the anatomy go on, stop, or break?
#
# <details><summary>Solution 1</summary>
#
# ```python
# a, b = (pipe.sample_latents(1, k, steps, height=0.0) for k in (seed, seed + 1))
# way = [take(pipe.decode((1 - w) * a + w * b), 0) for w in np.linspace(0, 1, 5)]
# figures.map_grid([t1_row(way, "a to b")], voxel_mm=voxel_mm)
# ```
# The two ends cross-fade: folds that do not lie in the same place blur in the middle, since the mean of two latents is
# less extreme than either, and the decoder draws less extreme brains. Interpolating the *noise* instead, on a sphere so
# that it keeps its length, and denoising each point gives a sharp brain at every step.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# generated, true = (m.t1[k].mean(0) for m, k in ((samples, everyone), (true_maps, true_rows(everyone))))
# look = [Panel(generated, "T1", title="samples"), Panel(true, "T1", title="true"),
#         Panel(100 * (generated / true - 1), "error", title="difference", inside=true > 0.5)]
# figures.map_grid([look], voxel_mm=voxel_mm)
# ```
# A difference that is the same all over the white matter is a bias of T1, inherited from the decoder; a rim around the
# brain or the ventricles is anatomy that is too large, too small, or too often in the same place.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# beyond = [take(pipe(1, seed=seed, num_inference_steps=steps, height=z), 0) for z in (0.5, 1.0, 1.5, 2.5)]
# figures.map_grid([t1_row(beyond, "beyond", ["0.5", "1.0", "1.5", "2.5"])], voxel_mm=voxel_mm)
# ```
# Just beyond the stack the trend goes on: the network has learnt what rising does. Far outside nothing holds it, and
# the brain stops changing or breaks up. A condition is to be trusted where there was data.
# </details>
#
# ## Limits
# A slice is not a head: nothing ties neighbouring slices together but the noise they share. The test people are
# simulated, so that "true" means true to the simulation. Sixteen pictures and an hour of a radiologist's time would say
# more than any distance here.
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532:
#   Figure 3.
# - R. Rombach et al., *High-resolution image synthesis with latent diffusion models*, CVPR 2022.
# - D. Lopez-Paz, M. Oquab, *Revisiting classifier two-sample tests*, ICLR 2017: the nearest-neighbour test.
# - N. Carlini et al., *Extracting training data from diffusion models*, USENIX Security 2023: copies.

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
# # 07 · Is it tissue?
#
# **Question.** The generated brains hold T1, T2 and PD that nobody measured. Are they values that living tissue has?
#
# **You will** compare generated, inferred and true tissue with what was measured in people (F5 of the paper), find out
# which network changes what, and see why T2 of CSF cannot be told from these scans. *A minute; with the networks
# of the release.*
#
# [Contents](00_overview.ipynb) · before: [06 Contrasts nobody acquired](06_unseen_contrasts.ipynb) · next:
# [08 Real scans](08_real_scans.ipynb)

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

from phyldm_core import figures, physics, tissue
from phyldm_core.evaluation import metrics, tables
from phyldm_core.explorers.histograms import HistogramExplorer
from phyldm_core.people import segmentation
from phyldm_core.physics import TissueMaps
from phyldm_core.running.chapter import open_chapter, open_model, say
from phyldm_core.slices import MODALITIES

# %% [markdown]
# ## What was measured
# `data/relaxation_times.csv` lists published values, one a row, each with its source.
#
# **Predict:** by what factor do the published means of white-matter T1 at 3 T differ: 1.05, 1.2 or 1.6?

# %%
rows = {}
for quantity in ("T1", "T2", "PD"):
    for name in ("WM", "GM", "CSF"):
        values = figures.studies(name, quantity)["mean"]
        ends = {"lowest": values.min(), "highest": values.max(), "highest / lowest": values.max() / values.min()}
        rows[quantity, name] = {"studies": len(values)} | ends
measured = pandas.DataFrame(rows).T.astype({"studies": int})
measured.round(3)

# %%
say(f"""By a factor of {measured.loc[("T1", "WM"), "highest / lowest"]:.1f}. Studies differ by more than people do, by
method above all. So a model can only be asked to fall into a band. "Within 3 % of the literature" would be a claim
about one paper.""")

# %% [markdown]
# ## F5 of the paper
# Three populations of slices meet the bands: *true* (the maps that held-out people were simulated with), *inferred*
# (maps that the VAE makes from their scans) and *generated* (the samples of chapter 05). All are told apart into white
# matter, grey matter and CSF by thresholds on the T1w rendered from the maps. A segmentation by T1 itself would make
# any sample's white matter look right.
#
# **Predict:** where will inferred and generated agree with each other and not with the truth?

# %%
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
model = open_model(run)
truth, test, samples = model.truth, model.test, model.samples
inferred, n_people = model.inferred(test), len(test.subject.unique())
populations = {"true": TissueMaps.from_stack(truth.maps), "generated": samples, "inferred": inferred}
values = {name: segmentation.segmented_values(maps) for name, maps in populations.items()}
distances = tables.sample_histograms(samples, truth, test)
far = distances[distances.metric == "wasserstein"].set_index(["tissue", "quantity"]).value.to_dict()

# %%
fig = figures.tissue_histograms(values, distances=far)
caption = f"""F5 of the paper: histograms of tissue. True (held-out people, n = {n_people}, {len(truth.maps)} slices),
inferred from their scans, and generated (n = {len(samples.pd)} slices, seed {seed}), by {model.name}; segmented on
the T1w rendered with the paper's protocol. W1: Wasserstein-1 distance of generated from true over the true median.
Bands and ticks: values in vivo at 3 T (water content: any field)."""
alt = "Nine panels of histograms, T1, T2 and PD of three tissues, over shaded bands of measured values."
publish(fig, "fig05_histograms", caption, alt)

# %% [markdown]
# ## Which network changes what?
# Wasserstein-1 is the mean distance by which values must be moved to turn one histogram into another; here it is
# divided by the true median. *Two halves* is the same distance between two random halves of the true people. It is
# missing with too few people.

# %%
keys = [(name, quantity) for quantity in ("T1", "T2", "PD") for name in ("WM", "GM", "CSF")]
pairs = {"inferred from true": ("inferred", "true"), "generated from inferred": ("generated", "inferred")}
table = {"generated from true": far}
for label, (a, b) in pairs.items():
    there = [k for k in keys if values[a][k].size and values[b][k].size]
    table[label] = {k: metrics.histogram_distance(values[a][k], values[b][k]) for k in there}
halves = distances[distances.metric == "wasserstein_floor"].set_index(["tissue", "quantity"]).value
moved = pandas.DataFrame(table | {"two halves": halves.to_dict()}).reindex(keys)
run.write_metrics("histograms", distances)
moved.rename_axis(["tissue", "quantity"]).round(3)

# %%
over = (moved["generated from true"] / moved["two halves"]).dropna()
worst = moved["generated from true"].dropna()
beyond = f"It is {over.median():.1f} times the distance of two halves in the median row." if len(over) else ""
say(f"""**Figure 5 (F5 of the paper).** Generated tissue is farthest from true tissue for {worst.idxmax()[1]} of
{worst.idxmax()[0]} ({worst.max():.2f} of the median) and nearest for {worst.idxmin()[1]} of {worst.idxmin()[0]}
({worst.min():.3f}). {beyond} Of the mean distance, {moved["inferred from true"].mean():.3f} is what the VAE changes
before any diffusion, and {moved["generated from inferred"].mean():.3f} is what the diffusion model adds.""")

# %% [markdown]
# A histogram may reach beyond its band although the truth was drawn from the studies' median: a voxel that is called
# white matter may hold a quarter of something else. The next table separates the two.

# %%
rows = {}
for name in ("WM", "GM", "CSF"):
    for p, quantity in enumerate(("PD", "T1", "T2")):
        pure = truth.maps[:, p][truth.tissue(name)]
        kinds = {"pure voxels": float(pure.nanmedian()), "segmented": float(np.median(values["true"][name, quantity]))}
        rows[quantity, name] = kinds | {"measured": "{:g} to {:g}".format(*tissue.OUTER_BAND[name, quantity])}
pandas.DataFrame(rows).T.sort_index(level=0, sort_remaining=False)

# %% [markdown]
# "Pure" voxels hold at least 90 % of one tissue, which only a simulation can know. Samples and truth are segmented
# alike, so the comparison between them stands.
#
# ## Why T2 of CSF cannot be told
# **Predict:** CSF has a T2 of about 2 s, and the latest effective echo comes at about 0.1 s. If T2 were 1 s, by how
# much would the T2w signal of CSF change: 50 %, 20 % or 5 %?

# %%
csf_pd, csf_t1, csf_t2 = (float(v) for v in tissue.in_vivo_3t().median[tissue.TISSUES.index("CSF")])
t2 = torch.linspace(0.1, 4, 400)
csf = TissueMaps(*(torch.as_tensor(v, dtype=torch.float32).expand(1, 1, len(t2)) for v in (csf_pd, csf_t1, t2)))
signal = physics.signed_signal(csf, test.settings[:1]).abs()[0, :, 0]
relative = 100 * (signal / signal[:, [int((t2 - csf_t2).abs().argmin())]] - 1)
changes = dict(zip(MODALITIES, relative.numpy(), strict=True))
second = int((t2 - 1.0).abs().argmin())
at_one = ", ".join(f"{c[second]:+.1f} % in the {n}".replace("-", "−") for n, c in changes.items())

# %%
where = truth.tissue("CSF")
found = {"true": populations["true"].t2[where], "inferred": inferred.t2[where]}
fig = figures.csf_t2(t2, changes, csf_t2, 100 * model.recipe.bias, found)
caption = f"""Why T2 of CSF cannot be told. (a) Change of the CSF signal in one person's three scans (protocols as
drawn) when T2 differs from {csf_t2:.2f} s (line); grey: what the receive field does to a voxel (±1 SD,
{100 * model.recipe.bias:g} %). (b) T2 in voxels that are at least 90 % CSF, true and inferred (n = {n_people})."""
publish(fig, "fig22_csf_t2", caption, "Signal curves, flat beyond a second, and two histograms of T2 that overlap.")
say(f"""**Figure 22.** With T2 at 1 s the signal changes by {at_one}. That is about as much as the receive field does,
and the gain and PD of CSF act in the same way, so these scans hardly tell one second from three. The model's answer
comes from its prior: where it agrees with the truth, the prior was right.
Its median T2 of CSF is {float(inferred.t2[where].nanmedian()):.1f} s, where the truth is
{float(found["true"].nanmedian()):.1f} s.""")

# %% [markdown]
# ## Explore
# Choose a tissue and a property, tick the populations, and choose which studies to believe. A wide kernel makes any two
# populations look alike; the distance in the sentence on top is computed without one. **Predict** before you click: T1
# at 7 T; T2 of CSF; the band when you leave out a method.

# %%
explorer = HistogramExplorer(populations, figures_dir)
explorer.show(tissue="GM", quantity="T2")
explorer

# %%
explorer.still()

# %% [markdown]
# ## What we learned
# - Published means of one number differ by more than people do, so a band is all that can be asked for.
# - The distance of generated tissue from the truth is split between the two networks, and stands beside that of two
#   halves of true people (Figure 5).
# - Partial volume carries "white matter" beyond the measured band, in true maps, too.
# - T2 of CSF is not in the scans: at 1 s instead of 2 s their signal changes by a few per cent (Figure 22).
#
# ## Exercises
# 1. **Predict first:** choose 7 T in the explorer. Which moves, the studies or the histograms?
# 2. The studies of white-matter T1 fall into methods. Which method measures short, which long?
# 3. What echo time would tell 1 s from 2 s in T2 of CSF?
#
# <details><summary>Solution 1</summary>
#
# The studies move: T1 grows with the field, and T2 gets shorter. The histograms stay, because the cohort was simulated
# from values at 3 T.
#
# ```python
# explorer.show(tissue="GM", quantity="T1", field_T="7")
# {field: figures.studies("GM", "T1", field)["mean"].median() for field in ("1.5", "3", "7")}
# ```
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# rows = figures.studies("WM", "T1")
# kinds = rows.method.str.extract("(VFA|Look-Locker|MP2RAGE|MPRAGE|IR|FLASH)", expand=False).fillna("other")
# rows.groupby(kinds)["mean"].agg(["count", "min", "max"]).sort_values("min")
# ```
# Inversion recovery tends to the short side, and variable flip angles to the long one. Magnetisation transfer explains
# most of it.
# </details>
#
# <details><summary>Solution 3</summary>
#
# The difference $e^{-TE/2} - e^{-TE/1}$ (TE in s) is largest at $TE = 2 \ln 2 = 1.4$ s, where it is a quarter of the
# signal:
#
# ```python
# te_s = torch.linspace(0.01, 3, 300)
# difference = torch.exp(-te_s / 2) - torch.exp(-te_s / 1)
# te_s[difference.argmax()], te_s[(difference > 0.02).nonzero()[0]]
# ```
# One echo is not enough: gain and PD of CSF are unknown and change it in the same way. It takes a second, late echo of
# the same scan.
# </details>
#
# ## Limits
# Thresholds on a T1w are a crude segmentation, and deep grey nuclei lie between the classes. Agreement with the bands
# tests the cohort, and agreement with the truth tests the model. Neither tests the literature.
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532: F5.
# - The measured values: each row of `data/relaxation_times.csv` has its citation; the explorer lists those it draws.
# - J. Asslaender, S. Flassbeck, *Magnetization transfer explains most of the T1 variability in the MRI literature*,
#   arXiv 2409.05318.

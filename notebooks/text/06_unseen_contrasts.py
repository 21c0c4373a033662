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
# # 06 · Contrasts nobody acquired
#
# **Question.** Tissue maps and physics give an image under any setting, also under settings that no training scan had.
# Which of these images can be believed?
#
# **You will** render the paper's nine unseen settings from one sample (F4), see which of them leave any signal, compare
# unseen contrasts of held-out people with the truth, and turn a FLAIR through its inversion times. *A minute; with the
# networks of the release.*
#
# [Contents](00_overview.ipynb) · before: [05 Sample tissue](05_sample_tissue.ipynb) · next:
# [07 Tissue histograms](07_tissue_histograms.ipynb)

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

from phyldm_core import figures, tissue
from phyldm_core.evaluation import metrics, tables
from phyldm_core.explorers.contrasts import ContrastExplorer
from phyldm_core.people import segmentation
from phyldm_core.physics import REFERENCE, UNSEEN, Protocol, TissueMaps, null_ti, render
from phyldm_core.running.chapter import open_chapter, open_model, say
from phyldm_core.slices import ALL_SCANS, SUBSETS

# %% [markdown]
# ## F4 of the paper
# One generated brain under nine settings, three per sequence. No image was ever compared with them: the sample is PD,
# T1 and T2, and each picture follows from one equation.
#
# **Predict:** which of the nine will be black, and why? The table below is made from the literature's medians, before
# any image.

# %%
pd, t1, t2 = torch.from_numpy(tissue.in_vivo_3t().median[:3].T)
names, rows = tissue.BRAIN[:3], {}
for protocol in UNSEEN:
    signal = dict(zip(names, render(TissueMaps(pd, t1, t2), protocol).tolist(), strict=True))
    rows[str(protocol)] = signal | {"leaves signal": tissue.leaves_signal(protocol)}
expected = pandas.DataFrame(rows).T
print(f"{expected['leaves signal'].sum()} of {len(UNSEEN)} settings leave signal")
expected

# %%
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
model = open_model(run)
voxel_mm = model.voxel_mm
drawn = model.pipeline(1, seed=seed, num_inference_steps=model.steps, height=0.0)
sample, inside = TissueMaps(*(m[0] for m in drawn)), segmentation.brain_of(drawn)[0]
fig = figures.unseen(UNSEEN, [render(sample, p) for p in UNSEEN], brain=inside, voxel_mm=voxel_mm)
caption = f"""F4 of the paper: contrasts unseen in training. Rendered from one generated brain (n = 1, seed {seed},
{model.name}) with the paper's settings. † No scanner can run this: TI is longer than TR. "No signal left": below 5 %
of water at rest in WM, GM and CSF."""
alt = "Nine brain slices, one generated brain under nine protocols: inverted, T2-weighted, fluid-suppressed, one black."
publish(fig, "fig04_unseen", caption, alt)

# %% [markdown]
# **Figure 4 (F4 of the paper).** Eight of the nine leave signal. The black one is the FLAIR with TE 450 ms and TI 2.5
# s: white and grey matter have decayed, and CSF is nulled. In the table a TI of 0.25 s turns the contrast over, with
# grey matter brighter than white, because every tissue is still negative. Long echoes keep CSF alone, and its T2 is
# what is known least. The setting with † is an equation that no scanner can run.
#
# Four of the nine have echo times of 450 to 800 ms. Read as those of a train of weak pulses
# ([01](01_signal_physics.ipynb)), they become familiar T2w images. Figure 4 follows the paper. Errors below are given
# for its settings as they stand.
#
# ## The error against truth
# A test person has a truth. The model sees T1w, T2w and FLAIR, infers the maps, and the nine contrasts are rendered
# from these and from the true maps. The measures are PSNR in the brain (peak: the 99.5th percentile of the true image)
# and SSIM, as means over people with 95 % intervals. Our goal for settings that leave signal is 24 dB:
# an error of 6 % of the peak.
#
# **Predict:** which setting will be predicted worst?

# %%
test, truth = model.test, model.truth
inferred = model.inferred(test)
errors = tables.unseen_errors(inferred, truth, test)
psnr = errors[(errors.metric == "psnr") & (errors.quantity != tables.MEAN_OF_SIGNAL)].set_index("quantity")
shown = errors.assign(text=[f"{r.value:.3g} ({r.low:.3g} to {r.high:.3g})" for r in errors.itertuples()])
shown.pivot(index="quantity", columns="metric", values="text").loc[errors.quantity.drop_duplicates()]

# %%
runnable = tables.unseen_errors(inferred, truth, test, [p for p in UNSEEN if not p.as_published])
means = [t[(t.metric == "psnr") & (t.quantity == tables.MEAN_OF_SIGNAL)].iloc[0] for t in (errors, runnable)]
all_of_them, can_run = (f"{m.value:.1f} dB ({m.low:.1f} to {m.high:.1f})" for m in means)
lit = psnr[psnr.leaves_signal].value
say(f"""Mean over the settings that leave signal: {all_of_them}, n = {means[0].n} people; without the one that no
scanner can run: {can_run}. The goal of 24 dB is {"reached" if means[0].value >= 24 else "missed"}. Worst is
{lit.idxmin()} with {lit.min():.1f} dB, best {lit.idxmax()} with {lit.max():.1f} dB.""")

# %%
i = model.recipe.n_slices // 2  # the middle slice of the first test person
one, true_one = (TissueMaps(*(m[i] for m in maps)) for maps in (inferred, TissueMaps.from_stack(truth.maps)))
brain, images = truth.brain[i], {p: (render(one, p), render(true_one, p)) for p in UNSEEN}
notes = [f"{metrics.psnr(*pair, brain):.1f} dB" for pair in images.values()]
ours, true = zip(*images.values(), strict=True)
fig = figures.unseen(UNSEEN, ours, true, notes=notes, brain=brain, voxel_mm=voxel_mm)
caption = """Nine unseen contrasts against the truth. One held-out person (n = 1 slice), from maps inferred from T1w,
T2w and FLAIR (left of each pair) and from the true maps (right), in one window told inside the brain; protocol above
each pair, PSNR inside the brain. † No scanner can run this."""
publish(fig, "fig20_unseen_truth", caption, "Nine pairs of brain slices under nine protocols, predicted beside true.")

# %%
def error_from(wrong):
    """PSNR (dB), mean over settings with signal, of maps that are true but for ``wrong``, which is inferred."""
    mixed = true_one._replace(**{q: getattr(one, q) for q in wrong})
    lit = [p for p in UNSEEN if tissue.leaves_signal(p)]
    return float(np.mean([metrics.psnr(render(mixed, p), images[p][1], brain) for p in lit]))


parts = {q: error_from([q.lower()]) for q in figures.MAPS}
worst = min(parts, key=parts.get)
say(f"""**Figure 20.** With only one map inferred and the other two true, this slice has
{", ".join(f"{v:.1f} dB with {q}" for q, v in parts.items())}; with all three inferred
{error_from(["pd", "t1", "t2"]):.1f} dB. So {worst} costs most. Errors at edges come from the latent, which cannot
hold finer detail. Errors of a whole tissue come from a wrong T1, T2 or PD.""")

# %% [markdown]
# ## What does each scan add?
# **Predict:** how much do T2w and FLAIR add to a T1w for these contrasts? And what is lost when each scan has a gain of
# its own?

# %%
labels, by_subset = ("T1w", "T1w+T2w", "T1w+FLAIR", ALL_SCANS), []
for label in labels:
    seen = torch.tensor(SUBSETS[label]).expand(len(test), -1)
    by_subset.append(tables.unseen_errors(model.inferred(test, shown=seen), truth, test, inputs=label))
free, label = model.inferred(model.raw, common_scale=False), f"{ALL_SCANS}, own gains"
by_subset.append(tables.unseen_errors(free, truth, model.raw, common_scale=False, inputs=label))
by_inputs = pandas.concat(by_subset, ignore_index=True)
run.write_metrics("unseen", by_inputs)

# %%
rows = by_inputs[by_inputs.metric == "psnr"]
wide = rows.pivot(index="quantity", columns="inputs", values="value")
wide = wide.loc[rows.quantity.drop_duplicates(), rows.inputs.drop_duplicates()]
mean = wide.loc[tables.MEAN_OF_SIGNAL]
say(f"""T2w and FLAIR raise the mean from {mean["T1w"]:.1f} to {mean[ALL_SCANS]:.1f} dB. With own gains it is
{mean.iloc[-1]:.1f} dB, but there one factor per image is solved before the comparison, which forgives an error of PD.
All rows, in dB:""")
wide.rename_axis(None, axis=1).round(1)

# %% [markdown]
# ## A FLAIR through its inversion times
# Most FLAIRs of OASIS-3 have a TI of 2.5 s. Here is every other TI, from inferred and from true maps. The ticks
# mark the null points of median tissue.
#
# **Predict:** at which TI does the border between white and grey matter vanish?

# %%
flair, tis, curves = REFERENCE["FLAIR"], np.linspace(0.05, 6, 60), {}
own = test.subject == 0
for name in names:
    where = truth.tissue(name) & own[:, None, None]
    both = [TissueMaps(*(m[where] for m in maps)) for maps in (inferred, TissueMaps.from_stack(truth.maps))]
    if where.any():
        of = [[float(render(m, Protocol("FLAIR", flair.te, flair.tr, float(t))).mean()) for t in tis] for m in both]
        curves[name] = (tis, *of)
fig = figures.flair_nulls(curves, [null_ti(t, flair.tr, "FLAIR") for t in t1.tolist()])
caption = f"""A FLAIR through its inversion times. Mean signal of pure tissue (TE {1000 * flair.te:g} ms, TR
{flair.tr:g} s) in n = 1 held-out person ({int(own.sum())} slices): from inferred maps (solid) and from true ones
(dashed). Ticks: null points of median tissue."""
publish(fig, "fig21_flair_nulls", caption, "Three pairs of curves that fall to a null and rise again, CSF last.")

# %%
if {"WM", "GM"} <= set(curves):
    low = {n: [tis[np.argmin(c)] for c in curves[n][1:]] for n in curves}
    differ = np.sign(np.subtract(curves["WM"][2], curves["GM"][2]))
    equal = tis[1:][np.diff(differ) != 0]
    say(f"""**Figure 21.** White and grey matter have equal signal at TI
    {", ".join(f"{t:.1f}" for t in equal) or "none"} s. Darkest are
    {"; ".join(f"{n} at {a:.1f} s from inferred and {b:.1f} s from true maps" for n, (a, b) in low.items())}. A curve
    that is shifted sideways has a wrong T1, and one that is scaled has a wrong PD or T2. The minima are not 0, since
    a tissue holds a mixture of T1.""")

# %% [markdown]
# ## Explore
# Choose a preset (the nine settings are among them) or your own times. **Predict** before you drag: a FLAIR at TI 0.4
# s; an MPRAGE at TI 0.6 s; a spin echo from TE 10 to 500 ms. Without a running kernel the picture below shows the FLAIR
# at TI 0.4 s.

# %%
subjects = {"true maps of a test person": true_one, f"sample of Figure 4, seed {seed}": sample}
explorer = ContrastExplorer(subjects, voxel_mm=voxel_mm)
explorer.show(Protocol("FLAIR", flair.te, flair.tr, 0.4))
explorer

# %%
explorer.still()

# %% [markdown]
# ## What we learned
# - The literature's medians say beforehand which settings leave signal: eight of nine (Figure 4).
# - One of the nine cannot be run, and four have echo times that no plain spin echo uses.
# - Against truth each unseen contrast has an error with an interval, and one of the three maps costs most (Figure 20).
# - The FLAIR at other inversion times follows from maps that were inferred at one (Figure 21).
#
# ## Exercises
# 1. **Predict first:** double the TE of the reference FLAIR. Does the PSNR of the inferred contrast rise or fall? Why?
# 2. Search for the spin echo or MPRAGE setting with the lowest PSNR that still leaves signal.
#
# <details><summary>Solution 1</summary>
#
# ```python
# for te in (0.091, 0.182):
#     p = Protocol("FLAIR", te, 9.0, 2.5)
#     table = tables.unseen_errors(inferred, truth, test, [p])
#     print(te, table[table.quantity == str(p)][["metric", "value"]].to_string(index=False, header=False))
# ```
# The longer the echo, the more the image rests on T2: an error of 10 % in a T2 of 80 ms changes the signal by about 11
# % at 91 ms and by 23 % at 182 ms. PSNR is relative to the image's own peak, so that the lost signal as such costs
# nothing.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# tries = [Protocol("spin echo", te, tr) for te in (0.01, 0.05, 0.1, 0.2, 0.4) for tr in (0.5, 2.0, 6.0)]
# tries += [Protocol("MPRAGE", 0.003, 2.4, ti) for ti in (0.2, 0.4, 0.6, 0.8, 1.2, 1.8)]
# table = tables.unseen_errors(inferred, truth, test, [p for p in tries if tissue.leaves_signal(p)])
# table[table.metric == "psnr"].sort_values("value")[["quantity", "value"]].head()
# ```
# Two kinds are hard: long echoes, which rest on T2 of CSF, and inversion times near a null point, where a small error
# of T1 turns grey into black.
# </details>
#
# ## Limits
# The truth is rendered by the same equations as the prediction. What the equations leave out is in neither. A contrast
# measured by a real scanner is a harder test; [08](08_real_scans.ipynb) does a part of it.
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532: F4.
# - Z. Wang et al., *IEEE Trans Image Process* 2004;13:600: SSIM.

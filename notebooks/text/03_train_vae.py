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
# # 03 · Train the VAE: from scans to tissue
#
# **Question.** Can a network that has never seen a map of PD, T1 or T2 infer all three from the scans of a person,
# whichever scans there are?
#
# **You will** train it, make F1 and Tab. 1 of the paper, judge the maps against the truth, put the release beside it,
# and switch its experts on and off. *The `laptop` profile needs six minutes the first time, four
# of them for training, and one afterwards.*
#
# [Contents](00_overview.ipynb) · before: [02 The cohort](02_cohort.ipynb) · next:
# [04 Train the generator](04_train_diffusion.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
anatomies = ""
seed = 7

# %%
from dataclasses import asdict

import numpy as np
import pandas
import torch
from IPython.display import clear_output

from phyldm_core import calibration, figures
from phyldm_core.evaluation import metrics, tables
from phyldm_core.explorers.latents import ExpertSwitchboard
from phyldm_core.inference import infer
from phyldm_core.physics import Protocol
from phyldm_core.running.chapter import Model, open_chapter, release_beside, say
from phyldm_core.slices import ALL_SCANS, MODALITIES, SUBSETS, Truth
from phyldm_core.vae import product_of_experts

# %% [markdown]
# ## The network in one equation
# One encoder sees every scan. Sequence, TE, TR and TI steer its norms. For each scan it gives a Gaussian over the
# latent, and the Gaussians of the scans that exist are multiplied (paper, section 2.1):
#
# $$\frac{1}{\sigma^2} = \sum_m \frac{1}{\sigma_m^2}, \qquad \mu = \sigma^2 \sum_m \frac{\mu_m}{\sigma_m^2} \qquad (1)$$
#
# **Predict:** one scan says 0 ± 1 and another says 2 ± 1. What do they say together? And if the second is missing?

# %%
experts = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1, 1)  # one row, two scans, one channel, one pixel
for seen in ([1.0, 1.0], [1.0, 0.0]):
    mean, log_variance = product_of_experts(experts, torch.zeros_like(experts), torch.tensor(seen).view(1, 2, 1, 1))
    print(f"seen {seen}: {mean.item():.2f} ± {(log_variance / 2).exp().item():.2f}")

# %% [markdown]
# Together they say 1.00 ± 0.71, and a missing scan changes nothing. Each further scan makes the product surer, also
# where two scans share an error. The decoder turns the latent into the logarithms of PD, T1 and T2. It is told no
# protocol, because tissue does not change with the settings of a scanner.
#
# ## The loss
# Nobody shows the network a map. Its maps are rendered with each scan's own protocol ([01](01_signal_physics.ipynb)),
# and only the rendered scans $\hat x_m$ are compared with the acquired ones $x_m$:
#
# $$L = \sum_m |g_m \hat x_m - x_m| + \lambda_s (1 - \text{SSIM}) + \lambda_{KL}\,\text{KL} + \text{priors on the maps} \qquad (2)$$
#
# On half of the rows the encoder is told that the scans share a scale (gain $g_m = 1$, the paper's assumption). On the
# others the scale is unknown. In each step some scans are hidden from the encoder and still predicted.

# %%
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe, weights = run.recipe, asdict(run.profile.vae_loss)
pandas.Series(weights, name=f"loss of profile {profile!r}").to_frame()

# %% [markdown]
# ## Train
# A training that was killed goes on from its last checkpoint. A VAE that exists is not trained again.
#
# **Predict:** will the error on people the network does not learn from (validation) be larger than that of training?

# %%
for _ in run.make_cohort():
    pass
for step in run.train_vae():
    if step.step % 100 == 0:
        print(f"step {step.step}: loss {step.losses['total']:.3f}", end="\r")
clear_output()
log = run.training_log("vae").pivot(index="step", columns="loss", values="value")
last = log.tail(max(len(log) // 10, 1))
say(f"""{len(log)} steps, {run.training_log("vae").seconds.max() / 60:.1f} minutes. Mean loss over the last tenth of the
training: {last["total"].mean():.3f}. On validation people, with averaged weights, which are the better ones:
{log["val_total"].dropna().iloc[-1]:.3f}.""")

# %% [markdown]
# ## F1 of the paper: scans in, tissue out
# The first person of the test set, middle slice. The scans go in, maps come out, and the scans are rendered again from
# the maps.
#
# **Predict:** which map will be the worst, and where?

# %%
def infer_and_draw(model, name, part):
    """F1 of a model: maps of the first test person, and the median error of T1 and T2 in its slice."""
    maps = model.inferred(model.test)
    again, i = tables.rescan(maps, model.test), model.recipe.n_slices // 2
    scans, predicted = ({m: images[i, k] for k, m in enumerate(MODALITIES)} for images in (model.test.images, again))
    brain, truth = model.truth.brain[i], model.truth.maps[i]
    look = {"brain": brain, "voxel_mm": model.voxel_mm}
    fig = figures.inference(scans, [q[i] for q in maps], truth=truth, predicted=predicted, **look)
    given = "; ".join(str(Protocol.from_settings(s)) for s in model.test.settings[i])
    caption = f"""{part} One person of the test set (n = 1) by {model.name}. (a) The scans, the same predicted from
    the inferred maps, and what is left: {given}. (b) Inferred PD, T1 and T2, the truth, and the signed error
    (positive: too high)."""
    publish(fig, name, caption, "Three scans of a brain, the maps inferred from them, the true maps and the errors.")
    pairs = zip(figures.MAPS, maps, truth, strict=True)
    return {q: 100 * float(metrics.median_absolute_error(m[i], t, brain)) for q, m, t in pairs}


# %%
ours = Model(run)
off = infer_and_draw(ours, "fig01_inference", "F1 of the paper: from scans to tissue.")
test, truth, vae = ours.test, ours.truth, ours.vae
n_people = len(test.subject.unique())

# %%
say(f"""**Figure 1 (F1 of the paper).** Over the brain of this slice the median error is {off["PD"]:.1f} % of PD,
{off["T1"]:.1f} % of T1 and {off["T2"]:.1f} % of T2. The worst map is {max(off, key=off.get)}; the errors are largest
at the edges of tissue and in CSF. The network has never seen the middle row of (b). Outside the head a scan is dark
whatever T1 and T2 are, so they are not drawn there.""")

# %% [markdown]
# ## The same by the release
# The weights in `data/weights/release` were trained for hours on many heads at 1 mm, with the head kept and on an open
# field of protocols. They are used as `phyldm fit` uses them: the encoder starts, and each pixel moves until the signal
# equations explain the scans. Below is a person made from a head that they have never seen.
#
# **Predict:** will errors at 1 mm be larger or smaller than those at 2 mm?

# %%
release = release_beside(run)
if release:
    theirs = infer_and_draw(release, "fig13_release_beside", "From scans to tissue, by the release.")
    say(f"""**Figure 13.** PD, T1 and T2 are off by {", ".join(f"{v:.1f} %" for v in theirs.values())}, and by
    {", ".join(f"{v:.1f} %" for v in off.values())} in Figure 1. The two tests differ: at 1 mm more of an image is
    edge, and the head is new.""")

# %% [markdown]
# ## How far from the truth?
# Per person, the median of |inferred − true| / true over voxels that hold at least 90 % of one tissue; then the mean
# over people with its 95 % interval. PD is relative to the person's own CSF.
#
# **Predict:** which map loses most when every scan has a gain of its own, as scans of any archive have?

# %%
maps, raw_maps = infer(vae, test)[1], infer(vae, ours.raw, common_scale=False)[1]
accuracy = pandas.concat([
    tables.map_errors(maps, truth, test, "common scale"),
    tables.map_errors(raw_maps, truth, ours.raw, "own gain per scan"),
])  # fmt: skip
run.write_metrics("vae_map_errors", accuracy)
rows = accuracy[accuracy.metric == "median_absolute_error"]
shown = [f"{100 * r.value:.1f} ({100 * r.low:.1f} to {100 * r.high:.1f})" for r in rows.itertuples()]
rows.assign(shown=shown).pivot(index=["quantity", "tissue"], columns="inputs", values="shown")  # %

# %%
def by_person(estimate):
    """(tissue, quantity) → medians ``(2, people)``: estimate and truth in pure voxels; PD relative to CSF."""
    stack, out = estimate.stack(), {}
    for person in test.subject.unique():
        rows = test.subject == person
        for q, quantity in enumerate(figures.MAPS):
            for name in ("WM", "GM", "CSF"):
                where = truth.tissue(name)[rows]
                pair = torch.stack([stack[rows, q][where].nanmedian(), truth.maps[rows, q][where].nanmedian()])
                out.setdefault((name, quantity), []).append(pair)
    out = {key: torch.stack(pairs, 1) for key, pairs in out.items()}
    return {k: (v / out["CSF", "PD"] if k[1] == "PD" else v).numpy() for k, v in out.items()}


# %%
sources = {"common scale": by_person(maps), "own gain per scan": by_person(raw_maps)}
pairs = {(source, *key): pair for source, of in sources.items() for key, pair in of.items()}
pairs = {key: pair[:, np.isfinite(pair).all(0)] for key, pair in pairs.items()}
r = {key: metrics.correlation(*pair) if pair.size and np.ptp(pair, 1).all() else np.nan for key, pair in pairs.items()}
fig = figures.follows_the_person(sources, r)
caption = f"""Does the estimate follow the person? Medians over pure voxels of each of n = {n_people} test people
(protocols as drawn from OASIS-3), and their correlation r (first: common scale, second: own gain per scan). A flat
cloud is a guess at what people are like."""
alt = "Inferred against true medians per person for T1, T2 and PD; some clouds follow the diagonal, some are flat."
publish(fig, "fig14_follows_the_person", caption, alt)

# %%
chosen = (("T1", "WM"), ("T2", "WM"), ("T2", "CSF"), ("PD", "GM"))
table = pandas.DataFrame({f"{q} of {t}": [r[s, t, q] for s in sources] for q, t in chosen}, index=list(sources)).T
run.write_metrics("vae_follows_the_person", table.rename_axis("quantity").reset_index())
table.round(2)  # correlation over people

# %% [markdown]
# **Figure 14.** With unknown gains T1 of white matter loses its correlation with the person, while its error grows by a
# few points only: the estimate moves towards what people are like on average. So an error alone does not tell whether
# a map follows the person. T2 of CSF follows nobody. It appears only as a factor $e^{-TE/T_2}$ near 1 beside PD, and no echo
# is late enough to tell the two apart.
#
# ## Tab. 1 of the paper: how well are the scans explained?
# Each scan is divided by its own 99.5th percentile in the brain. Errors are inside the brain, per person and contrast,
# of the posterior mean. The paper compares a model trained with L1 with one trained with L2. A profile trains one of
# them, and exercise 3 trains the other.

# %%
brain = truth.brain
quality = [tables.reconstruction_errors(maps, test, brain, inputs="common scale")]
quality += [tables.reconstruction_errors(raw_maps, ours.raw, brain, common_scale=False, inputs="own gain per scan")]
quality = pandas.concat(quality)
run.write_metrics("vae_reconstruction", quality)
rows = quality.assign(value=quality.value * quality.metric.map({"mse": 1000, "mae": 100}).fillna(1))
print(f"Tab. 1, loss L1 × {weights['l1']:g} and L2 × {weights['l2']:g}; MSE × 1000, MAE in %; n = {n_people} people")
rows.pivot(index=["inputs", "quantity"], columns="metric", values="value").round(2)

# %% [markdown]
# With unknown gains the scans are explained at least as well, since each gets the gain that suits it. So a good
# reconstruction does not show that the maps are right.
#
# ## Fewer scans
# Any subset of scans gives a posterior.
#
# **Predict:** from a T1w alone, which of PD, T1 and T2 can be told? Does a FLAIR add anything to a T2w?

# %%
middles = torch.stack([torch.where(test.subject == s)[0][recipe.n_slices // 2] for s in test.subject.unique()])
few, few_truth = test[middles], Truth(truth.maps[middles], truth.fractions[middles])
parts = []
for label, flags in SUBSETS.items():
    posterior, few_maps = infer(vae, few, shown=torch.tensor(flags).expand(len(few), -1))
    parts.append(tables.map_errors(few_maps, few_truth, few, label))
    sd = calibration.posterior_sd(vae, posterior, 8, torch.Generator().manual_seed(seed)).stack() / few_maps.stack()
    for name in ("WM", "GM"):
        for q, quantity in enumerate(figures.MAPS):
            row = {"metric": "posterior_sd", "quantity": quantity, "tissue": name, "inputs": label}
            parts.append(metrics.long_form([row | {"value": float(sd[:, q][few_truth.tissue(name)].nanmedian())}]))
subset_errors = pandas.concat(parts)
run.write_metrics("vae_subsets", subset_errors)

# %%
fig = figures.errors_by_scans(subset_errors, list(SUBSETS))
caption = f"""Which scans help. Filled: median absolute error, 95 % interval over n = {n_people} test people
(protocols as drawn from OASIS-3), common scale. Open: SD of the maps over samples of the posterior. If the SD
were a fair error bar, each open dot would lie 1.5 times as high as its filled dot."""
alt = "Errors and posterior widths of T1, T2 and PD for seven subsets of scans; the widths shrink as scans are added."
publish(fig, "fig15_subsets", caption, alt)

# %%
of = subset_errors[subset_errors.tissue == "GM"].set_index(["metric", "quantity", "inputs"]).value * 100
error, sd = of["median_absolute_error"], of["posterior_sd"]
say(f"""**Figure 15.** From a T1w alone T1 of grey matter is off by {error["T1", "T1w"]:.1f} %, and T2 by
{error["T2", "T1w"]:.1f} %: a T1w tells T1, and its T2 is mostly the prior. A FLAIR beside the T2w changes the error
of T2 from {error["T2", "T2w"]:.1f} to {error["T2", "T2w+FLAIR"]:.1f} %. The posterior SD of T2 from all scans is
{sd["T2", ALL_SCANS]:.1f} %, where the error is {error["T2", ALL_SCANS]:.1f} %. The SD is that of the latent given
these scans. It knows nothing of errors that all samples share, so it is no error bar; [09](09_how_right_is_it.ipynb)
measures what it misses.""")

# %% [markdown]
# ## Explore: the switchboard of experts
# Tick the scans that exist. The second row shows the SD, or the error against the truth.
#
# **Predict:** T1w, T2w or FLAIR: which one alone leaves T2 least certain? Which further tick narrows it most?

# %%
model = release or ours
board = ExpertSwitchboard(model.vae, model.test, model.truth, True, model.voxel_mm)
board

# %%
board.still()

# %% [markdown]
# ## What we learned
# - No map was shown in training, and T1 of white and grey matter comes out within a few per cent (first table).
# - On a common scale T1 and T2 of white and grey matter follow the person, and T2 of CSF does not (Figure 14).
# - With unknown gains T1 of white matter no longer follows the person.
# - More scans always narrow the posterior. Whether the error falls, too, is shown by the filled dots of Figure 15.
#
# ## Exercises
# 1. Most OASIS-3 sidecars claim TE 455 ms for the T2w. Tell the trained network so, and look at T2.
# 2. Show the T1w twice, once in the place of the T2w. Nothing new is shown. What does the product of experts say?
# 3. Train the same network with L2 instead of L1 and fill in the other half of Tab. 1.
#
# <details><summary>Solution 1</summary>
#
# ```python
# settings_claimed = test.settings.clone()
# settings_claimed[:, 1, 1] = 0.455
# claimed = type(test)(test.images, settings_claimed, test.observed, test.subject, test.position)
# tables.map_errors(infer(vae, claimed)[1], truth, test, "TE 455 ms claimed").query("metric == 'bias'")
# ```
# The encoder has never seen a T2w with such a TE, so do not expect the clean factor of 4.5 of
# [01](01_signal_physics.ipynb).
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# twice = type(few)(few.images.clone(), few.settings.clone(), few.observed, few.subject, few.position)
# twice.images[:, 1], twice.settings[:, 1] = few.images[:, 0], few.settings[:, 0]
# for flags in ((True, False, False), (True, True, False)):
#     posterior, _ = infer(vae, twice, shown=torch.tensor(flags).expand(len(few), -1))
#     print(flags, float((posterior.log_variance / 2).exp().mean()))
# ```
# The SD falls by √2, as if there had been two measurements. Experts that share their evidence make the product too
# sure.
# </details>
#
# <details><summary>Solution 3</summary>
#
# Takes as long as the first training, and a cohort of its own:
#
# ```python
# from dataclasses import replace
# from pathlib import Path
# loss = replace(run.profile.vae_loss, l1=0.0, l2=1.0)
# other = replace(run, folder=Path(run_dir + "_l2"), profile=replace(run.profile, vae_loss=loss))
# list(other.make_cohort()), list(other.train_vae())
# tables.reconstruction_errors(infer(other.vae(), test)[1], test, brain, inputs="L2")
# ```
# </details>
#
# ## Limits
# Errors are those of simulated people, scanned by the same equations that the network inverts. Test people of the
# default cohort share their head with the training set. Real scans are in [08](08_real_scans.ipynb).
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532.
# - G. E. Hinton, *Neural Comput* 2002;14:1771: products of experts. M. Wu, N. Goodman, *NeurIPS* 2018: in a multimodal
#   VAE.
# - D. P. Kingma, M. Welling, *Auto-Encoding Variational Bayes*, 2014, arXiv 1312.6114.

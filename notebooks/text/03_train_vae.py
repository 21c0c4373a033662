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
# **You will** train it, make the paper's first figure and first table, judge the maps against the truth, and find out
# which of them a scan can tell at all. *CPU: the `laptop` profile trains for about ten minutes, once; the rest takes
# one.*
#
# [Contents](00_overview.ipynb) · before: [02 A cohort whose truth is known](02_cohort.ipynb) · next:
# [04 Train the diffusion model](04_train_diffusion.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch
from IPython.display import clear_output
from tqdm import tqdm

from phyldm_core import figures, tissue
from phyldm_core.evaluation import metrics, tables
from phyldm_core.inference import infer
from phyldm_core.physics import REFERENCE, Protocol, TissueMaps, effective_protocol, signed_signal
from phyldm_core.running.chapter import open_chapter
from phyldm_core.slices import ALL_SCANS, MODALITIES, SUBSETS, Truth
from phyldm_core.vae import PoEVAE, product_of_experts

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
run.require_cohort()
recipe = run.recipe

# %% [markdown]
# ## The network in one equation
# One encoder sees every scan, whatever its contrast; sequence, TE, TR and TI steer its norms. For each scan it gives a
# Gaussian opinion about the latent: a mean and a variance. The opinions of the scans that exist are multiplied (paper,
# section 2.1):
#
# $$\frac{1}{\sigma^2} = \sum_m \frac{1}{\sigma_m^2}, \qquad \mu = \sigma^2 \sum_m \frac{\mu_m}{\sigma_m^2} \qquad (1)$$
#
# **Predict:** one scan says 0 ± 1, another says 2 ± 1. What do they say together? And if the second is missing?

# %%
opinions = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1, 1)  # one row, two scans, one channel, one pixel
for observed in ([True, True], [True, False]):
    mean, log_variance = product_of_experts(opinions, torch.zeros_like(opinions), torch.tensor([observed]))
    print(f"shown {observed}: {mean.item():.2f} ± {(log_variance / 2).exp().item():.2f}")

# %% [markdown]
# A missing scan weighs nothing, and every scan can only make the product surer. Keep that in mind: the product cannot
# know when two experts share an error.
#
# The decoder turns the latent into logarithms of PD, T1 and T2. It is told no protocol, because tissue does not change
# with the scanner's settings.

# %%
vae = PoEVAE(**run.profile.vae)
(ny, nx), down = recipe.shape, vae.downsampling
pandas.Series(
    {
        "encoder, parameters": sum(p.numel() for p in [*vae.encoder.parameters(), *vae.embed.parameters()]),
        "decoder, parameters": sum(p.numel() for p in vae.decoder.parameters()),
        "slice (y × x)": f"{ny} × {nx}",
        "latent (channels × y × x)": f"{vae.config.latent_channels} × {ny // down} × {nx // down}",
        "values in, three scans": 3 * ny * nx,
        "values in the latent": vae.config.latent_channels * ny * nx // down**2,
    },
    name=f"profile {profile!r}",
).to_frame()

# %% [markdown]
# ## The loss: physics is the teacher
# Nobody shows the network a map. Its maps are rendered with each scan's own protocol by the equations of
# [notebook 01](01_signal_physics.ipynb), and only the rendered scans $\hat x_m$ are compared with the acquired ones:
#
# $$L = \sum_m |g_m \hat x_m - x_m| + \lambda_s (1 - \text{SSIM}) + \lambda_{KL}\,\text{KL} + \text{priors on the maps},
# \qquad g_m = 1 \ \text{or}\ \frac{\langle \hat x_m, x_m\rangle}{\langle \hat x_m, \hat x_m\rangle} \qquad (2)$$
#
# On half the rows the encoder is told how bright each scan is (a common scale, the paper's assumption), on the others
# it is not. There the gain $g_m$ may be solved for each scan, or stay at 1, so that the network must guess the scale
# from what tissue looks like; the table says which. In each step some scans are hidden from the encoder but still
# predicted: the maps must explain a T2w that was not shown.

# %%
meaning = {
    "l1": "absolute difference of rendered and acquired scans", "l2": "squared difference, the paper's alternative",
    "structure": "1 − SSIM of the scans (paper: LPIPS, a download)", "kl": "latent near the unit normal",
    "map_prior": "log maps near their prior medians, inside the head", "water": "PD near the water content T1 implies",
    "fluid": "T2 near what T1 implies between grey matter and CSF",
    "air": "no PD where every scan is dark", "adversarial": "patch adversary on the scans",
    "adversarial_after": "steps before it is heard", "keep_scan": "chance that a scan is shown to the encoder",
    "unscaled": "fraction of rows without a common scale", "gain": "of such rows: solved, or fixed at 1",
}  # fmt: skip
weights = asdict(run.profile.vae_loss)
pandas.DataFrame({"weight": weights, "of": meaning}).loc[list(weights)]

# %% [markdown]
# ## Train
# The loop yields every step; what is shown while it runs is up to the notebook. A run that is killed goes on from its
# last checkpoint with the same losses as if nothing had happened, and a VAE that exists is not trained again.

# %%
steps = run.profile.vae_schedule.steps
progress = tqdm(total=steps, desc="VAE", leave=False, mininterval=2)
for step in run.train_vae():
    progress.update(step.step + 1 - progress.n)
    progress.set_postfix(loss=f"{step.losses['total']:.3f}", refresh=False)
progress.close()
clear_output()
log = run.training_log("vae")
print(
    f"{steps} steps of {run.profile.vae_schedule.batch_size} slices, {log.seconds.max() / 60:.1f} minutes of training"
)

# %%
wide = log.pivot(index="step", columns="loss", values="value").reset_index()
held_out = [name for name in wide if name.startswith("val_")]
validation = wide[["step", *held_out]].rename(columns=lambda name: name.removeprefix("val_")).dropna()
pixel = "l1" if weights["l1"] else "l2"
first = f"scans ({pixel.upper()})"
panels = {first: [pixel], "1 − SSIM": ["structure"], "KL (nats a value)": ["kl"], "map prior": ["map_prior"]}
fig = figures.training_curves(wide, panels, validation=validation, log=[first, "1 − SSIM"])
caption = f"""Training of the VAE: losses before weighting, every step (faint), its running median, on n =
{recipe.n_train} people with protocols as drawn from OASIS-3; circles: averaged weights on n = {recipe.n_val}
validation people, the same random choices each time."""
alt = "Four curves over training steps; the errors of the scans fall and level off, validation close to training."
publish(fig, "fig16_vae_training", caption, alt)

# %% [markdown]
# **Figure 16.** The circles belong to people the network does not learn from. As long as they follow the curve, there
# is nothing learnt by heart; they may lie below it, because they are made with averaged weights.
#
# ## Figure 1 of the paper: scans in, tissue out
# The first person of the test set (not the best), middle slice. The three scans go in. Maps come out, and from the maps
# the scans again.

# %%
vae = run.vae()
test, truth = run.scans("test"), run.truth("test")
posterior, maps = infer(vae, test)
i = int(torch.where(test.subject == 0)[0][recipe.n_slices // 2])
again = tables.rescan(maps, test)
fig = figures.inference(
    {name: test.images[i, m] for m, name in enumerate(MODALITIES)},
    [values[i] for values in maps],
    truth=truth.maps[i],
    predicted={name: again[i, m] for m, name in enumerate(MODALITIES)},
    voxel_mm=recipe.voxel_mm,
)
n_people = len(test.subject.unique())
given = "; ".join(str(Protocol.from_settings(test.settings[i, m])) for m in range(len(MODALITIES)))
caption = f"""From scans to tissue, one person of the test set (of n = {n_people}). (a) The acquired scans, the same
predicted from the inferred maps, and what is left: {given}. (b) Inferred PD, T1 and T2, the truth, and the signed
error, positive where the estimate is too high."""
alt = "Three scans of a brain, the maps of PD, T1 and T2 inferred from them, the true maps and the errors below."
publish(fig, "fig01_inference", caption, alt)

# %% [markdown]
# **Figure 1.** The network has never seen the middle row of (b). Look at the residual of the scans and at the errors
# of the maps side by side: where does a scan fit although the tissue is wrong? Outside the head a scan is dark
# whatever T1 and T2 are; they mean nothing there and are not drawn.
#
# ## How far from the truth?
# Per person, the median of |inferred − true| / true over voxels that hold at least 90 % of one tissue; then the mean
# over people with its 95 % interval. PD is relative to the person's own CSF. First as in the paper, all scans on one
# scale; then as any archive delivers them, with a gain per scan that nobody knows.
#
# **Predict:** which map loses most when the gain is unknown? And will T2 of CSF be good or bad?

# %%
raw = run.scans("test", common_scale=False)
_, raw_maps = infer(vae, raw, common_scale=False)
accuracy = pandas.concat(
    [
        tables.map_errors(maps, truth, test, "common scale"),
        tables.map_errors(raw_maps, truth, raw, "own gain per scan"),
    ]
)


def interval(row, factor=100.0, digits=1):
    return f"{factor * row.value:.{digits}f} ({factor * row.low:.{digits}f} to {factor * row.high:.{digits}f})"


def show(table, metric):
    rows = table[table.metric == metric]
    return rows.assign(shown=rows.apply(interval, axis=1)).pivot(
        index=["quantity", "tissue"], columns="inputs", values="shown"
    )


run.write_metrics("vae_map_errors", accuracy)
print(f"median absolute error, % of truth (95 % interval over {n_people} test people)")
show(accuracy, "median_absolute_error")

# %%
print("bias, % of truth: negative is too low")
show(accuracy, "bias")

# %% [markdown]
# ## What a gain hides
# Count. Three tissues with three properties each are nine unknowns, and three scans of three tissues are nine
# numbers: just enough. A gain for each scan adds three unknowns. Some mixtures of PD, T1 and T2 then change nothing
# that could be seen, however little noise there is. The derivatives of the signal equations tell which: below, the
# error (SD, %) that would be left for typical tissue with almost no noise (0.1 % of water) and a prior of unit SD on
# each logarithm.

# %%
names = ("WM", "GM", "CSF")
table = tissue.in_vivo_3t()
typical = torch.from_numpy(table.median[[table.tissues.index(name) for name in names]]).log()
settings = torch.stack([effective_protocol(p).settings() for p in REFERENCE.values()]).double().expand(3, -1, -1)


def signals(log_tissue, log_gain):
    """Nine signals: each tissue in each scan."""
    maps_of_three = TissueMaps(*log_tissue.exp().T[:, :, None, None])
    return (log_gain.exp() * signed_signal(maps_of_three, settings)[..., 0, 0]).flatten()


jacobians = torch.autograd.functional.jacobian(signals, (typical, torch.zeros(3).double()))
sensitivity = torch.cat([jacobians[0].reshape(9, 9), jacobians[1]], 1)


def left_over(gain_sd, noise=0.001):
    """SD (%) of PD relative to CSF, T1 and T2, given noise and how little is known of the logarithm of the gains."""
    prior = torch.diag(torch.tensor([1.0] * 9 + [gain_sd**-2] * 3, dtype=torch.float64))
    covariance = torch.linalg.inv(sensitivity.T @ sensitivity / noise**2 + prior)
    contrast = torch.eye(12, dtype=torch.float64)[:9]
    contrast[[0, 3, 6], 6] -= 1  # log PD minus log PD of CSF
    return 100 * (contrast @ covariance @ contrast.T).diagonal().sqrt().view(3, 3)


columns = ["PD / CSF", "T1", "T2"]
known, unknown = (pandas.DataFrame(left_over(sd), index=names, columns=columns) for sd in (1e-6, 10.0))
both = pandas.concat({"gains known": known, "gains unknown": unknown}, axis=1).round(1)
flat = both.set_axis([f"{quantity}, {gains}" for gains, quantity in both], axis=1)
run.write_metrics("gain_ambiguity", flat.rename_axis("tissue").reset_index())
both

# %% [markdown]
# With known gains, averaging enough voxels pins everything down except one thing: T2 of CSF. In T2w and FLAIR alike
# it appears only as a factor $e^{-TE/T_2}$ near 1, beside PD, so that one product is seen and two factors are wanted.
# What separates them here is knowledge, not measurement: no tissue holds more water than water (built into the
# decoder), water and T1 rise together, and what has CSF's T1 has CSF's T2 (two weak priors). With unknown gains only T1 of CSF survives, by its null
# point in FLAIR, which no gain can move. All else keeps an error of tens of per cent that no averaging removes: in
# those directions a change of tissue *is* a change of gain.
#
# So what the first table reports for unknown gains, and for T2 of CSF at any gain, has come in good part from what
# tissue looks like in general. Such a guess can have a small error. What gives it away is that it does not follow the
# person.

# %%
def by_person(estimate):
    """(tissue, quantity) → medians ``(2, people)``: estimate and truth in pure voxels; PD relative to CSF."""
    out = {}
    stack, n_tissue = estimate.stack(), {name: truth.tissue(name) for name in names}
    for person in test.subject.unique():
        rows = test.subject == person
        medians = {}
        for name, where in n_tissue.items():
            for q, quantity in enumerate(figures.MAPS):
                pair = stack[rows, q][where[rows]], truth.maps[rows, q][where[rows]]
                medians[name, quantity] = torch.stack([v.median() if len(v) else torch.tensor(torch.nan) for v in pair])
        for name in names:
            medians[name, "PD"] = medians[name, "PD"] / medians["CSF", "PD"]
        for key, pair in medians.items():
            out.setdefault(key, []).append(pair)
    return {key: torch.stack(pairs, 1).numpy() for key, pairs in out.items()}


sources = {"common scale": by_person(maps), "own gain per scan": by_person(raw_maps)}

# %%
fig, axes = plt.subplots(3, 3, figsize=(7, 6), layout="constrained")
follows = []
for ax, (quantity, name) in zip(axes.flat, ((q, n) for q in ("T1", "T2", "PD") for n in names), strict=True):
    if (name, quantity) == ("CSF", "PD"):
        ax.axis("off")
        continue
    scale, notes = figures.QUANTITIES[quantity].per_unit, []
    for (source, pairs), face in zip(sources.items(), (figures.TISSUE_COLOURS[name], "white"), strict=True):
        estimate, true = scale * pairs[name, quantity]
        ax.plot(true, estimate, "o", mfc=face, mec=figures.TISSUE_COLOURS[name], mew=0.8, ms=3.5)
        good = np.isfinite(estimate) & np.isfinite(true)
        r = metrics.correlation(estimate[good], true[good]) if good.sum() > 1 else np.nan
        notes.append(f"r = {r:.2f}".replace("-", "−"))
        row = {"metric": "correlation", "quantity": quantity, "tissue": name, "inputs": source}
        follows.append(row | {"value": r, "n": int(good.sum())})
    ends = np.nanpercentile(true, (0, 100)) * [0.98, 1.02]
    ax.plot(ends, ends, color="0.4", lw=0.8, zorder=0)
    ax.set_ylim(top=ax.get_ylim()[1] + 0.3 * np.diff(ax.get_ylim()).item())
    ax.text(0.04, 0.99, "\n".join(notes), transform=ax.transAxes, va="top", size=6.5)
    label = figures.QUANTITIES[quantity].label if quantity != "PD" else "PD relative to CSF"
    ax.set(xlabel=f"true {label}", ylabel="inferred", title=name if quantity == "T1" else "")
for face, label in (("0.3", "common scale"), ("white", "own gain per scan")):
    axes[2, 2].plot([], [], "o", mfc=face, mec="0.3", label=label)
axes[2, 2].plot([], [], color="0.4", lw=0.8, label="inferred = true")
axes[2, 2].legend(loc="center")
caption = f"""Does the estimate follow the person? Medians over pure voxels of each of n = {n_people} test people
(protocols as drawn from OASIS-3), and their correlation r (above: common scale, below: own gain per scan). A flat
cloud is a guess at what people are like."""
alt = "Inferred against true medians per person for T1, T2 and PD; some clouds follow the diagonal, some are flat."
publish(fig, "fig17_follows_the_person", caption, alt)
run.write_metrics("vae_follows_the_person", metrics.long_form(follows));

# %% [markdown]
# **Figure 17.** Read each panel twice: how far from the line (the error), and whether the cloud climbs along it (how
# much was learnt from this person's scans). T2 of CSF is the extreme case: its dots do not climb with the line, near
# it or far, and should not be believed. PD relative to CSF inherits the trouble, because CSF's PD and T2 share one
# product.
#
# ## Table 1 of the paper: how well are the scans explained?
# Each scan divided by its own 99.5th percentile in the brain; errors inside the brain (voxels at least half brain
# tissue or CSF); per person and contrast, posterior mean, no sampling. The paper trains one model with L1 and one
# with L2 and compares; here a profile trains one (exercise 3 trains the other).

# %%
quality = pandas.concat(
    [
        tables.reconstruction_errors(maps, test, truth.brain, inputs="common scale"),
        tables.reconstruction_errors(raw_maps, raw, truth.brain, common_scale=False, inputs="own gain per scan"),
    ]
)
run.write_metrics("vae_reconstruction", quality)
print(
    f"loss: L1 × {weights['l1']:g}, L2 × {weights['l2']:g}, 1 − SSIM × {weights['structure']:g}; n = {n_people} people"
)
units = {
    "mse": (1e3, 2, "MSE × 1000"),
    "mae": (100, 2, "MAE (%)"),
    "psnr": (1, 1, "PSNR (dB)"),
    "ms_ssim": (1, 3, "MS-SSIM"),
}
rows = [interval(row, *units[row.metric][:2]) for row in quality.itertuples()]
wide = quality.assign(shown=rows, metric=[units[m][2] for m in quality.metric])
wide.pivot(index=["inputs", "quantity"], columns="metric", values="shown")

# %% [markdown]
# Put this beside the table of map errors. With an unknown gain the scans are explained as well or better, since each
# gets the gain that suits it, whatever becomes of the maps. A model of this kind must not be judged by its
# reconstructions alone, and without a truth that is all one can do.
#
# ## Fewer scans
# Any subset gives a posterior. **Predict:** from a T1w alone, which of PD, T1 and T2 can be told? Does a FLAIR add
# anything to a T2w?
#
# For each of the seven subsets, on the middle slice of each person: the error against the truth, and what the network
# itself thinks its error is, the SD of maps decoded from samples of its posterior.

# %%
middles = torch.stack([torch.where(test.subject == s)[0][recipe.n_slices // 2] for s in test.subject.unique()])
few, few_truth = test[middles], Truth(truth.maps[middles], truth.fractions[middles])
n_draws, generator = 8, torch.Generator().manual_seed(seed)
subset_errors, believed, doubts, latent_sd = [], [], {}, {}
for label, flags in SUBSETS.items():
    few_posterior, few_maps = infer(vae, few, shown=torch.tensor(flags).expand(len(few), -1))
    subset_errors.append(tables.map_errors(few_maps, few_truth, few, label))
    latent_sd[label] = float((few_posterior.log_variance / 2).exp().mean())
    with torch.no_grad():
        draws = [vae.decode(few_posterior.sample(generator)).stack().log() for _ in range(n_draws)]
    doubts[label] = torch.stack(draws).std(0)  # of log PD, T1, T2: relative
    for name in ("WM", "GM"):
        for q, quantity in enumerate(figures.MAPS):
            pure = zip(doubts[label][:, q], few_truth.tissue(name), strict=True)
            medians = [float(sd[where].median()) for sd, where in pure if where.any()]
            row = {"metric": "posterior_sd", "quantity": quantity, "tissue": name, "inputs": label}
            believed += [row | {"value": metrics.bootstrap_interval(medians)}] if medians else []
subset_errors = pandas.concat([*subset_errors, metrics.long_form(believed)])
run.write_metrics("vae_subsets", subset_errors)
pandas.Series(latent_sd, name="posterior SD of the latent, mean").to_frame().round(4)

# %%
labels = list(SUBSETS)
fig, axes = plt.subplots(1, 3, figsize=(7, 3), layout="constrained")
for ax, quantity in zip(axes, ("T1", "T2", "PD"), strict=True):
    for name, shift in (("WM", -0.15), ("GM", 0.15)):
        rows = subset_errors[(subset_errors.quantity == quantity) & (subset_errors.tissue == name)]
        colour, x = figures.TISSUE_COLOURS[name], np.arange(len(labels)) + shift
        error, sd = (
            rows[rows.metric == m].set_index("inputs").reindex(labels)
            for m in ("median_absolute_error", "posterior_sd")
        )
        ax.vlines(x, 100 * error.low, 100 * error.high, color=colour, lw=1)
        ax.plot(x, 100 * error.value, "o", color=colour, ms=4, label=f"{name}, median error")
        ax.plot(x, 100 * sd.value, "o", mfc="white", mec=colour, ms=4, mew=0.9, label=f"{name}, posterior SD")
    ax.set(xticks=range(len(labels)), ylabel="% of truth" if quantity == "T1" else "", ylim=(0, None))
    short = [label.replace(ALL_SCANS, "all three") for label in labels]
    ax.set_xticklabels(short, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_title(quantity if quantity != "PD" else "PD relative to CSF", size=8)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
caption = f"""Which scans help. Filled: median absolute error, 95 % interval over n = {n_people} test people (protocols
as drawn from OASIS-3), on a common scale. Open: posterior SD of the maps. Were errors Gaussian and the posterior
honest, open would be 1.5 times filled."""
alt = "Errors and posterior widths of T1, T2 and PD for seven subsets of scans; the widths shrink as scans are added."
publish(fig, "fig18_subsets", caption, alt)

# %% [markdown]
# **Figure 18.** In the latent, more scans always mean a smaller SD: that is (1), and the table shows it. Whether the
# *error* shrinks, too, is an empirical question, and the filled dots answer it. The posterior says how much the maps
# would differ if scans like these were taken again; it knows nothing of an assumption that fails, nor of a bias.
# Compare open with filled before you trust a posterior SD as an error bar.

# %%
chosen, person = ("T1w", "T1w+T2w", ALL_SCANS), 0
head = few_truth.maps[person, 0] > tissue.AIR_PD
fig, axes = plt.subplots(1, 6, figsize=(7, 2.1), layout="constrained")
pairs = [(label, q) for q in ("T1", "T2") for label in chosen]
for k, (ax, (label, quantity)) in enumerate(zip(axes, pairs, strict=True)):
    sd = 100 * doubts[label][person, figures.MAPS.index(quantity)].numpy()
    look = {"marks": "RLA" if k == 0 else "", "scale_bar_mm": 50 if k == 0 else None}
    image = figures.show_map(ax, sd, "SD", inside=head, voxel_mm=recipe.voxel_mm, **look)
    ax.set_title(label.replace(ALL_SCANS, "all three"), size=7)
    ax.set_xlabel(f"${quantity[0]}_{quantity[1]}$")
fig.colorbar(image, ax=axes, shrink=0.7, extend="both", format="%g", label=figures.QUANTITIES["SD"].label)
caption = f"""Where the network is unsure: SD of T1 (left three) and T2 (right three) over {n_draws} samples of the
posterior, n = 1 test person (protocols as drawn from OASIS-3), for one, two and three scans shown."""
alt = "Six slices in heat colours: uncertainty is highest at the brain's border and in CSF, and falls with more scans."
publish(fig, "fig19_posterior_sd", caption, alt)

# %% [markdown]
# **Figure 19.** Doubt sits where tissues meet and where CSF is. It is a picture of partial volume as much as of noise.
#
# ## What we learned
# - Physics alone can teach tissue: no map was ever shown, and the table says how close the inferred ones come.
# - With a common scale, T1 and T2 of white and grey matter follow the person; T2 of CSF does not, nor, through it, PD
#   relative to CSF (Figure 17).
# - Unknown gains leave the scans explained and the maps poorer; the equations say why, before any training.
# - More scans, surer posterior, by construction; more accurate maps only as far as the dots of Figure 18 say.
#
# ## Exercises
# 1. Most OASIS-3 sidecars claim TE 455 ms for the T2w. Tell the trained network so, and see what happens to T2.
# 2. Show the T1w twice: once as itself and once in the place of the T2w. Nothing new is shown. What does the product
#    of experts say?
# 3. Train the same network with L2 instead of L1 and fill in the other half of the paper's table.
#
# <details><summary>Solution 1</summary>
#
# ```python
# settings_claimed = test.settings.clone()
# settings_claimed[:, 1, 1] = 0.455
# claimed = type(test)(test.images, settings_claimed, test.observed, test.subject, test.position)
# show(tables.map_errors(infer(vae, claimed)[1], truth, test, "TE 455 ms claimed"), "bias")
# ```
# The encoder has never seen a T2w with such a TE, so do not expect the clean factor of [notebook
# 01](01_signal_physics.ipynb). A network *trained* on the claim would inflate T2 four to five times and explain its
# scans as well as ours.
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
# sure, which is one reason why a posterior SD can be smaller than the error.
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
# tables.reconstruction_errors(infer(other.vae(), test)[1], test, truth.brain, inputs="L2")
# ```
# </details>
#
# ## Limits
# Errors are those of simulated people, scanned by the same equations that the network inverts: model error is not in
# them. Test people of the default cohort share their head with the training set ([notebook 02](02_cohort.ipynb) says
# what is held out). Without a common scale PD is known only up to a factor. Real scans bring motion, several
# compartments a voxel and echo trains that no single TE describes: [notebook 08](08_real_patient.ipynb).
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532.
# - G. E. Hinton, *Neural Comput* 2002;14:1771: products of experts. M. Wu, N. Goodman, *NeurIPS* 2018: their use in a
#   multimodal VAE.
# - D. P. Kingma, M. Welling, *Auto-Encoding Variational Bayes*, 2014, arXiv 1312.6114.
# - Z. Wang et al., *IEEE Trans Image Process* 2004;13:600 (SSIM), and *Asilomar* 2003 (MS-SSIM).

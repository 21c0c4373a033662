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
# # 15 · What matters?
#
# **Question.** Of all that was decided, the gain, the echo time, the hidden scans, the adversary, KL, the priors, the
# mix of protocols, the physics itself: what does the accuracy come from, and what could go?
#
# **You will** train the network again and again, each time with one thing changed, tell a difference from chance,
# predict an error of T2 before it is seen, and find out whether agreement with the literature comes from the scans
# or was put in. *CPU: fifteen short trainings, an hour and more in all, once; not part of the plain run: `phyldm
# reproduce --only 15`.*
#
# [Contents](00_overview.ipynb) · before: [13 How right is it?](13_how_right_is_it.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import pandas
import torch
from IPython.display import clear_output
from tqdm import tqdm

from phyldm_core import figures, tissue
from phyldm_core.evaluation import ablation_figures, ablations, tables, variants
from phyldm_core.evaluation.examination import SCALES
from phyldm_core.evaluation.variants import UNCHANGED, VARIANTS
from phyldm_core.inference import infer
from phyldm_core.physics import UNSEEN, TissueMaps, render
from phyldm_core.running.chapter import open_chapter
from phyldm_core.running.report import in_percent, with_interval
from phyldm_core.scans.oasis3 import oasis3_protocols
from phyldm_core.slices import ALL_SCANS, SUBSETS

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
run.require_cohort()  # says which notebook makes it, if it is not there
runs = variants.variant_runs(run)

# %% [markdown]
# ## One change at a time
# The reference is the profile's network and loss, with a sixth of the steps and no adversary. Every other row changes
# what its second column says and nothing else: the same people, the same steps, the same seed, hence the same
# network at the start and the same batches. All are short trainings, and their errors are larger than those of
# [03](03_train_vae.ipynb). What is compared is the difference.
#
# **Predict** before you read the last column: which change costs most, and which costs nothing?

# %%
pandas.DataFrame({"variant": v.name, "about": v.of, "why it is asked": v.why, "prediction": v.prediction}
                 for v in VARIANTS).style.hide()  # fmt: skip

# %% [markdown]
# ## Train
# A variant that is finished is not trained again, and a killed one goes on where it was.

# %%
steps = runs[UNCHANGED.name].profile.vae_schedule.steps
progress = tqdm(total=len(runs), leave=False, mininterval=2)
for name, variant in runs.items():
    progress.set_description(name)
    for _ in variant.make():
        progress.update(0)
    progress.update()
progress.close()
clear_output()
minutes = sum(variant.training_log("vae").seconds.max() for variant in runs.values()) / 60
print(f"{len(runs)} trainings of {steps} steps, {minutes:.1f} minutes together")

# %%
people = ablations.measure(run, runs)
table = ablations.against_reference(people)
n_people = people.person.nunique()
print(f"{len(table)} numbers on {n_people} people held out, each scanned with all three contrasts")

# %% [markdown]
# ## What matters
# Every dot is a mean over the same held-out people. Some are hard for every variant; therefore a variant is held against
# the reference *person by person*, and only where that ratio is surely not 1 does its dot have a colour. *Another
# seed* changes nothing that anyone would report: as far as its row is from the lines, chance goes.
#
# **Predict:** how many rows will be farther from the line than *another seed* is?

# %%
with_maps = [v.name for v in VARIANTS if v.physics]
fig = ablation_figures.forest(table, with_maps)
caption = f"""One change at a time: median absolute error of T1, T2 and PD (relative to CSF) from all three scans, and
PSNR of contrasts nobody acquired (mean of those of F4 that leave signal), n = {n_people} held-out people, protocols as
drawn from OASIS-3; means with 95 % bootstrap intervals over people, lines: the reference. Coloured where the paired
interval of the ratio to the reference leaves out 1. {steps} training steps, one training each."""
alt = "A forest of dots with intervals, one row a variant, six panels; lines mark the reference."
publish(fig, "fig95_what_matters", caption, alt)

# %%
ratios = table[(table.metric == "error_ratio") & (table.scans == ALL_SCANS) & (table.tissue != "CSF")]
ratios = ratios[ratios.variant.isin(with_maps)]
ratios = ratios.assign(shown=[in_percent(r, 0) for r in ratios.itertuples()], of=ratios.quantity + " " + ratios.tissue)
print("error, % of the reference's, paired (95 % interval over people)")
ratios.pivot_table(index=["variant", "scale"], columns="of", values="shown", aggfunc="first", sort=False)

# %% [markdown]
# **Figure 95.** Read *another seed* first, and do not believe a row that is no farther off than it: an interval over
# people says what other people would give, not what another training would. Then look where the large ones are: among
# what was *believed* about the scans (gain, echo time), or among the terms of the loss that papers discuss for pages?
#
# ## The scans and the hiding of scans
# Number of scans needs no training: the reference is shown fewer. Then the variant that was always shown everything.
#
# **Predict:** in which row of the second table is *all scans shown* worse?

# %%
def errors(variant, scale=SCALES[0]):
    rows = table[(table.metric == "median_absolute_error") & (table.variant == variant) & (table.scale == scale)]
    rows = rows[rows.tissue != "CSF"].assign(of=rows.quantity + " " + rows.tissue)
    shown = rows.assign(shown=[in_percent(row, 0) for row in rows.itertuples()])
    return shown.pivot_table(index="scans", columns="of", values="shown", aggfunc="first", sort=False)


errors(UNCHANGED.name)

# %%
errors("all scans shown")

# %% [markdown]
# What is never hidden is never asked for: with all of a session's scans shown, maps need only explain what is
# seen, and from a T1w alone any T2 would do. Sessions of OASIS-3 lack contrasts by themselves, but what a session
# lacks, no loss can ask for. Compare the rows *T1w* of both tables: that is where it should show.
#
# ## Sharp, sure and right are three things
# The adversary is after sharpness: fine detail in the T1w that is rendered from the maps, over that from the true maps
# (1 is as sharp as truth). KL keeps posteriors wide: the share of true values in the 90 % interval of posterior samples.
#
# **Predict:** which of the columns move one of these numbers, and do they move the error?

# %%
wanted = [("sharpness", "T1w", "brain"), *(("coverage_90", q, "GM") for q in ("T1", "T2"))]
chosen = table[(table.scans == ALL_SCANS) & (table.scale == SCALES[0])]
rows = chosen.set_index(["metric", "quantity", "tissue", "variant"]).value.unstack()
names = [n for n in (UNCHANGED.name, "another seed", "adversary", "no KL", "strong KL") if n in rows]
rows.loc[[*(w for w in wanted if w in rows.index), *(("median_absolute_error", q, "GM") for q in ("T1", "T2"))],
         names].round(3)  # fmt: skip

# %% [markdown]
# ## An error predicted: the echo time in the header
# A T2w of OASIS-3 says 455 ms, and has the contrast of a spin echo near 100 ms
# ([01](01_signal_physics.ipynb)). Whoever believes the header solves
# $$e^{-TE_\text{header}/\hat T_2} = e^{-TE_\text{eff}/T_2} \quad\Rightarrow\quad
# \hat T_2 = T_2\,\frac{TE_\text{header}}{TE_\text{eff}}$$
# whatever PD and T1 are, because TR is what it was. The FLAIR protests: its own TE, mostly 91 ms, is true, and asks for
# the true T2. A fit without a network, told the same and holding the same priors, says how the quarrel ends.
#
# **Predict:** T2 of white matter is 70 ms. What does the header make of it, with a FLAIR and without?

# %%
usual = oasis3_protocols()["T2w"][0]
ratio = usual.nominal.te / usual.effective.te
asked = 1000 * ablations.t2_asked_for(0.07, usual.effective.te, usual.nominal.te)
print(f"{usual.nominal}: T2 × {ratio:.2f}; 70 ms → {asked:.0f} ms")
fits = ablations.fitted_te(run, 20 if profile == "smoke" else 200)

# %%
fig = ablation_figures.echo_time(people, fits, ratio)
caption = f"""T2 inferred over true T2, a dot a person (n = {n_people}) and tissue: predicted by a least-squares fit
with priors and nominal TE (across), seen in the network trained with nominal TE (filled) or effective TE (open, the
reference). Cross: the ratio of both TE, {ratio:.2f}, what a T2w alone asks for. Line: prediction and network agree.
Protocols as drawn
from OASIS-3, common scale."""
alt = "Two panels of dots on logarithmic axes, T2 over truth of the network against that of a fit, with a diagonal."
publish(fig, "fig96_nominal_te", caption, alt)

# %% [markdown]
# **Figure 96.** Left, without a FLAIR, nothing contradicts the header, and the fit goes where the equation sends it (CSF
# as far as it may: a T2 above 4 s is not searched). The network may stand below: it has seen sessions with a FLAIR,
# and brings their quarrel along. Right, the quarrel itself: no T2 serves both scans, and a fit that knows no neighbours
# gives up T1 to mediate, or one of the scans. What the figure does not show is the images: a T2w rendered at the
# same wrong TE with the same wrong T2 is the same T2w, so that whoever looks at reconstructions only sees little of this.
#
# ## From the scans, or put in?
# The paper finds its T1 and T2 in agreement with the literature. But its loss holds a prior that comes from the same
# literature, and so does ours. Who speaks? Move the prior: as if all published T1 and T2 were a quarter longer,
# or shorter, medians and lines alike, and train again. The truth has not moved. What follows the prior was put in:
# $$\text{share of the prior} = \frac{\Delta \log \hat T}{\Delta \log \text{prior}}$$
#
# **Predict:** a share for T1 of white matter from all scans, and for T2 of CSF.

# %%
shares = ablations.prior_share(people)
fig = ablation_figures.pull_of_prior(table, shares)
caption = f"""Moving the prior. Left and middle: T1 and T2 over their truth from all scans, networks trained with the
priors'
T1 and T2 at 0.8, 1 and 1.25 times the literature's (dotted: an estimate that is the prior's alone). Right: the share
of the prior, from T1w, T1w+T2w and all scans. Means with 95 % bootstrap intervals over n = {n_people} held-out people,
protocols as drawn from OASIS-3, common scale."""
alt = "Two panels of lines, flat where scans decide, rising where the prior does, and dots from 0 to 1 by tissue."
publish(fig, "fig97_moving_the_prior", caption, alt)

# %%
pick = shares[shares.scale == SCALES[0]]
pick = pick.assign(shown=[f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in pick.itertuples()])
pick.pivot_table(index=["quantity", "tissue"], columns="scans", values="shown", aggfunc="first", sort=False)

# %% [markdown]
# **Figure 97.** Near 0, agreement with the literature is a finding. Near 1 it is a quotation: had the literature been
# wrong, the network would agree with it all the same. Above 1 or below 0, the shift of one quantity pushes another. From
# a T1w alone, T2 can only come from what was put in and from what other people's T2w taught. A short training counts as
# prior, too: the network starts at the medians.
#
# ## One protocol or OASIS-3's mix
# The same people with the same tissue were scanned again, all with the most frequent protocols. Then each training is
# tested on both.
#
# **Predict:** which of the four numbers is worst?

# %%
named = {"": "on OASIS-3's mix", ablations.ON_ONE: "on one protocol"}
chosen = table[(table.metric == "median_absolute_error") & (table.scans == ALL_SCANS) & (table.scale == SCALES[0])]
parts = []
for tested, said in named.items():
    for trained in (UNCHANGED.name, "one protocol"):
        of = chosen[(chosen.variant == trained + tested) & (chosen.tissue != "CSF")]
        cells = {f"{r.quantity} {r.tissue}": in_percent(r, 0) for r in of.itertuples()}
        parts.append({"trained on": "the mix" if trained == UNCHANGED.name else trained, "tested": said, **cells})
pandas.DataFrame(parts).style.hide()

# %% [markdown]
# The mix of OASIS-3 is narrow: eight or nine in ten of its T2w share one protocol. What is lost between the rows here is the
# least that can be lost; the scan of another archive, as in [08](08_real_patient.ipynb), is farther away.
#
# ## Without physics
# The last variant has the same network, to the parameter, and no equations: its three outputs are the T1w, the T2w and the
# FLAIR. It is not told what tissue is, and it need not be: it may copy.
#
# **Predict:** scans that were shown, scans that were not, contrasts nobody acquired: where does it win, and where has it
# nothing to say?

# %%
rows = table[(table.metric == "psnr") & table.variant.isin([UNCHANGED.name, "images, no physics"])]
rows = rows[rows.scans.isin(ablations.SHOWN) & (rows.scale == SCALES[0])]
rows = rows.assign(shown=[with_interval(r.value, r.low, r.high, 1, " dB") for r in rows.itertuples()])
rows.pivot_table(index=["quantity", "scans"], columns="variant", values="shown", aggfunc="first", sort=False)

# %%
slices, truth = run.scans("test"), run.truth("test")
first = slices.subject == 0
slices, i = slices[first], int(first.sum()) // 2
truth = type(truth)(truth.maps[first], truth.fractions[first])
hidden = torch.tensor(SUBSETS["T1w+T2w"]).expand(len(slices), -1)
unseen = [p for p in UNSEEN if tissue.leaves_signal(p)][0]
rows = [[*slices.images[i], slices.images[i, 2], render(TissueMaps.from_stack(truth.maps[[i]]), unseen)[0]]]
for name in (UNCHANGED.name, "images, no physics"):
    vae = runs[name].vae()
    maps, blind = (infer(vae, slices, True, shown)[1] for shown in (None, hidden))
    if runs[name].variant.physics:
        scans, guess, new = tables.rescan(maps, slices), tables.rescan(blind, slices), render(maps, unseen)
    else:
        scans, guess = maps.stack(), blind.stack()
        new, _ = ablations.nearest_image(scans, truth, unseen)
    rows.append([*scans[i], guess[i, 2], new[i]])

# %%
titles = ["T1w", "T2w", "FLAIR", "FLAIR, not shown", "nobody's contrast"]
windows = [figures.percentile_window(image) for image in rows[0]]
panels = [
    [figures.Panel(image, None, title=titles[k] if r == 0 else "", side=side if k == 0 else "", window=windows[k])
     for k, image in enumerate(row)]
    for r, (side, row) in enumerate(zip(("truth", "physics", "no physics"), rows, strict=True))
]  # fmt: skip
fig = figures.map_grid(panels, voxel_mm=run.recipe.voxel_mm)
caption = f"""With and without physics, n = 1 held-out person: scans as acquired (protocols as drawn from OASIS-3) and
predicted from all three; the FLAIR predicted from T1w and T2w alone; {unseen}, from the true maps, from the inferred
maps,
and the nearest of the three images that a model without physics has, at its best gain. One window a column."""
alt = "Three rows of brain images, truth, with physics and without: scans first, an unseen contrast last."
publish(fig, "fig98_without_physics", caption, alt)

# %% [markdown]
# **Figure 98.** Copying was expected to win where scans were shown. It does for the T1w, by less than half a dB. The
# equations carry what a decoder of images must learn for every protocol anew: it cannot be told that this FLAIR has
# another TI, and its brightness is wrong, shown or not. In the last column it does not compete at all: it was told by the truth which of its images to show, and how bright.

# %%
run.write_metrics("ablations", pandas.concat([table, shares, ablations.intervals(fits)], ignore_index=True));

# %% [markdown]
# ## What we learned
# - Each change beside the reference and beside chance, paired over people (`metrics/ablations.csv`, Figure 95).
# - How wrong the echo time of the header makes T2, said beforehand by its equation and by a fit (Figure 96).
# - Which values come from the scans and which were put in: the prior moved, and those followed (Figure 97).
# - What the equations cost where copying would do, little, and that there is nothing without them where nobody scanned
#   (Figure 98).
#
# ## Exercises
# 1. **Predict first:** hide more scans (`keep_scan` 0.4). Does a T1w alone gain what all three lose?
# 2. Compute the share of the prior on scans without a common scale. Which share grows, and why?
# 3. How large must an error ratio be so that *another seed* does not reach it? Count the rows that pass.
#
# <details><summary>Solution 1</summary>
#
# ```python
# more = variants.Variant("more hidden", "modality dropout", "", "", loss={"keep_scan": 0.4})
# both = variants.variant_runs(run, [UNCHANGED, more])
# for variant in both.values():
#     for _ in variant.make():
#         pass
# hidden_more = ablations.against_reference(ablations.measure(run, both))
# hidden_more[(hidden_more.metric == "error_ratio") & (hidden_more.variant == "more hidden")]
# ```
# A ratio below 100 % in one row and above in another is a trade: one set of weights serves seven tasks. Hold both against
# *another seed*. The reference is not trained again, as its settings are the same.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# pick = shares[shares.scans == ALL_SCANS]
# pick.pivot_table(index=["quantity", "tissue"], columns="scale", values="value", sort=False).round(2)
# ```
# Where a gain is unknown, a change of tissue can be a change of gain ([03](03_train_vae.ipynb), *What a gain hides*). In
# those directions the scans are silent, and what was put in speaks. T1 of CSF has its null point, which no gain moves.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# keys = ["variant", "quantity", "tissue", "scale"]
# size = ratios.set_index(keys).value.apply(lambda r: max(r, 1 / r)).unstack(0)
# chance = size["another seed"]
# size.gt(chance, axis=0).sum()
# ```
# One seed is one draw of chance: what exceeds it twice over in most columns is safe to report, and what exceeds it
# by a little asks for three seeds more.
# </details>
#
# ## Limits
# One training a variant, and short ones: what needs long to be learned, the adversary first of all, is not given its
# chance, and an effect that a longer training would remove (the start at the prior's medians) is seen. Simulated
# people, one network. The effective TE is an assumption; here the simulation makes it true. Only the VAE is trained
# without physics: a diffusion model on its latents would draw sets of three images, and no fourth.
#
# ## References
# - R. F. Busse et al., *Fast spin echo sequences with very long echo trains: design of variable refocusing flip angle
#   schedules and generation of clinical T2 contrast*, Magn Reson Med 2006;55:1030.
# - R. Meyes et al., *Ablation studies in artificial neural networks*, 2019, arXiv 1901.08644.
# - I. Higgins et al., *beta-VAE: learning basic visual concepts with a constrained variational framework*, ICLR 2017.

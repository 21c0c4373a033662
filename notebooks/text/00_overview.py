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
# # 00 · Tissue first, contrast second
#
# **Question.** Every MRI dataset holds the contrasts somebody happened to acquire. Can a generator of brains make the
# others, too?
#
# **You will** see the idea in pictures, meet the architecture with the numbers of your profile, find out which notebook
# makes which figure of the paper and where we depart from it, and see what your run folder holds already. *CPU, under a
# minute; needs nothing that another notebook makes.*
#
# Next: [01 From tissue to contrast](01_signal_physics.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import pandas
from IPython.display import clear_output

from phyldm_core import figures, tissue
from phyldm_core.people import cohort
from phyldm_core.physics import REFERENCE, UNSEEN, Protocol, TissueMaps, effective_protocol, render
from phyldm_core.running.chapter import open_chapter
from phyldm_core.running.profiles import architecture_of
from phyldm_core.running.run import MissingResult, open_run
from phyldm_core.slices import MODALITIES

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe = run.recipe

# %% [markdown]
# ## The idea
# A generator of *images* can only make the contrasts it was trained on. But an image is not what a brain is made of.
# What a scanner shows follows from three properties of tissue, proton density (PD), T1 and T2, and from what is set
# at the console, TE, TR and TI. So S. Lüpke and colleagues (arXiv 2409.13532) generate the *tissue*: a latent
# diffusion model draws maps of PD, T1 and T2 that nobody measured, and the equations of MR turn them into any
# contrast, seen in training or not.
#
# Here is one simulated person, as every person of our cohort: the maps are known, and nine images follow from them.
#
# **Predict:** three of the nine are what the archive holds. Which?

# %%
someone = cohort.simulate(recipe.subjects()[0], recipe)
maps = TissueMaps(*someone.maps[recipe.n_slices // 2].unbind(0))
contrasts = {name: effective_protocol(protocol) for name, protocol in REFERENCE.items()}
contrasts |= {
    "proton density": Protocol("spin echo", te=0.015, tr=6.0),
    "long-TE T2w": Protocol("spin echo", te=0.2, tr=3.2),
    "white matter nulled": Protocol("FLAIR", te=0.015, tr=4.0, ti=0.62),
    "early inversion": UNSEEN[2],
    "water only": UNSEEN[3],
    "long-TE FLAIR": UNSEEN[8],
}
order = sorted(contrasts, key=lambda name: (contrasts[name].sequence.value, contrasts[name].te))
images = {name: render(maps, contrasts[name]) for name in order}

# %%
head = maps.pd > tissue.AIR_PD
look = ({}, {"inside": head}, {"inside": head})
panels = [figures.Panel(m, q, title=q, **k) for m, q, k in zip(maps, figures.MAPS, look, strict=True)]
panels += [figures.Panel(images[name], note=str(k)) for k, name in enumerate(order, start=1)]
fig = figures.map_grid([panels[:6], panels[6:]], voxel_mm=recipe.voxel_mm)
caption = """One simulated person (n = 1, middle slice): three maps of tissue, and nine images that follow from them:
""" + "; ".join(f"({k}) {contrasts[name]}" for k, name in enumerate(order, start=1)) + "."
alt = "Three maps of a brain slice, and nine images of the same slice, each with another contrast."
publish(fig, "fig00_idea", caption, alt)

# %%
held = {name: "T1w, T2w and FLAIR of the archive" if name in REFERENCE else "acquired by nobody" for name in order}
pandas.DataFrame(
    {"contrast": order, "protocol": [str(contrasts[n]) for n in order], "": held.values()}, index=range(1, 10)
)

# %% [markdown]
# ## The architecture
# Scans and their protocols go in; one encoder gives an opinion per scan, a product of experts joins the opinions in a
# latent, a decoder turns it into tissue, and the signal equations render scans from the tissue. Training compares scans
# only: no map is ever shown. Then a diffusion model learns the latents, and new brains come from noise. (In profile
# `laptop` it learns a latent of its own: [04](04_train_diffusion.ipynb) says why.) The figure is drawn from the
# networks of the profile itself.
#
# **Predict:** which of the networks has the most parameters: the one that reads scans, the one that writes tissue, or
# one of those that make new brains?

# %%
drawn = architecture_of(run.profile)
scanned = {f"in {m}": someone.images[recipe.n_slices // 2, i] for i, m in enumerate(MODALITIES)}
scanned = {name: image for name, image in scanned.items() if image.any()}  # what this session lacks stays grey
pictures = scanned | dict(zip(figures.MAPS, maps, strict=True)) | {n: images[n] for n in REFERENCE}
fig = figures.architecture(**drawn, pictures=pictures)
caption = f"""Architecture, drawn from the configuration of profile {profile!r}: slabs are levels of the networks
(channels below, size within). A scan that this person (n = 1) does not have is grey. Protocols as drawn from
OASIS-3."""
alt = "Scans enter an encoder; Gaussians multiply into a latent; a decoder gives PD, T1, T2; equations give scans."
publish(fig, "fig02_architecture", caption, alt)

# %% [markdown]
# Those that make new brains hold by far the most parameters. Reading scans takes few: what physics knows need not be
# learnt.
#
# ## Which notebook makes which figure
#
# | paper | what it shows | notebook |
# |---|---|---|
# | Figure 1 | maps inferred from the scans of a person | [03 Train the VAE](03_train_vae.ipynb) |
# | Figure 2 | architecture | this one |
# | Figure 3 | generated tissue and the scans rendered from it | [05 Sample tissue](05_sample_tissue.ipynb) |
# | Figure 4 | contrasts unseen in training | [06 Unseen contrasts](06_unseen_contrasts.ipynb) |
# | Figure 5 | histograms of generated T1, T2 and PD against measurements | [07 Tissue histograms](07_tissue_histograms.ipynb) |
# | Table 1 | how well scans are reconstructed | [03 Train the VAE](03_train_vae.ipynb) |
# | section 2.2 | the signal equations | [01 From tissue to contrast](01_signal_physics.ipynb) |
# | section 2.3 | latent diffusion | [04 Train the diffusion model](04_train_diffusion.ipynb) |
# | data | OASIS-3 there; here a cohort with its protocols and a known truth | [02 A cohort whose truth is known](02_cohort.ipynb) |
# | not in the paper | a real patient | [08 A real patient](08_real_patient.ipynb) |
# | not in the paper | your own scans, from files to files | [09 Your own scans](09_your_own_scans.ipynb) |
# | not in the paper | explorers of contrasts and of the latent | [10](10_explore_contrasts.ipynb), [11](11_explore_latents.ipynb) |
# | not in the paper | what the figures look like in grey and to colour-blind readers | [12 Figure style](12_figure_style.ipynb) |
# | not in the paper | rivals, intervals, noise floors | [13 How right is it?](13_how_right_is_it.ipynb) |
# | not in the paper | quality against time, ratios | [14 What makes it fast](14_what_makes_it_fast.ipynb) |
# | not in the paper | ablations, the prior moved, no physics | [15 What matters?](15_what_matters.ipynb) |
#
# ## What is different here
#
# | there | here | where to see it |
# |---|---|---|
# | no truth for T1, T2 and PD | people simulated from real anatomy, whose truth is known | 02, all errors |
# | split by session: some validation sessions share a person with training | split by person and, with several heads, by head | 02 |
# | all three contrasts required | any subset, in training and at inference | 03 |
# | gain 1 for every scanner and sequence | a gain per scan, solved in closed form; both reported | 03 |
# | nominal TE of 455 ms taken literally | an effective TE for long echo trains | 01 |
# | signed signal compared with magnitude images | signed physics, magnitude taken once | 01 |
# | one scale and shift for a whole layer, without the sequence | per channel, from sequence, TE, TR and TI, identity at the start | 03 |
# | diffusion learns $\mu + \sigma\varepsilon$ | diffusion learns posterior means, scaled per channel, encoded once | 04 |
# | one latent for inference and generation | profile `laptop`: one of tissue to infer, one of choices to generate | 04 |
# | no averaged weights, no validation of the diffusion model | both | 04 |
# | metrics pooled over contrasts | per contrast and person, brain mask stated, intervals over people | 03, 06, 07 |
# | perceptual loss from a download | structural similarity; profile `paper` keeps the adversary | 03 |
#
# ## How to run
# From a clone, two commands do everything, the environment included:
#
# ```bash
# make reproduce    # every notebook in order, every figure, one report
# make test         # the tests, and every notebook in seconds at profile `smoke`
# ```
#
# One notebook at a time, in JupyterLab or from a shell:
#
# ```bash
# phyldm reproduce --only 3                          # run one
# phyldm reproduce --from 5                          # this one and those after it
# phyldm reproduce --anatomies data/synthseg_labels  # real heads: first `phyldm fetch synthseg`
# phyldm reproduce --profile paper                   # the paper's sizes, needs a GPU
# ```
#
# Each notebook starts with the same five parameters: profile, run folder, folder for figures, folder of label maps
# (empty: the MNI152 template that comes with nilearn) and seed.

# %%
sizes = {}
for name in ("smoke", "laptop", "release", "paper"):
    other = open_run(run_dir, name).profile
    schedules = other.vae_schedule, other.composition_schedule, other.diffusion_schedule
    sizes[name] = {
        "for": other.why,
        "slices": f"{other.cohort.shape[0]} × {other.cohort.shape[1]} at {other.cohort.voxel_mm:g} mm",
        "people (train, val, test)": f"{other.cohort.n_train}, {other.cohort.n_val}, {other.cohort.n_test}",
        "latent to generate": "the VAE's own" if other.composition is None else "of compositions",
        "steps (VAE, compositions, diffusion)": ", ".join(f"{schedule.steps:,}" for schedule in schedules),
    }
pandas.DataFrame(sizes).T

# %% [markdown]
# ## What your run folder holds
# A part is reused as long as it was made with the settings now asked for; otherwise the notebook named makes it anew.

# %%
parts = {
    "cohort": (run.require_cohort, "02_cohort"),
    "VAE": (run.vae, "03_train_vae"),
    "compositions": (run.composition, "04_train_diffusion"),
    "diffusion model": (run.pipeline, "04_train_diffusion"),
    "samples": (run.samples, "05_sample_tissue"),
}
state = {}
for name, (load, notebook) in parts.items():
    try:
        state[name] = "is there" if load() is not None else "not in this profile"
    except MissingResult:
        state[name] = f"not yet: {notebook} makes it"
clear_output()  # of loading
numbers = sorted(p.name for p in (run.folder / "metrics").glob("*.csv"))
state["tables of numbers"] = f"{len(numbers)}"
pandas.Series(state, name=f"profile {profile!r}").to_frame()

# %% [markdown]
# ## What we learned
# - Tissue is what a brain is made of, and a contrast is a way to look at it: one set of maps gave nine images.
# - Everything the paper shows has a notebook here, and a truth to be held against.
#
# ## Exercises
# 1. In one of the nine white matter is nulled. Find the TI at which grey matter vanishes instead. Is white matter
#    then alone?
# 2. How many times smaller is a latent than the three scans it was made from, in your profile and in the paper's?
#
# <details><summary>Solution 1</summary>
#
# Grey matter has a T1 of about 1.45 s; [notebook 01](01_signal_physics.ipynb) derives its null point:
#
# ```python
# from phyldm_core.physics import null_ti
# nulled = Protocol("FLAIR", te=0.015, tr=4.0, ti=null_ti(1.45, 4.0, "FLAIR"))
# figures.mosaic([render(maps, nulled)], None, columns=4)
# ```
# No: CSF recovers last, is still negative, and shines in the magnitude. To silence two tissues takes two inversions.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# from math import prod
# 3 * prod(recipe.shape) / prod(drawn["latent"])                     # this profile, to infer
# 3 * prod(recipe.shape) / prod(drawn["composition"] or drawn["latent"])  # and to generate
# 3 * 224 * 160 / (6 * 28 * 20)                                      # the paper: 32
# ```
# </details>
#
# ## Limits
# The people are simulated; only [08](08_real_patient.ipynb) shows a real one. Three numbers a voxel are not all of
# tissue: diffusion, flow, magnetisation transfer and susceptibility are left out, as in the paper.
#
# ## References
# - S. Lüpke, Y. Yeganeh, E. Adeli, N. Navab, A. Farshad, *Physics-Informed Latent Diffusion for Multimodal Brain MRI
#   Synthesis*, MMMI at MICCAI 2024, arXiv 2409.13532.

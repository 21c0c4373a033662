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
# **Question.** A dataset of MR images holds only the contrasts that somebody acquired. Can a generator of brains make
# the other contrasts, too?
#
# **You will** see the idea in one figure, meet the networks, find the chapter behind each figure of the paper, and see
# where this companion departs from the paper. *Seconds; needs nothing that another chapter makes.*
#
# Next: [01 From tissue to contrast](01_signal_physics.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
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
recipe = run.recipe if run.common_scale else run.profile.cohort  # the idea needs somebody simulated

# %% [markdown]
# ## The idea
# What a scanner shows depends on three properties of tissue, which are proton density (PD), T1 and T2, and on what is
# set at the console: TE, TR and TI. S. Lüpke and colleagues (arXiv 2409.13532) therefore generate the *tissue*. A
# latent diffusion model draws maps of PD, T1 and T2 that nobody measured. The signal equations of MR then turn these
# maps into any contrast.
#
# Below is one simulated person. Nine images follow from the same three maps.
#
# **Predict:** three of the nine are contrasts that the archive holds. Which?

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
protocols = "; ".join(f"({k}) {contrasts[name]}" for k, name in enumerate(order, start=1))
caption = f"""Three maps of tissue and nine images that follow from them. One simulated person (n = 1, middle slice):
{protocols}."""
publish(fig, "fig00_idea", caption, "Three maps of a brain slice, and nine images of it, each with another contrast.")

# %%
held = ["T1w, T2w and FLAIR of the archive" if name in REFERENCE else "acquired by nobody" for name in order]
settings = [str(contrasts[name]) for name in order]
pandas.DataFrame({"contrast": order, "protocol": settings, "": held}, index=range(1, 10))

# %% [markdown]
# **Figure 0.** Three of the nine images are in the archive, and the table names them. The other six follow from the
# same maps. No network was needed for this step, only the three maps and the equations.
#
# ## The architecture
# Scans and their protocols enter one encoder. For each scan it gives a Gaussian over the latent, and the Gaussians are
# multiplied (a product of experts). A decoder turns the latent into tissue, and the signal equations turn tissue into
# scans. Training compares scans only. No map is ever shown. A diffusion model then learns the latents, and new brains
# come from noise. Profile `laptop` generates in a second latent; [04](04_train_diffusion.ipynb) says why.
#
# **Predict:** which network has the most parameters: the one that reads scans, the one that writes tissue, or those
# that make new brains?

# %%
drawn = architecture_of(run.profile)
scanned = {f"in {m}": someone.images[recipe.n_slices // 2, i] for i, m in enumerate(MODALITIES)}
scanned = {name: image for name, image in scanned.items() if image.any()}  # a scan that is missing stays grey
pictures = scanned | dict(zip(figures.MAPS, maps, strict=True)) | {n: images[n] for n in REFERENCE}
fig = figures.architecture(**drawn, pictures=pictures)
caption = f"""F2 of the paper: the architecture. Drawn from the configuration of profile {profile!r}: slabs are levels
of the networks (channels below, size within). A scan that this person (n = 1) does not have is grey. Protocols as
drawn from OASIS-3."""
alt = "Scans enter an encoder; Gaussians multiply into a latent; a decoder gives PD, T1, T2; equations give scans."
publish(fig, "fig02_architecture", caption, alt)

# %%
pandas.Series(drawn["parameters"], name="parameters").map("{:,}".format).to_frame()

# %% [markdown]
# **Figure 2 (F2 of the paper).** The table answers the prediction: the networks that make new brains have most of the
# parameters, and those that read scans have few, because the signal equations need not be learned.
#
# ## Which chapter makes which figure
#
# | paper | what it shows | chapter |
# |---|---|---|
# | F1 | maps inferred from the scans of a person | [03 Train the VAE](03_train_vae.ipynb) |
# | F2 | architecture | this one |
# | F3 | generated tissue and the scans rendered from it | [05 Samples](05_sample_tissue.ipynb) |
# | F4 | contrasts unseen in training | [06 Unseen contrasts](06_unseen_contrasts.ipynb) |
# | F5 | histograms of generated T1, T2 and PD against measurements | [07 Tissue histograms](07_tissue_histograms.ipynb) |
# | Tab. 1 | how well scans are reconstructed | [03 Train the VAE](03_train_vae.ipynb) |
# | section 2.2 | the signal equations | [01 From tissue to contrast](01_signal_physics.ipynb) |
# | section 2.3 | latent diffusion | [04 Train the generator](04_train_diffusion.ipynb) |
# | data | OASIS-3 there; here simulated people with its protocols and a known truth | [02 The cohort](02_cohort.ipynb) |
# | not in the paper | real scans, from files to files | [08 Real scans](08_real_scans.ipynb) |
# | not in the paper | errors beside those of other methods, and their causes | [09 How right is it, and why?](09_how_right_is_it.ipynb) |
#
# ## What is different here
#
# | the paper | here | why | chapter |
# |---|---|---|---|
# | OASIS-3 scans, no truth for T1, T2 and PD | simulated people from real anatomy, scanned with OASIS-3's protocols | the error of a map can be measured | 02 |
# | split by session | split by person and, with several heads, by head | some validation sessions share a person with training | 02 |
# | all three contrasts required | any subset, in training and at inference | most of the archive lacks a contrast | 03 |
# | gain 1 for every scanner and sequence | a gain per scan; both reported | real scans have no common scale | 03 |
# | nominal TE of 455 ms | contrast-equivalent TE, 0.22 × nominal above 0.3 s (our assumption) | at the nominal TE white matter keeps 0.2 % of its signal | 01 |
# | signed signal compared with magnitude images | signed physics, magnitude taken once | the sign is lost in a scan | 01 |
# | independent priors on PD, T1, T2 | also 1/PD = a + b/T1, the line through in-vivo values | one mixture of the three maps is nearly invisible in the scans | 09 |
# | PD unbounded | PD at most that of water | CSF's PD and T2 appear only as a product | 03 |
# | group norm throughout | adaptive norm per channel in the encoder, none in the decoder | a norm removes an image's level, and here the level is physics | 03 |
# | diffusion learns $\mu + \sigma\varepsilon$ | diffusion learns posterior means | noise says nothing of tissue (below 1 % of the variance here) | 04 |
# | diffusion in the VAE's latent | `laptop`: a second latent of tissue shares; `paper`: as published | minutes of training on a fine latent give blobs | 04 |
# | ε-prediction, 1000 steps, DDIM 50 | `laptop`: flow matching, 20 steps; `paper`: as published | time | 04 |
# | perceptual loss from a download | structural similarity; profile `paper` keeps the adversary | nothing is downloaded | 03 |
#
# ## How to run
#
# ```bash
# make reproduce                                     # environment, every chapter, every figure, one report
# make test                                          # the tests, and every chapter in seconds at profile `smoke`
# phyldm reproduce --only 3                          # one chapter
# phyldm reproduce --from 5                          # this one and those after it
# phyldm reproduce --anatomies data/synthseg_labels  # real heads: first `phyldm fetch synthseg`
# phyldm reproduce --profile paper                   # the paper's sizes, needs a GPU
# ```
#
# Each chapter starts with the same five parameters: profile, run folder, folder for figures, folder of label maps
# (empty: the MNI152 template that comes with nilearn) and seed. Chapters 03, 04 and 09 show
# the networks that your run trains. Chapters 05 to 08 of profile `laptop` show those of the release in
# `data/weights/release`, which learned for hours; of other profiles, and of runs on real scans, they show the run's own.

# %%
sizes = {}
for name in ("smoke", "laptop", "release", "paper"):
    other = open_run(run_dir, name).profile
    schedules = other.vae_schedule, other.composition_schedule, other.diffusion_schedule
    sizes[name] = {
        "for": other.why,
        "slices": f"{other.cohort.shape[0]} × {other.cohort.shape[1]} at {other.cohort.voxel_mm:g} mm",
        "people (train, val, test)": f"{other.cohort.n_train}, {other.cohort.n_val}, {other.cohort.n_test}",
        "steps (VAE, compositions, diffusion)": ", ".join(f"{schedule.steps:,}" for schedule in schedules),
    }
pandas.DataFrame(sizes).T

# %% [markdown]
# ## What your run folder holds
# A part is reused as long as it was made with the settings now asked for.

# %%
parts = {
    "cohort": (run.require_cohort, "03"),
    "VAE": (run.vae, "03"),
    "diffusion model": (run.pipeline, "04"),
    "samples": (run.samples, "05"),
}
state = {}
for name, (load, chapter) in parts.items():
    try:
        state[name] = "is there" if load() is not None else "not in this profile"
    except MissingResult:
        state[name] = f"not yet: chapter {chapter} makes it"
clear_output()  # of loading

# %%
pandas.Series(state, name=f"profile {profile!r}").to_frame()

# %% [markdown]
# ## What we learned
# - One set of maps gave nine images, and three of them are in the archive (Figure 0).
# - Most parameters belong to the networks that make new brains (Figure 2).
#
# ## Exercises
# 1. In one of the nine images white matter is nulled. Find the TI at which grey matter vanishes instead. What else is
#    left?
# 2. How many times smaller is a latent than the three scans it was made from, in your profile and in the paper's?
#
# <details><summary>Solution 1</summary>
#
# Grey matter has a T1 of about 1.34 s. [Chapter 01](01_signal_physics.ipynb) derives its null point:
#
# ```python
# from phyldm_core.physics import null_ti
# nulled = Protocol("FLAIR", te=0.015, tr=4.0, ti=null_ti(1.34, 4.0, "FLAIR"))
# figures.mosaic([render(maps, nulled)], None, columns=4)
# ```
# White matter and CSF are left. CSF recovers last and is still negative, so it is bright in the magnitude. Two tissues
# can only be nulled with two inversions.
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
# The people are simulated; only [08](08_real_scans.ipynb) shows a real one. Diffusion, flow, magnetisation transfer and
# susceptibility are left out, as in the paper.
#
# ## References
# - S. Lüpke, Y. Yeganeh, E. Adeli, N. Navab, A. Farshad, *Physics-Informed Latent Diffusion for Multimodal Brain MRI
#   Synthesis*, MMMI at MICCAI 2024, arXiv 2409.13532.

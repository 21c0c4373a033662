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
# # 11 · Explore the latent
#
# **Question.** Between tissue and noise lies a latent. What is half-way between two brains, when does noise become a
# brain, and what does one more scan add to what is known of a person?
#
# **You will** walk from one generated brain to another, watch noise turn into tissue in few steps and in many, and
# switch the experts of the encoder on and off. *CPU, under a minute; needs the run of notebooks
# [02](02_cohort.ipynb) to [04](04_train_diffusion.ipynb).*
#
# [Contents](00_overview.ipynb) · background: [03 Train the VAE](03_train_vae.ipynb),
# [04 Train the diffusion model](04_train_diffusion.ipynb), [05 Sample tissue](05_sample_tissue.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import pandas
import torch

from phyldm_core import figures
from phyldm_core.explorers.latents import LatentExplorer, on_the_sphere, straight
from phyldm_core.running.run import open_run

figures.use_house_style()
run = open_run(run_dir, profile, anatomies, seed)
explorer = LatentExplorer(run)

# %% [markdown]
# ## Two noises and what lies between them
# A seed stands for one noise, and a noise for one brain. The sliders below choose among brains that are drawn already,
# so they answer at once; another seed, number of steps or height draws nine new ones, which takes a moment and can be
# stopped. Tab moves from control to control, arrow keys move a slider.
#
# **Predict:** half-way from A to B, will there be one brain, or two that shine through each other?

# %%
explorer.noise

# %% [markdown]
# What it shows now, for readers of a page without a running kernel:

# %%
explorer.noise.still()

# %% [markdown]
# Every brain on the way is one brain: its ventricles and folds move, they do not fade. The reason is a matter of
# length. In many dimensions noise lies close to a sphere, and the network has only ever seen noise from there. The
# straight line between two noises cuts through the inside; the great circle does not:

# %%
pipe = run.pipeline()
shape = (1, len(pipe.config.latent_mean), *pipe.config.latent_size)
a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in (seed, seed + 1))
way = torch.linspace(0, 1, 9)
ways = {"on the sphere": on_the_sphere(a, b, way), "straight": straight(a, b, way)}
lengths = {name: x.flatten(1).norm(dim=1) / a.numel() ** 0.5 for name, x in ways.items()}
pandas.DataFrame(lengths, index=[f"{k}/8" for k in range(9)]).T.round(2)

# %% [markdown]
# Choose *latents, straight* under *between* and watch the middle again: there the ends are denoised and then mixed, and
# the two brains do shine through each other. *Noise, straight* gives brains, but tame ones: too little noise reads as
# too little variety.
#
# ## From noise to tissue
# **Predict:** in a way of 20 steps, at which will you first recognise a head? And with 4?
#
# Put *noise → tissue* to the left end and move it to the right. Early on the sampler settles what is large, the outline
# and the ventricles; the folds come last. With one step there is only the best guess from pure noise, an average.
#
# ## The switchboard of experts
# Each scan that exists is an expert with an opinion about the latent, a Gaussian; the opinions multiply, so that
# precisions add (paper, section 2.1). Below, a test person of the run. Tick the scans that exist.
#
# **Predict:** T1w, T2w or FLAIR: which one alone leaves the T2 map least certain? And which tick will narrow it most?

# %%
explorer.experts

# %%
explorer.experts.still()

# %% [markdown]
# The second row tells how sure the model is, *error* there tells how right it is (simulated people only, whose truth is
# known). They are not the same: where all scans are silent about a property, as about CSF's T2, a prior answers, and it
# answers without doubt. In numbers, for this person:

# %%
board, found = explorer.experts, {}
for names in (("T1w",), ("T2w",), ("FLAIR",), ("T1w", "T2w"), ("T1w", "T2w", "FLAIR")):
    for tick in board.ticks:
        tick.value = tick.description in names and not tick.disabled
    board.task.wait()
    found[" × ".join(names)] = board.summary().T.stack()
pandas.DataFrame(found).T.round(1)  # % of the median voxel

# %% [markdown]
# ## What we learned
# - Noise has a length, and the way from brain to brain goes along the sphere on which it lies.
# - What is large is decided early on the way from noise to tissue, what is small late.
# - Experts multiply: every scan narrows the posterior. It does not have to bring it nearer to the truth.
#
# ## Exercises
# 1. **Predict first:** draw A and B from *neighbouring* seeds. Are the brains on the way more alike than between far
#    seeds? Check with the correlation of the two noises.
# 2. By what factor should three equally sure experts shrink the SD of the latent against one? What do the maps do?
# 3. At height 0, is the brain of 4 steps the one of 50 steps, only softer? Compare them at the same seed.
#
# <details><summary>Solution 1</summary>
#
# ```python
# def noise_of(k):
#     return torch.randn(shape, generator=torch.Generator().manual_seed(k)).flatten()
#
# for other in (seed + 1, 10_000):
#     print(other, torch.nn.functional.cosine_similarity(noise_of(seed), noise_of(other), 0).item())
# ```
# Both are near 0, within about 1/√(numbers in a latent): neighbouring seeds start unrelated streams of random numbers.
# </details>
#
# <details><summary>Solution 2</summary>
#
# Precisions add, so the variance falls to a third and the SD to 1/√3 = 0.58 of one expert's.
#
# ```python
# from phyldm_core.inference import encode
#
# scans = run.scans("test")[:8]
# for shown in ([True, False, False], [True, True, True]):
#     posterior = encode(run.vae(), scans, run.common_scale, torch.tensor(shown).expand(len(scans), -1))
#     print(shown, (0.5 * posterior.log_variance).exp().median().item())
# ```
# Experts are not equally sure, and they are not independent either: they see the same anatomy, and all of them were
# trained together. The maps shrink less or more, depending on which scan knows the property.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# few, many = (pipe(1, seed=seed, num_inference_steps=n, height=0.0) for n in (4, 50))
# print(float(torch.corrcoef(torch.stack([few.t1.flatten(), many.t1.flatten()]))[0, 1]))
# panels = [figures.Panel(m.t1[0], "T1", title=f"{n} steps", inside=m.pd[0] > 0.05) for n, m in ((4, few), (50, many))]
# figures.map_grid([panels], voxel_mm=run.recipe.voxel_mm, width=3)
# ```
# The same brain in the large: the noise decides who it is, the steps how well it is drawn. Details that a long way
# would still have decided differ.
# </details>
#
# ## Limits
# A slice is not a head. The SD is that of the decoder over posterior samples: it knows nothing of an error that all
# samples share. Interpolation shows what the model takes for a way between brains; no development and no disease goes
# along it.
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532:
#   product of experts, latent diffusion.
# - G. E. Hinton, *Training products of experts by minimizing contrastive divergence*, Neural Computation 2002.
# - K. Shoemake, *Animating rotation with quaternion curves*, SIGGRAPH 1985: the way on the sphere.
# - J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, ICLR 2021: interpolation in noise.

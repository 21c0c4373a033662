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
# # 10 · Explore contrasts
#
# **Question.** What would this brain look like if TE were 200 ms, if TI were half, if the flip angle were five degrees?
#
# **You will** drag the settings of four sequences and watch image, curves, null points and contrast-to-noise move with
# them; read PD, T1 and T2 of any voxel; put two protocols side by side; and meet the one thing the paper's three
# sequences do not have, a flip angle. *CPU, 1 min.*
#
# [Contents](00_overview.ipynb) · before: [08 A real patient](08_real_patient.ipynb) · full page, for a projector:
# `phyldm explore`

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import numpy as np
import pandas

from phyldm_core import figures, tissue
from phyldm_core.explorers.console import PRESETS
from phyldm_core.explorers.contrasts import ContrastExplorer
from phyldm_core.explorers.people import find_subjects, weights_of
from phyldm_core.physics import Protocol, Sequence, ernst_angle, render, spoiled_gradient_echo

figures.use_house_style()

# %% [markdown]
# Whoever is there can be shown: a brain drawn by the model, a held-out person whose truth is known, or, where nothing
# has been trained yet, a person simulated on the spot. *Draw* makes a new brain from a seed. *Open* takes your own maps:
# a folder with `_PDmap`, `_T1map` and `_T2map`, such as `phyldm fit` writes from your scans (notebook
# [08](08_real_patient.ipynb)).
#
# **Predict** before you touch anything: in a T1w MPRAGE, which tissue vanishes if TI is shortened from 1 s to 0.6 s?

# %%
subjects = find_subjects(run_dir, seed=seed)
explorer = ContrastExplorer(subjects, weights_dir=weights_of(run_dir))
explorer

# %% [markdown]
# **How to use it.** Choose a preset or a sequence, then drag. The sliders stop where no scanner can follow (TE and TI
# must be shorter than TR), and the line on top says why. A click on the image reads the voxel there; dragging on it
# sets window (left and right) and level (up and down). By keyboard: Tab to a control, then the arrow keys; *row* and
# *column* move the cross. The curves show the three tissues' signal against one setting: solid is what the magnitude
# image shows, dashed is negative signal, the dotted line is the readout, ticks are null points.
#
# Without a running kernel the controls stay dark; this is what they show at first.

# %%
explorer.still()

# %% [markdown]
# The answer: white matter, whose null point lies near 0.57 s at this TR. The preset *MPRAGE, white matter nulled* sits
# on it.
#
# ## Two protocols side by side
# Tick *two protocols*. The controls then set A or B, whichever you chose last or touched; the table has a column for
# each.
#
# **Predict:** one brain as a T2w spin echo and as a T2-FLAIR. Which pair of tissues loses its contrast from one to the
# other, and which gains?

# %%
explorer.show(PRESETS["T2w spin echo"])
explorer.compare.value = True
explorer.show(PRESETS["T2-FLAIR"])
explorer.still()

# %% [markdown]
# Both weight T2; the inversion takes away what would outshine everything. CSF falls from brightest to black, which is
# why a lesion beside a ventricle is found on the FLAIR.
#
# ## The flip angle
# The paper's three sequences start every readout with a full quarter turn or its equivalent. A *spoiled gradient echo*
# turns the magnetisation by only α and comes back after milliseconds, so that T1 is weighted by α as much as by TR:
# $$S = \rho\,\sin\alpha\,\frac{1 - E_1}{1 - E_1\cos\alpha}\,e^{-TE/T_2}, \qquad E_1 = e^{-TR/T_1}$$
# Its echo is not refocused: a real one decays with T2*, and the maps hold no T2*, so **T2 stands for it here**. At TE 4
# ms that costs little; an image with a long TE should not be trusted near the sinuses.
#
# **Predict:** at TR 20 ms, which tissue is brightest at 3°, and which at 30°?

# %%
explorer.compare.value = False
explorer.show(PRESETS["T1w spoiled gradient echo"])
explorer.still()

# %%
te, tr, angles = 0.004, 0.02, (3, 6, 12, 30)
pd, t1, t2 = tissue.in_vivo_3t().median[:3].T  # WM, GM, CSF
signals = spoiled_gradient_echo(pd, t1, t2, te, tr, np.radians(angles)[:, None])
table = pandas.DataFrame(signals.T, index=tissue.BRAIN[:3], columns=angles)
best = [np.degrees(ernst_angle(t, tr)) for t in t1]
table.assign(**{"Ernst angle (°)": best}).round(3)

# %%
brain = explorer.maps
protocols = [Protocol(Sequence.GRADIENT_ECHO, te, tr, flip_angle_deg=angle) for angle in angles]
panels = [figures.Panel(render(brain, p), title=f"{p.flip_angle_deg:g}°") for p in protocols]
fig = figures.map_grid([panels], voxel_mm=explorer.person.voxel_mm[1:])
brightest = {angle: table[angle].idxmax() for angle in angles}
caption = f"""The flip angle, one brain (n = 1 slice), spoiled gradient echo, TE {1000 * te:g} ms, TR {1000 * tr:g} ms,
each in its own window. Brightest of three median tissues: {", ".join(f"{t} at {a}°" for a, t in brightest.items())}.
T2 stands for T2*."""
alt = "Four slices of one brain: at the smallest flip angle fluid is brightest, at the largest white matter."
figures.save_figure(fig, figures_dir, "fig60_flip_angle", caption=caption, alt=alt);

# %% [markdown]
# **Figure 60.** Far below the Ernst angle nothing saturates, and the image shows protons: CSF, which has most, is
# brightest. Far above it only what recovers fast comes back in time, and white matter wins. In between the borders
# fade. Each tissue is brightest at its own Ernst angle, $\cos\alpha = E_1$, but an image is judged by differences,
# which are largest elsewhere.
#
# ## What we learned
# - An explorer is only the equations of notebook [01](01_signal_physics.ipynb), evaluated in every voxel at each move.
# - Contrast belongs to a pair of tissues: the setting that makes one pair apart makes another alike.
# - A flip angle stands in for TR: in one sequence of equal times, fluid, grey and white matter are each brightest at
#   some angle (Figure 60 and its table).
#
# ## Exercises
# 1. **Predict first:** for an MPRAGE with TR 2.4 s, at which TI do grey matter and CSF have equal brightness, and why
#    does the CNR table show a small number there although both signals differ in sign?
# 2. Find the TE of a spin echo (TR 5 s) with the largest CNR between grey and white matter. Is it where clinics scan?
# 3. Which flip angle gives the largest CNR between white and grey matter at TR 20 ms? Compare with their Ernst angles.
#
# <details><summary>Solution 1</summary>
#
# Between their null points grey matter is positive and CSF still negative; the magnitude hides the sign, and where the
# two are equal in size, near 0.84 s, the border disappears. In the explorer, drag TI upwards from the null of grey matter and watch the
# column of CNR GM–CSF.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# te_s = np.linspace(0.005, 0.3, 200)
# curves = explorer.curves.signals(Protocol("spin echo", 0.1, 5.0), "te", te_s)
# te_s[np.abs(curves[:, 0] - curves[:, 1]).argmax()]
# ```
# The very shortest: at TR 5 s the difference of PD is the larger part, and T2 of grey and white matter hardly differ.
# Clinics scan at 80 to 100 ms for the contrast to CSF and to lesions.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# a = np.linspace(1, 90, 300)
# curves = explorer.curves.signals(protocols[0], "flip_angle_deg", a)
# a[(curves[:, 0] - curves[:, 1]).argmax()]
# ```
# About twice the Ernst angle of white matter: there the signal of both is falling, that of grey matter faster.
# </details>
#
# ## Limits
# One T1 and one T2 a voxel, no noise in the picture, no motion, T2 in place of T2*, and closed forms that leave out
# what refocusing pulses do besides (notebook [01](01_signal_physics.ipynb)). Maps drawn by a model carry its errors:
# the T2 of CSF above all.
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532: the
#   three sequences and the nine presets *Fig. 4*.
# - R. R. Ernst, W. A. Anderson, *Application of Fourier transform spectroscopy to magnetic resonance*, Rev Sci Instrum
#   1966;37:93: the steady state and its best angle.

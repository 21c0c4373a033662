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
# # 12 · Why the figures look as they do
#
# **Question.** One man in twelve sees colours differently, and much of what is printed is printed in grey. What of our
# figures is left for them?
#
# **You will** see maps and tissue colours through other eyes, find out why a relaxation time has a colour map and a
# curve of its own, measure how many edges every figure of the run loses, and find the one thing grey cannot show.
# *CPU, under a minute; takes the figures that the other notebooks made.*
#
# [Contents](00_overview.ipynb) · before: [11 Explore the latent](11_explore_latents.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
from IPython.display import Image as StillImage
from matplotlib.colors import to_rgb
from PIL import Image

from phyldm_core import figures, tissue
from phyldm_core.figures import colour_vision
from phyldm_core.figures.colour_vision import VISIONS, closest, edges_lost, lightness, seen, shrunk
from phyldm_core.figures.style import to_rgb as picture_of
from phyldm_core.figures.style import write_on
from phyldm_core.people import cohort
from phyldm_core.running.chapter import open_chapter
from phyldm_core.running.run import MissingResult

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe = run.recipe

# %% [markdown]
# ## One slice, five ways to see it
# T1 wears *lipari* and T2 *navia*, as the relaxometry community recommends (Fuderer et al. 2025), PD and weighted
# images are grey, a signed error diverges about white. Black is kept for "no value". Below each is its colour bar, from
# the least value to the greatest.
#
# **Predict:** which of the rows loses its meaning in the second column?

# %%
someone = cohort.simulate(cohort.CohortRecipe().subjects()[0], cohort.CohortRecipe())
pd, t1, t2 = someone.maps[len(someone.maps) // 2].unbind(0)
head = (pd > tissue.AIR_PD).numpy()
error = 30 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, t1.shape[1])) * np.ones_like(t1)  # −30 to 30 %, left to right
rows = {"T1": t1, "T2": t2, "error": error}
swatches = np.array([[to_rgb(colour) for colour in figures.TISSUE_COLOURS.values()]])

# %%
def bar_of(quantity):
    """A colour bar as a picture: from the window's low end to its high end."""
    shown = figures.QUANTITIES[quantity]
    values = np.linspace(shown.low, shown.high, 200)
    return shown.cmap(np.asarray(shown.norm()(values), float))[None, :, :3]


fig, axes = plt.subplots(7, 5, figsize=(7, 6.6), height_ratios=(6, 0.5) * 3 + (1,), layout="constrained")
for column, vision in zip(axes.T, VISIONS, strict=True):
    for k, (quantity, values) in enumerate(rows.items()):
        column[2 * k].imshow(seen(picture_of(values, quantity, inside=head) / 255, vision))
        column[2 * k + 1].imshow(seen(bar_of(quantity), vision), aspect="auto")
        for x, mark, ha in ((0.03, "R", "left"), (0.5, "A", "center"), (0.97, "L", "right")):
            write_on(column[2 * k], x, 0.985, mark, ha=ha, va="top")
    column[6].imshow(seen(swatches, vision), aspect="auto")
    column[6].set_xticks(range(3), list(figures.TISSUE_COLOURS), size=7)
    column[0].set_title(vision)

# %%
for ax in axes.flat:
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
for ax in axes[:6].flat:
    ax.set_xticks([])
for k, quantity in enumerate(rows):
    axes[2 * k, 0].set_ylabel(figures.QUANTITIES[quantity].label)
axes[6, 0].set_ylabel("tissue", rotation=0, ha="right", va="center")
caption = """The house colours as they are, in greyscale and under simulated deuter-, prot- and tritanomaly (full
severity): T1 (0 to 4 s), T2 (0 to 500 ms), a made-up error from −30 % (right) to 30 % (left), each with its colour bar,
and the tissue colours. One simulated person (n = 1, the middle slice); maps, so no protocol."""
alt = "Five columns of the same T1 map, T2 map, error and tissue colours; in grey both ends of the error are dark."
publish(fig, "fig45_colour_vision", caption, alt)

# %% [markdown]
# **Figure 45.** T1 and T2 keep their order in every column, because their maps rise in lightness from end to end. The
# error does not: in grey, too high and too low are both dark. No diverging map can do otherwise, and so a figure with a
# signed error says in its text where it is positive.
#
# ## The check
# Lightness must rise from the low end of a window to the high end, in grey and through other eyes; the colours of WM, GM
# and CSF, which run through all figures, must stay apart. A distance of about 1 is just noticeable side by side (CAM02-UCS);
# in greyscale all that is left is a step of lightness.
#
# **Predict:** which two tissues come closest, and for whom?

# %%
colours = {name: to_rgb(colour) for name, colour in figures.TISSUE_COLOURS.items()}
table = pandas.DataFrame(index=VISIONS)
table[["closest tissues are apart", "pair"]] = [closest(colours, vision) for vision in VISIONS]
for quantity in ("PD", "T1", "T2", "residual"):
    steps = [np.diff(lightness(seen(bar_of(quantity)[0], vision))) for vision in VISIONS]
    table[f"{quantity} rises"] = [bool((d > -1e-6).all() and d.sum() > 80) for d in steps]
grey = {name: lightness(c) for name, c in colours.items()}
assert grey["CSF"] < grey["GM"] < grey["WM"], "in grey, CSF, GM and WM must go from dark to light"
assert table.filter(like="rises").all(axis=None), "a map of lightness that falls shows an order that is not there"
assert table["closest tissues are apart"].min() > 7, "two tissues cannot be told apart: change TISSUE_COLOURS"
table.round(1)

# %% [markdown]
# ## A curve of its own
# T1 of white and of grey matter lie in the lowest third of a window that must also hold CSF. A linear scale gives them a
# third of the colours. The recommended curve is linear up to 1/e of the window and logarithmic above: half of the colours
# go where most of the brain is. In levels of 256 between the medians of WM and GM:

# %%
medians = {name: float(np.median(t1[someone.fractions[len(someone.maps) // 2, k] > 0.9]))
           for k, name in enumerate(("WM", "GM"))}  # fmt: skip
norm, linear = figures.relaxation_norm(0, 4), plt.Normalize(0, 4)
levels = {name: 256 * float(n(medians["GM"]) - n(medians["WM"])) for name, n in (("curve", norm), ("linear", linear))}
print("median T1", {name: f"{value:.2f} s" for name, value in medians.items()})
print("levels between them", {name: round(n) for name, n in levels.items()})

# %% [markdown]
# ## Every figure of this run
# An edge is two neighbouring pixels whose colours differ strongly (20 or more). It is lost if they differ by less than 5
# afterwards. **Predict:** which kind of figure loses most?

# %%
paths = sorted(Path(figures_dir).glob("fig[0-9][0-9]_*.png"))
if len(paths) < 2:
    raise MissingResult(f"{figures_dir} holds no figures of a run: run the other notebooks first (phyldm reproduce)")
pictures = {path.stem: Image.open(path).convert("RGB") for path in paths}
lost = {}
for name, picture in pictures.items():
    rgb = np.asarray(shrunk(picture, 300)) / 255
    lost[name] = {vision: 100 * edges_lost(rgb, vision) for vision in VISIONS[1:]}
lost = pandas.DataFrame(lost).T
worst = lost.drop("fig45_colour_vision", errors="ignore").max(axis=1)
print("more than a tenth of the edges are lost in:", ", ".join(worst[worst > 10].index) or "no figure")
lost.sort_values("greyscale", ascending=False).head(6).round(1)  # % of a figure's strong edges; the worst six

# %%
buffer = io.BytesIO()
colour_vision.contact_sheet(pictures, 150).save(buffer, format="jpeg", quality=65)
alt = "Every figure of the run, in a row of its own: as it is, grey, and for three kinds of colour vision."
StillImage(buffer.getvalue(), format="jpeg", alt=alt)

# %% [markdown]
# ## The house rules
# - One window a quantity through all figures: T1 0–4 s, T2 0–500 ms, PD 0–1.1 of water. Panels can be compared.
# - One colour a tissue: CSF blue, GM green, WM orange, from dark to light. Thin lines are the weak spot of that: in grey
#   a step of 8 in lightness is seen between areas, hardly between hairlines.
# - Black means no value; T1 and T2 of air do not exist.
# - Radiological view: the patient's right is on the left; R, A, L on every row; one bar of 50 mm; voxels are not smoothed.
# - Text is 8 pt at 7 in, two columns of a journal; PDFs keep it as text. The caption has n and protocol, and every
#   figure a sentence for those who cannot see it.
#
# ## What we learned
# - Maps whose lightness rises survive any printer and any eye; a signed error keeps its size in grey and loses its sign.
# - The tissue colours stay apart for everyone, closest where the table says.
# - The curve of relaxometry spends its colours where the brain is.
#
# ## Exercises
# 1. **Predict first:** would the rainbow (`jet`) pass the check on lightness? Where does it fall?
# 2. Replace green and orange by matplotlib's `tab:green` and `tab:red`. Who can no longer tell GM from WM?
#
# <details><summary>Solution 1</summary>
#
# ```python
# light = lightness(plt.colormaps["jet"](np.linspace(0, 1, 256))[:, :3])
# print("falls at", np.flatnonzero(np.diff(light) < 0)[[0, -1]] / 255, "of its length")
# ```
# It rises to yellow and falls to red: the highest values print darker than the middle, and a ring appears where the
# anatomy has none.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# other = {"CSF": to_rgb("tab:blue"), "GM": to_rgb("tab:green"), "WM": to_rgb("tab:red")}
# print({vision: closest(other, vision) for vision in VISIONS})
# ```
# For deuteranomaly and in grey the distance shrinks to a few units: red and green of one lightness differ for nobody who
# lacks the channel between them.
# </details>
#
# ## Limits
# A simulation shows which differences are lost, not what a person sees. Full severity is the worst case; most colour-blind
# readers keep a part. The count of edges looks at neighbours only: a legend whose colours are far apart on the page is
# judged by the distances above it.
#
# ## References
# - M. Fuderer et al., *Color-map recommendation for MR relaxometry maps*, Magn. Reson. Med. 2025, doi 10.1002/mrm.30290.
# - G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, *A physiologically-based model for simulation of color vision
#   deficiency*, IEEE TVCG 2009, doi 10.1109/TVCG.2009.113.
# - F. Crameri, G. E. Shephard, P. J. Heron, *The misuse of colour in science communication*, Nature Communications 2020.

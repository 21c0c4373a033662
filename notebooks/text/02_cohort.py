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
# # 02 · A cohort whose truth is known
#
# **Question.** Nobody has measured PD, T1 and T2 of the people in OASIS-3. How can a model that infers them be judged?
#
# **You will** turn real anatomy, measured tissue and the archive's own protocols into people whose truth is known, scan
# them with noise, shading and an arbitrary gain, and see who is held out. *Under a minute.*
#
# [Contents](00_overview.ipynb) · before: [01 From tissue to contrast](01_signal_physics.ipynb) · next:
# [03 Train the VAE](03_train_vae.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
anatomies = ""
seed = 7

# %%
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas
import torch

from phyldm_core import figures, tissue
from phyldm_core.people import anatomy, cohort
from phyldm_core.physics import effective_protocol
from phyldm_core.running.chapter import open_chapter, say
from phyldm_core.scans import oasis3
from phyldm_core.slices import MODALITIES, SPLITS, Truth

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)

# %% [markdown]
# ## Anatomy: one head becomes many people
# A head is a set of fractions: how much white matter, grey matter, CSF, thalamus and so on each voxel holds. The MNI152
# template needs no download. A folder of label maps of real people (`anatomies`) is better, because heads differ. A new
# person is a smooth deformation of a head: a small rotation, scaling and shift, then a random flow with details of 40
# mm (lobes) and 16 mm (gyri), then wider or narrower ventricles and a thicker or thinner cortex.
#
# **Predict:** average 24 such people. Where does the mean blur most, and where least?

# %%
recipe = run.recipe
names = anatomy.find_anatomies(recipe.anatomies)
look = {"slab_mm": recipe.slice_mm, "head": recipe.head, "blur_mm": 0.35 * recipe.voxel_mm}
heads = [anatomy.load_anatomy(name, recipe.anatomies, **look) for name in names[:6]]
points = cohort.slice_points(replace(recipe, n_slices=1))
still, generator = anatomy.Deformation(*[0.0] * 7), torch.Generator().manual_seed(seed)
drawn = [anatomy.deform(head, points, still, generator)[:, 0] for head in heads]
moves = [heads[i % len(heads)] for i in range(24)]
people = [anatomy.deform(head, points, recipe.deformation, generator)[:, 0] for head in moves]

# %%
shown = {f"head {i + 1}": fractions for i, fractions in enumerate(drawn)}
shown |= {f"person {i + 1}": fractions for i, fractions in enumerate(people[: 11 - len(drawn)])}
shown |= {f"mean of {len(people)}": torch.stack(people).mean(0)}
fig = figures.anatomies(shown, voxel_mm=recipe.voxel_mm)
caption = f"""Heads, and people made from them. One axial slice of {len(drawn)} head(s) and of n = {11 - len(drawn)}
people deformed from them, in colours that mix as tissues do. Last: the mean of n = {len(people)} people. Anatomy
alone, no protocol."""
alt = "Brains in tissue colours: ventricles and folds differ from person to person; their mean is blurred."
publish(fig, "fig10_heads", caption, alt)

# %%
pairs = [(a[:3].argmax(0) == 0) & (a[0] > 0.5) for a in people[:6]]
dice = [2 * float((a & b).sum() / (a.sum() + b.sum())) for k, a in enumerate(pairs) for b in pairs[:k]]
say(f"""**Figure 10.** In the mean the cortex blurs into one shade, while ventricles and deep nuclei can still be told
apart: they move little. White matter of two people overlaps with a Dice of {np.mean(dice):.2f}
({min(dice):.2f}–{max(dice):.2f}). People made from one head have the same folds, shifted and bent differently.""")

# %% [markdown]
# ## Tissue: what has been measured
# Values are drawn around the median of what was measured in living people at 3 T (water content: also by weighing). In
# brackets stands the number of studies; a star marks our own assumption, where no study is left.

# %%
table, cells = tissue.in_vivo_3t(), {}
for p, quantity in enumerate(("PD", "T1", "T2")):
    for name in tissue.BRAIN:
        value, n = table.median[table.tissues.index(name), p], len(tissue.usable(name, quantity))
        cells.setdefault(f"{quantity}{' (s)' * (quantity != 'PD')}", {})[name] = f"{value:.3f} ({n or '*'})"
pandas.DataFrame(cells)

# %% [markdown]
# People differ: the logarithm of each value varies between people with the SD below, and inside a tissue there is a
# smooth texture. A voxel that holds several tissues gets PD, T1 and T2 between theirs, and its signal is the sum of
# theirs, as in a scanner.

# %%
between = 100 * recipe.spread * pandas.Series(tissue.BETWEEN_SUBJECTS, name="between people")
inside = 100 * recipe.texture * pandas.Series({"PD": 0.5, "T1": 1.0, "T2": 1.0}, name="inside a tissue")
pandas.concat([between, inside], axis=1).rename_axis("SD of the logarithm (%)").round(1)

# %% [markdown]
# ## Protocols: how the archive was scanned
# Each person gets protocols as often as OASIS-3 used them, and lacks a contrast as often as sessions there do. Long T2w
# trains get their contrast-equivalent TE ([01](01_signal_physics.ipynb)).
#
# **Predict:** how many of 100 sessions hold all three of T1w, T2w and FLAIR?

# %%
def short(protocol):
    """TE ms / TR s / TI s."""
    times = [1000 * protocol.te, protocol.tr] + ([protocol.ti] if protocol.ti else [])
    return " / ".join(f"{t:.3g}" for t in times)


archive = {m: Counter() for m in MODALITIES}
for modality in MODALITIES:
    for row in oasis3.oasis3_protocols()[modality]:
        archive[modality][short(row.effective)] += row.count
archive["contrasts held"] = Counter({" + ".join(held): n for held, n in oasis3.SESSION_CONTRASTS.items()})

# %%
rng, counts = np.random.default_rng(seed), {name: Counter() for name in archive}
for _ in range(400):
    session = dict(zip(MODALITIES, replace(recipe, open_field=False).draw_session(rng, complete=False), strict=True))
    session = {name: protocol for name, protocol in session.items() if protocol}
    counts["contrasts held"][" + ".join(session)] += 1
    for name, protocol in session.items():
        counts[name][short(effective_protocol(protocol))] += 1
fig = figures.protocol_shares(archive, counts)
caption = """How often OASIS-3 used each protocol, and how often the cohort draws it. Effective TE (ms) / TR (s) / TI
(s), and contrasts held; bars: OASIS-3, dots: n = 400 drawn sessions, dark: where 95 % of such draws fall."""
alt = "Four bar charts; the dots of the cohort lie within the expected range of the bars of the archive."
publish(fig, "fig11_protocols", caption, alt)

# %%
complete = archive["contrasts held"][" + ".join(MODALITIES)] / archive["contrasts held"].total()
most = {name: archive[name].most_common(1)[0][1] / archive[name].total() for name in MODALITIES}
say(f"""**Figure 11.** {100 * complete:.0f} of 100 sessions hold all three. That is why random subsets of scans are
part of training. The archive used few protocols, each often: the most frequent one covers
{", ".join(f"{100 * share:.0f} % of {name}" for name, share in most.items())}. A network trained on these alone is
lost on other scanners, so the release is trained on an open field: times drawn from all of clinical practice.""")

# %% [markdown]
# ## Three people and their scans
# **Predict:** look at the T2w and FLAIR below. Which map do they resemble, and which of the two hides CSF?

# %%
subjects = [subject for subject in recipe.subjects() if subject.split == "val"]
made = [cohort.simulate(subject, replace(recipe, open_field=False)) for subject in subjects[:3]]
truths = [Truth(person.maps, person.fractions) for person in made]
z = recipe.n_slices // 2
rows = []
for k, (person, truth) in enumerate(zip(made, truths, strict=True)):
    pd, t1, t2 = person.maps[z]
    head, first = pd > tissue.AIR_PD, k == 0
    row = [figures.Panel(pd, "PD", title="PD" * first, side=f"person {k + 1}")]
    row += [figures.Panel(v, q, title=q * first, inside=head) for v, q in ((t1, "T1"), (t2, "T2"))]
    for image, name in zip(person.images[z], MODALITIES, strict=True):
        window = figures.percentile_window(image, truth.brain[z])
        row.append(figures.Panel(image if image.any() else None, title=name * first, window=window))
    rows.append(row)

# %%
fig = figures.map_grid(rows, groups=[("True tissue", 3), ("Scans", 3)], voxel_mm=recipe.voxel_mm)
caption = f"""True tissue and the scans made from it. n = {len(made)} people, the middle slice of each. Protocols as
drawn from OASIS-3; a scan that the session lacks is grey. Each scan in its own window, told inside the brain."""
alt = "Rows of PD, T1 and T2 maps with the T1w, T2w and FLAIR scans made from them; some scans are missing."
publish(fig, "fig12_people", caption, alt)

# %%
full = cohort.simulate(subjects[0], replace(recipe, complete=True, open_field=False))
truth, clean = Truth(full.maps, full.fractions), full.images / torch.from_numpy(full.gains).float()[:, None, None]
signal = {name: [float(clean[:, m][truth.tissue(name)].mean()) for m in range(3)] for name in ("WM", "GM", "CSF")}
brightness = pandas.DataFrame(signal, index=MODALITIES).T
brightness.rename_axis("mean signal, water = 1").round(3)

# %% [markdown]
# **Figure 12.** T2w follows T2 and PD together. FLAIR does, too, and hides CSF: the table has CSF as the brightest
# tissue of the T2w and as the darkest of the FLAIR. T2 of CSF lies beyond the window of its map.
#
# ## Does the truth agree with the literature?
# The maps were deformed, mixed and textured. What is left in voxels that hold at least 90 % of one tissue should still
# lie where studies lie.

# %%
share = {}
for name in ("WM", "GM", "CSF"):
    for p, quantity in enumerate(("PD", "T1", "T2")):
        values = torch.cat([t.maps[:, p][t.tissue(name)] for t in truths])
        low, high = tissue.OUTER_BAND[name, quantity]
        share.setdefault(quantity, {})[name] = 100 * float(((values >= low) & (values <= high)).float().mean())
inside = pandas.DataFrame(share).rename_axis("% inside the measured band").round(0)
inside

# %%
least = inside.stack().dropna()
say(f"""Most values lie inside the bands. The smallest share is {least.min():.0f} %, for {least.idxmin()[1]} of
{least.idxmin()[0]}. "Pure" still allows a tenth of another tissue, and a tenth of CSF changes T2 of grey matter, and
the other way round.""")

# %% [markdown]
# ## What the scanner adds
# A receive coil shades the image smoothly. Both channels of the receiver get Gaussian noise, so that the magnitude is
# Rician. At last the console multiplies by a number that nobody records, the gain.
#
# **Predict:** where the truth is 0, what does a noisy magnitude image show on average?

# %%
air = full.maps[:, 0] == 0
noise = 100 * clean[:, 0][air]
sd = float((noise**2).mean().sqrt() / 2**0.5)
print(f"air: mean {noise.mean():.2f} % of water, noise of one channel {sd:.2f} %; ratio {noise.mean() / sd:.2f}")
white = [float(p.images[z, 0][t.tissue("WM")[z]].mean()) for p, t in zip(made, truths, strict=True)]
people = [f"person {k + 1}" for k in range(len(made))]
pandas.Series(white, index=people, name="T1w of WM as scanned").round(2).to_frame()

# %% [markdown]
# It shows 1.25 times the noise of a channel and never 0. CSF in a FLAIR is as dark as that, so what a scan shows of it
# is partly noise. The gain makes the same white matter look different in every scan, as the table shows. On a common
# scale brightness has a meaning (PD times what relaxation leaves), and the paper assumes one (gain 1). As scanned only
# ratios inside one scan have a meaning. [Chapter 03](03_train_vae.ipynb) reports both.
#
# ## Who is held out
# Splits are by person and never by slice or session. With several heads the last ones belong to the test set alone.

# %%
rows = {split: [s.head for s in recipe.subjects() if s.split == split] for split in SPLITS}
listed = {split: {"people": len(of), "heads": len(set(of))} for split, of in rows.items()}
shared = set(rows["test"]) & set(rows["train"])
print("test and training people share a head" if shared else "no head of the test set is seen in training")
pandas.DataFrame(listed).T

# %% [markdown]
# Where they share a head, what is held out is a deformation, a draw of tissue, a protocol and the noise, and not an
# anatomy. Errors on a head that was never seen are larger; [09](09_how_right_is_it.ipynb) measures those.
#
# ## What we learned
# - People made from one head differ in shape and share its folds (Figure 10).
# - Protocols and missing contrasts are as frequent as in the archive (Figure 11).
# - T2w and FLAIR show nearly the same of white and grey matter, and differ in CSF (Figure 12).
# - A scan adds shading, Rician noise and a gain. Brightness cannot be compared between scans.
#
# ## Exercises
# 1. How different are two people of one head? Compare the Dice overlap of their white matter with that of two slices of
#    one person.
# 2. A voxel has no signal at all. How noisy must the scan be before the magnitude shows it at a tenth of white matter's
#    T1w?
# 3. Make a person without the fine part of the deformation. What is missing?
#
# <details><summary>Solution 1</summary>
#
# ```python
# wm = [t.fractions[:, 0] > 0.5 for t in truths]
# overlap = lambda a, b: float(2 * (a & b).sum() / (a.sum() + b.sum()))
# overlap(wm[0][z], wm[1][z]), overlap(wm[0][z], wm[0][z - 1])  # two people; neighbouring slices of one person
# ```
# Two people of one head overlap less than neighbouring slices of one person do. Much of that is rotation and shift.
# </details>
#
# <details><summary>Solution 2</summary>
#
# The mean of a Rayleigh distribution is $\sigma\sqrt{\pi/2}$:
#
# ```python
# 0.1 * brightness.loc["WM", "T1w"] / (np.pi / 2) ** 0.5  # SD per channel, of water
# ```
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# smooth = replace(recipe, deformation=replace(recipe.deformation, fine_mm=0.0), open_field=False)
# both = [cohort.simulate(subjects[0], r).maps[z, 1] for r in (replace(recipe, open_field=False), smooth)]
# figures.mosaic(both, "T1", columns=2)
# ```
# Lobes still shift, but each fold keeps its shape. All people then have the same folds, and a network can learn them by
# heart.
# </details>
#
# ## Limits
# No motion, no flow, no pathology unless `lesions` is set. Noise is white, and the field is the same for all scans of a
# person. The MNI152 template is an average: its cortex is thicker and smoother than a person's.
#
# ## References
# - P. J. LaMontagne et al., *OASIS-3*, 2019, medRxiv 2019.12.13.19014902: the archive whose protocols are used.
# - V. S. Fonov et al., *NeuroImage* 2011;54:313: the MNI152 template. B. Billot et al., *Med Image Anal*
#   2023;86:102789: SynthSeg's heads.
# - H. Gudbjartsson, S. Patz, *Magn Reson Med* 1995;34:910: the Rician distribution of noisy MR data.
# - V. Arsigny et al., *MICCAI* 2006: a log-Euclidean framework for diffeomorphisms.

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
# **You will** turn real anatomy, measured tissue and the archive's own protocols into people whose truth is known,
# scan them with noise, shading and an arbitrary gain, and write down who is in which split. *CPU: the `laptop` cohort
# takes about two minutes on two cores, once; the rest half a minute.*
#
# [Contents](00_overview.ipynb) · before: [01 From tissue to contrast](01_signal_physics.ipynb) · next:
# [03 Train the VAE](03_train_vae.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
import time
from collections import Counter
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch
from IPython.display import clear_output
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from scipy import stats
from tqdm import tqdm

from phyldm_core import figures, tissue
from phyldm_core.figures.style import write_on
from phyldm_core.people import anatomy, cohort
from phyldm_core.physics import Protocol
from phyldm_core.running.chapter import open_chapter
from phyldm_core.scans import oasis3
from phyldm_core.slices import MODALITIES, SPLITS

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe = run.recipe

# %% [markdown]
# A cohort is decided by its recipe, and by nothing else: the same recipe gives the same files, and changing one entry
# makes the cohort anew. This is the one of the profile.

# %%
entries = {name: value for name, value in asdict(recipe).items() if name not in ("deformation", "anatomies")}
pandas.Series({k: str(v) for k, v in entries.items()}, name=f"recipe of profile {profile!r}").to_frame()

# %% [markdown]
# ## Anatomy: one head becomes many
# A head here is a set of fractions: how much white matter, grey matter, CSF, thalamus, … each voxel holds. Fractions
# keep partial volume; hard labels would give every voxel one tissue, and no real voxel of cortex is like that.
# nilearn ships the MNI152 template, which needs no download. Any folder of FreeSurfer-style label maps (`anatomies`)
# does better, because its heads belong to real people.
#
# A new person is a smooth, invertible deformation of a head: a small rotation, scaling and shift, then the flow of a
# random velocity field with details of 40 mm (lobes) and 16 mm (gyri), wider or narrower ventricles, a thicker or
# thinner cortex.
#
# **Predict:** average many such people. Where does the average blur most, and where hardly at all?

# %%
heads = anatomy.find_anatomies(recipe.anatomies)
look = {"slab_mm": recipe.slice_mm, "head": recipe.head, "blur_mm": 0.35 * recipe.voxel_mm}
loaded = [anatomy.load_anatomy(name, recipe.anatomies, **look) for name in heads[:6]]
points = cohort.slice_points(replace(recipe, n_slices=1))
still = anatomy.Deformation(*[0.0] * 7)  # moves nothing
generator = torch.Generator().manual_seed(seed)
drawn = [anatomy.deform(head, points, still, generator)[:, 0] for head in loaded]
people = [anatomy.deform(loaded[i % len(loaded)], points, recipe.deformation, generator)[:, 0] for i in range(24)]
print(f"{len(heads)} head(s): {', '.join(heads[:4])}{', …' if len(heads) > 4 else ''}")

# %%
nuclei = ("thalamus", "caudate", "putamen", "pallidum", "hippocampus")
groups = {"WM": ("WM", "cerebellar WM", "brain stem"), "GM": ("GM", "cerebellar GM"), "CSF": ("CSF",)}
groups |= {"deep nuclei": nuclei} | ({"lesion": ("lesion",)} if recipe.anatomies else {})
groups |= {"outside the brain": tissue.HEAD} if recipe.head else {}
colours = figures.TISSUE_COLOURS | {"deep nuclei": "#6b2c91", "lesion": "#f0e442", "outside the brain": "#c4c4c4"}


def coloured(fractions):
    """Tissue fractions ``(k, y, x)`` as a picture, seen as a radiologist does: colours mix as tissues do."""
    parts = torch.stack([fractions[[tissue.TISSUES.index(t) for t in group]].sum(0) for group in groups.values()])
    rgb = torch.tensor([to_rgb(colours[name]) for name in groups])
    return torch.einsum("kyx,kc->yxc", parts, rgb).clamp(0, 1).flip(0, 1).numpy()


# %%
titles = [f"head {i + 1}" for i in range(len(drawn))] + [f"person {i + 1}" for i in range(11 - len(drawn))]
pictures = [coloured(f) for f in drawn + people[: 11 - len(drawn)] + [torch.stack(people).mean(0)]]
fig, axes = plt.subplots(2, 6, figsize=(7, 3.5), layout="constrained")
for i, (ax, picture) in enumerate(zip(axes.flat, pictures, strict=True)):
    ax.imshow(picture)
    ax.set(xticks=[], yticks=[], facecolor="black", title=[*titles, f"mean of {len(people)}"][i])
    ax.spines[:].set_visible(False)
for ax in axes[:, 0]:
    for x, mark, ha in ((0.03, "R", "left"), (0.5, "A", "center"), (0.97, "L", "right")):
        write_on(ax, x, 0.985, mark, ha=ha, va="top")
axes[0, 0].plot([2, 2 + 50 / recipe.voxel_mm], [recipe.shape[0] - 3] * 2, color="white", lw=1.5)
write_on(axes[0, 0], 0.03, 0.05, "50 mm", ha="left", va="bottom", size=6)
handles = [Patch(color=colours[name], label=name) for name in groups]
fig.legend(handles=handles, loc="outside lower center", ncols=len(groups))
caption = f"""One axial slice of {len(drawn)} head(s) and of n = {11 - len(drawn)} people deformed from them; colours
mix as tissues do. Last: the mean of n = {len(people)} people. Anatomy alone, no protocol."""
alt = "Brains in tissue colours: ventricles and folds differ from person to person; their mean is blurred."
publish(fig, "fig11_anatomies", caption, alt)

# %% [markdown]
# **Figure 11.** Nothing tears or folds over, because the flow of a smooth velocity never does. In the mean, cortex
# dissolves into one shade, while the ventricles and the nuclei beside them, moved mainly by shift and scale, can
# still be told apart. All people of one head share its gyri: which folds exist is the head's, where they lie is the
# person's. That matters below, when we say what is held out.
#
# ## Tissue: what has been measured
# Relaxation times are drawn around the median of what was measured in living people at 3 T (water content: also by
# weighing). Studies far from all others are set aside by a stated rule: a CSF T2 of half a second, for one, is
# partial volume. In brackets the number of studies behind a median; a star marks our own assumption, where no study
# is left.

# %%
table = tissue.in_vivo_3t()
cells = {}
for name in tissue.BRAIN:
    for p, quantity in enumerate(("PD", "T1", "T2")):
        n = len(tissue.usable(name, quantity))
        value = table.median[table.tissues.index(name), p]
        cells.setdefault(f"{quantity}{' (s)' * (quantity != 'PD')}", {})[name] = f"{value:.3f} ({n or '*'})"
pandas.DataFrame(cells)

# %% [markdown]
# People differ. From one person to the next, the logarithm of each value varies with the SD below, half of its
# variance shared by all tissues of that person; inside a tissue there is a smooth texture besides. A voxel that holds
# several tissues gets the sum of their water as PD, and the geometric mean of their times, weighted by water, as T1
# and T2.

# %%
spread = pandas.Series(tissue.BETWEEN_SUBJECTS, name="between people") * 100
inside = pandas.Series({"PD": 0.5, "T1": 1.0, "T2": 1.0}, name="inside a tissue") * 100 * recipe.texture
pandas.concat([spread, inside], axis=1).rename_axis("SD of the logarithm (%)").round(1)

# %% [markdown]
# ## Protocols: what the archive was scanned with
# OASIS-3 lists echo, repetition and inversion time of every scan. A person of the cohort gets each contrast's
# protocol with the frequency it has there, and lacks a contrast as often as sessions there do. A few rows cannot be
# what they say:

# %%
pandas.DataFrame(oasis3.oasis3_excluded()).rename(columns={"te": "TE (s)", "tr": "TR (s)", "ti": "TI (s)"})

# %% [markdown]
# One more correction. Most T2w scans there are long trains of weak refocusing pulses; [notebook
# 01](01_signal_physics.ipynb) shows that their contrast is that of a much shorter echo time. The sidecars of the
# cohort keep the nominal TE, as a scanner would write it, and whoever reads them applies the same rule as for real
# data:

# %%
nominal = {str(row.nominal): row for rows in oasis3.oasis3_protocols().values() for row in rows}
corrected = [row for row in nominal.values() if row.nominal != row.effective]
te = {"nominal TE (s)": [r.nominal.te for r in corrected], "effective TE (s)": [r.effective.te for r in corrected]}
names = {"sequence": [r.nominal.sequence.value for r in corrected]}
pandas.DataFrame(names | te | {"scans in OASIS-3": [r.count for r in corrected]})

# %% [markdown]
# ## Make it
# Scans go to a small BIDS dataset, the maps they were made from to its `derivatives/truth`. A killed run goes on with
# the next person; a cohort that exists is left alone.

# %%
start, n_people = time.perf_counter(), len(recipe.subjects())
progress = tqdm(total=n_people, desc="people", leave=False, mininterval=2)
for done in run.make_cohort():
    progress.update(done - progress.n)
progress.close()
clear_output()
made = time.perf_counter() - start
print(f"{n_people} people " + (f"in {made:.0f} s" if made > 1 else "were there already"))

# %% [markdown]
# **Predict:** did the draw reproduce the archive? A protocol that 3 in 1000 scans used may be missing altogether.

# %%
train = run.scans("train")
per_person = train[train.position == train.position.min()]  # settings are the same for all slices of a person


def shares(counts):
    """Share of each of the five most frequent entries, and of the rest."""
    total, top = sum(counts.values()), counts.most_common(5)
    rest = total - sum(n for _, n in top)
    return {k: n / total for k, n in top} | ({"others": rest / total} if rest else {})


def short(protocol):
    times = [1000 * protocol.te, protocol.tr] + ([protocol.ti] if protocol.ti else [])
    return " / ".join(f"{t:.3g}" for t in times)


archive, drawn_counts = {}, {}
for m, modality in enumerate(MODALITIES):
    archive[modality] = Counter()
    for row in oasis3.oasis3_protocols()[modality]:
        archive[modality][short(row.effective)] += row.count
    rows = per_person.settings[per_person.observed[:, m], m]
    drawn_counts[modality] = Counter(short(Protocol.from_settings(s)) for s in rows)
archive["contrasts held"] = Counter({" + ".join(k): n for k, n in oasis3.SESSION_CONTRASTS.items()})
held = [" + ".join(m for m, o in zip(MODALITIES, row, strict=True) if o) for row in per_person.observed]
drawn_counts["contrasts held"] = Counter(held)

# %%
fig, axes = plt.subplots(2, 2, figsize=(7, 3.6), layout="constrained")
for ax, (name, counts) in zip(axes.flat, archive.items(), strict=True):
    expected, n = shares(counts), drawn_counts[name].total()
    found = [drawn_counts[name][k] / n for k in expected if k != "others"]
    found += [1 - sum(found)] * ("others" in expected)
    low, high = (stats.binom.ppf(q, n, list(expected.values())) / n for q in (0.025, 0.975))
    y = np.arange(len(expected))[::-1]
    ax.barh(y, expected.values(), color="0.82", label="OASIS-3")
    ax.hlines(y, low, high, color="0.45", lw=3, label="where 95 % of draws fall")
    ax.plot(found, y, "o", color="#d55e00", label="this cohort, training")
    unit = " (TE ms / TR s / TI s)" if name == "T1w" else ""
    ax.set(yticks=y, yticklabels=expected, xlim=(0, 1), xlabel="share", title=f"{name}{unit}, n = {n}")
handles, labels = axes[0, 0].get_legend_handles_labels()
fig.legend(handles, labels, loc="outside lower center", ncols=3)
caption = f"""Protocols (effective TE) and contrasts held in OASIS-3 (bars) and in the training people of this cohort
(dots, n = {len(per_person)}). Dark: where 95 % of such draws fall. Test people hold all three contrasts."""
alt = "Four bar charts; the dots of the cohort lie within the expected range of the bars of the archive."
publish(fig, "fig12_protocols", caption, alt)

# %% [markdown]
# **Figure 12.** The model will be trained on few protocols, each seen often, and on sessions that are mostly
# incomplete: three contrasts at once are the exception. That is why random subsets of scans are part of training.
#
# ## Three people
# **Predict:** look at the T2w and FLAIR below. Which map do they resemble, and which of the two hides CSF?

# %%
val, val_truth = run.scans("val"), run.truth("val")
middle = [torch.where(val.subject == s)[0][recipe.n_slices // 2] for s in val.subject.unique()]
chosen = sorted({tuple(val.observed[i].tolist()): i for i in middle}.values())[:3]
chosen += [i for i in middle if i not in chosen][: 3 - len(chosen)]
rows = []
for k, i in enumerate(chosen):
    maps, head = val_truth.maps[i], val_truth.maps[i, 0] > tissue.AIR_PD
    row = [
        figures.Panel(values, q, title=q if k == 0 else "", inside=None if q == "PD" else head)
        for values, q in zip(maps, figures.MAPS, strict=True)
    ]
    row[0] = replace(row[0], side=f"person {k + 1}")
    for m, modality in enumerate(MODALITIES):
        image = val.images[i, m] if val.observed[i, m] else None
        row.append(figures.Panel(image, title=modality if k == 0 else ""))
    rows.append(row)
fig = figures.map_grid(rows, groups=[("True tissue", 3), ("Scans", 3)], voxel_mm=recipe.voxel_mm)
caption = f"""Truth and scans of n = {len(chosen)} people of the validation set, the middle slice of each. Protocols
as drawn from OASIS-3; a scan that the session lacks is grey."""
alt = "Rows of PD, T1 and T2 maps with the T1w, T2w and FLAIR scans made from them; some scans are missing."
publish(fig, "fig13_people", caption, alt)

# %% [markdown]
# **Figure 13.** T2w follows T2 and PD at once, and FLAIR does so without CSF. CSF's T2 lies far beyond the window: its
# map saturates, as it does for every scan with echo times that a clinic uses.
#
# ## Does the truth agree with the literature?
# The maps have been deformed, mixed, textured and drawn anew for every person. What is left in voxels of one tissue
# must still lie where studies lie.

# %%
test, test_truth = run.scans("test"), run.truth("test")
pure = {
    (name, quantity): test_truth.maps[:, p][test_truth.tissue(name)]
    for name in ("WM", "GM", "CSF")
    for p, quantity in enumerate(figures.MAPS)
}
fig = figures.tissue_histograms({"cohort, pure voxels": pure})
n_test = len(test.subject.unique())
caption = f"""Truth of the cohort in voxels that hold at least 90 % of one tissue (test set, n = {n_test} people), over
the values measured in vivo at 3 T. Grey matter pools cortex, cerebellum, hippocampus, caudate, putamen and thalamus."""
alt = "Nine histograms of PD, T1 and T2 in white matter, grey matter and CSF, over bands where published studies lie."
publish(fig, "fig14_cohort_tissue", caption, alt)

# %% [markdown]
# **Figure 14.** Most of the cohort lies inside the wider bands; the table counts. Grey matter has shoulders, because
# deep nuclei and cortex differ. CSF leaves its narrow bands most: "pure" still allows a tenth of another tissue, and
# because T2 of CSF is so much longer than all others, a tenth of grey matter lowers it by a quarter, as a little CSF
# lengthens that of cortex.

# %%
share = {}
for (name, quantity), values in pure.items():
    low, high = tissue.OUTER_BAND[name, quantity]
    share.setdefault(quantity, {})[name] = 100 * float(((values >= low) & (values <= high)).float().mean())
table = pandas.DataFrame(share).rename_axis("% inside the wider band")
table.round(0).astype("Int64")  # <NA> where a small cohort has no pure voxel

# %% [markdown]
# ## What the scanner adds
# A clean image first. Then the receive coil shades it, smoothly over 60 mm. Then both channels of the receiver get
# Gaussian noise, and the magnitude makes it Rician. At last the console multiplies by a number nobody records.

# %%
someone = next(p for p in recipe.subjects() if p.split == "val")
stages = {
    "clean": cohort.simulate(someone, replace(recipe, noise=(0.0, 0.0), bias=0.0)),
    "and shaded": cohort.simulate(someone, replace(recipe, noise=(0.0, 0.0))),
    "and noisy": cohort.simulate(someone, recipe),
}
gains = stages["clean"].gains
z = recipe.n_slices // 2
t1w = {name: person.images[z, 0] / gains[0] for name, person in stages.items()}
air = stages["clean"].maps[:, 0] == 0
noise = 100 * stages["and noisy"].images[:, 0][air] / gains[0]  # % of water
sd = (noise**2).mean().sqrt() / 2**0.5  # of a Rayleigh distribution

# %%
fig, axes = plt.subplots(1, 4, figsize=(7, 2.2), width_ratios=(1, 1, 1, 1.6), layout="constrained")
window = figures.percentile_window(t1w["clean"])
figures.show_image(axes[0], t1w["clean"], window, voxel_mm=recipe.voxel_mm, scale_bar_mm=50)
shading = 100 * (t1w["and shaded"] / t1w["clean"] - 1)
head = stages["clean"].maps[z, 0] > tissue.AIR_PD
figures.show_map(axes[1], shading, "error", inside=head, voxel_mm=recipe.voxel_mm, marks="")
figures.show_image(axes[2], t1w["and noisy"], window, voxel_mm=recipe.voxel_mm, marks="")
for ax, letter, label in zip(axes, "abc", ("clean T1w", "shading, ±30 %", "as scanned"), strict=False):
    ax.set_title(letter, loc="left", weight="bold")
    ax.set_xlabel(label)
values = np.linspace(0, float(noise.max()), 200)
axes[3].hist(noise, 60, density=True, color="0.8", label="air, as scanned")
axes[3].plot(values, stats.rayleigh.pdf(values, scale=sd), color="#d55e00", label="Rayleigh")
axes[3].plot(values, 2 * stats.norm.pdf(values, scale=sd), color="0.3", ls=":", label="Gaussian, folded")
axes[3].set(xlabel="signal of air (% of water)", ylabel="density")
axes[3].set_title("d", loc="left", weight="bold")
axes[3].legend()
caption = f"""What the scanner adds to one T1w (n = 1 person, protocol as drawn for it). (a) Clean. (b) Receive
field. (c) With field and Rician noise. (d) Signal where there is nothing: Rayleigh, SD per channel {sd:.2f} % of
water."""
alt = "A clean slice, a smooth shading of a few per cent, the noisy slice, and a histogram of noise in air."
publish(fig, "fig15_scanner", caption, alt)
print(f"air is never dark: mean {noise.mean():.2f} % of water, where the truth is 0")

# %% [markdown]
# **Figure 15.** Where there is no signal the magnitude is biased upwards, by 1.25 times the noise of a channel. CSF
# in FLAIR lives there: what a scan shows of it is partly noise.
#
# The gain is the cruellest addition. The table gives white matter's mean in the T1w and T2w of a few people, first as
# scanned, then divided by the gain the scan was simulated with, which only a simulation knows.

# %%
ours, raw = val_truth.tissue("WM"), run.scans("val", common_scale=False)
rows = {}
for person in val.subject.unique().tolist()[:6]:
    where = val.subject == person
    for kind, slices in (("as scanned", raw), ("common scale", val)):
        means = [float(slices.images[where, m][ours[where]].mean()) for m in (0, 1)]
        seen = slices.observed[where][0, 1]
        rows.setdefault(f"person {person + 1}", {}).update(
            {(kind, "T1w"): means[0], (kind, "T2w"): means[1] if seen else np.nan}
        )
pandas.DataFrame(rows).T.round(3).astype(object).where(lambda t: t.notna(), "no scan")

# %% [markdown]
# On a common scale brightness means something: it is PD times what relaxation left. As scanned it means nothing at
# all, and only ratios inside one scan are left. The paper assumes the first (gain 1); no archive grants it. [Notebook
# 03](03_train_vae.ipynb) reports both.
#
# ## Who is held out
# Splits are by person, written to `participants.tsv`, never by slice or session. With several heads the last ones
# belong to the test set alone.

# %%
listed = cohort.participants(run.cohort_folder)
in_split = listed.groupby("split", sort=False).anatomy
print(pandas.DataFrame({"people": in_split.size(), "heads": in_split.nunique()}).to_string(), end="\n\n")
for split in SPLITS:
    names = sorted(set(listed.anatomy[listed.split == split]))
    print(f"{split:5}", ", ".join(n.removesuffix(".gz").removesuffix(".nii") for n in names))
shared = set(listed.anatomy[listed.split == "test"]) & set(listed.anatomy[listed.split == "train"])
if shared:
    print("\nTest and training people share a head: what is held out is a deformation, a draw of tissue, a protocol")
    print("and the noise, not an anatomy. Errors on a head never seen will be larger.")
else:
    print("\nNo head of the test set is seen in training or validation.")
assert not listed.participant_id.duplicated().any()

# %% [markdown]
# And this is what one person looks like on disk: a dataset that any BIDS tool can read.

# %%
folder, name = run.cohort_folder, listed.participant_id[listed.split == "test"].iloc[0]
for path in sorted(p for p in folder.rglob(f"{name}_*") if p.suffix == ".gz"):
    print(f"{path.relative_to(folder).as_posix():62} {path.stat().st_size / 1024:6.0f} kB")
sessions = {"OASIS-3 sessions": archive["contrasts held"], "training people": drawn_counts["contrasts held"]}
sessions = pandas.DataFrame(sessions).fillna(0).astype(int)
run.write_metrics("cohort_sessions", sessions.rename_axis("contrasts held").reset_index());

# %% [markdown]
# ## What we learned
# - People made from one head differ in shape but share its gyri (Figure 11); held out is then a deformation, and the
#   cell above says so.
# - Their tissue lies where studies lie (Figure 14), their protocols are as frequent as in the archive (Figure 12).
# - Scans carry shading, Rician noise and a gain that makes brightness meaningless between scans (Figure 15 and the
#   table below it).
#
# ## Exercises
# 1. How different are two people of one head? Measure it as the Dice overlap of their white matter, and compare with
#    two slices of one person.
# 2. A voxel has no signal at all. How noisy must the scan be before the magnitude shows it at a tenth of white
#    matter's T1w?
# 3. Make a cohort of one person without the fine part of the deformation. What do you miss?
#
# <details><summary>Solution 1</summary>
#
# ```python
# wm = test_truth.fractions[:, 0] > 0.5
# dice = lambda a, b: float(2 * (a & b).sum() / (a.sum() + b.sum()))
# n = recipe.n_slices
# dice(wm[n // 2], wm[n // 2 + n]), dice(wm[n // 2], wm[n // 2 - 1])  # two people; neighbours in one person
# ```
# Two people of one head overlap less than neighbouring slices of one person do: much of that is rotation and shift.
# Two real heads, brought into the same axes, overlap less still.
# </details>
#
# <details><summary>Solution 2</summary>
#
# The mean of a Rayleigh distribution is $\sigma\sqrt{\pi/2}$:
#
# ```python
# wm = float(t1w["clean"][val_truth.tissue("WM")[z]].mean())
# 0.1 * wm / (np.pi / 2) ** 0.5  # SD per channel, of water
# ```
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# smooth = replace(recipe, deformation=replace(recipe.deformation, fine_mm=0.0))
# figures.mosaic([cohort.simulate(someone, r).maps[z, 1] for r in (recipe, smooth)], "T1", columns=2)
# ```
# Lobes still shift, but every gyrus keeps its shape: all people have the same folds, and a network can learn them by
# heart.
# </details>
#
# ## Limits
# One compartment a voxel; no motion, no flow, no pathology unless `lesions` is set. Noise is white and the field is
# the same for all scans of a person. The MNI152 template is itself an average: its cortex is thicker and smoother
# than anyone's. Deep nuclei of the template are ellipsoids at their usual place.
#
# ## References
# - P. J. LaMontagne et al., *OASIS-3*, 2019, medRxiv 2019.12.13.19014902: the archive whose protocols are used.
# - V. S. Fonov et al., *NeuroImage* 2011;54:313: the MNI152 template. B. Billot et al., *Med Image Anal*
#   2023;86:102789: SynthSeg's heads.
# - H. Gudbjartsson, S. Patz, *Magn Reson Med* 1995;34:910: the Rician distribution of noisy MR data.
# - V. Arsigny et al., *MICCAI* 2006: a log-Euclidean framework for diffeomorphisms, whose exponential is used here.

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
# # 08 · Real scans
#
# **Question.** Everything so far was simulated. How does a folder of real scans become tissue maps, and what are the
# maps worth?
#
# **You will** read a session, align its scans, infer PD, T1 and T2, look at lesions, and predict each scan from the
# others. Failures are shown, too. *Under a minute. It uses the networks of
# the release, or of a run on real scans.*
#
# [Contents](00_overview.ipynb) · before: [07 Tissue histograms](07_tissue_histograms.ipynb) · next:
# [09 How right is it, and why?](09_how_right_is_it.ipynb)
#
# The patient is from the open data of Lesjak et al. (2018): multiple sclerosis, 3 T, brain extracted, lesions outlined
# by experts. `phyldm fetch open-ms` brings the scans. `scans_dir` below can be any folder with scans and their BIDS
# sidecars. Where there are none, a simulated person stands in.

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
anatomies = ""
seed = 7
scans_dir = ""

# %%
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import torch

from phyldm_core import figures, inference, tissue
from phyldm_core.evaluation import leave_one_out, metrics, tables
from phyldm_core.machine.carried import carried
from phyldm_core.people import segmentation, stand_in
from phyldm_core.running.chapter import open_chapter, open_model, say
from phyldm_core.scans import fit, grids, nifti, prepare, sessions
from phyldm_core.weights import load_weights

# %% [markdown]
# ## What is in the folder
# A scan needs three things: voxel values, voxel positions, and its protocol (TE, TR, TI and, for a gradient echo, the
# flip angle). The protocol comes from the sidecar (`…_T1w.json` beside `…_T1w.nii.gz`, in seconds), or by hand: `phyldm
# fit a.nii.gz --protocol "a.nii.gz: spin echo, te 0.1, tr 3.2"`. A session may hold several scans of one contrast; the
# second is then called "T1w 2". `phyldm check FOLDER` prints this table, and what is doubtful.

# %%
run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
model = open_model(run)
weights = model.weights or load_weights(run.folder)
places = [Path(scans_dir)] if scans_dir else [carried("data/open_ms"), Path("../../shared/data/open_ms")]
places += [Path(os.environ["PHYLDM_SHARED_DATA"], "open_ms")] if "PHYLDM_SHARED_DATA" in os.environ else []
folder = next((place for place in places if place.is_dir()), None)
who = "the patient" if folder else "a simulated person"
folder = folder or stand_in.write_stand_in(run.folder / "own_scans" / "simulated", model.recipe, seed)
raw = prepare.named(sessions.read_session(folder))

# %%
rows = {}
for name, scan in raw.items():
    mm = " × ".join(f"{size:.3g}" for size in np.linalg.norm(scan.affine[:3, :3], axis=0))
    rows[name] = {"protocol": str(scan.protocol), "voxels (mm)": mm, "read as": "; ".join(scan.notes)}
print(who)
pandas.DataFrame(rows).T

# %% [markdown]
# ## Prepare
# One rigid movement aligns each scan with the first one (Mattes mutual information). The brain comes from a mask, from
# a scan without skull, or from a template. On the command line: `phyldm prepare FOLDER --out PREPARED`. The paper used
# UniRes (Brudfors et al. 2019), which also sharpens thick slices and removes noise. This step does neither: thick
# slices stay blurred, and noise stays. It takes seconds.
#
# **Predict:** scans of one session were taken minutes apart. By how many millimetres did the head move?

# %%
prepared = fit.prepare(list(raw.values()), weights)
moved = {name: float(np.linalg.norm(matrix[:3, 3])) for name, matrix in prepared.transforms.items()}
litres = prepared.brain.sum() * weights.voxel_mm**3 / 1e6
say(f"""Moved by {", ".join(f"{mm:.1f} mm ({name})" for name, mm in moved.items())}; the first scan is the reference.
The scans of the open data were aligned by their publishers. Brain: {litres:.2f} l, from: {prepared.mask_from}.""")

# %%
lesions = np.zeros_like(prepared.brain)
for file in folder.rglob("*lesion*mask.nii*"):
    image, affine = nifti.read_volume(file)
    drawn = replace(next(iter(raw.values())), image=image, affine=affine)
    lesions |= grids.resample(drawn, grids.Grid(lesions.shape, prepared.affine)) > 0.5
held = np.flatnonzero(prepared.brain.any((0, 1)))
at = int(lesions.sum((0, 1)).argmax()) if lesions.any() else int(np.median(held))
k = [z for z in range(at - 4, at + 4) if z in held]
slices, window = fit.session_slices(prepared, weights, model.vae.downsampling, k)
brain, lesion = (torch.from_numpy(window.of_volume(volume)) for volume in (prepared.brain, lesions))

# %% [markdown]
# ## PD, T1 and T2
# `phyldm fit FOLDER --out MAPS` infers whole volumes and writes them as BIDS quantitative maps with their SD. The
# encoder gives the first values. The gain of each scan is then fitted in white matter, grey matter and CSF. Last, PD,
# T1 and T2 of each pixel are changed until the signal equations fit the scans (`inference.explain`). So any sequence
# with a signal equation can be used, even if no training scan had it. Eight slices are fitted below.
#
# **Predict:** lesions have lost myelin and hold more water. Which maps should show them, and how?

# %%
scale, names = fit.volume_brightness(slices), list(prepared.scales)
explained = inference.explain(model.vae, slices, scale=scale)
maps = explained.maps
tissues = pandas.DataFrame(explained.tissues, index=["WM", "GM", "CSF"], columns=["PD", "T1 (s)", "T2 (s)"])
tissues.round(3)  # what three tissues of this person tell

# %%
i = window.k.index(at)
view = figures.percentile_window(slices.images[i, 0], brain[i])
panels = [figures.Panel(slices.images[i, 0], title=f"{names[0]}, lesions", window=view)]
panels += [figures.Panel(m[i], q, title=q, inside=brain[i]) for m, q in zip(maps, figures.MAPS, strict=True)]
fig = figures.map_grid([panels], voxel_mm=weights.voxel_mm)
if lesion[i].any():
    fig.axes[0].contour(lesion[i], [0.5], colors="#00e5ff", linewidths=0.6)
caption = f"""PD, T1 and T2 of real scans. {who.capitalize()} (n = 1 slice), by {model.name}; lesions are outlined by
experts on the {names[0]} alone. Protocols: {"; ".join(f"{n} {s.protocol}" for n, s in raw.items())}."""
publish(fig, "fig23_own_maps", caption, "A scan with lesions outlined, and the PD, T1 and T2 maps of the same slice.")

# %%
classes = torch.from_numpy(segmentation.segment_tissue(slices.images[:, 0], brain)) * ~lesion
masks = {name: classes == c for c, name in enumerate(tissue.CLASSES, 1)} | {"lesion": lesion & brain}
rows = {}
for name, where in masks.items():
    for q, values in zip(figures.MAPS, maps, strict=True):
        band = tissue.OUTER_BAND.get((name, q))
        middle = float(values[where].nanmedian()) if where.any() else np.nan
        rows[name, q] = {"voxels": int(where.sum()), "median": middle}
        rows[name, q]["measured in healthy tissue"] = "{:g} to {:g}".format(*band) if band else ""
found = pandas.DataFrame(rows).T.rename_axis(["tissue", "map"])
found

# %%
inside = {key: tissue.OUTER_BAND[key][0] <= found["median"][key] <= tissue.OUTER_BAND[key][1]
          for key in ((t, q) for t in ("WM", "GM") for q in ("T1", "T2"))}  # fmt: skip
told = ", ".join(f"{q} of {t} {'inside' if yes else 'outside'}" for (t, q), yes in inside.items())
ratio = {q: found["median"]["lesion", q] / found["median"]["WM", q] for q in figures.MAPS}
seen = "".join(f" {q} × {r:.2f}" for q, r in ratio.items()) if lesion.any() else " no lesion is outlined here"
say(f"""**Figure 23.** Medians against the ranges measured in healthy tissue: {told}. Lesion divided by white
matter:{seen}. Lesions should have a longer T1 and T2 and a higher PD. Thresholds on the {names[0]} define the tissue
classes. A median outside its range is suspect, and a median inside it may still be wrong.""")

# %% [markdown]
# ## The physics against the encoder alone
# The encoder answers from what it has seen in training.
#
# **Predict:** on protocols that training has seen, will the fit of the signal equations change the medians by more than
# a few per cent?

# %%
alone = inference.infer(model.vae, slices, False, scale=scale)[1]
both = {"encoder alone": alone, "through the physics": maps}
rows = {f"{q} of {t} (s)": {n: float(getattr(m, q.lower())[masks[t]].nanmedian()) for n, m in both.items()}
        for t in ("WM", "GM") for q in ("T1", "T2")}  # fmt: skip
table = pandas.DataFrame(rows).T
change = (table["through the physics"] / table["encoder alone"] - 1) * 100
say(
    f"""The medians change by {change.min():.0f} to {change.max():.0f} %. The mean misfit of the fitted slices is
{float(explained.misfit.mean()):.2f} in units of the noise's variance. If it is far above 1, the equations do not hold
for these scans.""".replace("-", "−")
)
table.round(3)

# %% [markdown]
# ## Predict each scan from the others
# In this test the right answer is known: it is a scan. Hide one scan, infer the tissue from the others, render the
# hidden protocol, and compare inside the brain. Only the gain is fitted to the hidden scan. The other method uses no
# physics: it is the best weighted sum of the other scans plus a constant. All its weights are fitted to the hidden scan
# itself.
#
# **Predict:** which scan will be predicted worst, and which of the two methods has the higher PSNR?

# %%
whole = slices.observed.all(1)
some, where = slices[whole], brain[whole]
some = replace(some, images=some.images * where[:, None])
judged, predicted = leave_one_out.judge_scans(model.vae, some, where, names, scale=scale[whole])
summary = metrics.long_form(judged)
run.write_metrics("own_scans", summary)
wide = summary.pivot(index="quantity", columns=["metric", "inputs"], values="value").reindex(names).round(2)
wide

# %%
rows, j = [], int(where.sum((1, 2)).argmax())
for m, both in predicted.items():
    target, first = some.images[j, m], not rows
    view = figures.percentile_window(target, where[j])
    row = [figures.Panel(target, title="acquired" * first, side=names[m], window=view)]
    for kind, title in (("model", "through tissue"), ("rival", "weighted sum")):
        off = 100 * (both[kind][j] - target).abs() / view[1]
        note = f"{wide.loc[names[m], ('psnr', kind)]:.1f} dB"
        row += [figures.Panel(both[kind][j], title=title * first, window=view, note=note)]
        row += [figures.Panel(off, "residual", title="residual" * first, inside=where[j])]
    rows.append(row)

# %%
if rows:
    fig = figures.map_grid(rows, groups=[("", 1), ("", 2), ("", 2)], voxel_mm=weights.voxel_mm)
    caption = f"""Each scan predicted from the others. {who.capitalize()} (n = 1): through tissue (then the hidden
    protocol, one gain fitted), and by the best weighted sum of the other scans (every weight fitted to the hidden
    scan). PSNR over the brain of {len(some)} slices."""
    publish(fig, "fig24_leave_one_out", caption, "Rows of contrasts: acquired, two predictions and their residuals.")

# %%
if rows:
    dB = {n: wide.loc[n, "psnr"] for n in names}
    ways = "{model:.1f} dB through tissue, {rival:.1f} dB by the weighted sum."
    of = [f"{n}: {ways.format(**v)}" for n, v in dB.items()]
    say(f"""**Figure 24.** {" ".join(of)} The weighted sum is fitted to the hidden scan, so its grey levels are
    right. If the model has a lower PSNR and an equal correlation, its pattern is right and its grey levels are wrong:
    check TE, TR and TI of that sidecar first. If both are lower, the equations do not hold for that scan.""")

# %% [markdown]
# Does the TE of the sidecar hold? Take the scan that the model predicts worst beside the weighted sum. Render the
# tissue from the other scans once more, with other echo times, and see which TE predicts that scan best.

# %%
if rows:
    m = names.index((wide["psnr", "model"] - wide["psnr", "rival"]).idxmin())
    others = some.observed.clone()
    others[:, m] = False
    without = inference.explain(model.vae, some, others, scale[whole]).maps
    asked, at_te = 1000 * float(some.settings[0, m, 1]), {}  # ms
    for share in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        settings = some.settings.clone()
        settings[:, m, 1] *= share
        again = tables.rescan(without, replace(some, settings=settings), False, where)[:, m]
        at_te[share * asked] = metrics.psnr(again * where, some.images[:, m], where)

# %%
if rows:
    best = max(at_te, key=at_te.get)
    say(f"""Of six echo times, {best:.0f} ms predicts {names[m]} best: {at_te[best]:.1f} dB. With the TE of the sidecar,
    {asked:.0f} ms, it is {at_te[asked]:.1f} dB.""")
    if best < asked:
        say("""So in that scan fluid is darker beside tissue than its TE asks for. One gain cannot mend that. A weighted
        sum can: it is free to change every grey level.""")

# %% [markdown]
# ## A contrast that nobody acquired
# `phyldm render --maps MAPS --sequence FLAIR --te 0.09 --tr 9 --ti 2.5 --out NEW_FLAIR.nii.gz` writes an image and its
# sidecar from the maps alone, in seconds. Any tool that reads scans can read it. `phyldm explore` shows the contrast of
# your maps with any protocol.
#
# ## What we learned
# - A folder with sidecars becomes aligned scans, maps and new contrasts. What could not be used is named, with the
#   reason.
# - Medians of white and grey matter are compared with measured ranges (Figure 23). A wrong map can also lie within
#   them.
# - Each scan is predicted from the others and compared with a weighted sum fitted to the hidden scan (Figure 24). This
#   check needs no true maps.
#
# ## Exercises
# 1. **Predict first:** fit the maps to the first scan alone. Which of the three maps changes most?
# 2. Give the first scan half of its true TR. Which number shows the error?
#
# <details><summary>Solution 1</summary>
#
# ```python
# first = torch.zeros_like(slices.observed)
# first[:, 0] = True
# one = inference.explain(model.vae, slices, shown=first, scale=scale).maps
# {q: float((100 * (a - b).abs() / b)[brain].nanmedian()) for q, a, b in zip(figures.MAPS, one, maps)}
# ```
# A T1w says nothing about T2 itself. Its T1 suggests a usual T2, and the prior gives the rest.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# wrong = slices.settings.clone()
# wrong[:, 0, 2] = 0.5 * wrong[:, 0, 2]
# lied = inference.explain(model.vae, replace(slices, settings=wrong), scale=scale)
# float(explained.misfit.mean()), float(lied.misfit.mean())
# ```
# The misfit may rise. If the gains can compensate for the wrong TR, the misfit stays the same and only the maps are
# wrong. A good fit does not prove that the protocol is right.
# </details>
#
# ## Limits
# One person and no measured T1 or T2. Protocols are as good as their sidecars, and an effective TE is an assumption
# ([01](01_signal_physics.ipynb)). No measurement has confirmed the maps. Research only, nothing for a clinic.
#
# ## References
# - M. Brudfors et al., *A tool for super-resolving multimodal clinical MRI*, 2019, arXiv 1909.01140: UniRes.
# - D. Mattes et al., *IEEE Trans Med Imaging* 2003;22:120: the registration's measure.
# - Ž. Lesjak et al., *Neuroinformatics* 2018;16:51, doi 10.1007/s12021-017-9348-7 (CC-BY): the patient.

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
# # 09 · Your own scans
#
# **Question.** You have a folder of scans. How do they become tissue maps, and contrasts nobody acquired, as files that
# other tools open?
#
# **You will** prepare a session, fit PD, T1 and T2 with their uncertainty over the whole volume, render a contrast
# that was never acquired, and ask how far each scan can be trusted to the others. *CPU, 4 min.*
#
# [Contents](00_overview.ipynb) · before: [08 A real patient](08_real_patient.ipynb)
#
# Everything here is a command, too; the text says which. `scans_dir` below can point to your own folder: a BIDS
# dataset, or any folder with a `…_T1w.nii.gz`, `…_T2w.nii.gz`, `…_FLAIR.nii.gz` and their sidecars. By default it is the
# patient of notebook [08](08_real_patient.ipynb) (Lesjak et al. 2018); where those scans are absent, a simulated person.

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7
scans_dir = ""

# %%
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import torch

from phyldm_core import figures, tissue
from phyldm_core.evaluation import metrics
from phyldm_core.evaluation.leave_one_out import judge_scans
from phyldm_core.figures import Panel
from phyldm_core.people import segmentation
from phyldm_core.people.stand_in import write_stand_in
from phyldm_core.physics import Protocol
from phyldm_core.running.chapter import open_chapter
from phyldm_core.scans import fit, grids, nifti
from phyldm_core.scans.fit_dataset import FitOptions, fit_all
from phyldm_core.scans.maps import read_maps, render_maps, render_volume
from phyldm_core.scans.prepare_dataset import prepare_dataset, read_prepared
from phyldm_core.scans.sessions import find_scans, find_sessions
from phyldm_core.weights import load_weights

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
run.vae()  # says which notebook to run where there is no model yet
weights, work = load_weights(run.folder), run.folder / "own_scans"

# %% [markdown]
# ## What is in the folder
# A scan needs three things to be used: voxels, where they lie, and TE, TR, TI. The last come from the sidecar
# (`…_T1w.json` beside `…_T1w.nii.gz`, in seconds), or by hand: `phyldm fit a.nii.gz --protocol "a.nii.gz: spin echo,
# te 0.1, tr 3.2"`. Whatever had to be decided on reading is said.

# %%
default = Path(os.environ.get("PHYLDM_SHARED_DATA", "../../shared/data")) / "open_ms"
folder = Path(scans_dir or default)
if not scans_dir and not folder.is_dir():
    print("No patient here (see data/README.md, or set scans_dir): a simulated person stands in from here on.")
    folder = write_stand_in(work / "simulated", run.recipe, seed)
who = "the simulated person" if folder.is_relative_to(work) else "the patient"
(subject, session), paths = next(iter(find_sessions(folder).items()))
raw = [nifti.read_scan(path) for path in paths]
for scan in raw:
    mm = " × ".join(f"{size:.3g}" for size in np.linalg.norm(scan.affine[:3, :3], axis=0))
    print(f"{scan.path.name}: {scan.protocol}; {'×'.join(map(str, scan.image.shape))} voxels of {mm} mm")
    print("   ", "; ".join(scan.notes))

# %% [markdown]
# ## Prepare
# The scans of a session are laid over each other: one rigid movement a scan (Mattes mutual information), one
# interpolation, one number to divide by. The brain is found, or taken from `--mask`, or seen from a scan that came
# without skull. On the command line: `phyldm prepare FOLDER --out PREPARED --mask template`; what is done is not done
# again, and what could not be used stands in `skipped.tsv` with its reason.
#
# **What the paper did here.** It used UniRes (Brudfors et al. 2019), a Bayesian super-resolution: all contrasts of a
# session are estimated together at 1 mm, with a prior that couples their edges, so that thick slices come back sharper
# than they went in, and noise is removed on the way. Here nothing is estimated. Registration is the same in kind;
# thick slices stay blurred; noise stays. What is gained: seconds instead of many minutes, no prior between the scans
# and the physics, and aligned scans whose voxels are exactly the scanner's. Heads: the paper keeps them, the `laptop`
# profile takes them off.

# %%
for outcome in prepare_dataset(folder, work / "prepared", voxel_mm=weights.voxel_mm, mask="template"):
    print(f"{outcome.name}: {outcome.status}", *outcome.left_out.values(), sep="\n   ")
prepared = read_prepared(work / "prepared", subject, session)
brain_litres = prepared.brain.sum() * weights.voxel_mm**3 / 1e6
print(f"{len(prepared.scans)} scans on {prepared.brain.shape}, {weights.voxel_mm:g} mm;", end=" ")
print(f"brain from: {prepared.mask_from}, {brain_litres:.2f} l")
for suffix, matrix in prepared.transforms.items():
    print(f"{suffix}: moved by {np.linalg.norm(matrix[:3, 3]):.1f} mm, divided by {prepared.scales[suffix]:.4g}")


# %%
def planes(volume, at):
    """The axial, coronal and sagittal slice through voxel ``at``, each ``(y, x)``-like, on squares of one size."""
    size = max(volume.shape)
    cut = volume[:, :, at[2]].T, volume[:, at[1]].T, volume[at[0]].T
    pads = [[((size - n) // 2, size - n - (size - n) // 2) for n in image.shape] for image in cut]
    return [np.pad(image, pad) for image, pad in zip(cut, pads, strict=True)]


middle = [int(np.median(index)) for index in np.nonzero(prepared.brain)]
rows = []
for scan in prepared.scans:
    window = figures.percentile_window(scan.image, prepared.brain)
    cuts = zip(planes(scan.image, middle), ("axial", "coronal", "sagittal"), strict=True)
    first = scan is prepared.scans[0]
    rows.append([Panel(image, title=name * first, side=scan.suffix * (name == "axial"), window=window)
                 for image, name in cuts])  # fmt: skip
fig = figures.map_grid(rows, voxel_mm=weights.voxel_mm, width=4.2)
for ax, inside in zip([ax for ax in fig.axes if ax.images], 3 * planes(prepared.brain, middle), strict=False):
    if inside.any() and not inside.all():
        ax.contour(inside, [0.5], colors="#00e5ff", linewidths=0.5)
caption = f"""The scans of {who} on one grid of {weights.voxel_mm:g} mm, three planes through the middle of the brain.
Line: the brain, from: {prepared.mask_from}. n = 1. Protocols: in the scans' sidecars."""
publish(fig, "fig40_prepared", caption, "Rows of contrasts, three planes each, the brain outlined.")

# %% [markdown]
# **Figure 40.** What to look at before going on, always: the same gyrus in the same place in every row, and the line on
# the border of the brain. A mask that lets scalp in makes everything darker than it is (fat is the brightest thing in a
# T1w), and T1 of white matter goes wrong by 10 % and more; one that cuts cortex off loses it. SynthStrip, HD-BET or
# FreeSurfer draw a better one; give it with `--mask`.
#
# ## Fit
# `phyldm fit FOLDER --out MAPS` infers the maps of every session. It writes the posterior mean and SD of PD, T1 and T2
# on the voxels of the T1w file, as BIDS quantitative maps, with sidecars that say what they were made from.

# %%
for done in fit_all(find_scans([folder]), weights, work / "maps", {}, FitOptions(seed=seed)):
    print(f"{done.session.name}: {done.state}: {done.said}")
name = done.session.name
anat = next((work / "maps").rglob(f"{name}_T1map.json")).parent
told = json.loads((anat / f"{name}_T1map.json").read_text())
print(*sorted(path.name for path in anat.glob("*.nii.gz")), sep="\n")
print({key: told[key] for key in ("Units", "TrainedHeights", "ExtrapolatedFraction", "BrainMask")})

# %%
volumes = read_maps(anat)
sd = nifti.read_volume(anat / f"{name}_desc-sd_T1map.nii.gz")[0]
reference, canonical = nifti.read_volume(volumes.paths[1])  # T1, turned to RAS for the pictures
mm = np.linalg.norm(canonical[:3, :3], axis=0)
maps = [nifti.read_volume(path)[0] for path in volumes.paths]
inside = maps[0] > 0
lesion = np.zeros_like(inside)
for file in folder.rglob("*lesion*mask.nii*"):
    drawn = replace(raw[0], image=nifti.read_volume(file)[0], affine=nifti.read_volume(file)[1])
    lesion |= grids.resample(drawn, grids.Grid(inside.shape, canonical)) > 0.5
at = [int(np.median(index)) for index in np.nonzero(inside)]
height = canonical[2, 3] + mm[2] * np.arange(inside.shape[2])
trained = (told["TrainedHeights"][0] <= height) & (height <= told["TrainedHeights"][1])
if lesion.any():  # where the most of them is, at the trained heights if there are any
    area = lesion.sum((0, 1))
    at[2] = int((area * trained if (area * trained).any() else area).argmax())
print(f"{int(inside.sum())} voxels of brain, {int(lesion.sum())} of lesion; slice shown: z = {at[2]}")


# %%
def outline(fig):
    """Draw the expert's lesions on every picture of the slice."""
    for ax in fig.axes:
        if ax.images and lesion[:, :, at[2]].any():
            ax.contour(lesion[:, :, at[2]].T, [0.5], colors="#00e5ff", linewidths=0.6)


row = [Panel(m[:, :, at[2]].T, q, title=figures.symbol(q), inside=inside[:, :, at[2]].T)
       for q, m in zip(figures.MAPS, maps, strict=True)]  # fmt: skip
relative = 100 * np.divide(sd, maps[1], out=np.zeros_like(sd), where=inside)[:, :, at[2]].T
top = float(np.percentile(relative[relative > 0], 99))
row.append(Panel(relative, title=f"SD of $T_1$, white = {top:.2g} %", window=(0, top)))
fig = figures.map_grid([row], voxel_mm=tuple(mm[1::-1]))
outline(fig)
caption = f"""PD, T1 and T2 of {who} (n = 1) as phyldm fit wrote them, on the voxels of the T1w file, and the posterior
SD of T1 in per cent of T1 (own window). Outlined: lesions, by experts. Protocols: in the scans' sidecars."""
publish(fig, "fig41_own_maps", caption, "PD, T1, T2 and the SD of T1 of one axial slice, lesions outlined.")

# %%
tissue_class = segmentation.segment_tissue(render_volume(volumes.maps._replace(pd=maps[0], t1=maps[1], t2=maps[2]),
                                                    Protocol("MPRAGE", 0.003, 2.4, 1.0)), inside)  # fmt: skip
where = {kind: (tissue_class == k) & ~lesion for k, kind in enumerate(tissue.CLASSES, 1)} | {"lesion": lesion & inside}
table = {kind: {"voxels": int(w.sum())} | {f"{q} median": float(np.median(m[w])) for q, m in
         zip(figures.MAPS, maps, strict=True)} for kind, w in where.items() if w.any()}  # fmt: skip
pandas.DataFrame(table).T.round(3)

# %% [markdown]
# **Figure 41.** Where lesions are drawn they should be longer in T1 and T2 than the white matter around them; the table
# has the medians. Two warnings belong to every map of this kind. The SD is the model's own, how much its answers differ
# and not how wrong they are: an error that all answers share does not show. And weights trained on a stack of central
# slices extrapolate above and below; the sidecar's `TrainedHeights` says where, `ExtrapolatedFraction` how much.
#
# ## A contrast that nobody acquired
# `phyldm render --maps MAPS --sequence FLAIR --te 0.09 --tr 9 --ti 2.5 --out NEW_FLAIR.nii.gz` writes an image with its
# sidecar from the maps alone, in two seconds. **Predict:** with TI = 0.4 s an MPRAGE crosses zero near T1 = 0.6 s. Which
# tissue will be darkest?

# %%
wanted = {
    "acq-short_T1w": ("MPRAGE, TI 0.4 s", Protocol("MPRAGE", te=0.003, tr=2.4, ti=0.4)),
    "acq-pd_PDw": ("PD weighted", Protocol("spin echo", te=0.015, tr=6.0)),
    "acq-late_T2w": ("T2 weighted, TE 0.2 s", Protocol("spin echo", te=0.2, tr=6.0)),
    "acq-long_FLAIR": ("FLAIR, TE 0.14 s", Protocol("FLAIR", te=0.14, tr=9.0, ti=2.5)),
}
new = {title: render_maps(anat, p, work / "rendered" / f"{name}_{stem}.nii.gz") for stem, (title, p) in wanted.items()}
images = {title: nifti.read_volume(path)[0] for title, path in new.items()}
row = [Panel(image[:, :, at[2]].T, title=title) for title, image in images.items()]
fig = figures.map_grid([row], voxel_mm=tuple(mm[1::-1]))
outline(fig)
caption = f"""Contrasts of {who} that were not acquired, rendered from the maps (n = 1 slice, each in its own window):
{"; ".join(str(p) for _, p in wanted.values())}. No truth exists for these."""
publish(fig, "fig42_own_contrasts", caption, "Four rendered contrasts of one slice, lesions outlined.")
for path in new.values():
    back = nifti.read_scan(path)
    print(f"{path.name} reads back as {back.protocol}")

# %% [markdown]
# **Figure 42.** The new images read back with the protocol they were rendered for, so anything that takes a scan takes
# them, this package included.
#
# ## How far can the scans be trusted to each other?
# Hide one scan, infer tissue from the others, render the hidden protocol, compare inside the brain, over the whole
# volume. One number is fitted to the hidden scan, its gain. The rival knows no physics: the best weighted sum of the
# other scans plus a constant, all of its weights fitted to the hidden scan itself. Notebook
# [08](08_real_patient.ipynb) does the same to simulated people and asks what is foreign to the model; here it is a
# check of *your* data: a scan that is predicted far worse than the rest has a wrong sidecar, was moved, or is of a
# sequence the equations do not hold.

# %%
slices, window = fit.session_slices(prepared, weights, run.vae().downsampling)
complete = slices.observed.all(1)
slices, brain = slices[complete], torch.from_numpy(window.of_volume(prepared.brain))[complete]
slices = replace(slices, images=slices.images * brain[:, None])
names = [scan.suffix for scan in prepared.scans]
scale = fit.volume_brightness(slices)
judged, predicted = judge_scans(run.vae(), slices, brain, names, scale=scale)
summary = metrics.long_form(judged)
run.write_metrics("own_scans", summary)
if judged:
    wide = summary.pivot(index="quantity", columns=["metric", "inputs"], values="value")
    print(wide.loc[names, ["psnr", "ssim", "correlation"]].round(3).to_string())

# %%
i = int(brain.sum((1, 2)).argmax())
rows = []
for m, both in predicted.items():
    target, first = slices.images[i, m], not rows
    view = figures.percentile_window(target)
    row = [Panel(target, title="acquired" * first, side=names[m], window=view)]
    for kind, image in both.items():
        off = 100 * (image[i] - target).abs() / view[1]
        note = f"{wide.loc[names[m], ('psnr', kind)]:.1f} dB"
        row += [Panel(image[i], title=kind * first, window=view, note=note)]
        row += [Panel(off, "residual", title="residual" * first, inside=brain[i])]
    rows.append(row)
if rows:
    fig = figures.map_grid(rows, groups=[("", 1), ("", 2), ("", 2)], voxel_mm=weights.voxel_mm)
    caption = f"""Each scan of {who} predicted from the others: by the model (tissue, then the hidden protocol, one gain
    fitted) and by the best weighted sum of the other scans (every weight fitted to the hidden scan). PSNR over the
    brain of {len(slices)} slices (n = 1)."""
    publish(fig, "fig43_leave_one_out", caption, "Rows of contrasts: acquired, two predictions and their residuals.")

# %% [markdown]
# **Figure 43.** The rival has its grey levels given and three numbers to fit; the model has one. Where the model is
# behind in PSNR and equal in correlation, it has the pattern and not the level: look at TE, TR and TI of that sidecar
# first. Where it is behind in both, the scan is of a kind that no training scan was.
#
# ## What we learned
# - A folder with sidecars becomes aligned scans, maps with an SD, and new contrasts, in files that say what they were
#   made from; every step is one command and can be called again.
# - What could not be used is named, with the reason, and the rest is done.
# - The table above is the check to make before believing a map: it needs no truth but the scans themselves.
#
# ## Exercises
# 1. **Predict first:** fit the T1w alone. Which of the three maps changes most, and does the SD say so?
# 2. Write 0.5 s instead of the true TI into a copy of the T1w's sidecar and fit again. Which line of the table betrays it?
# 3. Move the FLAIR by 5 mm in its header and prepare again. What is printed, and what happens to the table?
#
# <details><summary>Solution 1</summary>
#
# ```python
# alone = fit.fit_session(fit.prepare([s for s in raw if s.suffix == "T1w"], weights), weights, n_samples=4, seed=seed)
# both = fit.fit_session(prepared, weights, n_samples=4, seed=seed)
# for q, a, b, sd in zip(figures.MAPS, alone.mean, both.mean, alone.sd):
#     off = np.abs(a - b)[both.brain & alone.brain] / b[both.brain & alone.brain]
#     print(q, f"changed by {np.median(off):.1%}, SD {np.median(sd[alone.brain] / a[alone.brain]):.1%}")
# ```
# A T1w says nothing of T2 but what usually goes with its T1; the prior fills in the rest.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# t1w = next(scan for scan in prepared.scans if scan.suffix == "T1w")
# wrong = [replace(s, protocol=replace(s.protocol, ti=0.5)) if s is t1w else s for s in prepared.scans]
# lied, _ = fit.session_slices(replace(prepared, scans=wrong), weights, run.vae().downsampling)
# metrics.long_form(judge_scans(run.vae(), lied[complete], brain, names)[0])
# ```
# The T1w's own line falls: the others predict the scan that a TI of 0.5 s would have given. The other two lines fall
# less, because they lean on two scans each.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# import shutil, nibabel
# copy = Path(shutil.copytree(folder, work / "moved", dirs_exist_ok=True))
# file = next(copy.rglob("*_FLAIR.nii.gz"))
# image = nibabel.load(file)
# shifted = image.affine + np.array([[0, 0, 0, 5.0], [0] * 4, [0] * 4, [0] * 4])
# nibabel.Nifti1Image(image.get_fdata(), shifted).to_filename(file)
# list(prepare_dataset(copy, work / "moved_prepared", voxel_mm=weights.voxel_mm, mask="template"))
# read_prepared(work / "moved_prepared", subject, session).transforms["FLAIR"].round(2)
# ```
# The movement is found and undone, to a few tenths of a millimetre; the table hardly changes.
# </details>
#
# ## Limits
# One person. TE, TR and TI are as good as their sidecars; an effective TE is an assumption (notebook
# [01](01_signal_physics.ipynb)). The maps are nobody's measurement, their SD is not their error, and nothing here is for
# a clinic.
#
# ## References
# - M. Brudfors et al., *A tool for super-resolving multimodal clinical MRI*, 2019, arXiv 1909.01140: UniRes.
# - D. Mattes et al., IEEE Trans Med Imaging 2003;22:120: the registration's measure.
# - Ž. Lesjak et al., Neuroinformatics 2018;16:51, doi 10.1007/s12021-017-9348-7 (CC-BY): the patient.
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532.

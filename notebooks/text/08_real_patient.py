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
# # 08 · A real patient
#
# **Question.** Everything so far was simulated. What does the model make of a real person with multiple sclerosis,
# scanned with protocols it never saw?
#
# **You will** infer PD, T1 and T2 from a patient's T1w, T2w and FLAIR, look at the lesions, predict each scan from the
# other two against a naive rival, and render contrasts nobody acquired. Whatever fails is shown as it comes out. *CPU,
# 1 min.*
#
# [Contents](00_overview.ipynb) · before: [07 Is it tissue?](07_tissue_histograms.ipynb) · next:
# [09 Your own scans](09_your_own_scans.ipynb)
#
# The patient is from the open data of Lesjak et al. (2018): 3 T, scans co-registered at 1 mm, brain extracted, bias
# corrected, lesions outlined by experts. `scans_dir` below can point to any folder with a T1w, T2w or FLAIR and their
# BIDS sidecars.

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7
scans_dir = ""

# %%
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas
import torch

from phyldm_core import figures, tissue
from phyldm_core.evaluation import metrics
from phyldm_core.evaluation.leave_one_out import judge_scans
from phyldm_core.explorers.console import CLINIC
from phyldm_core.figures import Panel
from phyldm_core.inference import infer
from phyldm_core.people import segmentation
from phyldm_core.physics import Protocol, Sequence, render
from phyldm_core.running.chapter import open_chapter
from phyldm_core.scans import grids, oasis3, sessions
from phyldm_core.slices import MODALITIES, Slices

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)
recipe, vae = run.recipe, run.vae()

# %% [markdown]
# ## The scans
# A scan from an archive has units of its own, a gain nobody knows, and a sidecar that may or may not say how it was
# made. `scans` reads it, decides what must be decided, and says so. Slices are cut about the middle of the brain at the
# profile's voxel size, twice as high a stack as the model was trained on, to meet more lesions.

# %%
default = Path(os.environ.get("PHYLDM_SHARED_DATA", "../../shared/data")) / "open_ms"
folder = Path(scans_dir or default)
patient = {s.suffix: s for s in sessions.read_session(folder)} if scans_dir or folder.is_dir() else None
if patient is None:
    print("No patient here (see data/README.md, or set scans_dir): a simulated test person stands in from here on.")
for scan in (patient or {}).values():
    print(f"{scan.suffix}: {scan.protocol}\n   {'; '.join(scan.notes)}")


# %%
def slices_of(session, lesion_files):
    """The session's scans on the profile's grid, where it is brain, and where an expert saw lesions."""
    reference = next(iter(session.values()))
    n = 2 * recipe.n_slices
    grid = grids.axial_grid(reference, recipe.shape, recipe.voxel_mm, z=n, slice_mm=recipe.slice_mm)
    images, settings = torch.zeros(n, len(MODALITIES), *recipe.shape), torch.zeros(n, len(MODALITIES), 4)
    for m, name in enumerate(MODALITIES):
        if name in session:
            images[:, m] = torch.from_numpy(grids.axial_slices(session[name], grid)).clamp_min(0)
            settings[:, m] = session[name].protocol.settings()
    observed = torch.tensor([name in session for name in MODALITIES]).expand(n, -1)
    slices = Slices(images, settings, observed, torch.zeros(n, dtype=torch.long), torch.linspace(-2, 2, n))
    lesion = torch.zeros(n, *recipe.shape, dtype=torch.bool)
    for file in lesion_files:
        mask = nibabel.as_closest_canonical(nibabel.load(file))
        drawn = replace(reference, image=mask.get_fdata(dtype=np.float32), affine=mask.affine)
        lesion |= torch.from_numpy(grids.axial_slices(drawn, grid)) > 0.5
    return slices, (images > 0.05 * images.amax((0, 2, 3), keepdim=True)).any(1), lesion


# %%
simulated, truth = run.scans("test", common_scale=False), run.truth("test")  # scanner units, unknown gains
if patient:
    slices, brain, lesion = slices_of(patient, folder.rglob("*lesion*mask.nii*"))
else:
    slices, brain = simulated[simulated.subject == 0], truth.brain[simulated.subject == 0]
    lesion = torch.zeros_like(brain)
who = "the patient" if patient else "a simulated test person"
present = [m for m, name in enumerate(MODALITIES) if slices.observed[0, m]]
voxels = f"{int(brain.sum())} voxels of brain, {int(lesion.sum())} of lesion"
print(f"{who}: {len(slices)} slices, {recipe.voxel_mm:g} mm, {voxels}")

# %% [markdown]
# ## What is foreign to the model
# **Predict:** which of the three protocols lies farthest from anything the model was trained on?

# %%
def span(times):
    """Seconds from the shortest to the longest; "" where there are none."""
    times = [t for t in times if t is not None]
    return f"{min(times):.3g} to {max(times):.3g}" if times else ""


rows = {}
for m in present:
    seen = [row.effective for row in oasis3.oasis3_protocols()[MODALITIES[m]]]
    rows[MODALITIES[m]] = {"acquired": str(Protocol.from_settings(slices.settings[0, m])),
                           "in training": ", ".join({q.sequence.value for q in seen})}  # fmt: skip
    rows[MODALITIES[m]] |= {f"{t.upper()} (s)": span(getattr(q, t) for q in seen) for t in ("te", "tr", "ti")}
pandas.DataFrame(rows).T

# %% [markdown]
# For the patient it is the T1w: an inversion-recovery *spin echo*, where every T1w of the training set is an MPRAGE. In
# the paper's terms it is a FLAIR with TE 20 ms and TI 0.8 s, and the one encoder for all scans has never been told
# anything like it. The physics layer has no such trouble: the equation is FLAIR's, with other times. Also foreign: real
# anatomy, no CSF around the brain (stripped with the skull), a lesion here and there, and whatever a scanner does that
# three equations leave out.
#
# ## PD, T1 and T2 of a patient
# **Predict:** lesions have lost myelin and hold more water. Which of the three maps should show them, and how?

# %%
maps = infer(vae, slices, common_scale=False)[1]
t1w = slices.images[:, present[0]]  # told apart on the scan itself: dark CSF, bright white matter
labels = torch.from_numpy(segmentation.segment_tissue(t1w, brain)) * ~lesion
masks = {name: labels == k for k, name in enumerate(tissue.CLASSES, 1)} | {"lesion": lesion}
csf_pd = tissue.in_vivo_3t().median[tissue.TISSUES.index("CSF"), 0]
maps = maps._replace(pd=maps.pd / maps.pd[masks["CSF"]].median() * csf_pd)  # the scans' gains say nothing about PD
i = int(lesion.sum((1, 2)).argmax()) if lesion.any() else len(slices) // 2


# %%
def outline(fig):
    """Draw the expert's lesions on every picture of slice ``i``."""
    for ax in fig.axes:
        if ax.images and lesion[i].any():
            ax.contour(lesion[i], [0.5], colors="#00e5ff", linewidths=0.6)


shown = {MODALITIES[m]: slices.images[i, m] for m in present}
fig = figures.inference(shown, [q[i] * brain[i] for q in maps], head=brain[i], voxel_mm=recipe.voxel_mm)
outline(fig)
caption = f"""PD, T1 and T2 of {who} (n = 1), inferred from scans with unknown gains; PD is scaled to CSF. Outlined:
lesions, drawn by experts. Protocols:
{"; ".join(str(Protocol.from_settings(slices.settings[0, m])) for m in present)}."""
publish(fig, "fig37_patient_maps", caption, "Three scans of one slice and the PD, T1 and T2 maps inferred from them.")

# %%
rows = {}
for name, where in masks.items():
    for q, values in zip(figures.MAPS, maps, strict=True):
        inside = values[where].numpy()
        low, middle, high = np.percentile(inside, (25, 50, 75)) if inside.size else [np.nan] * 3
        band = tissue.OUTER_BAND.get((name, q))
        rows[name, q] = {"voxels": inside.size, "median": middle, "lower quartile": low, "upper quartile": high,
                         "measured in healthy tissue": "{:g} to {:g}".format(*band) if band else ""}  # fmt: skip
found = pandas.DataFrame(rows).T.rename_axis(["tissue", "map"])
found

# %%
median = found["median"]
for name in ("WM", "GM"):
    for q in ("T1", "T2"):
        low, high = tissue.OUTER_BAND[name, q]
        says = "inside" if low <= median[name, q] <= high else "outside"
        print(f"{q} of {name}: {median[name, q]:.3f} s, {says} the measured {low:g} to {high:g} s")
if lesion.any():
    ratio = {q: median["lesion", q] / median["WM", q] for q in figures.MAPS}
    print("lesion against white matter:", ", ".join(f"{q} × {r:.2f}" for q, r in ratio.items()))

# %% [markdown]
# **Figure 37.** White and grey matter here are thresholds on the T1w scan, CSF is what little of it brain extraction
# left, and there is no truth: falling into a band of healthy tissue is necessary, not sufficient. Lesions should be
# longer in T1 and T2 than the white matter around them, as is known from measurements; the last line says what the
# model makes of them. It has never met one (unless the profile's cohort has lesions), and the few voxels of one patient
# prove nothing in either direction. PD is the least certain of the three: it is scaled to that little CSF, and every
# value of it is wrong by the same factor as the scale.
#
# ## Predict each scan from the other two
# Here is a test with a truth. Hide one scan, infer the tissue from the other two, render the hidden protocol, and
# compare with the scan, inside the brain. One number is fitted to the hidden scan, its gain.
#
# The rival knows no physics: the best weighted sum of the other two scans, plus a constant. It is allowed to see the
# hidden scan, and fits three numbers to it. Whoever cannot beat that has learnt nothing of use for this patient.
#
# **Predict:** which of the three scans will the model predict worst, and where will the rival win?

# %%
rows, predicted = judge_scans(vae, slices, brain, MODALITIES, who)
for person in simulated.subject.unique()[:10]:
    theirs = simulated.subject == person
    rows += judge_scans(vae, simulated[theirs], truth.brain[theirs], MODALITIES, "simulated people")[0]

# %%
keys = ["metric", "quantity", "inputs", "tissue"]
summary = [dict(zip(keys, key, strict=True)) | {"value": metrics.bootstrap_interval(values)}
           for key, values in pandas.DataFrame(rows).groupby(keys, sort=False).value]  # fmt: skip
summary = metrics.long_form(summary)
run.write_metrics("patient", summary)
wide = summary.pivot(index=["metric", "quantity"], columns="inputs", values="value")
wide.loc[:, summary.inputs.drop_duplicates()].rename_axis(None, axis=1).round(3)

# %%
for m in predicted:
    of = {kind: wide.loc[("psnr", MODALITIES[m]), f"{who}, {kind}"] for kind in ("model", "rival")}
    alike = {kind: wide.loc[("correlation", MODALITIES[m]), f"{who}, {kind}"] for kind in ("model", "rival")}
    verdict = "model ahead" if of["model"] > of["rival"] else "rival ahead"
    line = f"{MODALITIES[m]}: {of['model']:.1f} dB against the rival's {of['rival']:.1f} dB, {verdict}"
    print(f"{line}; correlation {alike['model']:.2f} against {alike['rival']:.2f}")

# %%
rows = []
for m, both in predicted.items():
    target, first = slices.images[i, m], m == present[0]
    window = figures.percentile_window(target)
    row = [Panel(target, title="acquired" * first, side=MODALITIES[m], window=window)]
    for kind, image in both.items():
        off = 100 * (image[i] - target).abs() / window[1]
        note = f"{wide.loc[('psnr', MODALITIES[m]), f'{who}, {kind}']:.1f} dB"
        row += [Panel(image[i], title=kind * first, window=window, note=note)]
        row += [Panel(off, "residual", title="residual" * first, inside=brain[i])]
    rows.append(row)
if rows:
    fig = figures.map_grid(rows, groups=[("", 1), ("", 2), ("", 2)], voxel_mm=recipe.voxel_mm)
    outline(fig)
    caption = f"""Each scan of {who} predicted from the other two: by the model (tissue, then the hidden protocol, one
gain fitted) and by the best weighted sum of the other two scans (three weights fitted to the hidden scan itself). PSNR
over the brain in all {len(slices)} slices (n = 1). Outlined: lesions."""
    publish(fig, "fig38_patient_prediction", caption, "Rows T1w, T2w, FLAIR: acquired, two predictions and residuals.")

# %% [markdown]
# **Figure 38.** Compare three things: the patient with the simulated people, for whom protocols and anatomy are those
# of the training set; the model with its rival; and PSNR with correlation. PSNR charges for a wrong grey level of a
# whole tissue, correlation mostly for a wrong pattern. The rival, fitted to the answer, has its grey levels given.
# Where the rival is ahead for the patient and behind for the simulated people, the model did not carry over; where it
# is behind in both, physics did better than fitting.
#
# What the residuals have in common is cortex (sharper in reality than the latent allows) and the rim of the brain,
# where extraction cut through a sulcus. The T1w has a reason of its own:
#
# ## Would it help to lie about the sequence?
# No training scan was an inversion-recovery spin echo with so short a TI. We could call the T1w an MPRAGE with the same
# times, a familiar lie: the encoder is more at home, the physics is wrong. **Predict:** which is worse for T1, an
# unfamiliar truth or a familiar falsehood?

# %%
told = slices.settings.clone()
told[:, 0, 0] = list(Sequence).index(Sequence.MPRAGE)
lie = replace(slices, settings=told)
no_t1w = slices.observed.clone()
no_t1w[:, 0] = len(present) == 1  # a scan that is all there is cannot be left out
versions = {"as acquired": maps, "called MPRAGE": infer(vae, lie, common_scale=False)[1]}
versions["without the T1w"] = infer(vae, slices, common_scale=False, shown=no_t1w)[1]
rows = {}
for key in [(name, q) for name in ("WM", "GM") for q in ("T1", "T2")]:
    name, q = key
    medians = {k: round(float(getattr(v, q.lower())[masks[name]].median()), 3) for k, v in versions.items()}
    rows[f"{q} of {name} (s)"] = medians | {"measured": "{:g} to {:g}".format(*tissue.OUTER_BAND[key])}
pandas.DataFrame(rows)

# %% [markdown]
# The rows tell how much the T1w is heeded at all, and how much of it hangs on one entry of the header. A model that was
# to be used on such data would be trained on a wider range of sequences, which costs a simulation nothing but time.
#
# ## Contrasts nobody acquired
# Nothing stops us from rendering other protocols from the patient's maps. They have no truth here; notebook
# [06](06_unseen_contrasts.ipynb) measured what to expect on simulated people.

# %%
wanted = {"T1w": "T1w MPRAGE", "PDw": "PDw spin echo", "white matter nulled": "MPRAGE, white matter nulled"}
wanted |= {"T2-FLAIR": "T2-FLAIR", "water": "hydrography"}
wanted = {title: CLINIC[preset] for title, preset in wanted.items()}
row = [Panel(render(maps, p)[i] * brain[i], title=title) for title, p in wanted.items()]
fig = figures.map_grid([row], voxel_mm=recipe.voxel_mm)
outline(fig)
caption = f"""Contrasts that were not acquired, rendered from the inferred maps of {who} (n = 1 slice, each in its own
window): {"; ".join(map(str, wanted.values()))}. Outlined: lesions. No truth exists for these."""
publish(fig, "fig39_patient_unseen", caption, "Five rendered contrasts of one slice, lesions outlined.")

# %%
contrast = {}
for name, p in wanted.items():
    signal = {kind: float(render(maps, p)[where].median()) for kind, where in masks.items() if where.any()}
    contrast[name] = {f"{kind} / WM": value / signal["WM"] for kind, value in signal.items() if kind != "WM"}
pandas.DataFrame(contrast).T.round(2)

# %% [markdown]
# **Figure 39.** The image of water (hydrography) rests on the T2 of CSF alone, which the model cannot know (notebook
# [07](07_tissue_histograms.ipynb)); it is here as a warning. In the table, a lesion shows where its ratio differs from
# 1. Whether the ratios are those of a real scanner, only a patient scanned with these protocols could say.
#
# ## What we learned
# - A model trained on simulated people runs on a real patient as it is: gains, protocols and sidecars are read, and
#   what had to be decided is said.
# - Its T1 and T2 stand beside the measured bands, its predictions beside a rival that saw the answer. The printed lines
#   say who won; a lost comparison stays in the table.
# - The patient differs from the training set in sequence, anatomy, lesions and rim. Simulated people under the same
#   test show how much of the loss is due to that.
#
# ## Exercises
# 1. **Predict first:** shift the lesion outlines by 10 mm into healthy white matter. Do T1 and T2 inside still exceed
#    those of white matter? What does your answer say about the lesion ratios above?
# 2. The rival has three weights, the model one gain. Give the model a constant, too. Does a verdict change?
# 3. Only the middle half of the slices lies at heights the model was trained on. Is it better there?
#
# <details><summary>Solution 1</summary>
#
# ```python
# elsewhere = lesion.roll(round(10 / recipe.voxel_mm), dims=1) & masks["WM"]  # towards anterior, white matter only
# {q: float(v[elsewhere].median() / v[masks["WM"]].median()) for q, v in zip(figures.MAPS, maps)}
# ```
# The ratio of displaced outlines is what the neighbourhood of ventricles and cortex does by partial volume. Only what
# lesions exceed it by can be called a finding.
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# for m, both in predicted.items():
#     target, model = (x[brain].double() for x in (slices.images[:, m], both["model"]))
#     known = torch.stack([model, torch.ones_like(model)], 1)
#     fitted = (known @ torch.linalg.lstsq(known, target[:, None]).solution)[:, 0]
#     print(MODALITIES[m], round(metrics.psnr(fitted, target), 1), "dB")
# ```
# A constant helps where the model has the pattern but not the level, as its correlation says beforehand: with gain and
# constant fitted, PSNR depends on the correlation alone.
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# n = len(slices)
# middle = (torch.arange(n) + 0.5 - n / 2).abs() < n / 4
# for m, both in predicted.items():
#     for name, k in (("middle", middle), ("rest", ~middle)):
#         if k.any():
#             dB = metrics.psnr(both["model"][k], slices.images[k, m], brain[k])
#             print(f"{MODALITIES[m]}, {name}: {dB:.1f} dB")
# ```
# The encoder and the decoder are convolutions and know no height, so that the difference is one of anatomy: eyes,
# cerebellum or vertex against what the training stack held.
# </details>
#
# ## Limits
# One patient, one slice on show, TE, TR and TI as recalled from the publication rather than read from a scanner, an
# effective TE that is an assumption (notebook [01](01_signal_physics.ipynb)), and no measured T1 or T2. This is a
# demonstration, not an evaluation, and nothing for a clinic.
#
# ## References
# - Ž. Lesjak et al., *A novel public MR image dataset of multiple sclerosis patients with lesion segmentations based on
#   multi-rater consensus*, Neuroinformatics 2018;16:51, doi 10.1007/s12021-017-9348-7 (CC-BY): the patient.
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532.

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
# # 01 · From tissue to contrast
#
# **Question.** Given proton density (PD), T1 and T2, what will a scanner show, and what do TE, TR and TI change?
#
# **You will** draw the three signal equations of the paper, null CSF, meet two traps that spoil fitted T2, and read off
# which scan can tell which property of tissue. *CPU, under a minute.*
#
# [Contents](00_overview.ipynb) · next: [02 A cohort whose truth is known](02_cohort.ipynb)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn as sns
import torch
from nilearn import datasets

from phyldm_core import figures, physics, tissue
from phyldm_core.explorers.console import CLINIC
from phyldm_core.explorers.contrasts import ContrastExplorer
from phyldm_core.machine.files import write_atomically
from phyldm_core.physics import REFERENCE, UNSEEN, Protocol, ProtocolError, TissueMaps

figures.use_house_style()


def publish(fig, axes, name, caption, alt):
    """Letter the panels and save the figure; the notebook shows it."""
    for letter, ax in zip("abcd", axes, strict=False):
        ax.set_title(letter, loc="left", weight="bold")
    figures.save_figure(fig, figures_dir, name, caption=" ".join(caption.split()), alt=alt)


# %% [markdown]
# ## Three tissues
# The whole chapter needs nine numbers: the medians of what has been measured in living brains at 3 T
# (`data/relaxation_times.csv` lists every study; [07](07_tissue_histograms.ipynb) shows how far they disagree).
# PD is relative to water, times are in seconds, here and everywhere else.

# %%
table = tissue.in_vivo_3t()
tissues = {name: tuple(table.median[table.tissues.index(name)].round(3)) for name in ("WM", "GM", "CSF")}
pandas.DataFrame(tissues, index=["PD (of water)", "T1 (s)", "T2 (s)"]).T

# %% [markdown]
# ## Three equations
# The paper (section 2.2) renders every scan with one of three closed forms. Each has a factor for how many protons
# there are, one for how far they have recovered along the field (T1), and one for how much of the signal is left when
# the echo is read (T2). The gain of the scanner is set to 1.
#
# $$\text{MPRAGE:}\quad S = \rho\,\Big(1 - \frac{2e^{-TI/T_1}}{1 + e^{-TR/T_1}}\Big)\,e^{-TE/T_2} \qquad (1)$$
#
# $$\text{spin echo:}\quad S = \rho\,\big(1 - e^{-TR/T_1}\big)\,e^{-TE/T_2} \qquad (2)$$
#
# $$\text{FLAIR:}\quad S = \rho\,\big(1 - 2e^{-TI/T_1} + e^{-TR/T_1}\big)\,e^{-TE/T_2} \qquad (3)$$
#
# TR of an inversion sequence runs from inversion to inversion. In code they are `physics.mprage`, `physics.spin_echo`
# and `physics.flair`: torch functions that broadcast, so a curve is one call.
#
# **Predict:** CSF holds the most water of the three. In which of the three panels below is it nevertheless the darkest
# tissue, and where?

# %%
pd, t1, t2 = torch.tensor(list(tissues.values()), dtype=torch.float64).T
long, short = torch.linspace(0.001, 8, 400)[:, None].double(), torch.linspace(0.001, 0.4, 400)[:, None].double()
inverted = torch.linspace(0, 2.4, 400)[:, None].double()
curves = {
    "TI (s), MPRAGE, TR 2.4 s": (inverted, physics.mprage(pd, t1, t2, te=0.003, tr=2.4, ti=inverted), 1.0),
    "TR (s), spin echo, TE 10 ms": (long, physics.spin_echo(pd, t1, t2, te=0.01, tr=long), 0.6),
    "TE (s), spin echo, TR 5 s": (short, physics.spin_echo(pd, t1, t2, te=short, tr=5.0), 0.1),
}

# %%
fig, axes = plt.subplots(1, 3, figsize=(7, 2.3), sharey=True, layout="constrained")
for ax, (label, (time, signal, clinic)) in zip(axes, curves.items(), strict=True):
    for k, name in enumerate(tissues):
        ax.plot(time, signal[:, k], color=figures.TISSUE_COLOURS[name], label=name)
    ax.axhline(0, color="0.6", lw=0.6, zorder=0)
    ax.axvline(clinic, color="0.3", lw=0.8, ls=":")
    ax.set(xlabel=label, xlim=(0, time.max()))
axes[0].set(ylabel="signed signal (water = 1)")
axes[1].legend(loc="lower right")
caption = """Signal of white matter, grey matter and CSF (median in-vivo values at 3 T) against one time of the
protocol, the others fixed. Dotted: a usual setting. (a) MPRAGE, TE 3 ms, equation 1. (b, c) Spin echo, equation
2. Closed forms, no noise (n = 1 voxel of each tissue)."""
alt = "Line charts. Over TI all tissues rise from negative to positive. Over TR they saturate. Over TE they decay."
publish(fig, axes, "fig06_signal_curves", caption, alt)

# %% [markdown]
# **Figure 6.** At the dotted settings: a T1-weighted image (a, b: white matter bright, CSF dark, since it recovers
# slowest) and a T2-weighted one (c: CSF outlives the rest). TI and TR spread the tissues by T1, TE by T2. Nothing spreads
# them by PD alone: PD is what remains when TR is long and TE is short.

# %% [markdown]
# ## Null points, and a sign that gets lost
# After an inversion every tissue crosses zero once, where $2e^{-TI/T_1} = 1 + e^{-TR/T_1}$ in both (1) and (3):
# $TI_0 = T_1 \ln\frac{2}{1 + e^{-TR/T_1}}$. FLAIR reads out at the null point of CSF.
#
# **Predict:** the textbook says $TI_0 = T_1 \ln 2$. For CSF that is 3.0 s. Is a FLAIR with TR 9 s read out earlier or
# later than that?

# %%
nulls = pandas.DataFrame(
    {tr: {name: physics.null_ti(values[1], tr, "FLAIR") for name, values in tissues.items()} for tr in (2.4, 5.0, 9.0)}
)
nulls["T1 ln 2"] = [values[1] * np.log(2) for values in tissues.values()]
nulls.columns = [f"TR {c:g} s" if isinstance(c, float) else c for c in nulls]
nulls.round(3)

# %% [markdown]
# Earlier: at TR 9 s CSF has not recovered fully when the next inversion comes, so it starts its way back from less than
# −1. The paper's TI of 2.5 s is the null point of CSF at TR 9 s.
#
# Scanners show the magnitude. A tissue inside its null point is bright again, and nothing in the picture tells on which
# side it lies. The next figure needs an image, so here is a slice to look at.

# %% [markdown]
# ## A slice of tissue
# nilearn ships the MNI152 template as maps of how much white and grey matter each voxel holds; what is left inside the
# brain is CSF. PD adds up over a voxel; for T1 and T2 the geometric mean, weighted by water, stands for the mixture, as
# in the cohort of notebook 02.

# %%
loaders = (datasets.load_mni152_wm_template, datasets.load_mni152_gm_template, datasets.load_mni152_brain_mask)
volumes = [loader(resolution=2) for loader in loaders]


def maps_at(z_mm):
    """PD, T1, T2 of the axial slice at this MNI height, ``(y, x)``."""
    k = round((z_mm - volumes[0].affine[2, 3]) / 2)
    wm, gm, brain = (torch.from_numpy(v.get_fdata(dtype="float32")[:, :, k].T).double() for v in volumes)
    wm, gm = wm / (wm + gm).clamp_min(1) * brain, gm / (wm + gm).clamp_min(1) * brain
    water = torch.stack([wm, gm, (brain - wm - gm).clamp(0, 1)]) * pd[:, None, None]
    share = water / water.sum(0).clamp_min(1e-6)
    t1_map, t2_map = (torch.einsum("kyx,k->yx", share, times.log()).exp() for times in (t1, t2))
    return TissueMaps(water.sum(0), t1_map * brain, t2_map * brain)


# %%
maps = maps_at(12)
head = maps.pd > tissue.AIR_PD
scans = {name: physics.render(maps, protocol) for name, protocol in REFERENCE.items()}
row = [figures.Panel(m, q, title=q, inside=head) for m, q in zip(maps, figures.MAPS, strict=True)]
row += [figures.Panel(image, title=name) for name, image in scans.items()]
fig = figures.map_grid([row], groups=[("Tissue", 3), ("What the reference settings show", 3)])

# %% [markdown]
# T1w and FLAIR look as a radiologist expects. The T2w does not: white and grey matter have almost vanished, and we shall
# see below why. First the lost sign.

# %%
ti, trs = torch.linspace(0, 6, 400)[:, None].double(), np.linspace(0.5, 12, 200)
signed = physics.flair(pd, t1, t2, te=0.091, tr=9.0, ti=ti)
fig, axes = plt.subplots(1, 4, figsize=(7, 2.2), width_ratios=(1.7, 1.5, 1, 1), layout="constrained")
for k, name in enumerate(tissues):
    colour = figures.TISSUE_COLOURS[name]
    axes[0].plot(ti, signed[:, k].abs(), color=colour, label=name)
    axes[0].plot(ti, signed[:, k], color=colour, ls="--", lw=0.8)
    axes[1].plot(trs, [physics.null_ti(tissues[name][1], tr, "FLAIR") for tr in trs], color=colour)
    axes[1].axhline(tissues[name][1] * np.log(2), color=colour, ls=":", lw=0.8)
axes[0].axhline(0, color="0.6", lw=0.6, zorder=0)
axes[0].set(xlabel="TI (s), FLAIR, TR 9 s", ylabel="signal (water = 1)", xlim=(0, 6), ylim=(-0.9, 1.1))
axes[0].legend(ncols=3, loc="upper center", columnspacing=0.8, handlelength=1)
axes[1].plot(9.0, 2.5, "o", color="0.2")
axes[1].text(9, 1.9, "the paper's\nFLAIR", ha="center", va="top", size=7)
axes[1].set(xlabel="TR (s)", ylabel="null TI (s)", xlim=(0, 12), ylim=(0, 3.2), xticks=range(0, 13, 3))
early = physics.mprage(*maps, te=0.003, tr=2.4, ti=0.6)
figures.show_image(axes[2], early, (-0.2, 0.2))
axes[2].images[0].set(cmap=plt.get_cmap("RdBu_r").with_extremes(bad="black"), array=np.where(head, early, np.nan))
figures.show_image(axes[3], early.abs(), (0, 0.2))
axes[2].set_xlabel("signed")
axes[3].set_xlabel("magnitude")
caption = """Null points. (a) FLAIR signal (TE 91 ms, TR 9 s): magnitude solid, sign dashed. (b) Null TI against TR,
and its limit T1 ln 2 (dotted). (c, d) One MPRAGE, TE 3 ms, TR 2.4 s, TI 0.6 s, n = 1 slice: blue is negative
(window ±0.2 of water), white is zero, and the scanner shows (d)."""
alt = "Curves crossing zero once; null inversion times rising with TR; one slice signed, and as magnitude."
publish(fig, axes, "fig07_null_points", caption, alt)

# %% [markdown]
# **Figure 7.** (c) and (d) are one acquisition. Comparing a signed prediction with a magnitude image, as the published
# code does, asks a network to make grey matter and CSF negative and positive at once. Here the physics keeps the sign,
# and `render` takes the magnitude, once, at the very end.
#
# ## A protocol that no scanner can run
# One of the nine "unseen" settings of the paper's Figure 4 has TI 1 s within TR 0.1 s. The equation does not mind.

# %%
try:
    Protocol("MPRAGE", te=0.003, tr=0.1, ti=1.0)
except ProtocolError as refusal:
    print("refused:", refusal)
nearest = Protocol("MPRAGE", te=0.003, tr=1.1, ti=1.0)
settings = {"as published, TR 0.1 s": UNSEEN[0], "the shortest TR that holds it, 1.1 s": nearest}
pandas.DataFrame({name: physics.render((pd, t1, t2), p) for name, p in settings.items()}, index=list(tissues)).round(3)

# %% [markdown]
# We render it for the sake of Figure 4 (`as_published=True`), mark it there, and where we report an error over the nine
# settings, say it with and without this one.
#
# ## Which TE? The nominal and the effective one
# Most T2w scans of OASIS-3 carry TE 455 ms. **Predict:** what per cent of its signal has white matter left by then?

# %%
nominal = 0.455  # s
left = 100 * torch.exp(-nominal / t2)
print("left at TE 455 ms by plain decay:", ", ".join(f"{n} {v:.2f} %" for n, v in zip(tissues, left, strict=True)))

# %% [markdown]
# Yet on the real images white matter is plainly visible. They come from long echo trains whose refocusing pulses are far
# weaker than 180°. Such a pulse stores part of the magnetisation along the field, where it decays with T1, ten times
# slower than with T2, and brings it back later. An *extended phase graph* follows these paths: `plus` and `minus` hold
# the dephased transverse, `z` the stored magnetisation, one entry per turn of dephasing.

# %%
def echo_train(flip_deg, spacing, t1, t2):
    """Echoes of a train after a perfect 90° pulse, PD 1, one per refocusing angle (degrees); times in s."""
    plus, minus, z = np.zeros((3, len(flip_deg) + 2))
    plus[0] = minus[0] = 1
    e1, e2, echoes = np.exp(-spacing / 2 / t1), np.exp(-spacing / 2 / t2), []
    for a in np.deg2rad(flip_deg):
        plus, minus, z = np.r_[minus[1], plus[:-1]] * e2, np.r_[minus[1:], 0] * e2, z * e1  # half a spacing passes
        c, s = np.cos(a / 2) ** 2, np.sin(a / 2) ** 2
        turned = c * plus + s * minus + np.sin(a) * z, s * plus + c * minus - np.sin(a) * z
        z = np.cos(a) * z - np.sin(a) / 2 * (plus - minus)
        plus, minus, z = np.r_[turned[1][1], turned[0][:-1]] * e2, np.r_[turned[1][1:], 0] * e2, z * e1
        echoes.append(plus[0])
    return np.array(echoes)


# %% [markdown]
# With 180° everywhere it must return plain decay. For the rest we let the angle fall from 180° to a plateau within eight
# pulses: the simplest such train (vendors vary it further, and no header tells how). The *contrast-equivalent* TE is the
# time of plain decay that costs a tissue as much as relaxation in the train did: $TE_{eff} = -T_2 \ln(S / S_{\text{no
# relaxation}})$ (Busse et al. 2006).

# %%
n_echoes, spacing = 282, 0.0035  # about a second of train
echo_times = spacing * np.arange(1, n_echoes + 1)
at_nominal = round(nominal / spacing) - 1
plain = echo_train(np.full(n_echoes, 180), spacing, 0.9, 0.075)
print(f"180° train against exp(−t/T2): largest difference {np.abs(plain - np.exp(-echo_times / 0.075)).max():.0e}")


def train_of(plateau, t1, t2):
    return echo_train(np.interp(np.arange(n_echoes), [0, 8], [180, plateau]), spacing, t1, t2)


def ratio(plateau, t1, t2):
    """Contrast-equivalent over nominal TE."""
    kept = train_of(plateau, t1, t2)[at_nominal] / train_of(plateau, 1e9, 1e9)[at_nominal]
    return -t2 * np.log(kept) / nominal


# %%
angles = [15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 180]
ratios = pandas.DataFrame({name: [ratio(a, v[1], v[2]) for a in angles] for name, v in tissues.items()}, index=angles)
effective = physics.effective_te(nominal, "spin echo")
print(f"the cohort's rule: {1000 * nominal:.0f} ms nominal is {1000 * effective:.0f} ms effective")
print(f"a fit that trusts 455 ms would report T2 of WM as {tissues['WM'][2] * nominal / effective:.2f} s")
ratios.loc[[15, 20, 30, 60, 180]].rename_axis("plateau (°)").round(2)

# %%
fig, axes = plt.subplots(1, 4, figsize=(7, 2.2), width_ratios=(1.7, 1.5, 1, 1), layout="constrained")
for name, (_, *times) in tissues.items():
    colour = figures.TISSUE_COLOURS[name]
    axes[0].semilogy(echo_times, train_of(20, *times), color=colour, label=name)
    axes[0].semilogy(echo_times, np.exp(-echo_times / times[1]), color=colour, ls="--", lw=0.8)
    axes[1].plot(angles, ratios[name], color=colour)
axes[0].axvline(nominal, color="0.3", lw=0.8, ls=":")
axes[0].set(xlabel="time after excitation (s)", ylabel="signal (PD = 1)", ylim=(1e-3, 1.1), xlim=(0, 1))
axes[0].legend(loc="lower left", handlelength=1, borderaxespad=0.2)
axes[1].axhline(physics.EFFECTIVE_TE_RATIO, color="0.3", lw=0.8, ls=":")
axes[1].set(xlabel="plateau angle (°)", ylabel="effective / nominal TE", ylim=(0, 1.03), xticks=[0, 60, 120, 180])
for ax, te, label in zip(axes[2:], (nominal, effective), ("TE 455 ms", "TE 100 ms"), strict=True):
    figures.show_image(ax, physics.render(maps, Protocol("spin echo", te=te, tr=3.2)), (0, 0.5))
    ax.set_xlabel(label)
caption = """The echo time of a variable-flip-angle train. (a) Echoes of a train whose refocusing angle falls to 20°
(solid) and plain T2 decay (dashed); dotted: 455 ms. (b) Contrast-equivalent over nominal TE against the plateau
angle; dotted: the ratio 0.22 that the cohort assumes. (c, d) Spin echo, TR 3.2 s, at the nominal and the effective
TE, one window (n = 1 slice)."""
alt = "White matter decays far slower in the train than by T2 alone; effective TE falls to a quarter of nominal."
publish(fig, axes, "fig08_effective_te", caption, alt)

# %% [markdown]
# **Figure 8.** (c) is what equation 2 predicts at the nominal TE, (d) what such scans look like. A model that must explain
# (d) with 455 ms has one way out: a T2 four to five times too long. That is a likely reason why the paper shows T2 in a window up to 5.6 s.
#
# (b) holds a warning too. White and grey matter nearly share a ratio, 0.22 to 0.32 on plateaus of 15° to 30°; CSF has
# another, 0.6 to 0.7. One effective TE per scan (we assume a ratio of 0.22) can be right for brain tissue, and is then too short
# for CSF. And since the angles are in no header, T2 from such a scan is known only up to the assumed ratio.
#
# ## What the short FLAIR form leaves out
# Equation 3 forgets the refocusing pulse: at TI + TE/2 it turns over what has regrown along the field since the
# excitation. Keeping it gives
# $$S = \rho\,\big(1 - 2e^{-TI/T_1} + 2e^{-(TR - TE/2)/T_1} - e^{-TR/T_1}\big)\,e^{-TE/T_2}, \qquad (4)$$
# and a long train of pulses, which holds the magnetisation near zero until it ends after a time $D$, acts like (3) with
# $TR - D$ in place of $TR$. To check, step through the sequence, pulse by pulse, until it repeats itself.

# %%
def mz_at_readout(t1, tr, ti, pulses=()):
    """Longitudinal magnetisation at TI in the steady state; ``pulses``: refocusing times after the excitation (s)."""
    mz = 1.0
    for _ in range(5):  # the 90° pulse forgets the past: steady from the second repetition on
        mz = at_readout = 1 - (1 + mz) * np.exp(-ti / t1)  # inverted, then TI of recovery
        mz, now = 0.0, 0.0  # the 90° pulse
        for pulse in pulses:
            mz, now = -(1 - (1 - mz) * np.exp(-(pulse - now) / t1)), pulse
        mz = 1 - (1 - mz) * np.exp(-(tr - ti - now) / t1)
    return at_readout


# %%
te, train = 0.1, 0.01 * (np.arange(40) + 0.5)  # s; 40 pulses, every 10 ms
rows = {}
for tr in (3.0, 9.0):
    for name, (_, t1_here, _) in tissues.items():
        short_form = 1 - 2 * np.exp(-0.7 / t1_here) + np.exp(-tr / t1_here)
        exact = short_form + 2 * np.exp(-tr / t1_here) * np.expm1(te / 2 / t1_here)
        stepped = [mz_at_readout(t1_here, tr, 0.7, pulses) for pulses in ([], [te / 2], train)]
        rows[f"TR {tr:g} s", name] = [short_form, stepped[0], exact, *stepped[1:]]
columns = ["eq. 3", "no pulse, stepped", "eq. 4", "one pulse, stepped", "0.4 s train, stepped"]
stepping = pandas.DataFrame(rows, index=columns).T
stepping.round(4)

# %% [markdown]
# Equations and stepping agree. What the short form leaves out is $2e^{-TR/T_1}(e^{TE/2T_1} - 1)$ for one pulse, and
# $e^{-TR/T_1}(e^{D/T_1} - 1)$ for a train: it fades with TR, and TI has no part in it. How long must TR be?

# %%
trs = np.linspace(1.5, 12, 120)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.3), sharey=True, layout="constrained")
for name, (_, t1_here, _) in tissues.items():
    left_out = 2 * np.expm1(te / 2 / t1_here), np.expm1(0.4 / t1_here)
    for ax, factor, pulses in zip(axes, left_out, ([te / 2], train), strict=True):
        ax.semilogy(trs, 100 * factor * np.exp(-trs / t1_here), color=figures.TISSUE_COLOURS[name], label=name)
        steps = [mz_at_readout(t1_here, tr, 0.7, pulses) - mz_at_readout(t1_here, tr, 0.7) for tr in trs[::15]]
        ax.plot(trs[::15], 100 * np.array(steps), "o", color=figures.TISSUE_COLOURS[name])
for ax, label in zip(axes, ("one refocusing pulse, TE 100 ms", "a train of 0.4 s"), strict=True):
    ax.axhline(1, color="0.3", lw=0.8, ls=":")
    ax.axvline(9, color="0.3", lw=0.8, ls=":")
    ax.set(xlabel=f"TR (s), {label}", xlim=(1.5, 12), ylim=(0.01, 30))
axes[0].set(ylabel="left out (% of full recovery)")
axes[1].legend(loc="upper right")
caption = """What equation 3 leaves out of an inversion-recovery spin echo, before T2 decay, against TR. Lines:
closed forms; dots: the sequence stepped pulse by pulse (n = 1 spin per tissue; its protocol is on the axis). Dotted:
1 %, and the FLAIR of the paper, TR 9 s."""
alt = "The neglected term falls exponentially with TR, slowest for CSF, and is larger for a pulse train."
publish(fig, axes, "fig09_short_form", caption, alt)

# %% [markdown]
# **Figure 9.** At TR 9 s one refocusing pulse changes the recovery by 0.3 % in CSF and by far less in grey and white
# matter: the short form is enough for any clinical FLAIR. A train leaves it enough for grey and white matter, but moves CSF by
# 1.2 %. So do not ask the short form how well CSF was nulled, least of all at the TR of 5 s that some OASIS-3 FLAIR scans
# use.
#
# ## Which scan knows what
# The package's equations are differentiable, which is how the model learns tissue from scans. The derivatives also say what
# can be learnt: here $J$, the change of each signal per relative change of PD, T1 or T2. From now on the T2w scan is a spin
# echo with TE 100 ms.

# %%
scans_used = {"T1w": REFERENCE["T1w"], "T2w": CLINIC["T2w spin echo"], "FLAIR": REFERENCE["FLAIR"]}
batch = torch.stack([p.settings() for p in scans_used.values()]).double()[None]


def signals(log_values):
    """Three signed signals of one tissue from log PD, log T1, log T2."""
    return physics.signed_signal(TissueMaps(*log_values.exp()[:, None, None, None]), batch).flatten()


jacobians = {
    name: torch.autograd.functional.jacobian(signals, torch.tensor(values, dtype=torch.float64).log())
    for name, values in tissues.items()
}
sensitivity = pandas.DataFrame(
    np.hstack([j.numpy() for j in jacobians.values()]),
    index=list(scans_used),
    columns=[f"{name} {quantity}" for name in tissues for quantity in figures.MAPS],
)

# %% [markdown]
# **Predict:** T1w, T2w and FLAIR are three numbers per voxel, and tissue has three unknowns. Is everything determined?
#
# Noise of 1 % of water's signal and the paper's prior (a log-normal of unit SD on each property, so an error of 100 % without
# any scan) turn $J$ into an expected error: the square root of the diagonal of $(J^\top J/\sigma^2 + I)^{-1}$.

# %%
noise = 0.01
subsets = {"T1w": [0], "T1w + T2w": [0, 1], "T1w + FLAIR": [0, 2], "all three": [0, 1, 2]}


def expected_error(jacobian, rows, sd=noise):
    """SD (%) of PD, T1 and T2 from these scans of one voxel."""
    information = jacobian[rows].T @ jacobian[rows] / sd**2 + torch.eye(3)
    return 100 * torch.linalg.inv(information).diagonal().sqrt().numpy()


errors = pandas.DataFrame(
    {scans: np.concatenate([expected_error(j, rows) for j in jacobians.values()]) for scans, rows in subsets.items()},
    index=sensitivity.columns,
).T

# %%
fig, axes = plt.subplots(2, 1, figsize=(7, 3), height_ratios=(3, 4), layout="constrained")
change = (10 * sensitivity).map(lambda v: f"{v:.1f}".replace("-0.0", "0.0").replace("-", "−"))
look = {"cbar": False, "linewidths": 0.5, "annot_kws": {"size": 7}}
sns.heatmap(10 * sensitivity, ax=axes[0], cmap="RdBu_r", center=0, annot=change, fmt="", **look)
sns.heatmap(errors, ax=axes[1], cmap="rocket_r", norm="log", annot=True, fmt=".0f", **look)
for ax, label in zip(axes, ("% of water, per +10 %", "expected error (%)"), strict=True):
    ax.set(xlabel="", ylabel="")
    ax.set_title(label, size=8)
    ax.tick_params(rotation=0, length=0)
caption = """Which scan knows what (median in-vivo tissue; TE, TR, TI: MPRAGE 3 ms, 2.4 s, 1 s; spin echo 100 ms, 5
s; FLAIR 91 ms, 9 s, 2.5 s). (a) Change of the signed signal, in % of water, when a property rises by 10 %. (b)
Expected error (SD, %) of each property from one voxel (n = 1): noise 1 % of water, log-normal prior of unit SD, gain
and sign known."""
alt = "Two heat maps: sensitivity of three scans to nine tissue properties, and the error that combinations leave."
publish(fig, axes, "fig10_sensitivity", caption, alt)

# %% [markdown]
# **Figure 10.** Three numbers, three unknowns, and yet white matter T1 keeps an error of 25 % and its PD 40 %. T2w and FLAIR
# say nearly the same about white and grey matter: both rise with PD and T2 alike. CSF is another world: T1 and PD are
# pinned down, while T2 is not known at all, because no echo waits long enough for CSF to decay.
#
# So whoever reports 10 % from these scans has put in more than the scans: neighbouring voxels, and a tighter prior. That is what
# the network of notebook 03 learns, and why its CSF T2 should not be believed.

# %%
folder = Path(run_dir) / "metrics"
numbers = {"null_points": nulls.rename_axis("tissue"), "effective_te_ratio": ratios.rename_axis("plateau (degrees)")}
numbers |= {"short_form": stepping.rename_axis(["TR", "tissue"])}
numbers |= {"expected_error": errors.rename_axis("scans (error in %)")}
for name, frame in numbers.items():
    write_atomically(folder / f"{name}.csv", frame.reset_index().to_csv(index=False).encode())

# %% [markdown]
# ## What we learned
# - TI and TR sort tissue by T1, TE by T2; PD is seen when both are out of the way (Figure 6).
# - $TI_0 = T_1 \ln 2$ holds for long TR only: at TR 9 s CSF is nulled at 2.48 s, not at 2.98 s (Figure 7).
# - The magnitude hides a sign; keep it until the last step (Figure 7).
# - A nominal TE of 455 ms leaves white matter 0.23 % of its signal. Taken literally it inflates T2 four to five times
#   (Figure 8).
# - The short FLAIR form is enough at TR 9 s except for CSF after a long train (Figure 9).
# - The usual three scans leave white matter T1 uncertain by a quarter and CSF T2 undetermined; the rest is prior
#   (Figure 10).
#
# ## Exercises
# 1. At TR 2.4 s there is a TI at which an MPRAGE shows no border between white and grey matter. Find it, and see it below
#    in the explorer.
# 2. STIR suppresses fat. Which TI does it take, and why must STIR not be used after a contrast agent?
# 3. How many voxels must be averaged until the three scans alone give white matter T1 to 5 %?
#
# <details><summary>Solution 1</summary>
#
# Between the two null points (0.573 and 0.750 s) white matter is positive and grey matter negative; the magnitudes meet where
# the signed signals add up to zero:
#
# ```python
# ti = torch.linspace(0.573, 0.75, 2000)[:, None].double()
# signal = physics.mprage(pd, t1, t2, te=0.003, tr=2.4, ti=ti)
# ti[(signal[:, 0] + signal[:, 1]).abs().argmin()]  # 0.654 s
# ```
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# t1_fat = table.median[table.tissues.index("fat"), 1]  # 0.378 s
# physics.null_ti(t1_fat, tr=5.0, sequence="FLAIR")     # 0.262 s
# ```
# A short TI nulls whatever has that T1, not fat as such. A contrast agent shortens T1; tissue that takes it up can land on
# the same null point and vanish where it should light up.
# </details>
#
# <details><summary>Solution 3</summary>
#
# Averaging n voxels divides the noise by √n:
#
# ```python
# next(n for n in range(1, 1000) if expected_error(jacobians["WM"], [0, 1, 2], noise / n**0.5)[1] <= 5)  # 36
# ```
# </details>

# %% [markdown]
# ## Explore
# Choose a slice and a preset, drag the times, and watch image, curves, null points and the voxel under the cross. Sliders stop
# where physics does and say why. Everything works from the keyboard: Tab to a slider, then the arrow keys. **Predict** before each
# drag: T2w spin echo, TE from 10 to 400 ms; FLAIR, TI from 2.5 s down to 0.2 s; MPRAGE at 0.654 s.

# %%
explorer = ContrastExplorer({f"MNI152 template, z = {z} mm": maps_at(z) for z in (12, 24, 40)}, tissues=tissues)
explorer

# %% [markdown]
# Without a running kernel the controls stay dark; this is what they show at the start.

# %%
explorer.still()

# %% [markdown]
# ## Limits
# One compartment per voxel, no magnetisation transfer, no flow, no T2*, perfect pulses. MPRAGE's equation treats the readout as one
# moment that disturbs nothing; a real readout lasts a second and blurs (1) over TI. The echo train of Figure 8 is ours, not a
# vendor's. Noise enters in [02](02_cohort.ipynb).
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532: the equations.
# - J. P. Mugler, J. R. Brookeman, *Magn Reson Med* 1990;15:152: MPRAGE. B. De Coene et al., *AJNR* 1992;13:1555: FLAIR.
# - R. F. Busse et al., *Magn Reson Med* 2006;55:1030 and 2008;60:640: contrast-equivalent TE.
# - M. Weigel, *J Magn Reson Imaging* 2015;41:266: extended phase graphs.

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
# **Question.** Given PD, T1 and T2, what does a scanner show, and what do TE, TR, TI and the flip angle change?
#
# **You will** plot the three signal equations of the paper, null CSF, see two pitfalls that spoil a fitted T2, find
# which scan determines which property, and change every setting in an explorer. *Runs in seconds.*
#
# [Contents](00_overview.ipynb) · next: [02 The cohort](02_cohort.ipynb) · the explorer as one file, without Python:
# [explore.html](../figures/explore.html)

# %% tags=["parameters"]
profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../runs/laptop/figures"
anatomies = ""
seed = 7

# %%
import numpy as np
import pandas
import torch

from phyldm_core import figures, physics, tissue
from phyldm_core.explorers.console import CLINIC, PRESETS
from phyldm_core.explorers.contrasts import ContrastExplorer
from phyldm_core.explorers.people import find_subjects, weights_of
from phyldm_core.people import cohort
from phyldm_core.physics import REFERENCE, Protocol, TissueMaps
from phyldm_core.running.chapter import open_chapter

run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)

# %% [markdown]
# ## Three tissues and three equations
# Nine numbers are enough for this chapter: the medians of what has been measured in living brains at 3 T. PD is
# relative to water. Times are in seconds, here and in all chapters.

# %%
table = tissue.in_vivo_3t()
tissues = {name: tuple(table.median[table.tissues.index(name)].round(3)) for name in ("WM", "GM", "CSF")}
pd, t1, t2 = torch.tensor(list(tissues.values()), dtype=torch.float64).T
pandas.DataFrame(tissues, index=["PD (of water)", "T1 (s)", "T2 (s)"]).T

# %% [markdown]
# The paper (section 2.2) renders every scan by one of three equations. Each is a product of three factors: the proton
# density ρ (PD), the recovery along the field (T1), and the signal that is left at the echo (T2).
#
# $$\text{MPRAGE:}\quad S = \rho\,\Big(1 - \frac{2e^{-TI/T_1}}{1 + e^{-TR/T_1}}\Big)\,e^{-TE/T_2} \qquad (1)$$
#
# $$\text{spin echo:}\quad S = \rho\,\big(1 - e^{-TR/T_1}\big)\,e^{-TE/T_2} \qquad (2)$$
#
# $$\text{FLAIR:}\quad S = \rho\,\big(1 - 2e^{-TI/T_1} + e^{-TR/T_1}\big)\,e^{-TE/T_2} \qquad (3)$$
#
# In an inversion sequence, TR is the time from one inversion to the next.
#
# **Predict:** CSF holds the most water of the three. In which of the panels below is it the darkest tissue all the
# same?

# %%
times = {"TI": torch.linspace(0, 2.4, 400), "TR": torch.linspace(0.001, 8, 400), "TE": torch.linspace(0.001, 0.4, 400)}
ti, tr, te = (time[:, None].double() for time in times.values())
curves = {
    "TI (s), MPRAGE, TR 2.4 s": (ti, physics.mprage(pd, t1, t2, te=0.003, tr=2.4, ti=ti), 1.0),
    "TR (s), spin echo, TE 10 ms": (tr, physics.spin_echo(pd, t1, t2, te=0.01, tr=tr), 0.6),
    "TE (s), spin echo, TR 5 s": (te, physics.spin_echo(pd, t1, t2, te=te, tr=5.0), 0.1),
}
fig = figures.signal_curves(curves, list(tissues))
caption = """Signal against one time of the protocol. White matter, grey matter and CSF (medians in vivo at 3 T), the
other times fixed; dotted: a usual setting. (a) MPRAGE, TE 3 ms, equation 1. (b, c) Spin echo, equation 2. No noise (n
= 1 voxel of each tissue)."""
alt = "Line charts. Over TI all tissues rise from negative to positive. Over TR they saturate. Over TE they decay."
publish(fig, "fig06_signal_curves", caption, alt)

# %%
at_usual = {label: signal[(time[:, 0] - usual).abs().argmin()] for label, (time, signal, usual) in curves.items()}
pandas.DataFrame(at_usual, index=list(tissues)).round(2)

# %% [markdown]
# **Figure 6.** At the dotted settings CSF is the darkest tissue in (a) and (b), because it recovers most slowly: these
# images are T1 weighted. In (c) it is the brightest, because it decays most slowly: this image is T2 weighted. TI and
# TR separate the tissues by T1, and TE separates them by T2. With a long TR and a short TE, the contrast depends on PD
# only.
#
# ## Null points, and a sign that is lost
# After an inversion every tissue crosses zero once, where $2e^{-TI/T_1} = 1 + e^{-TR/T_1}$ in (1) and in (3):
# $TI_0 = T_1 \ln\frac{2}{1 + e^{-TR/T_1}}$. FLAIR is read out at the null point of CSF.
#
# **Predict:** for a long TR the null point is $T_1 \ln 2$, which is 3.0 s for CSF. Is a FLAIR with TR 9 s read out
# earlier or later?

# %%
nulls = {f"TR {tr:g} s": [physics.null_ti(v[1], tr, "FLAIR") for v in tissues.values()] for tr in (2.4, 5.0, 9.0)}
nulls["T1 ln 2"] = [values[1] * np.log(2) for values in tissues.values()]
before = 1 - float(torch.exp(-(9.0 - 2.5) / t1[2]))  # what CSF regrows between the readout and the next inversion
print(f"CSF, TR 9 s: {before:.2f} of full magnetisation at the next inversion, so it restarts from −{before:.2f}")
pandas.DataFrame(nulls, index=list(tissues)).round(3)

# %%
def slice_of(person):
    """PD, T1 and T2 of the middle slice of a simulated person."""
    return TissueMaps(*person.maps[len(person.maps) // 2].double().unbind(0))


maps = slice_of(cohort.simulate(cohort.CohortRecipe().subjects()[0], cohort.CohortRecipe()))
inversion = Protocol("MPRAGE", te=0.003, tr=2.4, ti=0.6)
fig = figures.null_points(tissues, REFERENCE["FLAIR"], maps, inversion)
caption = """Null points, and a sign that is lost. (a) FLAIR signal (TE 91 ms, TR 9 s): magnitude solid, signed
dashed. (b) Null TI against TR, and its limit T1 ln 2 (dotted). (c, d) One MPRAGE, TE 3 ms, TR 2.4 s, TI 0.6 s, n = 1
slice: blue is negative (window ±0.2 of water), and the scanner shows (d)."""
alt = "Curves crossing zero once; null inversion times rising with TR; one slice signed, and as magnitude."
publish(fig, "fig07_null_points", caption, alt)

# %% [markdown]
# **Figure 7.** The FLAIR is read out earlier: at 2.48 s instead of 2.98 s. At TR 9 s CSF has regrown to only 0.78 of
# its magnetisation when the next inversion comes, so it starts from −0.78 and reaches zero sooner. Panels (c) and (d)
# show one acquisition, signed and as magnitude. A scan is a magnitude image and has no sign. The published code
# compares it with a signed prediction. Our code keeps the sign, and `render` takes the magnitude as its last step.
#
# One of the paper's nine "unseen" settings has TI 1 s and TR 0.1 s. TI cannot be longer than TR: no scanner can run it,
# and `Protocol` refuses it.
#
# ## Which TE: nominal or effective?
# Most T2w scans of OASIS-3 have a TE of 455 ms in the header.
#
# **Predict:** how much of white matter's signal is left after 455 ms of plain decay: 20 %, 2 % or 0.2 %?

# %%
nominal, effective = 0.455, physics.effective_te(0.455, "spin echo")
left = 100 * torch.exp(-nominal / t2)
print("left at TE 455 ms:", ", ".join(f"{n} {v:.2f} %" for n, v in zip(tissues, left, strict=True)))

# %% [markdown]
# On the real images white matter is clearly visible. These scans use long echo trains with refocusing pulses far below
# 180°. Such a pulse stores a part of the magnetisation along the field. There it decays with T1, ten times slower than
# with T2. An *extended phase graph* computes the signal of all these pathways.

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
# The angle falls from 180° to a plateau within eight pulses, which is the simplest train of this kind. The
# *contrast-equivalent* TE is the TE at which plain T2 decay loses as much signal as relaxation in the train does (Busse
# et al. 2006).

# %%
echo_times = 0.0035 * np.arange(1, 283)  # s; about a second of train


def train_of(plateau, t1, t2):
    return echo_train(np.interp(np.arange(282), [0, 8], [180, plateau]), 0.0035, t1, t2)


def ratio(plateau, t1, t2):
    """Contrast-equivalent over nominal TE."""
    kept = train_of(plateau, t1, t2)[129] / train_of(plateau, 1e9, 1e9)[129]  # echo 130 is at 455 ms
    return -t2 * np.log(kept) / nominal


angles = [15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 180]
ratios = pandas.DataFrame({name: [ratio(a, v[1], v[2]) for a in angles] for name, v in tissues.items()}, index=angles)

# %%
trains = {n: (echo_times, train_of(20, *v[1:]), np.exp(-echo_times / v[2])) for n, v in tissues.items()}
images = {f"TE {1000 * te:.0f} ms": physics.render(maps, Protocol("spin echo", te, 3.2)) for te in (nominal, effective)}
fig = figures.effective_echo_time(trains, ratios, images, nominal, physics.EFFECTIVE_TE_RATIO)
caption = f"""The echo time of a train of weak pulses. (a) Echoes of a train whose refocusing angle falls to 20°
(solid), and plain T2 decay (dashed); dotted: 455 ms. (b) Contrast-equivalent over nominal TE against the plateau
angle; dotted: the ratio {physics.EFFECTIVE_TE_RATIO:g} that the cohort assumes. (c, d) Spin echo, TR 3.2 s, at both
TE, one window (n = 1)."""
alt = "White matter decays far slower in the train than by T2 alone; effective TE falls to a quarter of nominal."
publish(fig, "fig08_effective_te", caption, alt)
ratios.loc[[15, 20, 30, 60, 180]].rename_axis("plateau (°)").round(2)

# %% [markdown]
# **Figure 8.** With plain decay, 0.2 % of white matter's signal is left, as in (c). Real scans look like (d). From (d)
# alone and TE 455 ms, a model infers a T2 that is 4.5 times too long. If a FLAIR with a correct TE is added, no T2 fits
# both scans ([09](09_how_right_is_it.ipynb) shows what happens). In (b), for plateaus of 15° to 30°, the ratio is 0.23
# to 0.31 in white and grey matter and 0.66 to 0.70 in CSF. The cohort assumes 0.22, just below this range. No header
# gives the angles, so T2 from such a scan is only as right as the assumed ratio.
#
# Equation 3 is an approximation, too. It ignores the effect of the refocusing pulses on the magnetisation that regrows
# during the train. For a train of length $D$ the missing term is $e^{-TR/T_1}(e^{D/T_1} - 1)$.

# %%
missing = {f"TR {tr:g} s": 100 * np.exp(-tr / t1.numpy()) * np.expm1(0.4 / t1.numpy()) for tr in (5.0, 9.0)}
pandas.DataFrame(missing, index=list(tissues)).rename_axis("left out by equation 3, train of 0.4 s (%)").round(2)

# %% [markdown]
# In white and grey matter the missing term is below 1 % at either TR. In CSF it is 1.2 % at TR 9 s, and 3 % at TR 5 s,
# which some OASIS-3 FLAIR scans use. So equation 3 cannot predict how well a real FLAIR nulls CSF.
#
# ## Which scan tells which property?
# The derivatives of the signal equations give the error to expect. The noise SD σ is 1 % of water's signal. The paper's
# prior is log-normal with unit SD for each property. The expected error is then the square root of the diagonal of
# $(J^\top J/\sigma^2 + I)^{-1}$. $J$ holds the change of each signal per relative change of a property.
#
# **Predict:** T1w, T2w and FLAIR are three numbers per voxel, and tissue has three unknowns. Are they all determined?

# %%
scans = {"T1w": REFERENCE["T1w"], "T2w": CLINIC["T2w spin echo"], "FLAIR": REFERENCE["FLAIR"]}
batch = torch.stack([p.settings() for p in scans.values()]).double()[None]


def signals(log_values):
    """Three signed signals of one tissue from log PD, log T1, log T2."""
    return physics.signed_signal(TissueMaps(*log_values.exp()[:, None, None, None]), batch).flatten()


logs = {name: torch.tensor(values, dtype=torch.float64).log() for name, values in tissues.items()}
jacobians = {name: torch.autograd.functional.jacobian(signals, x) for name, x in logs.items()}

# %%
def expected_error(jacobian, rows, sd=0.01):
    """SD (%) of PD, T1 and T2 from these scans of one voxel."""
    information = jacobian[rows].T @ jacobian[rows] / sd**2 + torch.eye(3)
    return 100 * torch.linalg.inv(information).diagonal().sqrt().numpy()


subsets = {"T1w": [0], "T1w + T2w": [0, 1], "T1w + FLAIR": [0, 2], "all three": [0, 1, 2]}
names = [f"{name} {quantity}" for name in tissues for quantity in figures.MAPS]
errors = {s: np.concatenate([expected_error(j, rows) for j in jacobians.values()]) for s, rows in subsets.items()}
errors = pandas.DataFrame(errors, index=names).T
changes = pandas.DataFrame(10 * np.hstack([j.numpy() for j in jacobians.values()]), index=list(scans), columns=names)

# %%
fig = figures.sensitivity(changes, errors)
caption = f"""Which scan tells which property. Median in-vivo tissue; {"; ".join(map(str, scans.values()))}. (a)
Change of the signed signal, in % of water, when a property rises by 10 %. (b) Expected error (SD, %) from one voxel
(n = 1): noise 1 % of water, log-normal prior of unit SD, gain and sign known."""
alt = "Two heat maps: sensitivity of three scans to nine tissue properties, and the error that combinations leave."
publish(fig, "fig09_sensitivity", caption, alt)
run.write_metrics("expected_error", errors.rename_axis("scans (error in %)").reset_index())
errors.loc[["all three"]].round(0).astype(int)

# %% [markdown]
# **Figure 9.** No. With all three scans, the error in white matter is still 27 % for T1 and 42 % for PD (table). T2w
# and FLAIR carry nearly the same information about white and grey matter, since both rise with PD and with T2. T2 of
# CSF is not determined: no TE is long enough. A smaller error needs other information: neighbouring voxels, or a
# tighter prior. The network of chapter 03 uses both.
#
# ## The flip angle
# A *spoiled gradient echo* turns the magnetisation by an angle α only, and returns after milliseconds:
# $$S = \rho\,\sin\alpha\,\frac{1 - E_1}{1 - E_1\cos\alpha}\,e^{-TE/T_2}, \qquad E_1 = e^{-TR/T_1}$$
# A real echo of this kind decays with T2*. The maps hold no T2*, so T2 stands for it.
#
# **Predict:** at TR 20 ms, which tissue is the brightest at 3°, and which at 30°?

# %%
flips = (3, 6, 12, 30)
echoes = physics.spoiled_gradient_echo(*(v.numpy() for v in (pd, t1, t2)), 0.004, 0.02, np.radians(flips)[:, None])
by_angle = pandas.DataFrame(np.asarray(echoes).T, index=list(tissues), columns=[f"{a}°" for a in flips]).round(3)
by_angle.assign(**{"Ernst angle (°)": [round(float(np.degrees(physics.ernst_angle(t, 0.02))), 1) for t in t1.tolist()]})

# %% [markdown]
# CSF is the brightest at 3°, where nothing saturates and only PD counts. White matter is the brightest at 30°, because
# it recovers fastest between two pulses. Each tissue is brightest at its Ernst angle, $\cos\alpha = E_1$.
#
# ## Explore
# Choose a preset, drag the times, and watch image, curves, null points and the voxel under the cross. Tick *two
# protocols* to compare two. Sliders stop at settings that no scanner can run, and the top line gives the reason.
# Without a running kernel the controls do not work. The picture below them shows the first setting. By keyboard: Tab to
# a slider, then the arrow keys. **Predict** before each drag: spin echo, TE from 10 to 400 ms; FLAIR, TI from 2.5 s
# down to 0.2 s; MPRAGE at TI 0.63 s.

# %%
subjects = {"simulated person": maps} | find_subjects(run_dir, seed=seed)
explorer = ContrastExplorer(subjects, weights_dir=weights_of(run_dir))
explorer.show(PRESETS["T2-FLAIR"])
explorer

# %%
explorer.still()

# %% [markdown]
# ## What we learned
# - TI and TR separate tissue by T1, and TE separates it by T2 (Figure 6).
# - At TR 9 s CSF is nulled at 2.48 s and not at $T_1 \ln 2$ = 2.98 s (Figure 7).
# - Plain decay for a nominal TE of 455 ms leaves 0.2 % of white matter's signal. Fitted with this TE and without a
#   FLAIR, T2 is 4.5 times too long (Figure 8).
# - The usual three scans leave T1 of white matter uncertain by a quarter and T2 of CSF unknown (Figure 9).
#
# ## Exercises
# 1. At TR 2.4 s there is a TI at which an MPRAGE shows no border between white and grey matter. Find it.
# 2. STIR suppresses fat. Which TI does it take, and why must STIR not be used after a contrast agent?
# 3. How many voxels must be averaged until the three scans alone give T1 of white matter to 5 %?
#
# <details><summary>Solution 1</summary>
#
# Between the two null points (0.563 and 0.722 s) white matter is positive and grey matter negative. The magnitudes are
# equal where the signed signals add up to zero:
#
# ```python
# ti = torch.linspace(0.563, 0.722, 2000)[:, None].double()
# signal = physics.mprage(pd, t1, t2, te=0.003, tr=2.4, ti=ti)
# ti[(signal[:, 0] + signal[:, 1]).abs().argmin()]  # 0.63 s
# ```
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# t1_fat = table.median[table.tissues.index("fat"), 1]  # 0.378 s
# physics.null_ti(t1_fat, tr=5.0, sequence="FLAIR")     # 0.262 s
# ```
# A short TI nulls whatever has that T1, and not only fat. A contrast agent shortens T1, so enhanced tissue can reach
# the same null point and vanish.
# </details>
#
# <details><summary>Solution 3</summary>
#
# Averaging n voxels divides the noise by √n:
#
# ```python
# next(n for n in range(1, 1000) if expected_error(jacobians["WM"], [0, 1, 2], 0.01 / n**0.5)[1] <= 5)
# ```
# </details>
#
# ## Limits
# One T1 and one T2 per voxel, no magnetisation transfer, no flow, no T2*, perfect pulses. The echo train of Figure 8 is
# ours and not a vendor's. Noise enters in [02](02_cohort.ipynb).
#
# ## References
# - S. Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532: the
#   equations.
# - J. P. Mugler, J. R. Brookeman, *Magn Reson Med* 1990;15:152: MPRAGE. B. De Coene et al., *AJNR* 1992;13:1555: FLAIR.
# - R. F. Busse et al., *Magn Reson Med* 2006;55:1030 and 2008;60:640: contrast-equivalent TE.
# - M. Weigel, *J Magn Reson Imaging* 2015;41:266: extended phase graphs.
# - R. R. Ernst, W. A. Anderson, *Rev Sci Instrum* 1966;37:93: the flip angle.

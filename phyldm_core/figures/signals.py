"""Signal against the times of a protocol: numbers in, the figures of the chapter on signal physics out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .. import physics
from ..physics import Protocol, TissueMaps
from ..tissue import AIR_PD
from .style import FIGURE_WIDTH, TISSUE_COLOURS, as_array, show_image

Tissues = Mapping[str, tuple[float, float, float]]
"""Name → PD, T1 (s), T2 (s)."""


def letter_panels(axes: Sequence[Axes]) -> None:
    """a, b, c … in bold at the left above each."""
    for letter, ax in zip("abcdefgh", axes, strict=False):
        ax.set_title(letter, loc="left", weight="bold")


def signal_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike, float]], names: Sequence[str]) -> Figure:
    """Signed signal of several tissues against one time of the protocol, an axes per entry of ``curves``.

    Parameters
    ----------
    curves
        Label of the axis → times ``(n, 1)``, signals ``(n, tissues)``, and the usual setting, dotted.
    """
    fig, axes = plt.subplots(1, len(curves), figsize=(FIGURE_WIDTH, 2.3), sharey=True, layout="constrained")
    for ax, (label, (time, signal, usual)) in zip(axes, curves.items(), strict=True):
        for k, name in enumerate(names):
            ax.plot(as_array(time), as_array(signal)[:, k], color=TISSUE_COLOURS[name], label=name)
        ax.axhline(0, color="0.6", lw=0.6, zorder=0)
        ax.axvline(usual, color="0.3", lw=0.8, ls=":")
        ax.set(xlabel=label, xlim=(0, float(as_array(time).max())))
    axes[0].set(ylabel="signed signal (water = 1)")
    axes[-2].legend(loc="lower right")
    letter_panels(axes)
    return fig


def null_points(tissues: Tissues, flair: Protocol, maps: TissueMaps, inversion: Protocol) -> Figure:
    """Where signals cross zero: FLAIR against TI, the null TI against TR, and one slice signed and as magnitude.

    Parameters
    ----------
    flair
        Its TE and TR; the dot is its TI.
    maps, inversion
        One slice ``(y, x)``, and an MPRAGE read out between the null points of its tissues.
    """
    ti, trs = np.linspace(0, 6, 400), np.linspace(0.5, 12, 200)
    fig, axes = plt.subplots(1, 4, figsize=(FIGURE_WIDTH, 2.2), width_ratios=(1.7, 1.5, 1, 1), layout="constrained")
    for name, values in tissues.items():
        pd, t1, t2 = (torch_of(v) for v in values)
        colour, signed = TISSUE_COLOURS[name], as_array(physics.flair(pd, t1, t2, flair.te, flair.tr, torch_of(ti)))
        axes[0].plot(ti, abs(signed), color=colour, label=name)
        axes[0].plot(ti, signed, color=colour, ls="--", lw=0.8)
        axes[1].plot(trs, [physics.null_ti(values[1], tr, "FLAIR") for tr in trs], color=colour)
        axes[1].axhline(values[1] * np.log(2), color=colour, ls=":", lw=0.8)
    axes[0].axhline(0, color="0.6", lw=0.6, zorder=0)
    axes[0].set(xlabel=f"TI (s), FLAIR, TR {flair.tr:g} s", ylabel="signal (water = 1)", xlim=(0, 6), ylim=(-0.9, 1.1))
    axes[0].legend(ncols=3, loc="upper center", columnspacing=0.8, handlelength=1)
    axes[1].plot(flair.tr, flair.ti, "o", color="0.2")
    line = {"arrowstyle": "-", "color": "0.2", "lw": 0.5, "shrinkB": 3}
    beside = {"ha": "center", "va": "top", "size": 7, "arrowprops": line}
    axes[1].annotate("the paper's\nFLAIR", (flair.tr, flair.ti), (flair.tr, flair.ti - 0.6), **beside)
    axes[1].set(xlabel="TR (s)", ylabel="null TI (s)", xlim=(0, 12), ylim=(0, 3.2), xticks=range(0, 13, 3))
    early, head = as_array(physics.mprage(*maps, inversion.te, inversion.tr, inversion.ti)), as_array(maps.pd) > AIR_PD
    show_image(axes[2], early, (-0.2, 0.2))
    axes[2].images[0].set(cmap=plt.get_cmap("RdBu_r").with_extremes(bad="black"), array=np.where(head, early, np.nan))
    show_image(axes[3], abs(early), (0, 0.2))
    axes[2].set_xlabel("signed")
    axes[3].set_xlabel("magnitude")
    letter_panels(axes)
    return fig


def torch_of(values):
    """As a double tensor, which the signal equations take."""
    return torch.as_tensor(values, dtype=torch.float64)


def effective_echo_time(
    trains: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    ratios: pandas.DataFrame,
    images: Mapping[str, ArrayLike],
    nominal: float,
    ratio: float,
) -> Figure:
    """The echo time of a train of weak pulses: its echoes, the contrast-equivalent TE, and one slice at both TE.

    Parameters
    ----------
    trains
        Tissue → echo times (s), echoes of the train, plain decay.
    ratios
        Effective over nominal TE: a row a plateau angle (degrees), a column a tissue.
    images
        Label → slice ``(y, x)`` at the nominal and at the effective TE, in one window.
    nominal, ratio
        TE (s) and ratio that the cohort assumes, dotted.
    """
    fig, axes = plt.subplots(1, 4, figsize=(FIGURE_WIDTH, 2.2), width_ratios=(1.7, 1.5, 1, 1), layout="constrained")
    for name, (times, echoes, decay) in trains.items():
        axes[0].semilogy(times, echoes, color=TISSUE_COLOURS[name], label=name)
        axes[0].semilogy(times, decay, color=TISSUE_COLOURS[name], ls="--", lw=0.8)
        axes[1].plot(ratios.index, ratios[name], color=TISSUE_COLOURS[name])
    axes[0].axvline(nominal, color="0.3", lw=0.8, ls=":")
    axes[0].set(xlabel="time after excitation (s)", ylabel="signal (PD = 1)", ylim=(1e-3, 1.1), xlim=(0, 1))
    axes[0].legend(loc="lower left", handlelength=1, borderaxespad=0.2)
    axes[1].axhline(ratio, color="0.3", lw=0.8, ls=":")
    axes[1].set(xlabel="plateau angle (°)", ylabel="effective / nominal TE", ylim=(0, 1.03), xticks=[0, 60, 120, 180])
    for ax, (label, image) in zip(axes[2:], images.items(), strict=True):
        show_image(ax, image, (0, 0.5))
        ax.set_xlabel(label)
    letter_panels(axes)
    return fig


def sensitivity(changes: pandas.DataFrame, errors: pandas.DataFrame) -> Figure:
    """Which scan knows what: change of each signal (% of water) per property, and the error that scans leave (%)."""
    fig, axes = plt.subplots(2, 1, figsize=(FIGURE_WIDTH, 3), height_ratios=(3, 4), layout="constrained")
    written = changes.map(lambda v: f"{v:.1f}".replace("-0.0", "0.0").replace("-", "−"))
    look = {"cbar": False, "linewidths": 0.5, "annot_kws": {"size": 7}}
    sns.heatmap(changes, ax=axes[0], cmap="RdBu_r", center=0, annot=written, fmt="", **look)
    sns.heatmap(errors, ax=axes[1], cmap="rocket_r", norm="log", annot=True, fmt=".0f", **look)
    for ax, label in zip(axes, ("% of water, per +10 %", "expected error (%)"), strict=True):
        ax.set(xlabel="", ylabel="")
        ax.set_title(label, size=8)
        ax.tick_params(rotation=0, length=0)
    letter_panels(axes)
    return fig


def flair_nulls(curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], nulls: Sequence[float]) -> Figure:
    """Mean magnitude of each tissue against TI: from inferred maps (solid) and from true ones (dashed).

    Parameters
    ----------
    curves
        Tissue → TI (s), inferred, true.
    nulls
        TI (s) at which median tissue vanishes: ticks.
    """
    fig, ax = plt.subplots(figsize=(5, 2.5), layout="constrained")
    for name, (ti, inferred, true) in curves.items():
        ax.plot(ti, inferred, color=TISSUE_COLOURS[name], lw=1.3, label=name)
        ax.plot(ti, true, color=TISSUE_COLOURS[name], lw=1, ls="--")
    ax.plot(nulls, np.zeros(len(nulls)), "|", color="black", ms=9, mew=1.5)
    ax.set(xlabel="TI (s)", ylabel="mean signal (water = 1)", xlim=(0, 6), ylim=(0, None))
    for look, source in (("-", "inferred"), ("--", "true")):
        ax.plot([], [], color="0.3", ls=look, label=source)
    ax.legend(ncols=5, columnspacing=1.2, handlelength=1.6)
    return fig


def csf_t2(
    t2: ArrayLike, changes: Mapping[str, ArrayLike], true_t2: float, field_sd: float, found: Mapping[str, ArrayLike]
) -> Figure:
    """Why CSF's T2 is not seen: change of its signal (%) against T2 (s), and T2 as simulated and as inferred.

    Parameters
    ----------
    changes
        Scan → change of the signal, % of that at ``true_t2`` (s).
    field_sd
        Of the receive field, per cent: the grey band.
    found
        "true" and "inferred" → T2 (s) of voxels.
    """
    fig, axes = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 2.6), layout="constrained")
    axes[0].axhspan(-field_sd, field_sd, color="0.88", lw=0)
    for (name, percent), line in zip(changes.items(), ("-", "--", ":"), strict=True):
        axes[0].plot(t2, percent, line, color=TISSUE_COLOURS["CSF"], label=name)
    axes[0].axvline(true_t2, color="0.3", lw=0.8)
    axes[0].set(xlabel="$T_2$ of CSF (s)", ylabel="change of signal (%)", ylim=(-50, 10), xlim=(0, 4))
    axes[0].legend(loc="lower right")
    looks = {"true": {"color": "0.7"}, "inferred": {"histtype": "step", "color": TISSUE_COLOURS["CSF"]}}
    for label, values in found.items():
        values = as_array(values)
        share = np.full(values.size, 1 / max(values.size, 1))
        axes[1].hist(values, np.geomspace(0.05, 6, 50), weights=share, label=label, **looks[label])
    axes[1].set(xscale="log", xlabel="$T_2$ in pure CSF (s)", yticks=[])
    axes[1].set_xticks([0.1, 0.2, 0.5, 1, 2, 5], labels=["0.1", "0.2", "0.5", "1", "2", "5"])
    axes[1].legend()
    letter_panels(axes)
    return fig

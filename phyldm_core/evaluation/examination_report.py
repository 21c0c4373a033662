"""The page of an evaluation: its figures, its tables in per cent with intervals, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import matplotlib as mpl
import pandas
from matplotlib import pyplot as plt

from ..figures import curves
from ..figures.style import save_figure, use_house_style
from ..running.report import figure, frame_table, in_percent, with_interval, write_html
from ..slices import ALL_SCANS, SUBSETS
from . import examination_figures
from .examination import (
    BAYES,
    FIT,
    KEYS,
    NETWORK,
    PAINTED,
    PRIORS,
    REFINED,
    SAMPLED_SD,
    SCALES,
    SEEN,
    SEPARATOR,
    Examination,
    kept_voxels,
    split_inputs,
)
from .protocol_sets import EXPLAINED, HIGH, OASIS3, RANDOM, SETS, SPOILED_WAYS

NEEDS_OF = {
    NETWORK: ("training", "priors"),
    EXPLAINED: ("training", "priors"),
    REFINED: ("training", "segmentation", "priors"),
    f"{NETWORK}, a sampled latent": ("training", "priors"),
    f"{NETWORK}, nominal TE": ("training", "priors"),
    f"{NETWORK}, gain taken for 1": ("training", "priors"),
    PRIORS: ("segmentation", "priors"),
    f"{PRIORS}, nominal TE": ("segmentation", "priors"),
    FIT: ("segmentation", "3 scans"),
    BAYES: ("segmentation", "tissue values", "priors"),
    PAINTED: ("segmentation", "tissue values"),
}
"""Method → which of :data:`examination_figures.NEEDS`; the outline of the brain counts as a segmentation."""


def headline(table: pandas.DataFrame) -> pandas.DataFrame:
    """Median absolute error in per cent, "value (low–high)", from all three scans: methods by tissue and quantity."""
    rows = split_inputs(table)
    rows = rows[(rows.metric == "median_absolute_error") & rows.method.isin(NEEDS_OF)]
    rows = rows[(rows.scans == ALL_SCANS) | (rows.method == PAINTED) & (rows.scans == "T1w")]
    rows = rows.assign(cell=[in_percent(r) for r in rows.itertuples()], column=rows.quantity + " " + rows.tissue)
    wide = rows.pivot_table(index=["method", "scale"], columns="column", values="cell", aggfunc="first", sort=False)
    order = [f"{q} {t}" for q in ("T1", "T2", "PD") for t in ("WM", "GM", "CSF") if f"{q} {t}" in wide]
    there = [key for method in NEEDS_OF for scale in SCALES if (key := (method, scale)) in wide.index]
    return wide.loc[there, order].reset_index().rename_axis(columns=None)


def by_inputs(table: pandas.DataFrame, metric: str, scale: str = SCALES[0]) -> pandas.DataFrame:
    """One metric of the network in per cent for each subset of scans, by quantity and tissue."""
    rows = split_inputs(table)
    rows = rows[(rows.metric == metric) & (rows.method == NETWORK) & (rows.scale == scale)]
    rows = rows.assign(cell=[in_percent(r) for r in rows.itertuples()], column=rows.quantity + " " + rows.tissue)
    wide = rows.pivot_table(index="scans", columns="column", values="cell", aggfunc="first", sort=False)
    return wide.reindex([s for s in SUBSETS if s in wide.index]).reset_index().rename_axis(columns=None)


def images(table: pandas.DataFrame, method: str = NETWORK) -> pandas.DataFrame:
    """PSNR and MS-SSIM of scans rendered again, of contrasts nobody acquired, and whether tissues keep their order."""
    rows = split_inputs(table)
    means = rows.quantity.str.startswith("mean of")
    rows = rows[(rows.method == method) & (rows.scans == ALL_SCANS)
                & (rows.metric.isin(("psnr", "ms_ssim")) | (rows.metric == "same_order"))]  # fmt: skip
    what = rows.quantity.where(rows.metric != "same_order", rows.tissue)
    what = what.where(~means.loc[rows.index], what.str.replace("mean of those", "F4's unseen contrasts, mean of those"))
    rows = rows.assign(what=what, cell=[with_interval(r.value, r.low, r.high) for r in rows.itertuples()])
    wide = rows.pivot_table(index="what", columns=["scale", "metric"], values="cell", aggfunc="first", sort=False)
    wide.columns = [f"{metric}, {scale}" for scale, metric in wide.columns]
    return wide.reset_index().rename(columns={"what": ""})


def drawn_sets(table: pandas.DataFrame) -> pandas.DataFrame:
    """Every comparison of sets of brains: a row a number, a column a set; empty where no brains were drawn."""
    rows = table[table.inputs.str.startswith(("generated", "true,"))]
    if rows.empty:
        return rows
    rows = rows.assign(cell=[with_interval(r.value, r.low, r.high, 3) for r in rows.itertuples()])
    wide = rows.pivot_table(
        index=["metric", "quantity", "tissue"], columns="inputs", values="cell", aggfunc="first", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)


def errors_by_set(sets: pandas.DataFrame, names: Iterable[str]) -> pandas.DataFrame:
    """Of sets in this order, a row a method: error with its interval, r over people, and the ratio where there is one.

    Random sessions have their 90th percentile beside. :data:`protocol_sets.by_set` tells the columns of ``sets``.
    """
    names = list(names)
    rows = sets.assign(scans=_set_names(sets), column=sets.quantity + " " + sets.tissue)
    rows = rows[rows.scans.isin(names) & rows.tissue.isin(("WM", "GM")) & rows.quantity.isin(("T1", "T2"))]

    def said(row) -> str:
        text = in_percent(row)
        text += f", r {row.r:.2f}".replace("-", "−") if pandas.notna(row.r) else ""
        text += f", {row.over_untouched:.2f} ×" if pandas.notna(row.over_untouched) else ""
        return text + (f", 90th percentile {100 * row.p90:.1f} %" if row.scans == RANDOM else "")

    return _wide(rows.assign(cell=[said(row) for row in rows.itertuples()]), ["scans", "method"], names)


def held_by_set(sets: pandas.DataFrame) -> pandas.DataFrame:
    """How often the true value lies in the 90 % interval of maps through the physics, in per cent: a row a set."""
    rows = sets.assign(scans=_set_names(sets), column=sets.quantity + " " + sets.tissue, cell=100 * sets.holds)
    return _wide(rows[rows.holds.notna()], ["scans"], list(rows.scans.unique()))


def _set_names(sets: pandas.DataFrame) -> pandas.Series:
    return sets["set"].str.removesuffix(f"{SEPARATOR}{SEEN}")


def _wide(rows: pandas.DataFrame, index: list[str], names: list[str]) -> pandas.DataFrame:
    """``cell`` of each row, spread over quantities and tissues; in the order of ``names``; empty where nothing is."""
    if rows.empty:
        return rows
    wide = rows.pivot_table(index=index, columns="column", values="cell", aggfunc="first", sort=False)
    order = [f"{q} {t}" for q in ("T1", "T2", "PD") for t in ("WM", "GM", "CSF") if f"{q} {t}" in wide]
    wide = wide[order].reset_index().rename_axis(columns=None)
    return wide.sort_values("scans", key=lambda of: of.map(names.index), kind="stable")


def set_tables(sets: pandas.DataFrame) -> list[str]:
    """The tables by protocol set, by height, by what befell the scans, and of random sessions, as HTML."""
    beside = "median absolute error in pure voxels, 95 % interval over heads and people, r over people"
    asked = {
        f"By protocol set, through the physics and beside it: {beside}": SETS,
        f"OASIS-3's scans by height, × the error in the middle: {beside}": HIGH,
        f"OASIS-3's scans as they may arrive, × the error untouched: {beside}": [OASIS3, *SPOILED_WAYS],
        f"Sessions of random protocols: {beside}": [RANDOM],
    }
    made = {caption: errors_by_set(sets, names) for caption, names in asked.items()}
    made |= {"True values inside the 90 % interval, through the physics, %": held_by_set(sets)}
    return [frame_table(frame, caption) for caption, frame in made.items() if len(frame)]


def draw_figures(exam: Examination, table: pandas.DataFrame, folder: str | Path) -> list[Path]:
    """Write every figure of an evaluation (PNG, PDF, caption) and return the PNGs."""
    rows, n = split_inputs(table), exam.n
    heads = SEEN if exam.seen else "heads never seen"
    who = f"n = {n} simulated people from {heads}, scanned with protocols of OASIS-3"
    whole = rows[(rows.scans == ALL_SCANS) | (rows.method == PAINTED) & (rows.scans == "T1w")]
    needs = {name: of for name, of in NEEDS_OF.items() if name in set(whole.method)}
    honest = [name for name in (NETWORK, EXPLAINED, REFINED, SAMPLED_SD, BAYES) if name in set(whole.method)]
    network = NETWORK in set(whole[whole.scale == SCALES[0]].method)
    scale = SCALES[0] if network else SCALES[1]
    made = {
        "fig81_accuracy_and_needs": (
            examination_figures.accuracy_and_needs(whole, needs),
            f"Median absolute error of T1, T2 and PD (relative to CSF) from T1w, T2w and FLAIR, {who}; means with 95 % "
            "bootstrap intervals over people. Right: what each method needs. All rivals are told where the brain is.",
            "Dots with intervals for all methods in six panels, and a grid of what each needs.",
        ),
        "fig82_error_by_scans": (
            examination_figures.error_by_scans(rows, (NETWORK, EXPLAINED, PRIORS, BAYES, REFINED), list(SUBSETS)),
            f"Median absolute error by the scans that were shown, {who}; solid: common scale with its 95 % interval, "
            "dotted: any gain. Scans that do not tell a quantity leave it to the priors.",
            "Six panels of errors falling as more scans are shown, for five methods.",
        ),
        "fig83_honesty": (
            examination_figures.honesty(rows[rows.scans == ALL_SCANS], honest, scale),
            f"How often the true value lies in the 90 and 50 % intervals (estimate ± SD, Gaussian), all three scans, "
            f"{scale}, {who}. Lines: what an honest SD gives.",
            "Panels of dots by method, shares of true values inside intervals, against lines at 90 and 50 per cent.",
        ),
    }
    voxels = kept_voxels(exam)
    voxels = voxels[voxels.inputs == SEPARATOR.join((NETWORK, ALL_SCANS, scale))]
    for number, quantity in enumerate(("T1", "T2", "PD"), 84):
        of = dict(iter(voxels[voxels.quantity == quantity].groupby("tissue", sort=False)))
        if of:
            pair = [{name: group[column].to_numpy() for name, group in of.items()} for column in ("estimate", "truth")]
            made[f"fig{number}_agreement_{quantity.lower()}"] = (
                curves.agreement(*pair, quantity),
                f"{quantity} by the network from all three scans ({scale}) against truth, and Bland and Altman's plot "
                f"of both; at most {exam.n_voxels} pure voxels of each tissue and person, {who}.",
                f"Two panels of points by tissue: estimated against true {quantity}, and their difference.",
            )
    if (table.inputs.str.startswith("generated")).any():
        samples = table[table.inputs.str.startswith(("generated", "true,"))]
        samples = samples.assign(inputs=samples.inputs.str.removesuffix(f" | {SEEN}"))
        made["fig87_samples_over_floor"] = (
            examination_figures.over_floor(samples),
            f"Drawn slices against true people: distances over those that two disjoint halves of the true people have "
            f"(n = {2 * n}, bar at 1; lines: 95 % of 20 halvings). Blue: true people made from the training heads, "
            "what a perfect generator would reach.",
            "Dots on a logarithmic axis, one row a distance, beside the floor at one.",
        )
        made["fig88_slices_looked_at"] = (
            examination_figures.looked_at(samples),
            "Drawn slices looked at one by one. Left: skulls that are one closed ring, and ventricle asymmetry, "
            "cortical thickness and folding inside the 5th to 95th percentile of half of the true people (95 % of 20 "
            "halvings). Right: AUC with which classifiers that learned from other heads tell a set from true slices "
            "(0.5: not at all). Open: from what the network infers from true people's scans. Bars: true people against "
            "other true people, which no generator need surpass.",
            "Two panels of dots: shares of slices by shape, and AUC of two classifiers, beside those of true people.",
        )
    paths = []
    for name, (fig, caption, alt) in made.items():
        paths.append(save_figure(fig, folder, name, caption=caption, alt=alt)[0])
        plt.close(fig)
    return paths


def write_examination(exam: Examination) -> Path:
    """``report.html`` in the folder of a finished evaluation, complete in itself, and its figures beside it."""
    table = pandas.read_csv(exam.out / "metrics.csv", keep_default_na=False, na_values=[""])
    table = table.fillna(dict.fromkeys(KEYS, ""))
    with mpl.rc_context():
        use_house_style()
        figures = draw_figures(exam, table, exam.out / "figures")
    whole = split_inputs(table)
    scale = SCALES[0] if NETWORK in set(whole[whole.scale == SCALES[0]].method) else SCALES[1]
    tables = [
        frame_table(headline(table), "Median absolute error, all three scans, every method (PD relative to CSF)"),
        frame_table(by_inputs(table, "median_absolute_error", scale=scale), f"The network by scans shown, {scale}"),
        frame_table(
            by_inputs(table, "bias", scale=scale), f"Bias (median of the signed error) by scans shown, {scale}"
        ),
        frame_table(by_inputs(table, "coverage_90", scale=scale), f"True values inside the 90 % interval, {scale}"),
        *(
            frame_table(
                images(table, method),
                f"Images by the {method}: PSNR (dB) and MS-SSIM in the brain; share of people with tissues in order",
            )
            for method in (NETWORK, REFINED)
        ),
    ]
    if len(samples := drawn_sets(table)):
        tables.append(frame_table(samples, "Drawn slices and true ones, each set against half of the true people"))
    else:
        tables.append("<p>These weights hold no diffusion model: no drawn brains were evaluated.</p>\n")
    tables += set_tables(pandas.read_csv(exam.out / "sets.csv"))
    config, files = exam.weights.config, ", ".join(evaluation_heads(exam))
    said = (
        f"Profile {config['profile']}, weights {exam.weights.identity[:12]}; {exam.n} people, seed {exam.seed}, from "
        f"{'HEADS SEEN IN TRAINING' if exam.seen else 'heads not seen in training'}: {files}. Means over people with "
        "95 % bootstrap intervals over people; all numbers are in metrics.csv and, by protocol set, in sets.csv."
    )
    body = "<h2>Figures</h2>\n" + "".join(figure(path) for path in figures) + "<h2>Numbers</h2>\n" + "".join(tables)
    return write_html(exam.out / "report.html", "How right are these weights?", said, body)


def evaluation_heads(exam: Examination) -> list[str]:
    return [escape(name).removesuffix(".gz").removesuffix(".nii") for name in exam.settings()["heads"]]

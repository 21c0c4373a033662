"""A model card from a run's own numbers: what the weights are, what they were trained on, how far to trust them."""

from __future__ import annotations

from pathlib import Path

import pandas

COLUMNS = ["table", "metric", "quantity", "tissue", "inputs", "value", "low", "high", "n"]
TABLES = ("vae_map_errors", "vae_subsets", "vae_reconstruction", "unseen", "histograms", "samples")
"""Which of a run's tables go with its weights; they are of simulated, held-out people."""


def run_metrics(run: str | Path) -> pandas.DataFrame:
    """The numbers a run measured, in one table; empty where it measured nothing."""
    found = [pandas.DataFrame(columns=COLUMNS)]
    for name in TABLES:
        path = Path(run) / "metrics" / f"{name}.csv"
        if path.exists():
            table = pandas.read_csv(path).assign(table=name)
            if set(COLUMNS) <= set(table):
                found.append(table[COLUMNS])
    return pandas.concat(found[1:] or found, ignore_index=True)


def model_card(weights, training: dict, metrics: pandas.DataFrame) -> str:
    """The card as Markdown.

    Parameters
    ----------
    weights
        The :class:`weights.Weights` it describes.
    training
        Settings the parts were made with, as ``training.json`` holds them.
    metrics
        From :func:`run_metrics`.
    """
    config = weights.config
    y, x = config["slice_shape"]
    kept = "the whole head" if config["head"] else "the brain and its CSF only"
    draws = (
        "\n`phyldm sample -n 4 --seed 7 --weights {this folder} --out DIR` draws new tissue."
        if weights.has_pipeline
        else ""
    )
    return f"""---
license: mit
library_name: diffusers
tags: [mri, quantitative-mri, brain, latent-diffusion]
---
# Tissue from weighted scans, profile {config["profile"]}

Any subset of T1w, T2w, PDw and FLAIR with its TE, TR and TI in; maps of PD (water = 1), T1 (s) and T2 (s) out. After
Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532. Made by
phyldm_core {config["version"]}, format {config["format"]}.

`phyldm fit SCANS --weights {{this folder}} --out DIR` infers the maps of your own scans.{draws}

## Trained on
{_trained_on(training["vae"]["cohort"])}:
{config["n_slices"]} axial slices of {y}×{x} pixels of {config["voxel_mm"]:g} mm in the middle of the brain
({weights.slab_mm:g} mm), {kept}. All settings are in `training.json`.

## Measured on held-out, simulated people
{_error_table(metrics)}
## Limits
One T1 and one T2 per voxel, no motion, no flow; simulated people are not patients. Slices outside the middle
{weights.slab_mm:g} mm are extrapolated. Sequences other than those trained on (MPRAGE, spin echo, FLAIR) and fields
other than 3 T are foreign to the model. Research only, nothing for a clinic.

## Files
`config.json` lists every file with its SHA-256; weights are safetensors, and loading refuses anything else.
`metrics.csv` holds all numbers: means over people with 95 % bootstrap intervals.
"""


def _trained_on(cohort: dict) -> str:
    if "data" in cohort:  # real people, whose T1, T2 and PD nobody knows
        return f"Real scans of the dataset {cohort['data']}, each with a gain of its own"
    heads = f"the label maps in {cohort['anatomies']}" if cohort["anatomies"] else "the MNI152 template"
    return (
        f"{cohort['n_train']} simulated people, deformed from {heads} and scanned with OASIS-3's protocols, with\n"
        f"Rician noise and receive bias; lesions in {cohort['lesions']:.0%} of them; no real scan was used"
    )


def _error_table(metrics: pandas.DataFrame) -> str:
    rows = metrics[(metrics.table == "vae_map_errors") & (metrics.metric == "median_absolute_error")]
    if not len(rows):
        return "Nothing was measured in this run: notebooks 03, 06 and 07 do.\n"
    tissues = list(dict.fromkeys(rows.tissue))
    lines = ["| median absolute error | " + " | ".join(tissues) + " |", "|---" * (1 + len(tissues)) + "|"]
    for (quantity, inputs), group in rows.groupby(["quantity", "inputs"], sort=False):
        cells = []
        for tissue in tissues:
            row = group[group.tissue == tissue]
            cells.append(_percent(row.iloc[0]) if len(row) else "–")
        lines.append(f"| {quantity}, {inputs} | " + " | ".join(cells) + " |")
    n = int(rows.n.max())
    return "\n".join(lines) + f"\n\nn = {n} people; PD relative to their own CSF.\n"


def _percent(row: pandas.Series) -> str:
    interval = f" ({100 * row.low:.1f}–{100 * row.high:.1f})" if pandas.notna(row.low) else ""
    return f"{100 * row.value:.1f} %{interval}"

"""Weights to give away, with a model card from the run's own numbers: what they are and how far to trust them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pandas

from ..machine.errors import BadInput
from ..machine.files import MADE_WITH, checksums, read_json, to_json, whole_folder, write_atomically
from ..people.open_field import N_OPEN
from ..slices import SPOILED
from ..weights import BRAIN_MM, Weights, drawn_from, load_weights
from .profiles import PROFILES
from .report import in_percent

TRAINED = {"vae": "VAE", "composition": "compositions", "pipeline": "diffusion model"}
"""What of a run is trained, in this order; a run that draws the VAE's own latents has no compositions."""

CARD_COLUMNS = ["table", "metric", "quantity", "tissue", "inputs", "value", "low", "high", "n"]
TABLES = ("vae_map_errors", "vae_subsets", "vae_reconstruction", "unseen", "histograms", "samples")
"""Which of a run's tables go with its weights; they are of simulated, held-out people."""

EVALUATION = "evaluation"
"""The run's folder, and here the table, of what ``phyldm evaluate`` found on heads never seen; maybe there is none."""

SETS_TABLE = "sets"
"""The table, and there the file, of its errors by protocol set."""


def export_weights(run: str | Path, folder: str | Path) -> Weights:
    """Copy what a run trained into a folder that can be given away, with its recipe, numbers and a model card.

    Parameters
    ----------
    run
        A run's folder (``runs/laptop``), or a :class:`run.Run`.
    folder
        Replaced as a whole where it holds an older export, left alone where it holds this very one.

    Raises
    ------
    BadInput
        The run holds no trained VAE, its diffusion model belongs to another VAE, or ``folder`` holds something else.
    """
    run, folder = Path(getattr(run, "folder", run)), Path(folder)
    if not (run / "vae" / MADE_WITH).exists():
        raise BadInput(f"{run}: holds no trained VAE: run phyldm reproduce, or notebook 03_train_vae, first")
    trained = load_weights(run)
    if (run / "pipeline").exists() and not trained.has_pipeline:
        raise BadInput(f"{run}: its diffusion model belongs to another VAE: run notebook 04_train_diffusion first")
    an_export = (folder / "config.json").exists() and not (folder / "vae" / MADE_WITH).exists()  # that is a run
    if folder.is_dir() and any(folder.iterdir()) and not an_export:
        raise BadInput(f"{folder}: holds something that is no export of weights: choose an empty or a new folder")
    metrics, logs = run_metrics(run), training_logs(run)
    copied = {k: sha for k, sha in trained.config["files"].items() if Path(k).name not in (MADE_WITH, "log.csv")}
    written = {name: _without_origin(run / name) for name in copied if Path(name).name == "config.json"} | {
        "README.md": model_card(trained, metrics, logs).encode(),
        "metrics.csv": metrics.to_csv(index=False, float_format="%.6g").encode(),
        "curves.png": learning_curves(logs),
        "curves.csv": logs.to_csv(index=False).encode(),
    }
    files = copied | {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    written["config.json"] = to_json(trained.config | {"files": dict(sorted(files.items()))})
    files["config.json"] = hashlib.sha256(written["config.json"]).hexdigest()
    if not folder.is_dir() or checksums(folder) != files:
        with whole_folder(folder) as part:
            for name in copied.keys() - written.keys():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run / name, part / name)
            for name, content in written.items():
                write_atomically(part / name, content)
    return load_weights(folder)


def _without_origin(path: Path) -> bytes:
    """A network's configuration without the folder it was once loaded from."""
    return to_json({key: value for key, value in read_json(path).items() if key != "_name_or_path"})


def run_metrics(run: str | Path) -> pandas.DataFrame:
    """The numbers a run measured, in one table; empty where it measured nothing."""
    found = [pandas.DataFrame(columns=CARD_COLUMNS)]
    tables = {name: Path(run) / "metrics" / f"{name}.csv" for name in TABLES}
    for name, path in (tables | {EVALUATION: Path(run) / EVALUATION / "metrics.csv"}).items():
        if path.exists():
            table = pandas.read_csv(path).assign(table=name)
            if set(CARD_COLUMNS) <= set(table):
                found.append(table[CARD_COLUMNS])
    if (path := Path(run) / EVALUATION / f"{SETS_TABLE}.csv").exists():
        sets = pandas.read_csv(path)
        sets = sets.assign(table=SETS_TABLE, metric="median_absolute_error", inputs=sets.method + " | " + sets["set"])
        found.append(sets[CARD_COLUMNS])
    return pandas.concat(found[1:] or found, ignore_index=True)


def training_logs(run: str | Path) -> pandas.DataFrame:
    """The loss of :data:`TRAINED` over training: part, step, seconds, loss ("total", "val_total"), value."""
    paths = {part: Path(run) / part / "log.csv" for part in TRAINED}
    logs = [pandas.read_csv(path).assign(part=part) for part, path in paths.items() if path.exists()]
    logs = pandas.concat(logs, ignore_index=True)
    return logs[logs.loss.isin(("total", "val_total"))]


def learning_curves(logs: pandas.DataFrame) -> bytes:
    """PNG of every part's total loss, in training and on validation people."""
    from ..figures.curves import training_curves
    from ..figures.style import to_png, use_house_style

    logs = logs.assign(part=logs.part.map(TRAINED))
    seen, held_out = (
        logs[logs.loss == loss].pivot(index="step", columns="part", values="value").reset_index()
        for loss in ("total", "val_total")
    )
    use_house_style()
    panels = {name: [name] for name in TRAINED.values() if name in seen}
    fig = training_curves(seen, panels, validation=held_out, log=list(panels))
    return to_png(fig, dpi=150)


def model_card(weights: Weights, metrics: pandas.DataFrame, logs: pandas.DataFrame) -> str:
    """The card as Markdown.

    Parameters
    ----------
    weights
        Those it describes.
    metrics
        From :func:`run_metrics`.
    logs
        From :func:`training_logs`.
    """
    config, training = weights.config, weights.training
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

Any number of scans of one session in, each with its sequence and times; maps of PD (water = 1), T1 (s) and T2 (s) out.
The encoder starts, and the maps move until the signal equations explain the scans; `--fast` leaves that out. After
Lüpke et al., *Physics-Informed Latent Diffusion for Multimodal Brain MRI Synthesis*, 2024, arXiv 2409.13532. Made by
phyldm_core {config["version"]}, format {config["format"]}.

`phyldm fit SCANS --weights {{this folder}} --out DIR` infers the maps of your own scans.{draws}

## Trained on
{_trained_on(training)}{_named_heads(training["heads"])} All settings are in `training.json`.

{_recipe(training, logs)}
![Loss of each part over training steps, on training and on validation people](curves.png)

Made again by:

```bash
{_command(config["profile"], training)}
phyldm export --run RUN --out DIR
```

## Measured on held-out, simulated people
{_error_table(metrics)}{_set_table(metrics)}{_drawn(metrics)}
## Limits
One T1 and one T2 per voxel, no motion, no flow; simulated people are not patients. {_foreign(weights)}
Research only, nothing for a clinic.

## Files
`config.json` lists every file with its SHA-256; weights are safetensors, and loading refuses anything else.
`curves.csv` holds the losses drawn above, `metrics.csv` all numbers: means over people with 95 % bootstrap intervals;
its tables `evaluation` and `sets`, where there are any, are what `phyldm evaluate` found, beside rivals and noise
floors. Weights and code are under the MIT licence.
"""


def _trained_on(training: dict) -> str:
    cohort, first = drawn_from(training), training["vae"]["cohort"]
    if cohort == first:
        return f"{_people(cohort)}:\n{_slices(cohort)}."
    return (
        f"The VAE: {_people(first)}:\n{_slices(first)}.\n\n"
        f"The generator, what that VAE inferred from scans of {_people(cohort)}:\n{_slices(cohort)}."
    )


def _slices(cohort: dict) -> str:
    (y, x), apart = cohort["shape"], cohort["slice_mm"]
    height = cohort["n_slices"] * apart
    where = "from cerebellum to vertex" if height >= BRAIN_MM else "in the middle of the brain"
    kept = "the whole head" if cohort["head"] else "the brain and its CSF only"
    size = f"{cohort['n_slices']} axial slices of {y}×{x} pixels of {cohort['voxel_mm']:g} mm"
    return f"{size}, {apart:g} mm apart, {where} ({height:g} mm), {kept}"


def _people(cohort: dict) -> str:
    if "data" in cohort:  # real people, whose T1, T2 and PD nobody knows
        return f"Real scans of the dataset {cohort['data']}, each with a gain of its own"
    folders = " and ".join(_folders(cohort))
    heads = f"the label maps in {folders}" if folders else "the MNI152 template"
    scanned = "OASIS-3's protocols"
    if cohort.get("open_field"):
        scanned += f" and {N_OPEN} drawn from all of clinical practice,\nas scans arrive ({', '.join(SPOILED)})"
    return (
        f"{cohort['n_train']} simulated people, deformed from {heads} and scanned with {scanned}, with\n"
        f"Rician noise and receive bias; lesions in {cohort['lesions']:.0%} of them; no real scan was used"
    )


def _foreign(weights: Weights) -> str:
    """What these weights do not know."""
    cohort = weights.training["vae"]["cohort"]
    protocols = "clinical protocols of these three" if cohort.get("open_field") else "OASIS-3's protocols"
    beyond = "" if weights.whole_brain else f"Slices outside the middle\n{weights.slab_mm:g} mm are extrapolated. "
    return (
        f"{beyond}Fields other than 3 T\nare foreign to the model. Its encoder has seen MPRAGE, spin echoes and FLAIR "
        f"or inversion recovery,\nwith {protocols}; gradient echoes are explained through the signal equation alone,\n"
        "where T2 stands for T2*."
    )


def _folders(cohort: dict) -> list[str]:
    folders = cohort["anatomies"] or []
    return [folders] if isinstance(folders, str) else folders


def _named_heads(heads: dict[str, list[str]]) -> str:
    """Who was seen and who was not: whoever examines the weights needs to know."""
    if len({name for names in heads.values() for name in names}) < 2:
        return ""
    named = {
        split: ", ".join(name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mnc") for name in names)
        for split, names in heads.items()
    }
    return "\nHeads: " + "; ".join(f"{split} {names}" for split, names in named.items()) + "."


def _recipe(training: dict, logs: pandas.DataFrame) -> str:
    pipeline = training.get("pipeline", {})
    made = {"vae": training["vae"], "composition": pipeline.get("composition"), "pipeline": pipeline or None}
    lines = ["| part | steps × batch | peak learning rate | minutes | validation loss |", "|---|---|---|---|---|"]
    for part, settings in made.items():
        log = logs[logs.part == part]
        if settings and len(log):
            how, held_out = settings["schedule"], log.value[log.loss == "val_total"]
            minutes, last = log.seconds.max() / 60, f"{held_out.iloc[-1]:.3f}" if len(held_out) else "–"
            batch = f"{how['steps']} × {how['batch_size']}"
            lines.append(f"| {TRAINED[part]} | {batch} | {how['learning_rate']:g} | {minutes:.0f} | {last} |")
    return "\n".join(lines) + "\n"


def _command(profile: str, training: dict) -> str:
    made, cohort = training["vae"], drawn_from(training)
    if "data" in cohort:
        source = f" --data {cohort['data']}"
    else:
        source = "".join(f" --anatomies {folder}" for folder in _folders(cohort))
    own = profile in PROFILES and PROFILES[profile].vae_cohort is not None  # one call makes both cohorts
    given = " --vae WEIGHTS" if cohort != made["cohort"] and not own else ""
    return f"phyldm train --profile {profile}{source}{given} --seed {made['seed']} --out RUN"


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
            cells.append(in_percent(row.iloc[0]) if len(row) else "–")
        lines.append(f"| {quantity}, {inputs} | " + " | ".join(cells) + " |")
    n = int(rows.n.max())
    return "\n".join(lines) + f"\n\nn = {n} people; PD relative to their own CSF.\n"


def _set_table(metrics: pandas.DataFrame) -> str:
    """T1 and T2 by the protocols that a session has; empty where nobody looked."""
    rows = metrics[(metrics.table == SETS_TABLE) & metrics.tissue.isin(("WM", "GM")) & (metrics.quantity != "PD")]
    if not len(rows):
        return ""
    columns = [f"{quantity} {tissue}" for quantity in ("T1", "T2") for tissue in ("WM", "GM")]
    cells = {(row.inputs, f"{row.quantity} {row.tissue}"): in_percent(row) for row in rows.itertuples()}
    lines = ["| method | scans | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cells.get((name, c), "–") for c in columns) + " |"
        for name in dict.fromkeys(rows.inputs)
    ]
    return (
        "\nThe same by protocol set, in voxels that are at least 95 % of a tissue, of people whose tissue differs\n"
        "twice as much as usual (intervals over heads and people):\n\n" + "\n".join(lines) + "\n"
    )


def _drawn(metrics: pandas.DataFrame) -> str:
    """How far drawn slices are from true ones, over what two halves of the true people are; empty where unknown."""
    rows = metrics[metrics.table == EVALUATION].fillna("").set_index(["metric", "quantity", "tissue", "inputs"]).value
    rows = rows[~rows.index.duplicated()]

    def times_floor(*key: str) -> str:
        return f"{rows[*key, 'generated'] / rows[*key, 'true, other half']:.1f}"

    if ("frechet", "", "", "generated") not in rows:
        return ""
    tissue = ", ".join(f"{q} {t} {times_floor('wasserstein', q, t)}" for q in ("T1", "T2") for t in ("WM", "GM"))
    return (
        "\nDrawn slices against true people, in multiples of what two halves of the true people differ by:\n"
        f"histograms {tissue}; looks (Fréchet distance) {times_floor('frechet', '', '')}.\n"
    )

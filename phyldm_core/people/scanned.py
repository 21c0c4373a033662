"""A cohort of people who were scanned, not simulated: prepared sessions cut to a profile's slices, split by subject.

It lies on disk as a simulated cohort does, so that :func:`cohort.load_scans` and everything after it
need not know; only there is no truth, and no common scale.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas

from ..machine.errors import BadInput
from ..machine.files import to_json, whole_folder, write_atomically
from ..scans import grids, nifti
from ..scans.bids import read_sidecar, session_folder, write_dataset_description
from ..scans.prepare_dataset import Outcome, read_prepared, read_record
from ..slices import MODALITIES, SPLITS
from ..vae import TYPICAL_SIGNAL
from .cohort import RECIPE, CohortRecipe, as_json, read_recipe

HELD_OUT = {"val": 0.05, "test": 0.05}
"""Fractions of the subjects, at least one subject each; the paper held out 10 %."""


@dataclass(frozen=True)
class ScanRecipe:
    """Everything that decides what a cohort of real people looks like; equal recipes give equal files."""

    data: str  # name of the BIDS dataset's folder
    sessions: str  # digest of which sessions were used and what each was prepared from
    voxel_mm: float
    shape: tuple[int, int]  # y, x
    n_slices: int
    slice_mm: float
    head: bool  # False: everything outside the brain mask is 0
    seed: int  # of the split


def read_scan_recipe(recorded: dict) -> ScanRecipe:
    """The recipe that ``recipe.json`` holds."""
    return ScanRecipe(**recorded | {"shape": tuple(recorded["shape"])})


def split_subjects(subjects: list[str], seed: int) -> dict[str, str]:
    """``{subject: "train", "val" or "test"}``: all sessions of a person are in one split.

    Subjects are ranked by a hash of seed and name, so that one more subject moves hardly any other.

    Raises
    ------
    BadInput
        There are fewer than three.
    """
    if len(subjects) < 3:
        raise BadInput(
            f"{len(subjects)} subjects with usable scans: at least 3 are needed, one each to train, val, test"
        )
    ranked = sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    n_val, n_test = (max(1, round(share * len(ranked))) for share in HELD_OUT.values())
    splits = ["val"] * n_val + ["test"] * n_test
    return dict(zip(ranked, splits + ["train"] * (len(ranked) - len(splits)), strict=True))


def scan_cohort(
    prepared: Path, outcomes: list[Outcome], like: CohortRecipe, folder: Path, *, data: Path, mask, seed: int
) -> ScanRecipe:
    """Write the central slices of every prepared session, and the split as ``participants.tsv``.

    Nothing happens where the same cohort exists. Each image is 0 outside the brain where ``like`` has
    no heads, and on the scale that networks expect: its own 95th percentile is a typical signal.

    Parameters
    ----------
    prepared, outcomes
        What :func:`prepare_dataset.prepare_dataset` was given as ``out``, and yielded.
    like
        The profile's recipe: voxel size, shape and number of slices, head or brain.
    mask
        What the sessions were prepared with.
    """
    usable = sorted((o.subject, o.session or "") for o in outcomes if o.status != "skipped")
    usable = [(sub, ses or None) for sub, ses in usable]
    contrasts = {labels: [s.suffix for s in _scans(prepared, *labels)] for labels in usable}
    usable = [labels for labels in usable if contrasts[labels]]
    split = split_subjects(sorted({subject for subject, _ in usable}), seed)
    records = [_record(prepared, *labels) for labels in usable]
    recipe = ScanRecipe(
        Path(data).resolve().name, hashlib.sha256("".join(records).encode()).hexdigest()[:16],
        like.voxel_mm, like.shape, like.n_slices, like.slice_mm, like.head, seed,
    )  # fmt: skip
    if read_recipe(folder) == as_json(recipe):
        return recipe
    rows = [
        {
            "participant_id": f"sub-{subject}",
            "split": split[subject],
            "sessions": sum(sub == subject for sub, _ in usable),
        }
        for subject in sorted(split)
    ]
    columns = {
        "split": {"Description": f"one of {', '.join(SPLITS)}; a person is in one only"},
        "sessions": {"Description": "sessions of this person that are used"},
    }
    with whole_folder(folder) as building:
        for labels in usable:
            _write_session(prepared, labels, recipe, building)
        write_dataset_description(building, f"Central slices of {recipe.data}", derivative=True)
        pandas.DataFrame(rows).to_csv(building / "participants.tsv", sep="\t", index=False)
        write_atomically(building / "participants.json", to_json(columns))
        write_atomically(building / ".bidsignore", f"{RECIPE}\n".encode())
        write_atomically(building / RECIPE, to_json(as_json(recipe)))
    return recipe


def _scans(prepared: Path, subject: str, session: str | None) -> list[nifti.Scan]:
    """The prepared scans that training uses; a PDw alone teaches nothing here."""
    return [scan for scan in read_prepared(prepared, subject, session).scans if scan.suffix in MODALITIES]


def _record(prepared: Path, subject: str, session: str | None) -> str:
    labels = (subject, session)
    return json.dumps(read_record(session_folder(prepared, *labels), labels), sort_keys=True)


def _write_session(prepared: Path, labels: tuple[str, str | None], recipe: ScanRecipe, folder: Path):
    session = read_prepared(prepared, *labels)
    if not recipe.head and not session.brain_known:
        raise BadInput(f"{prepared}: sub-{labels[0]} has no brain mask, which this profile needs: prepare with --mask")
    reference = session.scans[0]
    grid = grids.axial_grid(reference, recipe.shape, recipe.voxel_mm, z=recipe.n_slices, slice_mm=recipe.slice_mm)
    keep = np.ones(session.brain.shape, bool) if recipe.head else session.brain
    anat = session_folder(folder, *labels)
    for scan in session.scans:
        if scan.suffix in MODALITIES:
            kept = replace(scan, image=np.float32(TYPICAL_SIGNAL) * scan.image * keep)
            volume = grids.resample(kept, grid)
            name = scan.path.name.split("_space-")[0]
            fields = read_sidecar(scan.path) | {"IntensityScale": scan.sidecar["IntensityScale"] / TYPICAL_SIGNAL}
            fields |= {"SkullStripped": not recipe.head, "Sources": [scan.path.name]}
            nifti.write_image(anat / f"{name}_{scan.suffix}.nii.gz", volume, grid.affine, fields)

"""A simulated person's whole brain as a BIDS dataset, for whoever has no scans at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..scans.bids import sidecar, write_dataset_description
from ..scans.nifti import write_image
from ..slices import MODALITIES
from ..tissue import AIR_PD
from .cohort import CohortRecipe, Subject, simulate

HEIGHT_MM, WIDTH_MM, LENGTH_MM = 128.0, 160.0, 224.0  # of the block: what of a brain lies about the middle of a cohort


def write_stand_in(folder: str | Path, recipe: CohortRecipe, seed: int) -> Path:
    """Write T1w, T2w and FLAIR of one new person, stripped of their skull, and return the dataset's folder.

    Parameters
    ----------
    recipe
        Of the cohort whose last head and voxel size are taken; the brain is whole, not a stack of central slices.
    seed
        Of the person, who is in no cohort.
    """
    folder = Path(folder)
    size = [2 * round(mm / recipe.voxel_mm / 2) for mm in (HEIGHT_MM, LENGTH_MM, WIDTH_MM)]
    whole = replace(recipe, n_slices=size[0], slice_mm=recipe.voxel_mm, shape=tuple(size[1:]), head=False, seed=seed)
    last = whole.subjects()[-1]
    who = Subject("sub-simulated", "test", last.head, last.index)  # of the test set, so that no contrast is missing
    person = simulate(who, whole)
    affine = np.diag([whole.voxel_mm, whole.voxel_mm, whole.voxel_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * whole.voxel_mm for n in (size[2], size[1], size[0])]
    tissue = person.maps[:, 0] > AIR_PD
    for m, (modality, protocol) in enumerate(zip(MODALITIES, person.nominal, strict=True)):
        image = (person.images[:, m] * tissue).numpy().T
        told = sidecar(protocol, SkullStripped=True)
        write_image(folder / who.name / "anat" / f"{who.name}_{modality}.nii.gz", image, affine, told)
    write_dataset_description(folder, "A simulated person", derivative=False)
    return folder

"""Brains found in heads nobody has stripped: whole, without skull, and good enough to infer tissue in.

Slow ones simulate heads that weights trained on ``synthseg_labels`` never saw (the last five), once as scanned and once
as the cohort has them: aligned, without a skull. What a user's scans lose on the way is the difference.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from phyldm_core.evaluation import metrics
from phyldm_core.inference import infer
from phyldm_core.people import cohort
from phyldm_core.people.anatomy import Deformation
from phyldm_core.people.cohort import CohortRecipe, Simulated, Subject, simulate
from phyldm_core.scans import bids, fit, grids, nifti, sessions
from phyldm_core.scans.brain import MM, _within, dilate, erode
from phyldm_core.scans.registration import template_brain
from phyldm_core.slices import MODALITIES
from phyldm_core.weights import load_weights

HEADS = ("11", "12", "13", "14", "15")


# --- the rules, on a head of shells ------------------------------------------------------------------


def shells() -> dict[str, np.ndarray]:
    """Distance (mm) from the middle decides: brain to 50, CSF to 54, bone to 60, fat to 66, air."""
    radius = np.linalg.norm(np.moveaxis(np.indices((70, 70, 70)), 0, -1) * MM - 69.0, axis=-1)
    layers = [radius < r for r in (50, 54, 60, 66)]
    return {
        "T1w": np.select(layers, (1.0, 0.02, 0.05, 2.5), 0.0).astype(np.float32),
        "T2w": np.select(layers, (0.4, 1.0, 0.03, 0.5), 0.0).astype(np.float32),
        "radius": radius,
    }


@pytest.mark.parametrize("off", [-8.0, 0.0, 8.0])
def test_the_border_is_found_where_the_template_is_a_centimetre_off(off):
    head = shells()
    template, inside = head["radius"] < 52 + off, head["radius"] < 66
    both = _within([(True, head["T1w"]), (False, head["T2w"])], template, inside)
    assert both[head["radius"] < 54 - MM].mean() > 0.99 and not both[head["radius"] > 54 + 2 * MM].any()
    alone = _within([(True, head["T1w"])], template, inside)  # cannot tell CSF from bone
    assert alone[head["radius"] < 50 - MM].mean() > 0.99 and not alone[head["radius"] > 60].any()


def test_fat_is_no_brain_though_it_is_the_brightest_of_all():
    head = shells()
    found = _within([(True, head["T1w"])], head["radius"] < 58, head["radius"] < 66)  # reaches deep into bone
    assert head["T1w"][found].max() <= 1


def test_growing_and_shrinking_are_in_millimetres_and_leave_the_field_of_view_alone():
    block = np.zeros((12, 12, 12), bool)
    block[:6] = True
    assert dilate(block, 4.0)[7].all() and not dilate(block, 4.0)[8].any()
    assert erode(block, 4.0)[3].all() and not erode(block, 4.0)[4].any() and erode(block, 4.0)[0].all()
    assert not dilate(~block & block, 4.0).any() and erode(block | ~block, 4.0).all()


def test_a_scalp_brighter_than_any_brain_does_not_mislead_the_template(simulated_session):
    t1w = simulated_session["T1w"]
    rim = ndimage.binary_dilation(t1w.image > 300, iterations=4)
    scalp = ndimage.binary_dilation(rim, iterations=3) & ~rim
    bright = replace(t1w, image=np.where(scalp, 8 * np.percentile(t1w.image, 98), t1w.image).astype(np.float32))
    plain, dazzled = (template_brain(scan)[0].affine for scan in (t1w, bright))
    corners = np.array([[x, y, z, 1] for x in (20, 70) for y in (20, 90) for z in (20, 70)], float).T
    assert np.linalg.norm((plain - dazzled) @ corners, axis=0).max() < 12


# --- heads ------------------------------------------------------------------------------------------


STILL = Deformation(0, 0, 0, 0, 0, 0, 0, 0)
RECIPE = CohortRecipe(noise=(1e-9, 1e-9), texture=0.0, bias=0.0, deformation=STILL, seed=99)
"""A head as it is, without what is drawn voxel by voxel: it can be scanned in any pose and on any voxels."""

POSES = {"T1w": ((0, 0, 0), (0, 0, 0)), "T2w": ((3, -2, 2), (2, -3, 3)), "FLAIR": ((6, -2, 0), (2, -6, 3))}
"""How the head lay for each scan: degrees about x, y, z and mm."""


def simulated(who: Subject, recipe: CohortRecipe, grid: grids.Grid, pose=((0, 0, 0), (0, 0, 0))) -> Simulated:
    """The person, scanned without noise on the voxels of a grid."""
    at = np.moveaxis(np.indices(grid.shape[::-1]), 0, -1)[..., ::-1]  # (z, y, x, 3) of voxels (x, y, z)
    turn = Rotation.from_euler("xyz", pose[0], degrees=True).as_matrix()
    points = torch.from_numpy(apply_affine(grid.affine, at) @ turn.T + pose[1]).float()
    with mock.patch.object(cohort, "slice_points", lambda _: points):
        return simulate(who, recipe)


def noisy(image: torch.Tensor, sd: float, seed: int) -> np.ndarray:
    """``(x, y, z)`` of slices ``(z, y, x)`` with Rician noise, its SD a fraction of the 99th percentile."""
    rng = np.random.default_rng(seed)
    volume = image.numpy().T
    sd = sd * np.percentile(volume[volume > 0][::7], 99)
    return np.hypot(volume + rng.normal(0, sd, volume.shape), rng.normal(0, sd, volume.shape)).astype(np.float32)


def session(images: list[np.ndarray], protocols: list, affine: np.ndarray, folder: Path) -> list[nifti.Scan]:
    """Written as BIDS and read back."""
    for suffix, image, nominal in zip(MODALITIES, images, protocols, strict=True):
        nifti.write_image(folder / f"sub-01_{suffix}.nii.gz", image, affine, bids.sidecar(nominal))
    return sessions.read_session(folder)


@pytest.fixture(scope="module")
def trained():
    """Weights that have learned something: of PHYLDM_WEIGHTS, else of a run that lies in this checkout."""
    places = [os.environ.get("PHYLDM_WEIGHTS", ""), ROOT / "runs" / "heads", ROOT / "runs" / "laptop"]
    for place in places:
        if place and (Path(place) / "vae").is_dir():
            return load_weights(place)
    pytest.skip("no trained weights: set PHYLDM_WEIGHTS, or run phyldm reproduce")


def scanned_in_place(who: Subject, recipe: CohortRecipe, prepared, noise: float) -> list[np.ndarray]:
    """The three scans on the grid of ``prepared`` without having moved: 1 mm voxels, without skull, averaged by eights.

    Averaged as signals, as a scanner and :func:`grids.resample` do. A cohort of 2 mm mixes properties within a voxel
    instead, and the two differ where tissues meet, above all in FLAIR.
    """
    finer = prepared.affine.copy()
    finer[:3, :3] /= 2
    finer[:3, 3] -= finer.diagonal()[:3] / 2
    shape = prepared.brain.shape
    person = simulated(who, replace(recipe, voxel_mm=1.0, slice_mm=1.0), grids.Grid(tuple(2 * n for n in shape), finer))
    fine = (noisy(person.images[:, m], noise, m) for m in range(len(MODALITIES)))
    eights = (image.reshape(shape[0], 2, shape[1], 2, shape[2], 2) for image in fine)
    return [image.mean((1, 3, 5)) for image in eights]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sessions_through_preprocessing_reproduce_their_truth(shared_data, trained, tmp_path):
    """Within 1.2 × the error without preprocessing: T1 and T2 of pure WM and GM, at the heights that were trained.

    With: scans of 1 mm, the head in another place for each, written, read, registered, stripped and brought to the
    grid of the weights. Without: the same person scanned on that very grid, without skull. Mean over the heads.
    """
    vae, rows = trained.vae(), []
    for head in HEADS:
        who = Subject(f"sub-{head}", "test", f"training_seg_{head}.nii.gz", int(head))
        recipe = replace(RECIPE, anatomies=str(shared_data / "synthseg_labels"), n_slices=168, shape=(232, 192))
        affine = np.eye(4)
        affine[:3, 3] = -95.5, -115.5, -83.5
        fine, images = replace(recipe, voxel_mm=1.0, slice_mm=1.0, head=True), []
        for m, pose in enumerate(POSES.values()):
            scanned = simulated(who, fine, grids.Grid((192, 232, 168), affine), pose)
            images.append(noisy(scanned.images[:, m], 0.03, m))
        prepared = fit.prepare(session(images, scanned.nominal, affine, tmp_path / head / "scanned"), trained)
        bare = simulated(who, replace(recipe, n_slices=84, shape=(116, 96)),
                         grids.Grid(prepared.brain.shape, prepared.affine))  # fmt: skip
        true, found = (bare.maps[:, 0] > 0.05).numpy().T, prepared.brain
        in_place = scanned_in_place(who, recipe, prepared, 0.03)
        aligned = session(in_place, bare.nominal, prepared.affine, tmp_path / head / "in place")
        both = {"with": prepared, "without": fit.prepare(aligned, trained, mask=true)}

        shared = (found & true).sum()
        dice = 2 * shared / (found.sum() + true.sum())
        print(
            f"head {head}: Dice {dice:.3f}, {1 - shared / true.sum():.1%} cut, {1 - shared / found.sum():.1%} no brain"
        )
        assert dice > 0.93
        height = np.abs(apply_affine(prepared.affine, [(0, 0, k) for k in range(true.shape[2])])[:, 2])
        errors: dict = {}
        for kind, each in both.items():
            k = np.flatnonzero(height < trained.slab_mm)
            slices, window = fit.session_slices(each, trained, vae.downsampling, k=k)
            maps = infer(vae, slices, common_scale=False, scale=fit.volume_brightness(slices))[1]
            for i, tissue in enumerate(("WM", "GM")):
                pure = (bare.fractions[:, i] >= 0.9).numpy().T & (height < trained.slab_mm / 2)
                inside = pure & found
                assert inside.sum() > 0.97 * pure.sum(), f"head {head}, {tissue}: cut off"
                for p, quantity in ((1, "T1"), (2, "T2")):
                    estimate = window.into_volume(maps[p].numpy(), true.shape)[inside]
                    truth = bare.maps[:, p].numpy().T[inside]
                    errors[f"{quantity} of {tissue}", kind] = metrics.median_absolute_error(estimate, truth)
        print(pandas.Series(errors).unstack().map("{:.2%}".format).to_string())
        rows.append(pandas.Series(errors))
    mean = pandas.concat(rows, axis=1).mean(axis=1).unstack()
    ratio = mean["with"] / mean["without"]
    print(mean.map("{:.2%}".format).assign(ratio=ratio.round(2)).to_string())
    assert (ratio <= 1.2).all(), ratio

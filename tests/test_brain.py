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
import pytest
import torch
from conftest import ROOT
from scipy import ndimage
from scipy.spatial.transform import Rotation

from phyldm_core import cohort, fit, scans
from phyldm_core.anatomy import Deformation
from phyldm_core.brain import MM, _within, dilate, erode
from phyldm_core.cohort import MODALITIES, CohortRecipe, Simulated, Subject, simulate, slice_points
from phyldm_core.errors import BadInput
from phyldm_core.inference import infer
from phyldm_core.physics import Protocol
from phyldm_core.preprocess import TEMPLATE, prepare_session
from phyldm_core.registration import template_brain
from phyldm_core.weights import load_weights

HEADS = ("11", "12", "13", "14", "15")
NOISE = 0.018  # SD, of a scan's 99th percentile in the brain, the middle of the cohort's
AFFINE = np.array([[2.0, 0, 0, -95], [0, 2, 0, -115], [0, 0, 2, -83], [0, 0, 0, 1]])


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
    both = _within({suffix: head[suffix] for suffix in ("T1w", "T2w")}, template, inside)
    assert both[head["radius"] < 54 - MM].mean() > 0.99 and not both[head["radius"] > 54 + 2 * MM].any()
    alone = _within({"T1w": head["T1w"]}, template, inside)  # cannot tell CSF from bone
    assert alone[head["radius"] < 50 - MM].mean() > 0.99 and not alone[head["radius"] > 60].any()


def test_fat_is_no_brain_though_it_is_the_brightest_of_all():
    head = shells()
    found = _within({"T1w": head["T1w"]}, head["radius"] < 58, head["radius"] < 66)  # reaches deep into bone
    assert head["T1w"][found].max() <= 1


def test_growing_and_shrinking_are_in_millimetres_and_leave_the_field_of_view_alone():
    block = np.zeros((12, 12, 12), bool)
    block[:6] = True
    assert dilate(block, 4.0)[7].all() and not dilate(block, 4.0)[8].any()
    assert erode(block, 4.0)[3].all() and not erode(block, 4.0)[4].any() and erode(block, 4.0)[0].all()
    assert not dilate(~block & block, 4.0).any() and erode(block | ~block, 4.0).all()


def test_what_is_no_head_is_refused():
    noise = np.random.default_rng(0).rayleigh(10, (60, 60, 60)).astype(np.float32)
    affine = np.diag([0.5, 0.5, 0.5, 1.0])  # a cube of 3 cm
    scan = scans.Scan(noise, affine, Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0), "T1w", Path("x_T1w.nii.gz"), {})
    with pytest.raises(BadInput, match="brain mask"):
        prepare_session([scan], voxel_mm=2.0, mask=TEMPLATE)


def test_a_scalp_brighter_than_any_brain_does_not_mislead_the_template(simulated_session):
    t1w = simulated_session["T1w"]
    rim = ndimage.binary_dilation(t1w.image > 300, iterations=4)
    scalp = ndimage.binary_dilation(rim, iterations=3) & ~rim
    bright = replace(t1w, image=np.where(scalp, 8 * np.percentile(t1w.image, 98), t1w.image).astype(np.float32))
    plain, dazzled = (template_brain(scan)[0].affine for scan in (t1w, bright))
    corners = np.array([[x, y, z, 1] for x in (20, 70) for y in (20, 90) for z in (20, 70)], float).T
    assert np.linalg.norm((plain - dazzled) @ corners, axis=0).max() < 12


# --- heads ------------------------------------------------------------------------------------------


SIZE = {"n_slices": 84, "shape": (116, 96)}  # 168 × 232 × 192 mm: a head without its chin
POSES = {"T1w": ((0, 0, 0), (0, 0, 0)), "T2w": ((3, -2, 2), (2, -3, 3)), "FLAIR": ((6, -2, 0), (2, -6, 3))}
"""How the head lay for each scan: degrees about x, y, z and mm."""


def scanned(folder: Path, head: str) -> tuple[dict[str, torch.Tensor], Simulated, list]:
    """Scans of one head, each acquired where the head lay by then; the same as in the cohort; and their protocols.

    The head is nobody's deformation and its tissues have no texture, so that it can be sampled anywhere: a scan that
    was moved by interpolation would have lost what no preprocessing can give back.
    """
    still = Deformation(0, 0, 0, 0, 0, 0, 0, 0)
    recipe = CohortRecipe(anatomies=str(folder), noise=(1e-9, 1e-9), texture=0.0, deformation=still, seed=99, **SIZE)
    who = Subject(f"sub-{head}", "test", f"training_seg_{head}.nii.gz", int(head))
    points, images = slice_points(recipe), {}
    for m, (suffix, (degrees, mm)) in enumerate(POSES.items()):
        turn = torch.from_numpy(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()).float()
        with mock.patch.object(cohort, "slice_points", lambda _, t=turn, d=mm: points @ t.T + torch.tensor(d).float()):
            images[suffix] = simulate(who, replace(recipe, head=True)).images[:, m]
    bare = simulate(who, recipe)
    rng = np.random.default_rng(int(head))
    for m, suffix in enumerate(MODALITIES):
        sd = NOISE * torch.quantile(bare.images[:, m].reshape(-1)[::3], 0.99)
        real, imaginary = (sd * torch.from_numpy(rng.normal(size=images[suffix].shape)).float() for _ in range(2))
        images[suffix] = ((images[suffix] + real) ** 2 + imaginary**2).sqrt()
        bare.images[:, m] = ((bare.images[:, m] + real) ** 2 + imaginary**2).sqrt()
    return images, bare, bare.nominal


def session(images: dict[str, torch.Tensor], protocols: list, folder: Path) -> list[scans.Scan]:
    """Written as BIDS and read back."""
    for (suffix, image), nominal in zip(images.items(), protocols, strict=True):
        path = folder / f"sub-01_{suffix}.nii.gz"
        scans.write_image(path, image.numpy().T, AFFINE, scans.sidecar(nominal))
    return scans.read_session(folder)


@pytest.fixture(scope="module")
def trained():
    """Weights that have learned something: of PHYLDM_WEIGHTS, else of a run that lies in this checkout."""
    places = [os.environ.get("PHYLDM_WEIGHTS", ""), ROOT / "runs" / "heads", ROOT / "runs" / "laptop"]
    for place in places:
        if place and (Path(place) / "vae").is_dir():
            return load_weights(place)
    pytest.skip("no trained weights: set PHYLDM_WEIGHTS, or run phyldm reproduce")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("head", HEADS)
def test_a_session_through_preprocessing_reproduces_its_truth(head, shared_data, trained, tmp_path):
    """Within 1.2 × the error without preprocessing: T1 and T2 of pure WM and GM, at the heights that were trained."""
    images, bare, protocols = scanned(shared_data / "synthseg_labels", head)
    true = (bare.maps[:, 0] > 0.05).numpy().T
    aligned = dict(zip(MODALITIES, bare.images.unbind(1), strict=True))
    prepared = {
        "with": fit.prepare(session(images, protocols, tmp_path / "scanned"), trained),
        "without": fit.prepare(session(aligned, protocols, tmp_path / "bare"), trained, mask=true),
    }
    found = prepared["with"].brain
    both = (found & true).sum()
    dice = 2 * both / (found.sum() + true.sum())
    print(f"head {head}: Dice {dice:.3f}, {1 - both / true.sum():.1%} cut off, {1 - both / found.sum():.1%} not brain")
    assert prepared["with"].mask_from == "template" and dice > 0.93

    middle = np.abs(AFFINE[2, 3] + 2.0 * np.arange(true.shape[2])) < trained.slab_mm / 2
    errors = {}
    for kind, each in prepared.items():
        vae = trained.vae()
        k = np.flatnonzero(np.abs(AFFINE[2, 3] + 2.0 * np.arange(true.shape[2])) < trained.slab_mm)
        slices, window = fit.session_slices(each, trained, vae.downsampling, k=k)
        maps = infer(vae, slices, common_scale=False, scale=fit.volume_brightness(slices))[1]
        for i, tissue in enumerate(("WM", "GM")):
            pure = (bare.fractions[:, i] >= 0.9).numpy().T & middle
            inside = pure & found
            assert inside.sum() > 0.97 * pure.sum(), f"{tissue}: cut off"
            for p, quantity in ((1, "T1"), (2, "T2")):
                estimate = window.into_volume(maps[p].numpy(), true.shape)[inside]
                truth = bare.maps[:, p].numpy().T[inside]
                errors.setdefault((tissue, quantity), {})[kind] = float(np.median(abs(estimate - truth) / truth))
    for (tissue, quantity), e in errors.items():
        print(f"head {head}, {quantity} of {tissue}: {e['with']:.2%} with, {e['without']:.2%} without, "
              f"× {e['with'] / e['without']:.2f}")  # fmt: skip
        assert e["with"] <= 1.2 * e["without"], (tissue, quantity)

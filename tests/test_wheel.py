"""The wheel: built and installed without a network, it does from any folder what a checkout does."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import ROOT
from nilearn.image import resample_to_img

from phyldm_core.physics import Protocol

PROTOCOLS = {"T1w": Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0), "T2w": Protocol("spin echo", te=0.1, tr=3.2)}
SHAPE = (28, 34, 5)
AFFINE = np.array([[6, 0, 0, -81], [0, 6, 0, -105], [0, 0, 6, -12], [0, 0, 0, 1.0]])


def ran(*command, cwd: Path, **environment) -> str:
    """What a command printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    ran("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    options = ("--quiet", "--no-index", "--no-deps", "--target", folder / "site")
    ran("-m", "pip", "install", *options, wheel, cwd=folder)
    return folder / "site"


@pytest.fixture(scope="module")
def phyldm(site, tmp_path_factory):
    """``phyldm(…)`` as installed, in a folder of its user's; ``phyldm.folder`` is that folder."""
    folder = tmp_path_factory.mktemp("somebody's folder")

    def phyldm(*arguments) -> str:
        return ran("-m", "phyldm_core", *arguments, cwd=folder, PYTHONPATH=str(site))

    phyldm.folder = folder
    where = ran("-c", "import phyldm_core; print(phyldm_core.__file__)", cwd=folder, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    return phyldm


@pytest.fixture(scope="module")
def maps(phyldm) -> Path:
    """What ``phyldm sample`` drew with the weights that came along."""
    phyldm("sample", "-n", "1", "--seed", "7", "--weights", "release", "--bids", "--out", "people")
    return phyldm.folder / "people" / "sub-0001" / "anat"


def test_what_lies_beside_the_package_went_along(site):
    carried = site / "phyldm_core" / "_carried"
    chapters = [path.relative_to(ROOT) for path in (ROOT / "notebooks").glob("*.ipynb")]
    weights = [path.relative_to(ROOT) for path in (ROOT / "data" / "weights" / "release").rglob("*") if path.is_file()]
    tables = [path.relative_to(ROOT) for path in (ROOT / "data").glob("*.*")]
    tables += [path.relative_to(ROOT) for path in (ROOT / "data" / "label_maps").iterdir()]
    assert len(chapters) >= 10 and len(weights) >= 10 and len(tables) >= 3
    kept = [str(path) for path in chapters + weights + tables]
    assert filecmp.cmpfiles(ROOT, carried, kept, shallow=False)[0] == kept
    assert {path.name for path in carried.iterdir()} == {"data", "notebooks", "tests"}
    assert not (carried / "notebooks" / "text").exists()


def test_people_are_drawn_with_the_weights_that_came_along(maps):
    t1 = nibabel.load(maps / "sub-0001_T1map.nii.gz").get_fdata()
    assert 0.6 < np.median(t1[t1 > 0.6]) < 2  # s, fat left out


def test_scans_are_fitted_with_the_weights_that_came_along(phyldm, maps):
    """Scans of the drawn person, whose tissue is known: T1 and T2 of white and grey matter come back.

    An MPRAGE of TI 0.45 s tells T1 whatever its gain is; OASIS-3's tells it no better than the known mean.
    """
    protocol = ("--sequence", "MPRAGE", "--te", "0.003", "--tr", "2", "--ti", "0.45")
    phyldm("render", "--maps", maps, *protocol, "--out", "scans/sub-0001_T1w.nii.gz")
    scans = [phyldm.folder / "scans" / "sub-0001_T1w.nii.gz", maps / "sub-0001_T2w.nii.gz"]
    phyldm("fit", *scans, "--weights", "release", "--samples", "2", "--grid", "model", "--out", "maps")
    label = nibabel.load(maps / "sub-0001_dseg.nii.gz").get_fdata()
    for quantity in ("T1map", "T2map"):
        (fitted,) = (phyldm.folder / "maps").rglob(f"*_res-1mm_{quantity}.nii.gz")
        drawn, found = (nibabel.load(path) for path in (maps / f"sub-0001_{quantity}.nii.gz", fitted))
        back = resample_to_img(found, drawn, copy_header=True, force_resample=True).get_fdata()
        for tissue in (2, 3):  # GM, WM
            inside = (label == tissue) & (back > 0)
            assert inside.sum() > 0.5 * (label == tissue).sum()
            assert 0.9 < np.median(back[inside]) / np.median(drawn.get_fdata()[inside]) < 1.1


def test_a_contrast_is_rendered_from_the_maps(phyldm, maps):
    protocol = ("--sequence", "spin echo", "--te", "0.08", "--tr", "5")
    phyldm("render", "--maps", maps, *protocol, "--out", "sub-01_T2w.nii.gz")
    assert nibabel.load(phyldm.folder / "sub-01_T2w.nii.gz").get_fdata().max() > 0


def test_people_are_simulated_where_the_user_stands(phyldm):
    assert "people in runs/smoke/cohort" in phyldm("simulate", "--profile", "smoke", "--workers", "1")
    assert (phyldm.folder / "runs" / "smoke" / "cohort" / "participants.tsv").exists()


def test_a_chapter_runs_where_the_user_stands(phyldm):
    phyldm("reproduce", "--profile", "smoke", "--only", "1")
    run = phyldm.folder / "runs" / "smoke"
    assert (run / "report.html").exists() and (run / "notebooks" / "01_signal_physics.ipynb").exists()
    assert (run / "figures" / "fig06_signal_curves.png").exists()

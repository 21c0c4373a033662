"""What all tests share: the data beside the repository, and an order that puts quick answers first."""

from __future__ import annotations

import os
import shutil
from itertools import starmap
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
if SIDE_BY_SIDE:  # before torch is imported, and for the kernels that chapters run in: one core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real heads and a real patient, which the project does not carry."""
    folder = Path(os.environ.get("PHYLDM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no data at PHYLDM_SHARED_DATA nor at ../shared/data")
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The smallest run with all its parts, made once. To be read, not changed."""
    from phyldm_core.people import cohort
    from phyldm_core.running.run import open_run  # seconds of imports, for those who need it

    run = open_run(tmp_path_factory.mktemp("runs") / "smoke", "smoke")
    with pytest.MonkeyPatch.context() as patch:  # people are made here: processes of their own would import all anew
        patch.setattr(cohort, "run_shards", lambda function, shards, *_: starmap(function, shards))
        for part in (run.make_cohort, run.train_vae, run.train_composition, run.train_diffusion):
            for _ in part():
                pass
    return run


@pytest.fixture(scope="session")
def simulated_session():
    """A noisy simulated brain at 2 mm, 118 mm of it, in three contrasts that are aligned: ``{suffix: scans.Scan}``."""
    import numpy as np
    import torch

    from phyldm_core.people.anatomy import load_anatomy
    from phyldm_core.physics import Protocol, TissueMaps, render
    from phyldm_core.scans.nifti import Scan
    from phyldm_core.tissue import in_vivo_3t

    protocols = {
        "T1w": Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0),
        "T2w": Protocol("spin echo", te=0.1, tr=3.2),
        "FLAIR": Protocol("FLAIR", te=0.091, tr=9.0, ti=2.5),
    }
    fractions = load_anatomy("mni152", None, slab_mm=70, head=False, blur_mm=0.8).fractions[:, ::2, ::2, ::2]
    median = torch.from_numpy(in_vivo_3t().median).float()
    water = torch.einsum("kzyx,k->zyx", fractions, median[:, 0])
    share = fractions * median[:, 0, None, None, None] / water.clamp_min(1e-6)
    t1, t2 = (torch.einsum("kzyx,k->zyx", share, median[:, i].log()).exp() for i in (1, 2))
    noise = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -94, -132, -46
    made = {}
    for suffix, protocol in protocols.items():
        clean = render(TissueMaps(water, t1, t2), protocol).numpy().T
        sd = 0.02 * np.percentile(clean[clean > 0], 95)
        image = 1000 * np.hypot(clean + noise.normal(0, sd, clean.shape), noise.normal(0, sd, clean.shape))
        made[suffix] = Scan(image.astype(np.float32), affine, protocol, suffix, Path(f"sub-01_{suffix}.nii.gz"), {})
    return made


FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    # Debian's Chromium, driven by Playwright
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here: make browser-test says how to get it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -r requirements.txt")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


def all_widgets(widget):
    """A widget and all that it holds."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_widgets(child)


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Side by side, chapters come first, being longest; alone last: a unit test names most reasons better."""
    items.sort(key=lambda item: item.path.name == "test_notebooks.py", reverse=SIDE_BY_SIDE)

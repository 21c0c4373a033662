"""What all tests share: the data beside the repository, and an order that puts quick answers first."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

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
    from phyldm_core.runs import open_run  # seconds of imports, for those who need it

    run = open_run(tmp_path_factory.mktemp("runs") / "smoke", "smoke")
    for part in (run.make_cohort, run.train_vae, run.train_coarse, run.train_refiner, run.train_diffusion):
        for _ in part():
            pass
    return run


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Notebooks last: they take minutes, and mostly fail for a reason that a unit test names better."""
    items.sort(key=lambda item: item.path.name == "test_notebooks.py")

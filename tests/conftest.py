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


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Notebooks last: they take minutes, and mostly fail for a reason that a unit test names better."""
    items.sort(key=lambda item: item.path.name == "test_notebooks.py")

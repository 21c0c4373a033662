"""Each scan from the others: the rival is the best there is of its kind, the model sees nothing it should not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from phyldm_core.evaluation.leave_one_out import judge_scans, predict_scan
from phyldm_core.machine.errors import BadInput
from phyldm_core.people.stand_in import write_stand_in
from phyldm_core.scans import sessions
from phyldm_core.scans.prepare import is_skull_stripped
from phyldm_core.slices import MODALITIES


@pytest.fixture(scope="module")
def person(smoke_run):
    slices, brain = smoke_run.scans("test", common_scale=False), smoke_run.truth("test").brain
    first = slices.subject == 0
    return slices[first], brain[first]


def test_the_rival_finds_a_weighted_sum(smoke_run, person):
    slices, brain = person
    images = slices.images.clone()
    images[:, 2] = 2 * images[:, 0] + 0.5 * images[:, 1] + 30
    rival = predict_scan(smoke_run.vae(), replace(slices, images=images), brain, 2)["rival"]
    torch.testing.assert_close(rival[brain], images[:, 2][brain], rtol=1e-3, atol=1e-2)
    assert not rival[~brain].any()


def test_the_model_does_not_see_the_hidden_scan_but_for_its_gain(smoke_run, person):
    slices, brain = person
    vae, other = smoke_run.vae(), slices.images.clone()
    other[:, 1] = 7 * other[:, 1].flip(-1)
    seen = replace(slices, images=other)
    one, two = (predict_scan(vae, each, brain, 1)["model"] for each in (slices, seen))
    gain = two[brain].sum() / one[brain].sum()
    torch.testing.assert_close(two, gain * one, rtol=1e-4, atol=1e-4)
    assert one[brain].abs().max() > 0 and not one[~brain].any()


def test_every_scan_is_judged_by_both_methods(smoke_run, person):
    slices, brain = person
    rows, predicted = judge_scans(smoke_run.vae(), slices, brain, MODALITIES, "somebody")
    assert set(predicted) == {0, 1, 2} and len(rows) == 3 * 3 * 2
    assert {row["inputs"] for row in rows} == {"somebody, model", "somebody, rival"}
    assert {row["metric"] for row in rows} == {"psnr", "ssim", "correlation"}


def test_a_scan_alone_cannot_be_left_out(smoke_run, person):
    slices, brain = person
    alone = slices.observed.clone()
    alone[:, 1:] = False
    assert judge_scans(smoke_run.vae(), replace(slices, observed=alone), brain, MODALITIES) == ([], {})
    with pytest.raises(BadInput, match="takes two scans"):
        predict_scan(smoke_run.vae(), replace(slices, observed=alone), brain, 0)
    with pytest.raises(BadInput, match="takes two scans"):
        predict_scan(smoke_run.vae(), replace(slices, observed=alone), brain, 1)


def test_the_stand_in_is_a_whole_stripped_brain(smoke_run, tmp_path):
    session = sessions.read_session(write_stand_in(tmp_path / "one", smoke_run.recipe, seed=3))
    assert [scan.suffix for scan in session] == ["T1w", "T2w", "FLAIR"]
    for scan in session:
        assert is_skull_stripped(scan)
        litres = (scan.image > 0).sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1e6
        assert 0.8 < litres < 2.6  # a brain, its fluid, and the rim in whole voxels of 6 mm
    again = sessions.read_session(write_stand_in(tmp_path / "two", smoke_run.recipe, seed=3))
    np.testing.assert_array_equal(session[0].image, again[0].image)

"""Any number of scans of any protocol: all are used, a real part keeps its sign, and what they do not tell is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_fit import AFFINE, PROTOCOLS, SHAPE, brain_maps, run_fit

from phyldm_core import __version__, tissue
from phyldm_core.machine.files import sha256
from phyldm_core.physics import Protocol, Sequence, TissueMaps, render
from phyldm_core.running.profiles import find_profile
from phyldm_core.scans import bids, doubts, nifti
from phyldm_core.scans.doubts import unidentified
from phyldm_core.scans.fit import prepare, session_slices
from phyldm_core.scans.sessions import read_session
from phyldm_core.vae import PoEVAE
from phyldm_core.weights import CONVENTIONS, FORMAT, load_weights

SPIN_ECHO = Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0)


@pytest.fixture(scope="module", params=[True, False], ids=["heads", "brains"])
def weights(request, tmp_path_factory):
    """Of a network that has learned nothing, for heads or for brains."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    PoEVAE(**find_profile("smoke").vae).save_pretrained(folder / "vae")
    (folder / "training.json").write_text(json.dumps({"vae": {"cohort": {"n_slices": 2, "slice_mm": 6.0}}}))
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*.*")}
    config = {"format": FORMAT, "conventions": CONVENTIONS, "version": __version__, "profile": "smoke", "files": files}
    config |= {"voxel_mm": 6.0, "slice_mm": 6.0, "slice_shape": [32, 32], "n_slices": 2, "head": request.param}
    (folder / "config.json").write_text(json.dumps(config))
    return load_weights(folder)


def inverted(ti: float, signed: bool = False) -> Protocol:
    return Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=ti, signed=signed)


def flash(degrees: float) -> Protocol:
    return Protocol(Sequence.GRADIENT_ECHO, te=0.004, tr=0.02, flip_angle_deg=degrees)


def write(folder, names: dict[str, Protocol]):
    maps = brain_maps()
    inside = maps.pd > 0
    for name, protocol in names.items():
        image = np.zeros(SHAPE, np.float32)
        image[inside] = 700 * render(TissueMaps(*(volume[inside] for volume in maps)), protocol)
        nifti.write_image(folder / f"{name}.nii.gz", image, AFFINE, bids.sidecar(protocol, SkullStripped=True))


def test_two_inversion_recoveries_and_a_spin_echo_are_all_used(weights, tmp_path):
    session = {"sub-01_acq-a_T1w": inverted(0.5), "sub-01_acq-b_T1w": inverted(2.0), "sub-01_T2w": SPIN_ECHO}
    write(tmp_path / "raw", session)
    done = run_fit(tmp_path / "raw", weights, tmp_path / "out")  # stripped, which weights of heads take, too
    assert done.exit_code == 0 and "T1w+T1w 2+T2w: brain from" in done.stdout, done.output
    meta = json.loads((tmp_path / "out" / "sub-01" / "anat" / "sub-01_T1map.json").read_text())
    used = {scan["File"].removesuffix(".nii.gz"): scan["ProtocolUsed"] for scan in meta["InputScans"]}
    assert {name: told.get("InversionTime") for name, told in used.items()} == {
        name: protocol.ti for name, protocol in session.items()
    }
    assert "hardly depend" not in done.output


def test_a_protocol_that_leaves_a_map_untold_is_doubted_once(weights, tmp_path):
    write(tmp_path / "raw", {"sub-01_T1w": PROTOCOLS["T1w"]})
    for state in ("done", "unchanged"):
        done = run_fit(tmp_path / "raw", weights, tmp_path / "out")
        assert state in done.stdout and done.stderr.count("doubtful: T2: these protocols hardly depend on it") == 1


def test_a_signed_scan_reaches_the_network_with_its_sign(weights, tmp_path):
    write(tmp_path, {"sub-01_T1w": inverted(0.5, signed=True), "sub-01_T2w": SPIN_ECHO})
    scans = read_session(tmp_path)
    assert scans[0].protocol.signed and scans[0].image.min() < 0
    prepared = prepare(scans, weights)
    slices, window = session_slices(prepared, weights, downsampling=4)
    assert slices.settings[0, :, 5].tolist() == [1, 0] and slices.observed.all()
    inside = window.of_volume(prepared.brain)
    assert (slices.images[:, 0].numpy()[inside] < 0).mean() > 0.3 and (slices.images[:, 1] >= 0).all()
    assert not slices.images.numpy()[:, :, :2].any() and (slices.images != 0).any()  # the window's margin holds no data


# --- what protocols tell --------------------------------------------------------------------------

MPRAGE, T2W, FLAIR = PROTOCOLS.values()


@pytest.mark.parametrize(
    ("protocols", "untold"),
    [
        ([Protocol("spin echo", 0.02, 5), Protocol("spin echo", 0.1, 5)], ("T1",)),
        ([T2W], ("T1",)),
        ([MPRAGE], ("T2",)),
        ([flash(4), flash(18)], ("T2",)),
        ([inverted(0.5), inverted(2)], ("T2",)),
        ([MPRAGE, T2W], ()),
        ([MPRAGE, T2W, FLAIR], ()),
        ([T2W, FLAIR], ()),
        ([inverted(0.5), SPIN_ECHO, inverted(2)], ()),
        ([inverted(0.5, signed=True), SPIN_ECHO], ()),
        ([flash(4), flash(18), T2W], ()),
        ([], ("T1", "T2")),
    ],
)
def test_what_protocols_do_not_tell_is_named(protocols, untold):
    assert unidentified(protocols) == untold == unidentified(protocols[::-1])
    assert [doubt[:4] for doubt in doubts.untold(protocols)] == [f"{name}: " for name in untold]


def test_more_scans_never_tell_less():
    session = [MPRAGE, Protocol("spin echo", 0.02, 5), FLAIR, T2W, flash(20), inverted(0.5)]
    for n in range(len(session)):
        assert set(unidentified(session[: n + 1])) <= set(unidentified(session[:n]))


def test_usual_tissue_is_the_table_s():
    assert list(doubts.USUAL_TISSUE) == list(tissue.three_medians())
    for usual, measured in zip(doubts.USUAL_TISSUE.values(), tissue.three_medians().values(), strict=True):
        np.testing.assert_allclose(usual, measured, rtol=0.02)

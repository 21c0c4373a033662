"""What a physicist and a radiologist would nod at, stated about ``phyldm_core.physics``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from phyldm_core.physics import (
    PART,
    REFERENCE,
    SEQUENCES,
    SHORTEST_TIME,
    UNSEEN,
    Protocol,
    ProtocolError,
    Sequence,
    TissueMaps,
    ernst_angle,
    flair,
    inversion_gradient_echo,
    mprage,
    null_ti,
    render,
    shown_signal,
    signed_signal,
    spin_echo,
    spoiled_gradient_echo,
)

INVERTING = (Sequence.MPRAGE, Sequence.FLAIR, Sequence.INVERSION_GRADIENT_ECHO)
TISSUES = {"WM": (0.70, 0.85, 0.070), "GM": (0.82, 1.45, 0.080), "CSF": (1.0, 4.3, 2.0)}  # PD, T1 (s), T2 (s)
EXTREMES = (0.0, 1e-30, 1e-4, 1.001e-4, 1e30, math.inf)  # s
OF_SCANS = [*REFERENCE.values(), *UNSEEN]
GRADIENT_ECHO = Protocol("spoiled gradient echo", te=0.004, tr=0.02, flip_angle_deg=25)
INVERTED_GRADIENT_ECHO = Protocol("inversion-recovery gradient echo", te=0.004, tr=2.5, ti=0.9, flip_angle_deg=9)
REAL_PART = Protocol("FLAIR", te=0.012, tr=4.0, ti=0.4, signed=True)
EVERY_PROTOCOL = [*OF_SCANS, GRADIENT_ECHO, INVERTED_GRADIENT_ECHO, REAL_PART]

positive = st.floats(min_value=0.01, max_value=10.0)  # s, wider than any tissue
fraction = st.floats(min_value=0.01, max_value=0.99)
few_examples = settings(max_examples=60)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def image(pd, t1, t2, dtype=torch.float64):
    """One voxel as maps ``(1, 1, 1)``."""
    return TissueMaps(*(torch.full((1, 1, 1), float(v), dtype=dtype) for v in (pd, t1, t2)))


def angle_and_inversion(sequence: Sequence, ti: float) -> dict:
    """TI and a flip angle of 30°, each where the sequence has one."""
    return ({"ti": ti} if sequence.inverts else {}) | ({"flip_angle_deg": 30} if sequence.has_flip_angle else {})


def closed_form(maps: TissueMaps, protocol: Protocol):
    """The sequence's own function, called by name."""
    times = [t for t in (protocol.te, protocol.tr, protocol.ti) if t is not None]
    if protocol.flip_angle_deg is not None:
        of_angle = inversion_gradient_echo if protocol.sequence.inverts else spoiled_gradient_echo
        return of_angle(*maps, *times, math.radians(protocol.flip_angle_deg))
    return {"MPRAGE": mprage, "spin echo": spin_echo, "FLAIR": flair}[protocol.sequence.value](*maps, *times)


# Limits ---------------------------------------------------------------------------------------------------


def test_long_tr_and_short_te_show_proton_density():
    pd, t1, t2 = tensor(*TISSUES.values()).T
    assert_close(spin_echo(pd, t1, t2, te=1e-6, tr=100.0), pd, rtol=1e-4, atol=0)
    assert_close(flair(pd, t1, t2, te=1e-6, tr=300.0, ti=100.0), pd, rtol=1e-4, atol=0)
    assert_close(mprage(pd, t1, t2, te=1e-6, tr=300.0, ti=100.0), pd, rtol=1e-4, atol=0)


def test_reading_out_at_the_inversion_of_rested_spins_shows_minus_proton_density():
    pd, t1, t2 = tensor(*TISSUES.values()).T
    assert_close(mprage(pd, t1, t2, te=1e-9, tr=300.0, ti=1e-9), -pd)
    assert_close(flair(pd, t1, t2, te=1e-9, tr=300.0, ti=1e-9), -pd)


def test_no_signal_survives_an_endless_echo_time_or_follows_an_immediate_repetition():
    pd, t1, t2 = tensor(*TISSUES.values()).T
    for signal in (
        mprage(pd, t1, t2, te=200.0, tr=300.0, ti=1.0),
        flair(pd, t1, t2, te=200.0, tr=300.0, ti=1.0),
        spin_echo(pd, t1, t2, te=200.0, tr=300.0),
        spin_echo(pd, t1, t2, te=1e-9, tr=1e-9),
    ):
        assert_close(signal, torch.zeros_like(signal), rtol=0, atol=1e-8)


def test_one_echo_time_equal_to_t2_leaves_one_part_in_e():
    assert_close(spin_echo(tensor(1.0), tensor(1.0), tensor(0.08), te=0.08, tr=300.0), tensor(math.exp(-1)))


def test_saturation_recovers_63_percent_in_one_t1():
    assert_close(spin_echo(tensor(1.0), tensor(1.4), tensor(0.08), te=1e-12, tr=1.4), tensor(1 - math.exp(-1)))


# Null points and contrasts --------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", INVERTING)
@given(t1=positive, tr=positive)
@few_examples
def test_tissue_is_negative_before_its_null_point_zero_at_it_and_positive_after(sequence, t1, tr):
    null = null_ti(t1, tr, sequence)
    assert 0 < null < min(tr, t1 * math.log(2) * (1 + 1e-12))  # the long-TR rule of thumb is the upper limit
    form = mprage if sequence is Sequence.MPRAGE else flair
    before, at, after = (form(tensor(1.0), tensor(t1), tensor(0.1), 0.01, tr, f * null).item() for f in (0.9, 1, 1.1))
    assert before < 0 < after
    assert at == pytest.approx(0, abs=1e-12)


def test_the_paper_s_flair_nulls_csf_and_nothing_else():
    setting = REFERENCE["FLAIR"]
    assert null_ti(4.3, setting.tr, "FLAIR") == pytest.approx(setting.ti, abs=0.05)
    wm, gm, csf = (render(image(*TISSUES[name]), setting).item() for name in ("WM", "GM", "CSF"))
    assert csf < 0.01 < 0.15 < min(wm, gm)


def test_reference_contrasts_look_as_radiologists_know_them():
    wm, gm, csf = (render(image(*TISSUES[name]), REFERENCE["T1w"]).item() for name in ("WM", "GM", "CSF"))
    assert wm > gm > csf
    wm, gm, csf = (render(image(*TISSUES[name]), Protocol("spin echo", te=0.1, tr=4.0)).item() for name in TISSUES)
    assert csf > gm > wm


def test_spin_echo_has_no_null_point():
    with pytest.raises(ProtocolError, match="no inversion pulse"):
        null_ti(1.0, 3.0, "spin echo")


@given(pd=fraction, t1=positive, t2=positive, tr=positive, te=fraction, ti=fraction)
@few_examples
def test_flair_is_mprage_times_one_plus_e_tr(pd, t1, t2, tr, te, ti):
    pd, t1, t2 = tensor(pd), tensor(t1), tensor(t2)
    times = (te * tr, tr, ti * tr)
    expected = (1 + torch.exp(-tr / t1)) * mprage(pd, t1, t2, *times)
    assert_close(flair(pd, t1, t2, *times), expected, rtol=1e-9, atol=1e-12)


@given(pd=fraction, t1=positive, t2=positive, tr=st.floats(0.01, 2.0), te=fraction, ti=fraction)
@few_examples
def test_no_scan_shows_more_than_its_protons_and_longer_echo_times_never_brighten(pd, t1, t2, tr, te, ti):
    maps = image(pd, t1, t2)
    for sequence in Sequence:
        more = angle_and_inversion(sequence, ti * tr)
        signal = render(maps, Protocol(sequence, te=te * tr / 2, tr=tr, **more))
        later = render(maps, Protocol(sequence, te=te * tr, tr=tr, **more))
        assert 0 <= later.item() <= signal.item() <= pd


# The flip angle ---------------------------------------------------------------------------------------------


@given(t1=positive, tr=st.floats(0.003, 3.0))
@few_examples
def test_a_gradient_echo_is_brightest_at_the_ernst_angle(t1, tr):
    ernst = ernst_angle(t1, tr)
    assert math.cos(ernst) == pytest.approx(math.exp(-tr / t1))
    angles = torch.linspace(0.01, 3.1, 500, dtype=torch.float64)
    at_ernst = spoiled_gradient_echo(*tensor(1.0, t1, 0.1), 0.002, tr, ernst)
    assert (spoiled_gradient_echo(*tensor(1.0, t1, 0.1), 0.002, tr, angles) <= at_ernst * (1 + 1e-12)).all()
    height = math.tanh(tr / t1 / 2) ** 0.5 * math.exp(-0.002 / 0.1)  # √((1 − E1)/(1 + E1)), without an angle in it
    assert at_ernst.item() == pytest.approx(height)


def test_a_quarter_turn_gives_a_spin_echo_of_equal_times():
    pd, t1, t2 = tensor(*TISSUES.values()).T
    quarter = spoiled_gradient_echo(pd, t1, t2, 0.01, 0.5, math.pi / 2)
    assert_close(quarter, spin_echo(pd, t1, t2, 0.01, 0.5))


def test_small_angles_and_rested_spins_show_protons_whatever_their_t1():
    pd, t1, t2 = tensor(*TISSUES.values()).T
    angle = 1e-3  # far below the Ernst angle the longitudinal magnetisation stays whole
    assert_close(spoiled_gradient_echo(pd, t1, t2, 1e-9, 0.5, angle), angle * pd, rtol=1e-4, atol=0)
    assert_close(spoiled_gradient_echo(pd, t1, t2, 1e-9, 300.0, 0.5), math.sin(0.5) * pd)


def test_below_the_ernst_angle_csf_is_bright_and_far_above_it_dark():
    wm, gm, csf = (spoiled_gradient_echo(*tensor(*TISSUES[t]), 0.004, 0.02, math.radians(2)).item() for t in TISSUES)
    assert csf > gm > wm
    wm, gm, csf = (spoiled_gradient_echo(*tensor(*TISSUES[t]), 0.004, 0.02, math.radians(25)).item() for t in TISSUES)
    assert wm > gm > csf


def test_numpy_maps_and_many_angles_are_taken_alike():
    angles = np.radians([[5], [20], [60]])
    as_numpy = spoiled_gradient_echo(*np.array([*TISSUES.values()]).T, 0.004, 0.02, angles)
    as_torch = spoiled_gradient_echo(*tensor(*TISSUES.values()).T, 0.004, 0.02, torch.from_numpy(angles))
    np.testing.assert_allclose(as_numpy, as_torch.numpy())
    assert as_numpy.shape == (3, 3)


# Inversion, then a gradient echo of any angle -----------------------------------------------------------------


@given(pd=fraction, t1=positive, t2=positive, tr=positive, te=fraction, ti=fraction)
@few_examples
def test_an_inversion_and_a_quarter_turn_are_a_flair(pd, t1, t2, tr, te, ti):
    tissue, times = tensor(pd, t1, t2), (te * tr, tr, ti * tr)
    quarter = inversion_gradient_echo(*tissue, *times, math.pi / 2)
    assert_close(quarter, flair(*tissue, *times), rtol=1e-9, atol=1e-12)


@given(pd=fraction, t1=positive, t2=positive, tr=positive, te=fraction, ti=fraction)
@few_examples
def test_an_inversion_and_a_small_angle_are_an_mprage_times_the_angle_s_sine(pd, t1, t2, tr, te, ti):
    tissue, times, angle = tensor(pd, t1, t2), (te * tr, tr, ti * tr), 1e-5
    small = inversion_gradient_echo(*tissue, *times, angle) / math.sin(angle)
    assert_close(small, mprage(*tissue, *times), rtol=1e-6, atol=1e-12)


def test_no_angle_moves_the_null_point_of_an_inversion():
    for tissue in TISSUES.values():
        ti = null_ti(tissue[1], 3.0, "inversion-recovery gradient echo")
        for angle in (2, 9, 45, 90):
            assert inversion_gradient_echo(*tensor(*tissue), 0.004, 3.0, ti, math.radians(angle)).abs() < 1e-12


# Real parts ---------------------------------------------------------------------------------------------------


def test_a_real_part_is_negative_before_the_null_point_and_its_magnitude_is_the_other_image():
    times = {"te": 0.01, "tr": 5.0, "ti": 0.2}
    real, magnitude = (Protocol("FLAIR", **times, signed=signed) for signed in (True, False))
    maps = image(*TISSUES["CSF"])
    settings = torch.stack([p.settings() for p in (real, magnitude)])[None].double()
    shown = shown_signal(maps, settings)[0, :, 0, 0]
    assert shown[0] < 0 < shown[1] == -shown[0]
    assert render(maps, real).item() == pytest.approx(shown[0].item(), rel=1e-6)
    assert render(maps, magnitude).item() == pytest.approx(shown[1].item(), rel=1e-6)


# Steady state, by stepping the Bloch equations ----------------------------------------------------------------


def turn(m, axis, angle):
    return Rotation.from_rotvec(angle * np.eye(3)["xyz".index(axis)]).apply(m)


def relax(m, time, t1, t2):
    e1, e2 = math.exp(-time / t1), math.exp(-time / t2)
    return np.array([m[0] * e2, m[1] * e2, 1 + (m[2] - 1) * e1])


def bloch_steady_state(t1, t2, te, tr, ti=None, flip_angle=math.pi / 2, refocus=False):
    """Signal of one spin with PD 1 once repetitions no longer change it, per sine of the flip angle.

    A repetition is: inversion (if TI is given), spoiling, wait TI, excitation about x, echo after TE
    (with a 180° pulse about y half way if ``refocus``), wait for the rest of TR, spoiling.
    """
    m, signal, previous = np.array([0.0, 0.0, 1.0]), math.inf, 0.0
    while abs(signal - previous) > 1e-9:
        previous = signal
        if ti is not None:
            m = relax(turn(m, "x", math.pi) * (0, 0, 1), ti, t1, t2)
        m = relax(turn(m, "x", flip_angle), te / 2, t1, t2)
        if refocus:
            m = turn(m, "y", math.pi)
        m = relax(m, te / 2, t1, t2)
        signal = -m[1] / math.sin(flip_angle)  # a positive rotation about x takes +z to −y
        m = relax(m, tr - te - (ti or 0), t1, t2) * (0, 0, 1)
    return signal


@pytest.mark.parametrize("tissue", TISSUES)
class TestSteadyState:
    @pytest.mark.parametrize(("te", "tr", "ti"), [(0.003, 2.4, 1.0), (0.003, 2.4, 0.25), (0.003, 1.9, 1.1)])
    def test_mprage_whose_readout_hardly_tips_the_magnetisation(self, tissue, te, tr, ti):
        pd, t1, t2 = TISSUES[tissue]
        stepped = pd * bloch_steady_state(t1, t2, te, tr, ti, flip_angle=1e-3)
        assert_close(mprage(*tensor(pd, t1, t2), te, tr, ti).item(), stepped, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(("te", "tr", "ti"), [(0.091, 9.0, 2.5), (0.45, 9.0, 2.5), (0.05, 3.0, 0.7)])
    def test_flair_without_refocusing(self, tissue, te, tr, ti):
        pd, t1, t2 = TISSUES[tissue]
        stepped = pd * bloch_steady_state(t1, t2, te, tr, ti)
        assert_close(flair(*tensor(pd, t1, t2), te, tr, ti).item(), stepped, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(("te", "tr"), [(0.1, 4.0), (0.45, 1.0), (0.012, 0.5)])
    def test_spin_echo_without_refocusing(self, tissue, te, tr):
        pd, t1, t2 = TISSUES[tissue]
        stepped = pd * bloch_steady_state(t1, t2, te, tr)
        assert_close(spin_echo(*tensor(pd, t1, t2), te, tr).item(), stepped, rtol=0, atol=1e-4)

    @pytest.mark.parametrize(("te", "tr", "angle"), [(0.004, 0.02, 25), (0.01, 0.5, 60), (0.005, 0.1, 2)])
    def test_spoiled_gradient_echo(self, tissue, te, tr, angle):
        pd, t1, t2 = TISSUES[tissue]
        alpha = math.radians(angle)
        stepped = pd * math.sin(alpha) * bloch_steady_state(t1, t2, te, tr, flip_angle=alpha)
        assert_close(spoiled_gradient_echo(*tensor(pd, t1, t2), te, tr, alpha).item(), stepped, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("ti", "angle"), [(0.9, 9), (0.3, 60), (1.5, 90)])
    def test_inversion_gradient_echo(self, tissue, ti, angle):
        (pd, t1, t2), alpha = TISSUES[tissue], math.radians(angle)
        stepped = pd * math.sin(alpha) * bloch_steady_state(t1, t2, 0.004, 2.5, ti, flip_angle=alpha)
        found = inversion_gradient_echo(*tensor(pd, t1, t2), 0.004, 2.5, ti, alpha).item()
        assert_close(found, stepped, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(("te", "tr", "ti"), [(0.091, 9.0, 2.5), (0.1, 3.0, 0.7)])
    def test_refocusing_pulse_adds_the_term_the_short_forms_leave_out(self, tissue, te, tr, ti):
        _, t1, t2 = TISSUES[tissue]
        e_ti, e_tr, e_te = math.exp(-ti / t1), math.exp(-tr / t1), math.exp(-te / t2)
        refocused = 2 * math.exp(-(tr - te / 2) / t1)
        exact = (1 - 2 * e_ti + refocused - e_tr) * e_te
        assert bloch_steady_state(t1, t2, te, tr, ti, refocus=True) == pytest.approx(exact, abs=1e-8)
        exact = (1 - refocused + e_tr) * e_te
        assert bloch_steady_state(t1, t2, te, tr, refocus=True) == pytest.approx(exact, abs=1e-8)

    def test_short_forms_are_good_to_one_percent_of_water_at_the_clinic_s_settings(self, tissue):
        _, t1, t2 = TISSUES[tissue]
        reference = REFERENCE["FLAIR"]
        short = flair(*tensor(1.0, t1, t2), reference.te, reference.tr, reference.ti).item()
        assert short == pytest.approx(bloch_steady_state(t1, t2, 0.091, 9.0, 2.5, refocus=True), abs=0.01)


# Gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("quantity", ["t1", "t2"])
@pytest.mark.parametrize("value", EXTREMES)
def test_values_and_gradients_stay_finite_at_the_ends_of_the_range(dtype, quantity, value):
    maps = image(**{"pd": 0.7, "t1": 1.0, "t2": 0.1, quantity: value}, dtype=dtype)
    for quantity_map in maps:
        quantity_map.requires_grad_()
    batch = torch.stack([protocol.settings() for protocol in EVERY_PROTOCOL])[None].to(dtype)
    for signal in (*(closed_form(maps, protocol) for protocol in EVERY_PROTOCOL), signed_signal(maps, batch)):
        assert signal.dtype == dtype
        assert signal.isfinite().all()
        for gradient in torch.autograd.grad(signal.sum(), maps):
            assert gradient.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    leaf = {"dtype": torch.float64, "requires_grad": True}
    pd, t1, t2 = (torch.tensor(values, **leaf) for values in zip(*TISSUES.values(), strict=True))
    te, tr, ti = (torch.tensor(value, **leaf) for value in (0.09, 9.0, 2.0))
    assert torch.autograd.gradcheck(mprage, (pd, t1, t2, te, tr, ti))
    assert torch.autograd.gradcheck(flair, (pd, t1, t2, te, tr, ti))
    assert torch.autograd.gradcheck(spin_echo, (pd, t1, t2, te, tr))
    angle = torch.tensor(0.4, **leaf)
    assert torch.autograd.gradcheck(spoiled_gradient_echo, (pd, t1, t2, te, tr, angle))
    assert torch.autograd.gradcheck(inversion_gradient_echo, (pd, t1, t2, te, tr, ti, angle))
    maps = [m.detach().reshape(1, 1, -1).requires_grad_() for m in (pd, t1, t2)]
    batch = torch.stack([p.settings() for p in (*REFERENCE.values(), GRADIENT_ECHO, INVERTED_GRADIENT_ECHO)])[None]
    batch = batch.double()
    assert torch.autograd.gradcheck(lambda *maps: signed_signal(TissueMaps(*maps), batch), maps)


# Images and batches -----------------------------------------------------------------------------------------


def random_maps(n, y=3, x=4):
    generator = torch.Generator().manual_seed(7)
    pd, t1, t2 = torch.rand(3, n, y, x, generator=generator, dtype=torch.float64)
    return TissueMaps(pd, 0.2 + 4 * t1, 0.02 + t2)


@pytest.mark.parametrize("protocol", EVERY_PROTOCOL, ids=str)
def test_render_is_the_magnitude_of_the_signed_signal_or_the_signal_of_a_real_part(protocol):
    maps = random_maps(2)
    signed = closed_form(maps, protocol)
    assert_close(render(maps, protocol), signed if protocol.signed else signed.abs())


def test_times_below_the_floor_are_the_floor_s_as_tensors_and_as_arrays():
    """Resampled maps overshoot below zero; e^(−TE/T2) of a negative T2 would glow."""
    t2 = torch.tensor([-0.01, 0.0, SHORTEST_TIME])
    maps = TissueMaps(torch.ones(3), torch.ones(3), t2)
    for found in (render(maps, REFERENCE["FLAIR"]), render(TissueMaps(*(m.numpy() for m in maps)), REFERENCE["FLAIR"])):
        assert not found.any()


@pytest.mark.parametrize("shape", [(5, 300, 401), (600001,), (1, 800, 700)], ids=str)
def test_a_volume_rendered_in_parts_is_the_same_image(shape):
    """As tensors, as strided views of a stack, as arrays, and with a gradient, which is not rendered in parts."""
    stack = torch.rand(*shape[:-1], 3, shape[-1], generator=torch.Generator().manual_seed(7)).double()
    maps = TissueMaps(*(t.movedim(-2, 0)[i] for i, t in enumerate((stack, 0.2 + 4 * stack, 0.02 + stack))))
    maps = maps._replace(t2=maps.t2 * (maps.pd > 0.5))  # air among it: no signal, no NaN
    protocol = REFERENCE["FLAIR"]
    expected = closed_form(maps, protocol).abs()
    assert math.prod(shape) > PART
    assert_close(render(maps, protocol), expected)
    assert_close(torch.from_numpy(render(TissueMaps(*(t.numpy() for t in maps)), protocol)), expected)
    learned = render(maps._replace(t1=maps.t1.clone().requires_grad_()), protocol)
    assert learned.requires_grad
    assert_close(learned.detach(), expected)


def test_short_ti_makes_negative_signal_that_only_the_magnitude_hides():
    protocol = UNSEEN[2]  # MPRAGE, TI 0.25 s
    for tissue in TISSUES.values():
        assert closed_form(image(*tissue), protocol).item() < -0.15
        assert render(image(*tissue), protocol).item() > 0.15


def test_signal_of_a_mixed_batch_is_that_of_each_closed_form():
    maps = random_maps(2)
    rows = [
        [UNSEEN[1], REFERENCE["T2w"], REFERENCE["FLAIR"], GRADIENT_ECHO, INVERTED_GRADIENT_ECHO],
        [REFERENCE["FLAIR"], INVERTED_GRADIENT_ECHO, UNSEEN[0], UNSEEN[5], GRADIENT_ECHO],
    ]
    batch = torch.stack([torch.stack([p.settings() for p in row]) for row in rows])
    assert batch[0, 1, 3] == 0  # a spin echo carries TI 0, not a missing value
    signal = signed_signal(maps, batch)
    assert signal.shape == (2, 5, 3, 4)
    for n, row in enumerate(rows):
        for m, protocol in enumerate(row):
            expected = closed_form(TissueMaps(*(t[n] for t in maps)), protocol)
            assert_close(signal[n, m], expected, rtol=1e-5, atol=1e-6)  # settings are float32


def test_maps_and_times_broadcast():
    pd, t1, t2 = tensor(*TISSUES.values()).T
    ti = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)[:, None]
    assert mprage(pd, t1, t2, 0.003, 2.4, ti).shape == (5, 3)
    assert_close(flair(pd, t1, t2, 0.09, 9.0, ti)[2, 1], flair(pd[1], t1[1], t2[1], 0.09, 9.0, ti[2, 0]))
    assert spin_echo(tensor(1.0), t1, t2[:, None], 0.1, 3.0).shape == (3, 3)


def test_maps_split_and_join():
    maps = random_maps(2)
    assert maps.stack().shape == (2, 3, 3, 4)
    for again, before in zip(TissueMaps.from_stack(maps.stack()), maps, strict=True):
        assert_close(again, before, rtol=0, atol=0)


# Protocols ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("spin echo", 3.2, 3.2), "TE of 3.2 s looks like milliseconds: did you mean 0.0032 s"),
        (("spin echo", 0.5, 0.5), "TE 0.5 s is not shorter than TR 0.5 s"),
        (("spin echo", 90, 3.2), "TE of 90 s looks like milliseconds: did you mean 0.09 s"),
        (("FLAIR", 0.09, 9000, 2.5), "TR of 9000 s looks like milliseconds: did you mean 9 s"),
        (("FLAIR", 0.09, 9.0, 2500), "TI of 2500 s looks like milliseconds: did you mean 2.5 s"),
        (("FLAIR", 0.09, 9.0, 9.0), "TI 9 s is not shorter than TR 9 s"),
        (("MPRAGE", 0.003, 0.1, 1.0), "TI 1 s is not shorter than TR 0.1 s"),
        (("MPRAGE", 0.003, 2.4), "MPRAGE needs an inversion time"),
        (("spin echo", 0.09, 3.2, 1.0), "which has no inversion"),
        (("spin echo", -0.09, 3.2), "TE must be positive, not -0.09 s"),
        (("spin echo", 0.09, 0), "TR must be positive"),
        (("FLAIR", 0.09, 9.0, -1.0), "TI must be positive"),
        (("spin echo", math.nan, 3.2), "TE must be a finite number of seconds, not nan"),
        (("spin echo", 0.09, math.inf), "TR must be a finite number of seconds, not inf"),
        (("FLAIR", 0.09, 9.0, math.nan), "TI must be a finite number"),
        (("spin echo", "0.09", 3.2), "TE must be a finite number of seconds, not '0.09'"),
        (("spin echo", None, 3.2), "TE must be a finite number of seconds, not None"),
        (("EPI", 0.03, 2.0), "unknown sequence 'EPI': choose one of MPRAGE, spin echo, FLAIR, spoiled gradient echo"),
        (("spoiled gradient echo", 0.004, 0.02), "spoiled gradient echo needs a flip angle: give it in degrees"),
        (("spoiled gradient echo", 0.004, 0.02, 0.5, 20), "TI 0.5 s given for a spoiled gradient echo"),
        (("spoiled gradient echo", 0.004, 0.02, None, 0.35), "0.35° looks like radians: did you mean 20.1°"),
        (("spoiled gradient echo", 0.004, 0.02, None, 180), "must lie between 0° and 180°, not at 180°"),
        (("spoiled gradient echo", 0.004, 0.02, None, -20), "must lie between 0° and 180°"),
        (("spoiled gradient echo", 0.004, 0.02, None, "20"), "a finite number of degrees, not '20'"),
        (("spin echo", 0.09, 3.2, None, 90), "flip angle 90° given for spin echo, whose closed form has none"),
        (("MPRAGE", 0.003, 2.4, 1.0, 9), "flip angle 9° given for MPRAGE"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ProtocolError) as refusal:
        Protocol(*arguments)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_only_the_inversion_rule_is_lifted_for_settings_as_published():
    assert Protocol("MPRAGE", te=0.003, tr=0.1, ti=1.0, as_published=True).ti == 1.0
    with pytest.raises(ProtocolError, match="TE 0.2 s is not shorter"):
        Protocol("MPRAGE", te=0.2, tr=0.1, ti=1.0, as_published=True)


def test_numbers_of_any_library_are_numbers():
    assert Protocol("spin echo", te=np.float32(0.1), tr=np.int64(3)).tr == 3


@pytest.mark.parametrize("protocol", EVERY_PROTOCOL, ids=str)
def test_settings_make_a_round_trip(protocol):
    assert Protocol.from_settings(protocol.settings()) == protocol


@given(sequence=st.sampled_from(SEQUENCES), tr=st.integers(20, 10_000), te=fraction, ti=fraction)
@few_examples
def test_settings_of_any_protocol_in_whole_milliseconds_make_a_round_trip(sequence, tr, te, ti):
    te, ti = (max(1, int(f * min(tr, 1900))) / 1000 for f in (te, ti))
    protocol = Protocol(sequence, te=te, tr=tr / 1000, **angle_and_inversion(sequence, ti))
    assert Protocol.from_settings(protocol.settings()) == protocol


def test_the_sequences_keep_their_numbers_which_are_in_trained_weights():
    assert SEQUENCES[:3] == ("MPRAGE", "spin echo", "FLAIR")
    assert SEQUENCES[3:] == ("spoiled gradient echo", "inversion-recovery gradient echo")


def test_settings_are_six_numbers_in_seconds_and_radians():
    protocol = Protocol("inversion-recovery gradient echo", 0.004, 2.5, 0.9, flip_angle_deg=90, signed=True)
    assert protocol.settings().tolist() == pytest.approx([4, 0.004, 2.5, 0.9, math.pi / 2, 1])
    assert GRADIENT_ECHO.settings().tolist() == pytest.approx([3, 0.004, 0.02, 0, math.radians(25), 0])


def test_a_protocol_reads_as_at_the_console():
    assert str(REFERENCE["FLAIR"]) == "FLAIR, TE 91 ms, TR 9 s, TI 2.5 s"
    assert str(REFERENCE["T2w"]) == "spin echo, TE 450 ms, TR 3.2 s"
    assert str(GRADIENT_ECHO) == "spoiled gradient echo, TE 4 ms, TR 0.02 s, flip angle 25°"


PAPER = """
T1w        MPRAGE     0.003  2.4  1.0
T2w        spin-echo  0.45   3.2  -
FLAIR      FLAIR      0.091  9.0  2.5
Figure-4   MPRAGE     0.003  0.1  1.0
Figure-4   MPRAGE     0.003  2.4  0.5
Figure-4   MPRAGE     0.003  2.4  0.25
Figure-4   spin-echo  0.8    3.2  -
Figure-4   spin-echo  0.2    3.2  -
Figure-4   spin-echo  0.45   1.0  -
Figure-4   FLAIR      0.45   9.0  2.5
Figure-4   FLAIR      0.091  9.0  5.0
Figure-4   FLAIR      0.5    9.0  4.0
"""  # sequence, TE, TR, TI in s


def test_reference_and_unseen_settings_are_the_paper_s():
    ours = [*REFERENCE.items(), *(("Figure-4", protocol) for protocol in UNSEEN)]
    for line, (name, protocol) in zip(PAPER.split("\n")[1:-1], ours, strict=True):
        use, sequence, te, tr, ti = line.split()
        assert (name, protocol.sequence.value) == (use, sequence.replace("-", " "))
        assert (protocol.te, protocol.tr) == (float(te), float(tr))
        assert protocol.ti == (None if ti == "-" else float(ti))
    assert [protocol.as_published for protocol in UNSEEN] == [True] + 8 * [False]

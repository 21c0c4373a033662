"""Protocols of the open field can all be run, and reach as far as those of hospitals do."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from phyldm_core.people.open_field import CSF_T1, KINDS, N_OPEN, draw_protocol, draw_scans, draw_session
from phyldm_core.physics import Protocol, Sequence, null_ti
from phyldm_core.scans.oasis3 import oasis3_protocols
from phyldm_core.tissue import leaves_signal


@pytest.fixture(scope="module")
def drawn() -> list[Protocol]:
    rng = np.random.default_rng(0)
    return [draw_protocol(rng) for _ in range(20_000)]  # a Protocol refuses what no scanner could run


def times(protocols: list[Protocol], sequence: Sequence, name: str) -> np.ndarray:
    return np.array([getattr(p, name) for p in protocols if p.sequence is sequence])


def test_every_protocol_can_be_run_and_its_settings_make_a_round_trip(drawn):
    for protocol in drawn:
        assert not protocol.as_published
        assert protocol.te < protocol.tr
        assert protocol.ti is None or protocol.ti < protocol.tr
    for protocol in drawn[:500]:
        again = Protocol.from_settings(protocol.settings())
        assert again.sequence is protocol.sequence
        for name in ("te", "tr", "ti"):
            assert getattr(again, name) == pytest.approx(getattr(protocol, name), abs=2e-5)


def test_inversion_times_reach_from_50_ms_to_4_s(drawn):
    ti = times(drawn, Sequence.FLAIR, "ti")
    assert 0.05 <= ti.min() < 0.055
    assert ti.max() > 3.8
    counts, _ = np.histogram(ti[ti <= 4], np.geomspace(0.05, 4.0, 9))
    assert (counts > 0.02 * len(ti)).all()  # nothing in between is left out


def test_a_short_inversion_time_is_as_frequent_as_a_long_one(drawn):
    """Doubling TI from 0.1 s changes an image as much as doubling it from 1 s."""
    ti = np.array([p.ti for p in drawn if p.sequence is Sequence.FLAIR and p.te <= 0.04])
    shares = [((low <= ti) & (ti < 2 * low)).mean() for low in (0.06, 0.12, 0.24, 0.48)]
    assert max(shares) < 1.25 * min(shares)


def test_a_flair_leaves_csf_dark(drawn):
    flairs = [p for p in drawn if p.sequence is Sequence.FLAIR and p.te > 0.05]
    assert len(flairs) > 1000
    for protocol in flairs:
        assert 0.85 <= protocol.ti / null_ti(CSF_T1, protocol.tr, "FLAIR") <= 1.1 + 1e-3
        assert 0.05 < protocol.te <= 0.15


def test_echo_and_repetition_times_are_those_of_t1w_proton_density_and_t2w(drawn):
    te, tr = (times(drawn, Sequence.SPIN_ECHO, name) for name in ("te", "tr"))
    for short_tr, short_te in ((True, True), (False, True), (False, False)):
        assert (((tr < 1.0) == short_tr) & ((te < 0.05) == short_te)).mean() > 0.15
    assert not ((tr < 1.0) & (te > 0.05)).any()  # of a T2w that T1 darkens nobody learns anything


def test_kinds_come_as_often_as_said(drawn):
    counts = Counter(p.sequence for p in drawn)
    assert sum(KINDS.values()) == pytest.approx(1)
    assert counts[Sequence.MPRAGE] / len(drawn) == pytest.approx(0.2, abs=0.015)
    assert counts[Sequence.FLAIR] / len(drawn) == pytest.approx(0.35, abs=0.015)
    assert counts[Sequence.SPIN_ECHO] / len(drawn) == pytest.approx(0.45, abs=0.015)


def test_nearly_every_scan_shows_something_of_the_brain(drawn):
    assert np.mean([leaves_signal(protocol) for protocol in drawn[:2000]]) > 0.99


def test_a_person_has_one_scan_of_each_of_the_archive_s_contrasts_and_others():
    scans = draw_scans(np.random.default_rng(1))
    archive = oasis3_protocols()
    assert len(scans) == len(archive) + N_OPEN
    for protocol, rows in zip(scans, archive.values(), strict=False):
        assert protocol in [row.nominal for row in rows]
    assert len(set(scans)) == len(scans)


def test_a_session_holds_as_many_scans_as_asked_and_another_seed_another_session():
    sessions = [draw_session(np.random.default_rng(seed), (2, 4)) for seed in range(60)]
    assert {len(session) for session in sessions} == {2, 3, 4}
    assert draw_session(np.random.default_rng(7)) == draw_session(np.random.default_rng(7))
    assert sessions[0] != sessions[1]

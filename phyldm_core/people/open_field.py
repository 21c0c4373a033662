"""Protocols of clinical practice at large: every sequence over the times that scanners are set to.

OASIS-3 has 25 settings. An encoder that has seen 25 settings interpolates between them and is lost beyond. Here each
scan's times are drawn anew, over the ranges that textbooks and vendors' protocols use.
"""

from __future__ import annotations

import numpy as np

from ..physics import Protocol, Sequence, null_ti
from ..scans.oasis3 import oasis3_protocols

N_OPEN = 7
"""Scans of the open field that a person has, beside one of each of OASIS-3's contrasts."""

CSF_T1 = 4.2  # s


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in the logarithm: a TI of 0.1 s differs from 0.2 s as 1 s does from 2 s."""
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 4)


def _mprage(rng) -> Protocol:
    tr = _between(rng, 1.5, 3.0)
    return Protocol(Sequence.MPRAGE, _between(rng, 0.002, 0.006), tr, _between(rng, 0.35, min(1.3, 0.8 * tr)))


def _inversion_recovery(rng) -> Protocol:
    tr = _between(rng, 1.5, 15.0)
    return Protocol(Sequence.FLAIR, _between(rng, 0.008, 0.04), tr, _between(rng, 0.05, min(4.0, 0.8 * tr)))


def _flair(rng) -> Protocol:
    tr = _between(rng, 5.0, 12.0)
    ti = round(null_ti(CSF_T1, tr, Sequence.FLAIR) * rng.uniform(0.85, 1.1), 4)
    return Protocol(Sequence.FLAIR, _between(rng, 0.08, 0.15), tr, ti)


def _t1w_spin_echo(rng) -> Protocol:
    return Protocol(Sequence.SPIN_ECHO, _between(rng, 0.008, 0.025), _between(rng, 0.35, 0.9))


def _proton_density(rng) -> Protocol:
    return Protocol(Sequence.SPIN_ECHO, _between(rng, 0.008, 0.035), _between(rng, 2.0, 6.0))


def _t2w(rng) -> Protocol:
    return Protocol(Sequence.SPIN_ECHO, _between(rng, 0.06, 0.25), _between(rng, 2.5, 8.0))


KINDS = {_mprage: 0.2, _inversion_recovery: 0.2, _flair: 0.15, _t1w_spin_echo: 0.1, _proton_density: 0.1, _t2w: 0.25}
"""How often each is drawn."""


def draw_protocol(rng: np.random.Generator) -> Protocol:
    """One scan's protocol; the echo time of a train with variable flip angles is its contrast-equivalent one."""
    kinds = list(KINDS)
    return kinds[rng.choice(len(kinds), p=list(KINDS.values()))](rng)


def draw_scans(rng: np.random.Generator) -> list[Protocol]:
    """A person's scans: one of each of OASIS-3's contrasts, as often as there, and :data:`N_OPEN` of the open field."""
    scans = []
    for rows in oasis3_protocols().values():
        counts = np.array([row.count for row in rows], float)
        scans.append(rows[rng.choice(len(rows), p=counts / counts.sum())].nominal)
    return scans + [draw_protocol(rng) for _ in range(N_OPEN)]


def draw_session(rng: np.random.Generator, n_scans: tuple[int, int] = (2, 4)) -> list[Protocol]:
    """A session of the open field alone, of ``n_scans`` (from, to) protocols: what an evaluation draws."""
    return [draw_protocol(rng) for _ in range(int(rng.integers(n_scans[0], n_scans[1] + 1)))]

r"""From tissue to signal: PD, T1, T2 and a protocol give the image a scanner would show.

Three closed forms (paper, section 2.2), in the symbols of the code below them. All times are
seconds, all signals are signed until :func:`render` takes the magnitude, once. The closed forms take
tensors or numpy arrays alike; torch is imported only where a tensor is made, because it costs the
commands that need none a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SHORTEST_TIME = 1e-4
"""s. T1 and T2 are floored here: no signal survives so short a time, and 0/0 gradients stay finite."""

IMPLAUSIBLE_TE = 2.0  # s; the longest echo times in use (water-only hydrography) are about 1 s
IMPLAUSIBLE_TR = 60.0  # s; a TR above a minute is a TR in ms


class Sequence(StrEnum):
    """The three signal models of the paper; the value is the name the field uses."""

    MPRAGE = "MPRAGE"
    SPIN_ECHO = "spin echo"
    FLAIR = "FLAIR"

    @property
    def inverts(self) -> bool:
        """Whether an inversion pulse precedes the readout, so that TI exists."""
        return self is not Sequence.SPIN_ECHO


SEQUENCES = tuple(Sequence)


class TissueMaps(NamedTuple):
    """Three maps of one shape ``(..., y, x)``: PD relative to water, T1 (s), T2 (s). Tensors or numpy arrays."""

    pd: Tensor
    t1: Tensor
    t2: Tensor

    @classmethod
    def from_stack(cls, stack: Tensor) -> TissueMaps:
        """Split ``(..., 3, y, x)``, channels PD, T1, T2."""
        return cls(*stack.unbind(dim=-3))

    def stack(self) -> Tensor:
        """Join into ``(..., 3, y, x)``, channels PD, T1, T2."""
        import torch

        return torch.stack(tuple(self), dim=-3)


class ProtocolError(ValueError):
    """A protocol that no scanner could run, or that was given in the wrong unit."""


@dataclass(frozen=True)
class Protocol:
    """What is set at the scanner's console.

    Parameters
    ----------
    sequence
        A :class:`Sequence`, or its name ("MPRAGE", "spin echo", "FLAIR").
    te, tr, ti
        Echo, repetition and inversion time in seconds. ``tr`` of an inversion sequence runs from
        inversion to inversion (BIDS ``RepetitionTimePreparation``). ``ti`` stays None for spin echo.
    as_published
        Accept TI ≥ TR. One of the nine settings in the paper's Figure 4 (MPRAGE, TR 0.1 s,
        TI 1 s) cannot be run on a scanner, though its closed form has a value; only settings
        copied from the paper should need this.

    Raises
    ------
    ProtocolError
        In one sentence, where the times contradict each other or look like milliseconds.
    """

    sequence: Sequence
    te: float
    tr: float
    ti: float | None = None
    as_published: bool = False

    def __post_init__(self):
        try:
            object.__setattr__(self, "sequence", Sequence(self.sequence))
        except ValueError:
            known = ", ".join(s.value for s in SEQUENCES)
            raise ProtocolError(f"unknown sequence {self.sequence!r}: choose one of {known}") from None
        self._check_number("TE", self.te, IMPLAUSIBLE_TE)
        self._check_number("TR", self.tr, IMPLAUSIBLE_TR)
        if self.te >= self.tr:
            raise ProtocolError(f"TE {self.te:g} s is not shorter than TR {self.tr:g} s: the echo must come within TR")
        if not self.sequence.inverts:
            if self.ti is not None:
                raise ProtocolError(f"TI {self.ti:g} s given for a spin echo, which has no inversion: leave TI out")
            return
        if self.ti is None:
            raise ProtocolError(f"{self.sequence.value} needs an inversion time: give TI in seconds")
        self._check_number("TI", self.ti, IMPLAUSIBLE_TR)
        if self.ti >= self.tr and not self.as_published:
            raise ProtocolError(f"TI {self.ti:g} s is not shorter than TR {self.tr:g} s, which runs between inversions")

    @staticmethod
    def _check_number(name: str, value: float, implausible: float):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ProtocolError(f"{name} must be a finite number of seconds, not {value!r}")
        if value <= 0:
            raise ProtocolError(f"{name} must be positive, not {value:g} s")
        if value >= implausible:
            raise ProtocolError(f"{name} of {value:g} s looks like milliseconds: did you mean {value / 1000:g} s?")

    def settings(self) -> Tensor:
        """``(4,)``: sequence index, TE, TR, TI, the form that batches of scans carry (TI 0 where none)."""
        import torch

        return torch.tensor([SEQUENCES.index(self.sequence), self.te, self.tr, self.ti or 0.0], dtype=torch.float32)

    @classmethod
    def from_settings(cls, settings: Tensor) -> Protocol:
        """The inverse of :meth:`settings`, rounded to 10 µs, which float32 holds.

        TI ≥ TR is taken as published: only a :class:`Protocol` that said so can have made such settings.
        """
        index, te, tr, ti = (round(float(value), 5) for value in settings)
        sequence = SEQUENCES[int(index)]
        if not sequence.inverts:
            return cls(sequence, te, tr)
        return cls(sequence, te, tr, ti, as_published=ti >= tr)

    def __str__(self):
        times = f"TE {1000 * self.te:g} ms, TR {self.tr:g} s"
        return f"{self.sequence.value}, {times}" + (f", TI {self.ti:g} s" if self.ti is not None else "")


REFERENCE = {
    "T1w": Protocol(Sequence.MPRAGE, te=0.003, tr=2.4, ti=1.0),
    "T2w": Protocol(Sequence.SPIN_ECHO, te=0.45, tr=3.2),
    "FLAIR": Protocol(Sequence.FLAIR, te=0.091, tr=9.0, ti=2.5),
}
"""The paper's reference settings; the T2w echo time is its nominal one."""

UNSEEN = (
    Protocol(Sequence.MPRAGE, te=0.003, tr=0.1, ti=1.0, as_published=True),
    Protocol(Sequence.MPRAGE, te=0.003, tr=2.4, ti=0.5),
    Protocol(Sequence.MPRAGE, te=0.003, tr=2.4, ti=0.25),
    Protocol(Sequence.SPIN_ECHO, te=0.8, tr=3.2),
    Protocol(Sequence.SPIN_ECHO, te=0.2, tr=3.2),
    Protocol(Sequence.SPIN_ECHO, te=0.45, tr=1.0),
    Protocol(Sequence.FLAIR, te=0.45, tr=9.0, ti=2.5),
    Protocol(Sequence.FLAIR, te=0.091, tr=9.0, ti=5.0),
    Protocol(Sequence.FLAIR, te=0.5, tr=9.0, ti=4.0),
)
"""The nine contrasts of the paper's Figure 4, three per sequence, none seen in training."""


def decay(time, relaxation: Tensor) -> Tensor:
    """What is left after ``time`` (s): exp(−time/relaxation), with finite gradients for any T ≥ 0."""
    rate = -time / relaxation.clip(min=SHORTEST_TIME)
    return np.exp(rate) if isinstance(rate, np.ndarray) else rate.exp()


def mprage(pd: Tensor, t1: Tensor, t2: Tensor, te, tr, ti) -> Tensor:
    r"""Signed MPRAGE signal, $S = \rho\,(1 - 2e^{-TI/T_1} / (1 + e^{-TR/T_1}))\,e^{-TE/T_2}$.

    Parameters
    ----------
    pd, t1, t2
        Maps that broadcast against each other: proton density (a.u.), relaxation times (s).
    te, tr, ti
        Echo, inversion-to-inversion and inversion time (s), numbers or tensors that broadcast.

    Returns
    -------
        Signal (a.u.), negative before the null point. Paper, eq. for MPRAGE with G = 1.
    """
    e_ti, e_tr, e_te = decay(ti, t1), decay(tr, t1), decay(te, t2)
    return pd * (1 - 2 * e_ti / (1 + e_tr)) * e_te


def spin_echo(pd: Tensor, t1: Tensor, t2: Tensor, te, tr) -> Tensor:
    r"""Spin-echo signal, $S = \rho\,(1 - e^{-TR/T_1})\,e^{-TE/T_2}$ for $TE \ll TR$; arguments as :func:`mprage`."""
    e_tr, e_te = decay(tr, t1), decay(te, t2)
    return pd * (1 - e_tr) * e_te


def flair(pd: Tensor, t1: Tensor, t2: Tensor, te, tr, ti) -> Tensor:
    r"""Signed inversion-recovery spin-echo signal, $S = \rho\,(1 - 2e^{-TI/T_1} + e^{-TR/T_1})\,e^{-TE/T_2}$.

    Arguments as :func:`mprage`. Valid for $TE \ll TR$: the refocusing pulse's own effect on the
    longitudinal magnetisation is left out, as in the paper.
    """
    e_ti, e_tr, e_te = decay(ti, t1), decay(tr, t1), decay(te, t2)
    return pd * (1 - 2 * e_ti + e_tr) * e_te


def signed_signal(maps: TissueMaps, settings: Tensor) -> Tensor:
    """Signal of a batch of scans, each with its own sequence and times.

    Parameters
    ----------
    maps
        Each map ``(n, y, x)``.
    settings
        ``(n, m, 4)`` from :meth:`Protocol.settings`: m scans of each subject.

    Returns
    -------
        ``(n, m, y, x)``, signed. Entries of scans that do not exist are whatever their settings
        give; the caller masks them.
    """
    import torch

    pd, t1, t2 = (t[:, None] for t in maps)
    index, te, tr, ti = settings[..., None, None].unbind(dim=2)
    e_ti, e_tr, e_te = decay(ti, t1), decay(tr, t1), decay(te, t2)
    longitudinal = torch.where(
        index == SEQUENCES.index(Sequence.SPIN_ECHO),
        1 - e_tr,
        torch.where(index == SEQUENCES.index(Sequence.MPRAGE), 1 - 2 * e_ti / (1 + e_tr), 1 - 2 * e_ti + e_tr),
    )
    return pd * longitudinal * e_te


def render(maps: TissueMaps, protocol: Protocol) -> Tensor:
    """The magnitude image of ``maps`` under ``protocol``, as a scanner shows it (a.u., ≥ 0)."""
    pd, t1, t2 = maps
    if protocol.sequence is Sequence.MPRAGE:
        signal = mprage(pd, t1, t2, protocol.te, protocol.tr, protocol.ti)
    elif protocol.sequence is Sequence.SPIN_ECHO:
        signal = spin_echo(pd, t1, t2, protocol.te, protocol.tr)
    else:
        signal = flair(pd, t1, t2, protocol.te, protocol.tr, protocol.ti)
    return abs(signal)


def null_ti(t1: float, tr: float, sequence: Sequence | str) -> float:
    """The inversion time (s) at which tissue of this T1 (s) gives no signal; TR in s."""
    e_tr = math.exp(-tr / t1)
    if Sequence(sequence) is Sequence.SPIN_ECHO:
        raise ProtocolError("a spin echo has no inversion pulse, so no tissue is nulled")
    return t1 * math.log(2 / (1 + e_tr))  # both closed forms vanish where 2·e^(−TI/T1) = 1 + e^(−TR/T1)

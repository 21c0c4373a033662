r"""From tissue to signal: PD, T1, T2 and a protocol give the image a scanner would show.

The three closed forms of the paper (section 2.2), and two that have a flip angle, in the symbols of
the code below them. All times are seconds, all signals are signed until :func:`render` takes the
magnitude, once. The closed forms take tensors or numpy arrays alike; torch is imported only where a
tensor is made, because it costs the commands that need none a second.
"""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .protocol import SEQUENCES, Protocol, ProtocolError, Sequence

if TYPE_CHECKING:
    from torch import Tensor

SHORTEST_TIME = 1e-4
"""s. T1 and T2 are floored here: no signal survives so short a time, and 0/0 gradients stay finite."""

PART = 2**19
"""Voxels that :func:`render` takes at a time: few enough for a processor's cache, enough for all of its cores."""


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
    left = relaxation.clip(min=SHORTEST_TIME)  # a copy, to be written over where no gradient needs it
    if isinstance(left, np.ndarray):
        return np.exp(-time / left)
    if left.requires_grad or not isinstance(time, Real):
        return (-time / left).exp()
    import torch

    rate = left.new_tensor(-time / math.log(2))  # a tensor over a tensor is one pass, a number over one two
    return torch.div(rate, left, out=left).exp2_()  # the same number in half the time


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
    return pd * (1 - 2 * decay(ti, t1) / (1 + decay(tr, t1))) * decay(te, t2)


def spin_echo(pd: Tensor, t1: Tensor, t2: Tensor, te, tr) -> Tensor:
    r"""Spin-echo signal, $S = \rho\,(1 - e^{-TR/T_1})\,e^{-TE/T_2}$ for $TE \ll TR$; arguments as :func:`mprage`."""
    return pd * (1 - decay(tr, t1)) * decay(te, t2)


def flair(pd: Tensor, t1: Tensor, t2: Tensor, te, tr, ti) -> Tensor:
    r"""Signed inversion-recovery spin-echo signal, $S = \rho\,(1 - 2e^{-TI/T_1} + e^{-TR/T_1})\,e^{-TE/T_2}$.

    Arguments as :func:`mprage`. Valid for $TE \ll TR$: the refocusing pulse's own effect on the
    longitudinal magnetisation is left out, as in the paper.
    """
    return pd * (1 - 2 * decay(ti, t1) + decay(tr, t1)) * decay(te, t2)  # an exponential at a time stays in the cache


def spoiled_gradient_echo(pd: Tensor, t1: Tensor, t2: Tensor, te, tr, flip_angle) -> Tensor:
    r"""Spoiled gradient-echo signal, $S = \rho\,\sin\alpha\,(1 - E_1) / (1 - E_1\cos\alpha)\,e^{-TE/T_2}$.

    $E_1 = e^{-TR/T_1}$: the steady state of equal pulses a TR apart, with no transverse magnetisation left
    from one to the next (Ernst and Anderson, Rev Sci Instrum 1966;37:93). Known to scanners as FLASH, SPGR, T1-FFE.

    A gradient echo refocuses no field inhomogeneity, so it decays with T2*, which is shorter than T2. The
    maps hold no T2*: **T2 stands for it here**, and a real image with a long TE is darker, most of all near air.

    Parameters
    ----------
    flip_angle
        α in radians, a number, array or tensor that broadcasts; the others as in :func:`mprage`, ``tr`` from
        pulse to pulse.

    Returns
    -------
        Signal (a.u.), never negative for α below π; at α = π/2 that of :func:`spin_echo`.
    """
    e1, (sine, cosine) = decay(tr, t1), _sine_and_cosine(flip_angle)
    return pd * sine * (1 - e1) / (1 - e1 * cosine) * decay(te, t2)


def inversion_gradient_echo(pd: Tensor, t1: Tensor, t2: Tensor, te, tr, ti, flip_angle) -> Tensor:
    r"""Signed, $S = \rho\,\sin\alpha\,(1 - 2e^{-TI/T_1} + E_1) / (1 + E_1\cos\alpha)\,e^{-TE/T_2}$.

    The steady state of inversion, TI, a pulse of α, and recovery until TR; $E_1 = e^{-TR/T_1}$. It holds the paper's
    two: at α = 90° it is :func:`flair`, and over sin α, for α → 0, :func:`mprage`. T2 stands for T2*. Arguments as the
    function above.
    """
    e1, (sine, cosine) = decay(tr, t1), _sine_and_cosine(flip_angle)
    return pd * sine * (1 - 2 * decay(ti, t1) + e1) / (1 + e1 * cosine) * decay(te, t2)


def _sine_and_cosine(angle):
    return (angle.sin(), angle.cos()) if hasattr(angle, "sin") else (np.sin(angle), np.cos(angle))


def signal(maps: TissueMaps, sequence: Sequence, te, tr, ti=None, flip_angle=None) -> Tensor:
    """The signed signal of the sequence's closed form; times (s) and flip angle (rad) broadcast against the maps."""
    if sequence is Sequence.MPRAGE:
        return mprage(*maps, te, tr, ti)
    if sequence is Sequence.SPIN_ECHO:
        return spin_echo(*maps, te, tr)
    if sequence is Sequence.FLAIR:
        return flair(*maps, te, tr, ti)
    if sequence is Sequence.INVERSION_GRADIENT_ECHO:
        return inversion_gradient_echo(*maps, te, tr, ti, flip_angle)
    return spoiled_gradient_echo(*maps, te, tr, flip_angle)


def signed_signal(maps: TissueMaps, settings: Tensor) -> Tensor:
    """Signal of a batch of scans, each with its own sequence and times.

    Parameters
    ----------
    maps
        Each map ``(n, y, x)``.
    settings
        ``(n, m, 6)`` from :meth:`Protocol.settings`: m scans of each subject.

    Returns
    -------
        ``(n, m, y, x)``, signed. Entries of scans that do not exist are whatever their settings
        give; the caller masks them.
    """
    import torch

    pd, t1, t2 = (t[:, None] for t in maps)
    index, te, tr, ti, angle, _ = settings[..., None, None].unbind(dim=2)
    e_ti, e_tr, e_te = decay(ti, t1), decay(tr, t1), decay(te, t2)

    def of(sequence):
        return index == SEQUENCES.index(sequence)

    # All five are one expression: without inversion e_ti counts not at all, and the angle is 90°, small or as set.
    inverted = of(Sequence.MPRAGE) | of(Sequence.FLAIR) | of(Sequence.INVERSION_GRADIENT_ECHO)
    own_angle = of(Sequence.GRADIENT_ECHO) | of(Sequence.INVERSION_GRADIENT_ECHO)
    cosine = torch.where(own_angle, angle.cos(), of(Sequence.MPRAGE).to(angle.dtype))
    sine = torch.where(own_angle, angle.sin(), 1.0)
    recovered = torch.where(inverted, 1 - 2 * e_ti + e_tr, 1 - e_tr)
    return pd * sine * recovered / torch.where(inverted, 1 + e_tr * cosine, 1 - e_tr * cosine) * e_te


def shown_signal(maps: TissueMaps, settings: Tensor) -> Tensor:
    """:func:`signed_signal` as the scanner shows it: the magnitude, or the real part of a scan that is signed."""
    import torch

    signed = signed_signal(maps, settings)
    return torch.where(settings[..., 5, None, None] > 0, signed, signed.abs())


def render(maps: TissueMaps, protocol: Protocol) -> Tensor:
    """The image of ``maps`` under ``protocol`` as a scanner shows it (a.u.): magnitude, or real part if it is signed.

    Volumes that no gradient is asked of are rendered :data:`PART` by part, which is faster and needs little memory
    beside the image.
    """

    p, maps = protocol, TissueMaps(*maps)  # three tensors will do
    times, shown = (p.sequence, p.te, p.tr, p.ti, p.flip_angle), (lambda signed: signed) if p.signed else abs
    n = math.prod(maps.pd.shape)
    if n <= PART or any(getattr(values, "requires_grad", False) for values in maps):
        return shown(signal(maps, *times))
    if isinstance(maps.pd, np.ndarray):
        library = np
    else:
        import torch as library
    whole = library.empty_like(maps.pd)
    rows = max(1, PART * len(maps.pd) // n)
    for start in range(0, len(whole), rows):
        part = slice(start, start + rows)
        whole[part] = shown(signal(TissueMaps(*(values[part] for values in maps)), *times))
    return whole


def null_ti(t1: float, tr: float, sequence: Sequence | str) -> float:
    """The inversion time (s) at which tissue of this T1 (s) gives no signal; TR in s."""
    e_tr = math.exp(-tr / t1)
    if not Sequence(sequence).inverts:
        raise ProtocolError(f"a {sequence} has no inversion pulse, so no tissue is nulled")
    return t1 * math.log(2 / (1 + e_tr))  # both closed forms vanish where 2·e^(−TI/T1) = 1 + e^(−TR/T1)


def ernst_angle(t1: float, tr: float) -> float:
    """The flip angle (rad) at which a spoiled gradient echo of tissue with this T1 (s) is brightest; TR in s."""
    return math.acos(math.exp(-tr / t1))


EFFECTIVE_TE_RATIO = 0.22
"""Contrast-equivalent over nominal TE of a variable-flip-angle train. Our assumption, see :func:`effective_te`."""
EFFECTIVE_TE_ABOVE = 0.3
"""s. No spin echo of the brain with full refocusing is acquired later: beyond it, the train varies its flip angles."""

SEQUENCE_OF = {
    "T1w": Sequence.MPRAGE,
    "T2w": Sequence.SPIN_ECHO,
    "PDw": Sequence.SPIN_ECHO,
    "FLAIR": Sequence.FLAIR,
}
"""What a contrast is acquired with when nothing else is known."""


def effective_te(te: float, sequence: Sequence | str) -> float:
    """The echo time (s) whose plain T2 decay gives the contrast that was acquired.

    3D turbo spin echoes with variable flip angles (SPACE, CUBE, VISTA) keep much of the magnetisation along the field,
    where it decays with T1, so that an echo at a nominal 455 ms has the contrast of a spin echo near 100 ms
    (contrast-equivalent TE: Busse et al., Magn Reson Med 2006;55:1030 and 2008;60:640). The flip angles are in no
    header, so one ratio stands for all of them: 0.22 above 0.3 s. **The ratio is an assumption, not a measurement**; T2
    scales with it. Spin echo and FLAIR are affected, gradient echoes (MPRAGE too) never are. To 10 µs.
    """
    if Sequence(sequence) not in (Sequence.SPIN_ECHO, Sequence.FLAIR) or te <= EFFECTIVE_TE_ABOVE:
        return te
    return round(EFFECTIVE_TE_RATIO * te, 5)


def effective_protocol(protocol: Protocol) -> Protocol:
    """The same protocol with its :func:`effective_te`."""
    return replace(protocol, te=effective_te(protocol.te, protocol.sequence))


def signal_slopes(logs: Tensor, settings: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Signals ``(n, m, y, x)`` of log maps ``(n, 3, y, x)``, and their slopes ``(n, m, y, x, 3)``."""
    import torch

    def signals(of: Tensor) -> Tensor:
        return gain[:, None, None] * shown_signal(of.exp().unbind(1), settings)

    here, slopes = signals(logs), []
    for p in range(3):
        nudged = logs.clone()
        nudged[:, p] += 1e-2  # small against what matters, large against single precision
        slopes.append((signals(nudged) - here) / 1e-2)
    return here, torch.stack(slopes, -1)

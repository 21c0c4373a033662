"""What is set at the scanner's console: the sequence, its times and its flip angle, and what no scanner could run.

All times are seconds, all angles degrees where a person gives them and radians where a signal is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import TYPE_CHECKING

from .machine.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

IMPLAUSIBLE_TE = 2.0  # s; the longest echo times in use (water-only hydrography) are about 1 s
IMPLAUSIBLE_TR = 60.0  # s; a TR above a minute is a TR in ms
IMPLAUSIBLE_FLIP = 2.0  # degrees; nobody images with less, and a quarter turn in radians is 1.57


class Sequence(StrEnum):
    """The signal models; the value is the name the field uses, the place its number in :meth:`Protocol.settings`."""

    MPRAGE = "MPRAGE"
    SPIN_ECHO = "spin echo"
    FLAIR = "FLAIR"  # any inversion-recovery spin echo
    GRADIENT_ECHO = "spoiled gradient echo"
    INVERSION_GRADIENT_ECHO = "inversion-recovery gradient echo"

    @property
    def inverts(self) -> bool:
        """Whether an inversion pulse precedes the readout, so that TI exists."""
        return self in (Sequence.MPRAGE, Sequence.FLAIR, Sequence.INVERSION_GRADIENT_ECHO)

    @property
    def has_flip_angle(self) -> bool:
        """Whether the closed form knows a flip angle; the paper's three know none."""
        return self in (Sequence.GRADIENT_ECHO, Sequence.INVERSION_GRADIENT_ECHO)


SEQUENCES = tuple(Sequence)


class ProtocolError(BadInput):
    """A protocol that no scanner could run, or that was given in the wrong unit."""


@dataclass(frozen=True)
class Protocol:
    """What is set at the scanner's console.

    Parameters
    ----------
    sequence
        A :class:`Sequence`, or its name ("MPRAGE", "spin echo", "FLAIR", "spoiled gradient echo",
        "inversion-recovery gradient echo").
    te, tr, ti
        Echo, repetition and inversion time in seconds. ``tr`` of an inversion sequence runs from
        inversion to inversion (BIDS ``RepetitionTimePreparation``). ``ti`` stays None without inversion.
    flip_angle_deg
        Excitation flip angle in degrees, of the gradient echoes; None for the others, whose closed
        forms have none (a spin echo's is 90°).
    signed
        The image is the real part, negative before the null point, and not the magnitude.
    as_published
        Accept TI ≥ TR. One of the nine settings in the paper's Figure 4 (MPRAGE, TR 0.1 s,
        TI 1 s) cannot be run on a scanner, though its closed form has a value; only settings
        copied from the paper should need this.

    Raises
    ------
    ProtocolError
        In one sentence, where the times contradict each other or look like milliseconds, or where a
        time or the angle is missing or does not apply.
    """

    sequence: Sequence
    te: float
    tr: float
    ti: float | None = None
    flip_angle_deg: float | None = None
    as_published: bool = False
    signed: bool = False

    def __post_init__(self):
        try:
            object.__setattr__(self, "sequence", Sequence(self.sequence))
        except ValueError:
            known = ", ".join(s.value for s in Sequence)
            raise ProtocolError(f"unknown sequence {self.sequence!r}: choose one of {known}") from None
        self._check_number("TE", self.te, IMPLAUSIBLE_TE)
        self._check_number("TR", self.tr, IMPLAUSIBLE_TR)
        if self.te >= self.tr:
            raise ProtocolError(f"TE {self.te:g} s is not shorter than TR {self.tr:g} s: the echo must come within TR")
        self._check_flip_angle()
        if not self.sequence.inverts:
            if self.ti is not None:
                raise ProtocolError(
                    f"TI {self.ti:g} s given for a {self.sequence.value}, which has no inversion: leave TI out"
                )
            return
        if self.ti is None:
            raise ProtocolError(f"{self.sequence.value} needs an inversion time: give TI in seconds")
        self._check_number("TI", self.ti, IMPLAUSIBLE_TR)
        if self.ti >= self.tr and not self.as_published:
            raise ProtocolError(f"TI {self.ti:g} s is not shorter than TR {self.tr:g} s, which runs between inversions")

    def _check_flip_angle(self):
        name, angle = self.sequence.value, self.flip_angle_deg
        if not self.sequence.has_flip_angle and angle is None:
            return
        if not self.sequence.has_flip_angle:
            raise ProtocolError(f"flip angle {angle}° given for {name}, whose closed form has none: leave it out")
        if angle is None:
            raise ProtocolError(f"{name} needs a flip angle: give it in degrees")
        if not isinstance(angle, Real) or not math.isfinite(angle):
            raise ProtocolError(f"the flip angle must be a finite number of degrees, not {angle!r}")
        if not 0 < angle < 180:
            raise ProtocolError(f"the flip angle must lie between 0° and 180°, not at {angle:g}°")
        if angle < IMPLAUSIBLE_FLIP:
            raise ProtocolError(
                f"a flip angle of {angle:g}° looks like radians: did you mean {math.degrees(angle):.3g}°?"
            )

    @staticmethod
    def _check_number(name: str, value: float, implausible: float):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ProtocolError(f"{name} must be a finite number of seconds, not {value!r}")
        if value <= 0:
            raise ProtocolError(f"{name} must be positive, not {value:g} s")
        if value >= implausible:
            raise ProtocolError(f"{name} of {value:g} s looks like milliseconds: did you mean {value / 1000:g} s?")

    @property
    def flip_angle(self) -> float | None:
        """Radians; None where the closed form has none."""
        return None if self.flip_angle_deg is None else math.radians(self.flip_angle_deg)

    def settings(self) -> Tensor:
        """``(6,)``, what batches carry: number of the sequence, TE, TR, TI (s), flip angle (rad), 1 for a signed image.

        TI and flip angle are 0 where there is none.
        """
        import torch

        times = (self.te, self.tr, self.ti or 0.0, self.flip_angle or 0.0)
        return torch.tensor([SEQUENCES.index(self.sequence), *times, self.signed], dtype=torch.float32)

    @classmethod
    def from_settings(cls, settings: Tensor) -> Protocol:
        """The inverse of :meth:`settings`, rounded to 10 µs and 0.001°, which float32 holds.

        TI ≥ TR is taken as published: only a :class:`Protocol` that said so can have made such settings.
        """
        index, te, tr, ti, angle, signed = (float(value) for value in settings)
        sequence, te, tr, ti = SEQUENCES[int(index)], round(te, 5), round(tr, 5), round(ti, 5)
        angle = round(math.degrees(angle), 3) if sequence.has_flip_angle else None
        return cls(sequence, te, tr, ti if sequence.inverts else None, angle, ti >= tr, bool(signed))

    def __str__(self):
        text = f"{self.sequence.value}, TE {1000 * self.te:g} ms, TR {self.tr:g} s"
        if self.ti is not None:
            text += f", TI {self.ti:g} s"
        text += f", flip angle {self.flip_angle_deg:g}°" if self.flip_angle_deg is not None else ""
        return text + (", real part" if self.signed else "")

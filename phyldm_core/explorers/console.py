"""What a scanner's console offers and forbids: presets, the ranges of its sliders, where they stop and why."""

from __future__ import annotations

from dataclasses import replace

from ..physics import REFERENCE, UNSEEN, Protocol, Sequence

NAMES = {"te": "TE", "tr": "TR", "ti": "TI", "flip_angle_deg": "flip"}
"""What can be set, as a console names it."""

RANGES = {"te": (0.001, 1.9), "tr": (0.004, 20.0), "ti": (0.02, 10.0), "flip_angle_deg": (2.0, 120.0)}
"""Ends of the sliders, s and degrees. The same for all sequences: a browser sends the old value back, cut to size,
when the ends of a slider move under it."""

JUST_INSIDE = 0.98  # of TR: where TE and TI stop
TR_FLOOR = 0.05  # s; of sequences with more than one small pulse a repetition

CLINIC = {
    "T1w MPRAGE": REFERENCE["T1w"],
    "T1w spin echo": Protocol(Sequence.SPIN_ECHO, te=0.012, tr=0.6),
    "PDw spin echo": Protocol(Sequence.SPIN_ECHO, te=0.015, tr=4.0),
    "T2w spin echo": Protocol(Sequence.SPIN_ECHO, te=0.1, tr=5.0),
    "T2-FLAIR": REFERENCE["FLAIR"],
    "T1w spoiled gradient echo": Protocol(Sequence.GRADIENT_ECHO, te=0.004, tr=0.02, flip_angle_deg=25),
    "PDw spoiled gradient echo": Protocol(Sequence.GRADIENT_ECHO, te=0.004, tr=0.02, flip_angle_deg=4),
    "MPRAGE, white matter nulled": Protocol(Sequence.MPRAGE, te=0.003, tr=3.0, ti=0.6),
    "hydrography": Protocol(Sequence.SPIN_ECHO, te=0.75, tr=6.0),
}
"""Usual clinical protocols; the T2w echo time is an effective one."""

PRESETS = (
    CLINIC
    | {"paper T2w (nominal TE)": REFERENCE["T2w"]}
    | {f"Fig. 4 ({i}): {protocol}": protocol for i, protocol in enumerate(UNSEEN, 1)}
)

OWN = "own setting"
"""What the list of presets shows where none is set."""

STARTS_WITH = {
    Sequence.MPRAGE: CLINIC["T1w MPRAGE"],
    Sequence.SPIN_ECHO: CLINIC["T2w spin echo"],
    Sequence.FLAIR: CLINIC["T2-FLAIR"],
    Sequence.GRADIENT_ECHO: CLINIC["T1w spoiled gradient echo"],
    Sequence.INVERSION_GRADIENT_ECHO: Protocol(Sequence.INVERSION_GRADIENT_ECHO, 0.003, 2.4, 1.0, flip_angle_deg=8),
}
"""What each sequence starts with: a FLAIR with the TE of an MPRAGE teaches nothing."""


def set_by(sequence: Sequence) -> tuple[str, ...]:
    """The fields of :class:`Protocol` that this sequence has, the one that makes its contrast first."""
    first = ("ti",) if sequence.inverts else ()
    return (*first, *(("flip_angle_deg",) if sequence.has_flip_angle else ()), "te", "tr")


def move(protocol: Protocol, name: str, value: float) -> tuple[Protocol, str]:
    """``protocol`` with one setting moved, held where no scanner could follow, and why it was held ("" if not).

    Parameters
    ----------
    name
        Of :data:`NAMES`.
    value
        s, or degrees; rounded to three digits.
    """
    moved = {n: getattr(protocol, n) for n in set_by(protocol.sequence)} | {name: rounded(value)}
    times = {n: moved[n] for n in ("te", "tr", "ti") if n in moved}
    allowed, message = stay_physical(times, name)
    if allowed["tr"] < TR_FLOOR and not protocol.sequence.has_flip_angle:
        allowed, _ = stay_physical(allowed | {"tr": TR_FLOOR}, "tr")
        message = f"TR stops at {allowed['tr']:g} s: only a gradient echo repeats faster."
    return replace(protocol, **moved | allowed, as_published=False), message


def stay_physical(times: dict[str, float], moved: str) -> tuple[dict[str, float], str]:
    """Times (s) with TE and TI below TR, and the sentence that says why one was held ("" if none).

    The slider that was moved is the one that stops.
    """
    allowed, message = dict(times), ""
    others = [name for name in times if name != "tr"]
    if moved == "tr":
        longest = max(others, key=times.get)
        if times["tr"] * JUST_INSIDE < times[longest]:
            allowed["tr"] = rounded(times[longest] / JUST_INSIDE)
            message = f"TR stops at {allowed['tr']:g} s: it must be longer than {longest.upper()} {times[longest]:g} s."
        return allowed, message
    why = {"te": "the echo must come within the repetition", "ti": "TR runs from inversion to inversion"}
    for name in others:
        if times[name] > times["tr"] * JUST_INSIDE:
            allowed[name] = rounded(times["tr"] * JUST_INSIDE)
            message = f"{name.upper()} stops at {allowed[name]:.3g} s, below TR {times['tr']:.3g} s: {why[name]}."
    return allowed, message


def rounded(value: float) -> float:
    """To three digits: finer than a slider's step, and readable."""
    return float(f"{value:.3g}")

"""Tissue maps on disk: PD, T1 and T2 of one person as BIDS quantitative maps, and the contrasts they give.

Knows NIfTI, numpy and the closed forms, and no network: rendering a volume takes as long as reading and writing it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..machine.errors import BadInput
from ..physics import Protocol, TissueMaps, render
from .bids import MAP_UNITS, map_sidecar, parse_name, read_sidecar, sidecar, stem
from .nifti import Stored, parts_of, read_stored, write_image

LONGEST_TIME = 20.0  # s; no T1 or T2 of tissue is longer, and in ms all of them are
TO_SECONDS = {
    "s": lambda times: times, "ms": lambda times: times / 1000, "us": lambda times: times / 1e6,
    "1/s": lambda rates: 1 / rates, "1/ms": lambda rates: 1 / (1000 * rates),
}  # fmt: skip
TO_WATER = {"1": lambda pd: pd, "%": lambda pd: pd / 100}
UNIT_NAMES = {
    "s": ("s", "sec", "second", "seconds"),
    "ms": ("ms", "msec", "millisecond", "milliseconds"),
    "us": ("us", "µs", "μs", "microsecond", "microseconds"),
    "1/s": ("1/s", "s-1", "s^-1", "s⁻¹", "hz", "1/sec"),
    "1/ms": ("1/ms", "ms-1", "ms^-1", "ms⁻¹", "khz"),
    "1": ("arbitrary", "a.u.", "au", "1", "", "fraction", "unitless", "dimensionless", "n/a"),
    "%": ("%", "percent", "pu", "p.u."),
}
"""How people write the units of :data:`TO_SECONDS` and :data:`TO_WATER`, lower case."""


@dataclass(frozen=True, eq=False)
class MapVolumes:
    """One person's maps: each ``(x, y, z)`` float32 as stored, 0 in air, their affine (voxel to RAS mm) and world."""

    maps: TissueMaps
    affine: np.ndarray
    skull_stripped: bool
    paths: tuple[Path, Path, Path]
    stored: Stored


def read_maps(folder: str | Path) -> MapVolumes:
    """The one set of ``…_PDmap``, ``…_T1map``, ``…_T2map`` (.nii or .nii.gz) in a folder or below it.

    Standard deviations (``desc-sd``) are passed over. ``Units`` of the sidecars are obeyed: milliseconds and rates
    become seconds, per cent fractions. Without Units times are seconds.

    Raises
    ------
    BadInput
        A map is missing, there are maps of several people, grids differ, or a map's numbers are not of its unit.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # Path's own raises for a name too long
        raise BadInput(f"{folder}: no such folder of maps: give one that phyldm fit or phyldm sample wrote")
    found: dict[str, list[Path]] = {suffix: [] for suffix in MAP_UNITS}
    for path in sorted(folder.rglob("*map.nii*")):
        entities, suffix = parse_name(path)
        if suffix in found and entities.get("desc") != "sd" and not path.name.startswith("."):
            found[suffix].append(path)
    for suffix, paths in found.items():
        if not paths:
            raise BadInput(f"{folder}: no …_{suffix}.nii.gz here: maps of PD, T1 and T2 are needed")
        if len(paths) > 1:
            raise BadInput(f"{folder}: {len(paths)} files …_{suffix} ({paths[0].name}, …): give one person's folder")
    paths = tuple(paths[0] for paths in found.values())
    volumes, stored = zip(*(_read_map(path) for path in paths), strict=True)
    for path, where in zip(paths, stored, strict=True):
        if where.shape != stored[0].shape or not np.allclose(where.affine, stored[0].affine, atol=1e-3):
            raise BadInput(f"{path}: lies on another grid than {paths[0].name}: resample them to one")
    stripped = bool(read_sidecar(paths[0]).get("SkullStripped", False))
    return MapVolumes(TissueMaps(*volumes), stored[0].affine, stripped, paths, stored[0])


def _read_map(path: Path) -> tuple[np.ndarray, Stored]:
    """A map in the unit of :data:`bids.MAP_UNITS`, and how its file lays it."""
    volume, stored = read_stored(path)
    volume = np.nan_to_num(volume, copy=False, nan=0.0, posinf=0.0, neginf=0.0)  # some tools write NaN for "no value"
    if not volume.max(initial=0) > 0:
        raise BadInput(f"{path}: an empty map, no voxel is above 0")
    in_time = MAP_UNITS[parse_name(path)[1]] == "s"
    known = TO_SECONDS if in_time else TO_WATER
    unit = read_sidecar(path).get("Units")
    name = next((ours for ours in known if str(unit or "").strip().lower() in UNIT_NAMES[ours]), None)
    if unit is None or (in_time and not str(unit).strip()):
        name = next(iter(known))
    if name is None:
        raise BadInput(f"{path}: unknown Units {unit!r} in its sidecar: they must be one of {', '.join(known)}")
    there = volume > 0
    converted = np.zeros_like(volume)
    with np.errstate(over="ignore"):
        converted[there] = known[name](volume[there])
    converted[~np.isfinite(converted)] = 0
    if in_time and (times := converted[there]).size:
        # unless it is said that they are seconds, a few long ones are enough: air fitted with small numbers has most
        typical = float(np.percentile(times, 50 if unit else 98))
        longest = float(np.percentile(times, 98))
        if typical > LONGEST_TIME and "/" not in name:  # the rate of air may be anything
            raise BadInput(
                f"{path}: {'half' if unit else 'some'} of its times are beyond {typical:.4g} s, which looks like "
                f"milliseconds: {'correct' if unit else 'give'} Units in its sidecar"
            )
        if unit and longest < LONGEST_TIME / 1000:
            raise BadInput(
                f"{path}: its Units say {unit}, but then no time is longer than {1000 * longest:.3g} ms: correct them"
            )
    return converted, stored


def render_volume(maps: TissueMaps, protocol: Protocol) -> np.ndarray:
    """The magnitude image of map volumes, float32 of their shape; PD's unit is the signal's, air gives 0."""
    tissue = maps.pd > 0
    image = np.zeros(tissue.shape, np.float32)
    image[tissue] = render(TissueMaps(*(volume[tissue] for volume in maps)), protocol)
    return image


def render_maps(folder: str | Path, protocol: Protocol, out: str | Path) -> Path:
    """Write the contrast that the maps in ``folder`` give under ``protocol``, with its BIDS sidecar.

    Parameters
    ----------
    protocol
        Of any sequence; a spoiled gradient echo decays with T2 here, which stands for T2*.
    out
        Ends in ``.nii.gz``. Voxels are float32 in the unit of PD: water at rest gives 1.

    Raises
    ------
    BadInput
        As :func:`read_maps` and :func:`nifti.write_image`.
    """
    volumes = read_maps(folder)
    _check_target(Path(out), volumes.paths)
    image = render_volume(volumes.maps, protocol)
    names = ", ".join(path.name for path in volumes.paths)
    said = f"Rendered from {names} by the closed form of {protocol.sequence.value}"
    meta = scan_sidecar(protocol, volumes.skull_stripped, Description=said)
    return write_image(out, image, volumes.affine, meta, like=volumes.stored)


def _check_target(out: Path, sources: tuple[Path, ...]):
    """Refuse to write over what is read, or over an image that was not rendered."""
    written = {path.resolve() for path in (out, out.with_name(f"{stem(out)}.json"))}
    for source in sources:
        read = {path.resolve() for part in parts_of(source) for path in (part, part.with_name(f"{stem(part)}.json"))}
        if written & read or (out.exists() and any(out.samefile(part) for part in parts_of(source))):
            raise BadInput(f"{out}: is one of the maps it would be rendered from: choose another name")
    if out.exists() and not str(read_sidecar(out).get("Description", "")).startswith("Rendered from "):
        raise BadInput(f"{out}: is there and was not rendered by phyldm: choose another name, or remove it")


def scan_sidecar(protocol: Protocol, skull_stripped: bool, nominal_te: float | None = None, **fields) -> dict:
    """Sidecar of a rendered image: the TE the signal model used is said twice, so that a reader takes it as it is."""
    return sidecar(protocol, nominal_te or protocol.te, SkullStripped=skull_stripped, **fields)


def write_maps(
    start: Path, maps: TissueMaps, affine: np.ndarray, skull_stripped: bool, like: Stored | None = None, **fields
) -> list[Path]:
    """Write ``{start}_PDmap.nii.gz``, ``_T1map`` and ``_T2map`` (s), each with its sidecar of ``fields``.

    Parameters
    ----------
    start
        Folder and BIDS entities, ``…/sub-01/anat/sub-01`` or ``…/sub-01_desc-sd``.
    like
        As :func:`nifti.write_image` takes it.
    """
    written = []
    for suffix, volume in zip(MAP_UNITS, maps, strict=True):
        meta = map_sidecar(suffix, skull_stripped, **fields)
        path = start.with_name(f"{start.name}_{suffix}.nii.gz")
        written.append(write_image(path, volume, affine, meta, like=like))
    return written

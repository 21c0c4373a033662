"""Tissue maps on disk: PD, T1 and T2 of one person as BIDS quantitative maps, and the contrasts they give.

Knows NIfTI, numpy and the closed forms, and no network: rendering a volume takes as long as reading and writing it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from ..errors import BadInput
from ..physics import Protocol, TissueMaps, render
from .bids import MAP_UNITS, map_sidecar, parse_name, read_sidecar, sidecar
from .nifti import UNREADABLE, write_image

LONGEST_TIME = 20.0  # s; no T1 or T2 of tissue is longer, the median of a map in ms always is


@dataclass(frozen=True, eq=False)
class MapVolumes:
    """One person's maps: each ``(x, y, z)`` float32 as stored, 0 in air, and their affine (voxel to RAS mm)."""

    maps: TissueMaps
    affine: np.ndarray
    skull_stripped: bool
    paths: tuple[Path, Path, Path]


def read_maps(folder: str | Path) -> MapVolumes:
    """The one set of ``…_PDmap``, ``…_T1map``, ``…_T2map`` (.nii or .nii.gz) in a folder or below it.

    Standard deviations (``desc-sd``) are passed over.

    Raises
    ------
    BadInput
        A map is missing, there are maps of several people, grids differ, or times are in milliseconds.
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
    volumes, affines = zip(*(_read_volume(path) for path in paths), strict=True)
    for path, volume, affine in zip(paths, volumes, affines, strict=True):
        if volume.shape != volumes[0].shape or not np.allclose(affine, affines[0], atol=1e-3):
            raise BadInput(f"{path}: lies on another grid than {paths[0].name}: resample them to one")
    for path, times in zip(paths[1:], volumes[1:], strict=True):
        if (middle := float(np.median(times[times > 0]))) > LONGEST_TIME:
            raise BadInput(f"{path}: its median is {middle:g}, which looks like milliseconds: divide by 1000")
    return MapVolumes(TissueMaps(*volumes), affines[0], bool(read_sidecar(paths[0]).get("SkullStripped", False)), paths)


def _read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        nifti = nibabel.load(path)
        volume = nifti.get_fdata(dtype=np.float32, caching="unchanged")
    except UNREADABLE as error:
        raise BadInput(f"{path}: not a readable NIfTI image ({type(error).__name__}): write the maps again") from None
    if volume.ndim != 3:
        raise BadInput(f"{path}: has {volume.ndim} axes, a map has 3: give one volume")
    volume = np.nan_to_num(volume, copy=False, nan=0.0, posinf=0.0, neginf=0.0)  # some tools write NaN for "no value"
    if not volume.max(initial=0) > 0:
        raise BadInput(f"{path}: an empty map, no voxel is above 0")
    return volume, nifti.affine


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
    image = render_volume(volumes.maps, protocol)
    names = ", ".join(path.name for path in volumes.paths)
    said = f"Rendered from {names} by the closed form of {protocol.sequence.value}"
    return write_image(out, image, volumes.affine, scan_sidecar(protocol, volumes.skull_stripped, Description=said))


def scan_sidecar(protocol: Protocol, skull_stripped: bool, nominal_te: float | None = None, **fields) -> dict:
    """Sidecar of a rendered image: the TE the signal model used is said twice, so that a reader takes it as it is."""
    return sidecar(protocol, nominal_te or protocol.te, SkullStripped=skull_stripped, **fields)


def write_maps(stem: Path, maps: TissueMaps, affine: np.ndarray, skull_stripped: bool, **fields) -> list[Path]:
    """Write ``{stem}_PDmap.nii.gz``, ``_T1map`` and ``_T2map`` (s), each with its sidecar of ``fields``.

    Parameters
    ----------
    stem
        Folder and BIDS entities, ``…/sub-01/anat/sub-01`` or ``…/sub-01_desc-sd``.
    """
    written = []
    for suffix, volume in zip(MAP_UNITS, maps, strict=True):
        meta = map_sidecar(suffix, skull_stripped, **fields)
        written.append(write_image(stem.with_name(f"{stem.name}_{suffix}.nii.gz"), volume, affine, meta))
    return written

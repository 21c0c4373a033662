"""Where each tissue is: heads as fractions of tissue per voxel, and ways to turn one head into many.

Three kinds of head. The MNI152 template with the grey and white matter maps inside nilearn needs no
download. Folders of FreeSurfer-style label maps and of BrainWeb's anatomical models hold real people.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from .errors import BadInput
from .registration import register
from .scans import Scan
from .tissue import BRAIN, TISSUES

FREESURFER = {
    "WM": (2, 41, 77, 85, 192, 251, 252, 253, 254, 255),
    "GM": (3, 42, 26, 58, 18, 54, 136, 137, 163, 164),  # 136… lie in the cortical rim of these heads
    "CSF": (4, 43, 5, 44, 14, 15, 24, 72, 31, 63, 30, 62),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "cerebellar WM": (7, 46),
    "cerebellar GM": (8, 47),
    "brain stem": (16, 28, 60),
    "lesion": (25, 57),
    "fat": (507,),
    "muscle": (508, 509, 511),
    "bone": (515, 165),
    "marrow": (516,),
    "blood": (502, 514),
    "eye": (506, 259),
}
"""FreeSurfer's label numbers, and SynthSeg's outside the brain, by tissue: 502–530, and 165 and 259 in 2020."""
LATERAL_VENTRICLES = (4, 43)
MINC = (".mnc", ".mnc.gz")  # what BrainWeb's files are
SOFT_TISSUE = 258  # of the heads of 2020: all that lies around the skull
SKIN_MM = 2.5  # as thick as in the newer heads, whose skin has a label

BRAINWEB = {
    "CSF": (1,),
    "GM": (2,),
    "WM": (3,),
    "fat": (4, 9),
    "muscle": (5, 6),
    "bone": (7, 10),
    "blood": (8,),
    "marrow": (11,),
}
"""BrainWeb's classes by tissue. Skin and muscle share one, deep nuclei are GM or WM; dura counts as bone, as dark."""
BRAINWEB_SIZE = 0.9  # of their own: BrainWeb stretched its heads to MNI152, a skull of 2.0 l where people have 1.4

LANDMARKS = {  # label (left, right) and the structure's centre in MNI space, |x| y z in mm
    (10, 49): (11, -19, 7), (11, 50): (13, 11, 10), (12, 51): (26, 2, 1), (13, 52): (19, -5, -1),
    (17, 53): (27, -22, -15), (18, 54): (23, -4, -18), (7, 46): (18, -58, -36), (26, 58): (10, 12, -7),
}  # fmt: skip
"""Structures whose centres turn a head into the axes of MNI space, so that axial slices are axial."""
CENTRE_MNI = (0.0, -18.0, 12.0)  # mm; the slices are centred here, between thalamus and ventricles

VENTRICLES_MNI = (14, -10, 14), (18, 45, 18)  # centre |x| y z and radii, mm: CSF in there is the lateral ventricles

MARGIN_MM = 24  # kept around the slices, so that a deformed slice still falls inside the stored block
HALF_WIDTH_MM, HALF_LENGTH_MM = 95, 115  # of the stored block: the largest of the heads fits


@dataclass
class Anatomy:
    """One head.

    Parameters
    ----------
    name
        Where it came from: a file's stem, or "mni152".
    fractions
        ``(k, z, y, x)`` float32 at 1 mm, one map per entry of :data:`tissue.TISSUES`, RAS order
        (z to superior, y to anterior, x to the right). Sums to at most 1; the rest is air.
    ventricle
        ``(z, y, x)``, smooth indicator of the lateral ventricles.

    The middle voxel is the point that the central slices are centred on.
    """

    name: str
    fractions: Tensor
    ventricle: Tensor


def find_anatomies(folder: str | Path | None) -> list[str]:
    """Names of the heads on offer: ``["mni152"]`` without a folder, else its NIfTI files, sorted.

    Raises
    ------
    BadInput
        The folder does not exist or holds no ``.nii`` or ``.nii.gz``.
    """
    if not folder:
        return ["mni152"]
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: --anatomies takes a folder of label maps in NIfTI")
    files = sorted(f.name for f in folder.iterdir() if f.name.endswith((".nii", ".nii.gz")))
    if not files:
        raise BadInput(f"{folder} holds no .nii or .nii.gz file: --anatomies takes a folder of label maps in NIfTI")
    return files


def load_anatomy(name: str, folder: str | Path | None, *, slab_mm: float, head: bool, blur_mm: float) -> Anatomy:
    """Read one head, as far as the slices need it.

    Parameters
    ----------
    name, folder
        An entry of :func:`find_anatomies` and the folder it was found in.
    slab_mm
        Thickness of the block of slices about the centre; :data:`MARGIN_MM` is kept on both sides.
    head
        Keep skull, scalp, muscle and eyes; otherwise everything outside the brain and its CSF is air.
    blur_mm
        Width (SD) of the partial volume between tissues that a voxel of the final size sees.
    """
    half = (int(round(slab_mm / 2 + MARGIN_MM)), HALF_LENGTH_MM, HALF_WIDTH_MM)
    if name == "mni152":
        masks, ventricle = _mni152(half)
    else:
        read = _brainweb if name.endswith(MINC) else _labelled
        masks, ventricle = read(Path(folder) / name, half)
    fractions = np.zeros((len(TISSUES), *ventricle.shape), np.float32)
    for k, tissue in enumerate(TISSUES):
        if tissue in masks and (head or tissue in BRAIN):
            fractions[k] = masks[tissue]
    # islands of CSF in the neck and the optic canals are not brain, nor are markers beside it the head
    pieces, _ = ndimage.label(fractions.sum(0) > 0.5)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    fractions *= ndimage.binary_dilation(pieces == largest)
    for volume in fractions:
        ndimage.gaussian_filter(volume, blur_mm, output=volume)
    ventricle = ndimage.gaussian_filter(ventricle.astype(np.float32), 4.0)
    return Anatomy(name, torch.from_numpy(fractions), torch.from_numpy(ventricle))


def _labelled(path: Path, half: tuple[int, int, int]):
    """Tissue masks (z, y, x) at 1 mm of a FreeSurfer-style label map, turned into the axes of MNI space."""
    labels, affine = _read(path)
    present = {number for number, box in enumerate(ndimage.find_objects(labels), 1) if box}
    if present.isdisjoint(FREESURFER["WM"]) or present.isdisjoint(FREESURFER["GM"]):
        raise BadInput(f"{path} has no known tissue labels: FreeSurfer numbers are needed (2, 3, 41, 42 …)")
    rotation, origin = _to_mni(labels, affine)
    labels = _turned(labels, affine, rotation.T, origin, half)
    masks = {tissue: np.isin(labels, numbers) for tissue, numbers in FREESURFER.items()}
    if SOFT_TISSUE in present:
        soft = labels == SOFT_TISSUE
        skin = soft & (ndimage.distance_transform_edt(labels > 0) <= SKIN_MM)
        masks["fat"] |= soft & ~skin
        masks["muscle"] |= skin
    return masks, np.isin(labels, LATERAL_VENTRICLES)


def _brainweb(path: Path, half: tuple[int, int, int]):
    """Tissue fractions (z, y, x) at 1 mm of one of BrainWeb's models, of eight voxels of 0.5 mm each.

    Its pose is that in which its white matter lies on the template's.
    """
    from nilearn import datasets  # a second of imports, needed here only

    labels, affine = _read(path)
    if not {1, 2, 3} <= set(np.unique(labels)) <= set(range(12)):
        raise BadInput(f"{path} has no known tissue labels: BrainWeb's classes are 0 to 11")
    template = datasets.load_mni152_wm_template(resolution=1)
    here, there = (
        Scan(
            _means(white, n),
            affine @ nibabel.affines.from_matvec(np.diag([n] * 3), [(n - 1) / 2] * 3),
            None,
            "WM",
            path,
            {},
        )
        for white, affine, n in ((labels == 3, affine, 4), (template.get_fdata(dtype=np.float32), template.affine, 2))
    )
    from_mni = np.linalg.inv(register(here, there))
    landmarks = np.mean(list(LANDMARKS.values()), 0) * (0, 1, 1)  # these stay where they are while the head shrinks
    centre = landmarks + (CENTRE_MNI - landmarks) / BRAINWEB_SIZE
    origin = nibabel.affines.apply_affine(from_mni, centre)
    labels = _turned(labels, affine, from_mni[:3, :3] / BRAINWEB_SIZE, origin, half, finer=2)
    masks = {tissue: sum(_means(labels == n, 2) for n in numbers) for tissue, numbers in BRAINWEB.items()}
    z, y, x = (np.arange(-h, h + 1) / BRAINWEB_SIZE + c for h, c in zip(half, centre[::-1], strict=True))
    return masks, _ellipsoid(z, y, x, *VENTRICLES_MNI) * (masks["CSF"] > 0.5)


def _means(volume: np.ndarray, n: int) -> np.ndarray:
    """float32 means over blocks of ``n`` voxels a side."""
    volume = volume[tuple(slice(size // n * n) for size in volume.shape)]
    parts = (volume[i::n, j::n, k::n] for i, j, k in np.ndindex(n, n, n))
    return sum(part.astype(np.float32) for part in parts) / n**3


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A label map ``(x, y, z)`` int16 in RAS order, and its affine."""
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        labels = np.asarray(image.dataobj)
    except Exception as error:  # nibabel raises many kinds; a user needs to know which file
        kind = "MINC" if path.name.endswith(MINC) else "NIfTI"
        raise BadInput(f"{path} cannot be read as {kind} ({error}): replace or remove the file") from None
    if labels.ndim != 3:
        raise BadInput(f"{path} has {labels.ndim} dimensions: a label map has 3")
    return np.ascontiguousarray(np.rint(labels), np.int16), image.affine


def _turned(labels, affine, to_head, origin, half, finer: int = 1) -> np.ndarray:
    """Labels on a grid (z, y, x) along MNI's axes, ``finer`` voxels per mm and axis; ``origin`` (mm) is its middle.

    ``to_head`` is the 3 × 3 matrix that carries a distance in MNI space onto one in the head.
    """
    # output voxel (z, y, x) → MNI mm → head mm → input voxel (x, y, z)
    to_voxel = np.linalg.inv(affine)
    matrix = (to_voxel[:3, :3] @ to_head)[:, ::-1] / finer
    middle = to_voxel[:3, :3] @ origin + to_voxel[:3, 3]
    shape = [finer * (2 * h + 1) for h in half]
    offset = middle - matrix @ (np.array(shape) - 1) / 2
    return ndimage.affine_transform(labels, matrix, offset, output_shape=shape, order=0)


def _to_mni(labels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (head mm → MNI axes) and the head's own point (mm) at :data:`CENTRE_MNI`.

    The rotation that best carries the landmark centres onto MNI's (Kabsch); a head without the
    landmarks keeps its own axes and is centred on its white matter.
    """
    boxes = dict(enumerate(ndimage.find_objects(labels), 1))
    merged = not any(boxes.get(right) for _, right in LANDMARKS)
    here, there = [], []
    for pair, target in LANDMARKS.items():
        left, right = (_places(labels, number, boxes.get(number)) for number in pair)
        if merged and len(left):  # in 2020 both sides have the left one's number: cut in the middle
            middle = left[:, 0].mean()
            left, right = left[left[:, 0] < middle], left[left[:, 0] >= middle]
        for side, voxels in ((-1, left), (1, right)):
            if len(voxels):
                here.append(nibabel.affines.apply_affine(affine, voxels.mean(0)))
                there.append(np.array(target) * (side, 1, 1))
    if len(here) < 6:
        centre = ndimage.center_of_mass(np.isin(labels, FREESURFER["WM"]))
        return np.eye(3), nibabel.affines.apply_affine(affine, centre)
    here, there = np.array(here), np.array(there)
    rotation, _ = Rotation.align_vectors(there - there.mean(0), here - here.mean(0))
    rotation = rotation.as_matrix()
    return rotation, here.mean(0) + rotation.T @ (np.array(CENTRE_MNI) - there.mean(0))


def _places(labels: np.ndarray, number: int, box) -> np.ndarray:
    """Voxels ``(n, 3)`` that hold a number, all of them within ``box``."""
    if box is None:
        return np.empty((0, 3))
    return np.argwhere(labels[box] == number) + [along.start for along in box]


def _mni152(half: tuple[int, int, int]):
    """Tissue fractions (z, y, x) of the MNI152 template; deep nuclei by their place in MNI space.

    The template separates grey from white matter only. A nucleus is the grey matter inside an
    ellipsoid at the nucleus's usual MNI coordinates: an approximation, good enough to give the
    nuclei relaxation times of their own.
    """
    from nilearn import datasets  # a second of imports, needed here only

    offsets = [np.arange(-h, h + 1, dtype=np.float32) + c for h, c in zip(half, CENTRE_MNI[::-1], strict=True)]
    z, y, x = offsets

    def volume(loader):
        image = loader(resolution=1)
        data = image.get_fdata(dtype=np.float32).transpose(2, 1, 0)
        start = [int(o[0] - a) for o, a in zip(offsets, image.affine[2::-1, 3], strict=True)]
        before = [max(-s, 0) for s in start]
        padded = np.pad(data, [(b, len(o)) for b, o in zip(before, offsets, strict=True)])
        return padded[tuple(slice(s + b, s + b + len(o)) for s, b, o in zip(start, before, offsets, strict=True))]

    gm, wm, brain = (
        volume(loader)
        for loader in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )

    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total * brain, wm / total * brain
    csf = np.clip(brain - gm - wm, 0, 1)
    nuclei = {  # centre and radii (mm); the template calls half of thalamus and pallidum white
        "thalamus": ((11, -19, 7), (10, 15, 10), True),
        "caudate": ((13, 11, 10), (8, 14, 14), False),
        "pallidum": ((19, -4, 0), (6, 9, 7), True),
        "putamen": ((27, 2, 2), (9, 18, 13), False),
        "hippocampus": ((27, -22, -15), (9, 20, 9), False),
    }
    masks, free = {}, np.ones_like(gm)
    for tissue, (centre, radii, white_too) in nuclei.items():
        place = _ellipsoid(z, y, x, centre, radii) * free
        free = free - place
        masks[tissue] = (gm + wm * white_too) * place
        gm = gm * (1 - place)
        wm = wm * (1 - place * white_too)
    cerebellum = (z[:, None, None] < -14) & (y[None, :, None] < -38) & np.ones_like(gm, bool)
    stem = (
        (z[:, None, None] < -10) & (np.abs(x)[None, None, :] < 15) & (y[None, :, None] > -42) & (y[None, :, None] < -12)
    )
    masks["cerebellar GM"], masks["cerebellar WM"] = gm * cerebellum, wm * cerebellum
    masks["brain stem"] = (gm + wm) * stem * ~cerebellum
    rest = ~cerebellum & ~stem
    masks["GM"], masks["WM"], masks["CSF"] = gm * rest, wm * rest, csf
    return masks, _ellipsoid(z, y, x, *VENTRICLES_MNI) * (csf > 0.5)


def _ellipsoid(z, y, x, centre, radii) -> np.ndarray:
    """Two of them, left and right, ``(z, y, x)`` bool: of what lies at ``centre`` |x| y z, all in mm."""
    dx = (np.abs(x) - centre[0]) / radii[0]
    dy, dz = (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    return dz[:, None, None] ** 2 + dy[None, :, None] ** 2 + dx[None, None, :] ** 2 < 1


@dataclass(frozen=True)
class Deformation:
    """How far one simulated person may differ from the head they were made from."""

    rotation_deg: float = 2.0  # SD, about each axis: heads that were laid straight, or registered
    scale: float = 0.04  # SD of the logarithm, each axis
    translation_mm: float = 2.0
    coarse_mm: float = 3.0  # SD of the velocity on a 40 mm grid: lobes shift
    fine_mm: float = 1.5  # SD of the velocity on a 16 mm grid: gyri move and fold
    asymmetry: float = 0.25  # share of the velocity's SD that differs left from right: people are nearly symmetric
    ventricle_mm: float = 2.5  # SD of the widening of the lateral ventricles
    cortex: float = 0.25  # SD of the log of grey over white at their border: thicker or thinner cortex


FIELD_MM = 4  # grid of the velocity field; 16 mm details need no finer


def smooth_field(shape, spacing_voxels: float, generator: torch.Generator, channels: int = 1) -> Tensor:
    """Unit-variance smooth noise ``(channels, *shape)`` whose details are about ``spacing_voxels`` wide."""
    coarse = [max(int(np.ceil(n / spacing_voxels)) + 3, 4) for n in shape]
    noise = torch.randn(1, channels, *coarse, generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bicubic"
    field = functional.interpolate(noise, size=tuple(shape), mode=mode, align_corners=True)[0]
    return field / field.std().clamp_min(1e-6)


def deform(anatomy: Anatomy, points_mm: Tensor, spec: Deformation, generator: torch.Generator) -> Tensor:
    """Tissue fractions of a new person made from ``anatomy``, at the given points.

    Parameters
    ----------
    points_mm
        ``(d, h, w, 3)``, (x, y, z) in mm from the centre of the head.

    Returns
    -------
        ``(k, d, h, w)``, fractions of each tissue. The map from new to old head is an affine
        followed by the flow of a smooth stationary velocity (scaling and squaring, six halvings),
        so that at these amplitudes it folds nowhere.
    """
    half = points_mm.reshape(-1, 3).abs().amax(0) + 12
    size = [int(2 * h // FIELD_MM) + 2 for h in half.flip(0)]  # z, y, x

    def velocity(spacing_mm, amplitude_mm):
        field = smooth_field(size, spacing_mm / FIELD_MM, generator, 3)
        mirrored = field.flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None, None]  # x, y, z components
        even, odd = (field + mirrored) / 2**0.5, (field - mirrored) / 2**0.5
        field = (1 - spec.asymmetry**2) ** 0.5 * even + spec.asymmetry * odd
        return amplitude_mm * functional.avg_pool3d(field[None], 3, 1, 1, count_include_pad=False)[0]

    flow = velocity(40, spec.coarse_mm) + velocity(16, spec.fine_mm)
    grid = functional.affine_grid(torch.eye(3, 4)[None], [1, 1, *size], align_corners=True)
    where = grid * half  # mm
    widen = torch.randn((), generator=generator) * spec.ventricle_mm
    flow = flow + widen * _ventricle_push(anatomy, where)
    flow = (flow / 2**6)[None]
    unit = half.view(3, 1, 1, 1)
    for _ in range(6):
        there = grid + (flow / unit).permute(0, 2, 3, 4, 1)
        flow = flow + functional.grid_sample(flow, there, align_corners=True, padding_mode="border")
    warp = functional.grid_sample(flow, (points_mm / half)[None], align_corners=True, padding_mode="border")[0]
    warped = points_mm + warp.permute(1, 2, 3, 0)
    fractions = _sample(anatomy.fractions, warped @ _affine(spec, generator).T + _shift(spec, generator))
    return _vary_cortex(fractions.clamp_min(0), spec, generator)


def _affine(spec: Deformation, generator) -> Tensor:
    angles = torch.randn(3, generator=generator) * np.deg2rad(spec.rotation_deg)
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = angles
    return torch.linalg.matrix_exp(skew - skew.T) @ torch.diag(
        torch.exp(spec.scale * torch.randn(3, generator=generator))
    )


def _shift(spec: Deformation, generator) -> Tensor:
    return torch.randn(3, generator=generator) * spec.translation_mm


def _ventricle_push(anatomy: Anatomy, where: Tensor) -> Tensor:
    """Unit-height vector field that points towards the ventricles' inside: along it they widen."""
    gradient = torch.stack(torch.gradient(anatomy.ventricle), 0).flip(0)  # x, y, z components
    push = _sample(gradient, where[0])
    return push / push.norm(dim=0).max().clamp_min(1e-6)


def _sample(volumes: Tensor, points_mm: Tensor) -> Tensor:
    """Trilinear values of ``(k, z, y, x)`` volumes at 1 mm at ``(d, h, w, 3)`` mm from their middle; 0 outside."""
    half = torch.tensor(volumes.shape[:0:-1]) // 2  # x, y, z
    return functional.grid_sample(volumes[None], (points_mm / half)[None], align_corners=True)[0]


def _vary_cortex(fractions: Tensor, spec: Deformation, generator) -> Tensor:
    """Move the border between grey and white matter by reweighting them where both are present."""
    wm, gm = TISSUES.index("WM"), TISSUES.index("GM")
    both = fractions[wm] + fractions[gm]
    odds = torch.exp(spec.cortex * torch.randn((), generator=generator))
    shifted = odds * fractions[gm] / (odds * fractions[gm] + fractions[wm]).clamp_min(1e-6)
    out = fractions.clone()
    out[gm], out[wm] = both * shifted, both * (1 - shifted)
    return out

"""Label maps of real heads: which number is which tissue, and how a head is turned into the axes of MNI space.

Three generations: SynthSeg's of today, SynthSeg's of 2020, and BrainWeb's models.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..machine.errors import BadInput
from ..scans.nifti import Scan
from ..scans.registration import register

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


def read_labels(path: Path, half: tuple[int, int, int]):
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


def read_brainweb(path: Path, half: tuple[int, int, int]):
    """Tissue fractions (z, y, x) at 1 mm of one of BrainWeb's models, of eight voxels of 0.5 mm each.

    Its pose is that in which its white matter lies on the template's.
    """
    from nilearn import datasets  # a second of imports, needed here only

    labels, affine = _read(path)
    if not {1, 2, 3} <= set(np.unique(labels)) <= set(range(12)):
        raise BadInput(f"{path} has no known tissue labels: BrainWeb's classes are 0 to 11")
    template = datasets.load_mni152_wm_template(resolution=1)
    there = _coarser(template.get_fdata(dtype=np.float32), template.affine, 2, Path("MNI152"))
    from_mni = np.linalg.inv(register(_coarser(labels == 3, affine, 4, path), there))
    landmarks = np.mean(list(LANDMARKS.values()), 0) * (0, 1, 1)  # these stay where they are while the head shrinks
    centre = landmarks + (CENTRE_MNI - landmarks) / BRAINWEB_SIZE
    origin = nibabel.affines.apply_affine(from_mni, centre)
    labels = _turned(labels, affine, from_mni[:3, :3] / BRAINWEB_SIZE, origin, half, finer=2)
    masks = {tissue: sum(_means(labels == n, 2) for n in numbers) for tissue, numbers in BRAINWEB.items()}
    z, y, x = (np.arange(-h, h + 1) / BRAINWEB_SIZE + c for h, c in zip(half, centre[::-1], strict=True))
    return masks, both_sides(z, y, x, *VENTRICLES_MNI) * (masks["CSF"] > 0.5)


def _means(volume: np.ndarray, n: int) -> np.ndarray:
    """float32 means over blocks of ``n`` voxels a side."""
    volume = volume[tuple(slice(size // n * n) for size in volume.shape)]
    parts = (volume[i::n, j::n, k::n] for i, j, k in np.ndindex(n, n, n))
    return sum(part.astype(np.float32) for part in parts) / n**3


def _coarser(white: np.ndarray, affine: np.ndarray, n: int, path: Path) -> Scan:
    """White matter in voxels ``n`` times as long, for registration."""
    to_finer = nibabel.affines.from_matvec(np.diag([n] * 3), [(n - 1) / 2] * 3)
    return Scan(_means(white, n), affine @ to_finer, None, "WM", path, {})


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


def both_sides(z, y, x, centre, radii) -> np.ndarray:
    """Two of them, left and right, ``(z, y, x)`` bool: of what lies at ``centre`` |x| y z, all in mm."""
    dx = (np.abs(x) - centre[0]) / radii[0]
    dy, dz = (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    return dz[:, None, None] ** 2 + dy[None, :, None] ** 2 + dx[None, None, :] ** 2 < 1

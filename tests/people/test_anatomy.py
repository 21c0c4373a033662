"""Heads are whole, upright and symmetric, and stay so when they are bent into other people."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from phyldm_core.machine.errors import BadInput
from phyldm_core.people import label_maps
from phyldm_core.people.anatomy import (
    Anatomy,
    Deformation,
    deform,
    find_anatomies,
    load_anatomy,
    smooth_field,
)
from phyldm_core.people.label_maps import BRAINWEB_SIZE, CENTRE_MNI, LANDMARKS, LATERAL_VENTRICLES
from phyldm_core.tissue import BRAIN, HEAD, TISSUES

WM, GM, CSF, THALAMUS = (TISSUES.index(name) for name in ("WM", "GM", "CSF", "thalamus"))
STILL = Deformation(*[0.0] * 8)
USUAL = Deformation()
BRAIN_ONLY = {"slab_mm": 16, "head": False, "blur_mm": 0.7}


@pytest.fixture(scope="module")
def mni() -> Anatomy:
    return load_anatomy("mni152", None, **BRAIN_ONLY)


def points(shape=(9, 100, 80), step_mm=2.0) -> torch.Tensor:
    """``(z, y, x, 3)``, (x, y, z) in mm about the centre."""
    z, y, x = (step_mm * (torch.arange(n) - n // 2) for n in shape)
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], -1)


def bent(anatomy, spec=USUAL, seed=0, where=None):
    return deform(anatomy, points() if where is None else where, spec, torch.Generator().manual_seed(seed))


def centre_mm(volume) -> np.ndarray:
    """(x, y, z) in MNI mm of what a ``(z, y, x)`` volume at 1 mm shows."""
    middle = np.array(volume.shape) // 2
    return (np.array(ndimage.center_of_mass(np.asarray(volume))) - middle)[::-1] + CENTRE_MNI


def hemispheres(volume):
    """Left and right half, x rising towards the right; the plane between them in neither."""
    half = volume.shape[-1] // 2
    return volume[..., :half], volume[..., half + 1 :]


def sides(volume) -> np.ndarray:
    """Centres (mm) of the left and the right half, ``(2, 3)``."""
    volume = np.asarray(volume)
    middle = volume.shape[-1] // 2
    left, right = volume.copy(), volume.copy()
    left[..., middle:], right[..., : middle + 1] = 0, 0
    return np.stack([centre_mm(left), centre_mm(right)])


# --- the template ---------------------------------------------------------------------------------


def test_a_voxel_holds_no_more_than_itself(mni):
    total = mni.fractions.sum(0)
    assert mni.fractions.min() >= 0
    assert total.max() <= 1 + 1e-5
    assert total[:, :2].max() < 1e-3 and total[..., :2].max() < 1e-3  # the brain ends inside the block
    assert total[len(total) // 2].max() > 0.999


def test_brain_only_means_no_scalp(mni):
    outside = mni.fractions[[TISSUES.index(tissue) for tissue in HEAD]]
    assert outside.max() == 0


def test_the_central_slice_shows_ventricles_between_two_like_hemispheres(mni):
    z = len(mni.ventricle) // 2
    left, right = hemispheres(mni.fractions[:, z].sum(0))
    assert left.sum() == pytest.approx(right.sum().item(), rel=0.05)
    ventricles = mni.ventricle[z] > 0.4
    for half, csf in zip(hemispheres(ventricles), hemispheres(mni.fractions[CSF, z]), strict=True):
        assert half.sum() > 150  # mm², each side
        assert csf[half].mean() > 0.75


def test_grey_and_white_matter_share_the_brain(mni):
    share = mni.fractions.sum((1, 2, 3)) / mni.fractions.sum()
    assert 0.3 < share[GM] < 0.6
    assert 0.3 < share[WM] < 0.6
    assert share[CSF] < 0.25


@pytest.mark.parametrize("nucleus", ["thalamus", "caudate", "putamen", "pallidum"])
def test_nuclei_lie_on_both_sides_where_the_atlas_has_them(mni, nucleus):
    expected = next(centre for labels, centre in LANDMARKS.items() if labels[0] == NUMBERS[nucleus])
    left, right = sides(mni.fractions[TISSUES.index(nucleus)])
    np.testing.assert_allclose(left * (-1, 1, 1), right, atol=2)
    np.testing.assert_allclose(right, expected, atol=6)


NUMBERS = {"thalamus": 10, "caudate": 11, "putamen": 12, "pallidum": 13}


# --- bending it -----------------------------------------------------------------------------------


def test_a_head_left_alone_is_itself(mni):
    middle = [n // 2 for n in mni.ventricle.shape]
    z, y, x = (slice(m - 2 * (n // 2), m + 2 * (n - n // 2), 2) for m, n in zip(middle, (9, 100, 80), strict=True))
    torch.testing.assert_close(bent(mni, STILL), mni.fractions[:, z, y, x], atol=1e-3, rtol=0)


def test_bending_folds_nowhere(mni):
    """A head whose 'tissues' are its own coordinates tells where each point came from."""
    z, y, x = (torch.linspace(0, 1, n) for n in mni.ventricle.shape)
    coordinates = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1])
    ramps = Anatomy("ramps", torch.cat([torch.zeros(2, *mni.ventricle.shape), coordinates]), mni.ventricle)
    extent = torch.tensor(mni.ventricle.shape[::-1]) - 1.0  # mm
    where = points((5, 100, 80), step_mm=1)
    flow = Deformation(rotation_deg=0, scale=0, translation_mm=0)
    for seed in range(8):
        came_from = bent(ramps, flow, seed, where)[2:].permute(1, 2, 3, 0) * extent - extent / 2
        jacobian = torch.stack(torch.gradient(came_from, dim=(2, 1, 0)), -2)
        assert torch.linalg.det(jacobian).min() > 0, f"seed {seed} folds"
        assert (came_from - where).norm(dim=-1).mean() > 1.5  # mm: and it does move


def test_each_seed_is_another_person(mni):
    one, again, other = (bent(mni, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert (one - other).abs().sum() > 0.2 * one.sum()


def test_a_bent_head_still_fills_its_voxels_at_most_once(mni):
    fractions = bent(mni, seed=3)
    assert fractions.min() >= 0
    assert fractions.sum(0).max() <= 1 + 1e-4
    assert fractions[[TISSUES.index(tissue) for tissue in BRAIN]].sum() == pytest.approx(fractions.sum().item())


def test_wider_ventricles_hold_more_csf(mni):
    inside = (points().abs() < torch.tensor([30.0, 50.0, 20.0])).all(-1)

    def csf(ventricle_mm):
        spec = Deformation(0, 0, 0, 0, 0, 0, ventricle_mm=ventricle_mm, cortex=0)
        return bent(mni, spec, seed=0)[CSF][inside].sum().item()

    plain, one_way, other_way = csf(0), csf(3), csf(-3)
    narrow, wide = sorted((one_way, other_way))
    assert narrow < 0.9 * plain < 1.1 * plain < wide


def test_cortex_grows_only_at_the_expense_of_white_matter(mni):
    still = bent(mni, STILL)
    varied = bent(mni, Deformation(0, 0, 0, 0, 0, 0, 0, cortex=0.5), seed=1)
    assert varied[GM].sum() != pytest.approx(still[GM].sum().item(), rel=0.02)
    torch.testing.assert_close(varied[GM] + varied[WM], still[GM] + still[WM])
    others = [k for k in range(len(TISSUES)) if k not in (GM, WM)]
    torch.testing.assert_close(varied[others], still[others])


def test_smooth_fields_have_unit_spread_and_the_details_asked_for():
    field = smooth_field((64, 64), 8, torch.Generator().manual_seed(0))[0]
    assert field.std() == pytest.approx(1, abs=1e-4)
    step = (field[1:] - field[:-1]).std()
    finer = smooth_field((64, 64), 4, torch.Generator().manual_seed(0))[0]
    assert (finer[1:] - finer[:-1]).std() > 1.5 * step


# --- label maps of real people --------------------------------------------------------------------


def test_every_real_head_stands_upright_in_mni_axes(shared_data):
    folder = shared_data / "synthseg_labels"
    if not folder.is_dir():
        pytest.skip(f"no label maps at {folder}")
    names = find_anatomies(folder)
    assert len(names) == 15
    for name in names:
        head = load_anatomy(name, folder, slab_mm=4, head=False, blur_mm=0.7)
        left, right = sides(head.fractions[THALAMUS])
        assert left[2] == pytest.approx(right[2], abs=3), f"{name} is tilted"
        assert left[1] == pytest.approx(right[1], abs=3), f"{name} is turned"
        np.testing.assert_allclose(right, (11, -19, 7), atol=6, err_msg=name)
        assert head.fractions.sum(0).max() <= 1 + 1e-5
        assert head.fractions[TISSUES.index("fat")].max() == 0


# --- label maps made for the occasion -------------------------------------------------------------


def synthetic_head(landmarks=True, tilt=None, voxel_mm=2.0, size=96):
    """Labels and affine of a head of ellipsoids in MNI coordinates, turned about its centre by ``tilt``."""
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -voxel_mm * size / 2
    mm = apply_affine(affine, np.stack(np.indices((size,) * 3), -1))
    if tilt is not None:
        mm = mm @ tilt.as_matrix()  # where in MNI space this point of the turned head belongs
    mm = mm + np.array(CENTRE_MNI) * (1, 1, 0)
    radius = np.linalg.norm(mm / (70, 85, 70), axis=-1)
    labels = np.select([radius < 0.7, radius < 0.9, radius < 1, radius < 1.1], [2, 3, 24, 515], 0)
    for side, ventricle in zip((-1, 1), LATERAL_VENTRICLES, strict=True):
        labels[np.linalg.norm((mm - (side * 12, -10, 16)) / (6, 20, 8), axis=-1) < 1] = ventricle
    for pair, (x, y, z) in LANDMARKS.items() if landmarks else ():
        for side, number in zip((-1, 1), pair, strict=True):
            labels[np.linalg.norm(mm - (side * x, y, z), axis=-1) < 5] = number
    labels[(labels == 2) & (mm[..., 0] > 0)], labels[(labels == 3) & (mm[..., 0] > 0)] = 41, 42
    return labels.astype(np.int16), affine


def write(folder, labels, affine, name="head.nii.gz"):
    nibabel.Nifti1Image(labels, affine).to_filename(folder / name)
    return name


def test_a_tilted_head_is_turned_back(tmp_path):
    tilt = Rotation.from_euler("xyz", (12, -8, 10), degrees=True)
    for name, turn in (("straight.nii", None), ("tilted.nii", tilt)):
        write(tmp_path, *synthetic_head(tilt=turn), name)
        left, right = sides(load_anatomy(name, tmp_path, **BRAIN_ONLY).fractions[THALAMUS])
        np.testing.assert_allclose([left, right], [(-11, -19, 7), (11, -19, 7)], atol=1.5, err_msg=name)


def test_a_head_without_landmarks_keeps_its_axes(tmp_path):
    head = load_anatomy(write(tmp_path, *synthetic_head(landmarks=False)), tmp_path, **BRAIN_ONLY)
    left, right = hemispheres(head.fractions.sum(0))
    assert left.sum() == pytest.approx(right.sum().item(), rel=0.03)
    assert head.ventricle.max() > 0.3


def test_how_a_file_stores_its_axes_does_not_matter(tmp_path):
    labels, affine = synthetic_head()
    plain = load_anatomy(write(tmp_path, labels, affine, "ras.nii"), tmp_path, **BRAIN_ONLY)
    image = nibabel.Nifti1Image(labels, affine)
    to_lsp = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt("LSP")
    )
    image.as_reoriented(to_lsp).to_filename(tmp_path / "lsp.nii")
    torch.testing.assert_close(load_anatomy("lsp.nii", tmp_path, **BRAIN_ONLY).fractions, plain.fractions)


def test_the_head_around_the_brain_is_kept_on_request(tmp_path):
    name = write(tmp_path, *synthetic_head())
    bone = TISSUES.index("bone")
    assert load_anatomy(name, tmp_path, **BRAIN_ONLY).fractions[bone].max() == 0
    assert load_anatomy(name, tmp_path, **BRAIN_ONLY | {"head": True}).fractions[bone].max() > 0.9


# --- the older generations ------------------------------------------------------------------------


def in_2020(labels):
    """The same head as SynthSeg labelled it in 2020: one number for both sides, other ones outside the brain."""
    labels = labels.copy()
    for left, right in ((2, 41), (3, 42), LATERAL_VENTRICLES, *LANDMARKS):
        labels[labels == right] = left
    scalp = ndimage.binary_dilation(labels > 0, iterations=4) & (labels == 0)
    labels[labels == 515], labels[scalp] = 165, 258
    return labels


def test_a_head_of_2020_is_turned_by_the_middles_of_its_halves(tmp_path):
    for name, angles in (("straight.nii", (0, 0, 0)), ("tilted.nii", (12, -8, 10))):
        labels, affine = synthetic_head(tilt=Rotation.from_euler("xyz", angles, degrees=True))
        left, right = sides(
            load_anatomy(write(tmp_path, in_2020(labels), affine, name), tmp_path, **BRAIN_ONLY).fractions[THALAMUS]
        )
        np.testing.assert_allclose([left, right], [(-11, -19, 7), (11, -19, 7)], atol=2, err_msg=name)


def test_left_stays_left_where_numbers_do_not_tell(tmp_path):
    labels, affine = synthetic_head()
    mm = apply_affine(affine, np.stack(np.indices(labels.shape), -1)) + np.array(CENTRE_MNI) * (1, 1, 0)
    labels[np.linalg.norm(mm - (-40, -10, 20), axis=-1) < 8] = 25  # a lesion in the left hemisphere
    for name, volume in (("today.nii", labels), ("2020.nii", in_2020(labels))):
        lesion = load_anatomy(write(tmp_path, volume, affine, name), tmp_path, **BRAIN_ONLY).fractions[
            TISSUES.index("lesion")
        ]
        np.testing.assert_allclose(centre_mm(lesion), (-40, -10, 20), atol=1.5, err_msg=name)


def test_soft_tissue_of_2020_is_fat_under_skin_and_the_skull_is_bone(tmp_path):
    labels, affine = synthetic_head()
    head = load_anatomy(write(tmp_path, in_2020(labels), affine), tmp_path, **BRAIN_ONLY | {"head": True})
    middle = head.fractions[:, len(head.ventricle) // 2]
    row = middle[:, middle.shape[1] // 2].argmax(0).numpy()  # along x, through the middle of the head
    held = middle[:, middle.shape[1] // 2].sum(0).numpy() > 0.5
    passed = [TISSUES[k] for k, _ in itertools.groupby(row[held])]
    assert passed[:5] == ["muscle", "fat", "bone", "CSF", "GM"] and passed[-5:] == passed[4::-1]
    assert 2 <= np.argmax(row[held] != TISSUES.index("muscle")) <= 3  # mm of skin


@pytest.fixture(scope="module", params=["synthseg_2020a", "synthseg_2020b", "brainweb"])
def older(request, shared_data):
    """One head of each older set, all that the file holds."""
    folder = shared_data / request.param
    if not folder.is_dir():
        pytest.skip(f"no label maps at {folder}")
    return load_anatomy(find_anatomies(folder)[0], folder, slab_mm=16, head=True, blur_mm=0.35)


def test_an_older_head_holds_what_a_head_holds_where_a_head_holds_it(older):
    fractions, z = older.fractions.numpy(), len(older.ventricle) // 2
    assert fractions.min() >= 0 and fractions.sum(0).max() <= 1 + 1e-4
    brain = sum(fractions[TISSUES.index(tissue), z] for tissue in BRAIN) > 0.5
    left, right = hemispheres(brain)
    assert left.sum() == pytest.approx(right.sum(), rel=0.06)
    np.testing.assert_allclose(
        np.ptp(np.argwhere(brain), axis=0), (170, 138), atol=20
    )  # mm, front to back and side to side
    ventricle = older.ventricle[z].numpy() > 0.4
    for half in hemispheres(ventricle):
        assert half.sum() > 80  # mm²
    assert fractions[CSF, z][ventricle].mean() > 0.7
    assert ndimage.binary_fill_holes(ndimage.binary_erosion(brain, iterations=8))[ventricle].mean() > 0.95
    # from the ventricles no way leads out but through bone
    skull = sum(fractions[TISSUES.index(tissue), z] for tissue in ("bone", "marrow")) > 0.3
    pieces, _ = ndimage.label(~ndimage.binary_closing(skull, iterations=2))
    assert pieces[0, 0] not in pieces[brain & (ndimage.distance_transform_edt(brain) > 5)]
    ring = ndimage.distance_transform_edt(~brain)[skull]
    assert np.median(ring) < 12 and np.percentile(ring, 90) < 25  # mm from the brain


def test_a_brainweb_model_lies_as_the_template_does_whichever_way_it_was_scanned(tmp_path, monkeypatch, mni):
    """The template as a model of BrainWeb's, tilted, with a vessel in its left hemisphere."""
    gm, wm, brain = (
        load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    )
    affine, shape = wm.affine, wm.shape
    classes = np.select([wm.get_fdata() > 0.5, gm.get_fdata() > 0.5, brain.get_fdata() > 0], [3, 2, 1])
    mm = apply_affine(affine, np.stack(np.indices(shape), -1))
    vessel_mm = (-30, -20, 14)
    classes[np.linalg.norm(mm - vessel_mm, axis=-1) < 6] = 8
    found = {}
    for name, angles in (("straight.mnc", (0, 0, 0)), ("tilted.mnc", (9, -6, 8))):
        turn = from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), [3, -4, 5])
        to_voxel = np.linalg.inv(affine) @ turn @ affine
        model = ndimage.affine_transform(classes.astype(np.int16), to_voxel, order=0)
        (tmp_path / name).touch()
        monkeypatch.setattr(label_maps, "_read", lambda _, model=model: (model, affine))
        found[name] = load_anatomy(name, tmp_path, **BRAIN_ONLY | {"head": True}).fractions
        vessel = centre_mm(found[name][TISSUES.index("blood")])
        middle = np.mean(list(LANDMARKS.values()), 0) * (0, 1, 1)
        np.testing.assert_allclose(vessel, middle + BRAINWEB_SIZE * (vessel_mm - middle), atol=1.5, err_msg=name)
    straight, tilted = found.values()
    apart = (straight - tilted)[[WM, GM, CSF]].abs().mean()
    assert apart < 0.25 * (straight - straight.roll(5, dims=-1))[[WM, GM, CSF]].abs().mean()  # than 5 mm would cost
    z = len(mni.ventricle) // 2
    assert straight[:, z].sum() == pytest.approx(BRAINWEB_SIZE**2 * mni.fractions[:, z].sum().item(), rel=0.05)


def test_eight_half_millimetres_make_a_fraction(shared_data):
    """A model's fractions are eighths, but for the blur that the final voxel adds."""
    folder = shared_data / "brainweb"
    if not folder.is_dir():
        pytest.skip(f"no models at {folder}")
    head = load_anatomy(find_anatomies(folder)[0], folder, slab_mm=4, head=True, blur_mm=0)
    eighths = 8 * head.fractions
    torch.testing.assert_close(eighths, eighths.round(), atol=1e-4, rtol=0)
    mixed = (head.fractions > 0) & (head.fractions < 1)
    assert mixed.any(0).float().mean() > 0.05


# --- what cannot be used --------------------------------------------------------------------------


def refusal(call, *args, **kwargs) -> str:
    """The one sentence that says why not."""
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_text_file_called_nii_is_named(tmp_path):
    (tmp_path / "notes.nii").write_text("not an image\n")
    assert "notes.nii cannot be read as NIfTI" in refusal(load_anatomy, "notes.nii", tmp_path, **BRAIN_ONLY)


def test_a_file_cut_short_is_named(tmp_path):
    whole = tmp_path / write(tmp_path, *synthetic_head())
    whole.write_bytes(whole.read_bytes()[:5000])
    assert "head.nii.gz cannot be read as NIfTI" in refusal(load_anatomy, whole.name, tmp_path, **BRAIN_ONLY)


def test_a_series_is_no_label_map(tmp_path):
    name = write(tmp_path, np.full((8, 8, 8, 2), 2, np.int16), np.eye(4))
    assert "head.nii.gz has 4 dimensions: a label map has 3" in refusal(load_anatomy, name, tmp_path, **BRAIN_ONLY)


def test_labels_of_another_atlas_are_refused(tmp_path):
    labels, affine = synthetic_head()
    name = write(tmp_path, np.where(labels > 0, labels + 1000, 0).astype(np.int16), affine)
    assert "head.nii.gz has no known tissue labels" in refusal(load_anatomy, name, tmp_path, **BRAIN_ONLY)


def test_a_folder_needs_label_maps(tmp_path):
    assert "holds no label map (.nii, .nii.gz, .mnc.gz)" in refusal(find_anatomies, tmp_path)
    assert "nowhere is not a folder" in refusal(find_anatomies, tmp_path / "nowhere")
    (tmp_path / "a.nii").touch()
    (tmp_path / "b" / tmp_path.name).mkdir(parents=True)
    assert f"are called {tmp_path.name}: rename one" in refusal(
        find_anatomies, [tmp_path, tmp_path / "b" / tmp_path.name]
    )


def test_heads_are_listed_in_order_and_other_files_overlooked(tmp_path):
    for name in ("b.nii.gz", "a.nii", "c.mnc.gz", "read_me.txt"):
        (tmp_path / name).touch()
    assert find_anatomies(tmp_path) == ["a.nii", "b.nii.gz", "c.mnc.gz"]
    assert find_anatomies("") == find_anatomies(None) == find_anatomies([]) == ["mni152"]


def test_heads_of_further_folders_are_named_with_them(tmp_path):
    for name in ("one/a.nii", "two/a.nii"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path, *synthetic_head(tilt=None if "one" in name else Rotation.from_euler("z", 30, True)), name)
    folders = [tmp_path / "one", str(tmp_path / "two")]
    assert find_anatomies(folders) == ["a.nii", "two/a.nii"]
    assert find_anatomies(folders[::-1]) == ["a.nii", "one/a.nii"]
    for name, folder in zip(find_anatomies(folders), folders, strict=True):
        one, same = load_anatomy(name, folders, **BRAIN_ONLY), load_anatomy("a.nii", folder, **BRAIN_ONLY)
        torch.testing.assert_close(one.fractions, same.fractions, rtol=0, atol=0)


def test_people_are_nearly_symmetric_and_wholly_so_without_asymmetry():
    """A symmetric head deformed without asymmetry, rotation or shift stays symmetric."""
    head = load_anatomy(find_anatomies(None)[0], None, slab_mm=20, head=False, blur_mm=0.7)
    both = ((volume + volume.flip(-1)) / 2 for volume in (head.fractions, head.ventricle))
    mirrored = Anatomy(head.name, *both)
    x = torch.arange(-60, 61, 4.0)
    points = torch.stack(torch.meshgrid(torch.zeros(1), x, x, indexing="ij")[::-1], -1)

    def lopsided(asymmetry):
        spec = Deformation(rotation_deg=0, translation_mm=0, asymmetry=asymmetry, cortex=0)
        out = deform(mirrored, points, spec, torch.Generator().manual_seed(2))
        return (out - out.flip(-1)).abs().mean()

    assert lopsided(0.0) < 0.02 * lopsided(1.0)
    assert lopsided(0.4) < lopsided(1.0)

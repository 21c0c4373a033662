"""Whatever a file is called and says of itself: the right voxels in the right place, or one sentence, no traceback.

A handful of random files here; as many as wanted with the environment variable ``PHYLDM_WILD`` (2,000 takes minutes).
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.machine.errors import BadInput
from phyldm_core.scans import nifti
from phyldm_core.scans.check import check_all
from phyldm_core.scans.sessions import find_scans

EXAMPLES = int(os.environ.get("PHYLDM_WILD", "60"))
TYPES = (
    np.uint8,
    np.int8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.float32,
    np.float64,
    np.int16,
    np.float32,
    np.complex64,
)
SLOPES = ((1, 0), (0, 0), (0.25, 10), (3, 0), (np.nan, np.nan), (1, 0), (-2, 0), (np.inf, 0), (1e30, 1e30))
SIZES = (0.5, 1.0, 1.0, 1.2, 2.0, 2.0, 3.0, 5.0, 5.0, 0.001)
SHAPES = [(6, 7, 5), (2, 9, 2), (4, 5, 6, 1), (4, 5, 6, 1, 1)] * 3
SHAPES += [(7, 7, 1), (9, 9), (4, 5, 6, 3), (4, 5, 6, 1, 2)]
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}

numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, 0.003, 2.4, 1.0, 3, 2400, 3e-6, 1e-9, -1, 2**70, 10**400, 0.1, 9.0, 2.5, 0.3]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)), lambda v: st.lists(v, max_size=3), max_leaves=4
)
times = st.one_of(numbers, json_values)
good = st.just({"EchoTime": 0.003, "RepetitionTime": 2.4, "InversionTime": 1.0, "MagneticFieldStrength": 3})
sidecars = st.one_of(
    *[good] * 4,
    st.fixed_dictionaries(
        {"EchoTime": st.just(0.003), "RepetitionTime": st.just(2.4), "InversionTime": st.just(1.0)},
        optional={
            "MagneticFieldStrength": json_values,
            "ContrastBolusIngredient": json_values,
            "ImageType": st.one_of(json_values, st.lists(st.sampled_from(["ORIGINAL", "M", "P", "UNI", "T1 MAP"]))),
            "ScanOptions": json_values,
            "SkullStripped": json_values,
            "ScanningSequence": st.one_of(json_values, st.sampled_from(["GR\\IR", "SE", ["SE", "IR"]])),
            "SequenceName": json_values,
            "Units": json_values,
            "PatientID": json_values,
        },
    ),
    st.dictionaries(
        st.sampled_from(["EchoTime", "RepetitionTime", "InversionTime", "RepetitionTimePreparation",
                         "RepetitionTimeExcitation", "ContrastEquivalentEchoTime", "ScanningSequence", "ImageType"]),
        times,
    ),
)  # fmt: skip
broken_json = st.sampled_from([b"", b"[1]", b"{'a': 1}", b"\xff\xfe{\x00}\x00", b"[" * 50_000, b'{"EchoTime": 1e999}'])
letters = st.characters(blacklist_characters="/\x00", blacklist_categories=("Cs",))
PARTS = "sub-01 ses-a acq-1.5mm run-2 run-x rec- ce-gad part-phase - WIP.1 sub-é 患者 . echo-1"
words = st.one_of(st.sampled_from(PARTS.split()), st.text(letters, max_size=6))
suffixes = st.sampled_from(["T1w"] * 9 + ["T2w", "PDw", "FLAIR", "UNIT1", "T1map", "5", "ph", "", "T1w.x"])
nothing, edits = st.just([]), st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), max_size=3)


@st.composite
def headers(draw):
    """An affine with its codes, unit, and what else a header may say."""
    axes = draw(st.permutations([0, 1, 2]))
    flips = draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    mm = np.array(draw(st.tuples(*[st.sampled_from(SIZES)] * 3)))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * np.array(flips) * mm
    if draw(st.booleans()):
        a = draw(st.floats(-1.5, 1.5))
        affine[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[0, 1] += draw(st.sampled_from([0.0, 0.0, 0.0, 0.4]))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    unit = draw(st.sampled_from([0, 1, 2, 2, 2, 2, 3, 3, 5]))
    affine[:3] /= UNITS.get(unit, 1.0)
    return {
        "affine": affine,
        "codes": draw(st.sampled_from([(1, 1), (1, 0), (0, 1), (0, 2), (4, 4), (1, 2), (1, 1), (0, 0)])),
        "unit": unit + draw(st.sampled_from([0, 8, 16, 24])),
        "dtype": draw(st.sampled_from(TYPES)),
        "shape": draw(st.sampled_from(SHAPES)),
        "slope": draw(st.sampled_from(SLOPES)),
        "fill": draw(st.sampled_from(["ramp"] * 9 + ["zero", "nan", "negative"])),
        "edit": draw(draw(st.sampled_from([nothing] * 5 + [edits]))),
        "cut": draw(st.sampled_from([None] * 20 + [0, 100, 352, 400])),
        "packed": draw(st.booleans()),
    }  # fmt: skip


def file_bytes(said) -> tuple[bytes, np.ndarray]:
    """The file, and the voxels it holds."""
    raw = np.arange(np.prod(said["shape"])).reshape(said["shape"]) % 100
    raw = {"zero": 0 * raw, "negative": -raw}.get(said["fill"], raw).astype(said["dtype"])
    if said["fill"] == "nan" and raw.dtype.kind == "f":
        raw.flat[1] = np.nan
    image = nibabel.Nifti1Image(raw, said["affine"], dtype=said["dtype"])
    qform, sform = said["codes"]
    image.set_qform(said["affine"], qform)
    image.set_sform(said["affine"], sform)
    content = bytearray(image.to_bytes())
    header = np.ndarray((), nibabel.nifti1.header_dtype, content)
    header["xyzt_units"], (header["scl_slope"], header["scl_inter"]) = said["unit"], said["slope"]
    slope, inter = said["slope"]
    raw = raw.real  # of a complex one, which is refused
    scaled = raw.astype(float) * slope + inter if np.isfinite(slope) and slope else raw
    for position, byte in said["edit"]:
        content[position] = byte
    content = bytes(content[: said["cut"]] if said["cut"] is not None else content)
    return (gzip.compress(content, 1) if said["packed"] else content), scaled


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(headers(), st.lists(words, max_size=3), suffixes, st.one_of(*[sidecars] * 8, broken_json))
def test_right_voxels_and_world_or_one_sentence(said, parts, suffix, told):
    content, voxels = file_bytes(said)
    name = "_".join([*(part for part in parts if part), suffix])[:60]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.nii{'.gz' if said['packed'] else ''}")
        path.write_bytes(content)
        sidecar = told if isinstance(told, bytes) else json.dumps(told).encode("utf-8", "surrogatepass")
        path.with_name(f"{name}.json").write_bytes(sidecar)
        try:
            scan = nifti.read_scan(path)
        except BadInput as error:
            assert len(str(error).splitlines()) == 1 and (name.splitlines() or [""])[0][:20] in str(error)
        else:
            if not said["edit"]:
                compare(scan, said, voxels)
        try:
            rows = check_all(find_scans([path]), {}, {})
            assert rows and all(row.session.isascii() for row in rows)
        except BadInput as error:
            assert str(error)


def compare(scan, said, voxels):
    """Every voxel of the file lies where the file says, with the value it says."""
    volume = voxels.reshape(voxels.shape[:3])
    affine = said["affine"].copy()
    affine[:3] *= UNITS[said["unit"] % 8]
    np.testing.assert_allclose(sorted(voxel_sizes(scan.affine)), sorted(voxel_sizes(affine)), rtol=1e-3)
    assert (np.diag(scan.affine[:3, :3]) > -1e-3).all()  # RAS
    there = np.argwhere(np.ones(volume.shape, bool))
    back = apply_affine(np.linalg.inv(scan.affine), apply_affine(affine, there))
    index = np.round(back).astype(int)
    if said["codes"][1]:  # a qform cannot hold a shear, so only what an sform says is exact
        np.testing.assert_allclose(back, index, atol=0.05)
        found = scan.image[tuple(index.T)]
        np.testing.assert_allclose(found, volume[tuple(there.T)].astype(np.float32), rtol=1e-5)


@settings(max_examples=max(5, EXAMPLES // 20), suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(headers(), st.lists(words, max_size=2), suffixes, sidecars), min_size=1, max_size=4))
def test_check_of_a_folder_of_anything_never_breaks(files):
    with tempfile.TemporaryDirectory() as folder:
        for said, parts, suffix, told in files:
            name = "_".join([*(part for part in parts if part), suffix])[:60] or "x"
            Path(folder, f"{name}.nii").write_bytes(file_bytes(said | {"packed": False})[0])
            Path(folder, f"{name}.json").write_text(json.dumps(told))
        result = CliRunner().invoke(app, ["check", folder])
        assert result.exit_code in (0, 1) and (result.exception is None or isinstance(result.exception, SystemExit))

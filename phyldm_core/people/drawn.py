"""``phyldm sample``: new people as files, with the contrasts and tissue labels that make them a cohort.

A person is the stack of slices the weights were trained on, drawn from one noise at rising heights. What holds
for one slice holds for every sample of the model; from slice to slice, drawn people change less than real ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..machine.errors import BadInput
from ..machine.files import to_json, whole_folder, write_atomically
from ..physics import REFERENCE, Protocol, TissueMaps, effective_te
from ..scans.bids import CONTRASTS, makers, write_dataset_description
from ..scans.maps import render_volume, scan_sidecar, write_maps
from ..scans.nifti import contrast_of, write_image
from ..tissue import AIR_PD
from ..weights import Weights

DRAWN_BY = "phyldm_core sample"
LABELS = (("CSF", "#4c72b0"), ("GM", "#8c8c8c"), ("WM", "#f2f2f2"))
"""Names and colours of labels 1, 2, 3 of :func:`segmentation.segment_tissue`."""


def read_protocols(path: str | Path | None) -> dict[str, Protocol]:
    """The contrasts to render, by name; without a file the paper's reference T1w, T2w and FLAIR.

    Parameters
    ----------
    path
        ``.csv`` with columns name, sequence, te, tr, ti (s; ti empty for spin echo) and, for spoiled gradient echoes,
        flip_angle_deg, or ``.json``: a list of objects with these keys, or ``{name: {sequence, te, tr, ti}}``. A TE
        above 0.3 s is taken as nominal (:func:`physics.effective_te`).

    Raises
    ------
    BadInput
        The file cannot be read, a column is missing, a name is used twice, or a protocol is none.
    """
    if path is None:
        return dict(REFERENCE)
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            content = json.loads(text)
            rows = [{"name": k} | v for k, v in content.items()] if isinstance(content, dict) else list(content)
        else:
            rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: not a readable table of protocols ({error}): give CSV or JSON") from None
    protocols = {}
    for i, row in enumerate(rows, 1):
        try:
            name = "".join(c for c in str(row["name"]) if c.isalnum())
            ti, angle = (float(row[key]) if row.get(key) else None for key in ("ti", "flip_angle_deg"))
            protocol = Protocol(row["sequence"], float(row["te"]), float(row["tr"]), ti, angle)
        except KeyError as error:
            raise BadInput(f"{path}: row {i} has no {error}: name, sequence, te, tr and ti (s) are needed") from None
        except (AttributeError, OverflowError, TypeError, ValueError) as error:  # ProtocolError says itself
            raise BadInput(f"{path}: row {i}: {error}") from None
        if not name or name in protocols:
            raise BadInput(f"{path}: row {i}: the name {row['name']!r} is empty or there twice: give each its own")
        protocols[name] = protocol
    if not protocols:
        raise BadInput(f"{path}: no protocol in it: give at least one row of name, sequence, te, tr, ti")
    return protocols


def draw_person(pipe, weights: Weights, seed: int, index: int, on_share=lambda share: None) -> TissueMaps:
    """One person's maps ``(z, y, x)``: PD, T1 (s), T2 (s), 0 outside the brain (or in air, for weights with heads).

    Person ``index`` of a seed is the same however many are drawn. ``on_share`` hears which share of the denoising
    steps is done.
    """
    from .segmentation import brain_of

    own = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    n, steps = weights.config["n_slices"], pipe.usual_steps
    latents = pipe.sample_latents(n, own, steps, on_step=lambda i, x: on_share((i + 1) / steps), one_noise=True)
    maps = pipe.decode(latents)
    inside = maps.pd > AIR_PD if weights.head else brain_of(maps)
    return TissueMaps(*(torch.where(inside, values, 0.0) for values in maps))


def sample_cohort(
    weights: Weights,
    n: int,
    seed: int,
    out: str | Path,
    *,
    contrasts: dict[str, Protocol] | None = None,
    labels: bool = False,
) -> int:
    """Write ``n`` people as a BIDS derivative dataset, and return how many are there.

    A killed run goes on with the next person, and a larger ``n`` adds people.

    Parameters
    ----------
    contrasts
        Rendered for each person, without noise; :func:`read_protocols`. None: maps only.
    labels
        Also a ``_dseg`` of CSF, GM, WM (told from the rendered T1w) and ``participants.tsv``.

    Raises
    ------
    BadInput
        The weights hold no diffusion model, ``n`` is below 1 or the seed below 0, or ``out`` holds something else.
    """
    if n < 1 or seed < 0:
        raise BadInput(f"{n} people with seed {seed}: at least 1 person and a seed of 0 or more are needed")
    out, contrasts = Path(out), contrasts or {}
    settings = {"weights": weights.identity, "seed": seed, "labels": labels, "version": __version__,
                "contrasts": {name: str(protocol) for name, protocol in contrasts.items()}}  # fmt: skip
    made = hashlib.sha256(to_json(settings)).hexdigest()
    pipe = None
    _own_dataset(out, weights, seed, made)
    for i in range(n):
        folder = out / f"sub-{i + 1:04d}"
        if folder.exists():
            continue
        pipe = pipe or weights.pipeline()
        maps = draw_person(pipe, weights, seed, i)
        _write_person(folder, maps, weights, {"Seed": seed, "Index": i}, contrasts, labels)
    people = sorted(path.name for path in out.glob("sub-*"))
    if labels:
        _write_tables(out, people, seed)
    return len(people)


def _own_dataset(out: Path, weights: Weights, seed: int, made: str):
    if (out / "dataset_description.json").exists():
        same = [str(m.get("Description")).endswith(made) for m in makers(out) if m.get("Name") == DRAWN_BY]
        if same != [True]:
            raise BadInput(f"{out}: holds people of other weights, seed or contrasts, or no people: choose another")
        return
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: is not empty and no dataset of drawn people: choose another folder")
    weights.pipeline()  # before anything is written: it may not be there
    said = f"weights {weights.identity[:12]}, seed {seed}, settings {made}"
    maker = {"Name": DRAWN_BY, "Version": __version__, "Description": said}
    write_atomically(out / "README", b"Synthetic people: tissue maps drawn by a diffusion model; nobody was scanned.\n")
    write_dataset_description(out, "Synthetic brains", derivative=True, generated_by=[maker])


def _write_person(folder: Path, maps: TissueMaps, weights: Weights, drawn: dict, contrasts: dict, labels: bool):
    name, stripped = folder.name, not weights.head
    volumes = TissueMaps(*(np.ascontiguousarray(values.numpy().T) for values in maps))  # (z, y, x) → (x, y, z)
    affine = _stack_affine(weights, volumes.pd.shape)
    drawn = drawn | {"Weights": {"SHA256": weights.identity, "Profile": weights.config["profile"]}}
    with whole_folder(folder) as part:
        stem = part / "anat" / name
        write_maps(stem, volumes, affine, stripped, Description="drawn by a latent diffusion model", **drawn)
        for label, protocol in contrasts.items():
            entity = name if label in CONTRASTS else f"{name}_acq-{label}"
            suffix = label if label in CONTRASTS else contrast_of(protocol)
            used = replace(protocol, te=effective_te(protocol.te, protocol.sequence))
            meta = scan_sidecar(used, stripped, protocol.te, Description="rendered from the maps, without noise")
            path = stem.with_name(f"{entity}_{suffix}.nii.gz")
            write_image(path, render_volume(volumes, used), affine, meta)
        if labels:
            meta = {"Manual": False, "SkullStripped": stripped, "Description": "thresholds on a rendered T1w"}
            write_image(stem.with_name(f"{name}_dseg.nii.gz"), _segment(maps), affine, meta, dtype=np.uint8)


def _segment(maps: TissueMaps) -> np.ndarray:
    """``(x, y, z)`` uint8: CSF, GM, WM = 1, 2, 3; nothing where a drawn stack has no three tissues to tell apart."""
    from .segmentation import brain_of, segment_tissue

    t1w, brain = render_volume(TissueMaps(*(m.numpy() for m in maps)), REFERENCE["T1w"]), brain_of(maps).numpy()
    if np.unique(t1w[brain]).size < 3:
        return np.zeros(t1w.T.shape, np.uint8)
    return segment_tissue(t1w, brain).T


def _stack_affine(weights: Weights, shape: tuple[int, ...]) -> np.ndarray:
    """RAS mm from the middle of the stack."""
    affine = np.diag([weights.voxel_mm, weights.voxel_mm, float(weights.config["slice_mm"]), 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(shape) - 1) / 2
    return affine


def _write_tables(out: Path, people: list[str], seed: int):
    rows = "".join(f"{name}\t{seed}\t{int(name[4:]) - 1}\n" for name in people)
    write_atomically(out / "participants.tsv", f"participant_id\tseed\tdraw\n{rows}".encode())
    columns = {"seed": {"Description": "seed of the cohort"}, "draw": {"Description": "number of the person in it"}}
    write_atomically(out / "participants.json", to_json(columns))
    rows = "".join(f"{i}\t{name}\t{colour}\n" for i, (name, colour) in enumerate(LABELS, 1))
    write_atomically(out / "dseg.tsv", f"index\tname\tcolor\n{rows}".encode())

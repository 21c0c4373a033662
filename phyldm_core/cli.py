"""The command ``phyldm``. Libraries are imported inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .machine.errors import BadInput
from .machine.sentences import OneSentence

SEEDS = {"min": 0, "max": 2**63 - 1}  # what every generator of random numbers takes
PLAIN = {"no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(
    cls=OneSentence,
    help="Physics-informed latent diffusion for brain MRI: tissue first, contrast second.",
    add_completion=False,
    pretty_exceptions_enable=False,
    **PLAIN,
)


AnatomiesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder of label maps; without it, the MNI152 template. Give it again for more: heads of the first folder "
        "validate and test, further folders only train."
    ),
]
ProfileOption = Annotated[
    str, typer.Option(help="smoke (seconds), laptop (2 mm), release (1 mm, hours) or paper (1 mm, a GPU).")
]


@app.command("reproduce")
def reproduce_command(
    profile: ProfileOption = "laptop",
    anatomies: AnatomiesOption = None,
    only: Annotated[int | None, typer.Option(help="Number of the one notebook to run.")] = None,
    start: Annotated[int | None, typer.Option("--from", help="Number of the first notebook to run.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the run is kept; runs/PROFILE by default.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Where figures go; figures/ in the run by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every notebook.", **SEEDS)] = 7,
    pdf: Annotated[bool, typer.Option("--pdf", help="Every figure also as a PDF, with text that stays text.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="BIDS dataset of real people; chapters say what needs their truth.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Then figures/ and notebooks/ of the clone show what this run has made.")
    ] = False,
):
    """Run every notebook: cohort, training, samples, figures, a page, one report. A second run reuses training."""
    from .running.reproduce import reproduce

    def page(run_dir: Path, figures_dir: Path) -> Path:
        from .explorers.page import make_page  # seconds of imports, and only once the notebooks have run

        return make_page(run_dir, figures_dir)

    places = {"anatomies": anatomies, "run_dir": out, "figures_dir": figures, "data": data}
    reproduce(profile, only=only, start=start, seed=seed, pdf=pdf, publish=publish, make_page=page, **places)


SchedulerOption = Annotated[
    str | None,
    typer.Option(help="Instead of --workers: a Dask scheduler (tcp://HOST:8786), whose workers see the same files."),
]


@app.command("simulate")
def simulate_command(
    out: Annotated[Path | None, typer.Option(help="The run that will train on them; runs/PROFILE by default.")] = None,
    profile: ProfileOption = "laptop",
    anatomies: AnatomiesOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core by default.", min=1, max=4096)] = None,
    scheduler: SchedulerOption = None,
):
    """Only the people of a run, with their true maps, for many machines; reproduce then finds them. Resumes."""
    from tqdm import tqdm

    from .running.run import open_run

    run = open_run(out or Path("runs") / profile, profile, anatomies)
    if not run.common_scale:
        raise BadInput(f"{run.folder} holds people who were scanned: choose another folder with --out")
    n = len(run.recipe.subjects())
    with tqdm(desc="simulate", total=n, unit="person", disable=None) as bar:
        for done in run.make_cohort(workers, scheduler):
            bar.update(done - bar.n)
    typer.echo(f"{n} people in {run.cohort_folder}")


@app.command("prepare")
def prepare_command(
    bids_dir: Annotated[Path, typer.Argument(help="BIDS dataset: sub-*/[ses-*/]anat/*_T1w.nii.gz with sidecars.")],
    out: Annotated[Path, typer.Option(help="Where prepared scans go, such as BIDS_DIR/derivatives/phyldm.")],
    voxel_mm: Annotated[float, typer.Option(help="Size of the isotropic voxels, mm.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Sessions at a time.", min=1, max=4096)] = 1,
    scheduler: SchedulerOption = None,
    mask: Annotated[
        str | None,
        typer.Option(help="Brain masks: a folder of sub-*/**/*_mask.nii.gz, or the word template; heads without it."),
    ] = None,
):
    """Align the scans of every session on one grid; finished sessions are kept, unusable ones named in skipped.tsv."""
    from .running.outcomes import finish, prepare_all

    finish(prepare_all(bids_dir, out, voxel_mm, workers, mask, scheduler), out)


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            help="BIDS dataset of real people, such as OASIS-3 (data/OASIS-3.md); simulated people without it."
        ),
    ] = None,
    profile: ProfileOption = "laptop",
    out: Annotated[
        Path | None,
        typer.Option(help="Where the run is kept; runs/PROFILE-scans by default, runs/PROFILE if simulated."),
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Where prepared scans are, or will be; OUT/prepared by default.")
    ] = None,
    anatomies: AnatomiesOption = None,
    workers: Annotated[int, typer.Option(help="Sessions prepared at a time.", min=1, max=4096)] = 1,
    scheduler: SchedulerOption = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Brain masks as in prepare; a profile without heads takes the template's where none is given."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the training.", **SEEDS)] = 7,
    vae: Annotated[
        Path | None,
        typer.Option(help="Weights whose VAE is taken instead of training one, e.g. release; simulated people only."),
    ] = None,
):
    """Train a profile: people, VAE, diffusion model. Resumes when killed; under torchrun processes share each batch."""
    from tqdm import tqdm

    from .machine.processes import is_main, main_first
    from .people.scanned import scan_cohort
    from .running.outcomes import finish, prepare_all
    from .running.profiles import find_profile
    from .running.run import open_run, scan_run
    from .weights import load_weights

    settings = find_profile(profile)
    out = out or Path("runs") / (f"{profile}-scans" if data else profile)
    outcomes, prepared = [], prepared or out / "prepared"
    with main_first():
        if data is None:
            run = open_run(out, profile, anatomies, seed, load_weights(vae) if vae else None)
            for _ in run.make_cohort(None, scheduler):
                pass
        else:
            mask = mask or (None if settings.cohort.head else "template")
            outcomes = prepare_all(data, prepared, settings.cohort.voxel_mm, workers, mask, scheduler)
            recipe = scan_cohort(prepared, outcomes, settings.cohort, out / "cohort", data=data, mask=mask, seed=seed)
            run = scan_run(out, settings, recipe, seed)
    for name, steps, n in (
        ("VAE", run.train_vae, settings.vae_schedule.steps),
        ("composition autoencoder", run.train_composition, settings.composition_schedule.steps),
        ("diffusion model", run.train_diffusion, settings.diffusion_schedule.steps),
    ):
        with tqdm(desc=name, total=n, unit="step", disable=None if is_main() else True) as bar:
            for step in steps():
                bar.update(step.step + 1 - bar.n)
    if is_main():
        typer.echo(f"trained in {out}: split in {out / 'cohort' / 'participants.tsv'}, model in {out / 'pipeline'}")
        if data is not None:
            finish(outcomes, prepared)


WeightsOption = Annotated[
    Path | None, typer.Option(help="Folder of exported weights or of a run; runs/laptop by default, else release.")
]


@app.command()
def fit(
    scans: Annotated[list[Path], typer.Argument(help="NIfTI files with sidecars (one session), or BIDS folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the maps, a BIDS derivative dataset.")] = Path("fit"),
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help='Instead of a sidecar, by suffix or file name: "T2w: spin echo, te 0.1, tr 3.2" (s); ti and flip '
            "(degrees) where there is one, the word signed last for a real part."
        ),
    ] = None,
    weights: WeightsOption = None,
    samples: Annotated[int, typer.Option(help="Posterior samples for the SD.", max=10_000)] = 8,
    seed: Annotated[int, typer.Option(help="Seed of these samples.", **SEEDS)] = 0,
    grid: Annotated[str, typer.Option(help="native (voxels of the T1w) or model (voxels of the weights).")] = "native",
    mask: Annotated[Path | None, typer.Option(help="Brain mask in the space of the T1w; else one is found.")] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="From the encoder, each voxel moved to where its own signals want it.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="The encoder alone: quicker, and of the release no better than known means.")
    ] = False,
):
    """PD, T1 and T2 maps with their SD from any scans of a session, several protocols of a contrast, too."""
    from .scans.fit_dataset import FitOptions, fit_all, parse_protocol
    from .scans.sessions import find_scans
    from .weights import load_weights

    unreadable: dict[Path, str] = {}
    sessions, given = find_scans(scans, unreadable), dict(parse_protocol(text) for text in protocol or [])
    if mask is not None and len(sessions) > 1:
        raise BadInput(f"--mask {mask}: is of one head, but {len(sessions)} sessions were given: fit them one by one")
    trained = load_weights(weights)
    if not trained.whole_brain:
        typer.echo(
            f"phyldm: these weights know the {trained.slab_mm:g} mm about the middle of the brain; maps beyond are "
            "extrapolated (sidecars say where)",
            err=True,
        )
    skipped, missing = 0, 0
    for reason in unreadable.values():
        typer.echo(f"skipped: {reason}", err=True)
    for done in fit_all(sessions, trained, out, given, FitOptions(grid, samples, seed, mask, refine, fast)):
        skipped += done.state == "skipped"
        missing += len(done.left_out)
        typer.echo(f"{done.session.name}: {done.state}: {done.said}", err=done.state == "skipped")
        for name, reason in done.left_out.items():
            typer.echo(f"{done.session.name}: left out: {name}: {reason}", err=True)
        for doubt in done.doubts:
            typer.echo(f"{done.session.name}: doubtful: {doubt}", err=True)
    if skipped or missing or unreadable:
        n = len(sessions)
        said = f"{skipped} of {n} sessions skipped" + (f", {missing} scans left out" if missing else "")
        said += f", {len(unreadable)} folders not read" if unreadable else ""
        raise BadInput(f"{said}, for the reasons above; what could be done is in {out}")


@app.command()
def check(
    scans: Annotated[list[Path], typer.Argument(help="As for fit: NIfTI files of one session, or BIDS folders.")],
    protocol: Annotated[
        list[str] | None, typer.Option(help='As for fit: "T2w: spin echo, te 0.1, tr 3.2" (s), by suffix or file name.')
    ] = None,
):
    """What fit would use of a dataset, and what is doubtful; reads headers and sidecars, no voxels and no weights."""
    from .scans.check import as_table, check_all
    from .scans.fit_dataset import parse_protocol
    from .scans.sessions import find_scans

    unreadable: dict[Path, str] = {}
    sessions, given = find_scans(scans, unreadable), dict(parse_protocol(text) for text in protocol or [])
    rows = check_all(sessions, given, unreadable)
    typer.echo(as_table(rows))
    if doubtful := len({row.session for row in rows if row.doubtful}):
        raise BadInput(f"{doubtful} of {len({row.session for row in rows})} sessions are doubtful or cannot be used")


@app.command("render")
def render_command(
    maps: Annotated[Path, typer.Option(help="Folder with one person's PDmap, T1map and T2map.")],
    sequence: Annotated[str, typer.Option(help="MPRAGE, spin echo, FLAIR or spoiled gradient echo.")],
    te: Annotated[float, typer.Option(help="Echo time, s.")],
    tr: Annotated[float, typer.Option(help="Repetition time, s; MPRAGE and FLAIR: inversion to inversion.")],
    out: Annotated[Path, typer.Option(help="The image to write, .nii.gz; its sidecar goes beside it.")],
    ti: Annotated[float | None, typer.Option(help="Inversion time, s.")] = None,
    flip_angle: Annotated[float | None, typer.Option(help="Of a spoiled gradient echo, degrees.")] = None,
):
    """The contrast that tissue maps give under any TE, TR and TI, or TE, TR and flip angle."""
    from .physics import Protocol, Sequence
    from .scans.maps import render_maps

    known = {str(name).lower(): name for name in Sequence}
    typer.echo(render_maps(maps, Protocol(known.get(sequence.lower(), sequence), te, tr, ti, flip_angle), out))


@app.command()
def sample(
    n: Annotated[int, typer.Option("-n", help="How many people to draw.", max=10**6)],
    out: Annotated[Path, typer.Option(help="Folder for them, a BIDS derivative dataset.")],
    seed: Annotated[int, typer.Option(help="Equal seeds give equal people.", **SEEDS)] = 0,
    weights: WeightsOption = None,
    bids: Annotated[bool, typer.Option("--bids", help="Also contrasts, tissue labels and participants.tsv.")] = False,
    protocols: Annotated[
        Path | None, typer.Option(help="CSV or JSON of the contrasts: name, sequence, te, tr, ti (s); with --bids.")
    ] = None,
):
    """New brains as PD, T1 and T2 maps, drawn by the diffusion model; --bids makes a synthetic cohort of them."""
    from .people.drawn import read_protocols, sample_cohort
    from .weights import load_weights

    if protocols is not None and not bids:
        raise BadInput(f"--protocols {protocols}: contrasts are only written with --bids: add it")
    contrasts = read_protocols(protocols) if bids else {}
    people = sample_cohort(load_weights(weights), n, seed, out, contrasts=contrasts, labels=bids)
    typer.echo(f"{people} people in {out}")


@app.command()
def explore(
    page: Annotated[str, typer.Argument(help="contrasts, histograms or latents; each links to all.")] = "contrasts",
    run: Annotated[
        Path | None, typer.Option(help="The run whose people to show; runs/laptop by default, else a simulated person.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Of this machine; a free one by default.", min=1, max=65535)] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
):
    """The explorers full-page in the browser."""
    from .explorers.serve import serve

    if run is not None and not run.is_dir():
        raise BadInput(f"{run}: no such run: make one with phyldm reproduce, or leave --run out")
    serve(page, run or Path("runs/laptop"), port, browser)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder for the weights; an older export there is replaced.")],
    run: Annotated[Path, typer.Option(help="The run whose weights to export.")] = Path("runs/laptop"),
):
    """Weights as files to give away: safetensors, settings, numbers and a model card, all with checksums."""
    from .running.export import export_weights

    exported = export_weights(run, out)
    typer.echo(f"{exported.folder}: profile {exported.config['profile']}, weights {exported.identity[:12]}")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for metrics.csv and report.html; a killed call goes on there.")],
    weights: WeightsOption = None,
    anatomies: Annotated[
        list[Path] | None,
        typer.Option(help="Folder(s) of label maps; heads seen in training are left out. MNI152 without it."),
    ] = None,
    subjects: Annotated[int, typer.Option(help="People to simulate; a larger number adds people.", max=10**6)] = 10,
    sessions: Annotated[int, typer.Option(help="Sessions of random protocols; more add.", min=0, max=10**4)] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the people and of the samples.", **SEEDS)] = 0,
    seen_heads: Annotated[
        bool, typer.Option("--seen-heads", help="Examine on heads that training saw; every row will say so.")
    ] = False,
):
    """How right weights are where the truth is known, by tissue, scans, protocols, beside rivals without a network."""
    from tqdm import tqdm

    from .evaluation.examination import Examination, examine, n_parts
    from .evaluation.examination_report import write_examination
    from .weights import load_weights

    exam = Examination(load_weights(weights), anatomies, out, subjects, seed, seen_heads, sessions)
    for _ in tqdm(examine(exam), desc="evaluate", total=n_parts(exam), unit="part", disable=None):
        pass
    if not exam.weights.has_pipeline:
        typer.echo("phyldm: these weights hold no diffusion model, so no drawn brains were evaluated", err=True)
    typer.echo(f"{subjects} people: numbers in {out / 'metrics.csv'}, report in {write_examination(exam)}")


@app.command()
def lecture(
    out: Annotated[Path, typer.Argument(help="Folder for it; an older lecture there is replaced.")],
    run: Annotated[
        Path, typer.Option(help="The run whose figures and times to take; without figures there, the clone's.")
    ] = Path("runs/laptop"),
):
    """Chapters without outputs and solutions, slides of their figures that need no network, and a syllabus."""
    from .running.lecture import make_lecture

    typer.echo(f"lecture: {make_lecture(out, run)}")


SYNTHSEG = ("synthseg", "synthseg-2020a", "synthseg-2020b")
HeadSet = StrEnum("HeadSet", [(name, name) for name in (*SYNTHSEG, "brainweb", "open-ms")])


@app.command()
def fetch(
    heads: Annotated[
        HeadSet, typer.Argument(help="Which heads, or a patient's scans (open-ms); data/README.md has each licence.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep them in; by default one in data/.", show_default=False)
    ] = None,
):
    """Real heads as label maps, 15 or 18 a set, or a patient's scans, checked against known checksums: 12 to 50 MB."""
    from tqdm import tqdm

    from .people.fetch import PATIENT, fetch_heads, names_of

    out = out or Path("data") / ("synthseg_labels" if heads == "synthseg" else heads.replace("-", "_"))
    for _ in tqdm(fetch_heads(heads, out), total=len(names_of(heads)), unit="file", disable=None):
        pass
    told = f"{len(names_of(heads))} heads in {out}; use them with: phyldm reproduce --anatomies {out}"
    typer.echo(f"a patient in {out}; maps from the scans: phyldm fit {out}" if heads == PATIENT else told)

"""A variant changes what it says and nothing else, is trained once, and what is concluded from it follows."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pandas
import pytest
import torch
from conftest import ROOT

from phyldm_core.evaluation import ablations, variants
from phyldm_core.evaluation.ablations import VARIANT_KEYS, t2_asked_for
from phyldm_core.evaluation.variants import UNCHANGED, VARIANTS, Variant, nominal_settings, variant_runs
from phyldm_core.losses import VAEBatch
from phyldm_core.machine.errors import BadInput
from phyldm_core.people.cohort import CohortRecipe
from phyldm_core.physics import Protocol, TissueMaps, effective_protocol, render, spin_echo
from phyldm_core.running.profiles import LAPTOP, SMOKE, Profile
from phyldm_core.running.run import MissingResult, Run
from phyldm_core.scans.oasis3 import oasis3_protocols
from phyldm_core.slices import ALL_SCANS, Truth
from phyldm_core.vae import PRIOR_MEDIANS, PoEVAE

ONE = torch.tensor(1.0)


def run_of(profile: Profile, folder) -> Run:
    return Run(folder, profile, profile.cohort, seed=3)


def differences(one: dict, other: dict) -> dict:
    """What of nested settings is not the same, as "part.name" → the other's value."""
    found = {}
    for key in one | other:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= {f"{key}.{name}": value for name, value in differences(a, b).items()}
        elif a != b:
            found[key] = b
    return found


@pytest.mark.parametrize("profile", [SMOKE, LAPTOP], ids=lambda p: p.name)
@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda v: v.name)
def test_a_variant_changes_exactly_what_it_says(variant, profile, tmp_path):
    made = variant_runs(run_of(profile, tmp_path))
    assert list(made) == [v.name for v in VARIANTS] and len({v.folder for v in made.values()}) == len(VARIANTS)
    changed = differences(made[UNCHANGED.name].vae_settings(), made[variant.name].vae_settings())
    said = {f"loss.{k}": v for k, v in variant.loss.items()}
    said |= {f"network.{k}": list(v) if isinstance(v, tuple) else v for k, v in variant.network.items()}
    said |= {"variant.nominal_te": True} if variant.nominal_te else {}
    said |= {"variant.physics": False} if variant.physics is False else {}
    said |= {"seed": 4} if variant.another_seed else {}
    said |= {"cohort.protocols": "most frequent"} if variant.one_protocol else {}
    expected = {key: value for key, value in said.items() if value != profile_value(made, key)}
    assert changed == expected and changed


def profile_value(made, key):
    """What the reference has there already: no KL differs from a profile's, a weight of 0 from 0 does not."""
    part, _, name = key.partition(".")
    return made[UNCHANGED.name].vae_settings().get(part, {}).get(name) if name else None


def test_the_reference_is_the_profile_but_shorter_and_without_an_adversary(tmp_path):
    ours, theirs = (asdict(replace(p, cohort=LAPTOP.cohort)) for p in (variants.reference(LAPTOP), LAPTOP))
    assert differences(theirs, ours) == {"vae_schedule.steps": 400, "vae_loss.adversarial_after": 133}
    assert variants.reference(SMOKE).vae_loss.adversarial == 0 < SMOKE.vae_loss.adversarial


def test_only_the_cohort_that_is_changed_is_made_anew(tmp_path):
    run = run_of(SMOKE, tmp_path)
    for name, of in variant_runs(run).items():
        assert (of.cohort_folder == run.cohort_folder) == (name != "one protocol")


def test_real_people_are_refused(tmp_path):
    with pytest.raises(BadInput, match="their truth is unknown: use a run on simulated people"):
        variant_runs(Run(tmp_path, SMOKE, object(), 1))


# --- what the variants are made of ------------------------------------------------------------------


def test_one_protocol_changes_the_scans_and_not_the_people():
    """It uses up the same random numbers, so that all that is drawn of a person afterwards is the same."""
    usual, others = [rows[0].nominal for rows in oasis3_protocols().values()], set()
    for seed in range(50):
        one, other = (np.random.default_rng(seed) for _ in range(2))
        mixed, alike = CohortRecipe().draw_session(one, False), variants.OneProtocol().draw_session(other, False)
        assert one.random() == other.random()
        assert [p is None for p in mixed] == [p is None for p in alike]
        assert all(p in (None, u) for p, u in zip(alike, usual, strict=True))
        others |= {p for p in mixed if p} - set(usual)
    assert others  # in the mix, some were scanned otherwise


def test_nominal_settings_are_those_of_the_header():
    rows = [row for rows in oasis3_protocols().values() for row in rows]
    settings = torch.stack([row.effective.settings() for row in rows])
    assert torch.equal(nominal_settings(settings), torch.stack([row.nominal.settings() for row in rows]))
    missing = torch.zeros(2, 3, 6)
    assert torch.equal(nominal_settings(missing), missing)


def test_the_t2_asked_for_explains_the_spin_echo_at_the_te_that_is_believed():
    t2w = Protocol("spin echo", te=0.455, tr=3.2)
    te = effective_protocol(t2w).te
    for pd, t1, t2 in ((0.7, 0.85, 0.07), (1.0, 4.3, 2.0)):
        acquired = spin_echo(ONE * pd, ONE * t1, ONE * t2, te, t2w.tr)
        explained = spin_echo(ONE * pd, ONE * t1, ONE * t2_asked_for(t2, te, t2w.te), t2w.te, t2w.tr)
        torch.testing.assert_close(explained, acquired)
        assert t2_asked_for(t2, te, t2w.te) / t2 == pytest.approx(1 / 0.22)


def test_moving_the_prior_moves_where_the_decoder_starts():
    torch.manual_seed(0)
    z = torch.randn(1, SMOKE.vae["latent_channels"], 8, 8)
    here, moved = (PoEVAE(**SMOKE.vae | args).decode(z) for args in ({}, variants.moved_prior(1.25)))
    for factor, a, b in zip((1.0, 1.25, 1.25), here, moved, strict=True):
        torch.testing.assert_close(b, factor * a)
    assert here.t1.median().item() == pytest.approx(PRIOR_MEDIANS[1])


def batch_of(images: torch.Tensor, settings: torch.Tensor) -> VAEBatch:
    n, m = images.shape[:2]
    everything = torch.ones(n, m, dtype=torch.bool)
    one = torch.ones(n, m)
    return VAEBatch(images, images, one, one, settings, everything, everything, everything[:, 0])


def test_where_the_prior_is_moved_literature_s_lines_move_along(tmp_path):
    """Tissue whose T1 and T2 are longer by the same factor is as much on the moved lines as tissue was on the old."""
    settings = torch.stack([rows[0].effective.settings() for rows in oasis3_protocols().values()])[None]
    batch, losses = batch_of(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), settings), {}
    for name, factor in ((UNCHANGED.name, 1.0), ("prior longer", variants.MOVED)):
        objective = variant_runs(run_of(SMOKE, tmp_path))[name]._vae_objective()
        maps = torch.tensor([0.72, 1.6 * factor, 0.2 * factor]).log().view(1, 3, 1, 1).expand(1, 3, 16, 16)
        objective.vae.decode_log = lambda z, maps=maps, vae=objective.vae: maps - vae.log_medians
        losses[name] = objective(batch, 0)
    for term in ("water", "fluid", "map_prior"):
        assert losses["prior longer"][term] == pytest.approx(float(losses[UNCHANGED.name][term]), rel=1e-4)
        assert losses[UNCHANGED.name][term] > 0
    assert losses["prior longer"]["l1"] != losses[UNCHANGED.name]["l1"]  # what the scans say has not moved


def test_without_physics_the_decoder_s_images_are_the_prediction(tmp_path):
    of = variant_runs(run_of(SMOKE, tmp_path))["images, no physics"]
    objective = of._vae_objective()
    images = 0.5 + torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    objective.vae.decode_log = lambda z: images.log()  # relative to the typical signal, as the batch is
    settings = torch.stack([rows[0].effective.settings() for rows in oasis3_protocols().values()])[None]
    assert objective(batch_of(images, settings), 0)["l1"] < 1e-6
    assert objective(batch_of(2 * images, settings), 0)["l1"] > 0.5


# --- what is concluded ------------------------------------------------------------------------------


def people_of(values: dict[str, list[float]], metric: str, quantity="T1", tissue="WM") -> pandas.DataFrame:
    rows = [
        (metric, quantity, tissue, variant, ALL_SCANS, "common scale", person, value)
        for variant, of in values.items()
        for person, value in enumerate(of)
    ]
    return pandas.DataFrame(rows, columns=[*VARIANT_KEYS, "person", "value"])


def test_a_variant_is_held_against_the_reference_person_by_person():
    """Twice the error in everybody is a ratio of exactly 2, however much people differ."""
    people = people_of({UNCHANGED.name: [0.01, 0.04, 0.09], "other": [0.02, 0.08, 0.18]}, "median_absolute_error")
    table = ablations.against_reference(people).set_index(["metric", "variant"])
    ratio, error = table.loc[("error_ratio", "other")], table.loc[("median_absolute_error", "other")]
    assert [ratio.value, ratio.low, ratio.high, ratio.n] == pytest.approx([2, 2, 2, 3])
    assert error.low < error.value == pytest.approx(0.28 / 3) and error.high > error.value


def test_the_share_of_the_prior_is_1_where_all_of_it_follows_and_0_where_nothing_does():
    moved = variants.MOVED
    for exponent in (0.0, 0.5, 1.0):
        bias = {"prior longer": [1.1 * moved**exponent - 1] * 3, "prior shorter": [1.1 * moved**-exponent - 1] * 3}
        share = ablations.prior_share(people_of(bias, "bias"))
        assert share.value.item() == pytest.approx(exponent, abs=1e-9) and share.n.item() == 3


def test_the_nearest_image_is_found_at_its_gain():
    maps = (
        torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        + torch.tensor([0.2, 0.5, 0.05])[:, None, None]
    )
    truth, wanted = Truth(maps, torch.ones(2, 3, 16, 16) / 3), Protocol("spin echo", te=0.05, tr=3.0)
    other = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))
    images = torch.stack([other, 7 * render(TissueMaps.from_stack(maps), wanted), other**2], 1)
    found, psnr = ablations.nearest_image(images, truth, wanted)
    torch.testing.assert_close(found, render(TissueMaps.from_stack(maps), wanted))
    assert psnr > 80


# --- the runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(smoke_run, tmp_path_factory):
    """The reference, the smallest change and the variant without physics, trained on the smoke run's cohort."""
    folder = tmp_path_factory.mktemp("ablations")
    (folder / "cohort").symlink_to(smoke_run.cohort_folder)
    run = replace(smoke_run, folder=folder)
    chosen = [v for v in VARIANTS if v.name in (UNCHANGED.name, "nominal TE", "images, no physics")]
    runs = variant_runs(run, chosen)
    for of in runs.values():
        list(of.make())
    return run, runs


def test_a_variant_s_folder_is_not_one_of_weights(trained):
    """Its maps may be no tissue: nobody is to fit a patient with it."""
    _, runs = trained
    for of in runs.values():
        assert (of.folder / "vae").is_dir()
        assert not (of.folder / "config.json").exists()


def test_a_finished_variant_is_not_trained_again(trained):
    run, runs = trained
    again = variant_runs(run, [of.variant for of in runs.values()])
    assert all(list(of.make()) == [] for of in again.values())
    changed = replace(runs[UNCHANGED.name].variant, loss={"kl": 0.5})
    with pytest.raises(MissingResult):  # and is not taken for one of other settings
        variant_runs(run, [changed])[UNCHANGED.name].vae()


def test_the_nominal_variant_is_told_the_header_and_the_reference_is_not(trained):
    _, runs = trained
    told, true = (runs[name].scans("test").settings[:, 1] for name in ("nominal TE", UNCHANGED.name))
    assert (told[:, 1] >= true[:, 1]).all() and (true[:, 1] < 0.2).all()
    assert told[:, 1].max() > 0.4 and torch.equal(told[:, 2:], true[:, 2:])


def test_variants_are_judged_once_on_the_same_people(trained):
    run, runs = trained
    people = ablations.measure(run, runs)
    assert list(people.columns) == [*VARIANT_KEYS, "person", "value"]
    for name, of in people.groupby("variant"):
        assert set(of.person) == set(range(SMOKE.cohort.n_test)) and set(of.scale) == {"common scale", "any gain"}, name
    assert set(people[people.variant == "images, no physics"].metric) == {"psnr", "sharpness"}
    kept = (runs[UNCHANGED.name].folder / "vae" / "judged.csv").stat().st_mtime_ns
    pandas.testing.assert_frame_equal(ablations.measure(run, runs), people)
    assert (runs[UNCHANGED.name].folder / "vae" / "judged.csv").stat().st_mtime_ns == kept


def test_the_table_of_the_repository_is_made_again(trained, tmp_path):
    run, runs = trained
    ablations.remake(run, tmp_path / "ablations.csv", [of.variant for of in runs.values()])
    made, kept = pandas.read_csv(tmp_path / "ablations.csv"), pandas.read_csv(ROOT / "data" / "ablations.csv")
    assert list(made.columns) == list(kept.columns)
    known = set(zip(kept.metric, kept.variant, kept.scans, kept.scale, strict=True))
    assert set(zip(made.metric, made.variant, made.scans, made.scale, strict=True)) <= known
    assert set(made.metric) == {"error_ratio", "psnr"}  # no variant here has another prior


def test_a_variant_of_another_name_with_the_same_settings_is_the_same_training(trained):
    _, runs = trained
    of = runs[UNCHANGED.name]
    renamed = replace(of, variant=Variant("renamed", "", "", ""))
    assert renamed.vae().state_dict().keys() == of.vae().state_dict().keys()

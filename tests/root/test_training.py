"""Training hears only what was scanned, goes on exactly where it was killed, and says when it cannot."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import nn

from phyldm_core import training
from phyldm_core.diffusion import DiffusionObjective, Latents, TissueTransformer
from phyldm_core.losses import (
    SCANS_A_STEP,
    VAEBatch,
    VAEData,
    VAELoss,
    VAEObjective,
    against,
    fluid_prior,
    gain_per_scan,
    patch_adversary,
    solve_gain,
)
from phyldm_core.machine import processes
from phyldm_core.machine.errors import BadInput
from phyldm_core.physics import REFERENCE, TissueMaps, effective_protocol, signed_signal
from phyldm_core.running.profiles import SMOKE
from phyldm_core.slices import LAYERS, Slices
from phyldm_core.tissue import TISSUES, in_vivo_3t
from phyldm_core.training import HALFWAY, Schedule, training_loop
from phyldm_core.vae import TYPICAL_SIGNAL, PoEVAE

N, SIZE = 6, 32
SETTINGS = torch.stack([effective_protocol(p).settings() for p in REFERENCE.values()]).expand(N, -1, -1)
SCHEDULE = Schedule(steps=10, batch_size=4, warmup=2, validate_every=3, save_every=4)
RECONSTRUCTION = VAELoss(l1=1.0, structure=0.0, kl=0.0, map_prior=0.0)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """``(n, 3, y, x)``: round heads, tissue from white matter inside to CSF outside; PD 0 in air."""
    y, x = torch.meshgrid(*[torch.linspace(-1.2, 1.2, SIZE)] * 2, indexing="ij")
    size = torch.linspace(0.9, 1.1, N)[:, None, None]
    depth = (x**2 + y**2).sqrt() / size
    maps = torch.stack([0.65 + 0.3 * depth, 0.8 + 1.5 * depth**2, 0.07 + 0.2 * depth**4], 1)
    maps[:, 0] *= depth < 1
    return maps


@pytest.fixture(scope="module")
def slices(truth) -> Slices:
    """Three people, two slices each; the second has no T2w."""
    observed = torch.ones(N, 3, dtype=torch.bool)
    observed[2:4, 1] = False
    images = signed_signal(TissueMaps.from_stack(truth), SETTINGS).abs() * observed[..., None, None]
    return Slices(images, SETTINGS * observed[..., None], observed, torch.arange(N) // 2, torch.tensor([-1.0, 1.0] * 3))


@pytest.fixture
def batch(slices) -> VAEBatch:
    data = VAEData(slices, VAELoss())
    common = torch.tensor([True, False] * 3)
    images, level, observed = slices.images / TYPICAL_SIGNAL, data.level, slices.observed
    inputs, unit = images / level[..., None, None], torch.ones_like(level)
    return VAEBatch(images, inputs, level, unit, slices.settings, observed, observed, common)


def objective(weights=SMOKE.vae_loss, **changes) -> VAEObjective:
    torch.manual_seed(0)
    return VAEObjective(PoEVAE(**SMOKE.vae | changes), weights)


def saying(log_maps: torch.Tensor, weights=RECONSTRUCTION) -> VAEObjective:
    """An objective whose decoder says this, whatever it is shown."""
    fixed = objective(weights)
    fixed.vae.decode_log = lambda z: log_maps
    return fixed


def logs(truth) -> torch.Tensor:
    return truth.clamp_min(1e-3).log() - PoEVAE(**SMOKE.vae).log_medians


def losses(objective, batch, step=0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return objective(batch, step)


# --- the loss -------------------------------------------------------------------------------------


def test_the_gain_is_that_of_least_squares():
    predicted, observed = torch.rand(2, 2, 3, 8, 9, generator=torch.Generator().manual_seed(0)).double()
    gain = solve_gain(predicted, observed)
    for i, m in np.ndindex(2, 3):
        [best], *_ = np.linalg.lstsq(predicted[i, m].reshape(-1, 1).numpy(), observed[i, m].ravel().numpy())
        assert gain[i, m] == pytest.approx(best)


def test_a_scan_has_one_gain_over_all_slices_of_a_person_told_inside_a_mask():
    predicted = torch.rand(4, 3, 8, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    inside = torch.zeros(4, 1, 8, 9)
    inside[1:3, :, 2:6] = 1
    gains = torch.tensor([3.0, 0.2, 800.0])
    observed = torch.where(inside > 0, gains[:, None, None] * predicted, 50.0)
    torch.testing.assert_close(gain_per_scan(predicted, observed, inside > 0), gains)


def test_a_scan_predicted_black_has_a_finite_gain():
    assert torch.isfinite(solve_gain(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))).all()


def test_the_true_maps_explain_the_scans(truth, batch):
    explained = losses(saying(logs(truth)), batch)
    assert explained["l1"] < 1e-3
    assert explained["structure"] < 1e-3
    assert losses(saying(logs(truth) + 0.1), batch)["l1"] > 0.01


def test_an_arbitrary_gain_costs_nothing_where_it_is_solved_for(truth, batch):
    louder = batch._replace(images=batch.images * torch.tensor([3.0, 0.2, 8.0])[:, None, None])
    nobody = batch.common & False
    assert losses(saying(logs(truth)), louder._replace(common=nobody))["l1"] < 5e-3
    assert losses(saying(logs(truth)), louder._replace(common=~nobody))["l1"] > 0.1  # on a common scale it is an error
    fixed = saying(logs(truth), replace(RECONSTRUCTION, gain="fixed"))
    assert losses(fixed, louder._replace(common=nobody))["l1"] > 0.1


def test_scans_that_do_not_exist_are_not_heard(batch):
    asked = objective()
    nn.init.normal_(asked.vae.decoder.head[0].weight, std=0.1)  # so that its maps are not the prior everywhere
    changed = batch._replace(
        images=torch.where(batch.observed[..., None, None], batch.images, 5.0),
        inputs=torch.where(batch.observed[..., None, None], batch.inputs, 5.0),
        settings=torch.where(batch.observed[..., None], batch.settings, SETTINGS),
    )
    for step in (0, SMOKE.vae_loss.adversarial_after):  # before and after the adversary is heard
        before, after = losses(asked, batch, step), losses(asked, changed, step)
        assert {k: v.item() for k, v in before.items()} == {k: v.item() for k, v in after.items()}


def test_a_scan_that_is_held_back_is_still_to_be_predicted(batch):
    shown = batch.observed.clone()
    shown[:, 2] = False  # the encoder never sees a FLAIR
    asked = objective()
    brighter = batch.images.clone()
    brighter[:, 2] *= 2
    one, other = (losses(asked, batch._replace(shown=shown, images=i)) for i in (batch.images, brighter))
    assert one["kl"] == other["kl"]
    assert one["l1"] != other["l1"]


def test_what_no_scan_that_is_shown_covers_is_not_asked_for(truth, batch):
    batch, said, half = batch._replace(common=batch.common | True), logs(truth), torch.arange(SIZE) >= SIZE // 2
    wrong_there = saying(said + half.roll(2) * half)  # off by a factor of e, from two pixels beyond the border on
    assert losses(wrong_there, batch)["l1"] > 0.1
    stripped = batch._replace(inputs=torch.where(half, 0.0, batch.inputs))
    found = losses(wrong_there, stripped)
    assert found["l1"] < 1e-3
    first = torch.tensor([True, False, False]).expand_as(batch.observed)
    only_others = batch._replace(inputs=torch.where(half & first[..., None, None], 0.0, batch.inputs))
    torch.testing.assert_close(losses(wrong_there, only_others)["l1"], losses(wrong_there, batch)["l1"])
    torch.testing.assert_close(losses(wrong_there, only_others._replace(shown=first))["l1"], found["l1"])


def test_a_gain_is_solved_where_something_was_measured(truth, batch):
    nobody, half = batch._replace(common=batch.common & False), torch.arange(SIZE) >= SIZE // 2
    wrong_there = saying(logs(truth) + half.roll(2) * half)
    assert losses(wrong_there, nobody)["l1"] > 0.1
    stripped = nobody._replace(inputs=torch.where(half, 0.0, nobody.inputs))
    assert losses(wrong_there, stripped)["l1"] < 1e-3  # what is wrong where nothing was measured moves no gain


def test_the_scans_teach_pd_t1_and_t2(truth, batch):
    said = (logs(truth) + 0.1).requires_grad_()
    losses(saying(said), batch)["total"].backward()
    inside = truth[:, 0] > 0
    for tissue in said.grad.unbind(1):
        assert (tissue[inside] != 0).float().mean() > 0.99
        assert torch.isfinite(tissue).all()


def test_the_map_prior_leaves_air_alone(truth, batch):
    air = (truth[:, 0] == 0)[:, None]
    plain, in_air, in_head = (
        losses(saying(logs(truth) + shift), batch)["map_prior"] for shift in (0.0, 3.0 * air, 3.0 * ~air)
    )
    assert in_air == plain
    assert in_head > 2 * plain


def test_fooling_the_adversary_does_not_train_it():
    images = torch.rand(2, 4, 1, 32, 32)
    adversary, made, real = patch_adversary(), images[0].requires_grad_(), images[1]
    fooled, own = against(adversary, made, real)
    fooled.backward(retain_graph=True)
    assert made.grad.abs().sum() > 0 and all(p.grad is None for p in adversary.parameters())
    made.grad = None
    own.backward()
    assert made.grad is None and all(p.grad is not None for p in adversary.parameters())


def test_the_adversary_s_lesson_does_not_change_the_adversary_s_mind(batch):
    """Fooling it trains the VAE only; judging trains it only."""
    both = objective(VAELoss(l1=0, structure=0, kl=0, map_prior=0, adversarial=1.0))
    nn.init.normal_(both.vae.decoder.head[0].weight, std=0.1)
    found = losses(both, batch)
    vae, adversary = list(both.vae.parameters()), list(both.adversary.parameters())

    def reached(loss, weights):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return any(g is not None and g.abs().max() > 0 for g in gradients)

    assert reached(found["adversarial"], vae) and not reached(found["adversarial"], adversary)
    assert reached(found["adversary"], adversary) and not reached(found["adversary"], vae)


def test_an_unknown_gain_is_refused():
    with pytest.raises(BadInput, match="gain is 'free': choose"):
        objective(VAELoss(gain="free"))


# --- batches --------------------------------------------------------------------------------------


def test_the_encoder_is_shown_some_scan_of_everyone_and_none_that_does_not_exist(slices):
    data, generator = VAEData(slices, VAELoss(keep_scan=0.3)), torch.Generator().manual_seed(0)
    shown = torch.stack([data.batch(torch.arange(N), generator).shown for _ in range(200)])
    assert shown.any(2).all()
    assert not (shown & ~slices.observed).any()
    assert len({tuple(row) for row in shown[:, 0].tolist()}) == 7  # every subset of three comes up
    everything = VAEData(slices, VAELoss(keep_scan=1.0)).batch(torch.arange(N), generator)
    assert (everything.shown == slices.observed).all()


def test_as_many_rows_as_asked_lose_the_common_scale(slices):
    data, generator = VAEData(slices, VAELoss(unscaled=0.25)), torch.Generator().manual_seed(0)
    common = torch.cat([data.batch(torch.arange(N), generator).common for _ in range(300)])
    assert common.float().mean() == pytest.approx(0.75, abs=0.04)


def test_images_are_mirrored_half_of_the_time_and_otherwise_as_scanned(slices):
    lopsided = replace(slices, images=slices.images * torch.linspace(0.5, 1.5, SIZE))
    data, generator = VAEData(lopsided, VAELoss()), torch.Generator().manual_seed(0)
    straight = lopsided.images / TYPICAL_SIGNAL
    same = 0
    for _ in range(100):
        for image, original in zip(data.batch(torch.arange(N), generator).images, straight, strict=True):
            assert torch.equal(image, original) or torch.equal(image, original.flip(-1))
            same += torch.equal(image, original)
    assert same / (100 * N) == pytest.approx(0.5, abs=0.08)


def test_a_dark_scan_tells_as_much_as_a_bright_one_where_misfits_are_relative(slices):
    dark = replace(slices, images=slices.images * torch.tensor([1.0, 1.0, 0.1])[:, None, None])
    for relative in (False, True):
        data = VAEData(dark, VAELoss(relative=relative))
        batch = data.batch(torch.arange(N), torch.Generator().manual_seed(0))
        assert torch.equal(batch.unit, data.level if relative else torch.ones_like(data.level))
    fractions = batch.images.amax((2, 3)) / batch.unit
    assert (fractions[:, 2] > 1).all() and (fractions[:, 2] < 3).all()  # of its own brightness


def misfit_of(unit: float, truth, batch) -> float:
    changed = batch._replace(unit=batch.unit * unit, common=batch.common | True)
    return losses(saying(logs(truth) + 0.1), changed)["l1"].item()


def test_a_misfit_is_measured_in_the_scan_s_unit(truth, batch):
    assert misfit_of(2.0, truth, batch) == pytest.approx(misfit_of(1.0, truth, batch) / 2, rel=1e-4)


def many_scans(slices, n=9, observed=True) -> Slices:
    """Each person with ``n`` scans that differ in brightness."""
    images = slices.images[:, :1] * torch.linspace(1, 2, n)[:, None, None]
    settings = slices.settings[:, :1].repeat(1, n, 1)
    settings[..., 3] = torch.linspace(0.5, 1.3, n)
    return replace(slices, images=images, settings=settings, observed=torch.full((N, n), observed))


def test_of_many_scans_a_step_holds_a_session_of_others_each_time(slices):
    data, generator = VAEData(many_scans(slices), VAELoss(keep_scan=1.0)), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        batch = data.batch(torch.arange(N), generator)
        assert batch.images.shape[1] == batch.settings.shape[1] == batch.level.shape[1] == SCANS_A_STEP
        ti = batch.settings[..., 3]
        assert all(len(row.unique()) == SCANS_A_STEP for row in ti)
        level = batch.images.amax((2, 3)) / batch.images.amax((2, 3)).amin(1, keepdim=True)
        expected = 1 + (ti - 0.5) / 0.8  # brightness still goes with its settings
        torch.testing.assert_close(level, expected / expected.amin(1, keepdim=True), rtol=1e-4, atol=1e-4)
        seen |= {tuple(row.tolist()) for row in ti}
    assert len(seen) > 100


def test_a_scan_that_does_not_exist_is_taken_only_where_nothing_else_is_left(slices):
    some = many_scans(slices, n=7)
    some.observed[0, :3] = False  # four of seven are left
    some.observed[1, 1:] = False
    data, generator = VAEData(some, VAELoss(keep_scan=1.0)), torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = data.batch(torch.arange(N), generator)
        assert batch.observed.sum(1).tolist() == [4, 1, 4, 4, 4, 4]


def test_what_the_encoder_sees_is_spoiled_and_what_it_is_asked_for_is_not(slices, truth):
    head = truth[:, 0] > 0
    with_layers = replace(slices, layers=torch.where(head, LAYERS.index("brain"), LAYERS.index("air")).to(torch.uint8))
    data, generator = VAEData(with_layers, VAELoss(keep_scan=1.0)), torch.Generator().manual_seed(0)
    whole = slices.images / TYPICAL_SIGNAL
    spoiled_scans, factors = 0, []
    for _ in range(20):
        batch = data.batch(torch.arange(N), generator)
        for row, image, scan in zip(batch.inputs, batch.images, whole, strict=True):
            assert torch.equal(image, scan) or torch.equal(image, scan.flip(-1))
            spoiled_scans += int(((row == 0) & (image > 0.3)).flatten(1).any(1).sum())
        factors.append((batch.inputs.amax((2, 3)) * batch.level / batch.images.amax((2, 3)))[batch.shown])
        assert (batch.inputs.amax((2, 3))[batch.shown] < 6).all()
    assert 0.1 < spoiled_scans / (20 * slices.observed.sum()) < 0.7
    assert torch.cat(factors).log().std() > 0.05  # no brightness that a network could rest on


def test_slices_above_a_head_are_not_drawn(slices):
    layers = torch.full((N, SIZE, SIZE), LAYERS.index("other"), dtype=torch.uint8)
    layers[0] = LAYERS.index("air")
    data = VAEData(replace(slices, layers=layers), VAELoss())
    drawn = torch.cat([data.draw(5, torch.Generator().manual_seed(seed)) for seed in range(40)])
    assert set(drawn.tolist()) == set(range(1, N))


# --- the loop -------------------------------------------------------------------------------------


def vae_training(slices, **changes):
    return objective(**changes), VAEData(slices, SMOKE.vae_loss)


def diffusion_training(process):
    generator = torch.Generator().manual_seed(0)
    heights = torch.linspace(-1, 1, N)
    data = Latents(torch.randn(N, 4, 8, 8, generator=generator), torch.stack([heights, heights / 4, heights > 0], 1))
    torch.manual_seed(0)
    if process == "flow":
        denoiser = TissueTransformer(10, 4, (8, 8), **SMOKE.denoiser)
    else:
        kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        denoiser = UNet2DModel(8, 4, 4, block_out_channels=(8, 16), norm_num_groups=4, **kinds)
    return DiffusionObjective(denoiser, process), data


def values(steps) -> list[tuple]:
    return [(s.step, s.losses) for s in steps]


def read_log(folder) -> list[tuple]:
    with (folder / "log.csv").open() as file:
        return [(int(row["step"]), row["loss"], row["value"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("model", ["vae", "flow", "ddpm"])
def test_a_killed_run_goes_on_with_the_same_losses(model, slices, tmp_path):
    def start(folder):
        trained, data = vae_training(slices) if model == "vae" else diffusion_training(model)
        return trained, training_loop(trained, data, SCHEDULE, tmp_path / folder, data)

    whole, run = start("whole")
    expected = values(run)
    assert len(expected) == SCHEDULE.steps
    assert model != "vae" or "adversary" in expected[-1][1]

    _, run = start("killed")
    for step in run:
        if step.step == 5:  # after the checkpoint that holds four steps
            break
    run.close()
    resumed, run = start("killed")
    assert values(run) == expected[4:]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert [f.name for f in (tmp_path / "killed").iterdir()] == ["log.csv"]  # no checkpoint left over


def test_the_log_holds_what_was_reported_and_the_time_it_took(slices, tmp_path):
    steps = list(training_loop(*vae_training(slices), SCHEDULE, tmp_path, VAEData(slices, SMOKE.vae_loss)))
    reported = [(s.step, name, f"{value:.6g}") for s in steps for name, value in s.losses.items()]
    assert read_log(tmp_path) == reported
    assert [s.step for s in steps if "val_total" in s.losses] == [2, 5, 8, 9]  # every third, and the last
    seconds = [s.seconds for s in steps]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_validation_does_not_change_training(slices, tmp_path):
    watched = values(training_loop(*vae_training(slices), SCHEDULE, tmp_path / "a", VAEData(slices, SMOKE.vae_loss)))
    alone = values(training_loop(*vae_training(slices), SCHEDULE, tmp_path / "b"))
    assert [(n, {k: v for k, v in x.items() if not k.startswith("val_")}) for n, x in watched] == alone


def test_averaging_weights_changes_what_is_kept_and_not_what_is_learned(slices, tmp_path):
    kept = []
    for decay in (0.0, 0.999):
        trained, data = vae_training(slices)
        run = values(training_loop(trained, data, replace(SCHEDULE, ema_decay=decay), tmp_path / str(decay)))
        kept.append((run, trained.vae.encoder.head.weight.detach()))
    (a, last), (b, averaged) = kept
    assert a == b
    assert not torch.equal(last, averaged)


def test_weights_of_half_the_steps_are_kept_where_asked_for_also_by_a_run_that_was_killed(slices, tmp_path):
    trained, data = vae_training(slices)
    for _ in training_loop(trained, data, SCHEDULE, tmp_path / "a", halfway=True):
        pass
    assert not (tmp_path / "a" / "checkpoint").exists()
    half = load_file(tmp_path / "a" / HALFWAY)
    assert half.keys() == trained.state_dict().keys()
    assert any(not torch.equal(half[name], value) for name, value in trained.state_dict().items())
    run = training_loop(*vae_training(slices), SCHEDULE, tmp_path / "b", halfway=True)
    for _ in range(SCHEDULE.steps // 2):
        next(run)
    run.close()
    for _ in training_loop(*vae_training(slices), SCHEDULE, tmp_path / "b", halfway=True):
        pass
    again = load_file(tmp_path / "b" / HALFWAY)
    assert all(torch.equal(again[name], value) for name, value in half.items())


def test_the_seed_decides(slices, tmp_path):
    a, b, c = (
        values(training_loop(*vae_training(slices), replace(SCHEDULE, seed=seed), tmp_path / str(i)))
        for i, seed in enumerate((1, 1, 2))
    )
    assert a == b
    assert a != c


def test_training_learns(slices, tmp_path):
    schedule = replace(SCHEDULE, steps=120, warmup=5, learning_rate=5e-3, save_every=1000)
    trained, data = vae_training(slices, weights=RECONSTRUCTION), VAEData(slices, RECONSTRUCTION)
    steps = list(training_loop(trained[0], data, schedule, tmp_path))
    first, last = (np.mean([s.losses["total"] for s in some]) for some in (steps[:5], steps[-5:]))
    assert last < 0.5 * first


@pytest.fixture
def killed(slices, tmp_path):
    """The folder of a run killed after its first checkpoint."""
    run = training_loop(*vae_training(slices), SCHEDULE, tmp_path)
    for step in run:
        if step.step == 5:
            break
    run.close()
    return tmp_path


def refusal(run) -> str:
    with pytest.raises(BadInput) as caught:
        next(run)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_checkpoint_of_another_network_is_refused(killed, slices):
    checkpoint = (killed / "checkpoint" / "state.safetensors").read_bytes()
    message = refusal(training_loop(*vae_training(slices, embedding=8), SCHEDULE, killed))
    assert "is of another network: delete" in message and str(killed) in message
    assert (killed / "checkpoint" / "state.safetensors").read_bytes() == checkpoint


def test_a_checkpoint_of_another_schedule_is_refused(killed, slices):
    message = refusal(training_loop(*vae_training(slices), replace(SCHEDULE, learning_rate=0.1), killed))
    assert "is of a run with other settings: delete" in message and str(killed) in message


class Diverging(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch, step):
        return {"total": (self.weight * (torch.nan if step == 6 else 1.0)).sum()}


def test_divergence_is_said_and_the_last_checkpoint_is_sound(tmp_path):
    data = Latents(torch.randn(4, 1, 2, 2), torch.zeros(4, 3))
    run = training_loop(Diverging(), data, SCHEDULE, tmp_path)
    with pytest.raises(BadInput, match="diverged at step 6 .*lower the learning rate"):
        list(run)
    tensors = load_file(tmp_path / "checkpoint" / "state.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


# --- several processes --------------------------------------------------------------------------------

ONE_OF_SEVERAL = """
import sys
from pathlib import Path
import torch, torch.distributed as distributed
from safetensors.torch import load_file, save_file
from test_training import SCHEDULE, SMOKE, Slices, VAEData, VAELoss, diffusion_training, objective, training_loop

model, folder, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if model == "vae":
    slices = Slices(**load_file(folder.parent / "slices.safetensors"))
    trained, data = objective(), VAEData(slices, SMOKE.vae_loss)
else:
    trained, data = diffusion_training(model)
run, losses = training_loop(trained, data, SCHEDULE, folder, data), []
for step in run:
    losses.append([step.losses["total"], step.losses.get("val_total", 0.0)])
    if step.step == last:
        break
run.close()
rank = distributed.get_rank()
save_file(trained.state_dict() | {"losses": torch.tensor(losses)}, folder.parent / f"{folder.name}_{rank}.safetensors")
distributed.destroy_process_group()
"""


@pytest.fixture
def in_two_processes(slices, tmp_path):
    """Trains in two processes up to a step; gives what each ended with."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in vars(slices).items()}, tmp_path / "slices.safetensors")
    (tmp_path / "train.py").write_text(ONE_OF_SEVERAL)

    def train(model, name, last=SCHEDULE.steps) -> list[dict]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        here = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        done = subprocess.run(
            [*launcher, tmp_path / "train.py", model, tmp_path / name, str(last)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return [load_file(tmp_path / f"{name}_{rank}.safetensors") for rank in (0, 1)]

    return train


def in_this_process(model, slices, folder, last=SCHEDULE.steps) -> torch.Tensor:
    """``(steps, 2)``: total loss and that of validation."""
    trained, data = vae_training(slices) if model == "vae" else diffusion_training(model)
    run, found = training_loop(trained, data, SCHEDULE, folder, data), []
    for step in run:
        found.append([step.losses["total"], step.losses.get("val_total", 0.0)])
        if step.step == last:
            break
    run.close()
    return torch.tensor(found)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vae", "flow", "ddpm"])
def test_two_processes_learn_what_one_learns_and_take_over_each_other_s_checkpoints(
    model, slices, in_two_processes, tmp_path
):
    alone = in_this_process(model, slices, tmp_path / "alone")
    one, other = in_two_processes(model, "both")
    assert torch.equal(one["losses"], other["losses"])
    torch.testing.assert_close(one["losses"], alone, rtol=1e-3, atol=1e-5)
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    steps = [step for step, loss, _ in read_log(tmp_path / "both") if loss == "total"]
    assert steps == list(range(SCHEDULE.steps))  # written once

    in_two_processes(model, "begun by two", last=5)  # killed after the checkpoint that holds four steps
    torch.testing.assert_close(
        in_this_process(model, slices, tmp_path / "begun by two"), alone[4:], rtol=1e-3, atol=1e-5
    )
    in_this_process(model, slices, tmp_path / "begun by one", last=5)
    taken_over = in_two_processes(model, "begun by one")[0]["losses"]
    torch.testing.assert_close(taken_over, alone[4:], rtol=1e-3, atol=1e-5)


class Pretended:
    """torch.distributed as the second of two processes sees it, the first having counted ``elsewhere``."""

    is_available = is_initialized = staticmethod(lambda: True)
    get_rank, get_world_size = staticmethod(lambda: 1), staticmethod(lambda: 2)
    elsewhere = 0.0

    @classmethod
    def all_reduce(cls, count):
        count += cls.elsewhere


def test_processes_draw_one_stream_of_noise_and_divide_by_one_count(monkeypatch):
    values = torch.arange(10.0)
    torch.manual_seed(0)
    noise, after = processes.drawn(torch.randn, 4, 3), torch.rand(1)
    monkeypatch.setattr(processes, "distributed", Pretended)
    torch.manual_seed(0)
    assert torch.equal(processes.drawn(torch.randn, 2, 3), noise[1::2])
    assert torch.equal(torch.rand(1), after)
    mine, theirs = values[7:], values[:7]  # shares of a mean may differ in size, as scans of a row do
    monkeypatch.setattr(Pretended, "elsewhere", 7.0)
    expected = values.mean() - theirs.sum() / 5 / 2  # what the other process adds when both are averaged
    torch.testing.assert_close(processes.mean(mine) / 2, expected)
    with processes.alone():
        assert processes.mean(mine) == mine.mean()
        assert processes.share() == slice(0, None, 1)


def test_processes_that_cannot_share_a_batch_are_refused(slices, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Accelerator, "num_processes", 3)
    message = refusal(training_loop(*vae_training(slices), SCHEDULE, tmp_path))
    assert "3 processes cannot share batches of 4 evenly" in message


def test_the_fluid_prior_wants_csf_where_t1_says_csf_and_is_silent_below_grey_matter():
    table = in_vivo_3t()
    wm, gm, csf = (torch.tensor(table.median[TISSUES.index(t)]).float().view(1, 3, 1, 1) for t in ("WM", "GM", "CSF"))
    assert fluid_prior(csf).item() < 1e-6  # the line goes through CSF
    assert fluid_prior(wm).item() == 0 and fluid_prior(gm).item() < 1e-6
    short, doubt = csf.clone(), csf.clone()
    short[:, 2] = 0.5
    doubt[:, 2] = 1.5
    assert fluid_prior(short) > fluid_prior(doubt) > 0
    maps = short.requires_grad_()
    fluid_prior(maps).sum().backward()
    assert maps.grad[0, 2] < 0 and not maps.grad[0, :2].any()  # T2 leans on T1, never the other way round

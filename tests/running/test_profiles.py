"""The picture of the architecture says what the networks are."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pytest

from phyldm_core import figures
from phyldm_core.running.profiles import LAPTOP, PAPER, PROFILES, architecture_of


def words(profile) -> str:
    fig = figures.architecture(**architecture_of(profile))
    plt.close(fig)
    return "\n".join(text.get_text() for ax in fig.axes for text in ax.texts)


def count(*parts) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


def test_what_is_drawn_are_the_networks_that_were_trained(smoke_run):
    drawn, pipe = architecture_of(smoke_run.profile), smoke_run.pipeline()
    vae = smoke_run.vae()
    assert drawn["parameters"] == {
        "encoder": count(vae.encoder, vae.embed), "decoder": count(vae.decoder),
        "denoiser": count(pipe.denoiser), "composition": count(pipe.decoder),
    }  # fmt: skip
    assert drawn["latent"] == tuple(smoke_run.fine_latents("val").values.shape[1:])
    assert drawn["composition"] == (len(pipe.config.latent_mean), *pipe.config.latent_size)
    assert drawn["decoder"][-1][1][0] * vae.config.decoder_stem == smoke_run.recipe.shape[0]


def test_the_paper_s_networks_have_the_published_sizes_and_no_compositions():
    drawn = architecture_of(PAPER)
    assert drawn["composition"] is None and "composition" not in drawn["parameters"]
    assert drawn["latent"] == (6, 28, 20)
    assert drawn["parameters"]["denoiser"] == 183_994_886
    assert "composition" not in words(PAPER)


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if profile.composition is not None])
def test_compositions_are_drawn_with_its_size(name):
    drawn = architecture_of(PROFILES[name])
    assert "latent of compositions {}×{}×{}".format(*drawn["composition"]) in words(PROFILES[name])


def test_another_configuration_is_another_picture():
    composition = LAPTOP.composition | {"latent_channels": 17}
    wider = replace(LAPTOP, vae=LAPTOP.vae | {"latent_channels": 5}, composition=composition, sampling_steps=33)
    for number in ("5×56×40", "38×14×10", "33 steps"):
        assert number in words(wider) and number not in words(LAPTOP)

"""What a diffusion model learns to draw, made once of a split: the VAE's own latents, or those of compositions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..composition import Composition, CompositionVAE, compose, csf_share
from ..diffusion import Latents
from ..inference import INFERENCE_BATCH, encode, infer
from ..machine.on_disk import in_a_file
from ..machine.precision import best_precision
from ..physics import TissueMaps
from ..slices import Slices, brightness
from ..vae import PoEVAE


def latents(vae: PoEVAE, slices: Slices, like: Latents | None = None, common_scale: bool = True) -> Latents:
    """Posterior means of all slices and of their mirror images, encoded once; normalised ``like`` others if given.

    In the precision of training: bf16 rounds far below the spread of a posterior.
    """
    scale, half = brightness(slices.images, slices.observed, slices.subject), best_precision() == "bf16"

    def means() -> Iterator[Tensor]:
        for mirrored in (False, True):
            for rows in torch.arange(len(slices)).split(INFERENCE_BATCH):
                part = slices[rows]
                part = replace(part, images=part.images.flip(-1)) if mirrored else part
                with torch.autocast(vae.device.type, torch.bfloat16, enabled=half):
                    posterior = encode(vae, part, common_scale, scale=scale[rows])
                yield posterior.mean.float()

    height = slices.position.repeat(2)
    return Latents(in_a_file(means()), torch.stack([height, torch.full_like(height, torch.nan)], 1), like)


class Composed(NamedTuple):
    """Compositions of many slices: shares ``(n, 1 + k, y, x)`` as bytes (255 is 1, in a file), the rest as it is."""

    shares: Tensor
    values: Tensor
    texture: Tensor
    height: Tensor  # (n,), −1 to 1

    def part(self, rows: Tensor) -> Composition:
        return Composition(self.shares[rows].float() / 255, self.values[rows], self.texture[rows])


APART_MM = 2.0
"""Slices of a person nearer than this are almost one: training takes those in between of every other person."""


def apart(slices: Slices, slice_mm: float) -> Tensor:
    """Rows of the slices to train on: every one where they lie :data:`APART_MM` apart."""
    step = max(1, round(APART_MM / slice_mm))
    people = [(slices.subject == person).nonzero()[:, 0] for person in slices.subject.unique()]
    return torch.cat([rows[i % step :: step] for i, rows in enumerate(people)])


def composed(
    vae: PoEVAE, slices: Slices, level: Tensor, tissues: tuple[str, ...], cell: int, common_scale: bool = True
) -> Composed:
    """Infer the maps of all slices, whose :func:`slices.brightness` is ``level``, and tell them apart into tissues."""
    half, rest = best_precision() == "bf16", []

    def shares() -> Iterator[Tensor]:
        for rows in torch.arange(len(slices)).split(INFERENCE_BATCH):
            with torch.autocast(vae.device.type, torch.bfloat16, enabled=half):
                _, maps = infer(vae, slices[rows], common_scale, scale=level[rows])
            found = compose(TissueMaps(*(m.float() for m in maps)), tissues, cell)
            rest.append((found.values, found.texture))
            yield (255 * found.shares).round().byte()

    return Composed(in_a_file(shares()), *(torch.cat(parts) for parts in zip(*rest, strict=True)), slices.position)


@torch.no_grad()
def joined(autoencoder: CompositionVAE, slices: Composed, like: Latents | None = None) -> Latents:
    """Latents of all slices and of their mirror images, with height and share of CSF; normalised ``like`` others."""
    half, told = best_precision() == "bf16", []

    def means() -> Iterator[Tensor]:
        for mirrored in (False, True):
            for rows in torch.arange(len(slices.shares)).split(INFERENCE_BATCH):
                part = slices.part(rows)
                told.append(torch.stack([slices.height[rows], csf_share(part.shares)], 1))
                if mirrored:
                    part = replace(part, shares=part.shares.flip(-1), texture=part.texture.flip(-1))
                with torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=half):
                    yield autoencoder.join(part)

    values = in_a_file(means())
    return Latents(values, torch.cat(told), like)


def csf_quantiles(latents: Latents) -> list[float]:
    """21 quantiles of the slices' share of CSF, from the smallest to the largest; none where nobody knows them."""
    shares = latents.conditions[:, 1]
    return [] if shares.isnan().any() else [round(q, 4) for q in shares.quantile(torch.linspace(0, 1, 21)).tolist()]

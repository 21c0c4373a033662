"""What a diffusion model learns to draw, made once of a split: the VAE's own latents, or those of compositions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from pandas import DataFrame
from torch import Tensor
from torch.nn import functional

from ..composition import Composition, CompositionVAE, csf_share
from ..diffusion import Latents
from ..inference import INFERENCE_BATCH, Explained, encode, explain, infer
from ..machine.on_disk import in_a_file
from ..machine.precision import best_precision
from ..people.anatomy import smooth_field
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
    unknown = torch.full_like(height, torch.nan)
    return Latents(in_a_file(means()), torch.stack([height, unknown, unknown], 1), like)


class Composed(NamedTuple):
    """Compositions of many slices: shares ``(n, 1 + k, y, x)`` as bytes (255 is 1, in a file), the rest as it is."""

    shares: Tensor
    values: Tensor
    texture: Tensor
    height: Tensor  # (n,), −1 to 1
    first_folder: Tensor  # (n,), whether the head is of the first folder of label maps, 1 or 0

    def part(self, rows: Tensor) -> Composition:
        return Composition(self.shares[rows].float() / 255, self.values[rows], self.texture[rows])


APART_MM = 2.0
"""Slices of a person nearer than this are almost one: training takes those in between of every other person."""


def apart(slices: Slices, slice_mm: float) -> Tensor:
    """Rows of the slices to train on: every one where they lie :data:`APART_MM` apart."""
    step = max(1, round(APART_MM / slice_mm))
    people = [(slices.subject == person).nonzero()[:, 0] for person in slices.subject.unique()]
    return torch.cat([rows[i % step :: step] for i, rows in enumerate(people)])


def composed(parts: Iterable[Composition], slices: Slices, people: DataFrame, split: str) -> Composed:
    """Gather compositions, a few at a time, of ``slices`` of a ``split`` of :func:`cohort.participants`."""
    rest, first = [], torch.ones(len(slices))  # real people are of one folder
    if "anatomy" in people:
        heads = people.anatomy[people.split == split]
        first = torch.tensor(["/" not in head for head in heads])[slices.subject].float()

    def shares() -> Iterator[Tensor]:
        for part in parts:
            rest.append((part.values, part.texture))
            yield (255 * part.shares).round().byte()

    return Composed(
        in_a_file(shares()), *(torch.cat(parts) for parts in zip(*rest, strict=True)), slices.position, first
    )


def seen_maps(vae: PoEVAE, slices: Slices, level: Tensor) -> Iterator[TissueMaps]:
    """What the encoder alone infers of slices on a common scale, whose :func:`slices.brightness` is ``level``."""
    half = best_precision() == "bf16"
    for rows in torch.arange(len(slices)).split(INFERENCE_BATCH):
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=half):
            _, maps = infer(vae, slices[rows], True, scale=level[rows])
        yield TissueMaps(*(m.float() for m in maps))


def explained_people(
    vae: PoEVAE, slices: Slices, common_scale: bool = True, shown: Tensor | None = None, level: Tensor | None = None
) -> Iterator[tuple[Slices, Explained]]:
    """Each person's slices and what they say (:func:`inference.explain`); arguments as :func:`inference.infer`."""
    gain = torch.ones(slices.images.shape[1]) if common_scale else None
    for person in slices.subject.unique_consecutive():
        rows = (slices.subject == person).nonzero()[:, 0]
        part, seen, scale = slices[rows], *(None if given is None else given[rows] for given in (shown, level))
        yield part, explain(vae, part, seen, scale, gain)


BENT = 2
"""Bent copies of each training slice: slices are few, and a flow that sees the same ones again learns them by heart."""

ROTATION, LOG_SCALE = 0.03, 0.04  # SD: radians; of the logarithm, each axis
BEND_MM = {60.0: 2.0, 16.0: 0.4}  # width of details → SD of how far they move: lobes, gyri


def bent(part: Composition, voxel_mm: float, generator: torch.Generator) -> Composition:
    """Slices rotated, scaled and bent, each in its own way, as people differ in one plane."""
    n, _, ny, nx = part.shares.shape
    turn, along, across = torch.randn(3, n, generator=generator)
    turn, aspect = ROTATION * turn, ny / nx
    wide, high = (LOG_SCALE * across).exp(), (LOG_SCALE * along).exp()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = turn.cos() * wide, turn.sin() * high * aspect
    theta[:, 1, 0], theta[:, 1, 1] = -turn.sin() * wide / aspect, turn.cos() * high
    grid = functional.affine_grid(theta, [n, 1, ny, nx], align_corners=False)
    for width, sd in BEND_MM.items():
        moved = sd / voxel_mm * smooth_field((ny, nx), width / voxel_mm, generator, channels=2 * n)
        grid = grid + moved.view(n, 2, ny, nx).movedim(1, -1) * 2 / grid.new_tensor([nx, ny])
    shares = functional.grid_sample(part.shares, grid, align_corners=False)
    shares[:, 0] += 1 - shares.sum(1)  # beyond the edge there is air
    coarse = functional.interpolate(grid.movedim(-1, 1), size=part.texture.shape[2:], mode="area").movedim(1, -1)
    return Composition(shares, part.values, functional.grid_sample(part.texture, coarse, align_corners=False))


@torch.no_grad()
def joined(
    autoencoder: CompositionVAE, slices: Composed, like: Latents | None = None, copies: int = 0, voxel_mm: float = 1.0
) -> Latents:
    """Latents of all slices, and of their mirror images, with their conditions; normalised ``like`` others.

    Parameters
    ----------
    copies
        :func:`bent` ones of every slice and of its mirror image.
    """
    half, told, generator = best_precision() == "bf16", [], torch.Generator().manual_seed(0)

    def means() -> Iterator[Tensor]:
        for copy in range(1 + copies):
            for mirrored in (False, True):
                for rows in torch.arange(len(slices.shares)).split(INFERENCE_BATCH):
                    part = slices.part(rows)
                    if mirrored:
                        part = replace(part, shares=part.shares.flip(-1), texture=part.texture.flip(-1))
                    part = bent(part, voxel_mm, generator) if copy else part
                    conditions = slices.height[rows], csf_share(part.shares), slices.first_folder[rows]
                    told.append(torch.stack(conditions, 1))
                    with torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=half):
                        yield autoencoder.join(part)

    values = in_a_file(means())
    return Latents(values, torch.cat(told), like)


def csf_quantiles(latents: Latents) -> list[float]:
    """21 quantiles of the share of CSF, from the smallest to the largest, in slices of heads of the first folder.

    None where nobody knows them.
    """
    shares = latents.conditions[latents.conditions[:, 2] == 1, 1]
    return [round(q, 4) for q in shares.quantile(torch.linspace(0, 1, 21)).tolist()] if len(shares) else []

"""Shares of tissue as tests make them: of one voxel, and of heads that are rings."""

import torch

AIR, WM, GM, CSF, FAT, MUSCLE, LESION = range(7)


def of(*parts: tuple[int, float]) -> torch.Tensor:
    """``(1, 7, 1, 1)`` shares of one voxel."""
    shares = torch.zeros(1, 7, 1, 1)
    for tissue, share in parts:
        shares[0, tissue] = share
    return shares


def rings(n: int = 4, size: int = 64) -> torch.Tensor:
    """``(n, 7, size, size)``: heads in rings: ventricle, white matter, cortex, sulcal fluid, bone, fat, skin."""
    at = torch.arange(size) - (size - 1) / 2
    radius = (at[:, None] ** 2 + at**2).sqrt()
    shares = torch.zeros(n, 7, size, size)
    for i in range(n):
        edges = [3.0 + i, 14, 20, 23, 25, 27, 29]
        inner = 0
        for tissue, outer in zip((CSF, WM, GM, CSF, AIR, FAT, MUSCLE), edges, strict=True):
            shares[i, tissue] += ((radius >= inner) & (radius < outer)).float()
            inner = outer
        shares[i, AIR] += (radius >= inner).float()
    return shares

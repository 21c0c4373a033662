"""The test that needs no truth: hide one scan of a session, predict it from the others, compare.

The model goes through tissue: PD, T1 and T2 that explain the other scans render the hidden protocol, with one number
fitted to the hidden scan, its gain. Its rival knows no physics: the best weighted sum of the other scans plus a
constant, every weight fitted to the hidden scan itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inference import explain
from ..machine.errors import BadInput
from ..slices import Slices
from ..vae import PoEVAE
from . import metrics, tables

JUDGES = (metrics.psnr, metrics.ssim, metrics.correlation)


def predict_scan(vae: PoEVAE, slices: Slices, brain: Tensor, m: int, scale: Tensor | None = None) -> dict[str, Tensor]:
    """Scan ``m`` of one session from the others: ``{"model": (n, y, x), "rival": (n, y, x)}``, in its own units.

    Parameters
    ----------
    slices
        Of one session; slices without scan ``m`` or without any other must be left out.
    brain
        ``(n, y, x)`` bool: where gain and weights are fitted; predictions are 0 outside.
    scale
        As :func:`inference.infer` takes it; gains are unknown.

    Raises
    ------
    BadInput
        Somewhere scan ``m`` is missing, or there is nothing to predict it from.
    """
    shown = slices.observed.clone()
    shown[:, m] = False
    if not slices.observed[:, m].all() or not shown.any(1).all():
        raise BadInput("leaving one scan out takes two scans in every slice: give slices that both cover")
    maps = explain(vae, slices, shown, scale).maps
    model = tables.rescan(maps, slices, False, brain)[:, m] * brain
    others = [slices.images[:, k] for k in range(shown.shape[1]) if shown[:, k].any()] + [torch.ones_like(model)]
    known = torch.stack([image[brain].double() for image in others], 1)
    weights = torch.linalg.lstsq(known, slices.images[:, m][brain].double()[:, None]).solution[:, 0]
    rival = sum(weight * image for weight, image in zip(weights, others, strict=True)).float() * brain
    return {"model": model, "rival": rival}


def judge_scans(
    vae: PoEVAE,
    slices: Slices,
    brain: Tensor,
    names: Sequence[str],
    whose: str = "",
    scale: Tensor | None = None,
) -> tuple[list[dict], dict[int, dict[str, Tensor]]]:
    """Every scan of one session that can be left out, predicted and judged.

    Parameters
    ----------
    names
        Of the scans, one a column of ``slices.images``.
    whose
        Put before the method in the column "inputs", to tell sessions apart.

    Returns
    -------
        Rows for :func:`metrics.long_form`: PSNR (dB), SSIM and correlation in the brain by scan and method; and
        what :func:`predict_scan` gave, by column.
    """
    present = [m for m in range(len(names)) if slices.observed[:, m].all()]
    if len(present) < 2:
        return [], {}
    predicted = {m: predict_scan(vae, slices, brain, m, scale) for m in present}
    rows = [
        {"metric": judge.__name__, "quantity": names[m], "tissue": "brain",
         "inputs": ", ".join(filter(None, (whose, method))), "value": judge(image, slices.images[:, m], brain)}
        for m, both in predicted.items() for method, image in both.items() for judge in JUDGES
    ]  # fmt: skip
    return rows, predicted

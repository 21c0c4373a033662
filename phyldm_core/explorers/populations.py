"""Which people the histogram explorer compares: the true ones, the drawn ones, and those inferred from scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import BadInput
from ..machine.files import read_json
from ..physics import TissueMaps
from .subjects import Progress, read_samples, simulate_person


def find_populations(run_dir: str | Path) -> dict[str, TissueMaps | Callable[[Progress], TissueMaps] | BadInput]:
    """What a run has, name → maps ``(n, y, x)``: "true" held-out people, "generated" brains, "inferred" maps.

    Inferring takes a while, so a function of a progress report stands for it. Without a run, one simulated person
    is all there is. Where a part is there and cannot be read, the sentence that says so stands for it.
    """
    run_dir, found = Path(run_dir), {}
    cohort, simulated = run_dir / "cohort", False
    try:
        simulated = (cohort / "recipe.json").exists() and "data" not in read_json(cohort / "recipe.json")
        if simulated:
            from ..people.cohort import load_truth

            found["true"] = TissueMaps.from_stack(load_truth(cohort, "test").maps)
    except BadInput as error:
        found["true"] = error
    if (run_dir / "samples").is_dir():
        try:
            found["generated"] = read_samples(run_dir / "samples")[0]
        except BadInput as error:
            found["generated"] = error
    if simulated and (run_dir / "vae").is_dir():
        found["inferred"] = lambda progress: infer_test(run_dir, progress)
    return found or {"simulated": simulate_person(0).maps}


def infer_test(run_dir: Path, progress: Progress) -> TissueMaps:
    """Maps ``(n, y, x)`` that a run's VAE infers from the scans of its held-out people, person by person.

    Raises
    ------
    BadInput
        There is no VAE, or it is damaged (:func:`weights.load_weights`).
    """
    from ..inference import infer
    from ..people.cohort import load_scans
    from ..weights import load_weights

    vae, scans = load_weights(run_dir).vae(), load_scans(run_dir / "cohort", "test", common_scale=True)
    people, maps = scans.subject.unique(), []
    for i, person in enumerate(people):
        progress(i / len(people))
        maps.append(infer(vae, scans[scans.subject == person])[1])
    return TissueMaps(*(torch.cat(parts) for parts in zip(*maps, strict=True)))

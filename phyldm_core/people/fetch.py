"""Public label maps and a real patient, downloaded once and checked; ``data/label_maps`` lists what is where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pooch

from ..machine.carried import carried
from ..machine.errors import BadInput
from ..machine.files import read_json, to_json, write_atomically

PATIENT = "open-ms"  # the set that is scans; its sidecars are carried, since its publisher has none


def names_of(heads: str) -> list[str]:
    """The files of a set ("synthseg", "synthseg-2020a", "synthseg-2020b", "brainweb" or "open-ms")."""
    return listed(heads, Path()).registry_files


def fetch_heads(heads: str, out: Path) -> Iterator[str]:
    """Bring the files of a set into ``out``, yielding each name; what is there and unchanged is not brought again.

    Raises
    ------
    BadInput
        A file cannot be fetched, or is not the published one.
    """
    pooch.get_logger().setLevel("ERROR")  # the caller shows how far it is
    files = listed(heads, out)
    for name in files.registry:
        try:
            files.fetch(name)  # into a temporary file beside, renamed once its checksum agrees
        except ValueError:
            raise BadInput(f"{name} differs from the published file (checksum) and was not kept: run again") from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the network's
                raise
            where = files.get_url(name)
            raise BadInput(f"{name} could not be fetched from {where}: check the network and run again") from None
        yield name
    if heads == PATIENT:
        for name, sidecar in read_json(carried("data/open_ms.json")).items():
            write_atomically(out / name, to_json(sidecar))


def listed(heads: str, out: Path) -> pooch.Pooch:
    """Names, SHA-256 and addresses of a set's files, to be kept in ``out``."""
    files = pooch.create(path=out, base_url="")
    files.load_registry(carried(f"data/label_maps/{heads}.txt"))
    return files

"""Files that are whole or absent: JSON, SHA-256, and writes that a killed process never leaves half done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from .errors import BadInput


def read_json(path: Path, advice: str = "") -> dict:
    """The object in a JSON file.

    Raises
    ------
    BadInput
        It cannot be read or holds something else; the sentence ends in ``advice``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows begins files with a byte-order mark
    except (ValueError, OSError, RecursionError) as error:
        raise BadInput(f"{path}: not a readable JSON file ({error}){advice}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: must be a JSON object of fields, not a {type(content).__name__}{advice}")
    return content


def to_json(content: dict) -> bytes:
    """UTF-8, indented; NaN is refused (ValueError), because JSON has none.

    A file name that is not UTF-8 is written as JSON's escapes, and reads back as it was.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def write_atomically(path: str | Path, content: bytes):
    """Write all of a file or nothing of it, making its folder where needed.

    Raises
    ------
    BadInput
        The folder cannot be made or written, or the disk is full; what was there before stays.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise BadInput(f"{path}: cannot write ({error.strerror}): choose another folder or free some space") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


# --- whole folders --------------------------------------------------------------------------------

MADE_WITH = "made_with.json"
"""The file in a folder that says what it was made with."""


@contextlib.contextmanager
def whole_folder(folder: str | Path, settings: dict | None = None, record: str = MADE_WITH) -> Iterator[Path]:
    """A folder to write in, beside ``folder``, whose place it takes when all is written; until then the old one stays.

    Parameters
    ----------
    settings
        What the folder is made with, kept in it as ``record``: a call that was killed or failed leaves its part, and
        the next one with equal settings goes on there. None: every call starts from nothing and leaves nothing.

    Raises
    ------
    BadInput
        The place cannot be written; what was there before stays.
    """
    folder = Path(folder)
    part = unfinished(folder, settings, record)
    try:
        yield part
        _replace(part, folder)
    finally:
        if settings is None:
            shutil.rmtree(part, ignore_errors=True)


def unfinished(folder: str | Path, settings: dict | None = None, record: str = MADE_WITH) -> Path:
    """The folder that :func:`whole_folder` writes in, with what a call with equal settings left there."""
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    if settings is None or made_with(part, record) != settings:
        shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot write ({error.strerror}): choose another folder") from None
    if settings is not None:
        write_atomically(part / record, to_json(settings))
    return part


def made_with(folder: str | Path, record: str = MADE_WITH, advice: str = "remove the folder to make it anew"):
    """The settings (a dict) that a folder was made with; None where there are none.

    Raises
    ------
    BadInput
        They cannot be read; the sentence ends in ``advice``.
    """
    path = Path(folder) / record
    return read_json(path, f": {advice}") if path.exists() else None


def _replace(new: Path, folder: Path):
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a call that was killed after its last step but one
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise BadInput(f"{folder}: cannot write ({error.strerror}): choose another folder") from error
    shutil.rmtree(old, ignore_errors=True)


# --- checksums ------------------------------------------------------------------------------------


def sha256(path: str | Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: str | Path, *parts: str) -> dict[str, str]:
    """SHA-256 of every file of a folder, or in those ``parts`` of it, by its path in the folder."""
    folder = Path(folder)
    roots = [folder / part for part in parts] or [folder]
    found = sorted(path for root in roots for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found}

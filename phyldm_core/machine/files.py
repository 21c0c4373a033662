"""Files that are whole or absent: JSON, SHA-256, and writes that a killed process never leaves half done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

from ..errors import BadInput


def read_json(path: Path, advice: str = "") -> dict:
    """The object in a JSON file.

    Raises
    ------
    BadInput
        It cannot be read or holds something else; the sentence ends in ``advice``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: not a readable JSON file ({error}){advice}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: must be a JSON object of fields, not a {type(content).__name__}{advice}")
    return content


def to_json(content: dict) -> bytes:
    """UTF-8, indented; NaN is refused (ValueError), because JSON has none."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


def replace_folder(new: Path, folder: Path):
    """Put a complete folder in the place of an older one, which stays until the new one is there.

    Raises
    ------
    BadInput
        The place cannot be written; what was there before stays.
    """
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


def sha256(path: str | Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

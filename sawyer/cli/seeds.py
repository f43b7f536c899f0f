"""Seed files while a key is replaced. The next seed is on disk before anybody knows its key; the old one is set aside,
not lost. Each step may be repeated, so that a rotation which was cut short is finished by doing it again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.home import Home
from sawyer.identity.keys import Key, KeyKind, load, load_or_create

NEXT: Final = ".next"
"""Ends the name of the file that keeps the seed which is to stand in this file."""


def next_seed(file: Path, kind: KeyKind = "U") -> Key:
    """The key that is to replace the one in this file, made if there is none yet."""
    return load_or_create(_next(file), kind)


def waiting_seed(file: Path) -> Key | None:
    """The key that was made to replace the one in this file, if one was."""
    return load(_next(file)) if _next(file).is_file() else None


def put_in_place(home: Home, file: Path) -> Path:
    """The waiting key takes the file; returns where the old one lies now. There is a key in the file at any moment."""
    old = load(file)
    former = home.former_key(old.id)
    with contextlib.suppress(FileExistsError):
        durable.create(former, f"{old.seed}\n".encode("ascii"))
    _next(file).rename(file)
    durable.sync_folder(file.parent)
    return former


def settled(home: Home, file: Path, key: str) -> Key:
    """The key in this file, after a rotation to `key` that was recorded, and cut short, is finished."""
    waiting = waiting_seed(file)
    if waiting is not None and waiting.id == key:
        put_in_place(home, file)
    return load(file)


def _next(file: Path) -> Path:
    return file.with_name(file.name + NEXT)

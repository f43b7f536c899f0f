"""Where things are kept, and who decides: flag > SAWYER_* > default. Owns the layout of a home, not its content."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from sawyer import durable
from sawyer.errors import UsageError, VerificationError

ENV_HOME = "SAWYER_HOME"
ENV_NATS_SERVER = "SAWYER_NATS_SERVER"
ENV_DURABILITY = "SAWYER_LEDGER_DURABILITY"


def durability() -> Literal["FULL", "NORMAL"]:
    """How durable a commit of the book is: SAWYER_LEDGER_DURABILITY, by default FULL (on the disk before it is told).
    NORMAL: a power cut may lose the last commits. Raises UsageError for another word."""
    match os.environ.get(ENV_DURABILITY, "full").upper():
        case "FULL":
            return "FULL"
        case "NORMAL":
            return "NORMAL"
        case other:
            raise UsageError(f"{ENV_DURABILITY} is {other!r}", hint="Write full or normal, or leave it out.")


@dataclass(frozen=True)
class Pin:
    """What a home trusts: its network, the key that the network's checkpoints must verify with, and the operator key
    that founds it."""

    network: str
    ledger_vkey: str
    operator: str


@dataclass(frozen=True)
class Home:
    """One participant's files. `path` may not exist yet."""

    path: Path

    @classmethod
    def resolve(cls, flag: Path | None = None) -> Home:
        """--home, else SAWYER_HOME, else the platform's data directory."""
        chosen = flag or os.environ.get(ENV_HOME) or platformdirs.user_data_path("sawyer")
        return cls(Path(chosen).expanduser().absolute())

    @property
    def demo(self) -> Home:
        """The home that `sawyer demo` uses by default."""
        return Home(self.path / "demo")

    @property
    def book(self) -> Path:
        return self.path / "book.sqlite"

    @property
    def views(self) -> Path:
        return self.path / "views.sqlite"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint of the book that a replay here found right: no later book may lack it."""
        return self.path / "checkpoint.txt"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def key(self, name: str) -> Path:
        """The seed file of one identity."""
        return self.path / "keys" / f"{name}.nk"

    def pin(self) -> Pin | None:
        """What this home trusts, or None before a network was founded or joined. Raises VerificationError if the file
        cannot be read as one."""
        file = self.path / "network.json"
        try:
            held = Pin(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise VerificationError(
                f"{file} is not a network pin: {error}", hint="Restore it, or start with an empty home."
            ) from error
        if not all(isinstance(value, str) for value in asdict(held).values()):
            raise VerificationError(f"{file} is not a network pin", hint="Restore it, or start with an empty home.")
        return held

    def write_pin(self, pin: Pin) -> None:
        """Pin a network, once. Raises UsageError if this home belongs to another network."""
        held = self.pin()
        if held == pin:
            return
        if held is not None:
            raise UsageError(
                f"{self.path} belongs to network {held.network}, not {pin.network}", hint="Use another --home."
            )
        durable.replace(self.path / "network.json", (json.dumps(asdict(pin), indent=2) + "\n").encode())

    def held_checkpoint(self) -> str | None:
        """The checkpoint that was kept here, or None. Raises VerificationError if it is not even text."""
        try:
            return self.checkpoint.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise VerificationError(
                f"cannot read the kept checkpoint {self.checkpoint}: {error}",
                hint="Restore it. Only if you cannot: delete it, and lose the proof of what the book held.",
            ) from error

    def keep_checkpoint(self, note: str) -> None:
        """Keep a verified checkpoint. Raises OSError."""
        durable.replace(self.checkpoint, note.encode())

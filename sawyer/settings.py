"""Where things are kept, and who decides: flag > SAWYER_* > default. Owns the layout of a home, not its content."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from sawyer.errors import UsageError, VerificationError

ENV_HOME = "SAWYER_HOME"
ENV_NATS_SERVER = "SAWYER_NATS_SERVER"
ENV_DURABILITY = "SAWYER_LEDGER_DURABILITY"


@dataclass(frozen=True)
class Pin:
    """What a home trusts: its network, and the key that the network's checkpoints must verify with."""

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
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self.path / ".network.json"
        draft.write_text(json.dumps(asdict(pin), indent=2) + "\n", encoding="utf-8")
        draft.replace(self.path / "network.json")

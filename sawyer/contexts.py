"""How to reach a NATS server: an address and credentials, from a flag or from a context file in the form that the nats
CLI writes (https://github.com/nats-io/jsm.go, natscontext). Owns reading and writing contexts, not connecting."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sawyer import durable
from sawyer.errors import UsageError

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
NAME_LIMIT: Final = 64
_PATHS: Final = ("creds", "nkey", "ca", "cert", "key")
_TEXTS: Final = ("url", "user", "password", "token", "inbox_prefix", "description")
_NOT_HERE: Final = ("nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store")
"""Fields of the nats CLI that would change who connects or how, and that Sawyer cannot honour."""


@dataclass(frozen=True)
class NatsTarget:
    """Where to connect and as whom. Paths name files; `creds` is a NATS credentials file, `nkey` a seed file. Secrets
    are not in its repr."""

    url: str = DEFAULT_URL
    creds: Path | None = None
    nkey: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    inbox_prefix: str = ""

    @property
    def credential(self) -> str:
        """What it connects with, for people and error messages; never a secret."""
        if self.creds:
            return f"creds {self.creds}"
        if self.nkey:
            return f"nkey {self.nkey}"
        if self.user:
            return f"user {self.user}"
        if self.token:
            return "a token"
        return f"certificate {self.cert}" if self.cert else "no credentials"


@dataclass(frozen=True)
class Context:
    """A named target. `file` is where it is written, `owner` whose it is: sawyer, or the nats CLI."""

    name: str
    file: Path
    owner: str
    description: str
    target: NatsTarget


class Contexts:
    """Sawyer's own contexts in `folder`, and those of the nats CLI, which are only read. Of two with one name, Sawyer's
    counts."""

    def __init__(self, folder: Path, nats_cli: Path | None = None) -> None:
        self._places = (("sawyer", folder / "contexts"), ("nats", nats_cli or _nats_cli_folder()))
        self._selected = folder / "context.txt"

    @property
    def selection_file(self) -> Path:
        return self._selected

    def names(self) -> list[str]:
        """All contexts, by name."""
        return sorted({file.stem for _, place in self._places for file in place.glob("*.json")})

    def read(self, name: str) -> Context:
        """Raises UsageError if there is none of that name, or if it cannot be used, naming file and place."""
        for owner, place in self._places:
            file = place / f"{_checked(name)}.json"
            if file.is_file():
                return _parse(name, file, owner)
        known = ", ".join(self.names())
        raise UsageError(
            f"there is no context {name!r}",
            hint=f"Known: {known}." if known else "Make one: sawyer context add NAME --nats URL",
        )

    def add(self, name: str, target: NatsTarget, description: str = "") -> Path:
        """Write one of Sawyer's own. Raises UsageError if it is there already."""
        file = self._places[0][1] / f"{_checked(name)}.json"
        if file.exists():
            raise UsageError(f"context {name!r} is there already: {file}", hint="Choose another name, or delete it.")
        texts = {"url": target.url, "description": description} | {
            each: getattr(target, each) for each in ("user", "password", "token", "inbox_prefix")
        }
        paths = {each: str(getattr(target, each) or "") for each in _PATHS}
        held = {key: value for key, value in (texts | paths).items() if value}
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.create(file, (json.dumps(held, indent=2) + "\n").encode())
        return file

    def selected(self) -> str:
        """The context that is used when none is named; "" for none."""
        try:
            return self._selected.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {self._selected}: {error}", hint="Delete it, then select again.") from error

    def select(self, name: str) -> None:
        """Use this context from now on; "" for none. Raises UsageError if it cannot be used."""
        if not name:
            self._selected.unlink(missing_ok=True)
            return
        self.read(name)
        self._selected.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.replace(self._selected, f"{name}\n".encode())


def _nats_cli_folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "nats" / "context"


def _checked(name: str) -> str:
    """Raises UsageError for a name that is no plain file name."""
    if not name or len(name) > NAME_LIMIT or name.startswith(".") or any(each in name for each in "/\\ \0"):
        raise UsageError(f"{name!r} cannot name a context", hint="Use letters, digits, - and _.")
    return name


def _parse(name: str, file: Path, owner: str) -> Context:
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{file} is not a context: {error.msg} ({where})", hint="Mend it, or add it anew.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read context {name}: {error}") from error
    if not isinstance(held, dict):
        raise UsageError(f"{file} is not a context: it must be a JSON object")
    for each in (*_TEXTS, *_PATHS, *_NOT_HERE):
        if not isinstance(held.get(each) or "", str):
            raise UsageError(f"{file}: {each} must be text")
    for each in _NOT_HERE:
        if held.get(each):
            raise UsageError(
                f"{file}: Sawyer cannot use {each}", hint="Write a context with url and creds (or nkey, user, token)."
            )
    fields: dict[str, Any] = {each: held[each] for each in _TEXTS if held.get(each) and each != "description"}
    fields |= {each: Path(held[each]).expanduser() for each in _PATHS if held.get(each)}
    return Context(name, file, owner, held.get("description") or "", NatsTarget(**fields))

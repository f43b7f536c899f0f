"""How to reach a NATS server: an address and credentials, from a flag or from a context file in the form that the nats
CLI writes (https://github.com/nats-io/jsm.go, natscontext). Owns reading and writing contexts, not connecting."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sawyer import durable
from sawyer.errors import UsageError

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
NAME_LIMIT: Final = 64
SAWYER, NATS_CLI = "sawyer", "nats"
"""Whose a context is."""
_PATHS: Final = ("creds", "nkey", "ca", "cert", "key")
_TEXTS: Final = ("url", "user", "password", "token", "inbox_prefix", "description")
_PROOFS: Final = ("user", "creds", "nkey", "token")
"""Of several in one context the first counts, as in the nats CLI."""
_NOT_HERE: Final = ("nsc", "socks_proxy", "user_jwt", "user_seed", "windows_cert_store")
"""Fields of the nats CLI that would change who connects or how, and that Sawyer cannot honour."""
_ELSEWHERE: Final = re.compile(r"(op|nsc|env|data):", re.IGNORECASE)
"""Values that the nats CLI would look up: in 1Password, in nsc, in a variable, in the text itself."""


@dataclass(frozen=True)
class NatsTarget:
    """Where to connect and as whom. `url`: one address or several of one cluster, with commas between. Paths name
    files; `creds` is a NATS credentials file, `nkey` a seed file. At most one of creds, nkey, user and token. Secrets
    are not in its repr; an address may hold one, so print `address`, not `url`."""

    url: str = field(default=DEFAULT_URL, repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    inbox_prefix: str = ""
    tls_first: bool = False

    def __post_init__(self) -> None:
        given = [each for each in _PROOFS if getattr(self, each)]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are two ways to prove who connects", hint="Give one of them.")

    @property
    def servers(self) -> list[str]:
        """The addresses, each alone."""
        return [each.strip() for each in self.url.split(",")]

    @property
    def address(self) -> str:
        """The url as it may be printed."""
        return without_secret(self.url)

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
        if self.address != self.url:
            return "what stands in the address"
        return f"certificate {self.cert}" if self.cert else "no credentials"

    @property
    def proves(self) -> bool:
        """Whether it says who connects; a certificate may come besides."""
        return any(getattr(self, each) for each in _PROOFS) or self.address != self.url

    def with_creds(self, creds: Path) -> NatsTarget:
        """The same server, with these credentials and no others."""
        return replace(self, creds=creds, nkey=None, user="", password="", token="")


def without_secret(url: str) -> str:
    """An address without what stands before its @: a password may hold any character, so all of it goes."""
    return re.sub(r"^([a-z]+://)?.*@", r"\1***@", url, flags=re.IGNORECASE | re.DOTALL)


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
        self._folder = folder
        self._places = ((SAWYER, folder / "contexts"), (NATS_CLI, nats_cli or _nats_cli_folder()))
        self._selected = folder / "context.txt"

    @property
    def selection_file(self) -> Path:
        return self._selected

    def names(self) -> list[str]:
        """All contexts, by name."""
        return sorted({file.stem for _, place in self._places for file in place.glob("*.json") if _fits(file.stem)})

    def locate(self, name: str) -> tuple[str, Path]:
        """Whose a context is, and its file. Raises UsageError if there is none of that name."""
        for owner, place in self._places:
            file = place / f"{_checked(name)}.json"
            if file.is_file():
                return owner, file
        known = ", ".join(self.names())
        raise UsageError(
            f"there is no context {name!r}",
            hint=f"Known: {known}." if known else "Make one: sawyer context add NAME --nats URL",
        )

    def read(self, name: str) -> Context:
        """Raises UsageError if there is none of that name, or if it cannot be used, naming file and place."""
        owner, file = self.locate(name)
        return _parse(name, file, owner)

    def add(self, name: str, target: NatsTarget, description: str = "") -> Path:
        """Write one of Sawyer's own. Raises UsageError if it is there already."""
        file = self._own(name)
        texts = {"url": target.url, "description": description} | {
            each: getattr(target, each) for each in ("user", "password", "token", "inbox_prefix")
        }
        paths = {each: str(getattr(target, each) or "") for each in _PATHS}
        held: dict[str, Any] = {key: value for key, value in (texts | paths).items() if value}
        if target.tls_first:
            held["tls_first"] = True
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            durable.create(file, (json.dumps(held, indent=2) + "\n").encode())
        except FileExistsError as error:
            raise _taken(name, file) from error
        return file

    def check_free(self, name: str) -> None:
        """Raises UsageError if `add` could not use this name."""
        if self._own(name).exists():
            raise _taken(name, self._own(name))

    def remove(self, name: str) -> None:
        """Delete one of Sawyer's own, and forget that it was selected. Raises UsageError for any other."""
        owner, file = self.locate(name)
        if owner != SAWYER:
            raise UsageError(f"context {name!r} belongs to the nats CLI: {file}", hint=f"nats context rm {name}")
        if self.selected() == name:
            self.select("")
        file.unlink()

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
        durable.replace(self._selected, f"{name}\n".encode())

    def _own(self, name: str) -> Path:
        return self._places[0][1] / f"{_checked(name)}.json"


def _taken(name: str, file: Path) -> UsageError:
    hint = f"Choose another name, or: sawyer context rm {name}"
    return UsageError(f"context {name!r} is there already: {file}", hint=hint)


def _nats_cli_folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "nats" / "context"


def _fits(name: str) -> bool:
    """Whether it is a plain file name, and may stand in context.txt."""
    return 0 < len(name) <= NAME_LIMIT and name[0] not in ".-" and not re.search(r"[\s/\\\x00-\x1f\x7f]", name)


def _checked(name: str) -> str:
    if not _fits(name):
        raise UsageError(f"{name!r} cannot name a context", hint="Use letters, digits, - and _.")
    return name


def _parse(name: str, file: Path, owner: str) -> Context:
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"at line {error.lineno}, column {error.colno}"
        raise UsageError(f"{file} is not a context: {error.msg} ({where})", hint="Mend it, or add it anew.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read context {name}: {error}", hint="Mend it, or add it anew.") from error
    if not isinstance(held, dict):
        raise UsageError(f"{file} is not a context: it must be a JSON object", hint="Mend it, or add it anew.")
    texts = {each: _text(file, held, each) for each in (*_TEXTS, *_PATHS, *_NOT_HERE)}
    for each in _NOT_HERE:
        if texts[each]:
            raise UsageError(f"{file}: Sawyer cannot use {each}", hint=_PLAIN_HINT)
    if not isinstance(held.get("tls_first") or False, bool):
        raise UsageError(f"{file}: tls_first must be true or false")
    proof = next((each for each in _PROOFS if texts[each]), "")
    left_out = {"description", "password", *_PROOFS} - {proof, "password" if proof == "user" else proof}
    fields: dict[str, Any] = {each: text for each, text in texts.items() if text and each not in left_out}
    fields.update({each: _path(texts[each]) for each in _PATHS if each in fields})
    target = NatsTarget(**fields, tls_first=bool(held.get("tls_first")))
    return Context(name, file, owner, texts["description"], target)


_PLAIN_HINT: Final = "Add a context with url and creds (or nkey, user, token): sawyer context add NAME --nats URL"


def _text(file: Path, held: dict[str, Any], field: str) -> str:
    value = held.get(field) or ""
    if not isinstance(value, str):
        raise UsageError(f"{file}: {field} must be text")
    if field not in ("url", "description") and _ELSEWHERE.match(value):
        where = value.partition(":")[0]
        raise UsageError(f"{file}: Sawyer cannot look up {field} in {where}:", hint=_PLAIN_HINT)
    return value


def _path(text: str) -> Path:
    """As the nats CLI reads it: file://, ~ and $VARIABLES are understood."""
    return Path(os.path.expandvars(text.removeprefix("file://"))).expanduser()

"""Who decides: flag > SAWYER_* > config file > default. Every value knows where it came from."""

from __future__ import annotations

import getpass
import os
import platform
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

import platformdirs

from sawyer.contexts import DEFAULT_URL, Contexts, NatsTarget
from sawyer.errors import UsageError
from sawyer.home import Home
from sawyer.ids import is_slug

CONFIG_NAME: Final = "config.toml"
ENV_PREFIX: Final = "SAWYER_"
FLAG, VARIABLE, FILE, SELECTED, RUNNING, DEFAULT = range(6)
"""Ranks of sources: the lowest that has a value decides."""


@dataclass(frozen=True)
class Known:
    """A setting that there is. `check` raises ValueError with what to write instead."""

    name: str
    default: Callable[[], str]
    about: str
    check: Callable[[str], None] = lambda _: None

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()


@dataclass(frozen=True)
class Value:
    """One setting in force. `source` is for people: "--nats", "SAWYER_NATS", a file, "default"."""

    name: str
    text: str
    rank: int
    source: str


def _one_of(*words: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if text.lower() not in words:
            raise ValueError(f"Write {', '.join(words[:-1])} or {words[-1]}.")

    return check


def _slug(text: str) -> None:
    if text and not is_slug(text):
        raise ValueError("Names are lower-case letters, digits, - and _, at most 63 characters.")


def _threads(text: str) -> None:
    if not (text.isdecimal() and int(text) <= 4096):
        raise ValueError("Write a number of threads; 0 for all cores.")


def _user_name() -> str:
    """The user's name as a slug: the account that a person has by default."""
    try:
        return _as_slug(getpass.getuser()) or "me"
    except (KeyError, OSError):  # a user id without a name
        return "me"


def _machine_name() -> str:
    return _as_slug(platform.node().partition(".")[0]) or "node"


def _as_slug(text: str) -> str:
    """The nearest name that may stand in a subject, or ""."""
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:63]
    return name if is_slug(name) else ""


KNOWN: Final[tuple[Known, ...]] = (
    Known("home", lambda: str(Home.default().path), "keys, book, models"),
    Known("nats", lambda: DEFAULT_URL, "address of the NATS server"),
    Known("context", lambda: "", "NATS context: address and credentials by name"),
    Known("creds", lambda: "", "NATS credentials file"),
    Known("account", _user_name, "the account that pays", _slug),
    Known("model", lambda: "", "the model to ask; if empty, the network's only one", _slug),
    Known("node", _machine_name, "the name of the node on this machine", _slug),
    Known("host", _user_name, "who is paid for what the node does", _slug),
    Known("device", lambda: "auto", "where experts run", _one_of("cpu", "cuda", "auto")),
    Known("threads", lambda: "0", "compute threads, 0 for all cores", _threads),
    Known("ledger_durability", lambda: "full", "of the book: full, or normal (a power cut may lose the last commits)",
          _one_of("full", "normal")),
    Known("nats_server", lambda: "", "another nats-server than the bundled one"),
)  # fmt: skip


class Settings:
    """All settings of one command."""

    def __init__(self, values: Mapping[str, Value], config_file: Path) -> None:
        self.values = dict(values)
        self.config_file = config_file
        self.home = Home(Path(values["home"].text).expanduser().absolute())
        self.contexts = Contexts(config_file.parent)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **flags: str | Path | int | None) -> Settings:
        """`flags` by name of the setting; None and "" were not given. Raises UsageError naming the source of a value
        that makes no sense, and line and column of a config file that cannot be read."""
        environ = os.environ if environ is None else environ
        home = _pick(KNOWN[0], flags, environ, {}, Path())
        config_file = config_folder(home) / CONFIG_NAME
        written = read_config(config_file)
        values = {known.name: _pick(known, flags, environ, written, config_file) for known in KNOWN}
        return cls(values, config_file)

    def __getitem__(self, name: str) -> str:
        return self.values[name].text

    @property
    def durability(self) -> Literal["FULL", "NORMAL"]:
        return cast(Literal["FULL", "NORMAL"], self["ledger_durability"].upper())

    def where_nats(self) -> tuple[NatsTarget, str]:
        """The NATS server to use, and who decided. A context decides unless an address is given more directly; then, in
        this order: the address, the network that runs in this home, nats://127.0.0.1:4222."""
        nats, context = self.values["nats"], self._context()
        target, source = NatsTarget(), "default"
        if context is not None and context.rank <= nats.rank:
            target, source = self.contexts.read(context.text).target, f"context {context.text} ({context.source})"
            if context.rank == nats.rank:
                target = replace(target, url=nats.text)
        elif nats.rank < DEFAULT:
            target, source = NatsTarget(url=nats.text), nats.source
        elif (running := self.home.running()) is not None:
            target, source = NatsTarget(url=running.url), f"the network that runs in {self.home.path}"
        if self["creds"]:
            target = replace(target, creds=Path(self["creds"]).expanduser())
        return target, source

    def _context(self) -> Value | None:
        named = self.values["context"]
        if named.text:
            return named
        selected = self.contexts.selected()
        return Value("context", selected, SELECTED, str(self.contexts.selection_file)) if selected else None


def config_folder(home: Value) -> Path:
    """Beside the data of a home that was named; otherwise where the platform keeps a user's configuration."""
    if home.rank < DEFAULT:
        return Path(home.text).expanduser().absolute()
    return platformdirs.user_config_path("sawyer")


def read_config(file: Path) -> dict[str, str]:
    """The settings of a config file; none if it is not there. Raises UsageError naming line and column."""
    try:
        raw = file.read_text(encoding="utf-8")
        held: dict[str, Any] = tomllib.loads(raw)
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: {error}", hint='Settings are written as: name = "value"') from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error
    names = {known.name for known in KNOWN} - {"home"}
    for name, value in held.items():
        line = next((n for n, text in enumerate(raw.splitlines(), 1) if text.lstrip().startswith(name)), 1)
        if name not in names:
            raise UsageError(
                f"{file}: unknown setting {name!r} (at line {line}, column 1)",
                hint=f"There are: {', '.join(sorted(names))}.",
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UsageError(f"{file}: {name} must be text or a number (at line {line}, column 1)")
    return {name: str(value) for name, value in held.items()}


def _pick(
    known: Known,
    flags: Mapping[str, str | Path | int | None],
    environ: Mapping[str, str],
    written: Mapping[str, str],
    config_file: Path,
) -> Value:
    given = flags.get(known.name)
    candidates = (
        ("" if given is None else str(given), FLAG, f"--{known.name.replace('_', '-')}"),
        (environ.get(known.variable, ""), VARIABLE, known.variable),
        (written.get(known.name, ""), FILE, str(config_file)),
        (known.default(), DEFAULT, "default"),
    )
    text, rank, source = next((each for each in candidates if each[0]), candidates[-1])
    try:
        known.check(text)
    except ValueError as error:
        raise UsageError(f"{known.name} is {text!r} ({source})", hint=str(error)) from error
    return Value(known.name, text, rank, source)

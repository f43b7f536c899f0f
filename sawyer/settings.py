"""Who decides: flag > SAWYER_* > config file > default. Every value knows where it came from."""

from __future__ import annotations

import difflib
import getpass
import os
import platform
import re
import tomllib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, cast

import platformdirs

from sawyer.contexts import DEFAULT_URL, Contexts, NatsTarget, without_secret
from sawyer.errors import UsageError
from sawyer.home import Home
from sawyer.ids import is_slug

CONFIG_NAME: Final = "config.toml"
ENV_PREFIX: Final = "SAWYER_"
ENV_CONFIG: Final = "SAWYER_CONFIG"
"""Names the config file, wherever the home is."""
_UNITS: Final = {
    **{f"{letter}b": 1000**power for power, letter in enumerate(("", *"kmgt"))},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?((?:[kmgt]i?)?b)", re.IGNORECASE | re.ASCII)
FLAG, VARIABLE, FILE, SELECTED, RUNNING, DEFAULT = range(6)
"""Ranks of sources: the lowest that has a value decides."""


@dataclass(frozen=True)
class Known:
    """A setting that there is. `check` raises ValueError with what to write instead. `path`: it names a file or folder;
    ~ is understood, and in the config file it is relative to that. `flag`: of commands, where it is not the name."""

    name: str
    default: Callable[[], str]
    about: str
    check: Callable[[str], None] = lambda _: None
    path: bool = False
    flag: str = ""

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()


@dataclass(frozen=True)
class Value:
    """One setting in force. `source` is for people: "--nats", "SAWYER_NATS", a file and line, "default"."""

    name: str
    text: str
    rank: int
    source: str

    @property
    def shown(self) -> str:
        """The text without what may be a password in it."""
        return _shown(self.name, self.text)


def _one_of(*words: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if text.lower() not in words:
            raise ValueError(f"Write {', '.join(words[:-1])} or {words[-1]}.")

    return check


def _database(text: str) -> None:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("Write postgresql://USER@HOST/DATABASE; leave it out for a file in the home.")


def _shown(name: str, text: str) -> str:
    if name == "ledger_url":
        text = text.partition("?")[0]
    return without_secret(text) if name in ("nats", "ledger_url") else text


def _verifiers(text: str) -> None:
    if not (text.isdecimal() and int(text) <= 64):
        raise ValueError("Write a number of processes, 64 at most; 0 for none.")


def parse_size(text: str) -> int:
    """A number of bytes, written as 50GB, 1.5 TB or 64GiB. Raises ValueError with what to write instead."""
    found = _SIZE.fullmatch(text.strip())
    size_bytes = int(Decimal(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size_bytes <= 0:
        raise ValueError("Write a number and a unit, such as 50GB, 1.5TB or 64GiB.")
    return size_bytes


def _size(text: str) -> None:
    parse_size(text)


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
    Known("home", lambda: str(Home.default().path), "keys, book, models", path=True),
    Known("nats", lambda: DEFAULT_URL, "address of the NATS server"),
    Known("context", lambda: "", "NATS context: address and credentials by name"),
    Known("creds", lambda: "", "NATS credentials file", path=True),
    Known("account", _user_name, "the account that pays", _slug),
    Known("model", lambda: "", "the model to ask; if empty, the network's only one", _slug),
    Known("node", _machine_name, "the name of the node on this machine", _slug, flag="name"),
    Known("host", _user_name, "who is paid for what the node does", _slug),
    Known("device", lambda: "auto", "where experts run", _one_of("cpu", "cuda", "auto")),
    Known("threads", lambda: "0", "compute threads, 0 for all cores", _threads),
    Known("cache_limit", lambda: "100GB", "what pulled models may take of the disk, such as 50GB", _size),
    Known("ledger_url", lambda: "", "PostgreSQL database of the book; if empty, the book is a file in the home",
          _database),
    Known("ledger_verifiers", lambda: "0", "processes that verify signatures beside the bookkeeper; 0: a thread does",
          _verifiers),
    Known("ledger_durability", lambda: "full", "of the book: full, or normal (a power cut may lose the last commits)",
          _one_of("full", "normal")),
    Known("loop", lambda: "auto", "event loop of the long-running programs; auto: uvloop where it is installed",
          _one_of("auto", "asyncio", "uvloop")),
    Known("log_level", lambda: "warning", "of the long-running programs; info: also each request and entry",
          _one_of("info", "warning", "error")),
    Known("log_format", lambda: "text", "of their logs: text, or json (an object a line)", _one_of("text", "json")),
    Known("nats_server", lambda: "", "another nats-server than the bundled one", path=True),
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
        settings, problems = cls.examine(environ, **flags)
        if problems:
            raise problems[0]
        return settings

    @classmethod
    def examine(
        cls, environ: Mapping[str, str] | None = None, **flags: str | Path | int | None
    ) -> tuple[Settings, list[UsageError]]:
        """As `load`, but what makes no sense is left out, and told beside the settings that remain."""
        if unknown := flags.keys() - {known.name for known in KNOWN}:
            raise TypeError(f"there are no settings {sorted(unknown)}")
        environ = os.environ if environ is None else environ
        problems: list[UsageError] = []
        home = _pick(KNOWN[0], flags, environ, {}, problems)
        named = environ.get(ENV_CONFIG, "")
        config_file = Path(named).expanduser().absolute() if named else config_folder(home) / CONFIG_NAME
        if named and not config_file.is_file():
            problems.append(UsageError(f"{ENV_CONFIG} names {config_file}, and there is no such file"))
        try:
            written = read_config(config_file, names_home=bool(named) or home.rank == DEFAULT)
        except UsageError as error:
            problems.append(error)
            written = {}
        values = {"home": home if home.rank < DEFAULT else _pick(KNOWN[0], flags, environ, written, problems)}
        values |= {known.name: _pick(known, flags, environ, written, problems) for known in KNOWN[1:]}
        return cls(values, config_file), problems

    def told(self, **values: tuple[str, str]) -> Settings:
        """The same, with these said as directly as by a flag: by setting, the text and who said it."""
        other = copy(self)
        other.values = self.values | {name: Value(name, text, FLAG, who) for name, (text, who) in values.items()}
        return other

    def __getitem__(self, name: str) -> str:
        return self.values[name].text

    @property
    def book(self) -> Path | str:
        """Where the bookkeeper of this home keeps the book: a file, or the address of a database, which may hold a
        password."""
        return self["ledger_url"] or self.home.book

    @property
    def cache_limit_bytes(self) -> int:
        return parse_size(self["cache_limit"])

    @property
    def durability(self) -> Literal["FULL", "NORMAL"]:
        return cast(Literal["FULL", "NORMAL"], self["ledger_durability"].upper())

    def where_nats(self, role: str = "", name: str = "") -> tuple[NatsTarget, str]:
        """The NATS server to use, and who decided; where nothing says as whom, as this member, or without one as the
        operator, the account or the node of this home, if it has a certificate. Raises UsageError as `told_nats`."""
        target, source = self.told_nats()
        if target.proves:
            return target, source
        mine = [(role, name)] if role else [
            ("operator", "operator"), ("account", self["account"]), ("node", self["node"])
        ]  # fmt: skip
        files = [self.home.credentials(*each) for each in mine]
        others = [] if role else self.home.all_credentials()
        own = next((file for file in [*files, *others] if file.is_file()), None)
        return (target.with_creds(own), source) if own else (target, source)

    def told_nats(self) -> tuple[NatsTarget, str]:
        """The NATS server to use as flags, variables, files and the home say, and who decided. A context decides unless
        an address is given more directly; then, in this order: the address, the network that runs in this home, the
        address at which this home joined its network, nats://127.0.0.1:4222. Credentials of the setting `creds` go
        instead of those of a context that was not named more directly. Raises UsageError for a context that cannot be
        used."""
        nats, creds, context = self.values["nats"], self.values["creds"], self.context()
        target, source = NatsTarget(), "default"
        if context is not None and context.rank <= nats.rank:
            target, source = self._target_of(context), f"context {context.text} ({context.source})"
            if context.rank == nats.rank:
                target, source = replace(target, url=nats.text), f"{nats.source}, credentials of {source}"
            if creds.text and creds.rank > context.rank and target.proves:
                return target, source
        elif nats.rank < DEFAULT:
            target, source = NatsTarget(url=nats.text), nats.source
        elif (running := self.home.running()) is not None:
            target, source = NatsTarget(url=running.url), f"the network that runs in {self.home.path}"
        elif joined := self.home.joined_at():
            target, source = NatsTarget(url=joined), f"where {self.home.path} joined its network"
        if creds.text:
            target = target.with_creds(Path(creds.text).expanduser())
        return target, source

    def context(self) -> Value | None:
        """The context that is named, else the one that was selected, if any."""
        named = self.values["context"]
        if named.text:
            return named
        selected = self.contexts.selected()
        return Value("context", selected, SELECTED, str(self.contexts.selection_file)) if selected else None

    def _target_of(self, context: Value) -> NatsTarget:
        try:
            return self.contexts.read(context.text).target
        except UsageError as error:
            hint = "Select another, or none: sawyer context select -" if context.rank == SELECTED else error.hint
            raise UsageError(f"{error.message} ({context.source})", hint=hint) from error


def config_folder(home: Value) -> Path:
    """Beside the data of a home that was named; otherwise where the platform keeps a user's configuration."""
    if home.rank < DEFAULT:
        return Path(home.text).expanduser().absolute()
    return platformdirs.user_config_path("sawyer")


def read_config(file: Path, *, names_home: bool = False) -> dict[str, tuple[str, str]]:
    """What a config file says: by setting, the text and the place; nothing if it is not there. Raises UsageError naming
    line and column. `names_home`: it may name the home, since it was not found through one."""
    try:
        raw = file.read_bytes().decode("utf-8")
        held: dict[str, Any] = tomllib.loads(raw)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="Check whose it is (`ls -l`).") from error
    except UnicodeDecodeError as error:
        where = _position(error.object[: error.start].decode("utf-8"))
        raise UsageError(f"{file} is not text in UTF-8 ({where})", hint="Write it anew in UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", _position(raw.rstrip("\n")))
        raise UsageError(f"{file}: {reason}", hint='Settings are written as: name = "value"') from error
    names = {known.name for known in KNOWN} - (set() if names_home else {"home"})
    return {name: _written(file, raw, name, value, names) for name, value in held.items()}


def _written(file: Path, raw: str, name: str, value: object, names: set[str]) -> tuple[str, str]:
    found = re.search(rf"^[ \t\[]*[\"']?{re.escape(name)}[\"']?[ \t]*[=.\]]", raw, re.MULTILINE)
    start = found.start() + len(found.group()) - len(found.group().lstrip(" \t[")) if found else 0
    place = f"{file}, {_position(raw[:start]).removeprefix('at ')}"
    if name == "home" and name not in names:
        raise UsageError(
            f"home cannot be set here ({place})", hint="This file was found through --home or SAWYER_HOME."
        )
    if name not in names:
        meant = difflib.get_close_matches(name, names, n=1)
        did_you = f"Did you mean {meant[0]}? " if meant else ""
        raise UsageError(
            f"there is no setting {name!r} ({place})", hint=f"{did_you}There are: {', '.join(sorted(names))}."
        )
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{name} must be text or a whole number ({place})", hint=f'Write: {name} = "value"')
    known = next(each for each in KNOWN if each.name == name)
    text = str(value)
    return str(file.parent / Path(text).expanduser()) if known.path and text else text, place


def _position(before: str) -> str:
    """Where a text ends, counted as editors do."""
    return f"at line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _pick(
    known: Known,
    flags: Mapping[str, str | Path | int | None],
    environ: Mapping[str, str],
    written: Mapping[str, tuple[str, str]],
    problems: list[UsageError],
) -> Value:
    """The value of the most direct source whose value makes sense; what does not goes to `problems`."""
    given = flags.get(known.name)
    text, place = written.get(known.name, ("", ""))
    candidates = (
        ("" if given is None else str(given), FLAG, f"--{known.flag or known.name.replace('_', '-')}"),
        (environ.get(known.variable, ""), VARIABLE, known.variable),
        (text, FILE, place),
    )
    for text, rank, source in candidates:
        if not text:
            continue
        try:
            known.check(text)
        except ValueError as error:
            shown = _shown(known.name, text)
            problems.append(UsageError(f"{known.name} is {shown!r} ({source})", hint=str(error)))
        else:
            return Value(known.name, text, rank, source)
    return Value(known.name, known.default(), DEFAULT, "default")

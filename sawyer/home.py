"""A home: one participant's files on this machine. Owns their layout, the pin, and the lock; not their content."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TextIO

import platformdirs

from sawyer import durable
from sawyer.errors import Busy, UsageError, VerificationError

LOCK_ATTEMPTS: Final = 10
LOCK_PAUSE_S: Final = 0.01


@dataclass(frozen=True)
class Pin:
    """What a home trusts: its network, the key that the network's checkpoints must verify with, and the operator key
    that founds it."""

    network: str
    ledger_vkey: str
    operator: str


@dataclass(frozen=True)
class Running:
    """The network that a process runs in a home: that process, and where its NATS server listens."""

    pid: int
    url: str


@dataclass(frozen=True)
class Home:
    """One participant's files. `path` may not exist yet."""

    path: Path

    @classmethod
    def default(cls) -> Home:
        """The platform's data directory of this user."""
        return cls(platformdirs.user_data_path("sawyer"))

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
    def cosigned(self) -> Path:
        """The newest checkpoint that witnesses cosigned, with their lines: the bookkeeper keeps it."""
        return self.path / "cosigned.txt"

    def witness(self, node: str) -> Path:
        """The folder of what a node holds as a witness."""
        return self.path / "witness" / node

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def cache(self) -> Path:
        """Models that were pulled from the network, a folder each: all of it can be fetched again."""
        return self.path / "cache" / "models"

    @property
    def downloads(self) -> Path:
        """Checkpoints that were downloaded to be split, a folder each."""
        return self.path / "downloads"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def joined_file(self) -> Path:
        return self.path / "joined.txt"

    @property
    def running_file(self) -> Path:
        return self.path / "running.json"

    @property
    def keys(self) -> Path:
        """All seed files: each role has a folder, so that an account and a node of one name have two keys."""
        return self.path / "keys"

    @property
    def operator_key(self) -> Path:
        return self.keys / "operator.nk"

    @property
    def ledger_key(self) -> Path:
        """The ledger's first key, which the founding names: its successors are files of their own."""
        return self.keys / "ledger.nk"

    def ledger_successor(self, key: str) -> Path:
        """The seed file of a later key of the ledger."""
        return self.keys / "ledgers" / f"{key}.nk"

    def ledger_successors(self) -> list[Path]:
        """The seed files of all later keys of the ledger, in no order that means anything."""
        return sorted((self.keys / "ledgers").glob("*.nk"))

    def former_key(self, key: str) -> Path:
        """Where the seed of a key that was replaced is set aside: a book that is restored may still know it."""
        return self.keys / "former" / f"{key}.nk"

    def subject_key(self, name: str) -> Path:
        """The file of the key with which personal data of an account are sealed."""
        return self.keys / "subjects" / f"{name}.key"

    @property
    def successors(self) -> Path:
        """The signed statements that replaced the pinned keys, as far as this home was told and has checked them."""
        return self.path / "successors.ndjson"

    def account_key(self, name: str) -> Path:
        """The seed file of an account."""
        return self.keys / "accounts" / f"{name}.nk"

    def node_key(self, name: str) -> Path:
        """The seed file of a node."""
        return self.keys / "nodes" / f"{name}.nk"

    def router_key(self, name: str) -> Path:
        """The seed file of a router."""
        return self.keys / "routers" / f"{name}.nk"

    def credentials(self, role: str, name: str) -> Path:
        """The NATS credentials file of a member whose key is here: its certificate, and its key again."""
        return self.path / "credentials" / f"{role}-{name}.creds"

    def all_credentials(self) -> list[Path]:
        """Those of members, by role and name."""
        found = sorted((self.path / "credentials").glob("*.creds"))
        return [file for file in found if not file.name.startswith(("server-", "newcomer-"))]

    @property
    def is_authority(self) -> bool:
        """Whether the authority of its network is in this home."""
        return (self.path / "authority" / "operator.jwt").is_file()

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

    def create(self) -> None:
        """Make the folder, for this user alone. Raises UsageError if it cannot be made or written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"cannot make {self.path}: {error.strerror}", hint="Use another --home.") from error
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            whose = _owner(self.path)
            raise UsageError(
                f"cannot write in {self.path}{whose}", hint="Use a home of your own: --home DIR, or SAWYER_HOME."
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One network at a time in one home, whatever ends it. Raises Busy naming the process that runs there."""
        self.create()
        with _opened(self.lock) as file:
            if not _locked(file):
                raise Busy(
                    f"process {self.lock_holder() or '?'} runs a network in {self.path}",
                    hint="`sawyer status` shows it, `sawyer down` ends it; or use another --home.",
                )
            self.running_file.unlink(missing_ok=True)  # of a process that was killed
            with durable.naming(self.lock):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), str(os.getpid()).encode())
            try:
                yield
            finally:
                self.running_file.unlink(missing_ok=True)
                os.ftruncate(file.fileno(), 0)  # before the lock goes: who comes next is not taken for us

    def joined_at(self) -> str:
        """The NATS address at which this home joined its network; "" if it did not say."""
        try:
            return self.joined_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def write_joined(self, address: str) -> None:
        """Remember where the network is, for commands that are told nothing else. Raises OSError."""
        durable.replace(self.joined_file, f"{address}\n".encode())

    def announce(self, url: str) -> None:
        """Tell other commands on this home where its network is; only inside `alone`."""
        running = Running(os.getpid(), url)
        durable.replace(self.running_file, (json.dumps(asdict(running)) + "\n").encode())

    def lock_holder(self) -> int | None:
        """The process that is inside `alone`, if any. Who has just come in may not have written its number yet: until
        then the file is empty, or names a process that was killed, so this looks more than once."""
        pid = None
        for attempt in range(LOCK_ATTEMPTS):
            if not self._is_locked():
                return None
            pid = self._written_pid()
            if pid is not None and _is_alive(pid):
                return pid
            if attempt + 1 < LOCK_ATTEMPTS:
                time.sleep(LOCK_PAUSE_S)
        return pid  # of another container: we do not see its processes

    def _is_locked(self) -> bool:
        try:
            with self.lock.open(encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _written_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int(self.lock.read_text(encoding="ascii"))
        return None

    def running(self) -> Running | None:
        """The network that runs in this home now, once it listens."""
        pid = self.lock_holder()
        if pid is None:
            return None
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = Running(**json.loads(self.running_file.read_text(encoding="utf-8")))
            return found if found.pid == pid and isinstance(found.url, str) else None
        return None


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a+")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="Use another --home.") from error


def _locked(file: TextIO) -> bool:
    """Take the lock. Whoever looks at it (`lock_holder`) holds it for a moment, so this tries more than once."""
    for attempt in range(LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if attempt + 1 < LOCK_ATTEMPTS:
            time.sleep(LOCK_PAUSE_S)
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError, KeyError):
        return "" if path.stat().st_uid == os.getuid() else f", which belongs to {path.owner()}"
    return ""

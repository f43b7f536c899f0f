"""What `sawyer doctor` asks a network: NATS server, bookkeeper, routers, account. Each question has a bound in time."""

from __future__ import annotations

import stat
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sawyer.cli.checks import FAIL, OK, WARN, Check, run_all
from sawyer.clock import SystemClock
from sawyer.contexts import NatsTarget
from sawyer.errors import SawyerError, ServerUnreachable, UnknownAccount, UnreachableError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.connection import NatsBus
    from sawyer.schemas.messages import NetworkReply

ROUND_TRIPS: Final = 5
MAX_CLOCK_DIFFERENCE_MS: Final = 5 * 60 * 1000
"""An order is good for so long (client/aio.py): with clocks further apart every order is refused."""
GOOD_CLOCK_DIFFERENCE_MS: Final = 30_000


async def check_network(settings: Settings) -> list[Check]:
    """Stops at the first part that does not answer: what stands behind it cannot be asked."""
    try:
        from sawyer.bus.connection import NatsBus

        target, source = settings.where_nats()
    except (SawyerError, OSError, ImportError) as error:
        return [Check.of("nats", error)]
    checks = run_all([("credentials", partial(_check_credential, target))])
    try:
        bus = await NatsBus.connect(target, name="doctor")
    except ServerUnreachable as error:
        return [*checks, _no_server(error, source)]
    except (SawyerError, OSError) as error:
        return [*checks, Check.of("nats", error)]
    try:
        checks.append(await _guarded("nats", _check_server, bus, target, source))
        network, found = await _ask_network(bus, settings)
        checks += found
        if network is not None:
            checks.append(await _guarded("routers", _check_routers, bus, network))
            checks.append(await _guarded("account", _check_account, bus, settings))
        return checks
    finally:
        await bus.close()


async def _guarded(name: str, check: Callable[..., Awaitable[Check]], *arguments: object) -> Check:
    try:
        return await check(*arguments)
    except Exception as error:  # noqa: BLE001  whatever it is, it was found
        return Check.of(name, error)


def _no_server(error: ServerUnreachable, source: str) -> Check:
    """Nobody chose the default address: that nothing is there is no failure of anything."""
    if source == "default":
        todo = "Start a network here: sawyer up. Or name the server of one: --nats URL, --context NAME."
        return Check(WARN, "nats", f"{error.message}; it is the default, nothing names another", todo)
    return Check(FAIL, "nats", f"{error.message}; {source} says to use it", error.hint)


def _check_credential(target: NatsTarget) -> Check:
    """Files with secrets that others may read; whether they hold what they should is seen when connecting."""
    for file in (target.creds, target.nkey, target.key):
        if file is not None and file.exists() and _others_may_read(file):
            mode = stat.S_IMODE(file.stat().st_mode)
            return Check(WARN, "credentials", f"{file} has mode {mode:04o}: others may read it", f"chmod 600 {file}")
    return Check(OK, "credentials", target.credential)


def _others_may_read(file: Path) -> bool:
    return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)


async def _check_server(bus: NatsBus, target: NatsTarget, source: str) -> Check:
    from sawyer.bus.protocol import MAX_PAYLOAD_BYTES

    took_ms = []
    for _ in range(ROUND_TRIPS):
        start_s = time.perf_counter()
        await bus.flush()
        took_ms.append((time.perf_counter() - start_s) * 500)  # flush goes there and back twice
    server = bus.server
    encrypted, jetstream = "TLS" if server.encrypted else "no TLS", "on" if server.jetstream else "off"
    found = (
        f"{target.address} ({source}): nats-server {server.version}, round trip {min(took_ms):.1f} ms, {encrypted}, "
        f"messages to {server.max_payload_bytes / 2**20:.0f} MiB, JetStream {jetstream}"
    )
    if server.max_payload_bytes < MAX_PAYLOAD_BYTES:
        found += f" ({server.max_payload_bytes} bytes; Sawyer sends to {MAX_PAYLOAD_BYTES})"
        return Check(FAIL, "nats", found, "Run the server with max_payload: 8MB.")
    return Check(OK, "nats", found)


async def _ask_network(bus: NatsBus, settings: Settings) -> tuple[NetworkReply | None, list[Check]]:
    from sawyer.bus.calls import ask
    from sawyer.cli.session import checked_network
    from sawyer.schemas.messages import NetworkReply

    clock, start_s = SystemClock(), time.perf_counter()
    before_ms = clock.now_ms()
    try:
        network = await ask(bus, "network", NetworkReply)
        after_ms, took_ms = clock.now_ms(), (time.perf_counter() - start_s) * 1000
    except UnreachableError:
        todo = "Start the bookkeeper (sawyer up, sawyer bookkeeper), or connect to the server of a network."
        return None, [Check(FAIL, "bookkeeper", "none answers: there is no network on this NATS server", todo)]
    except SawyerError as error:
        return None, [Check.of("bookkeeper", error)]
    difference = _check_clock(network.now_ms - (before_ms + after_ms) // 2)
    try:
        await checked_network(bus, settings.home)
    except SawyerError as error:
        return network, [Check.of("bookkeeper", error), difference]
    pinned = "the network of this home" if settings.home.pin() is not None else "this home is pinned to none yet"
    found = f"{network.network} ({network.mode}), {pinned}: {network.size} entries, answers in {took_ms:.1f} ms"
    return network, [Check(OK, "bookkeeper", found), difference]


def _check_clock(ahead_ms: int) -> Check:
    found = f"the bookkeeper's is {abs(ahead_ms) / 1000:.1f} s {'ahead' if ahead_ms > 0 else 'behind'}"
    if abs(ahead_ms) < GOOD_CLOCK_DIFFERENCE_MS:
        return Check(OK, "clock", found)
    state = WARN if abs(ahead_ms) < MAX_CLOCK_DIFFERENCE_MS else FAIL
    return Check(state, "clock", found, "Set this machine's clock (timedatectl set-ntp true), or tell the operator.")


async def _check_routers(bus: NatsBus, network: NetworkReply) -> Check:
    """Whether every published model has a router, and all of its experts a node."""
    from sawyer.bus.calls import survey
    from sawyer.schemas.messages import RouterReply

    todo = "Start one: sawyer route MODEL, sawyer serve MODEL. `sawyer status` shows more."
    if not network.models:
        return Check(
            WARN,
            "routers",
            "the network publishes no model yet",
            "Its operator publishes models; `sawyer up` publishes the demo model.",
        )
    try:
        routers = await survey(bus, "router", RouterReply)
    except UnreachableError:
        return Check(FAIL, "routers", "none answers: nobody can generate", todo)
    told, lacking = [], False
    for model in sorted({each.model for each in network.models}):
        mine = [each for each in routers if each.model == model]
        missing = min((each.missing for each in mine), default=0)
        lacking = lacking or not mine or missing > 0
        nodes = len({node.node for each in mine for node in each.nodes if not node.gone})
        served = "every expert is served" if not missing else f"{missing} of {mine[0].experts} experts are not served"
        counted = f"{_count(len(mine), 'router')}, {_count(nodes, 'node')}"
        told.append(f"{model}: {counted}, {served}" if mine else f"{model}: no router")
    return Check(FAIL, "routers", "; ".join(told), todo) if lacking else Check(OK, "routers", "; ".join(told))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


async def _check_account(bus: NatsBus, settings: Settings) -> Check:
    from sawyer.bus.calls import ask
    from sawyer.schemas.messages import BalanceQuery, BalanceReply

    name = settings["account"]
    try:
        balance = await ask(bus, "balance", BalanceReply, BalanceQuery(account=name))
    except UnknownAccount:
        return Check(WARN, "account", f"{name} was never opened", f"To ask for text: sawyer account open {name}")
    found = f"{name}: {balance.available} tokens to spend, {balance.held} held"
    if not settings.home.account_key(name).is_file():
        todo = "Use the home in which it was opened (--home), or another account (--account)."
        return Check(WARN, "account", f"{found}, and its key is not in this home", todo)
    if balance.available == 0:
        return Check(WARN, "account", found, "Top it up; in a test network its operator grants: sawyer account grant.")
    return Check(OK, "account", found)

"""What `sawyer serve` would host on this machine, and why: looks at machine and network, chooses, and shows it. Changes
nothing; the choice itself is sawyer.node.choosing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sawyer.cli import output
from sawyer.economy.allocation import HOST_SHARE_PERCENT
from sawyer.economy.earnings import BILLION, Estimate, estimate, monthly, share_of_rows
from sawyer.ids import ModelId, NodeId
from sawyer.model.layout import expert_file
from sawyer.money import UUSD_PER_CENT, format_usd
from sawyer.node.choosing import (
    FREE_PERCENT,
    NOBODY,
    Choice,
    Pair,
    Served,
    check_room,
    choose,
    parse_memory,
    size_text,
)
from sawyer.node.hosting import pairs, written

if TYPE_CHECKING:
    from sawyer.bus.protocol import Bus
    from sawyer.engine.session import Device
    from sawyer.model.artifacts import Artifacts
    from sawyer.node.capability import Speed
    from sawyer.node.memory import Memory
    from sawyer.node.survey import Survey
    from sawyer.schemas.messages import HostedLayer, NetworkReply

MANY: Final = 2
"""Hosts of an expert from which on it does not matter to the table how many they are."""


@dataclass(frozen=True)
class Machine:
    """Where experts would run, how fast one is, the memory there (of the GPU if they run on one) in bytes, what of it
    may be used, and why so much."""

    provider: str
    device: str
    threads: int
    speed: Speed
    total_bytes: int
    free_bytes: int
    budget_bytes: int
    budget_from: str


@dataclass(frozen=True)
class Plan:
    """`before`: who serves each expert now. `bring_bytes` in `bring_files` files are not here yet. `earnings`: None
    where the network has no price for the model."""

    network: NetworkReply
    artifacts: Artifacts
    machine: Machine
    choice: Choice
    host: str
    before: Mapping[Pair, Served]
    routers: int
    bring_files: int
    bring_bytes: int
    earnings: Estimate | None

    @property
    def chosen(self) -> list[Pair]:
        return pairs(self.choice.layers)

    @property
    def after(self) -> dict[Pair, Served]:
        """Who serves each expert once this node does."""
        added = dict(self.before)
        for pair in self.chosen:
            there = added.get(pair, NOBODY)
            added[pair] = Served(there.hosts | {self.host}, there.nodes + 1, there.first)
        return added


async def make_plan(
    bus: Bus,
    network: NetworkReply,
    artifacts: Artifacts,
    *,
    node: NodeId,
    host: str,
    device: Device,
    threads: int,
    max_memory: str = "",
    layers: tuple[HostedLayer, ...] | None = None,
) -> Plan:
    """With `layers`, those are the choice. Raises UnknownModel or WrongManifest unless the network publishes these
    weights, MissingExtra if their format cannot run here, UsageError if no expert fits."""
    from sawyer.engine.experts import FAST
    from sawyer.engine.footprint import expert_footprint
    from sawyer.node.survey import look

    manifest, layout = artifacts.manifest, artifacts.layout
    network.check_published(manifest.model, artifacts.digest)
    machine = await asyncio.to_thread(measure, artifacts, device, threads, max_memory)
    seen = await look(bus, network, ModelId(manifest.model), artifacts.digest, me=node)
    before, one = seen.served(layout, artifacts.digest), expert_footprint(layout, manifest.format, accuracy_level=FAST)
    if layers is None:
        choice = choose(layout, before, one, machine.budget_bytes, host=host, seed=node)
    else:
        count = len(pairs(layers))
        choice = Choice(layers, count, one.room_for(min(count, one.fit(machine.budget_bytes))))
    missing = _missing_bytes(artifacts, pairs(choice.layers))
    earnings = _estimate(network, artifacts, seen, before, choice, machine)
    return Plan(
        network, artifacts, machine, choice, host, before, len(seen.routers), len(missing), sum(missing), earnings
    )


def measure(artifacts: Artifacts, device: Device, threads: int, max_memory: str) -> Machine:
    """This machine, by running one expert of random weights. Blocking. Raises MissingExtra, and UsageError if there is
    no room for one expert; on the CPU before it is tried."""
    from sawyer.engine.experts import FAST
    from sawyer.engine.footprint import expert_footprint
    from sawyer.engine.probe import ExpertProbe
    from sawyer.engine.session import CUDA, device_memory_bytes, device_name, may_run_cuda
    from sawyer.node.capability import speed_of
    from sawyer.node.memory import Memory, read_memory

    layout, format, memory = artifacts.layout, artifacts.manifest.format, read_memory()
    budget, why = budget_of(memory, max_memory, on_cpu=True)
    if format != "f16" and (device == "cpu" or not may_run_cuda()):
        one = expert_footprint(layout, format, accuracy_level=FAST)
        check_room(one, min(budget, memory.free_bytes))
    probe = ExpertProbe(layout, format, device=device)
    if probe.provider == CUDA:
        memory = Memory(*(device_memory_bytes() or (memory.total_bytes, memory.free_bytes)))
        budget, why = budget_of(memory, max_memory, on_cpu=False)
    return Machine(
        probe.provider,
        device_name(probe.provider),
        threads,
        speed_of(probe.run, probe.hidden),
        memory.total_bytes,
        memory.free_bytes,
        budget,
        why,
    )


def budget_of(memory: Memory, max_memory: str, *, on_cpu: bool) -> tuple[int, str]:
    """How many bytes experts may take of this memory, and why: what was asked for, else FREE_PERCENT of what is free
    and, on the CPU, nothing of what has to stay free while the node runs. Raises UsageError."""
    from sawyer.node.pressure import floor_bytes

    if max_memory:
        return parse_memory(max_memory, memory.total_bytes), f"--max-memory {max_memory}"
    part, floor = memory.free_bytes * FREE_PERCENT // 100, floor_bytes(memory.total_bytes)
    if on_cpu and memory.free_bytes - floor < part:
        return max(0, memory.free_bytes - floor), f"what is free less {size_text(floor)} for others"
    return part, f"{FREE_PERCENT} % of what is free"


def _missing_bytes(artifacts: Artifacts, chosen: list[Pair]) -> list[int]:
    """The sizes of the chosen experts' files that are not here."""
    sizes = {file.path: file.size_bytes for file in artifacts.manifest.files}
    paths = [expert_file(layer, expert, artifacts.manifest.format) for layer, expert in chosen]
    return [sizes[path] for path in paths if not (artifacts.folder / path).is_file()]


def _estimate(
    network: NetworkReply,
    artifacts: Artifacts,
    seen: Survey,
    before: Mapping[Pair, Served],
    choice: Choice,
    machine: Machine,
) -> Estimate | None:
    manifest, layout = artifacts.manifest, artifacts.layout
    sheet = network.pricing
    prices = () if sheet is None else sheet.prices
    price = next((each for each in prices if (each.model, each.format) == (manifest.model, manifest.format)), None)
    if price is None:
        return None
    others = [before.get(pair, NOBODY).nodes for pair in pairs(choice.layers)]
    return estimate(
        tokens_per_month=sum(monthly(each.recent_tokens, each.recent_ms) for each in seen.routers),
        share_ppb=share_of_rows(others, len(layout.moe_layers) * layout.experts),
        rows_per_second=machine.speed.rows_one_by_one,
        rows_per_token=layout.rows_per_token,
        price_milli=price.price_milli,
        quant_milli=price.quant_milli,
    )


# --- how it looks -----------------------------------------------------------------------------------------------------


def warn(plan: Plan) -> None:
    """On stderr: what a host should know before it begins."""
    machine = plan.machine
    if machine.budget_bytes > machine.total_bytes:
        output.say(
            f"warning: {machine.budget_from} is more than the {size_text(machine.total_bytes)} that this machine has"
        )
    elif machine.budget_bytes > machine.free_bytes:
        output.say(
            f"note: {machine.budget_from} is more than the {size_text(machine.free_bytes)} that are free now: experts "
            "that do not fit are loaded when they are asked for"
        )


def announce(plan: Plan) -> None:
    """On stderr, in two lines: the choice, and why."""
    layout, machine, choice = plan.artifacts.layout, plan.machine, plan.choice
    every = len(layout.moe_layers) * layout.experts
    new = sum(1 for pair in plan.chosen if not plan.before.get(pair, NOBODY).nodes)
    output.say(
        f"chose {choice.experts} of {every} experts ({size_text(choice.memory_bytes)} of the "
        f"{size_text(machine.budget_bytes)} that may be used: {machine.budget_from}): "
        f"{_shortened(written(plan.chosen, layout))}"
    )
    left = every - sum(1 for served in plan.after.values() if served.nodes)
    output.say(
        f"{new} of them nobody served; {choice.experts - new} as another replica; {left} are still served by nobody"
    )


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: text.rfind(",", 0, most) + 1] + "..."


def show(plan: Plan) -> None:
    """On stdout, as two short tables."""
    output.table(("", "on this machine"), _rows(plan))
    output.heading("Experts by how many hosts serve them")
    before, after = _by_hosts(plan, plan.before), _by_hosts(plan, plan.after)
    names = ["nobody", "one host", f"{MANY} hosts or more"]
    rows = list(zip(names, before, after, strict=True))
    output.table(("", "now", "with this node"), rows, numeric=("now", "with this node"))
    output.line()
    for line in _money(plan):
        output.line(line)


def _rows(plan: Plan) -> list[tuple[str, str]]:
    machine, manifest, layout = plan.machine, plan.artifacts.manifest, plan.artifacts.layout
    every, where = len(layout.moe_layers) * layout.experts, machine.provider.removesuffix("ExecutionProvider")
    speed = machine.speed
    brought = "nothing to bring: all of it is here"
    if plan.bring_files:
        brought = f"{size_text(plan.bring_bytes)} in {plan.bring_files} file{'s' * (plan.bring_files != 1)} to bring"
    return [
        ("network", f"{plan.network.network} ({plan.network.mode})"),
        ("model", f"{manifest.model} in {manifest.format}: {every} experts in {len(layout.moe_layers)} layers"),
        ("runs on", f"{where}: {machine.device}, {machine.threads} thread{'s' * (machine.threads != 1)}"),
        ("speed", f"{speed.row_us:,} us for one row; {speed.rows_per_second:,} rows a second when there are many"),
        (
            "memory",
            f"{size_text(plan.choice.memory_bytes)} of the {size_text(machine.budget_bytes)} that may be used "
            f"({machine.budget_from}; {size_text(machine.free_bytes)} of {size_text(machine.total_bytes)} are free)",
        ),
        ("disk", brought),
        ("hosts", f"{plan.choice.experts} of {every} experts: --experts {written(plan.chosen, layout)}"),
    ]


def _by_hosts(plan: Plan, served: Mapping[Pair, Served]) -> list[int]:
    """How many experts have no host, one, MANY or more."""
    layout = plan.artifacts.layout
    counts = [0] * (MANY + 1)
    for layer in layout.moe_layers:
        for expert in range(layout.experts):
            counts[min(MANY, len(served.get((layer, expert), NOBODY).hosts))] += 1
    return counts


def _money(plan: Plan) -> list[str]:
    earned = plan.earnings
    if earned is None:
        return ["Earnings: the network has no price for this model yet."]
    told = []
    if plan.network.mode == "test":
        told.append("Earnings: test mode, no money moves. At its prices it would be, as an estimate and no promise:")
    else:
        told.append("Earnings, an estimate and no promise:")
    share = f"{earned.share_ppb * 100 / BILLION:.3g} %"
    if plan.routers and earned.tokens_per_month:
        told.append(
            f"  {_cents(earned.today_uusd)} a month at the traffic of now ({earned.tokens_per_month:,} tokens a "
            f"month; {share} of the rows would come here)"
        )
    else:
        told.append(f"  $0.00 a month at the traffic of now: there is none ({share} of the rows would come here)")
    told.append(
        f"  {_cents(earned.most_uusd)} a month if paid demand kept this machine busy day and night, a row at a time"
    )
    told.append(
        f"  Assumed: all tokens are paid for, {HOST_SHARE_PERCENT} % goes to hosts, the nodes of an expert share its "
        "rows equally"
    )
    told.append("  (routers prefer the first choice: a replica may get less), and every receipt counts in full.")
    return told


def _cents(amount_uusd: int) -> str:
    """Whole cents, rounded down; what is less than a cent is told exactly."""
    return format_usd(amount_uusd - amount_uusd % UUSD_PER_CENT if amount_uusd >= UUSD_PER_CENT else amount_uusd)


def as_document(plan: Plan) -> dict[str, Any]:
    """For --json; money in micro-USD a month, sizes in bytes."""
    machine, manifest, layout, earned = plan.machine, plan.artifacts.manifest, plan.artifacts.layout, plan.earnings
    return {
        "network": plan.network.network,
        "mode": plan.network.mode,
        "model": manifest.model,
        "format": manifest.format,
        "manifest": plan.artifacts.digest,
        "machine": {
            "provider": machine.provider,
            "device": machine.device,
            "threads": machine.threads,
            "row_us": machine.speed.row_us,
            "rows_per_second": machine.speed.rows_per_second,
            "memory_total_bytes": machine.total_bytes,
            "memory_free_bytes": machine.free_bytes,
        },
        "max_memory_bytes": machine.budget_bytes,
        "max_memory_from": machine.budget_from,
        "memory_bytes": plan.choice.memory_bytes,
        "bring_files": plan.bring_files,
        "bring_bytes": plan.bring_bytes,
        "experts": written(plan.chosen, layout),
        "expert_count": plan.choice.experts,
        "expert_count_of_model": len(layout.moe_layers) * layout.experts,
        "layers": [each.model_dump(mode="json") for each in plan.choice.layers],
        "experts_by_hosts": {
            "now": dict(zip(("0", "1", "2+"), _by_hosts(plan, plan.before), strict=True)),
            "with_this_node": dict(zip(("0", "1", "2+"), _by_hosts(plan, plan.after), strict=True)),
        },
        "earnings": None
        if earned is None
        else {
            "today_uusd": earned.today_uusd,
            "most_uusd": earned.most_uusd,
            "share_of_rows_ppb": earned.share_ppb,
            "tokens_per_month_now": earned.tokens_per_month,
            "money_moves": plan.network.mode == "live",
        },
    }

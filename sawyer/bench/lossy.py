"""A lossy link: a network namespace whose only way out is a program that holds every packet back, and loses some. Needs
root, Linux, and `ip`, `nsenter` and `unshare`; no kernel module (many machines lack netem). TCP over it is real: what
is lost is sent again, and the sender slows down.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sawyer import leash
from sawyer.bench.delay import DelayProxy, Link
from sawyer.errors import UsageError

READY: Final = "ready: "
MODULE: Final = "sawyer.bench.lossy"
TUN: Final = Path("/dev/net/tun")
PACKET_BYTES: Final = 65_536
PACKETS_LIMIT: Final = 16_384
"""On their way in one direction; beyond these packets are lost, as in a full queue."""
_SET_IFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x1001
_TOOLS: Final = ("ip", "nsenter", "unshare", "sleep")
_NEW_NET: Final = 0x40000000

ResultT = TypeVar("ResultT")


def check_possible() -> None:
    """Raises UsageError where such a link cannot be made."""
    if why_not():
        hint = "Leave --loss out: the delay needs no root."
        raise UsageError(f"packets cannot be lost on purpose: {why_not()}", hint=hint)


def why_not() -> str:
    """What stands in the way of such a link; "" if nothing does."""
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} is not here"
    possible = sys.platform == "linux" and os.geteuid() == 0 and TUN.exists()
    return "" if possible else "this is not root, or not Linux with /dev/net/tun"


def inside(holder: int) -> tuple[str, ...]:
    """What stands before a command that is to run behind the link whose READY line named this process."""
    return (_tool("nsenter"), f"--net=/proc/{holder}/ns/net")


def call_inside(holder: int, function: Callable[[], ResultT]) -> ResultT:
    """What this returns in a thread behind the link: its sockets are there, and stay there. Blocks."""
    found: Future[ResultT] = Future()

    def run() -> None:
        try:
            with Path(f"/proc/{holder}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NET):
                    raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
            found.set_result(function())
        except BaseException as error:  # noqa: BLE001  (raised where it is waited for)
            found.set_exception(error)

    thread = threading.Thread(target=run, name="behind the link")  # not of a pool: it never comes back
    thread.start()
    thread.join()
    return found.result()


class Losses:
    """Which packets are lost: so large a share, the same for the same seed. Pure."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._random = random.Random(seed)  # noqa: S311  (nobody is to be surprised by it)

    def next(self) -> bool:
        """Whether the next packet is."""
        return self._random.random() < self._share


@dataclass
class Way:
    """One direction: packets read from one device are written to the other, `delay_s` later."""

    source: int
    target: int
    delay_s: float
    losses: Losses
    on_the_way: int = 0

    def start(self) -> None:
        """On the running loop, for good."""
        asyncio.get_running_loop().add_reader(self.source, self._take)

    def _take(self) -> None:
        packet = os.read(self.source, PACKET_BYTES)
        if self.losses.next() or self.on_the_way >= PACKETS_LIMIT:
            return
        self.on_the_way += 1
        asyncio.get_running_loop().call_later(self.delay_s, self._give, packet)

    def _give(self, packet: bytes) -> None:
        self.on_the_way -= 1
        try:
            os.write(self.target, packet)
        except OSError:  # its other end is down: lost
            return


def _device(name: str) -> int:
    """A new network device whose packets are read and written here."""
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _SET_IFF, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
    return file


def _tool(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, "check_possible was asked"
    return found


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _namespace() -> subprocess.Popen[bytes]:
    """A process that holds a new network namespace open, and ends with us. Blocks for a moment."""
    holder = subprocess.Popen(leash.argv([_tool("unshare"), "-n", _tool("sleep"), "infinity"]))
    mine = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{holder.pid}/ns/net").readlink() == mine:
        time.sleep(0.01)  # no event tells of it
    return holder


async def main(port: str, delay_ms: str, loss: str, bits_per_s: str, seed: str) -> None:
    """The link as a program, until SIGTERM: to whatever listens on this port of loopback. Prints where that is found
    from behind the link, and the process that holds the namespace."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    here, there = f"swr{os.getpid()}", f"sws{os.getpid()}"
    net = f"10.213.{os.getpid() % 256}"
    near, far, ip = _device(here), _device(there), _tool("ip")
    holder = _namespace()
    try:
        _run(ip, "addr", "add", f"{net}.1/30", "dev", here)
        _run(ip, "link", "set", here, "up")
        _run(ip, "link", "set", there, "netns", str(holder.pid))
        for command in (("addr", "add", f"{net}.2/30", "dev", there), ("link", "set", there, "up"),
                        ("link", "set", "lo", "up")):  # fmt: skip
            _run(*inside(holder.pid), ip, *command)
        ways = [(near, far), (far, near)]
        for number, (source, target) in enumerate(ways):
            Way(source, target, float(delay_ms) / 1000, Losses(float(loss), int(seed) + number)).start()
        link = Link(0.0, float(bits_per_s) / 8)
        async with DelayProxy("127.0.0.1", int(port), link, link, listen=f"{net}.1") as proxy:
            sys.stdout.write(f"{READY}{net}.1:{proxy.port} {holder.pid}\n")
            sys.stdout.flush()
            await stopped.wait()
    finally:
        holder.kill()
        holder.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

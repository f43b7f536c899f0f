"""`sawyer metrics`: the counters of a network for Prometheus, printed once or served over HTTP."""

from __future__ import annotations

import asyncio
import errno
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.interrupts import interruptible
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, NatsOption
from sawyer.errors import SawyerError, UsageError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.protocol import Bus

READ_PATIENCE_S: Final = 5.0
MAX_HEAD_BYTES: Final = 8 * 1024
MAX_HEADER_LINES: Final = 100


def metrics(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Serve GET /metrics there until Ctrl-C.")
    ] = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Print all counters of routers, nodes and experts in Prometheus' text format. Exit code 4 if no router answers."""
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    if not listen:
        sys.stdout.write(asyncio.run(_once(settings)))
        sys.stdout.flush()
        return
    asyncio.run(interruptible(_serve(settings, listen)))


async def page(bus: Bus) -> str:
    """What the network says now. Raises NobodyServes or NoAnswer if no router does."""
    from sawyer.bus.calls import survey
    from sawyer.cli.metrics_text import exposition
    from sawyer.schemas.messages import RouterReply
    from sawyer.schemas.metrics import Metrics

    routers, told = await asyncio.gather(survey(bus, "router", RouterReply), survey(bus, "metrics", Metrics))
    return exposition(routers, told)


async def _once(settings: Settings) -> str:
    from sawyer.cli.session import reached

    async with reached(settings, "metrics") as (bus, _):
        return await page(bus)


async def _serve(settings: Settings, listen: str) -> None:
    from sawyer.cli.session import reached
    from sawyer.cli.up_run import Listen

    address = Listen.parse(listen, "--listen")
    async with reached(settings, "metrics") as (bus, _):
        server = await start_server(bus, address.host, address.port)
        output.say(f"serving http://{address}/metrics; Ctrl-C ends it")
        async with server:
            await server.serve_forever()


async def start_server(bus: Bus, host: str, port: int) -> asyncio.Server:
    """Serves GET /metrics; `host` may be empty for every interface. Raises UsageError if it cannot listen there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(READ_PATIENCE_S):
                asked = await _read_head(reader)
            writer.write(await _answer(bus, asked))
            await writer.drain()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            pass  # who asked is gone, too slow, or speaks no HTTP
        finally:
            writer.close()

    try:
        return await asyncio.start_server(serve, host or None, port, limit=MAX_HEAD_BYTES)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"is no address to listen on: {error.strerror}"
        raise UsageError(f"{host}:{port} {why}", hint="Choose another: sawyer metrics --listen HOST:PORT") from error


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path; the header is read to its end. Raises ValueError if it is no HTTP."""
    method, target, _ = (await reader.readuntil(b"\n")).decode("latin-1").split(None, 2)
    for _ in range(MAX_HEADER_LINES):
        if not (await reader.readuntil(b"\n")).strip():
            return method, target.partition("?")[0]
    raise ValueError("too many headers")


async def _answer(bus: Bus, asked: tuple[str, str]) -> bytes:
    from sawyer.cli.metrics_text import CONTENT_TYPE

    method, path = asked
    if path != "/metrics":
        return _response("404 Not Found", "text/plain; charset=utf-8", "Only /metrics is here.\n", method)
    if method not in ("GET", "HEAD"):
        return _response("405 Method Not Allowed", "text/plain; charset=utf-8", "Only GET.\n", method)
    try:
        return _response("200 OK", CONTENT_TYPE, await page(bus), method)
    except SawyerError as error:
        return _response("503 Service Unavailable", "text/plain; charset=utf-8", f"{error.message}\n", method)


def _response(status: str, kind: str, text: str, method: str) -> bytes:
    body = text.encode()
    allow = "Allow: GET, HEAD\r\n" if status.startswith("405") else ""
    fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{allow}Connection: close"
    head = f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n"
    return head.encode("latin-1") + (b"" if method == "HEAD" else body)

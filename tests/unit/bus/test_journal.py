"""The copy's stream on a real nats-server: rows go in by number, once, and come out without a gap or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sawyer.bus import journal as journals
from sawyer.bus.connection import NatsBus
from sawyer.bus.journal import Journal, Record
from sawyer.bus.server import LocalServer
from sawyer.errors import CopyDiffers, NoCopy, SawyerError, UsageError
from sawyer.ids import NetworkId
from sawyer.schemas import subjects

NETWORK = NetworkId("sawyer-net/3f9a1c22")


def record(number: int, text: str = "", size: int = 20) -> Record:
    word = "checkpoint" if number % 3 == 0 else "entry"
    data = (text or f"row {number} ").encode().ljust(size, b"\0")
    return Record(f"id-{number}{text}", word, f"request:{number}", number, f"kind.{number}.v1", data)


def records(first: int, last: int) -> list[Record]:
    return [record(number) for number in range(first, last + 1)]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[NatsBus]:
    with LocalServer.start(tmp_path / "nats") as server:
        made = await NatsBus.connect(server.url, name="test")
        yield made
        await made.close()


@pytest.fixture
async def journal(bus: NatsBus) -> Journal:
    made = Journal(bus, NETWORK)
    await made.ensure()
    return made


async def read_all(journal: Journal) -> list[Record]:
    return [each async for page in journal.pages(0, await journal.size()) for each in page]


async def api(bus: NatsBus, verb: str, question: dict | None = None) -> dict:
    raw = b"" if question is None else json.dumps(question).encode()
    return json.loads(await bus.request(f"$JS.API.{verb}", raw, 5))


async def test_rows_come_out_as_they_went_in(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "WINDOW_RECORDS", 7)
    await journal.append(0, records(1, 20))
    assert await read_all(journal) == records(1, 20)
    assert await journal.last() == (20, record(20))
    assert await journal.last_checkpoint() == 18


async def test_window_is_bounded_in_bytes_too(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "WINDOW_BYTES", 1000)
    rows = [record(number, size=400 if number % 5 else 3000) for number in range(1, 21)]
    await journal.append(0, rows)
    assert await read_all(journal) == rows


async def test_empty_journal_has_no_last_row(journal: Journal) -> None:
    assert await journal.size() == 0
    assert await journal.last() is None
    assert await journal.last_checkpoint() == 0
    assert await journal.page(0) == []


async def test_making_the_stream_twice_changes_nothing(journal: Journal) -> None:
    await journal.append(0, records(1, 3))
    await journal.ensure()
    assert await journal.size() == 3


async def test_row_that_is_there_is_not_added_again(journal: Journal) -> None:
    await journal.append(0, records(1, 10))
    await journal.append(4, records(5, 14))
    assert await read_all(journal) == records(1, 14)


async def test_row_after_a_gap_is_refused(journal: Journal) -> None:
    await journal.append(0, records(1, 3))
    with pytest.raises(SawyerError, match=r"refused row 5 .*wrong last sequence"):
        await journal.append(4, records(5, 9))
    assert await read_all(journal) == records(1, 3)


async def test_other_row_at_a_number_that_is_taken_is_refused(journal: Journal) -> None:
    await journal.append(0, records(1, 5))
    with pytest.raises(CopyDiffers, match=r"row 4 of stream .* is another than the book's"):
        await journal.append(3, [record(4, "another"), record(5)])
    assert await read_all(journal) == records(1, 5)


async def test_two_who_copy_the_same_rows_leave_one_copy(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "WINDOW_RECORDS", 5)
    await asyncio.gather(*(journal.append(0, records(1, 60)) for _ in range(4)))
    assert await read_all(journal) == records(1, 60)


async def test_row_over_the_servers_limit_is_refused_and_the_connection_lives(bus: NatsBus, journal: Journal) -> None:
    too_big = record(3, size=bus.server.max_payload_bytes - 100)
    with pytest.raises(UsageError, match="over the limit"):
        await journal.append(0, [record(1), record(2), too_big])
    assert await read_all(journal) == records(1, 2)


async def test_rows_cannot_be_deleted_or_purged(bus: NatsBus, journal: Journal) -> None:
    await journal.append(0, records(1, 3))
    deleted = await api(bus, f"STREAM.MSG.DELETE.{journal.stream}", {"seq": 2})
    purged = await api(bus, f"STREAM.PURGE.{journal.stream}")
    assert ("error" in deleted, "error" in purged) == (True, True)
    assert await read_all(journal) == records(1, 3)


async def test_destroyed_copy_is_gone_and_can_be_made_anew(journal: Journal) -> None:
    await journal.append(0, records(1, 3))
    await journal.destroy()
    with pytest.raises(NoCopy, match="no stream"):
        await journal.size()
    with pytest.raises(NoCopy):
        await journal.page(0)
    with pytest.raises(NoCopy):
        await journal.append(3, records(4, 4))
    await journal.ensure()
    await journal.append(0, records(1, 2))
    assert await read_all(journal) == records(1, 2)


async def test_server_without_jetstream_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sawyer.bus.server._CONFIG", "listen: {listen}\nports_file_dir: {folder}\n# {store}\n")
    with LocalServer.start(tmp_path / "plain") as server:
        bus = await NatsBus.connect(server.url, name="test")
        with pytest.raises(NoCopy, match="no JetStream") as error:
            await Journal(bus, NETWORK).ensure()
        assert "nats-server -js" in error.value.hint
        await bus.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_age", 10**12), ("max_msgs", 5), ("discard", "old"), ("allow_direct", False), ("subjects", ["other"])],
)
async def test_stream_that_would_lose_rows_is_refused(bus: NatsBus, name: str, value: object) -> None:
    journal = Journal(bus, NETWORK)
    config = {"name": journal.stream, "subjects": [subjects.all_ledger_copies(NETWORK)], **journals._SETTINGS}
    assert "error" not in await api(bus, f"STREAM.CREATE.{journal.stream}", {**config, name: value})
    with pytest.raises(CopyDiffers, match=f"has {name} .*expected"):
        await journal.ensure()


async def test_rows_that_are_gone_are_missed(bus: NatsBus) -> None:
    journal = Journal(bus, NETWORK)
    config = {"name": journal.stream, "subjects": [subjects.all_ledger_copies(NETWORK)], **journals._SETTINGS}
    await api(bus, f"STREAM.CREATE.{journal.stream}", {**config, "deny_delete": False})
    await journal.append(0, records(1, 5))
    await api(bus, f"STREAM.MSG.DELETE.{journal.stream}", {"seq": 3})
    with pytest.raises(CopyDiffers, match="1 of the 5 rows are gone"):
        await journal.size()
    with pytest.raises(CopyDiffers, match="row 3 is gone"):
        await journal.page(0)


@pytest.mark.parametrize("missing", ["Nats-Msg-Id", "Sawyer-Stream", "Sawyer-Version", "Sawyer-Topic", "all"])
async def test_message_that_is_no_row_is_named(bus: NatsBus, journal: Journal, missing: str) -> None:
    await journal.append(0, records(1, 1))
    headers = {} if missing == "all" else journal._headers(2, record(2))
    headers.pop(missing, None)
    await bus.request(subjects.ledger_copy(NETWORK, "entry"), b"?", 5, headers or None)
    with pytest.raises(CopyDiffers, match=r"row 2 of stream .* is no row of a book"):
        await journal.page(1)


async def test_message_on_a_subject_of_its_own_is_no_row(bus: NatsBus, journal: Journal) -> None:
    subject = subjects.ledger_copy(NETWORK, "entry").replace(".entry", ".rumour")
    await bus.request(subject, b"?", 5, journal._headers(1, record(1)))
    with pytest.raises(CopyDiffers, match=r"row 1 of .* is no row of a book \(its subject is .*rumour"):
        await journal.page(0)


async def test_reading_on_past_what_there_is_says_so(journal: Journal) -> None:
    await journal.append(0, records(1, 3))
    with pytest.raises(CopyDiffers, match="row 4 is gone"):
        [page async for page in journal.pages(0, 9)]


async def test_waiting_ends_with_the_next_row(journal: Journal) -> None:
    await journal.append(0, records(1, 3))
    await journal.changed(2, 60)  # it is there already
    waiting = asyncio.create_task(journal.changed(3, 60))
    while not waiting.done():
        size = await journal.size()
        await journal.append(size, records(size + 1, size + 1))
    assert await journal.size() > 3


async def test_waiting_in_vain_ends_in_time(journal: Journal) -> None:
    await journal.changed(0, 0.01)
    assert await journal.size() == 0


async def test_networks_on_one_server_have_a_copy_each(bus: NatsBus, journal: Journal) -> None:
    other = Journal(bus, NetworkId("sawyer-net/00000000"))
    await other.ensure()
    await journal.append(0, records(1, 3))
    await other.append(0, records(1, 1))
    assert (await journal.size(), await other.size()) == (3, 1)


async def test_stream_whose_name_is_no_networks_is_no_copy(bus: NatsBus, journal: Journal) -> None:
    for number, name in enumerate(["x", "a_b_c", "a____b", "-a_b", "A_b", "a_" + "b" * 70, "_", "a__b"]):
        made = await api(bus, f"STREAM.CREATE.SAWYER_LEDGER_{name}", {
            "name": f"SAWYER_LEDGER_{name}", "subjects": [f"{subjects.PREFIX}.ledger.copy.other{number}.*"],
        })  # fmt: skip
        assert "error" not in made
    assert await Journal.networks(bus) == [NETWORK]


async def test_copy_outlives_its_server(tmp_path: Path) -> None:
    for expected in (0, 3):
        with LocalServer.start(tmp_path / "nats") as server:
            bus = await NatsBus.connect(server.url, name="test")
            journal = Journal(bus, NETWORK)
            await journal.ensure()
            assert await journal.size() == expected
            await journal.append(expected, records(expected + 1, 3))
            await bus.close()
            server.process.kill()

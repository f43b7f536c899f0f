"""`sawyer ledger backup`, `sawyer ledger restore`: a copy of the book while the network runs, and back. Owns what is
asked and told; backup.py owns the files, replay what they are worth."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer import durable
from sawyer.cli import output
from sawyer.cli.options import HomeOption, JsonOption
from sawyer.cli.targets import check_folder, read_text
from sawyer.errors import RefusedError, SawyerError, UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.ledger.backup import Compared
    from sawyer.ledger.replay import ReplayReport
    from sawyer.ledger.source import Source

Bar = Callable[[int, int], None]
_HINT_HELD: Final = {
    "checkpoint.txt": (
        "A replay here has seen a book that reaches it: look for a newer copy. Only if there is none: delete {file}. "
        "What came after is lost then, and whoever holds a later checkpoint will see it. --force does not change this."
    ),
    "cosigned.txt": (
        "Witnesses have signed a book that reaches it: look for a newer copy. Only if there is none: --force. What "
        "came after is lost then, the witnesses will refuse the shorter book, and {file} is kept under another name."
    ),
}


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; it must not exist.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Copy the book, as it stands now, into one file. The bookkeeper goes on meanwhile."""
    from sawyer.ledger.backup import back_up
    from sawyer.ledger.source import SQLiteSource

    check_folder(file)
    settings = Settings.load(home=home)
    if isinstance(settings.book, str):
        raise UsageError(
            "the book lies in PostgreSQL, which makes its own backups",
            hint="pg_dump --schema=NAME DATABASE > FILE, or its rows: sawyer ledger export --format ndjson -o FILE",
        )
    with _bar("copying", quiet=json) as bar:
        back_up(settings.book, file, bar)
    rows = SQLiteSource(file).size_rows()
    if json:
        output.emit_json({"file": str(file), "rows": rows, "bytes": file.stat().st_size})
    else:
        output.line(f"{rows:,} rows in {file}")
    output.say("nothing was verified: `sawyer ledger restore` does, and `sawyer ledger replay --book FILE --key VKEY`")


def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A backup, or an NDJSON export.")],
    home: HomeOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Even if the book here, or what witnesses cosigned, has more: both are kept beside. "
            "It must still reach what was replayed here (checkpoint.txt).",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Verify a copy of the book by the keys pinned in the home, and put it in place. The network must be down."""
    from sawyer.ledger.backup import rebuild
    from sawyer.ledger.source import source_of

    settings = Settings.load(home=home)
    place, source = settings.home, source_of(file)
    pin = place.pin()
    if pin is None:
        raise UsageError(
            f"{place.path} belongs to no network: nobody can say whose book {file} must be",
            hint="Restore its network.json and keys first; the backup of a home is the whole folder.",
        )
    with place.alone(), _drafted(place) as draft:
        with _bar("copying", quiet=json) as bar:
            rebuild(source, draft, bar)
        with _bar("verifying", quiet=json) as bar:
            report = _verify(draft, pin, _held(place, force), bar)
        found = _compare(draft, settings, force)
        already = found is not None and found.same
        former = Former() if already else _put(draft, settings, found, force)
        place.keep_checkpoint(report.note)
    _tell(report, already, former, json=json)


@dataclass(frozen=True)
class Former:
    """The new names of what gave way to the copy, if anything did."""

    book: Path | None = None
    cosigned: Path | None = None


def _tell(report: ReplayReport, already: bool, former: Former, *, json: bool) -> None:
    if json:
        document = {"entries": report.entries, "size": report.size, "root": report.root, "already_there": already}
        names = {"former": str(former.book or ""), "former_cosigned": str(former.cosigned or "")}
        output.emit_json({"ok": True, **document, **names})
        return
    what = f"{report.entries} entries of {report.network}, every signature verified"
    output.line(f"this book is in place already: {what}" if already else f"restored {what}")
    output.line(f"tree size {report.size}, root {report.root}")
    if former.book is not None:
        output.line(f"the book that was here is now {former.book}")
    if former.cosigned is not None:
        output.line(f"what witnesses cosigned of it is now {former.cosigned}")


def _held(place: Home, force: bool) -> dict[Path, str]:
    """The checkpoints that the copy must reach, by their files: the kept one in any case, what witnesses cosigned
    unless by force. Raises VerificationError for one that cannot be read."""
    kept = place.held_checkpoint()
    held = {} if kept is None else {place.checkpoint: kept}
    if not force and place.cosigned.is_file():
        held[place.cosigned] = read_text(place.cosigned)
    return held


def _verify(draft: Path, pin: Pin, held: dict[Path, str], bar: Bar | None) -> ReplayReport:
    """Raises VerificationError if the copy does not hold by the pinned keys, or does not reach a held checkpoint."""
    from sawyer.ledger.replay import replay
    from sawyer.ledger.source import SQLiteSource

    source = SQLiteSource(draft)
    try:
        notes = tuple(held.values())
        report = replay(source, key=pin.ledger_vkey, operator=pin.operator, held=notes, progress=bar)
    except UsageError as error:
        files = " or ".join(str(file) for file in held)
        raise VerificationError(f"{files}: {error.message}", hint="Restore it, or move it away.") from error
    if report.problem is not None:
        file = _unreached(source, held)
        what = "this copy is not put in place" + (f", {file} forbids it" if file else "")
        hint = report.problem.hint if file is None else _HINT_HELD[file.name].format(file=file)
        raise VerificationError(f"{what}: {report.problem.why}", hint=hint)
    return report


def _unreached(source: Source, held: dict[Path, str]) -> Path | None:
    """The file of the first held checkpoint that is not of this book's tree."""
    from sawyer.ledger.checkpoint import Checkpoint
    from sawyer.ledger.proof import BookTree

    tree = BookTree.read(source)
    for file, note in held.items():
        kept = Checkpoint.read(note)
        if kept.size > tree.tree.size or kept != tree.at(kept.origin, kept.size):
            return file
    return None


def _compare(draft: Path, settings: Settings, force: bool) -> Compared | None:
    """How the book that is in place compares with the copy; None if there is none, or none that can be read. Raises
    RefusedError for a file that cannot be read, unless by force."""
    from sawyer.ledger.backup import compare
    from sawyer.ledger.source import SQLiteSource, source_of

    book = settings.book
    if isinstance(book, Path) and not book.exists():
        return None
    try:
        return compare(source_of(str(book)), SQLiteSource(draft))
    except SawyerError as error:
        if force or isinstance(book, str):
            return None
        raise RefusedError(
            f"the book in {settings.home.path} cannot be read whole: {error.message}",
            hint="Look at it first (sawyer ledger replay). --force keeps it under another name.",
        ) from error


def _put(draft: Path, settings: Settings, found: Compared | None, force: bool) -> Former:
    """Put the copy in place."""
    from sawyer.ledger.backup import put_in_place

    place, book = settings.home, None
    if isinstance(settings.book, str):
        _into_database(draft, settings.book)
    else:
        if found is not None and not force:
            _check_loses_nothing(found, place)
        book = put_in_place(draft, settings.book)
    cosigned = durable.set_aside(place.cosigned) if force and place.cosigned.exists() else None
    _forget_views(place)
    return Former(book, cosigned)


def _check_loses_nothing(found: Compared, place: Home) -> None:
    """Raises RefusedError if the book in this home has what the copy has not."""
    if found.differ:
        raise RefusedError(
            f"row {found.equal + 1} of the copy is not that of the book in {place.path}: two books of one ledger key",
            hint="Keep both: they prove that the ledger was forked. --force keeps the one here under another name.",
        )
    if found.lost:
        raise RefusedError(
            f"the book in {place.path} has {found.lost} more rows than the copy, after the same {found.equal}",
            hint="They would be lost from the network. --force does it, and keeps them in a file beside.",
        )


def _into_database(draft: Path, url: str) -> None:
    from sawyer.ledger.backup import fill
    from sawyer.ledger.source import SQLiteSource
    from sawyer.ledger.store import open_store

    with closing(open_store(url)) as store:
        fill(SQLiteSource(draft), store)


def _forget_views(place: Home) -> None:
    """They may be of the former book, as its snapshot may; the bookkeeper makes both again."""
    from sawyer.ledger.book import SNAPSHOT_FILE
    from sawyer.ledger.tables import with_side_files

    for file in (*with_side_files(place.views), place.views.with_name(SNAPSHOT_FILE)):
        file.unlink(missing_ok=True)


@contextmanager
def _drafted(place: Home) -> Iterator[Path]:
    """A file on the disk of the home, gone in the end unless it was moved."""
    folder = Path(tempfile.mkdtemp(dir=place.path, prefix=".restore."))
    try:
        yield folder / "book.sqlite"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _bar(label: str, *, quiet: bool) -> Iterator[Bar | None]:
    """A bar on stderr while a person watches."""
    console = output.stderr()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)

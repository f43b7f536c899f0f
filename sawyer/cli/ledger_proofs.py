"""`sawyer ledger prove`, `verify`, `checkpoint`, `consistency`: proofs for people who do not trust us. Owns arguments,
files and printing; what is proven is ledger/proof.py's word."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli import output
from sawyer.cli.ledger import BookOption, HomeOption, anchor_of, book_of
from sawyer.cli.options import JsonOption
from sawyer.cli.targets import check_target, files_of, read_text, write_text
from sawyer.clock import iso
from sawyer.errors import EXIT_WRONG, UsageError, VerificationError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sawyer.ledger.checkpoint import Checkpoint, Verifier
    from sawyer.ledger.proof import BookTree, Proven
    from sawyer.ledger.witness import Cosigner

KeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="VKEY", help="A verifier key to trust; more than once after a rotation (default: pinned)."
    ),
]
OutOption = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it there.")]
HeldOption = Annotated[Path | None, typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that you hold.")]
WitnessOption = Annotated[
    list[str] | None,
    typer.Option("--witness", metavar="VKEY", help="A witness that must have cosigned (checkpoint --json tells keys)."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to `sawyer ledger`."""
    app.command("prove", epilog="Example: sawyer ledger prove 12 -o entry-12.tlog-proof")(prove_command)
    app.command("verify", epilog="Example: sawyer ledger verify --proof entry-12.tlog-proof --key VKEY")(verify_command)
    app.command("checkpoint", epilog="Example: sawyer ledger checkpoint -o today.txt")(checkpoint_command)
    app.command("consistency", epilog="Example: sawyer ledger consistency last-month.txt --key VKEY")(
        consistency_command
    )


def prove_command(
    seq: Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The entry's number.")],
    out: OutOption = None,
    checkpoint: HeldOption = None,
    key: KeysOption = None,
    home: HomeOption = None,
    book: BookOption = None,
) -> None:
    """Prove that an entry is in the book: a file that anyone can verify without the book."""
    from sawyer.ledger.proof import InclusionProof

    _check_out(out, home, book, checkpoint)
    with _hinted():
        held = read_text(checkpoint) if checkpoint is not None else None
        tree, trusted = _read_book(home, book, key, seqs=(seq,))
        note = tree.newest if held is None else held
        covers = tree.check(note, trusted)
    if seq > covers.size:
        raise UsageError(
            f"there is no entry {seq}: the checkpoint covers {covers.size}",
            hint="`sawyer ledger log` shows the newest.",
        )
    proof = tree.prove_inclusion(seq, note)
    proof.check(trusted)
    _write(proof.encode(), out, f"proof of entry {seq} in the tree of {covers.size}", InclusionProof.decode)


def verify_command(
    proof: Annotated[Path, typer.Option("--proof", metavar="FILE", help="A proof of `sawyer ledger prove`.")],
    checkpoint: HeldOption = None,
    key: KeysOption = None,
    witness: WitnessOption = None,
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="The home whose pinned key to trust.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Verify a proof offline, with nothing but a key: which entry it proves. Exit code 3 if it does not hold."""
    from sawyer.ledger.checkpoint import Checkpoint
    from sawyer.ledger.proof import InclusionProof

    trusted, witnesses = _trusted(key, home), _witnesses(witness)
    with _judged(json):
        held = Checkpoint.verify(read_text(checkpoint), *trusted) if checkpoint is not None else None
        found = InclusionProof.decode(read_text(proof))
        proven = found.check(trusted, held)
        seen = _require(witnesses, found.note)
    if json:
        output.emit_json(_document(proven, seen))
    else:
        _show(proven, seen, held is not None)


def checkpoint_command(
    out: OutOption = None,
    cosigned: Annotated[
        bool, typer.Option("--cosigned", help="The newest that witnesses cosigned, instead of the newest.")
    ] = False,
    key: KeysOption = None,
    home: HomeOption = None,
    book: BookOption = None,
    json: JsonOption = False,
) -> None:
    """Print the newest signed checkpoint of the book, with its witnesses: keep it, and no later book may lack it."""
    from sawyer.ledger.checkpoint import Checkpoint
    from sawyer.ledger.keyring import NODE_KINDS, cosigners
    from sawyer.ledger.witness import one_each, witnessed

    _check_out(out, home, book)
    tree, trusted = _read_book(home, book, key, kinds=NODE_KINDS)
    note, kept = tree.newest, None if book is not None else _cosigned(home)
    if kept is not None and (cosigned or _is_same(kept, note)):
        note = kept
    elif cosigned:
        raise UsageError(
            "no witness has cosigned a checkpoint of this book here",
            hint="Nodes cosign while they serve; the bookkeeper's home keeps what they sign.",
        )
    with _hinted():
        found = tree.check(note, trusted)
        seen = one_each(witnessed(note, cosigners(found.origin, tree.all_of(NODE_KINDS))))
    if json:
        output.emit_json({**_head(found), "note": note, "witnesses": _times(seen)})
    if out is not None or not json:
        _write(note, out, f"checkpoint of {found.size} entries{_by(seen)}", Checkpoint.read)


def consistency_command(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The older checkpoint: a file, or with a book a size.")],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="The newer one: a file or a size (default: the newest).")
    ] = "",
    out: OutOption = None,
    proof: Annotated[
        Path | None, typer.Option("--proof", metavar="FILE", help="Verify this proof, without a book.")
    ] = None,
    key: KeysOption = None,
    home: HomeOption = None,
    book: BookOption = None,
    json: JsonOption = False,
) -> None:
    """Prove that a newer book has all of an older one, or verify such a proof. Exit code 3 if it has not."""
    if proof is not None and (book is not None or out is not None):
        raise UsageError("--proof verifies without a book", hint="Leave --book and -o out.")
    _check_out(out, home, book, *(Path(each) for each in (old, new) if each and not _is_size(each)))
    with _judged(json):
        if proof is not None:
            before, after = _verify_consistency(old, new, proof, _trusted(key, home))
        else:
            before, after = _prove_consistency(old, new, out, _read_book(home, book, key, sizes=_sizes(old, new)))
    if json:
        output.emit_json({"ok": True, "old": _head(before), "new": _head(after)})
    else:
        output.line(f"OK: the tree of {after.size} entries has all of the {before.size} before it, in the same order")
        for name, each in (("old", before), ("new", after)):
            output.line(f"{name}  size {each.size}  root {each.root.hex()}")


def _verify_consistency(old: str, new: str, file: Path, trusted: Sequence[Verifier]) -> tuple[Checkpoint, Checkpoint]:
    from sawyer.ledger.checkpoint import Checkpoint
    from sawyer.ledger.proof import ConsistencyProof, check_extends

    if _is_size(old):
        raise UsageError(
            "a size alone proves nothing without the book", hint="Name the file of the checkpoint you hold."
        )
    before = Checkpoint.verify(read_text(Path(old)), *trusted)
    after = ConsistencyProof.decode(read_text(file)).check(before, trusted)
    if _is_size(new) and int(new) != after.size:
        raise UsageError(f"the proof is for size {after.size}, not {new}")
    if new and not _is_size(new):
        expected = Checkpoint.verify(read_text(Path(new)), *trusted)
        if expected.size != after.size:
            raise UsageError(f"the proof is for size {after.size}, {new} has {expected.size}")
        check_extends(expected, after, ())
    return before, after


def _prove_consistency(
    old: str, new: str, out: Path | None, read: tuple[BookTree, tuple[Verifier, ...]]
) -> tuple[Checkpoint, Checkpoint]:
    from sawyer.ledger.checkpoint import Checkpoint
    from sawyer.ledger.proof import ConsistencyProof, check_one_view

    tree, trusted = read
    note = _newer(tree, new)
    if not _is_size(old):
        check_one_view(Checkpoint.verify(read_text(Path(old)), *trusted), Checkpoint.verify(note, *trusted))
    after = tree.check(note, trusted)
    size = _old_size(old, after) if _is_size(old) else 0
    before = tree.at(after.origin, size) if size else tree.check(read_text(Path(old)), trusted)
    if before.size > after.size:
        raise UsageError(f"the older checkpoint has {before.size} entries, the newer {after.size}", hint="Swap them.")
    proof = tree.prove_consistency(before.size, note)
    proof.check(before, trusted)
    if out is not None:
        what = f"proof that {after.size} entries extend {before.size}"
        _write(proof.encode(), out, what, ConsistencyProof.decode)
    return before, after


def _old_size(text: str, after: Checkpoint) -> int:
    if not 0 < int(text) <= after.size:
        raise UsageError(f"no size {text} before {after.size}", hint="Sizes count entries, from 1.")
    return int(text)


def _newer(tree: BookTree, new: str) -> str:
    if not new:
        return tree.newest
    if not _is_size(new):
        return read_text(Path(new))
    if int(new) not in tree.notes:
        raise UsageError(
            f"the book has no checkpoint of exactly {new} entries",
            hint="One is signed with each commit, which may hold many entries. Leave NEW out for the newest.",
        )
    return tree.notes[int(new)]


def _is_size(text: str) -> bool:
    """A number of entries; anything else names a file."""
    return text.isdecimal() and len(text) <= 16


def _sizes(*texts: str) -> tuple[int, ...]:
    return tuple(int(text) for text in texts if _is_size(text))


@contextmanager
def _judged(json: bool) -> Iterator[None]:
    """What is found wrong in here is a document where one was asked for."""
    try:
        with _hinted():
            yield
    except VerificationError as error:
        if not json:
            raise
        output.emit_json({"ok": False, "code": error.code, "why": error.message, "hint": error.hint})
        raise typer.Exit(EXIT_WRONG) from error


@contextmanager
def _hinted() -> Iterator[None]:
    """What does not verify says what to do next, also where the one who found it could not know."""
    try:
        yield
    except VerificationError as error:
        error.hint = error.hint or (
            "Copy the file again, and check that the key is of its network. If it stays so, it proves nothing: ask for "
            "another, and keep this one to show."
        )
        raise


# --- whom we trust ----------------------------------------------------------------------------------------------------


def _trusted(keys: list[str] | None, home: Path | None) -> tuple[Verifier, ...]:
    """The keys that were given, each for any size; else the one pinned in the home and those that followed it, as far
    as the home was told. Raises UsageError if there is neither, VerificationError."""
    from sawyer.ledger.checkpoint import Verifier
    from sawyer.ledger.succession import known_successors, trusted

    if keys:
        return tuple(Verifier.parse(anchor_of(key)) for key in keys)
    place = Settings.load(home=home).home
    pin = place.pin()
    if pin is None:
        raise UsageError(
            "no key to verify with: this home belongs to no network",
            hint="Give --key VKEY: the ledger's key, from somebody you trust.",
        )
    return trusted(pin, known_successors(place.successors))[1]


def _read_book(
    home: Path | None,
    book: str | None,
    keys: list[str] | None,
    *,
    seqs: Sequence[int] = (),
    sizes: Sequence[int] = (),
    kinds: Sequence[str] = (),
) -> tuple[BookTree, tuple[Verifier, ...]]:
    """The book's tree, and the keys its checkpoints may be signed with: those given; else the pinned one, and those
    that the pinned operator added; for a copy of a book the ones it names itself, which anchors nothing. Raises
    VerificationError if the book names one that nobody could add, or leaves out one that the home knows."""
    from sawyer.home import Pin
    from sawyer.ledger.keyring import KEY_KINDS, founder, successors
    from sawyer.ledger.proof import BookTree
    from sawyer.ledger.succession import trusted, with_remembered

    tree = BookTree.read(book_of(home, book), seqs=seqs, sizes=sizes, kinds=(*KEY_KINDS, *kinds))
    if keys:
        return tree, _trusted(keys, home)
    place = Settings.load(home=home).home
    pin = place.pin() if book is None else None
    if pin is not None:
        return tree, trusted(pin, with_remembered(place.successors, successors(tree)))[1]
    first = founder(tree.all_of(KEY_KINDS))
    if first is None:
        raise UsageError("this book was not founded", hint="Name another --home or --book.")
    output.say("not anchored: this copy names its own key; give --key VKEY")
    itself = Pin(network=first[0].name, ledger_vkey=first[0].vkey, operator=first[1])
    return tree, trusted(itself, successors(tree))[1]


def _witnesses(vkeys: list[str] | None) -> list[Cosigner]:
    from sawyer.ledger.witness import Cosigner

    try:
        return [Cosigner.parse(vkey) for vkey in vkeys or ()]
    except VerificationError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _require(witnesses: list[Cosigner], note: str) -> dict[Cosigner, int]:
    """When each of them cosigned. Raises VerificationError if one did not."""
    from sawyer.ledger.witness import witnessed

    seen = witnessed(note, witnesses)
    missing = sorted(each.name for each in set(witnesses) - set(seen))
    if missing:
        raise VerificationError(
            f"{', '.join(missing)} did not cosign this checkpoint",
            hint="Ask for a proof in a cosigned tree: sawyer ledger prove SEQ --checkpoint FILE.",
        )
    return seen


# --- files and words --------------------------------------------------------------------------------------------------


def _is_same(kept: str, note: str) -> bool:
    """Whether a kept note is of the same tree; one that cannot be read is not."""
    from sawyer.ledger.checkpoint import Checkpoint

    with suppress(VerificationError):
        return Checkpoint.read(kept) == Checkpoint.read(note)
    return False


def _cosigned(home: Path | None) -> str | None:
    file = Settings.load(home=home).home.cosigned
    return read_text(file) if file.exists() else None


def _check_out(out: Path | None, home: Path | None, book: str | None, *inputs: Path | None) -> None:
    """Before the book is read: raises UsageError for a target that must not be written."""
    if out is not None:
        read = [*files_of(book), *(each for each in inputs if each is not None)]
        check_target(out, read, Settings.load(home=home).home)


def _write(text: str, out: Path | None, what: str, decode: Callable[[str], object]) -> None:
    """Exactly this text: every byte counts in what is signed. `decode` raises for a file of another kind, which is not
    replaced."""
    if out is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
        return
    write_text(out, text, decode)
    output.say(f"{out}: {what}")


def _when(at_ms: int) -> str:
    """A time that somebody signed, and that need not be one."""
    try:
        return iso(at_ms)
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"


def _head(checkpoint: Checkpoint) -> dict[str, object]:
    return {"log": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def _times(seen: dict[Cosigner, int]) -> list[dict[str, object]]:
    return [{"name": by.name, "key": by.vkey, "time_s": at_s} for by, at_s in _in_order(seen)]


def _in_order(seen: dict[Cosigner, int]) -> list[tuple[Cosigner, int]]:
    return sorted(seen.items(), key=lambda item: item[0].name)


def _by(seen: dict[Cosigner, int]) -> str:
    return f", cosigned by {len(seen)} witness{'es' * (len(seen) != 1)}" if seen else ""


def _document(proven: Proven, seen: dict[Cosigner, int]) -> dict[str, object]:
    entry = proven.entry
    return {
        "ok": True,
        "seq": entry.seq,
        "kind": entry.kind,
        "ts_ms": entry.ts_ms,
        "by": entry.signer.by,
        "key_id": entry.signer.key_id,
        "leaf": entry.leaf,
        "checkpoint": _head(proven.checkpoint),
        "witnesses": _times(seen),
    }


def _show(proven: Proven, seen: dict[Cosigner, int], held: bool) -> None:
    entry, checkpoint = proven.entry, proven.checkpoint
    tree = "the tree of the checkpoint you hold" if held else "the tree that the key you trust has signed"
    output.line(f"OK: entry {entry.seq} is in {tree}, and its signatures hold")
    for name, value in (
        ("log", checkpoint.origin),
        ("kind", entry.kind),
        ("time", _when(entry.ts_ms)),
        ("signer", f"{entry.signer.by} ({entry.signer.key_id})"),
        ("leaf", entry.leaf),
        ("size", str(checkpoint.size)),
        ("root", checkpoint.root.hex()),
        *(("witness", f"{by.name} at {_when(at_s * 1000)}") for by, at_s in _in_order(seen)),
    ):
        output.line(f"{name:<7} {value}")

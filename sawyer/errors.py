"""Every error Sawyer raises on purpose. Raised where the fact is known, turned into text once, in `cli/output.py`.

SawyerError                     1  failed
├── UsageError                  2  the caller asked for something that makes no sense
│   ├── PromptEmpty
│   ├── PromptTooLong
│   ├── ConversationRefused        the model's own chat template takes no conversation like this
│   ├── ClockWrong                 this machine's clock is far from the bookkeeper's
│   └── UnsupportedModel           a checkpoint of a family, or with a setting, that we cannot split
├── VerificationError           3  verified, and found wrong
│   ├── NotCanonical               bytes are not the one canonical encoding of their content
│   ├── BadSignature
│   │   └── RetiredKey
│   ├── SplitView                  two signed trees of one size: the log shows different books to different people
│   ├── RolledBack                 a checkpoint smaller than one that was signed before
│   ├── NotExtended                nothing shows that a newer tree has all of the older one
│   ├── BookCorrupt                an entry, the chain or the tree does not hold; names the entry
│   ├── ViewDiffers                a live view differs from the fold of the book; names the row
│   ├── CopyDiffers                what JetStream holds is no copy of this book; names the row
│   ├── ArtifactCorrupt            a model file does not match its manifest; names the file
│   └── CheckpointCorrupt          a checkpoint to split does not hold what its config says
├── UnreachableError            4  nobody answered
│   ├── ServerUnreachable          no NATS server there, or it refused us
│   ├── NoCopy                     the NATS server has no JetStream, or no copy of this book
│   ├── NoStore                    the NATS server has no JetStream, or does not offer the files of this model
│   ├── NobodyServes               no router, node or bookkeeper listens
│   └── NoAnswer                   somebody listens, and did not answer in time
├── RefusedError                5  the other side understood, and said no
│   ├── UnknownModel, UnknownAccount, UnknownExpert, UnknownRequest, WrongManifest
│   ├── NoChatTemplate             the model was not taught to read conversations
│   ├── ChatTemplateBroken         its chat template fails, or takes too long
│   ├── BudgetTooSmall
│   ├── RequestConflict            same request id, other content
│   ├── SessionEnded               the router knows no such session of a client with its own trunk (any more)
│   ├── Superseded                 published before and replaced since: saying it again changes nothing
│   ├── AlreadyCompleted           same request id, same content: carries usage and entry
│   ├── NotAuthorised              this key may not sign this
│   │   └── CertificateRefused     expired, revoked, or of another network
│   ├── NameTaken                  another process serves under this name and key
│   ├── Busy                       a bounded queue is full: try again
│   └── MalformedMessage
├── ExpertUnavailable           1  no replica of these experts answered: the request failed, nothing is billed
├── WriterFenced                1  another writer owns this book
├── MissingExtra                1  an optional package is not installed: says which extra to install
├── NoSpace                     1  a disk has too little room: says how much is needed and how much there is
└── Cancelled                   1  the caller stopped it
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_WRONG: Final = 3
EXIT_UNREACHABLE: Final = 4
EXIT_REFUSED: Final = 5
EXIT_INTERRUPTED: Final = 130


class SawyerError(Exception):
    """Base of all. `code` is its name on the wire, `hint` says what to do next, `details` are typed facts as text."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILED
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", details: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.details = details or {}


class UsageError(SawyerError):
    code = "usage"
    exit_code = EXIT_USAGE


class PromptEmpty(UsageError):
    code = "prompt_empty"
    default_hint = "Give a prompt with at least one character."


class PromptTooLong(UsageError):
    code = "prompt_too_long"
    default_hint = "Shorten the prompt or ask for fewer tokens."


class ConversationRefused(UsageError):
    code = "conversation_refused"
    default_hint = "Most want user and assistant in turns, the user first, and at most one system message before them."


class UnsupportedModel(UsageError):
    code = "unsupported_model"
    default_hint = "docs/models.md lists what can be split, and how to add a family."


class ClockWrong(UsageError):
    code = "clock_wrong"
    default_hint = "Set this machine's clock (timedatectl set-ntp true), then start again."


class VerificationError(SawyerError):
    code = "verification_failed"
    exit_code = EXIT_WRONG


class NotCanonical(VerificationError):
    code = "not_canonical"


class BadSignature(VerificationError):
    code = "bad_signature"


class RetiredKey(BadSignature):
    """A checkpoint of a size at which this key was not, or no longer, the ledger's."""

    code = "retired_key"
    default_hint = (
        "Whoever has a key that the ledger gave up made this: keep it as evidence, and ask the operator for the newest "
        "checkpoint. `sawyer ledger replay` shows in a book from which entry on each key signs."
    )


class SplitView(VerificationError):
    code = "split_view"
    default_hint = (
        "The ledger showed different books to different people: keep both checkpoints, they are the evidence, and show "
        "them to everybody."
    )


class RolledBack(VerificationError):
    code = "rolled_back"
    default_hint = "Ask for the newest one. If the book itself is smaller than it was, it was cut: keep both of them."


class NotExtended(VerificationError):
    code = "not_extended"
    default_hint = "Ask for a proof again. If it says the same, the book was rewritten: keep both as evidence."


class BookCorrupt(VerificationError):
    """`seq` is the first entry that does not hold, `signer` who signed it, as far as that is known. The message names
    the entry."""

    code = "book_corrupt"
    default_hint = "Stop trusting this copy: compare it with another copy or a checkpoint that you hold."

    def __init__(self, message: str, *, seq: int | None = None, signer: str = "", hint: str = "") -> None:
        details = {"seq": str(seq)} if seq is not None else {}
        if signer:
            details["signer"] = signer
        if seq and not re.search(rf"\bentry {seq}\b", message):
            message = f"entry {seq}: {message}"
        super().__init__(message, hint=hint, details=details)
        self.seq = seq
        self.signer = signer


class ViewDiffers(VerificationError):
    code = "view_differs"
    default_hint = "The book is right and the view is not: stop the bookkeeper, delete views.sqlite, start it again."


class CopyDiffers(VerificationError):
    code = "copy_differs"
    default_hint = "Find out why before you make it anew from the book: sawyer ledger copy --rebuild"


class ArtifactCorrupt(VerificationError):
    code = "artifact_corrupt"
    default_hint = "Delete the model's folder and split the model again (the demo does it by itself)."


class CheckpointCorrupt(VerificationError):
    code = "checkpoint_corrupt"
    default_hint = "Download the checkpoint again, and check that all of its files are there."


class UnreachableError(SawyerError):
    code = "unreachable"
    exit_code = EXIT_UNREACHABLE


class ServerUnreachable(UnreachableError):
    code = "server_unreachable"
    default_hint = "Check the address and that a nats-server runs there."


class NoCopy(UnreachableError):
    code = "no_copy"
    default_hint = "The network's bookkeeper makes the copy, where its NATS server has JetStream (nats-server -js)."


class NoStore(UnreachableError):
    code = "no_store"


class NobodyServes(UnreachableError):
    code = "nobody_serves"
    default_hint = "Start the part that should answer, or check the name."


class NoAnswer(UnreachableError):
    code = "no_answer"
    default_hint = "Try again: the same request id is never billed twice."


class RefusedError(SawyerError):
    code = "refused"
    exit_code = EXIT_REFUSED


class UnknownModel(RefusedError):
    code = "unknown_model"


class NoChatTemplate(RefusedError):
    code = "no_chat_template"
    default_hint = "It continues text: give a prompt instead of messages (`sawyer generate PROMPT`)."


class ChatTemplateBroken(RefusedError):
    code = "chat_template_broken"
    default_hint = "Prompts work all the same. Tell the operator, who publishes the model."


class UnknownAccount(RefusedError):
    code = "unknown_account"
    default_hint = "Open the account first."


class UnknownExpert(RefusedError):
    code = "unknown_expert"


class WrongManifest(RefusedError):
    code = "wrong_manifest"
    default_hint = "Router and node hold different weights under one name: split or pull the model again."


class BudgetTooSmall(RefusedError):
    code = "budget_too_small"
    default_hint = "Ask for fewer tokens, or top the account up."


class RequestConflict(RefusedError):
    code = "request_conflict"
    default_hint = "Use a new request id for a new request."


class SessionEnded(RefusedError):
    code = "session_ended"
    default_hint = "Ask again: a new session begins at the prompt."


class Superseded(RefusedError):
    code = "superseded"
    default_hint = "Publish it under a new name."


class AlreadyCompleted(RefusedError):
    code = "already_completed"
    default_hint = "It was billed once, in the entry named here, and is not billed again."


class NotAuthorised(RefusedError):
    code = "not_authorised"


class CertificateRefused(NotAuthorised):
    code = "certificate_refused"
    default_hint = "`sawyer identity show` tells what is here; the operator invites: sawyer network invite."


class NameTaken(RefusedError):
    code = "name_taken"
    default_hint = "Stop the other process first, or use another --name."


class Busy(RefusedError):
    code = "busy"
    default_hint = "Try again in a moment."


class UnknownRequest(RefusedError):
    """A router remembers the last requests only."""

    code = "unknown_request"
    default_hint = "Routers remember their last 128 requests, until they are stopped. The book remembers all."


class MalformedMessage(RefusedError):
    code = "malformed_message"


class ExpertUnavailable(SawyerError):
    """`experts` are the (layer, expert) pairs that no replica answered for."""

    code = "expert_unavailable"
    default_hint = "Nothing was billed. Try again when a node that serves these experts is back."

    def __init__(
        self,
        message: str,
        *,
        experts: tuple[tuple[int, int], ...] = (),
        hint: str = "",
        details: dict[str, str] | None = None,
    ) -> None:
        named = {"experts": " ".join(f"{layer}:{expert}" for layer, expert in experts)} if experts else {}
        super().__init__(message, hint=hint, details={**named, **(details or {})})
        self.experts = experts


class WriterFenced(SawyerError):
    code = "writer_fenced"
    default_hint = "One book has one writer. Stop the other bookkeeper, then start this one again."


class MissingExtra(SawyerError):
    code = "missing_extra"


class NoSpace(SawyerError):
    code = "no_space"
    default_hint = "Free some space there (`df -h` shows it), or choose a folder on another disk."


class Cancelled(SawyerError):
    code = "cancelled"


def _tree(root: type[SawyerError]) -> dict[str, type[SawyerError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: Final = _tree(SawyerError)
"""Every error, by its name on the wire."""
_NUMBER: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_PAIRS: Final = re.compile(r"([0-9]{1,9}:[0-9]{1,9}( |$))*", re.ASCII)


def from_code(code: str, message: str, hint: str, details: dict[str, str]) -> SawyerError:
    """The typed error that another process raised; a code we do not know becomes a plain SawyerError. The other process
    may be hostile: details that do not read as what their error carries are kept as text and never raise."""
    kind = BY_CODE.get(code, SawyerError)
    error = kind.__new__(kind)
    SawyerError.__init__(error, message, hint=hint, details=details)
    if isinstance(error, ExpertUnavailable):
        found = _PAIRS.fullmatch(details.get("experts", ""))
        pairs = (pair.split(":") for pair in found.group().split()) if found else ()
        error.experts = tuple((int(layer), int(expert)) for layer, expert in pairs)
    if isinstance(error, BookCorrupt):
        error.seq = int(details["seq"]) if _NUMBER.fullmatch(details.get("seq", "")) else None
        error.signer = details.get("signer", "")
    return error

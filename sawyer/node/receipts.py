"""What a node did, and its signed word for it. Keeps the answered blocks of open requests; at `finish` signs one
receipt over exactly the answers that were used. The counter outlives the process, so an omitted receipt shows."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sawyer import durable
from sawyer.errors import RefusedError, RequestConflict, VerificationError
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import NetworkId, NodeId, RequestId
from sawyer.ledger.merkle import tree_root
from sawyer.schemas.base import Positive, Sha256, Strict, first_problem
from sawyer.schemas.events import NO_HASH, RECEIPT_KIND, WorkReceipted
from sawyer.schemas.messages import Finish
from sawyer.schemas.signed import Signed

MAX_OPEN_REQUESTS: Final = 1024
MAX_ANSWERS_A_REQUEST: Final = 1_000_000
MAX_KEPT_RECEIPTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Block:
    """One answered expert block, and the hash of its leaf in the receipt's tree (schemas/tensors.py: block_leaf)."""

    layer: int
    expert: int
    rows: int
    leaf: bytes


class _State(Strict):
    """What outlives the process: how many receipts were signed, and the SHA-256 of the last."""

    counter: Positive
    last: Sha256


@dataclass
class ReceiptLog:
    """Thread safe. `state` is the file that keeps counter and hash of the last receipt."""

    network: NetworkId
    node: NodeId
    key: Key
    state: Path
    _open: OrderedDict[tuple[RequestId, str], dict[int, tuple[Block, ...]]] = field(default_factory=OrderedDict)
    _ended: OrderedDict[RequestId, tuple[Finish, Signed[WorkReceipted] | None]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _signing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def note(self, request: RequestId, manifest: str, sequence: int, blocks: tuple[Block, ...]) -> None:
        """Remember an answer until its request is finished; one that comes later can be in no receipt. The oldest
        request is forgotten beyond the limit."""
        with self._lock:
            if request in self._ended:
                return
            answers = self._open.setdefault((request, manifest), {})
            if len(answers) < MAX_ANSWERS_A_REQUEST:
                answers[sequence] = blocks
            while len(self._open) > MAX_OPEN_REQUESTS:
                self._open.popitem(last=False)

    def finish(self, finish: Finish, manifest: str) -> Signed[WorkReceipted] | None:
        """The receipt over exactly the answers that `finish` names; asked again, the same receipt. If none was used
        (the request failed), they are forgotten and there is no receipt. Blocks on a file sync. Raises RefusedError
        for answers this node did not give, RequestConflict for a second, different finish."""
        request = RequestId(finish.request)
        with self._signing:  # signing may take long; answers of other requests are noted meanwhile
            with self._lock:
                earlier = self._ended.get(request)
                answers = self._open.get((request, manifest))
            if earlier is not None:
                if earlier[0] != finish:
                    raise RequestConflict(f"request {request} was finished already, over other answers")
                return earlier[1]
            if finish.used and answers is None:
                raise RefusedError(f"this node holds no answers of request {request}")
            receipt = self._sign(finish, manifest, list(_used(answers or {}, finish))) if finish.used else None
            with self._lock:
                self._open.pop((request, manifest), None)
                self._ended[request] = (finish, receipt)
                while len(self._ended) > MAX_KEPT_RECEIPTS:
                    self._ended.popitem(last=False)
            return receipt

    def _sign(self, finish: Finish, manifest: str, blocks: list[Block]) -> Signed[WorkReceipted]:
        counter, previous = self._read_state()
        rows: Counter[tuple[int, int]] = Counter()
        for block in blocks:
            rows[block.layer, block.expert] += block.rows
        body = WorkReceipted(
            network=self.network,
            node=self.node,
            request=finish.request,
            model=finish.model,
            manifest=manifest,
            rows=sum(rows.values()),
            blocks=len(blocks),
            experts=tuple((layer, expert, count) for (layer, expert), count in sorted(rows.items())),
            root=tree_root([block.leaf for block in blocks]).hex(),
            counter=counter + 1,
            previous=previous,
        )
        receipt = sign(body, RECEIPT_KIND, self.node, self.key)
        self._write_state(counter + 1, hashlib.sha256(receipt.canonical()).hexdigest())
        return receipt

    def _read_state(self) -> tuple[int, str]:
        try:
            saved = _State.model_validate_json(self.state.read_bytes())
        except FileNotFoundError:
            return 0, NO_HASH
        except ValidationError as error:
            raise VerificationError(
                f"{self.state} does not hold this node's receipt counter: {first_problem(error)}",
                hint="Restore the file; a counter that starts again is refused by the ledger.",
            ) from error
        return saved.counter, saved.last

    def _write_state(self, counter: int, last: str) -> None:
        durable.replace(self.state, _State(counter=counter, last=last).canonical())


def _used(answers: dict[int, tuple[Block, ...]], finish: Finish) -> Iterator[Block]:
    """The blocks of the used answers, in order of sequence, then expert."""
    before = 0
    for start, end in finish.used:
        if not before < start <= end or end - start > MAX_ANSWERS_A_REQUEST:  # else an answer could be counted twice
            raise RefusedError(f"{start} to {end} after {before} is not a run of sequence numbers")
        before = end
        for sequence in range(start, end + 1):
            if sequence not in answers:
                raise RefusedError(f"this node gave no answer {sequence} of request {finish.request}")
            yield from answers[sequence]

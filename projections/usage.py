"""What was used, by day: of each model what consumers bought, of each host what it computed. Days are UTC."""

from __future__ import annotations

from typing import ClassVar, cast

from sawyer.economy.periods import day_of
from sawyer.projections.fold import Entry, Fold, Row, add
from sawyer.projections.payouts import by_host
from sawyer.schemas.events import InferenceCompleted


class ModelDayRow(Row):
    """Key `model:<model>:<day>`. Tokens: text tokens in and out, budget tokens billed."""

    requests: int
    input_tokens: int
    output_tokens: int
    billed_tokens: int


class HostDayRow(Row):
    """Key `host:<host>:<day>`. Of credited work; `work` is decimal text."""

    requests: int
    rows: int
    work: str


class Usage(Fold):
    """Sums by model, host and day."""

    name: ClassVar[str] = "usage"
    row_types: ClassVar[dict[str, type[Row]]] = {"model": ModelDayRow, "host": HostDayRow}

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        body = entry.body
        if not isinstance(body, InferenceCompleted):
            return
        day = day_of(entry.ts_ms)
        self._sell(f"model:{body.request.body.model}:{day}", body, entry)
        for host, (rows, work, _) in by_host(entry.decided.credits or ()).items():
            self._work(f"host:{host}:{day}", rows, work)

    def _sell(self, key: str, body: InferenceCompleted, entry: Entry) -> None:
        row = cast("ModelDayRow | None", self.rows.get(key)) or ModelDayRow(0, 0, 0, 0)
        row.requests += 1
        row.input_tokens += body.input_tokens
        row.output_tokens += body.output_tokens
        row.billed_tokens += sum([part.tokens for part in entry.decided.debited or ()])
        self.put(key, row)

    def _work(self, key: str, rows: int, work: int) -> None:
        row = cast("HostDayRow | None", self.rows.get(key)) or HostDayRow(0, 0, "0")
        row.requests += 1
        row.rows += rows
        row.work = add(row.work, work)
        self.put(key, row)

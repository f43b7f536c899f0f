"""What to look for in a book: a question about an entry's bytes, far cheaper than to parse them. Judges no entry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from sawyer.ledger.entry import StoredRow


@dataclass(frozen=True)
class Wanted:
    """Entries that may be of interest: of this `kind` (with or without its version, or only its first word), and in
    this `stream`, or with one of these `texts` in their bytes. What is not given asks nothing."""

    kind: str = ""
    stream: str = ""
    texts: tuple[bytes, ...] = ()

    def fits(self, row: StoredRow) -> bool:
        """Whether an entry's row is one of these."""
        return self.fits_kind(row.topic) and (
            not (self.stream or self.texts)
            or (bool(self.stream) and row.stream == self.stream)
            or (bool(self.texts) and self._texts.search(row.state) is not None)
        )

    def fits_kind(self, topic: str) -> bool:
        """Whether a kind is the one that was asked for."""
        return not self.kind or f"{topic}.".startswith(f"{self.kind}.")

    @cached_property
    def _texts(self) -> re.Pattern[bytes]:
        """One pass over the bytes, however many texts there are."""
        return re.compile(b"|".join(map(re.escape, self.texts)))

"""How the long-running programs write their logs: a line for people, or a JSON object a line for programs. What is said
of one request names it, in the field `request`, in router, node and bookkeeper alike."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from sawyer.settings import Settings

FOR_PEOPLE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One object a line: time (RFC 3339, UTC), level, logger, message; `request` and `error` (a traceback) where there
    is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = getattr(record, "request", "")
        if request:
            said["request"] = request
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def start_logging(settings: Settings) -> None:
    """To stderr, in the form and from the level that the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings["log_format"] == "json" else logging.Formatter(FOR_PEOPLE))
    logging.basicConfig(level=settings["log_level"].upper(), handlers=[handler], force=True)

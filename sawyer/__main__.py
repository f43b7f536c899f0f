"""`python -m sawyer` is `sawyer`, and so is the script of that name."""

from __future__ import annotations

import sys
from typing import NoReturn

from sawyer.errors import EXIT_INTERRUPTED


def main() -> NoReturn:
    """Run the command line. Loading it takes a moment, in which Ctrl-C must end it as quietly as later."""
    try:
        from sawyer.cli.app import run  # noqa: PLC0415 - inside, so that Ctrl-C is met

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()

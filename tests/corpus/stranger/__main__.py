"""The command line: 0, the book holds; 3, it does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from . import WrongBook, verify

if __name__ == "__main__":
    path, vkey, operator = sys.argv[1:]
    try:
        told = verify(Path(path).read_bytes(), vkey, operator)
    except WrongBook as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(3)
    sys.stdout.write(json.dumps(told, indent=2) + "\n")

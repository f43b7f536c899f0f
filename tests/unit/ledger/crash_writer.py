"""A real writer process for test_crash.py: commits requests for ever and says on stdout what was acknowledged.

Usage: python crash_writer.py FOLDER FIRST_REQUEST [URL]
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

from sawyer.identity.keys import Key

LONGEST_BATCH = 40


def main(folder: Path, number: int, url: str) -> None:
    """Batches of many lengths, so that a signal meets short commits and long ones."""
    spec = importlib.util.spec_from_file_location("scene", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["scene"] = module
    spec.loader.exec_module(module)
    names = ("router", "ledger", "alice", "node-a", "node-b", "mallory")
    keys = {name: Key.from_raw(bytes([seed]) * 32) for seed, name in enumerate(names, start=1)}
    scene = module.Scene({**keys, "operator": Key.from_raw(bytes([99]) * 32, "O")})
    lengths = random.Random(number)
    book = scene.open(folder, synchronous="FULL", url=url)
    if not book.size:
        module.expect_all(book.commit(scene.opening(50_000_000), scene.now_ms))
    while True:
        orders = [scene.order(at) for at in range(number, number + lengths.randint(1, LONGEST_BATCH // 2))]
        number += len(orders)
        steps = [scene.reserve(order) for order in orders] + [scene.void(order) for order in orders]
        for reply in book.commit(steps, scene.now_ms):
            sys.stdout.write(f"{reply.entry.seq} {reply.entry.leaf}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")

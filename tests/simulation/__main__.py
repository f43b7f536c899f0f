"""Live through seeds by hand: `cd tests && ../.venv/bin/python -m simulation SEED [SEED ...] [--quiet]`."""

from __future__ import annotations

import sys

from simulation.world import simulate

quiet = "--quiet" in sys.argv
for seed in [int(each) for each in sys.argv[1:] if each != "--quiet"]:
    report = simulate(seed, tell=not quiet)
    told = [*report.lines, str(report.plan), *(f"  {each.told()}" for each in report.outcomes)]
    told.append(f"{report.messages} lines, {report.took_s:.1f} virtual seconds, {report.digest}")
    sys.stdout.write("\n".join([*told, f"{report}\n"]))

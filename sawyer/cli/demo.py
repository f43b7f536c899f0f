"""`sawyer demo`: its options. What it does is in demo_run.py, loaded only when it runs: the auditor's commands must
work where NATS and ONNX Runtime are not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from sawyer.errors import EXIT_WRONG, UsageError
from sawyer.settings import Settings

DEFAULT_PROMPT: Final = "It was a"
DEFAULT_MAX_TOKENS: Final = 64
MAX_NODES: Final = 8


def demo(
    prompt: Annotated[str, typer.Option("--prompt", help="The text to continue.")] = DEFAULT_PROMPT,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens at most.")] = DEFAULT_MAX_TOKENS,
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=MAX_NODES, help="Node processes.")] = 2,
    kill: Annotated[bool, typer.Option("--kill", help="SIGKILL a node in the middle of the text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line a layer: who answered what.")] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Where keys, book and models are kept.")] = None,
) -> None:
    """A real model writes text through experts on other processes; the tokens are debited, the book is proved."""
    if kill and nodes < 2:
        raise UsageError("--kill needs a second node to take over", hint="Use --nodes 2 or more.")
    if kill and max_tokens < 2:
        raise UsageError("--kill needs a middle of the text", hint="Use --max-tokens 2 or more.")
    from sawyer.cli.demo_run import DemoPlan, run

    settings = Settings.load(home=home)
    place = settings.home if home else settings.home.demo
    if not run(place, DemoPlan(prompt, max_tokens, nodes, kill, verbose, as_json, settings["nats_server"])):
        raise typer.Exit(EXIT_WRONG)

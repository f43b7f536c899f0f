"""The options that many commands share, and what they stand for together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Keys, book, models (default: SAWYER_HOME or your data folder)."),
]
NatsOption = Annotated[str, typer.Option("--nats", metavar="URL", help="Address of the NATS server.")]
ContextOption = Annotated[
    str, typer.Option("--context", metavar="NAME", help="NATS context: an address with credentials.")
]
CredsOption = Annotated[
    Path | None, typer.Option("--creds", metavar="FILE", help="NATS credentials file (of nsc or the nats CLI).")
]
JoinOption = Annotated[
    str, typer.Option("--join", metavar="FILE", help="The file with the operator's join token; - for standard input.")
]
AccountOption = Annotated[str, typer.Option("--account", metavar="NAME", help="The account that pays.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
FormatOption = Annotated[str, typer.Option("--format", help="Format of the split model: q4, q8, f32, f16 or gguf.")]
ExpertFormatOption = Annotated[
    str,
    typer.Option("--format", help="Format of the experts: q4, q8, f32, or f16 (for CUDA alone).", show_default="q4"),
]
TrunkFormatOption = Annotated[
    str,
    typer.Option("--trunk-format", help="Format of the trunk's matrices: f32, q8, q4 or f16.", show_default="f32"),
]
ExactOption = Annotated[
    bool, typer.Option("--exact/--fast", help="Change no weight: a .gguf file's experts keep their blocks.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=0, help="Compute threads; 0: all cores.", show_default="all cores")
]

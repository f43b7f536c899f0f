"""`sawyer models`: what a host or operator does with checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sawyer.cli.output import emit_json, line, stderr
from sawyer.errors import UsageError
from sawyer.ids import ModelId
from sawyer.schemas.models import Format, Manifest
from sawyer.settings import Settings

app = typer.Typer(help="Split checkpoints into a trunk and single experts.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keeps `split` a subcommand."""


@app.command(epilog="Example: sawyer models split ./checkpoint --name my-moe --format q4")
def split(
    source: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint (config.json, *.safetensors).")],
    name: Annotated[str, typer.Option("--name", help="Model id; by default the folder's name.")] = "",
    format: Annotated[str, typer.Option("--format", help="Format of the experts: f32 or q4.")] = "q4",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; by default in the home.")] = None,
    home: Annotated[Path | None, typer.Option("--home", help="Home directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split a checkpoint into trunk, single experts and a manifest with digests. Started again, it goes on."""
    model = ModelId(name or source.resolve().name.lower())
    folder = out or Settings.load(home=home).home.models / f"{model}-{format}"
    manifest = split_with_progress(source, folder, model, known_format(format))
    size_bytes = sum(file.size_bytes for file in manifest.files)
    if as_json:
        emit_json(
            {"folder": str(folder), "digest": manifest.digest(), "files": len(manifest.files), "bytes": size_bytes}
        )
        return
    line(f"{manifest.model} ({manifest.format})  {len(manifest.files)} files, {size_bytes / 1e6:.1f} MB  {folder}")
    line(f"manifest {manifest.digest()}")


def known_format(text: str) -> Format:
    """Raises UsageError for a format that Sawyer does not write."""
    if text == "q4":
        return "q4"
    if text == "f32":
        return "f32"
    raise UsageError(f"unknown format {text!r}", hint="Formats: q4, f32.")


def split_with_progress(source: Path, out: Path, model: ModelId, format: Format) -> Manifest:
    """Split, with a bar on a terminal's stderr."""
    from sawyer.model.split import SplitProgress
    from sawyer.model.split import split as split_model

    columns = (
        TextColumn("splitting {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(model, total=None)

        def report(step: SplitProgress) -> None:
            bar.update(task, completed=step.bytes_done, total=step.bytes_total)

        return split_model(source, out, model=model, format=format, progress=report)

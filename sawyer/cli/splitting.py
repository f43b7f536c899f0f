"""A split as a person sees it: bars with rate and time left on a terminal, and where a hub's files come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sawyer.cli.output import emit_json, line, say, stderr
from sawyer.errors import UsageError
from sawyer.ids import ModelId
from sawyer.schemas.models import Format, Manifest

if TYPE_CHECKING:
    from sawyer.model.downloads import HubId
    from sawyer.model.parts import Unfinished
    from sawyer.model.remote import DownloadProgress
    from sawyer.model.split import SplitProgress


def split_with_progress(
    source: Path,
    out: Path,
    model: ModelId,
    format: Format,
    trunk_format: Format = "f32",
    layers: range | None = None,
) -> Manifest | Unfinished:
    """Split what is here, or some layers of it, with a bar on a terminal's stderr."""
    from sawyer.model.split import split_layers

    with progress_bars() as bars:
        progress = _splitting(bars, model)
        return split_layers(
            source, out, layers, model=model, format=format, trunk_format=trunk_format, progress=progress
        )


def check_local(source: Path, *, delete_shards: bool, download_to: Path | None) -> None:
    """Raises UsageError for options of a download where there is none."""
    if source.exists() and (delete_shards or download_to is not None):
        raise UsageError(
            f"{source} is on this machine: nothing is downloaded, and nothing of yours is deleted",
            hint="Leave out --delete-shards and --download-to, or name a hub id: owner/name.",
        )


def split_from_hub(
    source: HubId,
    folder: Path,
    out: Path,
    model: ModelId,
    format: Format,
    trunk_format: Format,
    *,
    delete_shards: bool,
    layers: range | None = None,
) -> Manifest | Unfinished:
    """Download into `folder` while it is split, with a bar for each of both. Raises UsageError if that is `out`."""
    if folder.resolve() == out.resolve():
        raise UsageError("--download-to and --out are one folder", hint="Choose two.")
    from sawyer.model.hub import Hub
    from sawyer.model.remote import opened, size_text
    from sawyer.model.split import split_layers

    hub = Hub(source)
    say(f"{source} comes from {hub.endpoint} into {folder}")
    with progress_bars() as bars:
        task = bars.add_task("looking at the shards", total=None)

        def report(step: DownloadProgress) -> None:
            bars.update(task, description=f"downloading {step.name}", completed=step.bytes_done, total=step.bytes_total)

        with opened(hub, source, folder, delete_shards=delete_shards, progress=report) as remote:
            progress = _splitting(bars, model)
            done = split_layers(
                remote.checkpoint, out, layers, model=model, format=format, trunk_format=trunk_format,
                progress=progress, supply=remote,
            )  # fmt: skip
            kept = remote.bytes_here()
    if kept and not delete_shards:
        say(f"the checkpoint stays in {folder} ({size_text(kept)}), for another format: delete it if you want none")
    return done


def show_unfinished(done: Unfinished, source: str, out: Path, *, as_json: bool) -> None:
    """What is missing still, and how to go on."""
    from sawyer.model.parts import ranges

    if as_json:
        emit_json({"folder": str(out), "files": done.done, "missing_layers": list(done.missing)})
    else:
        spans = ranges(done.missing)
        line(f"{done.done} files are split; missing layers: {', '.join(spans)}  {out}")
        say(f"Go on: sawyer models split {source} --layers {spans[0]}, with the same options. Or do that on another")
        say("machine, copy its folder into this one (with its .split-journal files), and start this command again.")
    if done.strange:
        say(f"left out: {', '.join(done.strange)} of another checkpoint, format or version of Sawyer")
        say("(a checkpoint on disk counts as another one if its times differ: copy it with cp -a or rsync -a)")


def progress_bars() -> Progress:
    """Bars with rate and time left, on a terminal's stderr alone."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = stderr()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _splitting(bars: Progress, model: ModelId) -> Callable[[SplitProgress], None]:
    task: TaskID = bars.add_task(f"splitting {model}", total=None)

    def report(step: SplitProgress) -> None:
        bars.update(task, completed=step.bytes_done, total=step.bytes_total)

    return report

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

from sawyer.cli.output import say, stderr
from sawyer.ids import ModelId
from sawyer.schemas.models import Format, Manifest

if TYPE_CHECKING:
    from sawyer.model.downloads import HubId
    from sawyer.model.remote import DownloadProgress
    from sawyer.model.split import SplitProgress


def split_with_progress(
    source: Path, out: Path, model: ModelId, format: Format, trunk_format: Format = "f32"
) -> Manifest:
    """Split what is here, with a bar on a terminal's stderr."""
    from sawyer.model.split import split

    with _bars() as bars:
        progress = _splitting(bars, model)
        return split(source, out, model=model, format=format, trunk_format=trunk_format, progress=progress)


def split_from_hub(
    source: HubId,
    folder: Path,
    out: Path,
    model: ModelId,
    format: Format,
    trunk_format: Format,
    *,
    delete_shards: bool,
) -> Manifest:
    """Download into `folder` while it is split, with a bar for each of both."""
    from sawyer.model.hub import Hub
    from sawyer.model.remote import opened, size_text
    from sawyer.model.split import split

    hub = Hub(source)
    say(f"{source} comes from {hub.endpoint} into {folder}")
    with _bars() as bars:
        task = bars.add_task("looking at the shards", total=None)

        def report(step: DownloadProgress) -> None:
            bars.update(task, description=f"downloading {step.name}", completed=step.bytes_done, total=step.bytes_total)

        with opened(hub, source, folder, delete_shards=delete_shards, progress=report) as remote:
            progress = _splitting(bars, model)
            manifest = split(
                remote.checkpoint, out, model=model, format=format, trunk_format=trunk_format, progress=progress,
                supply=remote,
            )  # fmt: skip
            kept = remote.bytes_here()
    if kept and not delete_shards:
        say(f"the checkpoint stays in {folder} ({size_text(kept)}), for another format: delete it if you want none")
    return manifest


def _bars() -> Progress:
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

"""`sawyer models publish`, and taking a model out of the network's store again: the operator's part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.output import emit_json, line, say
from sawyer.errors import RefusedError, Superseded, UnknownModel, UsageError
from sawyer.schemas.models import MANIFEST_FILE
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.protocol import Bus
    from sawyer.bus.publishing import PublishProgress
    from sawyer.model.artifacts import Artifacts
    from sawyer.schemas.messages import NetworkReply


def publish(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")],
    format: Annotated[str, typer.Option("--format", help="The format, where several are split here.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Offer a split model to the network: its files in the store, its signed manifest in the book. The operator's."""
    from sawyer.cli.operating import operators_pin
    from sawyer.model.artifacts import Artifacts

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    operators_pin(settings.home)
    artifacts = Artifacts.open(split_folder(settings, model, format))
    sent, recorded = asyncio.run(_publish(settings, artifacts))
    manifest = artifacts.manifest
    size_bytes = sum(file.size_bytes for file in manifest.files)
    if as_json:
        emit_json(
            {
                "model": manifest.model,
                "format": manifest.format,
                "manifest": artifacts.digest,
                "files": len(manifest.files),
                "bytes": size_bytes,
                "stored": sent,
                "recorded": recorded,
            }
        )
        return
    what = "published" if sent or recorded else "already published"
    line(f"{manifest.model} ({manifest.format})  {what}: {len(manifest.files)} files, {size_bytes / 1e6:.1f} MB")
    line(f"manifest {artifacts.digest}")


def split_folder(settings: Settings, model: str, format: str) -> Path:
    """The split of this name in the home, the only one if no format is named, or the folder that was named itself.
    Raises UsageError."""
    from sawyer.cli.model_here import split_formats
    from sawyer.cli.model_store import DEFAULT_FORMAT
    from sawyer.cli.parts import model_folder

    known = [] if (Path(model) / MANIFEST_FILE).is_file() else split_formats(settings.home, model)
    if not format and len(known) > 1:
        raise UsageError(f"{model} is split here in {' and '.join(known)}", hint="Name one with --format.")
    return model_folder(settings.home, model, format or next(iter(known), DEFAULT_FORMAT))


async def _publish(settings: Settings, artifacts: Artifacts) -> tuple[bool, bool]:
    """Whether files were sent, and whether the book got an entry."""
    from sawyer.bus.connection import NatsBus
    from sawyer.bus.objects import Bucket
    from sawyer.bus.publishing import publish_files
    from sawyer.cli.model_store import operators_of
    from sawyer.cli.operating import operating
    from sawyer.cli.splitting import progress_bars
    from sawyer.schemas import subjects

    manifest = artifacts.manifest
    async with operating(settings) as (founder, network):
        statement = founder.signed_publication(manifest).canonical()
        operators = operators_of(founder.pin, network.successors)
        recorded = artifacts.digest not in {each.manifest for each in network.models}
        if recorded:
            await _check_new(founder.bus, network, manifest.model, artifacts.digest)
        bus = await NatsBus.connect(settings.where_nats()[0], name=f"publish {manifest.model}")
        try:
            with progress_bars() as bars:
                task = bars.add_task(f"publishing {manifest.model}", total=None)

                def report(step: PublishProgress) -> None:
                    bars.update(task, completed=step.bytes_done, total=step.bytes_total)

                bucket = Bucket(bus, subjects.model_bucket(manifest.model, artifacts.digest))
                sent = await publish_files(bucket, artifacts, statement, report, operators)
        finally:
            await bus.close()
        await founder.publish(manifest)
    return sent, recorded


async def _check_new(bus: Bus, network: NetworkReply, model: str, digest: str) -> None:
    """Says what this publication replaces. Raises Superseded for weights that were replaced themselves: the book
    takes each once, and no file is sent for nothing."""
    from sawyer.bus.calls import ask
    from sawyer.schemas.messages import PublicationQuery, PublicationReply

    try:
        await ask(bus, "publication", PublicationReply, PublicationQuery(model=model, manifest=digest))
    except UnknownModel:
        pass
    else:
        raise Superseded(
            f"{model} was published as {digest[:16]} before, and replaced since",
            hint="Weights that were replaced do not come back under this name: split them again with another --name.",
        )
    before = next((each for each in network.models if each.model == model), None)
    if before is not None and before.manifest != digest:
        say(f"{model} is published as {before.manifest[:16]} ({before.format}): this replaces it")


def remove_from_network(settings: Settings, model: str, *, current_too: bool, confirmed: bool) -> list[str]:
    """Delete the buckets of this model's superseded weights, and with `current_too` that of the current ones; their
    names. Raises NotAuthorised, RefusedError if there is nothing to delete, NoStore."""
    from sawyer.cli.operating import operators_pin

    operators_pin(settings.home)
    return asyncio.run(_remove(settings, model, current_too=current_too, confirmed=confirmed))


async def _remove(settings: Settings, model: str, *, current_too: bool, confirmed: bool) -> list[str]:
    from sawyer.bus.objects import Bucket, bucket_names
    from sawyer.cli.operating import operating
    from sawyer.cli.session import reached
    from sawyer.schemas import subjects

    async with operating(settings) as (_, network), reached(settings, "models") as (bus, _):
        named = {each.manifest for each in network.models if each.model == model}
        current = {subjects.model_bucket(model, each) for each in named}
        found = [each for each in await bucket_names(bus) if subjects.is_bucket_of(model, each)]
        doomed = [each for each in found if current_too or each not in current]
        if not doomed:
            raise RefusedError(
                f"the store has no superseded weights of {model}" if found else f"the store has nothing of {model}",
                hint="--all deletes the current ones, too." if found else "`sawyer models ls` lists what there is.",
            )
        _confirm(doomed, confirmed=confirmed)
        for name in doomed:
            await Bucket(bus, name).destroy()
        if current & set(doomed):
            say(f"the book still names {model}: nobody can pull it until it is published again")
    return doomed


def _confirm(doomed: Sequence[str], *, confirmed: bool) -> None:
    from sawyer.cli.model_pull import confirm

    confirm(f"Delete {', '.join(doomed)} from the network's store?", confirmed=confirmed)

"""`sawyer models`: which there are, what is known of one, splitting a checkpoint; and the commands of files that
travel, which are in model_publish.py and model_pull.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from sawyer.cli import model_publish, model_pull, output
from sawyer.cli.options import (
    ContextOption,
    CredsOption,
    ExactOption,
    ExpertFormatOption,
    HomeOption,
    JsonOption,
    NatsOption,
    TrunkFormatOption,
)
from sawyer.cli.output import emit_json, line
from sawyer.errors import RefusedError, UnreachableError, UsageError
from sawyer.ids import ModelId
from sawyer.schemas.models import Format
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.cli.model_list import KnownModel
    from sawyer.schemas.messages import NetworkReply
    from sawyer.schemas.models import Manifest

app = typer.Typer(
    help="List models, look at one, split a checkpoint, publish, pull, verify and delete.", no_args_is_help=True
)


@app.callback()
def group() -> None:
    """List models, look at one, split a checkpoint, publish, pull, verify and delete."""


@app.command("ls", epilog="Example: sawyer models ls --json")
def list_command(
    public: Annotated[
        bool, typer.Option("--catalogue", help="Public models whose sizes are known here, instead.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """List the models that the network publishes, those split in this home, and those that come with the package."""
    from sawyer.cli.model_list import catalogue_rows
    from sawyer.cli.model_report import row_document, shape_document, shape_of, show_catalogue, show_table

    if public:
        models = catalogue_rows()
        if as_json:
            emit_json([{**row_document(row), **shape_document(shape_of(row, None))} for row in models])
        else:
            show_catalogue(models)
        return
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    rows = _known_models(settings)
    if as_json:
        emit_json([row_document(row) for row in rows])
    else:
        show_table(rows)


@app.command("show", epilog="Example: sawyer models show mixtral-8x7b")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    format: Annotated[str, typer.Option("--format", help="The format, where there are several.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show a model, also of the catalogue: shape, parameters, sizes, price, where it is, and what a token takes."""
    from sawyer.cli.model_list import find
    from sawyer.cli.model_report import row_document, shape_document, shape_of, show_page

    wanted = known_format(format) if format else None
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    row = find(name, wanted, _known_models(settings))
    shape = shape_of(row, wanted)
    if as_json:
        emit_json({**row_document(row), **shape_document(shape)})
    else:
        show_page(row, shape)


@app.command(epilog="Example: sawyer models split mistralai/Mixtral-8x7B-v0.1 --delete-shards")
def split(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a Hugging Face checkpoint, a .gguf file, or a hub id to download: owner/name[@rev]."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Model id; by default the name of the folder or hub id.")] = "",
    format: ExpertFormatOption = "",
    trunk_format: TrunkFormatOption = "",
    exact: ExactOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; by default in the home.")] = None,
    delete_shards: Annotated[
        bool, typer.Option("--delete-shards", help="Delete each downloaded shard as soon as it is split.")
    ] = False,
    layers: Annotated[
        str, typer.Option("--layers", metavar="A-B", help="Only these layers now, from 0; the others in other runs.")
    ] = "",
    download_to: Annotated[
        Path | None,
        typer.Option("--download-to", metavar="DIR", help="Folder for what is downloaded; by default in the home."),
    ] = None,
    home: Annotated[Path | None, typer.Option("--home", help="Home directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split a checkpoint into trunk, single experts and a manifest with digests. Started again, it goes on."""
    from sawyer.cli.split_formats import formats_of
    from sawyer.cli.splitting import check_local, show_unfinished, split_from_hub, split_with_progress
    from sawyer.model.downloads import HubId
    from sawyer.model.gguf import SUFFIX
    from sawyer.model.parts import Unfinished, parse_layers
    from sawyer.model.sources import model_name

    place = Path(source)
    hub = None if place.exists() else HubId.parse(source)
    model = ModelId(name or (hub.model_name if hub is not None else model_name(place)))
    fmt, trunk = formats_of(format, trunk_format, exact=exact, gguf=place.suffix == SUFFIX and place.is_file())
    part = parse_layers(layers) if layers else None
    folder = out or Settings.load(home=home).home.models / f"{model}-{fmt}"
    if hub is not None:
        downloads = download_to or Settings.load(home=home).home.downloads / hub.folder_name
        done = split_from_hub(hub, downloads, folder, model, fmt, trunk, delete_shards=delete_shards, layers=part)
    else:
        check_local(place, delete_shards=delete_shards, download_to=download_to)
        done = split_with_progress(place, folder, model, fmt, trunk, part)
    if isinstance(done, Unfinished):
        show_unfinished(done, source, folder, as_json=as_json)
    else:
        _show_split(done, folder, as_json=as_json)


def _show_split(manifest: Manifest, folder: Path, *, as_json: bool) -> None:
    size_bytes = sum(file.size_bytes for file in manifest.files)
    if as_json:
        emit_json(
            {"folder": str(folder), "digest": manifest.digest(), "files": len(manifest.files), "bytes": size_bytes}
        )
        return
    formats = manifest.format if manifest.trunk_format is None else f"{manifest.format}, trunk {manifest.trunk}"
    line(f"{manifest.model} ({formats})  {len(manifest.files)} files, {size_bytes / 1e6:.1f} MB  {folder}")
    line(f"manifest {manifest.digest()}")


for _name, _does, _example in (
    ("publish", model_publish.publish, "sawyer models publish austen-8m"),
    ("pull", model_pull.pull, "sawyer models pull austen-8m --share 0/2"),
    ("verify", model_pull.verify, "sawyer models verify austen-8m"),
    ("rm", model_pull.remove, "sawyer models rm austen-8m --format q8"),
):
    app.command(_name, epilog=f"Example: {_example}")(_does)


def known_format(text: str, *, of_trunk: bool = False) -> Format:
    """Raises UsageError for a format that Sawyer does not write, or not for a trunk."""
    formats: tuple[Format, ...] = get_args(Format)
    if of_trunk:
        formats = tuple(each for each in formats if each != "gguf")
        if text == "gguf":
            raise UsageError("gguf is a format of experts alone", hint=f"Formats of a trunk: {', '.join(formats)}.")
    for each in formats:
        if each == text:
            return each
    raise UsageError(f"unknown format {text!r}", hint=f"Formats: {', '.join(sorted(formats, reverse=True))}.")


def _known_models(settings: Settings) -> list[KnownModel]:
    from sawyer.cli.model_here import local_models
    from sawyer.cli.model_list import join

    network, offered = _network(settings)
    found, wrong = local_models(settings.home)
    for error in wrong:
        output.say(f"left out: {error.message}")
    return join(network, found, offered)


def _network(settings: Settings) -> tuple[NetworkReply | None, frozenset[str]]:
    """The network, if it answers, and the manifests whose files its store offers; else says so: what is here can be
    listed all the same."""
    from sawyer.cli.model_store import offered_of
    from sawyer.cli.session import connected

    async def ask() -> tuple[NetworkReply, frozenset[str]]:
        async with connected(settings, "models") as (bus, network):
            return network, await offered_of(bus, network)

    try:
        return asyncio.run(ask())
    except (UnreachableError, RefusedError) as error:
        output.say(f"only what is on this machine: {error.message}")
        return None, frozenset()

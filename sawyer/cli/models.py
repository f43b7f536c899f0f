"""`sawyer models`: which there are, what is known of one, and splitting a checkpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.output import emit_json, line
from sawyer.errors import RefusedError, UnreachableError, UsageError
from sawyer.ids import ModelId
from sawyer.schemas.models import Format
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.cli.model_list import KnownModel
    from sawyer.schemas.messages import NetworkReply

app = typer.Typer(help="List models, look at one, split a checkpoint into trunk and experts.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """List models, look at one, split a checkpoint into trunk and experts."""


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
    format: Annotated[
        str, typer.Option("--format", help="Format of the experts: q4, q8, f32, or f16 (for CUDA alone).")
    ] = "q4",
    trunk_format: Annotated[
        str, typer.Option("--trunk-format", help="Format of the trunk's matrices: f32, q8, q4 or f16.")
    ] = "f32",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; by default in the home.")] = None,
    delete_shards: Annotated[
        bool, typer.Option("--delete-shards", help="Delete each downloaded shard as soon as it is split.")
    ] = False,
    download_to: Annotated[
        Path | None,
        typer.Option("--download-to", metavar="DIR", help="Folder for what is downloaded; by default in the home."),
    ] = None,
    home: Annotated[Path | None, typer.Option("--home", help="Home directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split a checkpoint into trunk, single experts and a manifest with digests. Started again, it goes on."""
    from sawyer.cli.splitting import split_from_hub, split_with_progress
    from sawyer.model.downloads import HubId
    from sawyer.model.sources import model_name

    place = Path(source)
    hub = None if place.exists() else HubId.parse(source)
    model = ModelId(name or (hub.model_name if hub is not None else model_name(place)))
    fmt, trunk = known_format(format), known_format(trunk_format)
    folder = out or Settings.load(home=home).home.models / f"{model}-{format}"
    if hub is not None:
        downloads = download_to or Settings.load(home=home).home.downloads / hub.folder_name
        if downloads.resolve() == folder.resolve():
            raise UsageError("--download-to and --out are one folder", hint="Choose two.")
        manifest = split_from_hub(hub, downloads, folder, model, fmt, trunk, delete_shards=delete_shards)
    elif place.exists() and (delete_shards or download_to is not None):
        raise UsageError(
            f"{source} is on this machine: nothing is downloaded, and nothing of yours is deleted",
            hint="Leave out --delete-shards and --download-to, or name a hub id: owner/name.",
        )
    else:
        manifest = split_with_progress(place, folder, model, fmt, trunk)
    size_bytes = sum(file.size_bytes for file in manifest.files)
    if as_json:
        emit_json(
            {"folder": str(folder), "digest": manifest.digest(), "files": len(manifest.files), "bytes": size_bytes}
        )
        return
    formats = manifest.format if manifest.trunk_format is None else f"{manifest.format}, trunk {manifest.trunk}"
    line(f"{manifest.model} ({formats})  {len(manifest.files)} files, {size_bytes / 1e6:.1f} MB  {folder}")
    line(f"manifest {manifest.digest()}")


def known_format(text: str) -> Format:
    """Raises UsageError for a format that Sawyer does not write."""
    formats: tuple[Format, ...] = get_args(Format)
    for each in formats:
        if each == text:
            return each
    raise UsageError(f"unknown format {text!r}", hint=f"Formats: {', '.join(sorted(formats, reverse=True))}.")


def _known_models(settings: Settings) -> list[KnownModel]:
    from sawyer.cli.model_list import join, local_models

    network = _network(settings)
    found, wrong = local_models(settings.home)
    for error in wrong:
        output.say(f"left out: {error.message}")
    return join(network, found)


def _network(settings: Settings) -> NetworkReply | None:
    """The network, if it answers; else says so: what is here can be listed all the same."""
    from sawyer.cli.session import connected

    async def ask() -> NetworkReply:
        async with connected(settings, "models") as (_, network):
            return network

    try:
        return asyncio.run(ask())
    except (UnreachableError, RefusedError) as error:
        output.say(f"only what is on this machine: {error.message}")
        return None

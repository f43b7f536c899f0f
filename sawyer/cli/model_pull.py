"""`sawyer models pull`, `verify` and `rm`: models on this machine that others split, and what is wrong with them."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sawyer.cli.model_here import Local, cache_of, local_models
from sawyer.cli.model_store import bring_shown, kept_model, network_told, open_pulled, published_as, trunk_paths
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.output import emit_json, line, say, table
from sawyer.errors import EXIT_WRONG, Cancelled, UsageError
from sawyer.schemas.models import MANIFEST_FILE
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.pulling import PulledModel
    from sawyer.model.artifacts import Artifacts


def pull(
    model: Annotated[str, typer.Argument(help="Model id.")],
    experts: Annotated[
        str, typer.Option("--experts", metavar="LAYERS:EXPERTS,...", help="Only these experts, such as 0:0-3,1:4,2:*.")
    ] = "",
    share: Annotated[str, typer.Option("--share", metavar="PART/OF", help="Only an equal share, as of serve.")] = "",
    trunk: Annotated[bool, typer.Option("--trunk", help="Only what a router needs: trunk and tokenizer.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Fetch a model's files, or some of them, from the network; each is verified. Started again, it goes on."""
    if sum(map(bool, (experts, share, trunk))) > 1:
        raise UsageError("--experts, --share and --trunk each say which files", hint="Give one of them, or none: all.")
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    pulled, paths = asyncio.run(_pull(settings, model, experts, share, trunk=trunk))
    manifest = pulled.artifacts.manifest
    here = Local(pulled.artifacts.folder, manifest, pulled=True).here
    size_bytes = sum(file.size_bytes for file in manifest.files if file.path in set(paths))
    if as_json:
        emit_json(
            {
                "model": manifest.model,
                "format": manifest.format,
                "manifest": pulled.artifacts.digest,
                "folder": str(pulled.artifacts.folder),
                "files": len(paths),
                "bytes": size_bytes,
                "files_here": len(here),
                "files_of_model": len(manifest.files),
            }
        )
        return
    line(
        f"{manifest.model} ({manifest.format})  {len(paths)} files, {size_bytes / 1e6:.1f} MB, verified  "
        f"{pulled.artifacts.folder}"
    )
    line(f"manifest {pulled.artifacts.digest}")


async def _pull(
    settings: Settings, model: str, experts: str, share: str, *, trunk: bool
) -> tuple[PulledModel, list[str]]:
    network = await network_told(settings, pin=True)
    files = await open_pulled(settings, network, published_as(network, model, ""))
    artifacts = files.artifacts
    if trunk:
        paths = trunk_paths(artifacts)
    elif experts or share:
        paths = _expert_paths(artifacts, experts, share)
    else:
        paths = [file.path for file in artifacts.manifest.files]
    await bring_shown(files, paths)
    return files, paths


def _expert_paths(artifacts: Artifacts, experts: str, share: str) -> list[str]:
    from sawyer.model.layout import expert_file
    from sawyer.node.hosting import pairs, parse_experts, parse_share
    from sawyer.node.hosting import share as share_of

    layout = artifacts.layout
    layers = parse_experts(experts, layout) if experts else share_of(layout, *parse_share(share))
    return [expert_file(layer, expert, artifacts.manifest.format) for layer, expert in pairs(layers)]


def verify(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")],
    format: Annotated[str, typer.Option("--format", help="Only the copies in this format.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Hash every file of a model that is on this machine, and compare. Exit code 3 if one is wrong."""
    settings = Settings.load(home=home)
    found, damaged = _copies(settings, model, format)
    documents = [_verified(settings, copy) for copy in found] + [_unusable(folder) for folder in damaged]
    if as_json:
        emit_json(documents)
    else:
        for copy, told in zip(found, documents, strict=False):
            if not told["wrong"]:
                line(f"right: {copy.told}")
    rows = [(f"{told['folder']}/{each['file']}", each["what"]) for told in documents for each in told["wrong"]]
    if rows and not as_json:
        table(("wrong file", "what is wrong"), rows)
        say("`sawyer models pull` replaces what is wrong of a pulled copy; a split has to be made again.")
    if rows:
        raise typer.Exit(EXIT_WRONG)


def _verified(settings: Settings, copy: Local) -> dict[str, Any]:
    """What is here of a copy, and what is wrong with it."""
    from sawyer.model.artifacts import Artifacts
    from sawyer.model.cache import problems

    artifacts = Artifacts(copy.folder, copy.manifest)
    wrong = list(problems(artifacts, partial=copy.pulled))
    signed = kept_model(settings, copy) is not None if copy.pulled else None
    if signed is False:
        wrong.append((MANIFEST_FILE, _unsigned(settings, copy)))
    return {
        "folder": str(copy.folder),
        "format": copy.manifest.format,
        "manifest": artifacts.digest,
        "signed": signed,
        "files_here": len(copy.here),
        "files_of_model": len(copy.manifest.files),
        "wrong": [{"file": path, "what": what} for path, what in wrong],
    }


def _unsigned(settings: Settings, copy: Local) -> str:
    if settings.home.pin() is None:
        return "this home belongs to no network, so nobody's signature counts (sawyer register)"
    return f"neither this home's network nor its operator signed it as {copy.manifest.model}"


def _unusable(folder: Path) -> dict[str, Any]:
    """Of a pulled copy whose manifest nobody can use."""
    wrong = {"file": MANIFEST_FILE, "what": "it is missing, broken or that of other weights"}
    return {
        "folder": str(folder),
        "format": None,
        "manifest": None,
        "signed": False,
        "files_here": None,
        "files_of_model": None,
        "wrong": [wrong],
    }


def remove(
    model: Annotated[str, typer.Argument(help="Model id.")],
    format: Annotated[str, typer.Option("--format", help="Only the copies in this format.")] = "",
    from_network: Annotated[
        bool, typer.Option("--from-network", help="Delete superseded weights in the network's store. The operator's.")
    ] = False,
    all_of_it: Annotated[bool, typer.Option("--all", help="With --from-network: the current weights, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Delete the split and the pulled copies of a model in this home, or its files in the network's store."""
    from sawyer.cli.model_publish import remove_from_network

    if all_of_it and not from_network:
        raise UsageError("--all is for --from-network", hint="Without it, every copy here is deleted anyway.")
    if from_network and format:
        raise UsageError("--format is for copies on this machine", hint="--from-network deletes by publication.")
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    if from_network:
        removed = remove_from_network(settings, model, current_too=all_of_it, confirmed=yes)
    else:
        removed = _remove_here(settings, model, format, confirmed=yes)
    if as_json:
        emit_json({"deleted": removed})
        return
    for each in removed:
        line(f"deleted {each}")


def confirm(question: str, *, confirmed: bool) -> None:
    """Ask, on a terminal. Raises UsageError where nobody can answer; ends the command if the answer is no."""
    if confirmed:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is here to confirm this", hint="Add --yes.")
    if not typer.confirm(question, err=True):
        raise Cancelled("nothing was deleted")


def _remove_here(settings: Settings, model: str, format: str, *, confirmed: bool) -> list[str]:
    from sawyer.model.writing import only_writer

    found, damaged = _copies(settings, model, format, named_only=True)
    folders = [*(copy.folder for copy in found), *damaged]
    for folder in folders:
        if folder.is_symlink():
            raise UsageError(f"{folder} is a link: what it leads to is not this home's", hint="Delete it by hand.")
    told = [*(copy.told for copy in found), *(f"{model}, damaged, {folder}" for folder in damaged)]
    confirm(f"Delete {', '.join(told)}?", confirmed=confirmed)
    for folder in folders:
        if folder.parent == settings.home.cache:
            cache_of(settings).remove(folder)
            continue
        with only_writer(folder):
            (folder / MANIFEST_FILE).unlink()  # first: without it nobody takes the rest for a model
            shutil.rmtree(folder)
    return [str(folder) for folder in folders]


def _copies(settings: Settings, model: str, format: str, *, named_only: bool = False) -> tuple[list[Local], list[Path]]:
    """Every copy of a model in this home, or the folder that was named itself; and the folders of pulled ones whose
    manifest cannot be used, of any format. Raises UsageError if there is none."""
    from sawyer.model.artifacts import Artifacts

    if not named_only and (Path(model) / MANIFEST_FILE).is_file():
        artifacts = Artifacts.open(Path(model))
        pulled = artifacts.folder.absolute().parent == settings.home.cache
        return [Local(artifacts.folder, artifacts.manifest, pulled)], []
    damaged = cache_of(settings).damaged()
    copies, wrong = local_models(settings.home)
    for error in wrong:
        say(f"left out: {error.message}")
    folders = {folder for _, folder in damaged}
    found = [
        each
        for each in copies
        if each.manifest.model == model and format in ("", each.manifest.format) and each.folder not in folders
    ]
    broken = [folder for name, folder in damaged if name == model]
    if found or broken:
        return found, broken
    here = ", ".join(sorted({f"{each.manifest.model} ({each.manifest.format})" for each in copies})) or "none"
    named = f"{model} ({format})" if format else model
    raise UsageError(f"there is no copy of {named} in {settings.home.path}", hint=f"There are: {here}.")

"""`sawyer models pull`, `verify` and `rm`: models on this machine that others split, and what is wrong with them."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli.model_store import (
    Pulled,
    bring_shown,
    cache_of,
    kept_model,
    network_told,
    open_pulled,
    published_as,
    trunk_paths,
)
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
    here = Pulled(pulled.artifacts.folder, manifest).here
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
    from sawyer.model.artifacts import Artifacts
    from sawyer.model.cache import problems

    settings = Settings.load(home=home)
    found = _copies(settings, model, format)
    documents, rows = [], []
    for copy in found:
        artifacts = Artifacts(copy.folder, copy.manifest)
        wrong = list(problems(artifacts, partial=copy.is_pulled))
        signed = kept_model(settings, Pulled(copy.folder, copy.manifest)) is not None if copy.is_pulled else None
        if signed is False:
            wrong.append((MANIFEST_FILE, f"no operator of this home's network signed it as {copy.manifest.model}"))
        rows += [(str(copy.folder / path), what) for path, what in wrong]
        documents.append(
            {
                "folder": str(copy.folder),
                "format": copy.manifest.format,
                "manifest": artifacts.digest,
                "signed": signed,
                "files_here": len(Pulled(copy.folder, copy.manifest).here),
                "files_of_model": len(copy.manifest.files),
                "wrong": [{"file": path, "what": what} for path, what in wrong],
            }
        )
        if not wrong and not as_json:
            line(f"right: {copy.told}")
    if as_json:
        emit_json(documents)
    elif rows:
        table(("wrong file", "what is wrong"), rows)
        say("`sawyer models pull` replaces wrong files of a pulled copy; a split has to be made again.")
    if rows:
        raise typer.Exit(EXIT_WRONG)


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

    found = _copies(settings, model, format, named_only=True)
    for copy in found:
        if copy.folder.is_symlink():
            raise UsageError(f"{copy.folder} is a link: what it leads to is not this home's", hint="Delete it by hand.")
    confirm("Delete " + ", ".join(copy.told for copy in found) + "?", confirmed=confirmed)
    for copy in found:
        if copy.is_pulled:
            cache_of(settings).remove(copy.folder)
            continue
        with only_writer(copy.folder):
            (copy.folder / MANIFEST_FILE).unlink()  # first: without it nobody takes the rest for a model
            shutil.rmtree(copy.folder)
    return [str(copy.folder) for copy in found]


class _Copy(Pulled):
    """A model on this machine: split, or pulled."""

    is_pulled = False

    @property
    def told(self) -> str:
        here = len(self.here)
        what = f"pulled, {here} of {len(self.manifest.files)} files" if self.is_pulled else f"split, {here} files"
        return f"{self.manifest.model} ({self.manifest.format}), {what}, {self.folder}"


class _PulledCopy(_Copy):
    is_pulled = True


def _copies(settings: Settings, model: str, format: str, *, named_only: bool = False) -> list[_Copy]:
    """Every copy of a model in this home, or the folder that was named itself. Raises UsageError if there is none."""
    from sawyer.cli.model_list import local_models
    from sawyer.model.artifacts import Artifacts

    if not named_only and (Path(model) / MANIFEST_FILE).is_file():
        artifacts = Artifacts.open(Path(model))
        kind = _PulledCopy if artifacts.folder.absolute().parent == settings.home.cache else _Copy
        return [kind(artifacts.folder, artifacts.manifest)]
    models, wrong = local_models(settings.home)
    for error in wrong:
        say(f"left out: {error.message}")
    copies = [(_PulledCopy if each.pulled else _Copy)(each.folder, each.manifest) for each in models]
    found = [each for each in copies if each.manifest.model == model and format in ("", each.manifest.format)]
    if found:
        return found
    here = ", ".join(sorted({f"{each.manifest.model} ({each.manifest.format})" for each in copies})) or "none"
    named = f"{model} ({format})" if format else model
    raise UsageError(f"there is no copy of {named} in {settings.home.path}", hint=f"There are: {here}.")

"""Where the files of a model that is named come from: a split in this home, the package, or the network's store. Owns
that choice, and how a pull looks while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sawyer import durable
from sawyer.cli.model_here import Local, cache_of, pulled_models
from sawyer.cli.output import say
from sawyer.cli.parts import model_folder
from sawyer.errors import RefusedError, SawyerError, UnknownModel, UnreachableError, UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.publication import PROOF_FILE, check_publication
from sawyer.ledger.succession import known_successors, trusted
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas import subjects
from sawyer.schemas.events import ModelPublished, Successor
from sawyer.schemas.models import MANIFEST_FILE
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.bus.connection import NatsBus
    from sawyer.bus.pulling import PulledModel, PullProgress, Wanted
    from sawyer.model.artifacts import Artifacts
    from sawyer.model.files import ModelFiles
    from sawyer.schemas.messages import NetworkReply

DEFAULT_FORMAT: Final = "q4"


def open_model(settings: Settings, model: str, format: str = "") -> ModelFiles:
    """The model of this name, for those who run it; its manifest is here and verified, its files may have to be brought
    (`bring_shown`). `format` "": the one that the network publishes. Asks the network, so call it outside of a loop.
    Raises UsageError, UnknownModel, UnreachableError, VerificationError."""
    from sawyer.model.artifacts import Artifacts
    from sawyer.model.files import FilesHere

    if (Path(model) / MANIFEST_FILE).is_file():
        return FilesHere(Artifacts.open(Path(model)))
    network = asyncio.run(_told(settings))
    published = _published(network, model, format) if network is not None else None
    here = _split_here(settings.home, model, published)
    if here is not None:
        return FilesHere(here)
    if network is None or published is None:
        return _kept(settings, model, format) or FilesHere(_local(settings.home, model, format, network))
    return asyncio.run(open_pulled(settings, network, published))


def bring_trunk(settings: Settings) -> Path:
    """The folder of a trunk that is whole here: of the model that these settings name, else of the only one there is.
    Raises what `open_model` raises, UnreachableError, UnknownModel."""
    from sawyer.cli.session import chosen_model

    network = asyncio.run(network_told(settings))
    files = open_model(settings, chosen_model(network, settings["model"]), "")
    asyncio.run(bring_shown(files, trunk_paths(files.artifacts)))
    return files.artifacts.folder


async def bring_shown(files: ModelFiles, paths: Iterable[str]) -> None:
    """`files.bring`, with a bar on a terminal's stderr while files come from the network."""
    from sawyer.bus.pulling import PulledModel

    if not isinstance(files, PulledModel):
        await files.bring(paths)
        return
    from sawyer.cli.splitting import progress_bars

    with progress_bars() as bars:
        task = bars.add_task(f"pulling {files.artifacts.manifest.model}", total=None)

        def report(step: PullProgress) -> None:
            bars.update(task, completed=step.bytes_done, total=step.bytes_total)

        files.progress = report
        try:
            await files.bring(paths)
        finally:
            files.progress = None


async def open_pulled(settings: Settings, network: NetworkReply, published: ModelPublished) -> PulledModel:
    """The weights that the network publishes, from the cache or the network's store. Raises NoStore, VerificationError,
    WrongManifest, UnreachableError."""
    from sawyer.bus.pulling import PulledModel

    wanted = wanted_of(settings.home, network, published)
    files = await PulledModel.open(settings.where_nats()[0], wanted, cache_of(settings))
    await _prove(settings, network, published, files.artifacts.folder / PROOF_FILE)
    return files


async def _prove(settings: Settings, network: NetworkReply, published: ModelPublished, kept: Path) -> None:
    """Raises VerificationError unless the book has these weights, by the ledger's keys that this home trusts. The proof
    is kept."""
    from sawyer.bus.calls import ask
    from sawyer.cli.session import connected
    from sawyer.client.door import check_pinned
    from sawyer.schemas.messages import PublicationQuery, PublicationReply

    _, verifiers = check_pinned(network, settings.home)
    if _is_proven(kept, verifiers, published.model, published.manifest):
        return
    async with connected(settings, "models") as (bus, _):
        query = PublicationQuery(model=published.model, manifest=published.manifest)
        told = await ask(bus, "publication", PublicationReply, query)
    check_publication(told.proof, verifiers, published.model, published.manifest)
    durable.replace(kept, told.proof.encode())


def _is_proven(kept: Path, verifiers: Sequence[Verifier], model: str, manifest: str) -> bool:
    try:
        check_publication(kept.read_text(encoding="utf-8"), verifiers, model, manifest)
    except (OSError, UnicodeDecodeError, VerificationError):
        return False
    return True


def wanted_of(home: Home, network: NetworkReply, published: ModelPublished) -> Wanted:
    """These weights, and whose signature counts for them."""
    from sawyer.bus.pulling import Wanted
    from sawyer.client.door import pin_of

    operators = operators_of(home.pin() or pin_of(network), network.successors)
    return Wanted(network.network, published.model, published.manifest, operators)


def operators_of(pin: Pin, successors: Iterable[Successor]) -> frozenset[str]:
    """Every key that is or was the operator's. Raises VerificationError if a successor is not rightly signed."""
    told = tuple(successors)
    trusted(pin, told)
    return frozenset({pin.operator, *(each.added.body.key for each in told if each.added.body.role == "operator")})


def trunk_paths(artifacts: Artifacts) -> list[str]:
    """What a router needs: every file that is no expert."""
    from sawyer.model.layout import expert_file

    layout, format = artifacts.layout, artifacts.manifest.format
    experts = {expert_file(layer, expert, format) for layer in layout.moe_layers for expert in range(layout.experts)}
    return [file.path for file in artifacts.manifest.files if file.path not in experts]


def kept_model(settings: Settings, pulled: Local) -> PulledModel | None:
    """A pulled model whose signature and proof hold, without asking the network; None if they do not."""
    from sawyer.bus.pulling import PulledModel, Wanted

    pin = settings.home.pin()
    if pin is None:
        return None
    manifest, successors = pulled.manifest, known_successors(settings.home.successors)
    operators, (_, verifiers) = operators_of(pin, successors), trusted(pin, successors)
    if not _is_proven(pulled.folder / PROOF_FILE, verifiers, manifest.model, manifest.digest()):
        return None
    wanted = Wanted(pin.network, manifest.model, manifest.digest(), operators)
    return PulledModel.kept(settings.where_nats()[0], wanted, cache_of(settings))


async def offered_of(bus: NatsBus, network: NetworkReply) -> frozenset[str]:
    """The published manifests whose files the network's store has."""
    from sawyer.bus.objects import Bucket

    found = set()
    try:
        for each in network.models:
            state = await Bucket(bus, subjects.model_bucket(each.model, each.manifest)).state()
            if state is not None and state.sealed:
                found.add(each.manifest)
    except SawyerError as error:  # a list of models is worth more than this column
        say(f"what the store has is not known: {error.message}")
    return frozenset(found)


async def network_told(settings: Settings, *, pin: bool = False) -> NetworkReply:
    """What the network says; with `pin` a home that belongs to none belongs to it from now on. Raises
    UnreachableError, VerificationError if another one answers than this home's."""
    from sawyer.cli.session import connected

    async with connected(settings, "models", pin=pin) as (_, network):
        return network


async def _told(settings: Settings) -> NetworkReply | None:
    """`network_told`; None if it cannot be asked."""
    try:
        return await network_told(settings)
    except (UnreachableError, RefusedError):
        return None


def published_as(network: NetworkReply, model: str, format: str) -> ModelPublished:
    """What the network publishes under this name. Raises UnknownModel, with names that are near."""
    from sawyer.cli.model_list import near_names

    found = _published(network, model, format)
    if found is not None:
        return found
    offered = ", ".join(f"{each.model} ({each.format})" for each in network.models) or "none"
    near = [each for each in near_names(model, [each.model for each in network.models]) if each in offered]
    raise UnknownModel(
        f"the network publishes no model {model}{f' in {format}' if format else ''}",
        hint=f"It publishes: {offered}." + (f" Near: {', '.join(near)}." if near else ""),
    )


def _published(network: NetworkReply, model: str, format: str) -> ModelPublished | None:
    """What the network publishes under this name, in this format if one is named."""
    found = next((each for each in network.models if each.model == model), None)
    return found if found is not None and format in ("", found.format) else None


def _split_here(home: Home, model: str, published: ModelPublished | None) -> Artifacts | None:
    """The split in this home that is what the network publishes; the demo model is split when it is first needed."""
    from sawyer.model.artifacts import Artifacts

    if published is None:
        return None
    wanted = home.models / f"{model}-{published.format}"
    if not (wanted / MANIFEST_FILE).is_file() and model != DEMO_MODEL:
        return None
    here = Artifacts.open(model_folder(home, model, published.format))
    if here.digest == published.manifest:
        return here
    say(f"{here.folder} is not what the network publishes as {model} ({published.manifest[:16]}): pulling that")
    return None


def _kept(settings: Settings, model: str, format: str) -> PulledModel | None:
    """The pulled copy of this model that the network named last, for whoever cannot ask it."""
    found = pulled_models(settings.home, model, format)
    return kept_model(settings, found[-1]) if found else None


def _local(home: Home, model: str, format: str, network: NetworkReply | None) -> Artifacts:
    """What is here, whatever the network says: its programs will say whether it will do. Raises UsageError, or
    UnknownModel for a name that neither has."""
    from sawyer.model.artifacts import Artifacts

    try:
        return Artifacts.open(model_folder(home, model, format or DEFAULT_FORMAT))
    except UsageError as error:
        if network is None:
            raise
        if _published(network, model, format) is None and "/" not in model:
            published_as(network, model, format)
        raise error from None

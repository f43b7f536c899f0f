"""`AsyncClient`: one account on one network. Makes the request id, signs the order, streams the answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from sawyer.bus.calls import ASK_TIMEOUT_S, ask, record, survey
from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Bus
from sawyer.client.asked import Conversation, messages_of, most_input_tokens, params_of
from sawyer.client.door import check_pinned, home_of, identity_of, target_of
from sawyer.client.offer import OfferedModel, offered
from sawyer.client.stream import Generation, HostedStream, TextStream
from sawyer.client.trunks import Trunks
from sawyer.clock import Clock, SystemClock
from sawyer.contexts import NatsTarget
from sawyer.economy.pricing import price_tokens, sheet_hash
from sawyer.errors import MissingExtra, RefusedError, UnknownModel, UsageError
from sawyer.home import Home
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, RequestId, new_request_id
from sawyer.ledger.commands import command
from sawyer.schemas.base import MAX_SAFE_INTEGER
from sawyer.schemas.events import REQUEST_KIND, AccountOpened, InferenceRequested
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import (
    AccountQuery,
    AccountReply,
    BalanceQuery,
    BalanceReply,
    EntryRef,
    InferRequest,
    NetworkReply,
    RouterReply,
)
from sawyer.settings import Settings

ORDER_VALID_MS: Final = 5 * 60 * 1000
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_MAX_TOKENS: Final = 64
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}")


class AsyncClient:
    """An account's door to a network.

        async with AsyncClient("nats://127.0.0.1:4222", account="alice", key=Key.generate()) as client:
            answer = await client.generate("It was a", model="austen-8m")
            print(answer.text, answer.usage.billed_tokens)

    What is left out is what the `sawyer` command would use: `url` the NATS server of the settings, `account` and `key`
    this user's account and its key file in the home. A client that is given all three reads no setting and no variable.
    `context` names a NATS context, `creds` a NATS credentials file; `url` may be a NatsTarget with all of it.
    `timeout_s`: the longest silence from the router before the same request is sent again, and in the end NoAnswer; a
    question waits as long, but never over ASK_TIMEOUT_S unless its own `timeout_s` says so.
    `trunk`: "local" runs the model's dense layers in this process, and only experts elsewhere: prompts and texts never
    leave this machine. The trunk is looked for in the home (`sawyer models pull NAME --trunk` brings it), or it is in
    the folder given instead.
    `bus`: another transport than NATS (then left open); for tests.
    """

    def __init__(
        self,
        url: str | NatsTarget | None = None,
        *,
        account: str | None = None,
        key: Key | Path | None = None,
        context: str = "",
        creds: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        trunk: Literal["hosted", "local"] | Path = "hosted",
        bus: Bus | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Connects nowhere yet. Raises UsageError for a name that is none, or a key file that is not there."""
        self._url, self._context, self._creds = url, context, creds
        self._account, self._key = identity_of(account, key)
        if not timeout_s > 0:
            raise UsageError(f"timeout_s must be more than 0, got {timeout_s}")
        self._timeout_s = timeout_s
        self._bus = bus
        self._own_bus = bus is None
        self._home: Home | None = None
        self._clock = clock or SystemClock()
        self._network: NetworkReply | None = None
        self._trunks = _trunks(trunk)

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Raises ServerUnreachable; NobodyServes if the network has no bookkeeper; UsageError for a context that cannot
        be used; VerificationError as `network` does. Then nothing is left open."""
        if self._bus is None:
            self._home = home_of(self._url, self._context)
            target = target_of(self._url, self._context, self._creds)
            self._bus = await NatsBus.connect(target, name=f"client {self._account}")
        try:
            await self.network()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Idempotent."""
        if self._trunks is not None:
            await self._trunks.close()
        if self._bus is not None and self._own_bus:
            bus, self._bus = self._bus, None
            await bus.close()

    async def network(self, *, timeout_s: float | None = None) -> NetworkReply:
        """The network's models, prices and ledger key, as of now. Raises VerificationError if the address was left to
        the settings, and what answers is not the network that their home is pinned to."""
        network = await ask(self._connected(), "network", NetworkReply, timeout_s=self._patience_s(timeout_s))
        if self._home is not None:
            check_pinned(network, self._home)
        self._network = network
        return network

    async def models(self, *, timeout_s: float | None = None) -> tuple[OfferedModel, ...]:
        """The models that the network publishes now, by name, with shape and price."""
        return offered(await self.network(timeout_s=timeout_s))

    async def routers(self) -> tuple[RouterReply, ...]:
        """What the routers serve and see now, by name. Raises NobodyServes if there is none, NoAnswer."""
        found = await survey(self._connected(), "router", RouterReply)
        return tuple(sorted(found, key=lambda each: (each.model, each.router)))

    async def open_account(self, *, timeout_s: float | None = None) -> EntryRef:
        """Open this client's account with its key. Again is the same account. While no answer comes it is sent again,
        but not after `timeout_s` (RECORD_PATIENCE_S). Raises NotAuthorised if the name belongs to another key."""
        network = self._network or await self.network(timeout_s=timeout_s)
        body = AccountOpened(network=network.network, account=self._account, key=self._key.id)
        return await record(self._connected(), command(body, self._account, self._key), patience_s=timeout_s)

    async def account(self, *, timeout_s: float | None = None) -> AccountReply:
        """This client's account: key, opening entry, balance, grants that something is left of. Raises UnknownAccount
        before it was opened."""
        question, wait_s = AccountQuery(account=self._account), self._patience_s(timeout_s)
        return await ask(self._connected(), "account", AccountReply, question, timeout_s=wait_s)

    async def balance(self, *, timeout_s: float | None = None) -> BalanceReply:
        """Raises UnknownAccount before it was opened."""
        question, wait_s = BalanceQuery(account=self._account), self._patience_s(timeout_s)
        return await ask(self._connected(), "balance", BalanceReply, question, timeout_s=wait_s)

    async def generate(self, prompt: str | Conversation, *, model: str, **options: object) -> Generation:
        """The whole answer; `stream` lists the options. Raises the typed error that the request met: PromptEmpty,
        PromptTooLong, BudgetTooSmall, UnknownModel, ExpertUnavailable, AlreadyCompleted, NobodyServes, NoAnswer, ..."""
        async with self.stream(prompt, model=model, **options) as stream:  # type: ignore[arg-type]
            return await stream.result()

    async def chat(self, messages: str | Conversation, *, model: str, **options: object) -> Generation:
        """The whole answer to a conversation; a text alone is its one user turn. Raises what `generate` raises, and
        NoChatTemplate for a model that only continues text, ConversationRefused for turns that its template does not
        take, ChatTemplateBroken."""
        return await self.generate(messages_of(messages), model=model, **options)

    def stream(
        self,
        prompt: str | Conversation,
        *,
        model: str,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        model_defaults: bool | Collection[str] | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        token_ceiling: int | None = None,
        request_id: RequestId | None = None,
        trace: bool = False,
        speculate: bool = True,
    ) -> TextStream:
        """A stream to use as `async with client.stream(...) as stream: async for piece in stream: ...`.

        prompt: a text to go on from, or the turns of a conversation to answer (see `chat`). temperature 0 is greedy.
        What is left out of temperature, top_k, top_p, min_p and repetition_penalty changes nothing (a greedy choice);
        with model_defaults, which conversations have by themselves, it is what the model's maker recommends, if
        anything; model_defaults may also name some of them: there the maker decides before what is given. stop: the
        text ends before the first of these strings; the tokens that spell it are billed. logprobs: tell each token's,
        and those of so many of the likeliest tokens beside it. token_ceiling is the most this request may cost, in
        budget tokens; by default what the whole prompt and max_tokens can cost at most. Sending a
        request_id again never bills twice. speculate: the router may compute ahead what is likely to come next; that
        changes no token, and no bill. Raises UsageError for options that make no sense.
        """
        params = params_of(
            prompt,
            model_defaults=model_defaults,
            stop=stop,
            sampling={
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
            },
            options={"max_tokens": max_tokens, "seed": seed, "logprobs": logprobs},
        )
        order = self._order(params, model, token_ceiling, request_id or new_request_id())
        order = order.model_copy(update={"trace": trace, "speculate": speculate})
        if self._trunks is None:
            return HostedStream(self._connected(), ModelId(model), order, self._timeout_s)
        return self._local_stream(self._trunks, ModelId(model), order)

    def _local_stream(self, trunks: Trunks, model: ModelId, order: InferRequest) -> TextStream:
        try:
            from sawyer.client.local import LocalStream  # noqa: PLC0415  (only who runs a trunk needs ONNX Runtime)
        except ImportError as error:
            raise MissingExtra(
                f"a trunk cannot run here: {error.name} is not installed", hint="pip install 'sawyer[cpu]'"
            ) from error

        manifest = next(each.manifest for each in self._connected_network().models if each.model == model)
        load = partial(trunks.load, model, manifest)
        return LocalStream(self._connected(), model, order, self._timeout_s, load)

    def _order(self, params: GenerateParams, model: str, token_ceiling: int | None, request: RequestId) -> InferRequest:
        network = self._connected_network()
        if network.pricing is None:
            raise RefusedError("the network has published no prices", hint="Ask its operator.")
        if model not in {each.model for each in network.models}:
            known = ", ".join(each.model for each in network.models) or "none"
            raise UnknownModel(f"the network publishes no model {model!r}", hint=f"Published: {known}.")
        if token_ceiling is None:
            fmt, most_input = network.format_of(model), most_input_tokens(params)
            token_ceiling = price_tokens(network.pricing, model, fmt, most_input, params.max_tokens)
        if not 1 <= token_ceiling <= MAX_SAFE_INTEGER:
            raise UsageError(f"token_ceiling must be at least 1 and below 2^53, got {token_ceiling}")
        if not _REQUEST_ID.fullmatch(request):
            raise UsageError(f"{request!r} is not a request id", hint="It is 32 lower-case hex characters.")
        now_ms = self._clock.now_ms()
        salt = _salt(self._key, request)
        body = InferenceRequested(
            network=network.network,
            request=request,
            account=self._account,
            model=model,
            content=params.commitment(salt),
            max_tokens=params.max_tokens,
            token_ceiling=token_ceiling,
            price_sheet=sheet_hash(network.pricing),
            issued_ms=now_ms,
            expires_ms=now_ms + ORDER_VALID_MS,
        )
        signed = sign(body, REQUEST_KIND, self._account, self._key)
        return InferRequest(order=signed, params=params, salt=salt)

    def _patience_s(self, timeout_s: float | None) -> float:
        return min(self._timeout_s, ASK_TIMEOUT_S) if timeout_s is None else timeout_s

    def _connected(self) -> Bus:
        if self._bus is None:
            raise UsageError("the client is not connected", hint="Use it as `async with AsyncClient(...) as client:`.")
        return self._bus

    def _connected_network(self) -> NetworkReply:
        if self._network is None:
            raise UsageError("the client is not connected", hint="Use it as `async with AsyncClient(...) as client:`.")
        return self._network


def _trunks(trunk: str | Path) -> Trunks | None:
    """None for a client that leaves the trunk to routers. Raises UsageError for another word."""
    if trunk == "hosted":
        return None
    if not isinstance(trunk, Path) and trunk != "local":
        raise UsageError(f"unknown trunk {trunk!r}", hint='Write "hosted" or "local", or give the folder of a model.')
    return Trunks(Settings.load().home, trunk if isinstance(trunk, Path) else None)


def _salt(key: Key, request: RequestId) -> str:
    """32 secret bytes as hex, the same for one key and request: a resend commits to the same content."""
    return hashlib.sha256(key.sign(b"sawyer prompt salt v1\n" + bytes.fromhex(request))).hexdigest()

"""`AsyncClient`: one account on one network. Makes the request id, signs the order, streams the answer."""

from __future__ import annotations

import hashlib
import math
import re
from types import TracebackType
from typing import Final

from pydantic import ValidationError

from sawyer.bus.calls import ask, record
from sawyer.bus.connection import NatsBus
from sawyer.bus.protocol import Bus
from sawyer.client.stream import Generation, TextStream
from sawyer.clock import Clock, SystemClock
from sawyer.economy.pricing import price_tokens, sheet_hash
from sawyer.errors import RefusedError, UnknownModel, UsageError
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import AccountId, ModelId, RequestId, is_slug, new_request_id
from sawyer.ledger.commands import command
from sawyer.schemas.base import first_problem
from sawyer.schemas.events import MAX_FREE_TOKENS, REQUEST_KIND, AccountOpened, InferenceRequested
from sawyer.schemas.messages import (
    BalanceQuery,
    BalanceReply,
    EntryRef,
    GenerateParams,
    InferRequest,
    NetworkReply,
)

ORDER_VALID_MS: Final = 5 * 60 * 1000
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_MAX_TOKENS: Final = 64
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}")


class AsyncClient:
    """An account's door to a network.

        async with AsyncClient("nats://127.0.0.1:4222", account="alice", key=Key.generate()) as client:
            answer = await client.generate("It was a", model="austen-8m")
            print(answer.text, answer.usage.billed_tokens)

    `timeout_s`: the longest silence from the router before the same request is sent again, and in the end NoAnswer.
    `bus`: another transport than NATS at `url` (then left open); for tests.
    """

    def __init__(
        self,
        url: str = "nats://127.0.0.1:4222",
        *,
        account: str,
        key: Key,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        bus: Bus | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._url = url
        if not is_slug(account):
            raise UsageError(
                f"{account!r} is not an account name",
                hint="Names are lower-case letters, digits, - and _, at most 63 characters.",
            )
        self._account = AccountId(account)
        self._key = key
        self._timeout_s = timeout_s
        self._bus = bus
        self._own_bus = bus is None
        self._clock = clock or SystemClock()
        self._network: NetworkReply | None = None

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Raises ServerUnreachable; NobodyServes if the network has no bookkeeper."""
        if self._bus is None:
            self._bus = await NatsBus.connect(self._url, name=f"client {self._account}")
        await self.network()

    async def close(self) -> None:
        """Idempotent."""
        if self._bus is not None and self._own_bus:
            bus, self._bus = self._bus, None
            await bus.close()

    async def network(self) -> NetworkReply:
        """The network's models, prices and ledger key, as of now."""
        self._network = await ask(self._connected(), "network", NetworkReply)
        return self._network

    async def open_account(self) -> EntryRef:
        """Open this client's account with its key. Again is the same account."""
        network = self._network or await self.network()
        body = AccountOpened(network=network.network, account=self._account, key=self._key.id)
        return await record(self._connected(), command(body, self._account, self._key))

    async def balance(self) -> BalanceReply:
        """Raises UnknownAccount before it was opened."""
        return await ask(self._connected(), "balance", BalanceReply, BalanceQuery(account=self._account))

    async def generate(self, prompt: str, *, model: str, **options: object) -> Generation:
        """The whole answer; `stream` lists the options. Raises the typed error that the request met: PromptEmpty,
        PromptTooLong, BudgetTooSmall, UnknownModel, ExpertUnavailable, AlreadyCompleted, NobodyServes, NoAnswer, ..."""
        async with self.stream(prompt, model=model, **options) as stream:  # type: ignore[arg-type]
            return await stream.result()

    def stream(
        self,
        prompt: str,
        *,
        model: str,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        token_ceiling: int | None = None,
        request_id: RequestId | None = None,
        trace: bool = False,
    ) -> TextStream:
        """A stream to use as `async with client.stream(...) as stream: async for piece in stream: ...`.

        temperature 0 is greedy. token_ceiling is the most this request may cost, in budget tokens; by default what the
        whole prompt and max_tokens can cost at most. Sending a request_id again never bills twice.
        """
        params = _params(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature_milli=_milli("temperature", temperature),
            top_k=top_k,
            top_p_milli=_milli("top_p", top_p),
            seed=seed,
        )
        order = self._order(params, model, token_ceiling, request_id or new_request_id(), trace)
        return TextStream(self._connected(), ModelId(model), order, self._timeout_s)

    def _order(
        self, params: GenerateParams, model: str, token_ceiling: int | None, request: RequestId, trace: bool
    ) -> InferRequest:
        network = self._connected_network()
        if network.pricing is None:
            raise RefusedError("the network has published no prices", hint="Ask its operator.")
        if model not in {each.model for each in network.models}:
            known = ", ".join(each.model for each in network.models) or "none"
            raise UnknownModel(f"the network publishes no model {model!r}", hint=f"Published: {known}.")
        if token_ceiling is None:
            most_input = len(params.prompt.encode()) + MAX_FREE_TOKENS
            token_ceiling = price_tokens(network.pricing, model, most_input, params.max_tokens)
        if token_ceiling < 1:
            raise UsageError(f"token_ceiling must be at least 1, got {token_ceiling}")
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
        return InferRequest(order=signed, params=params, salt=salt, trace=trace)

    def _connected(self) -> Bus:
        if self._bus is None:
            raise UsageError("the client is not connected", hint="Use it as `async with AsyncClient(...) as client:`.")
        return self._bus

    def _connected_network(self) -> NetworkReply:
        if self._network is None:
            raise UsageError("the client is not connected", hint="Use it as `async with AsyncClient(...) as client:`.")
        return self._network


def _params(**fields: object) -> GenerateParams:
    try:
        return GenerateParams.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"cannot ask for this: {first_problem(error)}") from error


def _milli(name: str, value: float) -> int:
    if not math.isfinite(value):
        raise UsageError(f"{name} must be a number, got {value}")
    return round(value * 1000)


def _salt(key: Key, request: RequestId) -> str:
    """32 secret bytes as hex, the same for one key and request: a resend commits to the same content."""
    return hashlib.sha256(key.sign(b"sawyer prompt salt v1\n" + bytes.fromhex(request))).hexdigest()

"""A cancel that comes while a request is admitted: the hold is given back, nobody is asked, nothing is billed."""

import pytest

from sawyer.bus.protocol import Message
from sawyer.errors import Cancelled
from sawyer.ids import RequestId
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas import subjects


async def test_cancel_during_admission_bills_nothing(network, monkeypatch):
    router = network.parts["router-1"].part
    reserve = router._biller.reserve

    async def reserve_and_hear_a_cancel(reservation):
        await reserve(reservation)
        router._cancel(Message(subjects.cancel(RequestId(reservation.request.body.request)), b""))

    monkeypatch.setattr(router._biller, "reserve", reserve_and_hear_a_cancel)
    async with network.client() as client:
        before = await client.balance()
        with pytest.raises(Cancelled):
            await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)
        after = await client.balance()
    assert (after.available, after.held) == (before.available, before.held)
    assert (await network.audit()).problem is None

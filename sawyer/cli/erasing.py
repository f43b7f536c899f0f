"""`sawyer account erase`: what it does. The key of what is sealed for an account is destroyed first, then the book is
told: so what it says is true. Cut short, it is finished by running it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sawyer.schemas.messages import EntryRef
    from sawyer.settings import Settings


async def erase(settings: Settings) -> tuple[bool, EntryRef]:
    """Whether there was a key to destroy, and the entry. Raises UnknownAccount and NotAuthorised; then nothing is
    destroyed."""
    from sawyer.bus.calls import ask
    from sawyer.cli.operating import operating
    from sawyer.identity.sealing import destroy
    from sawyer.schemas.events import SubjectErased
    from sawyer.schemas.messages import AccountQuery, AccountReply

    account = settings["account"]
    file = settings.home.subject_key(account)
    async with operating(settings) as (founder, network):
        await ask(founder.bus, "account", AccountReply, AccountQuery(account=account))
        had_key = file.is_file()
        destroy(file)
        entry = await founder.record(SubjectErased(network=network.network, subject=account))
    return had_key, entry

"""Certificates of members whose keys are in the home that founded the network: its authority is there, too."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sawyer.authority.admission import Admission
from sawyer.authority.files import Authority
from sawyer.cli.network_plan import AUTHORITY, BOOKKEEPER, NetworkPlan
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key, load, load_or_create
from sawyer.schemas.permissions import Role

OPERATOR: Role = "operator"


def open_admission(home: Home, pin: Pin) -> Admission:
    """The authority of the network that this home founded, made if there is none yet. Raises what `load` does."""
    return Admission.open(Authority.open(home, pin.network, _founding_key(home, pin), now_s()))


def _founding_key(home: Home, pin: Pin) -> Key:
    """The operator's key that every home of the network has pinned: also if another has its office by now."""
    here, founding = load(home.operator_key), home.former_key(pin.operator)
    return load(founding) if here.id != pin.operator and founding.is_file() else here


def certify_network(admission: Admission, plan: NetworkPlan, account: str, models: Iterable[str]) -> None:
    """Certificates for every part of a network that runs in one home, for its operator and one account, each good from
    now on."""
    home, now, served = plan.home, now_s(), tuple(models)
    for role, name in ((OPERATOR, OPERATOR), (BOOKKEEPER, BOOKKEEPER), ("authority", AUTHORITY)):
        admission.issue_here(role, name, _own_key(home, role), now)
    admission.issue_here("router", plan.router.name, load_or_create(home.router_key(plan.router.name)), now)
    for part in plan.node_parts:
        key = load_or_create(home.node_key(part.name))
        admission.issue_here("node", part.name, key, now, models=served)
    admission.issue_here("account", account, load_or_create(home.account_key(account)), now)


def _own_key(home: Home, role: str) -> Key:
    """With which a part connects that has no key of its own for that: the ledger's and the operator's never leave the
    hands of those who sign with them."""
    return load_or_create(home.keys / "connects" / f"{role}.nk")


def now_s() -> int:
    return int(time.time())

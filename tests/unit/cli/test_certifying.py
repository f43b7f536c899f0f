"""The authority of a home: whose word it rests on."""

from __future__ import annotations

from pathlib import Path

from sawyer.cli.certifying import now_s, open_admission
from sawyer.home import Home, Pin
from sawyer.identity.keys import load_or_create


def test_authority_made_after_the_operators_key_was_replaced_rests_on_the_pinned_one(tmp_path: Path) -> None:
    """Homes that joined know no other."""
    home = Home(tmp_path / "home")
    founding = load_or_create(home.keys / "founding.nk", "O")
    (home.keys / "founding.nk").rename(_made(home.former_key(founding.id)))
    assert load_or_create(home.operator_key, "O").id != founding.id
    pin = Pin("sawyer-net/3f9a1c22", "unused", founding.id)
    admission = open_admission(home, pin)
    token = admission.authority.issue("node", "attic", load_or_create(home.node_key("attic")).id, now_s())
    assert admission.authority.prove(token, founding.id, now_s()).name == "attic"
    assert admission.operator == founding.id


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True)
    return file

"""docs/ledger-format.md says what the code does: its made parts are as the code makes them, its rules are those that
the stranger cites, its tables name every kind. And docs/token-economics.md names tests that are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from corpus import document, make, story

from sawyer.economy import credits
from sawyer.economy.tiers import TIERS
from sawyer.ledger import billing, tables
from sawyer.ledger.decide import place_of
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.membership import MAX_GRANTED_TOKENS
from sawyer.ledger.merkle import leaf_hash
from sawyer.ledger.snapshot import SNAPSHOT_ENTRIES
from sawyer.projections.nodes import MAX_GAPS
from sawyer.schemas.events import KINDS, MAX_FREE_TOKENS

PAGE = document.PAGE.read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())
ECONOMICS = document.PAGE.with_name("token-economics.md").read_text(encoding="utf-8")
TESTS = Path(__file__).parents[1]
RULE = re.compile(r"^- \*\*([A-Z]\d+)\.", re.MULTILINE)
CITED = re.compile(r"\b([BCDEFKPRSTZ]\d{1,2})\b")


def test_made_parts_of_the_page_are_as_the_code_makes_them() -> None:
    assert document.filled(PAGE) == PAGE, "run corpus.make (tests/corpus/README.md), and read what changed"


def test_rules_are_numbered_without_gaps_and_cited_by_names_that_exist() -> None:
    rules = RULE.findall(PAGE)
    for letter in sorted({rule[0] for rule in rules}):
        numbers = [int(rule[1:]) for rule in rules if rule[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter
    prose = PAGE[: PAGE.index("<!-- made: example -->")]
    sources = [path.read_text(encoding="utf-8") for path in (TESTS / "corpus" / "stranger").glob("*.py")]
    comments = [found for source in sources for found in re.findall(r"\[([A-Z]\d[^\]]*)\]", source)]
    assert {rule for text in (prose, *comments) for rule in CITED.findall(text)} <= set(rules)
    assert len(comments) > 20


def test_table_of_kinds_names_place_and_idempotency_key_of_each() -> None:
    table = {
        cells[1].strip(" `"): (cells[2].strip(" `"), cells[3].strip(" `"))
        for cells in (
            line.split("|") for line in PAGE.splitlines() if re.match(r"\| `\w+\.\w+\.v1` \| `[\w<>]+:", line)
        )
    }
    assert set(table) == set(KINDS)
    for path in (make.PLACE / "events").iterdir():
        entry = decode_entry(path.read_bytes().removesuffix(b"\n"))
        assert entry.body is not None
        found = place_of(entry.body)
        assert found == (entry.stream, entry.idem)
        for shown, pattern in zip(found, table[entry.kind], strict=True):
            assert shown.split(":")[0] == pattern.split(":")[0] or pattern.startswith("<role>:"), entry.kind


@pytest.mark.parametrize(
    "said",
    [
        f"fed_tokens <=` that + {MAX_FREE_TOKENS}",
        f"issued at most {billing.CLOCK_SLACK_MS} ms after now",
        f"good for at most {billing.ORDER_LIMIT_MS} ms",
        f"`now < expires_ms <= now + {billing.HOLD_LIMIT_MS + billing.CLOCK_SLACK_MS}`",
        f"at most {MAX_GRANTED_TOKENS} tokens",
        f"div {credits.PARAMETERS_PER_UNIT})",
        f"list of gaps, at most {MAX_GAPS}:",
        f"every {SNAPSHOT_ENTRIES:,} entries",
        "(" + ", ".join(f"`{tier.name}` {tier.tokens}" for tier in TIERS.values()).replace("500000,", "500000 tokens,"),
        tables.BOOK_TABLE,
        tables.VIEWS_TABLE,
    ],
)
def test_page_says_the_numbers_and_tables_of_the_code(said: str) -> None:
    assert said in PROSE


def test_worked_example_stands_in_the_page_whole() -> None:
    for row in story.example():
        shown = row.state.decode().rstrip("\n") if row.is_checkpoint else row.state.decode()
        assert shown in PAGE
        if not row.is_checkpoint:
            assert leaf_hash(row.state).hex() in PAGE
            assert json.loads(row.state)["attestations"][0]["sig"] in PAGE


def test_tests_that_the_economics_name_are_there() -> None:
    named = re.findall(r"`(test_\w+)`", ECONOMICS)
    written = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert sorted(set(named) - written) == []
    assert len(named) > 15

"""docs/protocol.md says what the code does: the subjects, the header's layout and both worked examples."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sawyer.ids import RequestId
from sawyer.schemas import subjects, tensors
from sawyer.schemas.tensors import ActivationReply, ActivationRequest, Part

PAGE = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
ROWS = np.array([[1.0, -2.0, 0.5, 0.0], [0.25, 3.0, -0.5, 1.5]], np.float16)
REQUEST = ActivationRequest(
    parts=(Part(RequestId("0f" * 16), 7, 1), Part(RequestId("1e" * 16), 3, 1)),
    manifest=bytes.fromhex("a1b2c3d4e5f60718"), layer=2, rows=ROWS,
    work=((1, np.array([0, 1], np.uint32)), (5, np.array([1], np.uint32))), deadline_ms=250,
)  # fmt: skip
REPLY = ActivationReply(
    parts=REQUEST.parts, manifest=REQUEST.manifest, layer=2, blocks=((1, ROWS), (5, ROWS[1:])),
    compute_us=90, waited_us=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_page_lists_every_subject_and_no_other(page: str) -> None:
    listed = re.findall(r"^\| `(sawyer\.v1\.[^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert listed == list(subjects.ALL)


def test_page_describes_a_header_without_gaps(page: str) -> None:
    fields = [(int(at), int(size)) for at, size in re.findall(r"^\| (\d+) \| (\d+) \| ", page, re.MULTILINE)]
    ends = [at + size for at, size in fields]
    assert [at for at, _ in fields] == [0, *ends[:-1]]
    assert ends[-1] == tensors.HEADER_BYTES


@pytest.mark.parametrize(
    ("title", "raw"),
    [("A request, byte by byte", tensors.encode_request(REQUEST)), ("Its reply", tensors.encode_reply(REPLY))],
)
def test_worked_example_is_what_the_codec_writes(page: str, title: str, raw: bytes) -> None:
    block = page.partition(f"### {title}\n")[2].split("```")[1]
    lines = re.findall(r"^ *(\d+)  ((?:[0-9a-f]{2} )*[0-9a-f]{2})  +\S", block, re.MULTILINE)
    pieces = [bytes.fromhex(text) for _, text in lines]
    assert b"".join(pieces) == raw
    assert [int(at) for at, _ in lines] == [sum(map(len, pieces[:index])) for index in range(len(pieces))]


@pytest.mark.parametrize("name", ["MAX_PARTS", "MAX_EXPERTS", "MAX_ROWS", "MAX_HIDDEN", "MAX_LAYERS"])
def test_page_names_the_limits_of_the_codec(page: str, name: str) -> None:
    value = getattr(tensors, name)
    assert re.search(rf"(?:1 to|below) ({value}|{value:,}) ", page)

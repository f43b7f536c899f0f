"""Renders a conversation with a model's own chat template, as transformers does. The only file that imports jinja2.

A template is a stranger's program: it runs in jinja2's sandbox, in a process of its own with little memory and time
(conversing.py starts it). `python -m sawyer.engine.chat` is that process: frames (frames.py) come on stdin, and go out
on stdout; the first that comes is a Program, each later one an Asked, answered by a Told.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from time import process_time
from typing import Any, BinaryIO, Final, TypedDict

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sawyer.engine.frames import NUMBER_BYTES, frame_of

CPU_S: Final = 2
"""Of one rendering; a thousand turns take a few milliseconds."""
MEMORY_BYTES: Final = 512 * 1024 * 1024
"""Of the whole process."""
MAX_REASON_CHARS: Final = 300


class Program(TypedDict):
    """What is run: a template, and the special tokens that it may name."""

    template: str
    tokens: dict[str, str]


class Asked(TypedDict):
    """One conversation: (role, content) in turn; the text may have `most_chars`."""

    messages: list[tuple[str, str]]
    most_chars: int


class Told(TypedDict, total=False):
    """One of: the `text`; why the template `refused` the conversation; why it is `broken`; that it would be too
    `long`."""

    text: str
    refused: str
    broken: str
    long: bool


class Refusal(jinja2.TemplateError):
    """The template takes no conversation like this: its own `raise_exception`."""


class _TooLong(Exception):
    pass


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class Template:
    """A compiled template. Bounds its text, and neither its time nor its memory: `limit` does, for the process."""

    def __init__(self, program: Program) -> None:
        """Raises jinja2.TemplateError for what is no template, and whatever Python raises for what it cannot read."""
        made = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        made.filters["tojson"] = _tojson
        made.globals["raise_exception"] = _refuse
        made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
        self._template = made.from_string(program["template"])
        self._tokens: Mapping[str, str] = program["tokens"]

    def render(self, messages: list[tuple[str, str]], most_chars: int) -> str:
        """The text that the model goes on from: the conversation, and how an answer begins. Raises Refusal, _TooLong,
        and whatever else a program may raise."""
        pieces: list[str] = []
        told = [{"role": role, "content": content} for role, content in messages]
        left = most_chars
        for piece in self._template.generate(
            **self._tokens, messages=told, tools=None, documents=None, add_generation_prompt=True
        ):
            left -= len(piece)
            if left < 0:
                raise _TooLong
            pieces.append(piece)
        return "".join(pieces)


def answer(program: Program, asked: Asked, compiled: dict[str, Template]) -> Told:
    """What comes of one conversation. `compiled` keeps the template for the next one. Raises nothing that a template
    can raise."""
    try:
        if not compiled:
            compiled[""] = Template(program)
        text = compiled[""].render(asked["messages"], asked["most_chars"])
        text.encode()
    except _TooLong:
        return Told(long=True)
    except Refusal as refusal:
        return Told(refused=_clipped(refusal.message or ""))
    except jinja2.TemplateSyntaxError as error:
        return Told(broken=_clipped(f"line {error.lineno}: {error.message}"))
    except MemoryError:
        return Told(broken=f"it needs more than {MEMORY_BYTES // 1024 // 1024} MB")
    except Exception as error:  # noqa: BLE001
        return Told(broken=_clipped(f"{type(error).__name__}: {error}"))
    return Told(text=text)


def limit() -> None:
    """No more memory than MEMORY_BYTES, nothing written to files, no core dumps, from here on."""
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        hard = resource.getrlimit(what)[1]
        with suppress(ValueError, OSError):  # macOS limits no address space
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def limit_next() -> None:
    """CPU_S from now on: then the system ends this process, whatever it does (SIGXCPU)."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(process_time()) + 1 + CPU_S, hard))


def main() -> None:
    """Serve stdin and stdout until the input ends."""
    limit()
    program = _next(sys.stdin.buffer)
    compiled: dict[str, Template] = {}
    while (asked := _next(sys.stdin.buffer)) is not None:
        limit_next()
        sys.stdout.buffer.write(frame_of(answer(program, asked, compiled)))
        sys.stdout.buffer.flush()


def _next(pipe: BinaryIO) -> Any:
    length = pipe.read(NUMBER_BYTES)
    return json.loads(pipe.read(int.from_bytes(length, "big"))) if length else None


def _refuse(message: object) -> None:
    raise Refusal(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own writes < and > as HTML would have them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _clipped(reason: str) -> str:
    """A stranger's words, short and without what could steer a terminal."""
    return "".join(each if each.isprintable() else " " for each in reason[:MAX_REASON_CHARS])


if __name__ == "__main__":
    main()

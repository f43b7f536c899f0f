"""A conversation to token ids: the model's chat template, run where it can do no harm, and the model's tokenizer.

What people say is never read as a special token, also where it spells one: only the template writes those.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

from sawyer.engine.tokenizer import Tokenizer
from sawyer.errors import ChatTemplateBroken, ConversationRefused, PromptTooLong
from sawyer.schemas.generation import ChatMessage
from sawyer.schemas.models import ChatTemplate

NUMBER_BYTES: Final = 4
ANSWER_S: Final = 15.0
"""A rendering that takes so long by the clock is given up; its own time is limited more tightly (chat.py)."""
END_S: Final = 0.2
STOP_S: Final = 5.0
PIPE_BYTES: Final = 65_536
MAX_ESCAPED: Final = 12
"""Bytes that JSON may need for one character."""
WORKER: Final = ("-P", "-m", "sawyer.engine.chat")
"""What Python is to run there."""
MAX_SPELLED: Final = 1024
"""Special tokens that people may spell in one conversation, each as often as they like."""
_STAND_INS: Final = range(0xF0000, 0xFFFFE)
"""Characters that mean nothing by themselves (Unicode's private use): they stand for special tokens that people
spell."""


class Renderer(Protocol):
    """What makes a text of a conversation."""

    def render(self, messages: Sequence[ChatMessage], most_chars: int) -> str:
        """The text that the model goes on from. Raises ConversationRefused, PromptTooLong, ChatTemplateBroken."""

    def close(self) -> None:
        """Idempotent."""


class Conversing:
    """Reads conversations for one model. Thread safe. Close it."""

    def __init__(self, renderer: Renderer, tokenizer: Tokenizer) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer

    @classmethod
    def of(cls, template: ChatTemplate, tokenizer: Tokenizer) -> Conversing:
        """Nothing runs before the first conversation."""
        return cls(TemplateProcess(template), tokenizer)

    def encode(self, messages: Sequence[ChatMessage], most_chars: int) -> list[int]:
        """The ids of a conversation, up to where an answer begins: those of transformers' apply_chat_template, but that
        special tokens which somebody spelled are read as the characters they are. Raises ConversationRefused,
        PromptTooLong (over `most_chars`), ChatTemplateBroken."""
        said, spelled = self._without_special(messages)
        text = self._renderer.render(said, most_chars)
        if not spelled:
            return self._tokenizer.encode_as_written(text)
        ids: list[int] = []
        for piece in re.split(f"([{''.join(spelled)}])", text):
            if piece in spelled:
                ids += self._tokenizer.encode_as_characters(spelled[piece])
            elif piece:
                ids += self._tokenizer.encode_as_written(piece)
        return ids

    def close(self) -> None:
        """Idempotent."""
        self._renderer.close()

    def _without_special(self, messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], dict[str, str]]:
        """The conversation with a stand-in for each special token that somebody spelled, and what each stands for."""
        spans = [self._tokenizer.special_in(each.content) for each in messages]
        if not any(spans):
            return messages, {}
        said = "".join(each.content for each in messages)
        free = (code for code in map(chr, _STAND_INS) if code not in said)
        stand_ins: dict[str, str] = {}
        changed = []
        for message, found in zip(messages, spans, strict=True):
            parts, at = [], 0
            for begin, end in found:
                text = message.content[begin:end]
                if text not in stand_ins and len(stand_ins) == MAX_SPELLED:
                    raise ConversationRefused(f"this conversation spells over {MAX_SPELLED} special tokens")
                if text not in stand_ins:
                    stand_ins[text] = next(free)
                parts += [message.content[at:begin], stand_ins[text]]
                at = end
            changed.append(message.model_copy(update={"content": "".join([*parts, message.content[at:]])}))
        return changed, {stand_in: text for text, stand_in in stand_ins.items()}


class TemplateProcess:
    """A template that runs in a process of its own, which is started when it is needed and again when it ended. One
    conversation at a time; thread safe. Close it."""

    def __init__(self, template: ChatTemplate) -> None:
        self._program = {"template": template.template, "tokens": template.tokens}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[ChatMessage], most_chars: int) -> str:
        """See Renderer."""
        asked = {"messages": [(each.role, each.content) for each in messages], "most_chars": most_chars}
        with self._lock:
            told = self._ask(asked, most_chars * MAX_ESCAPED + 4096)
        if told.get("long"):
            raise PromptTooLong(f"this conversation is over {most_chars} characters, as the model is shown it")
        if "refused" in told:
            raise ConversationRefused(f"the model's chat template takes no conversation like this: {told['refused']}")
        text = told.get("text")
        if not isinstance(text, str) or len(text) > most_chars:
            raise _broken(str(told.get("broken", "it told no text")))
        return text

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._end()

    def _ask(self, asked: object, most_bytes: int) -> dict[str, Any]:
        """What the process told. Raises ChatTemplateBroken; then it is ended."""
        until_s = monotonic() + ANSWER_S
        process, first = self._running()
        try:
            _send(process, first + _frame_of(asked), until_s)
            length = int.from_bytes(_receive(process, NUMBER_BYTES, until_s), "big")
            if length > most_bytes:
                raise _broken("it says too much")
            return _told(_receive(process, length, until_s))
        except ChatTemplateBroken:
            self._end()
            raise
        except OSError as error:
            late = self._end() == -signal.SIGXCPU
            raise _broken("it takes too long" if late else "its process ended before its time") from error

    def _running(self) -> tuple[subprocess.Popen[bytes], bytes]:
        """The process, started if there is none, and what it must hear first."""
        if self._process is not None and self._process.poll() is None:
            return self._process, b""
        self._end()
        if importlib.util.find_spec("jinja2") is None:
            raise ChatTemplateBroken("jinja2 is not installed at the router", hint="There: pip install 'sawyer[cpu]'")
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._process = process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**kept, "PYTHONPATH": _ROOT},
            process_group=0,  # Ctrl-C is for us; it ends when its input does
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process, _frame_of(self._program)

    def _end(self) -> int | None:
        """End the process, whatever it does, and wait until it has. How it ended, if by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)  # its pipes close a moment before it has ended
        code = process.poll()
        process.kill()
        with suppress(OSError):
            process.stdin.close()
        process.stdout.close()
        process.wait(STOP_S)
        return code


def _send(process: subprocess.Popen[bytes], frame: bytes, until_s: float) -> None:
    assert process.stdin is not None
    pipe, unsent = process.stdin.fileno(), memoryview(frame)
    while unsent:
        _wait(until_s, writes=[pipe])
        unsent = unsent[os.write(pipe, unsent[:PIPE_BYTES]) :]


def _receive(process: subprocess.Popen[bytes], length: int, until_s: float) -> bytes:
    """Exactly so many bytes. Raises OSError where they end before, ChatTemplateBroken when they are late."""
    assert process.stdout is not None
    pipe, parts = process.stdout.fileno(), []
    while length:
        _wait(until_s, reads=[pipe])
        part = os.read(pipe, min(length, PIPE_BYTES))
        if not part:
            raise BrokenPipeError("the process has ended")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _wait(until_s: float, reads: Sequence[int] = (), writes: Sequence[int] = ()) -> None:
    if not any(select.select(reads, writes, [], max(0.0, until_s - monotonic()))):
        raise _broken(f"it said nothing for {ANSWER_S:g} s")


def _frame_of(message: object) -> bytes:
    payload = json.dumps(message).encode()
    return len(payload).to_bytes(NUMBER_BYTES, "big") + payload


def _told(payload: bytes) -> dict[str, Any]:
    try:
        told = json.loads(payload)
    except ValueError as error:
        raise _broken("its process says what is no JSON") from error
    if not isinstance(told, dict):
        raise _broken("its process says what is no answer")
    return told


def _broken(why: str) -> ChatTemplateBroken:
    return ChatTemplateBroken(f"the model's chat template does not work: {why}")


_ROOT: Final = str(Path(__file__).parents[2])
_KEPT: Final = ("TZ", "LD_LIBRARY_PATH")
"""Of our own environment; the rest is no business of a template."""

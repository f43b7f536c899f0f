"""A conversation to token ids: the model's chat template, run where it can do no harm, and the model's tokenizer.

What people say is never read as a special token, also where it spells one: only the template writes those.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

from sawyer.engine.frames import NUMBER_BYTES, frame_of
from sawyer.engine.tokenizer import Tokenizer
from sawyer.errors import Busy, ChatTemplateBroken, ConversationRefused, PromptTooLong
from sawyer.schemas.generation import ChatMessage
from sawyer.schemas.models import ChatTemplate

ANSWER_S: Final = 15.0
"""A rendering that takes so long by the clock is given up; its own time is limited more tightly (chat.py)."""
STOP_S: Final = 5.0
"""How long a process may take to end that has closed its pipes, or was killed."""
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
        """The text that the model goes on from. Raises ConversationRefused, PromptTooLong, ChatTemplateBroken, Busy."""

    def close(self) -> None:
        """Idempotent."""


class Conversing:
    """Reads conversations for one model. `marks`: tokens that the template alone writes, beside the special ones.
    Thread safe. Close it."""

    def __init__(self, renderer: Renderer, tokenizer: Tokenizer, marks: frozenset[int] = frozenset()) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._marks = marks

    @classmethod
    def of(cls, template: ChatTemplate, tokenizer: Tokenizer) -> Conversing:
        """Nothing runs before the first conversation."""
        marks = tokenizer.marks_in("\n".join([template.template, *template.tokens.values()]))
        return cls(TemplateProcess(template), tokenizer, marks)

    def encode(self, messages: Sequence[ChatMessage], most_chars: int) -> list[int]:
        """The ids of a conversation, up to where an answer begins: those of transformers' apply_chat_template, but that
        special tokens which somebody spelled are read as the characters they are. Raises ConversationRefused,
        PromptTooLong (over `most_chars`), ChatTemplateBroken, Busy."""
        said, spelled = self._without_special(messages)
        text = self._renderer.render(said, most_chars)
        if not spelled:
            return self._tokenizer.encode_as_written([text])[0]
        pieces = [piece for piece in re.split(f"([{''.join(spelled)}])", text) if piece]
        known = {stand_in: self._tokenizer.encode_as_characters(spells) for stand_in, spells in spelled.items()}
        written = iter(self._tokenizer.encode_as_written([piece for piece in pieces if piece not in known]))
        return [each for piece in pieces for each in (known[piece] if piece in known else next(written))]

    def close(self) -> None:
        """Idempotent."""
        self._renderer.close()

    def _without_special(self, messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], dict[str, str]]:
        """The conversation with a stand-in for each special token that somebody spelled, and what each stands for. The
        model writes marks itself, and templates look for them in what it said (`</think>`): there they stay."""
        none: frozenset[int] = frozenset()
        spans = [
            self._tokenizer.special_in(each.content, none if each.role == "assistant" else self._marks)
            for each in messages
        ]
        if not any(spans):
            return messages, {}
        taken = set().union(*(each.content for each in messages))
        free = (code for code in map(chr, _STAND_INS) if code not in taken)
        stand_ins: dict[str, str] = {}
        changed = []
        for message, found in zip(messages, spans, strict=True):
            parts, at = [], 0
            for begin, end in found:
                text = message.content[begin:end]
                if text not in stand_ins:
                    stand_in = next(free, None)
                    if stand_in is None or len(stand_ins) == MAX_SPELLED:
                        raise ConversationRefused(_UNREADABLE, hint="Leave some of them out.")
                    stand_ins[text] = stand_in
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
        self._closed = False

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
        """Idempotent. A conversation that is being read is not read to its end."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _ask(self, asked: object, most_bytes: int) -> dict[str, Any]:
        """What the process told. Raises ChatTemplateBroken, Busy; then it is ended."""
        until_s = monotonic() + ANSWER_S
        try:
            process, first = self._running()
            _send(process, first + frame_of(asked), until_s)
            length = int.from_bytes(_receive(process, NUMBER_BYTES, until_s), "big")
            if length > most_bytes:
                raise _broken("it says too much")
            return _told(_receive(process, length, until_s))
        except OSError as error:  # its pipes close a moment before it has ended
            late = self._end(STOP_S) == -signal.SIGXCPU
            if self._closed:
                raise Busy(_STOPPING) from error
            raise _broken("it takes too long" if late else "its process ended before its time") from error
        except BaseException:
            self._end()
            raise

    def _running(self) -> tuple[subprocess.Popen[bytes], bytes]:
        """The process, started if there is none, and what it must hear first. Raises ChatTemplateBroken where jinja2 is
        not installed, Busy where no process can be started, or none is to be."""
        if self._closed:
            raise Busy(_STOPPING)
        if self._process is not None and self._process.poll() is None:
            return self._process, b""
        self._end()
        if importlib.util.find_spec("jinja2") is None:
            raise ChatTemplateBroken("jinja2 is not installed at the router", hint="There: pip install 'sawyer[cpu]'")
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, *WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**kept, "PYTHONPATH": _ROOT},
                process_group=0,  # Ctrl-C is for us; it ends when its input does
            )
        except OSError as error:
            raise Busy(f"the router cannot start a process that reads conversations: {error.strerror}") from error
        if self._closed:  # meanwhile, by who did not see this process
            raise Busy(_STOPPING)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process, frame_of(self._program)

    def _end(self, patience_s: float = 0.0) -> int | None:
        """End the process, whatever it does, and wait until it has. How it ended, if by itself, for which it has so
        long."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        code = process.poll()
        process.kill()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        return code


def _send(process: subprocess.Popen[bytes], frame: bytes, until_s: float) -> None:
    assert process.stdin is not None
    pipe, unsent = process.stdin.fileno(), memoryview(frame)
    while unsent:
        _wait(pipe, selectors.EVENT_WRITE, until_s)
        unsent = unsent[os.write(pipe, unsent[:PIPE_BYTES]) :]


def _receive(process: subprocess.Popen[bytes], length: int, until_s: float) -> bytes:
    """Exactly so many bytes. Raises OSError where they end before, ChatTemplateBroken when they are late."""
    assert process.stdout is not None
    pipe, parts = process.stdout.fileno(), []
    while length:
        _wait(pipe, selectors.EVENT_READ, until_s)
        part = os.read(pipe, min(length, PIPE_BYTES))
        if not part:
            raise BrokenPipeError("the process has ended")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _wait(pipe: int, event: int, until_s: float) -> None:
    with selectors.PollSelector() as waiting:  # select() takes no number above 1023; others are a file themselves
        waiting.register(pipe, event)
        if not waiting.select(max(0.0, until_s - monotonic())):
            raise _broken(f"it said nothing for {ANSWER_S:g} s")


def _told(payload: bytes) -> dict[str, Any]:
    try:
        told = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise _broken("its process says what is no JSON") from error
    if not isinstance(told, dict):
        raise _broken("its process says what is no answer")
    return told


def _broken(why: str) -> ChatTemplateBroken:
    return ChatTemplateBroken(f"the model's chat template does not work: {why}")


_STOPPING: Final = "this router is stopping"
_UNREADABLE: Final = "this conversation spells too many special tokens, or characters that mean nothing"
_ROOT: Final = str(Path(__file__).parents[2])
_KEPT: Final = ("TZ", "LD_LIBRARY_PATH")
"""Of our own environment; the rest is no business of a template."""

"""What `sawyer chat` does: reads a line, has it answered or continued, prints that; the commands that begin with /."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sawyer.cli import output
from sawyer.cli.answer import TextOut, bill_line
from sawyer.cli.asking import Answer, Asking, CtrlC
from sawyer.cli.chat_input import Interrupted, Pipe, Terminal
from sawyer.cli.conversation import Conversation, Dialogue, Turn
from sawyer.cli.sampling import DEFAULT_MAX_TOKENS, MAX_SEED, Sampling, described
from sawyer.cli.session import Consumer, chosen_model, consumer
from sawyer.client.waiting import LoopThread
from sawyer.errors import EXIT_DONE, Cancelled, NobodyServes, PromptTooLong, SawyerError, UsageError
from sawyer.schemas.messages import RouterReply
from sawyer.settings import Settings

HISTORY_FILE: Final = "chat_history"
HELP: Final = """\
/clear       forget the conversation and begin anew
/retry       take the last answer back and ask again
/save FILE   write the conversation into a new file
/balance     the tokens of your account
/help        this list
/quit        end; Ctrl-D, too
//TEXT       say a line that begins with /
Ctrl-C stops an answer: what came is kept, and billed."""


@dataclass(frozen=True)
class Talk:
    """How a conversation is held, where it is one: its system message; `is_short`: nobody said how long an answer may
    be, and a text that is continued has the shorter default. `trunk`: the folder of one to run here."""

    system: str = ""
    trunk: Path | None = None
    is_short: bool = False


def run(settings: Settings, sampling: Sampling, talk: Talk, *, verbose: bool) -> int:
    """Chat until the end of the input. The exit code: if the lines came from a pipe, of the first error."""
    lines = Terminal(settings.home.path / HISTORY_FILE) if sys.stdin.isatty() else Pipe()
    ctrl_c = CtrlC()
    with _connected(settings, talk.trunk) as (loop, me):
        model = chosen_model(me.network, settings["model"])
        left = loop.call(me.client.balance).available
        router = _router_of(loop.call(me.client.routers), model)
        if talk.system and not router.chat:
            raise UsageError(f"--system: {model} has no chat template that would read it", hint="Leave it out.")
        if not router.chat and talk.is_short:
            sampling = replace(sampling, max_tokens=DEFAULT_MAX_TOKENS)
        output.say(f"{model} on {me.network.network}, as {me.account}: {left:,} tokens left")
        output.say(_greeting(router, sampling) + (". /help lists the commands" if lines.interactive else ""))
        conversation = Dialogue(system=talk.system) if router.chat else Conversation()
        room = ChatRoom(loop, me, model, sampling, ctrl_c, conversation)
        room.talkative = verbose or lines.interactive
        try:
            with ctrl_c.heard():
                return _converse(room, lines)
        except Interrupted as interrupted:
            return interrupted.code


def _router_of(routers: Sequence[RouterReply], model: str) -> RouterReply:
    for each in routers:
        if each.model == model:
            return each
    raise NobodyServes(f"no router serves {model}", hint="Ask the operator, or start one.")


def _greeting(router: RouterReply, sampling: Sampling) -> str:
    """What the model does with what is said, and how it is sampled if its maker has a say in that."""
    if not router.chat:
        return "base model: it continues the text"
    said = described(router.generation)
    return "it answers in turns" + (f"; its maker recommends {said}" if said and sampling.left else "")


@contextlib.contextmanager
def _connected(settings: Settings, trunk: Path | None) -> Iterator[tuple[LoopThread, Consumer]]:
    """The account on a loop in a thread of its own: the connection lives while a person thinks."""
    loop, stack = LoopThread(), contextlib.AsyncExitStack()
    try:
        yield loop, loop.call(lambda: stack.enter_async_context(consumer(settings, trunk)))
        loop.call(stack.aclose)
    finally:
        loop.stop()


def _converse(room: ChatRoom, lines: Terminal | Pipe) -> int:
    code = EXIT_DONE
    while (line := lines.next()) is not None:
        try:
            if not _take(room, line):
                break
        except SawyerError as error:
            output.print_error(error)
            code = code or error.exit_code
        except KeyboardInterrupt:  # in a command: the chat goes on
            if not lines.interactive:
                raise
            output.say("interrupted")
        if room.stopped and not lines.interactive:
            raise Interrupted
    return EXIT_DONE if lines.interactive else code


def _take(room: ChatRoom, line: str) -> bool:
    """Say it, or do what it asks for. False: end."""
    if line.startswith("//"):
        room.say(line[1:])
    elif line.startswith("/"):
        return room.command(line)
    elif line.strip():
        room.say(line)
    return True


class ChatRoom:
    """One conversation: its state, and what a line does to it. `talkative`: say what each answer cost. `stopped`: the
    last answer was, by Ctrl-C."""

    def __init__(
        self,
        loop: LoopThread,
        me: Consumer,
        model: str,
        sampling: Sampling,
        ctrl_c: CtrlC,
        conversation: Conversation,
    ) -> None:
        self._loop = loop
        self._me = me
        self._model = model
        self._sampling = sampling
        self._ctrl_c = ctrl_c
        self._conversation = conversation
        self._answers = isinstance(conversation, Dialogue)
        self._asked = 0
        self._unanswered = ""
        self.talkative = True
        self.stopped = False

    def say(self, said: str) -> None:
        """Have the conversation continued; where it is too long, the oldest turns are forgotten. Raises SawyerError;
        then /retry asks again."""
        self._unanswered = said
        out = TextOut()
        asking = Asking(self._loop, self._me, out.piece)
        with self._ctrl_c.stops(asking):
            try:
                answer = self._answer(asking, said)
            finally:
                out.end(newline=True)
                self.stopped = asking.stopped
            if answer is None:
                output.say("stopped before it began: nothing was billed")
                return
            self._conversation.add(Turn(said, answer.text))
            self._unanswered = ""
            if self._answers and answer.cut and self.talkative:
                output.say(f"(cut at {self._sampling.max_tokens} tokens: --max-tokens lets answers be longer)")
            if self.talkative or self.stopped:
                left = self._loop.call(self._me.client.balance).available
                output.say(f"[{'stopped: ' if self.stopped else ''}{bill_line(answer.usage, left)}]")

    def command(self, line: str) -> bool:
        """Do what a line that begins with / asks for. False: end. Raises UsageError for one that there is not."""
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: output.say(HELP),
            "/clear": lambda _: self._clear(),
            "/retry": lambda _: self._retry(),
            "/save": self._save,
            "/balance": lambda _: self._balance(),
        }
        if name in ("/quit", "/exit"):
            return False
        if name not in commands:
            raise UsageError(f"there is no command {name}", hint="/help lists them. //TEXT says a line that begins so.")
        commands[name](rest.strip())
        return True

    # --- asking -----------------------------------------------------------------------------------------------------

    def _answer(self, asking: Asking, said: str) -> Answer | None:
        """None if it was stopped before it began."""
        options = self._sampling.options(model_defaults=self._answers) | {"seed": self._next_seed()}
        while True:
            try:
                return asking.ask(self._conversation.prompt(said), self._model, options)
            except Cancelled:
                return None
            except PromptTooLong as refused:
                dropped = self._conversation.shorten(refused, said, self._sampling.max_tokens)
                if not dropped:
                    raise
                turns = "turn is" if dropped == 1 else f"{dropped} turns are"
                output.say(f"(the context is full: the oldest {turns} no longer shown to the model)")

    def _next_seed(self) -> int:
        """Another one for each answer, so that /retry gives another answer; a whole chat repeats with its --seed."""
        first = self._sampling.seed
        self._asked += 1
        return secrets.randbelow(MAX_SEED) if first is None else (first + self._asked - 1) % MAX_SEED

    # --- commands ---------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self._conversation.clear()
        self._unanswered = ""
        output.say(f"(forgotten: the next line begins a new {'conversation' if self._answers else 'text'})")

    def _retry(self) -> None:
        if self._unanswered:
            self.say(self._unanswered)
            return
        last = self._conversation.take_back()
        if last is None:
            raise UsageError("there is nothing to ask again", hint="Say something first.")
        self.say(last.said)

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a file", hint="Write: /save FILE")
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self._conversation.transcript())
        except OSError as error:
            raise UsageError(f"cannot save as {path}: {error.strerror}", hint="Choose another file.") from error
        turns = len(self._conversation.turns)
        output.say(f"(saved {turns} turn{'' if turns == 1 else 's'} in {path})")

    def _balance(self) -> None:
        balance = self._loop.call(self._me.client.balance)
        output.line(f"{balance.available:,} tokens available, {balance.held:,} held, {balance.consumed:,} consumed")

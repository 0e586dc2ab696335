"""`specpipe chat` and `generate --messages` against a real server, and in a real terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from specpipe.cli import main
from specpipe.serve.client import Conversation, Options
from specpipe.serve.dialogue import Dialogue
from tests.helpers.servers import Served, cli_generate
from tests.helpers.waiting import until

pytestmark = pytest.mark.e2e


def answer(server: Served, conversation: Conversation, max_tokens: int = 12) -> str:
    return server.client.generate(conversation, Options(max_tokens=max_tokens)).text


def cli_chat(server: Served, text: str, *words: str) -> Result:
    options = ["chat", "--url", server.url, "--max-tokens", "12", *words]
    return CliRunner().invoke(main, options, input=text)


def test_every_line_of_a_pipe_is_a_message_of_one_conversation(server: Served) -> None:
    begun = Conversation.of("Who jumps?", "Be brief.")
    first = answer(server, begun)
    second = answer(server, begun.then("assistant", first).then("user", "And the box?"))
    again = answer(server, Conversation.of("Again.", "Be brief."))
    text = "Who jumps?\n\n  And the box?\n/reset\nAgain.\n/exit\nnever sent\n"
    done = cli_chat(server, text, "--system", "Be brief.")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{first}\n{second}\n{again}\n"
    figures = done.stderr.splitlines()
    assert len(figures) == 3 and all("tokens/s" in line for line in figures)
    assert "draft tokens" in figures[0] or "nothing was drafted" in figures[0]
    done = cli_chat(server, text, "--system", "Be brief.", "--json")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [first, second, again]


def test_a_pipe_ends_with_a_refusal(server: Served) -> None:
    done = cli_chat(server, "fox " * 400 + "\nnever sent\n")
    assert done.exit_code == 2 and "at most 100 (max_input_len)" in done.stderr
    assert cli_chat(server, "\xff").exit_code == 0
    done = CliRunner().invoke(main, ["chat", "--url", server.url], input=b"\xff\n")
    assert done.exit_code == 2 and "line 1 of stdin is not UTF-8" in done.stderr


def test_a_refused_message_is_not_part_of_the_conversation(server: Served) -> None:
    dialogue = Dialogue(server.client, Options(max_tokens=5))
    with pytest.raises(Exception, match="max_input_len"):
        list(dialogue.say("fox " * 400))
    assert dialogue.so_far.messages == ()
    pieces = dialogue.say("fox")
    begun = next(pieces).text
    pieces.close()  # type: ignore[attr-defined]
    said = [(m["role"], m["content"]) for m in dialogue.so_far.messages]
    assert said == [("user", "fox"), ("assistant", begun)]


@pytest.mark.parametrize("form", ["list", "object"])
def test_generate_continues_the_conversation_of_a_file(
    form: str, server: Served, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox."}]
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(turns if form == "list" else {"messages": turns}))
    words = ("--json", "--max-tokens", "12", "--messages", str(file))
    done = cli_generate(server, *words, "--system", "Short.", "And?")
    asked = Conversation.of("Who?", "Short.").then("assistant", "The fox.").then("user", "And?")
    assert json.loads(done.stdout.splitlines()[0])["text"] == answer(server, asked)
    done = cli_generate(server, *words)  # without a further message
    text = json.loads(done.stdout.splitlines()[0])["text"]
    assert text == answer(server, Conversation(tuple(turns)))


def test_generate_refuses_what_no_conversation_can_be(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    for content, words, more in (
        ("[", f"{file} is no JSON", ()),
        ('[{"role": "system", "content": "x"}]', "begins with a system message", ("--system", "y")),
        ("[1]", "must be an object with a 'role'", ()),
        ('[{"role": "user", "content": "x"}]', "--raw sends one text", ("--raw",)),
    ):
        file.write_text(content)
        done = cli_generate(server, "--messages", str(file), *more, "hi")
        assert done.exit_code == 2 and words in done.stderr


def test_generate_with_the_config_of_another_run_says_so(
    server: Served, bls_server: Served
) -> None:
    run = ("--config", bls_server.config.path, "--workspace", str(bls_server.workspace.root))
    done = CliRunner().invoke(main, ["generate", "--url", server.url, *run, "hi"])
    assert done.exit_code == 2
    assert f"the server at {server.url} serves another repository than " in done.stderr


class Terminal:
    """A `specpipe chat` in a terminal."""

    def __init__(self, *options: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "specpipe", "chat", *options]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may ignore it
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        signal.signal(signal.SIGINT, before)
        os.close(slave)
        self.seen = ""

    def await_text(self, *words: str) -> None:
        """Wait for text in the order given, behind what was awaited before."""
        for word in words:
            self._await(word, lambda: None)

    def interrupt_until(self, word: str) -> None:
        """Send Ctrl-C until a text is seen; readline misses one that arrives between two keys."""
        self._await(word, lambda: os.kill(self.process.pid, signal.SIGINT))

    def _await(self, word: str, act: Callable[[], None]) -> None:
        def is_seen() -> bool:
            if word in self._read(0.05):
                return True
            act()
            return word in self._read(5)

        until(is_seen, timeout_s=120, failure=lambda: f"{word!r} is not in {self.seen!r}")
        self.seen = self.seen.partition(word)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def _read(self, patience_s: float) -> str:
        """Return what is unread; wait for its first part."""
        while select.select([self.master], [], [], patience_s)[0]:
            patience_s = 0.05
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # the other side is closed
                break
        return self.seen


@pytest.fixture
def terminal(server: Served) -> Iterator[Terminal]:
    """Return a chat whose answers have thousands of tokens."""
    found = Terminal("--url", server.url, "--max-tokens", "3900")
    yield found
    found.process.kill()
    found.process.wait()
    os.close(found.master)


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(server: Served, terminal: Terminal) -> None:
    terminal.await_text("> ")
    terminal.type("fox " * 400 + "\n")
    terminal.await_text("error: ", "max_input_len", "> ")
    terminal.type("half a line")
    terminal.await_text("half a line")
    terminal.interrupt_until("> ")
    terminal.type("Tell a story.\n")
    server.await_in_flight("tensorrt_llm_bls", 1)
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.await_text("stopped", "> ")
    server.await_in_flight("tensorrt_llm_bls", 0)
    terminal.type("\x04")
    assert terminal.process.wait(timeout=30) == 0

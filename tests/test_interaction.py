"""Transcripts of raft, in the manner of etcd-io/raft's: tests/interaction/*.txt.

A transcript is paragraphs; a paragraph is a comment (`# ...` lines), or one command a line, then
`----`, then what came out. `pytest tests/test_interaction.py --rewrite` writes what comes out into
the files: read the difference, and commit it only if you know what caused it.

The commands are the functions in COMMANDS, and what they do is in their docstrings. Nothing
happens by itself: what raft hands out with `take` waits for `persist` and `apply`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quorate.core._run import Run
from quorate.core.errors import EtcdError
from quorate.core.messages import ConfChange, EntryType, HardState, Message, MessageType
from quorate.core.raft import Ready

from .raft_driver import Driver

TRANSCRIPTS = Path(__file__).parent / "interaction"


class Script:
    """The member of one transcript."""

    def __init__(self) -> None:
        self.driver = Driver()


def show_run(run: Run) -> str:
    return f"{run.first_index}..{run.last_index}/{run.term}"


def show_runs(runs: object) -> str:
    assert isinstance(runs, list)
    return " ".join(show_run(run) for run in runs)


def show_hard_state(state: HardState) -> str:
    return f"term {state.term} vote {state.vote} commit {state.commit}"


def show_message(message: Message) -> str:
    return f"{message.from_}->{message.to} {MessageType(message.type).name} term {message.term}"


def show_ready(ready: Ready) -> list[str]:
    """What the driver is to do, a line for each part that is there."""
    lines = [f"ready: must_sync {str(ready.must_sync).lower()}"]
    if ready.soft_state is not None:
        lines.append(f"  {ready.soft_state.role.name}, leader {ready.soft_state.leader}")
    if ready.runs:
        lines.append(f"  append {show_runs(ready.runs)}")
    if ready.hard_state is not None:
        lines.append(f"  state {show_hard_state(ready.hard_state)}")
    lines.extend(f"  send {show_message(message)}" for message in ready.messages)
    lines.extend(f"  when durable {show_message(message)}" for message in ready.responses)
    if ready.must_sync:
        lines.append(f"  when durable on_persisted({ready.term}, {ready.index})")
    if ready.committed:
        lines.append(f"  apply {show_runs(ready.committed)}")
    for context, read_index in ready.read_states:
        lines.append(f"  read {context} at {read_index}")
    lines.extend(f"  drop read {context}" for context in ready.dropped_reads)
    return lines


def bootstrap(script: Script, words: list[str]) -> list[str]:
    """Begin a cluster of this member."""
    script.driver.bootstrap()
    return []


def campaign(script: Script, words: list[str]) -> list[str]:
    """Stand for election."""
    script.driver.raft.campaign()
    return []


def tick(script: Script, words: list[str]) -> list[str]:
    """tick N: N ticks."""
    for _ in range(int(words[0])):
        script.driver.raft.tick()
    return []


def propose(script: Script, words: list[str]) -> list[str]:
    """propose a b c: one run, an entry for each word."""
    return [f"proposed {show_run(script.driver.propose(*(word.encode() for word in words)))}"]


def propose_bytes(script: Script, words: list[str]) -> list[str]:
    """propose_bytes N: one entry of N bytes."""
    return [f"proposed {show_run(script.driver.propose(bytes(int(words[0]))))}"]


def read(script: Script, words: list[str]) -> list[str]:
    """read NAME: ask for a read index."""
    script.driver.raft.read_index(words[0])
    return []


def take(script: Script, words: list[str]) -> list[str]:
    """Take over the next Ready."""
    ready = script.driver.take()
    return show_ready(ready) if ready is not None else ["nothing to do"]


def persist(script: Script, words: list[str]) -> list[str]:
    """The oldest append is durable, and raft is told."""
    if not script.driver.appending:
        return ["nothing to persist"]
    ready, _ = script.driver.appending[0]
    script.driver.persist()
    return [f"persisted {show_runs(list(ready.runs)) or 'state only'}"]


def write(script: Script, words: list[str]) -> list[str]:
    """The oldest append is durable, but the member dies before raft is told; it begins again."""
    ready = script.driver.write()
    return [f"written {show_runs(list(ready.runs)) or 'state only'}", *restart(script, words)]


def apply(script: Script, words: list[str]) -> list[str]:
    """The oldest run is applied, and raft is told."""
    if not script.driver.applying:
        return ["nothing to apply"]
    run = script.driver.applying[0]
    script.driver.apply()
    lines = [f"applied {show_run(run)}"]
    for entry_type, data in run.unpack():
        if entry_type == EntryType.CONF_CHANGE:
            change = ConfChange.decode(data)
            voters = script.driver.raft.conf_state.voters
            lines.append(f"  change {change.type} of member {change.node_id}: voters {voters}")
    return lines


def restart(script: Script, words: list[str]) -> list[str]:
    """The member dies and begins again with what its disk has."""
    script.driver = script.driver.restart()
    return status(script, words)


def higher_term(script: Script, words: list[str]) -> list[str]:
    """higher_term N: a message of term N comes from somewhere."""
    term = int(words[0])
    script.driver.raft.step(Message(MessageType.VOTE_RESPONSE, from_=99, term=term))
    return []


def stabilize(script: Script, words: list[str]) -> list[str]:
    """Take, persist and apply until nothing is left."""
    lines = []
    while True:
        if (ready := script.driver.take()) is not None:
            lines += show_ready(ready)
        elif script.driver.appending:
            lines += persist(script, [])
        elif script.driver.applying:
            lines += apply(script, [])
        else:
            return lines


def status(script: Script, words: list[str]) -> list[str]:
    """Role, term and every mark of the log."""
    raft = script.driver.raft
    log = raft.log
    return [
        f"{raft.role.name} term {raft.term} vote {raft.vote} leader {raft.leader}",
        f"  snapshot {log.snapshot_index} applied {log.applied} applying {log.applying} "
        f"committed {log.committed} stable {log.stable} last {log.last_index}",
    ]


COMMANDS: dict[str, Callable[[Script, list[str]], list[str]]] = {
    command.__name__: command
    for command in (
        bootstrap,
        campaign,
        tick,
        propose,
        propose_bytes,
        read,
        take,
        persist,
        write,
        apply,
        restart,
        higher_term,
        stabilize,
        status,
    )
}


def obey(script: Script, line: str) -> list[str]:
    """One command's output; an expected error is output too."""
    name, *words = line.split()
    try:
        return COMMANDS[name](script, words)
    except EtcdError as error:
        return [f"{type(error).__name__}: {error}"]


def played(text: str) -> str:
    """The transcript as it comes out now."""
    script = Script()
    paragraphs = []
    for paragraph in text.strip("\n").split("\n\n"):
        if paragraph.startswith("#"):
            paragraphs.append(paragraph)
            continue
        commands = paragraph.split("\n----")[0].split("\n")
        output = [line for command in commands for line in obey(script, command)]
        paragraphs.append("\n".join([*commands, "----", *(output or ["ok"])]))
    return "\n\n".join(paragraphs) + "\n"


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    result = played(text)
    if request.config.getoption("--rewrite"):
        path.write_text(result)
    else:
        assert result == text


def test_a_changed_transcript_is_seen() -> None:
    text = (TRANSCRIPTS / "start.txt").read_text()
    assert played(text.replace("commit 2", "commit 1")) == text


def test_every_command_is_used() -> None:
    text = "\n".join(path.read_text() for path in TRANSCRIPTS.glob("*.txt"))
    used = {line.split()[0] for line in text.split("\n") if line}
    assert not COMMANDS.keys() - used

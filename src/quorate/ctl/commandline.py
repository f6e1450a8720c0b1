"""Commands and flags as etcd's own tools read them (Go's cobra and pflag), and their help texts.

Rules:
1. A tool is a tree of `Command`s, a table and no more: parsing, help and completion follow
   from it.
2. Texts, streams and exit codes are etcd's: an error is `Error: …` on stderr; one that the parser
   finds is told twice, with the usage between, exit 1; one that a command finds is told once.
3. A command or flag may be cut short where that names one command alone; flags stand anywhere, and
   `--` ends them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from quorate.core.flags import INT, UINT, Reader, Value, read_bool, read_duration, read_string

# Exit codes of etcd's tools.
EXIT_ERROR, EXIT_BAD_FEATURE, EXIT_INTERRUPTED, EXIT_BAD_ARGS = 1, 4, 5, 128
# Of two words as far apart as this the one is suggested for the other.
SUGGESTION_DISTANCE_MAX = 2


class CommandError(Exception):
    """What a command can't do: the text for the user and the exit code."""

    def __init__(self, text: str, code: int = EXIT_ERROR) -> None:
        super().__init__(text)
        self.code = code


class UsageError(Exception):
    """A command line that can't be read."""

    def __init__(self, text: str, command: Command | None) -> None:
        super().__init__(text)
        self.command = command
        """Whose usage is shown; None: where to find it is said in the text."""


@dataclass(frozen=True)
class Flag:
    """One flag; without a `default` of its own it is empty, false or zero."""

    name: str
    kind: str  # bool, string, int, uint, duration
    meaning: str
    default: Value = ""
    shown: str = ""  # the default as help shows it
    letter: str = ""
    required: bool = False
    completes: tuple[str, ...] = ()  # values that a shell may offer

    @property
    def title(self) -> str:
        """Its names."""
        return f"-{self.letter}, --{self.name}" if self.letter else f"--{self.name}"

    def read(self, text: str) -> Value:
        """The value in `text`. Raises ValueError with pflag's text."""
        reader, parser = READERS[self.kind]
        try:
            return reader(text)
        except ValueError as error:
            if parser == "time":
                reason = f'time: invalid duration "{text}"'
            else:
                why = "value out of range" if "range" in str(error) else "invalid syntax"
                reason = f'strconv.{parser}: parsing "{text}": {why}'
            raise ValueError(
                f'invalid argument "{text}" for "{self.title}" flag: {reason}'
            ) from None


READERS: dict[str, tuple[Reader, str]] = {
    "bool": (read_bool, "ParseBool"),
    "string": (read_string, ""),
    "int": (INT, "ParseInt"),
    "uint": (UINT, "ParseUint"),
    "duration": (read_duration, "time"),
}
EMPTY: dict[str, Value] = {"bool": False, "string": "", "int": 0, "uint": 0, "duration": 0.0}


@dataclass(frozen=True)
class Call:
    """A command line that was read."""

    command: Command
    arguments: tuple[str, ...]
    values: dict[str, Value]

    def text(self, name: str) -> str:
        """The value of a flag of strings."""
        value = self.values[name]
        assert isinstance(value, str), name
        return value

    def number(self, name: str) -> float:
        """The value of a flag of numbers or durations."""
        value = self.values[name]
        assert isinstance(value, int | float), name
        return value

    def integer(self, name: str) -> int:
        """The value of a flag of whole numbers."""
        value = self.values[name]
        assert isinstance(value, int), name
        return value

    def switch(self, name: str) -> bool:
        """The value of a flag that is on or off."""
        value = self.values[name]
        assert isinstance(value, bool), name
        return value


@dataclass(frozen=True)
class Command:
    """One command: it runs, or it has commands of its own."""

    name: str
    meaning: str
    run: Callable[[Call], None] | None = None
    form: str = ""  # its arguments, as help shows them
    flags: tuple[Flag, ...] = ()
    commands: tuple[Command, ...] = ()
    exactly: int | None = None  # arguments, where the parser is to count them
    values: tuple[str, ...] = ()  # of which its argument is one
    flags_in_form: bool = True
    above: tuple[str, ...] = field(default=(), compare=False)  # names of those that have it

    @property
    def path(self) -> str:
        """Its name with those of the commands that have it."""
        return " ".join((*self.above, self.name))


class Tool:
    """A tree of commands under the name that the program was called by."""

    def __init__(self, name: str, commands: Sequence[Command], flags: Sequence[Flag]) -> None:
        self.flags = tuple(flags)
        helper = Command("help", "Help about any command", form="[command]")
        self.root = Command(name, "", commands=tuple(sorted((*commands, helper), key=by_name)))

    def run(self, arguments: Sequence[str]) -> int:
        """Do what the command line says; the answer is the exit code."""
        try:
            call = self.parse(arguments)
            if call.command.run is None or call.values["help"]:
                sys.stdout.write(self.usage(call.command))
            else:
                call.command.run(call)
        except UsageError as error:
            shown = f"{self.usage(error.command)}\n" if error.command else ""
            sys.stderr.write(f"Error: {error}\n{shown}")
            if not error.command:
                sys.stderr.write(f"Run '{self.root.name} --help' for usage.\n")
            sys.stderr.write(f"Error: {error}\n")
            return EXIT_ERROR
        except CommandError as error:
            sys.stderr.write(f"Error: {error}\n")
            return error.code
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        return 0

    # --- parsing

    def parse(self, arguments: Sequence[str]) -> Call:
        """The command that is meant, its arguments and flags. Raises UsageError."""
        command, rest = self.find(self.root, arguments)
        if command.name == "help" and not command.flags and command.above == (self.root.name,):
            command, rest = self.find(self.root, rest)
            unknown = [word for word in rest if not word.startswith("-")]
            if command is self.root and unknown:
                sys.stderr.write(f"Unknown help topic [{' '.join(f'`{w}`' for w in unknown)}]\n")
            return Call(command, (), {"help": True})
        flags = {flag.name: flag for flag in self.flags_of(command)}
        values = {flag.name: flag.default or EMPTY[flag.kind] for flag in flags.values()}
        given: set[str] = set()
        positional = list(self.read_flags(command, flags, rest, values, given))
        if not values["help"] and command.run is not None:
            self.check(command, positional, given)
        elif command is self.root and positional and not values["help"]:
            raise UsageError(self.unknown(positional[0]), None)
        return Call(command, tuple(positional), values)

    def find(self, command: Command, arguments: Sequence[str]) -> tuple[Command, list[str]]:
        """The command that the first words name, and all arguments but these words."""
        rest = list(arguments)
        at = 0
        while at < len(rest) and rest[at] != "--":
            word = rest[at]
            if word.startswith("-") and len(word) > 1:
                at += 2 if self.takes_next(command, word) else 1
                continue
            below = subcommand(command, word)
            if below is None:
                break
            command = below
            del rest[at]
        return command, rest

    def takes_next(self, command: Command, word: str) -> bool:
        """Whether the value of this flag is the next word."""
        if "=" in word:
            return False
        name = word.lstrip("-")
        for flag in self.flags_of(command):
            if flag.kind != "bool" and name == (flag.name if word[1] == "-" else flag.letter):
                return True
        return False

    def flags_of(self, command: Command) -> list[Flag]:
        """The flags that it knows, by name."""
        helper = Flag("help", "bool", f"help for {command.name}", letter="h")
        return sorted((*command.flags, *self.flags, helper), key=by_name)

    def read_flags(
        self,
        command: Command,
        flags: dict[str, Flag],
        rest: list[str],
        values: dict[str, Value],
        given: set[str],
    ) -> Sequence[str]:
        """Put the flags' values into `values`; the answer is what is no flag. Raises UsageError."""
        positional: list[str] = []
        words = iter(rest)
        for word in words:
            if word == "--":
                positional += words
            elif not word.startswith("-") or word == "-":
                positional.append(word)
            else:
                try:
                    named = long_flag if word.startswith("--") else short_flags
                    for flag, text in named(flags, word, words):
                        values[flag.name] = flag.read(text)
                        given.add(flag.name)
                except ValueError as error:
                    raise UsageError(str(error), command) from None
        return positional

    def check(self, command: Command, positional: Sequence[str], given: set[str]) -> None:
        """What cobra asks of a command line before the command runs. Raises UsageError."""
        if command.exactly is not None and len(positional) != command.exactly:
            count = f"accepts {command.exactly} arg(s), received {len(positional)}"
            raise UsageError(count, command)
        if command.values and positional[0] not in command.values:
            raise UsageError(f'invalid argument "{positional[0]}" for "{command.path}"', command)
        needed = [flag for flag in command.flags if flag.required and flag.name not in given]
        if needed:
            names = ", ".join(f'"{flag.name}"' for flag in sorted(needed, key=by_name))
            raise UsageError(f"required flag(s) {names} not set", command)

    def unknown(self, word: str) -> str:
        """What is said of a word that is no command."""
        text = f'unknown command "{word}" for "{self.root.name}"'
        near = [each.name for each in self.root.commands if is_near(word, each.name)]
        if near:
            text += "\n\nDid you mean this?\n" + "".join(f"\t{name}\n" for name in near)
        return text

    # --- help

    def usage(self, command: Command) -> str:
        """cobra's usage text."""
        path = command.path
        lines = ["Usage:"]
        if command.run is not None:
            form = f" {command.form}" if command.form else ""
            flags = " [flags]" if command.flags_in_form else ""
            lines.append(f"  {path}{form}{flags}")
        if command.commands:
            lines += [f"  {path} [command]", "", "Available Commands:"]
            width = max(11, *(len(each.name) for each in command.commands))
            lines += [f"  {each.name:{width}} {each.meaning}" for each in command.commands]
        shown = {flag.name: flag for flag in self.flags_of(command)}
        above = [] if command is self.root else list(self.flags)
        own = [flag for name, flag in shown.items() if flag not in above]
        lines += ["", "Flags:", *flag_lines(own)]
        if above:
            lines += ["", "Global Flags:", *flag_lines(sorted(above, key=by_name))]
        if command.commands:
            more = f'Use "{path} [command] --help" for more information about a command.'
            lines += ["", more]
        return "\n".join(lines) + "\n"


def by_name(named: Flag | Command) -> str:
    """The order of lists."""
    return named.name


def subcommand(command: Command, word: str) -> Command | None:
    """The command that `word` names, whole or as the only one that begins so."""
    found = [each for each in command.commands if each.name.startswith(word)]
    exact = [each for each in found if each.name == word]
    below = (exact or found)[0] if exact or len(found) == 1 else None
    if below is None:
        return None
    above = (*command.above, command.name)
    return Command(**{**vars(below), "above": above})


def long_flag(flags: dict[str, Flag], word: str, words: Iterator[str]) -> list[tuple[Flag, str]]:
    """`--name=value`, `--name value`, `--name`. Raises ValueError."""
    name, equals, text = word[2:].partition("=")
    flag = flags.get(name)
    if flag is None:
        raise ValueError(f"unknown flag: --{name}")
    if not equals:
        text = "true" if flag.kind == "bool" else next_word(words, f"--{name}")
    return [(flag, text)]


def short_flags(flags: dict[str, Flag], word: str, words: Iterator[str]) -> list[tuple[Flag, str]]:
    """`-x`, `-xvalue`, `-x=value`, `-x value`, and several that take none at once."""
    found: list[tuple[Flag, str]] = []
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = next((flag for flag in flags.values() if flag.letter == letter), None)
        if flag is None:
            raise ValueError(f"unknown shorthand flag: '{letter}' in {word}")
        if letters.startswith("="):
            return [*found, (flag, letters[1:])]
        if flag.kind != "bool":
            text = letters or next_word(words, f"'{letter}' in {word}")
            return [*found, (flag, text)]
        found.append((flag, "true"))
    return found


def next_word(words: Iterator[str], flag: str) -> str:
    """The word that is a flag's value. Raises ValueError."""
    found = next(words, None)
    if found is None:
        raise ValueError(f"flag needs an argument: {flag}")
    return found


def flag_lines(flags: Sequence[Flag]) -> list[str]:
    """Names, kinds, meanings and defaults below one another."""
    heads = []
    for flag in flags:
        head = f"  -{flag.letter}, --{flag.name}" if flag.letter else f"      --{flag.name}"
        heads.append(head if flag.kind == "bool" else f"{head} {flag.kind}")
    width = max(map(len, heads))
    return [
        f"{head:{width}}   {flag.meaning}{shown_default(flag)}"
        for head, flag in zip(heads, flags, strict=True)
    ]


def shown_default(flag: Flag) -> str:
    """The default as help shows it: not at all where it is empty."""
    if not flag.default:
        return ""
    text = flag.shown or str(flag.default)
    return f' (default "{text}")' if flag.kind == "string" else f" (default {text})"


def is_near(word: str, name: str) -> bool:
    """Whether cobra suggests the name for the word."""
    return name.lower().startswith(word.lower()) or (
        distance(word.lower(), name.lower()) <= SUGGESTION_DISTANCE_MAX
    )


def distance(one: str, other: str) -> int:
    """Levenshtein's: letters to add, drop or change."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        before, row[0] = row[0], at
        for place, wanted in enumerate(other, 1):
            changed = before + (letter != wanted)
            before = row[place]
            row[place] = min(row[place] + 1, row[place - 1] + 1, changed)
    return row[-1]

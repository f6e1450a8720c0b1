"""Completion scripts for shells, made from a tool's table of commands.

Each is a list of what may follow each command; a shell's own means complete file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .commandline import Command, Flag, Tool

SHELLS = ("bash", "zsh", "fish", "powershell")


def completion(tool: Tool, shell: str) -> str:
    """The script for one of SHELLS."""
    return {"bash": bash, "zsh": zsh, "fish": fish, "powershell": powershell}[shell](tool)


def rows(tool: Tool) -> Iterator[tuple[str, Command]]:
    """Every command by the words that lead to it; the tool itself by none."""
    todo = [("", tool.root)]
    while todo:
        words, command = todo.pop(0)
        yield words, command
        todo += [(f"{words} {each.name}".strip(), each) for each in command.commands]


def words_of(tool: Tool, command: Command) -> list[str]:
    """What may follow the command: commands, values, flags."""
    flags = [f"--{flag.name}" for flag in tool.flags_of(command)]
    return [*(each.name for each in command.commands), *command.values, *flags]


def chosen(tool: Tool) -> list[Flag]:
    """The flags that have a list of values, those of all commands first."""
    return [flag for flag in tool.flags if flag.completes]


def bash(tool: Tool) -> str:
    """A function for bash's `complete`."""
    name = tool.root.name
    cases = "".join(
        f'        "{words}") offered="{" ".join(words_of(tool, command))}" ;;\n'
        for words, command in rows(tool)
    )
    values = "".join(
        f"        --{flag.name}{f'|-{flag.letter}' if flag.letter else ''}) "
        f'COMPREPLY=($(compgen -W "{" ".join(flag.completes)}" -- "$word")); return ;;\n'
        for flag in chosen(tool)
    )
    known = "|".join(f'"{words}"' for words, _ in rows(tool) if words)
    return f"""\
# bash completion for {name}
_{name}() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    local command="" offered="" at
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "${{command:+$command }}${{COMP_WORDS[at]}}" in
            {known}) command="${{command:+$command }}${{COMP_WORDS[at]}}" ;;
        esac
    done
    case "$before" in
{values}    esac
    case "$command" in
{cases}    esac
    COMPREPLY=($(compgen -W "$offered" -- "$word"))
}}
complete -o default -F _{name} {name}
"""


def zsh(tool: Tool) -> str:
    """bash's, through zsh's own bridge."""
    name = tool.root.name
    return f"#compdef {name}\nautoload -U +X bashcompinit && bashcompinit\n{bash(tool)}"


def fish(tool: Tool) -> str:
    """One line for each word."""
    name = tool.root.name
    lines = [f"# fish completion for {name}"]
    for words, command in rows(tool):
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words.split())
        below = " ".join(each.name for each in command.commands)
        if below:
            seen = f"{seen}; and " if seen else ""
            seen += f"not __fish_seen_subcommand_from {below}"
        start = f"complete -c {name}" + (f" -n {quoted(seen)}" if seen else "")
        lines += [
            f"{start} -f -a {each.name} -d {quoted(each.meaning)}" for each in command.commands
        ]
        lines += [f"{start} -f -a {value}" for value in command.values]
        for flag in tool.flags_of(command):
            letter = f" -s {flag.letter}" if flag.letter else ""
            takes = "" if flag.kind == "bool" else " -r"
            offered = f" -f -a {quoted(' '.join(flag.completes))}" if flag.completes else ""
            meaning = quoted(flag.meaning)
            lines.append(f"{start} -l {flag.name}{letter}{takes}{offered} -d {meaning}")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """In single quotes, as fish and PowerShell read them."""
    return "'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


def powershell(tool: Tool) -> str:
    """A native completer."""
    name = tool.root.name
    cases = "".join(
        f"        '{words}' {{ {', '.join(repr(w) for w in words_of(tool, command))} }}\n"
        for words, command in rows(tool)
    )
    known = ", ".join(f"'{words}'" for words, _ in rows(tool) if words)
    return f"""\
# PowerShell completion for {name}
Register-ArgumentCompleter -Native -CommandName '{name}' -ScriptBlock {{
    param($wordToComplete, $commandAst, $cursorPosition)
    $command = ''
    foreach ($element in $commandAst.CommandElements | Select-Object -Skip 1) {{
        $longer = "$command $element".Trim()
        if (@({known}) -contains $longer) {{ $command = $longer }}
    }}
    $offered = switch ($command) {{
{cases}    }}
    $offered | Where-Object {{ $_ -like "$wordToComplete*" }} | ForEach-Object {{
        [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
    }}
}}
"""

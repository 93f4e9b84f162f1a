# SPDX-License-Identifier: Apache-2.0
"""Every verb: its parser, its own examples, its man page entry and its completions; and what a start costs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import agent
from agent.cli import arguments, inside, main

if TYPE_CHECKING:
    from agent.cli.arguments import Verb

MANUAL = """check plan status start stop restart reload pause resume run kill exec attach logs wait inspect top
    stats events checkpoint restore pull images prune info schema reload-agent"""
ROOT = Path(__file__).parents[2]
VERBS = [main.find(name) for name in main.MODULES]
BY_NAME = pytest.mark.parametrize("verb", VERBS, ids=[verb.name for verb in VERBS])


def flags(verb: Verb) -> list[str]:
    """The options of a verb without those that all have."""
    return [flag for option in verb.options for flag in option.flags if flag.startswith("-")]


def test_the_verbs_of_the_manual() -> None:
    assert set(main.MODULES) == set(MANUAL.split())


@BY_NAME
def test_help_explains_each_verb(verb: Verb) -> None:
    text = arguments.parser(verb).format_help()
    assert f"cleat {verb.name}" in text
    for flag in flags(verb):
        assert re.search(rf"{flag}\b", text)
    assert verb.summary in main.overview()


def test_each_verb_has_an_example() -> None:
    assert {verb.name for verb in VERBS if not verb.examples} == set()


@BY_NAME
def test_the_examples_are_good_command_lines(verb: Verb) -> None:
    tried = 0
    for line in verb.examples.splitlines():
        text = re.split(r"\s{3,}", line.strip())[0]
        for part in re.split(r" && | \| ", re.sub("'.*'", "x", text)):
            words = shlex.split(re.split(r" [<>]", part)[0])
            if words[:2] == ["cleat", verb.name]:
                arguments.parser(verb).parse_args(words[2:])
                tried += 1
    assert tried


def parsed(line: str) -> object:
    name, *rest = shlex.split(line)
    return vars(arguments.parser(main.find(name)).parse_args(rest))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("stop -t 1min web db", {"time": "1min", "names": ["web", "db"], "all": False, "user": False}),
        ("kill -s HUP --all web", {"signal": "HUP", "all_processes": True, "names": ["web"]}),
        ("kill web", {"signal": "SIGTERM", "all_processes": False}),
        ("status", {"names": [], "json": False, "lines": 10}),
        ("status --user --json", {"user": True, "json": True}),
        ("status --user --system", {"user": False}),
        ("logs -fn5 web", {"follow": True, "lines": 5, "name": "web"}),
        ("exec web ls -l --user x", {"name": "web", "command": ["ls", "-l", "--user", "x"], "tty": False}),
        ("exec -it web sh -c 'a b'", {"interactive": True, "tty": True, "command": ["sh", "-c", "a b"]}),
        ("exec --user nginx web id", {"user_inside": "nginx", "name": "web", "user": False}),
        ("exec -e A=1 -e B web -- env", {"env": ["A=1", "B"]}),
        ("check", {"files": []}),
        ("check -", {"files": ["-"]}),
    ],
)
def test_command_lines(line: str, wanted: dict[str, object]) -> None:
    got = parsed(line)
    assert isinstance(got, dict)
    assert {key: got[key] for key in wanted} == wanted


def test_what_follows_two_dashes_is_the_command() -> None:
    """Whether argparse leaves the dashes there depends on Python's version."""
    got = arguments.parser(main.find("exec")).parse_args(["-u", "x", "web", "--", "ls", "--all", "--", "-x"])
    assert inside.command_of(got) == ["ls", "--all", "--", "-x"]


def test_the_user_manager_may_stand_before_the_verb() -> None:
    assert arguments.parser(main.find("exec"), user=True).parse_args(["web", "id"]).user is True


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "cleat: no command given (see cleat --help)"),
        ("restar web", "cleat: unknown command 'restar' (did you mean restart?)"),
        ("qqq", "cleat: unknown command 'qqq' (see cleat --help)"),
        ("--json status", "cleat: unknown option '--json' before the command (see cleat --help)"),
        ("start", "cleat: no container named (give one or more names, see cleat status)"),
        ("stop --all web", "cleat: names and --all exclude each other"),
        ("stop -t soon web", "cleat: --time: "),
        ("kill -s FOO web", "cleat: --signal: "),
        ("logs -p loud web", "cleat: there is no priority 'loud'"),
        ("attach --detach-keys ctrl-pp web", "cleat: --detach-keys: 'ctrl-pp' is no key"),
        ("logs -n -3 web", "cleat logs: "),
        ("status --jsno", "cleat status: unrecognized arguments: --jsno (see cleat status --help)"),
        ("inspect", "cleat inspect: the following arguments are required: NAME (see cleat inspect --help)"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main.main(shlex.split(line))
    except SystemExit as end:
        code = end.code
    out, error = capsys.readouterr()
    assert code == 2
    assert not out
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cleat {agent.__version__}\n"
    assert main.main(["--help"]) == 0
    assert capsys.readouterr().out == main.overview() + "\n"


def test_status_loads_nothing_that_is_slow() -> None:
    """`cleat status` must cost little more than an interpreter."""
    code = (
        "import sys; from agent.cli import main; main.main(['status']);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    environment = {"PATH": "/usr/bin:/bin", "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True)
    loaded = set(done.stdout.split())
    assert "agent" in loaded
    slow = {
        "asyncio",
        "dbus_next",
        "msgspec",
        "systemd",
        "psutil",
        "tomli",
        "subprocess",
        "dataclasses",
        "pathlib",
        "logging",
    }
    assert not loaded & slow


def entry(page: str, verb: str) -> str:
    """The man page's paragraph on a verb: from its synopsis to the next line that begins in the first column."""
    text = page.replace("\\", "")
    found = re.search(rf"^(?:\*\*[a-z-]+\*\* .*, )?\*\*{verb}\*\*.*(?:\n(?=[:\s]).*)*", text, re.MULTILINE)
    assert found, f"{verb} is not in the manual"
    return found[0]


@BY_NAME
def test_the_manual_has_each_verb_and_option(verb: Verb) -> None:
    described = entry((ROOT / "docs/man/cleat.1.md").read_text(), verb.name)
    assert "\n:   " in described
    for flag in flags(verb):
        assert f"**{flag}**" in described


@BY_NAME
def test_bash_completes_each_option(verb: Verb) -> None:
    script = (
        f"source {shlex.quote(str(ROOT / 'config/completion/cleat.bash'))}; timeout() {{ echo web; }};"
        'COMP_WORDS=(cleat "$1" "$2"); COMP_CWORD=2; _cleat; printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def completed(word: str) -> set[str]:
        done = subprocess.run(
            ["bash", "-c", script, "bash", verb.name, word], capture_output=True, text=True, timeout=30, check=True
        )
        return set(done.stdout.split())

    offered = completed("-")
    common = {"-h", "--help"} | (set() if verb.name == "exec" else {"--user", "--system"})
    assert offered == {*flags(verb), *common}
    takes_names = any(option.settings.get("metavar") == "NAME" for option in verb.options)
    assert ("web" in completed("w")) == takes_names


def test_bash_completes_each_verb() -> None:
    source = f"source {ROOT}/config/completion/cleat.bash"
    script = f"{source}; COMP_WORDS=(cleat ''); COMP_CWORD=1; _cleat; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert set(done.stdout.split()) == {*main.MODULES, "--user", "--system", "--version", "--help"}


@BY_NAME
def test_zsh_and_fish_know_each_verb_and_option(verb: Verb) -> None:
    zsh = (ROOT / "config/completion/_cleat").read_text()
    block = re.search(rf"^ +{verb.name}\)\n(.*?)^ +;;", zsh, re.MULTILINE | re.DOTALL)
    assert block
    fish = (ROOT / "config/completion/cleat.fish").read_text()
    lines = [line for line in fish.splitlines() if f"'__fish_seen_subcommand_from {verb.name}'" in line]
    assert f"-a {verb.name} " in fish
    for flag in flags(verb):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", block[1])
        wanted = f"-l {flag[2:]} " if flag.startswith("--") else f"-s {flag[1:]} "
        assert any(wanted in line for line in lines)


@pytest.mark.parametrize(("shell", "file"), [("bash", "cleat.bash"), ("zsh", "_cleat"), ("fish", "cleat.fish")])
def test_completions_are_good_scripts(shell: str, file: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(ROOT / "config/completion" / file)], timeout=30, check=True)


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 1, "cleat: the command failed: No space left on device\n"),
        (">&-", 0, ""),
        ("<&- >&-", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_output_that_goes_nowhere_is_no_traceback(redirection: str, code: int, message: str) -> None:
    script = f"{shlex.quote(sys.executable)} -m agent.cli.main --help {redirection}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (code, message)

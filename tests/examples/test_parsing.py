"""Errors of command lines are short and suggest a correction."""

from __future__ import annotations

import pytest

pytest.importorskip("jsonargparse")

from examples import parsing
from examples.parsing import Parser, command_line, known_classes, nearest, shortened


def greet(name: str, times: int = 1) -> str:
    """Greet.

    Args:
        name: Whom.
        times: How often.
    """
    return name * times


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    parser = Parser(prog="python -m greet")
    parser.add_function_arguments(greet)
    with pytest.raises(SystemExit) as end:
        parser.parse_args([*arguments])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_an_unknown_option_is_answered_by_the_nearest(capsys):
    assert complaint(capsys, "--name=a", "--tims=2") == [
        "error: unrecognized arguments: --tims=2",
        "  did you mean --times?",
        "  all options: python -m greet --help",
    ]


def test_a_wrong_type_is_named_without_the_usage(capsys):
    assert complaint(capsys, "--name=a", "--times=often") == [
        "error: times:",
        "  expected int. Got value: often",
        "  all options: python -m greet --help",
    ]


def test_a_command_line_has_the_name_by_which_it_is_run(monkeypatch, capsys):
    monkeypatch.setattr(parsing, "running_module", lambda: "examples.greet")
    monkeypatch.setattr("sys.argv", ["greet.py", "--help"])
    with pytest.raises(SystemExit):
        command_line(greet)
    assert capsys.readouterr().out.startswith("usage: python -m examples.greet [")


def test_a_command_line_runs(monkeypatch):
    monkeypatch.setattr("sys.argv", ["greet.py", "ab", "--times=2"])
    assert command_line(greet) == "abab"


def test_parsers_that_are_to_raise_do():
    parser = Parser(exit_on_error=False)
    parser.add_function_arguments(greet)
    with pytest.raises(Exception, match="unrecognized arguments: --tims=2"):
        parser.parse_args(["--name=a", "--tims=2"])


def test_messages_lose_what_says_nothing():
    message = (
        'Parser key "a.b":\n\n  - Expected a path but Mnit either not accessible or invalid\n'
        "  - Expected a <class 'collections.abc.Sequence'>. Got value: 3\n  Subtypes: [int]"
    )
    assert shortened(message) == "a.b:\n  - expected Sequence. Got value: 3"


def test_nothing_is_suggested_that_is_not_near():
    assert list(nearest("xyz", ["blocks"], str)) == []
    assert list(nearest("bloks", ["blocks", "alpha"], str)) == ["did you mean blocks?"]


def test_known_classes_are_those_that_packages_export():
    known = known_classes(None)
    assert "pyro_resflow.logdet.Krylov" in known
    assert not any(path.startswith("pyro_resflow.logdet.krylov") for path in known)

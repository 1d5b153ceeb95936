"""Strings from files are escaped and truncated before they reach a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_resflow.checkpoints import CheckpointError, info, load, save
from pyro_resflow.checkpoints.__main__ import main
from pyro_resflow.checkpoints.texts import printable, quoted, shown, shown_path
from pyro_resflow.transforms import ActNorm
from tests.checkpoints.forgeries import forge, zipped
from tests.checkpoints.test_reading import changed

CONTROLS = "\x1b]0;title\x07\x1b[2J\r\n\t\x9b31m\u202e\u2028\ud800\x00"
"""Sets a terminal's title, clears it, breaks lines and turns text around."""


def test_control_characters_are_written_out() -> None:
    assert printable("\x1b[31m\n\u202e\ud800 \u00e9\u6d41\\n") == (
        "\\x1b[31m\\n\\u202e\\ud800 \u00e9\u6d41\\n"
    )
    assert printable(CONTROLS).isprintable()
    assert shown_path(b"caf\xe9\n").isprintable()
    assert shown_path(Path("a/b c")) == "a/b c"


def test_texts_are_cut() -> None:
    assert printable("x" * 1000, 3) == "xxx... (1,000 characters)"
    assert len(printable("\x00" * 10**6)) < 1000
    assert len(quoted("x" * 10**6)) < 300


class Harmful:
    """Shouts when it is written out."""

    def __repr__(self) -> str:
        raise AssertionError


QUOTED: list[tuple[Any, str]] = [
    ("a\x1b", r"'a\x1b'"),
    (3, "3"),
    (10**5000, "an integer of 16,610 bits"),
    (None, "None"),
    (True, "True"),
    (1.5, "1.5"),
    ([1, "a"], "[1, 'a']"),
    ((1, 2, 3, 4, 5, 6, 7), "[1, 2, 3, 4, 5, ...]"),
    ([[1], {}], "[<builtins.list>, <builtins.dict>]"),
    (Harmful(), "<tests.checkpoints.test_texts.Harmful>"),
    (type("N\x1b", (), {"__module__": "m\x1b"})(), r"<m\x1b.N\x1b>"),
]


@pytest.mark.parametrize(("value", "expected"), QUOTED, ids=range(len(QUOTED)))
def test_values_are_quoted_without_following_them(value: Any, expected: str) -> None:
    assert quoted(value) == expected
    assert shown(value) == (expected if not isinstance(value, str) else r"a\x1b")


def check_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))


def test_notes_and_names_reach_no_terminal(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = {"a": CONTROLS, CONTROLS: "b", "long": "x" * 10**6, "two": "1\nformat: forged"}
    save(ActNorm(2), saved, notes=notes)
    found = info(saved)
    assert found.notes == notes  # for programs, as they are
    assert main(["info", str(saved)]) == 0
    said = capsys.readouterr().out
    check_harmless(said)
    assert len(said) < 20_000
    assert "long: xxx" in said
    assert [line for line in said.splitlines() if line.startswith("format")] == [
        "format: pyro_resflow, version 1"
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(flow={"class": CONTROLS, "arguments": {}}),
        lambda d: d.update(flow={"class": f"own.{CONTROLS}", "arguments": {}}),
        lambda d: d.update(flow={CONTROLS: 1}),
        lambda d: d.update(version=CONTROLS),
        lambda d: d.update(version=[CONTROLS] * 10**5),
        lambda d: d.update(torch=CONTROLS, settings={CONTROLS: {CONTROLS: CONTROLS}}),
        lambda d: d["checksums"].update({CONTROLS * 1000: 1}),
        lambda d: d["flow"]["arguments"].update({CONTROLS: 1}),
        lambda d: d["flow"]["arguments"].update(more=CONTROLS * 1000),
        lambda d: d.update(flow={"class": "own." + "x" * 10**6, "arguments": {}}),
    ],
)
def test_descriptions_reach_no_terminal(
    change: Any, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(saved, change)
    with pytest.raises(CheckpointError) as caught:
        load(saved)
    check_harmless(str(caught.value))
    assert len(str(caught.value)) < 2000
    main(["info", str(saved)])
    said = capsys.readouterr()
    check_harmless(said.out + said.err)


def test_names_of_tensors_reach_no_terminal(saved: Path) -> None:
    changed(saved, tensors=lambda t: t.update({CONTROLS.replace("\ud800", ""): torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="surplus") as caught:
        load(saved)
    check_harmless(str(caught.value))


def test_refused_names_and_options_of_pickles_reach_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONTROLS.replace("\r\n", "").replace("\ud800", "").replace("\u2028", "")
    pickled = b"\x80\x02c" + text.encode() + b"\n" + text.encode() + b"\n)R."
    assert main(["info", str(zipped(tmp_path / "a", pickled))]) == 1
    forged = forge(tmp_path / "b", lambda saved: setattr(saved["args"], "act", CONTROLS * 1000))
    assert main(["info", str(forged)]) == 0
    assert main(["convert", str(forged), str(tmp_path / "c")]) == 1
    said = capsys.readouterr()
    check_harmless(said.out + said.err)
    assert len(said.out + said.err) < 5000

"""Pickles from anybody: plain values come out, nothing runs. Spec 2.1, row 24."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ralm.atlas.plain_pickle import load_plain_pickle
from ralm.errors import ArtifactError

PLAIN = [
    {"id": "1", "title": "Émile: Life", "section": "Life", "text": "a" * 70_000, "number": 2**70, "score": -1.5},
    {"id": 2, "ok": True, "none": None, "raw": b"\x00\xff", "nested": [[("x", 1)], {"y": {3, 4}}]},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    # Protocols without an opcode for bytes, sets or floats in text write them as calls of a class.
    plain: Any = PLAIN if protocol >= 4 else [PLAIN[0], {"id": 2, "ok": True, "nested": [[("x", 1)]]}]
    path = tmp_path / "passages.0.pt"
    path.write_bytes(pickle.dumps(plain, protocol=protocol))
    assert load_plain_pickle(path) == plain


class Call:
    """Unpickles to the result of a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Stateful:
    def __setstate__(self, state: object) -> None:
        raise AssertionError("ran")

    def __getstate__(self) -> object:
        return {"a": 1}


HOSTILE = {
    "os.system": (Call(os.system, "touch intruded"), "posix.system"),
    "eval": (Call(eval, "open('intruded', 'w')"), "eval"),
    "subprocess": (
        Call(subprocess.Popen, ["touch", "intruded"]),
        r"(subprocess|commands)\.Popen",
    ),  # the latter in old protocols
    "getattr": (Call(getattr, "x", "upper"), "getattr"),
    "open": (Call(open, "intruded", "w"), "open"),
    "a class with a state": (Stateful(), "(Stateful|_reconstructor)"),
    "a namespace": (argparse.Namespace(a=1), "(argparse.Namespace|_reconstructor)"),
    "an ordered dict": (collections.OrderedDict(a=1), "collections.OrderedDict"),
    "a date": (datetime.date(2020, 1, 1), "datetime.date"),
    "a function": (os.path.join, "join"),
    "a class": (Stateful, "Stateful"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("deep", [False, True])
def test_classes_and_functions_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, protocol: int, deep: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    guest, name = HOSTILE[kind]
    path = tmp_path / "passages.0.pt"
    path.write_bytes(pickle.dumps([*PLAIN[:1], {"text": [guest]}] if deep else guest, protocol=protocol))
    with pytest.raises(ArtifactError, match=rf"passages.0.pt: the pickle asks for \S*{name}; only plain values"):
        load_plain_pickle(path)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"cos\nsystem\n(S'touch intruded'\ntR.", "asks for os.system"),
        (b"(S'touch intruded'\nios\nsystem\n.", "asks for os.system"),  # INST
        (b"(cos\nsystem\nS'touch intruded'\no.", "asks for os.system"),  # OBJ
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch intruded\x85R.", "asks for os.system"),  # STACK_GLOBAL
        (b"Psecret\n.", "asks for the outside object 'secret'"),  # PERSID
        (b"\x80\x02K\x01Q.", "asks for the outside object 1"),  # BINPERSID
        (b"\x80\x02\x82\xf0.", "no whole pickle"),  # EXT1, not registered
        (b"\x80\x05\x97.", "no whole pickle"),  # NEXT_BUFFER
        (b"\x80\x02]}b.", "no whole pickle"),  # BUILD of a list
        (b"\x80\x02K\x01)R.", "no whole pickle"),  # REDUCE of a number
        (b"\x80\x02X\x01\x00\x00\x00a)\x81.", "no whole pickle"),  # NEWOBJ of a text
        (b"", "no whole pickle"),
        (b"\x80\x05", "no whole pickle"),
        (b"[1, 2]", "no whole pickle"),
        (b"\x80\x09.", "no whole pickle"),  # protocol 9
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "no whole pickle"),  # 9e18 bytes announced
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "no whole pickle"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "no whole pickle"),  # no UTF-8
    ],
)
def test_hand_written_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "passages.0.pt"
    path.write_bytes(program)
    with pytest.raises(ArtifactError, match=message):
        load_plain_pickle(path)
    assert not (tmp_path / "intruded").exists()


def test_registered_extensions_are_refused_too(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        path = tmp_path / "passages.0.pt"
        path.write_bytes(b"\x80\x02\x82\xf0X\x0e\x00\x00\x00touch intruded\x85R.")
        with pytest.raises(ArtifactError, match="asks for os.system"):
            load_plain_pickle(path)
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_deep_nesting_neither_crashes_nor_hangs(tmp_path: Path) -> None:
    path = tmp_path / "passages.0.pt"
    path.write_bytes(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")
    value, depth = load_plain_pickle(path), 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 999_999


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ralm.atlas.plain_pickle.MAX_FILE_BYTES", 10)
    path = tmp_path / "passages.0.pt"
    path.write_bytes(pickle.dumps(PLAIN))
    with pytest.raises(ArtifactError, match="expected at most 10, save it in more shards"):
        load_plain_pickle(path)

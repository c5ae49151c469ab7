"""A history is recorded by processes that get killed, and merged from their files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import history
from unlost.chaos.history import History, Op, Recorder, fresh_file, load
from unlost.errors import HarnessError

ops = st.builds(
    Op,
    index=st.integers(0),
    time_ns=st.integers(0),
    process=st.text(),
    type=st.sampled_from(["invoke", "ok", "fail", "info"]),
    f=st.text(),
    value=st.none() | st.text(),
    extra=st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.integers())),
)


@given(ops)
def test_an_operation_survives_json(op: Op) -> None:
    """Reading back what was written gives an equal operation, on one line of ASCII."""
    line = op.to_json()
    assert Op.from_json(line) == op
    assert line.isascii()
    assert "\n" not in line


def test_fields_of_a_newer_release_are_ignored() -> None:
    """A field that this release does not know does not make a line unreadable."""
    line = '{"time_ns":1,"process":"p","type":"ok","f":"start","value":"a","colour":"red"}'
    assert Op.from_json(line) == Op(0, 1, "p", "ok", "start", "a")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"time_ns":1,"process":"p","type":"maybe","f":"start"}', "type"),
        ('{"time_ns":1,"process":"p","type":["ok"],"f":"start"}', "type"),
        ('{"time_ns":"1","process":"p","type":"ok","f":"start"}', "time_ns"),
        ('{"time_ns":1,"type":"ok","f":"start"}', "process"),
        ('{"time_ns":1,"process":"p","type":"ok","f":"start","value":7}', "value"),
        ('{"time_ns":1,"process":"p","type":"ok","f":"start","extra":[]}', "extra"),
        ("[1]", "object"),
        ("{", "JSON"),
    ],
)
def test_a_line_that_is_no_operation_is_refused_by_name(line: str, named: str) -> None:
    """The error names the field that is missing or wrong."""
    with pytest.raises(HarnessError, match=named):
        Op.from_json(line)


def test_what_json_cannot_hold_is_refused() -> None:
    """An extra that JSON cannot hold is an error of the harness, not silently turned into text."""
    with pytest.raises(HarnessError, match="'kill' of 'nemesis' does not fit JSON"):
        Op(0, 1, "nemesis", "ok", "kill", None, {"pids": {1, 2}}).to_json()


def test_a_history_finds_operations_by_kind_and_by_value() -> None:
    """Helpers return the operations of one kind, of some types of it, and on one value, in order."""
    run = history("""
        1 client invoke publish a
        2 client ok publish a
        3 client invoke publish b
        4 worker ok start a
    """)
    assert [op.index for op in run.of("publish")] == [0, 1, 2]
    assert [op.index for op in run.of("publish", "ok", "fail")] == [1]
    assert run.values("publish") == {"a", "b"}
    assert [op.index for op in run.about("a")] == [0, 1, 3]
    assert run.about("c") == ()
    assert (len(run), run[1].type, len(run[1:])) == (4, "ok", 3)


def test_a_value_that_is_missing_is_not_skipped() -> None:
    """A publish that names no effect is an error, because nobody could check its promise."""
    with pytest.raises(HarnessError, match=r"operation 0 \(publish ok of client\) has no value"):
        history("1 client ok publish").values("publish")


def test_files_are_merged_by_time_and_numbered_anew(tmp_path: Path) -> None:
    """Operations of several files come out in order of time, equals by file and line."""
    for name, times in (("a", [10, 30, 30]), ("b", [20, 30, 40])):
        with Recorder(tmp_path / f"{name}.jsonl", now_ns=iter(times).__next__) as recorder:
            for line in range(3):
                recorder.record(name, "ok", "start", str(line))
    (tmp_path / "notes.txt").write_text("not a history")
    run = load(tmp_path)
    assert [(op.index, op.time_ns, op.process, op.value) for op in run] == [
        (0, 10, "a", "0"),
        (1, 20, "b", "0"),
        (2, 30, "a", "1"),
        (3, 30, "a", "2"),
        (4, 30, "b", "1"),
        (5, 40, "b", "2"),
    ]


def test_a_single_file_is_a_history_too(tmp_path: Path) -> None:
    """A path to a file reads that file alone."""
    for name in ("a", "b"):
        with Recorder(tmp_path / f"{name}.jsonl") as recorder:
            recorder.record(name, "ok", "start", "1")
    assert [op.process for op in load(tmp_path / "b.jsonl")] == ["b"]


@pytest.mark.parametrize("make", [lambda folder: folder, lambda folder: folder / "absent"])
def test_a_history_that_is_not_there_is_not_an_empty_one(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """A folder without a file, or no folder at all, is an error: an empty history might pass."""
    with pytest.raises(HarnessError):
        load(make(tmp_path))


def test_a_time_can_be_given(tmp_path: Path) -> None:
    """What happened earlier than it is recorded carries its own time."""
    with Recorder(tmp_path / "a.jsonl", now_ns=lambda: 99) as recorder:
        recorder.record("db", "ok", "effect", "a", time_ns=7, row=3)
    assert load(tmp_path)[0] == Op(0, 7, "db", "ok", "effect", "a", {"row": 3})


WHOLE = Op(0, 1, "p", "ok", "start", "a").to_json()


@given(st.integers(1, len(WHOLE) - 1))
def test_a_torn_last_line_is_ignored_wherever_it_is_torn(cut: int) -> None:
    """A last line cut short at any byte is no operation, and spoils nothing before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: f"{WHOLE}\n{WHOLE[:cut]}".encode())
        assert list(load(Path("torn.jsonl"))) == [Op.from_json(WHOLE)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (f"{WHOLE[:20]}\n{WHOLE}\n", 1),
        (f"{WHOLE}\n\n{WHOLE}\n", 2),
        (f"{WHOLE}\n{WHOLE[:20]}\n", 2),
        (f"{WHOLE}\n{WHOLE[:20]}{WHOLE}\n", 2),
        (f'{WHOLE}\n{{"f":"start"}}', 2),
    ],
)
def test_any_other_bad_line_is_named(tmp_path: Path, text: str, number: int) -> None:
    """A bad line that is not a torn last one is an error that names file and line."""
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(HarnessError, match=rf"bad\.jsonl, line {number}: "):
        load(tmp_path)


def test_a_last_line_without_newline_counts_if_it_is_whole(tmp_path: Path) -> None:
    """An operation that is whole is not dropped because an editor took its newline away."""
    (tmp_path / "a.jsonl").write_text(f"{WHOLE}\n{WHOLE}")
    assert len(load(tmp_path)) == 2


def test_a_file_that_ends_in_a_torn_line_is_not_appended_to(tmp_path: Path) -> None:
    """Appending after a torn line would hide the next operation in it, so the recorder refuses."""
    path = tmp_path / "a.jsonl"
    path.write_text(WHOLE[:20])
    with pytest.raises(HarnessError, match="torn"):
        Recorder(path)
    assert path.read_text() == WHOLE[:20]


def test_a_recorder_appends_to_a_whole_file(tmp_path: Path) -> None:
    """Opening a file again keeps what is in it."""
    for value in ("a", "b"):
        with Recorder(tmp_path / "a.jsonl") as recorder:
            recorder.record("p", "ok", "start", value)
    assert [op.value for op in load(tmp_path)] == ["a", "b"]


def test_a_recorder_that_cannot_write_says_so(tmp_path: Path) -> None:
    """A file that cannot be opened, and a recorder that was closed, are errors of the harness."""
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match="cannot open"):
        Recorder(tmp_path / "file" / "a.jsonl")
    with Recorder(tmp_path / "a.jsonl") as recorder:
        pass
    with pytest.raises(HarnessError, match="cannot record"):
        recorder.record("p", "ok", "start", "a")


def test_a_short_write_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that the disk took only a part of is reported, and the file is refused afterwards."""
    whole_write = os.write
    with Recorder(tmp_path / "a.jsonl") as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, line: whole_write(fd, line[:9]))
            with pytest.raises(HarnessError, match="wrote 9 of"):
                recorder.record("p", "ok", "start", "a")
        recorder.record("p", "ok", "start", "b")
    with pytest.raises(HarnessError, match="line 1"):
        load(tmp_path)


def test_threads_share_a_recorder(tmp_path: Path) -> None:
    """Lines of many threads never mix, and none is lost."""
    with Recorder(tmp_path / "a.jsonl") as recorder, ThreadPoolExecutor(8) as pool:
        for number in range(2000):
            pool.submit(recorder.record, "p", "ok", "start", str(number), padding="x" * 5000)
    assert load(tmp_path).values("start") == {str(number) for number in range(2000)}


def test_a_fork_needs_a_file_of_its_own(tmp_path: Path) -> None:
    """A forked process cannot write to its parent's file, which could then be torn in the middle."""
    program = """
import os, sys
from pathlib import Path
from unlost.chaos.history import Recorder
from unlost.errors import HarnessError
recorder = Recorder(Path(sys.argv[1]))
if os.fork() == 0:
    try:
        recorder.record("child", "ok", "start", "a")
    except HarnessError as exc:
        os._exit(7 if "one file per process" in str(exc) else 1)
    os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.jsonl")], check=False)
    assert done.returncode == 7


def test_a_killed_writer_leaves_everything_it_recorded(tmp_path: Path) -> None:
    """After SIGKILL in the middle of recording, the file loads and holds a gapless beginning."""
    program = """
import itertools, sys
from pathlib import Path
from unlost.chaos.history import Recorder
recorder = Recorder(Path(sys.argv[1]))
for number in itertools.count():
    recorder.record("p", "ok", "start", str(number), padding="x" * 9000)
    if number == 100:
        print(number, flush=True)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "a.jsonl")], stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"100\n"
        writer.send_signal(signal.SIGKILL)
    numbers = [int(op.value or "") for op in load(tmp_path)]
    assert len(numbers) > 100
    assert numbers == list(range(len(numbers)))


def test_fresh_files_never_repeat(tmp_path: Path) -> None:
    """Two processes with the same name and the same pid, as in containers, still get two files."""
    assert len({fresh_file(tmp_path, "worker") for _ in range(100)}) == 100


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=2)), max_size=20))
def test_merging_keeps_the_order_of_equal_times(pairs: list[tuple[int, str]]) -> None:
    """Merging sorts by time alone, is stable, and numbers from zero."""
    numbers = count()
    run = History.merged(Op(0, time, "p", "ok", "start", f"{next(numbers)}{value}") for time, value in pairs)
    expected = sorted(enumerate(pairs), key=lambda item: (item[1][0], item[0]))
    assert [op.value for op in run] == [f"{number}{value}" for number, (_, value) in expected]
    assert [op.index for op in run] == list(range(len(pairs)))

"""metrics.jsonl read while a learner writes it and goes back."""

import json

import pytest

from cluster import tail as tails
from cluster.files import replace_text
from cluster.tail import MOST_MARKS, JsonlTail, Mark, MetricsTail


def line(step, loss=0.5):
    return json.dumps({"step": step, "loss/total": loss}) + "\n"


def append(folder, *lines):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(lines))


def steps(rows):
    return [row["step"] for row in rows]


def rewind(folder, step):
    """As a learner does that goes on behind a checkpoint."""
    path = folder / "metrics.jsonl"
    kept = [text for text in path.read_text().splitlines() if json.loads(text)["step"] <= step]
    replace_text(path, "".join(f"{text}\n" for text in kept))


def test_rows_come_once_and_a_line_being_written_comes_when_it_is_whole(tmp_path):
    tail = MetricsTail(tmp_path)
    assert tail.read() == []
    append(tmp_path, line(1), line(2)[:9])
    assert steps(tail.read()) == [1]
    append(tmp_path, line(2)[9:-1])
    assert tail.read() == []
    append(tmp_path, line(2)[-1], line(3))
    assert steps(tail.read()) == [2, 3]
    assert tail.read() == []


def test_torn_lines_are_left_out(tmp_path):
    append(tmp_path, line(1), '{"step": 2, "lo\n', "17\n", '{"loss": 1}\n', line(3))
    assert steps(MetricsTail(tmp_path).read()) == [1, 3]


@pytest.mark.parametrize("again", [1, 7, 40])
def test_steps_that_are_run_again_come_again_however_far_the_file_has_grown(tmp_path, again):
    tail = MetricsTail(tmp_path)
    for step in range(1, 11):
        append(tmp_path, line(step))
        tail.read()
    rewind(tmp_path, 4)
    append(tmp_path, *(line(step, loss=0.7) for step in range(5, 5 + again)))
    rows = tail.read()
    assert steps(rows) == list(range(5, 5 + again))
    assert {row["loss/total"] for row in rows} == {0.7}


def test_a_file_that_was_written_anew_but_ends_as_before_says_nothing_new(tmp_path):
    tail = MetricsTail(tmp_path)
    append(tmp_path, line(1), line(2))
    tail.read()
    rewind(tmp_path, 2)
    assert tail.read() == []


def test_another_process_goes_on_from_the_marks_also_after_a_long_way_back(tmp_path):
    append(tmp_path, *(line(step) for step in range(1, 2001)))
    first = MetricsTail(tmp_path)
    assert len(first.read()) == 2000
    stored = json.dumps(first.marks)
    assert len(first.marks) <= MOST_MARKS
    rewind(tmp_path, 1500)
    append(tmp_path, line(1501, loss=0.7))
    found = steps(MetricsTail(tmp_path, [Mark(*mark) for mark in json.loads(stored)]).read())
    assert found[-1] == 1501
    # Old marks are few, so some rows come once more; with none left it would be all of them.
    assert found == list(range(found[0], 1502))
    assert found[0] > 1


def test_torn_lines_are_counted_once_however_often_one_looks(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 2}\n{"step"\n')
    tail = MetricsTail(tmp_path)
    for _ in range(3):
        tail.read()
        assert tail.num_torn == 2
    with file.open("a") as more:
        more.write('{"step": 3}\n')
    tail.read()
    assert tail.num_torn == 2


def test_a_file_that_is_shorter_than_before_is_another_one(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    tail = JsonlTail(file)
    assert len(tail.read()) == 3
    file.unlink()
    assert tail.read() == []
    file.write_text('{"b": 1}\n{"b": ')
    assert tail.read() == [{"b": 1}]
    with file.open("a") as more:
        more.write("2}\n")
    assert tail.read() == [{"b": 2}]


def test_a_file_comes_whole_although_it_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tails, "CHUNK", 64)
    file, taken = tmp_path / "events.jsonl", []
    objects = tails._objects
    monkeypatch.setattr(
        tails, "_objects", lambda lines: taken.append(sum(map(len, lines))) or objects(lines)
    )
    rows = [{"a": n, "text": "x" * (200 if n == 50 else n % 40)} for n in range(100)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text + "no json\n" + '{"a": ')
    tail = JsonlTail(file)
    assert tail.read() == rows
    assert sum(taken) == len(text) + len("no json\n")
    assert max(taken) < 64 + 220, "a part ends with a line"
    with file.open("a") as more:
        more.write("1}\n")
    assert tail.read() == [{"a": 1}]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_file_that_cannot_be_read_now_is_read_later(tmp_path, name):
    file = tmp_path / name
    tail = MetricsTail(tmp_path) if name == "metrics.jsonl" else JsonlTail(file)
    file.write_text(line(1))
    assert steps(tail.read()) == [1]
    kept = file.rename(tmp_path / "kept")
    file.mkdir()  # which can be opened by nobody
    assert tail.read() == []
    file.rmdir()
    kept.rename(file)
    append_to(file, line(2))
    assert steps(tail.read()) == [2]


def append_to(file, text):
    with file.open("a") as more:
        more.write(text)

"""Data read line by line: the same examples as at once, and every line as it stands."""

import json

import pytest
from datasets import Dataset

from interptrain.recipes.examples import Columns, read_examples
from interptrain.recipes.lines import Lines
from interptrain.tiny_world import load_tokenizer

ROWS = [{"prompt": f"<q> where is the {animal} ? <a>", "completion": " in the cave", "id": n} for n, animal in
        enumerate(("cat", "dog", "owl"))]  # fmt: skip


def lines(path, *, columns=None, max_length=32):
    return Lines(path, columns or Columns(), load_tokenizer(), max_length)


@pytest.mark.parametrize(
    "content",
    [
        b"\n".join(json.dumps(row).encode() for row in ROWS),
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n",
        b"\n\n  \n" + b"\n \n".join(json.dumps(row, indent=None).replace(" ", "  ").encode() for row in ROWS) + b"\n\n",
        b"\n".join(json.dumps(row | {"note": "naïve 海 \\u2028"}, ensure_ascii=False).encode() for row in ROWS),
    ],
    ids=["bare", "BOM and CRLF", "blank lines", "other scripts"],
)
def test_the_examples_are_those_that_are_read_at_once_and_the_lines_as_they_stand(content, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    found = list(lines(file))
    assert [each.example for each in found] == read_examples(file, Columns())
    whole = content.split(b"\n")
    assert [each.raw.rstrip(b"\n") for each in found] == [whole[each.number - 1] for each in found]
    assert [json.loads(each.raw.decode("utf-8-sig"))["id"] for each in found] == [0, 1, 2]


def test_a_data_set_s_folder_is_read_row_by_row(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "data")
    found = list(lines(tmp_path / "data"))
    assert [json.loads(each.raw) for each in found] == ROWS
    assert [each.number for each in found] == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        "{]\n" + json.dumps(ROWS[0]) + "\n3",
        json.dumps(ROWS[0]) + '\n{"prompt": "a"}\n{"prompt": "a", "completion": " "}\n{"prompt": 3, "completion": "a"}',
        '{"ask": "a", "say": "b"}',
    ],
    ids=["no objects", "no texts", "other columns"],
)
def test_what_cannot_be_used_is_said_with_the_line_as_at_once(content, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match="line") as found:
        list(lines(file))
    with pytest.raises(ValueError, match="line") as expected:
        read_examples(file, Columns())
    assert str(expected.value).removesuffix("; expected a JSON object on every line") == str(found.value)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "is empty: expected a JSON object a line"),
        (json.dumps(ROWS[0]), {"max_length": 4}, "max_length 4 leaves no token of any answer"),
        (None, {}, "does not exist"),
    ],
)
def test_data_that_teach_nothing_are_refused(content, options, message, tmp_path):
    file = tmp_path / "data.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        lines(file, **options).check(200)


def test_rows_and_those_that_can_be_used_are_counted_and_a_foreign_tokenizer_is_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    longer = {"prompt": "cat " * 40, "completion": " dog"}
    file.write_text(file.read_text() + "\n" + json.dumps(longer))
    assert lines(file).check(len(load_tokenizer())) == (4, 3)
    with pytest.raises(ValueError, match=r"line 1: the tokenizer makes token \d+ but the model has 20"):
        lines(file).check(20)

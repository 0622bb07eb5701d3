"""Data of a user's own: what is read, and what is refused with its line."""

import json

import pytest
import torch

from interptrain.recipes.examples import Columns, Example, batches, collate, encode, read_examples
from interptrain.tiny_world import load_tokenizer


def written(tmp_path, *lines):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


@pytest.mark.parametrize(
    ("row", "columns", "example"),
    [
        ({"prompt": "a", "completion": "b"}, Columns(), Example("a", "b")),
        ({"instruction": "a", "output": "b"}, Columns(), Example("a", "b")),
        ({"question": "a", "answer": "b", "text": "c"}, Columns(), Example("a", "b")),
        ({"text": "c"}, Columns(), Example("", "c")),
        ({"q": "a", "a": "b"}, Columns(prompt="q", completion="a"), Example("a", "b")),
        ({"prompt": "a", "completion": "b", "story": "c"}, Columns(text="story"), Example("", "c")),
    ],
)
def test_a_row_is_read_by_its_usual_names_or_by_those_given(tmp_path, row, columns, example):
    assert read_examples(written(tmp_path, row, "", row), columns) == [example, example]


def test_a_data_set_on_disk_is_read_like_a_file(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "plain")
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(tmp_path / "split")
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(tmp_path / "other")
    expected = [Example("a", "b"), Example("c", "d")]
    assert read_examples(tmp_path / "plain", Columns()) == read_examples(tmp_path / "split", Columns()) == expected
    with pytest.raises(ValueError, match=r"has the splits test, expected one named 'train'"):
        read_examples(tmp_path / "other", Columns())
    with pytest.raises(ValueError, match=r"no data set that Dataset\.save_to_disk wrote"):
        read_examples(tmp_path, Columns())


GOOD = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        ((), Columns(), "is empty: expected a JSON object a line"),
        (("", "  "), Columns(), "is empty"),
        ((GOOD, {"prompt": None, "completion": "b"}), Columns(), r"line 2: 'prompt' is null, expected a text"),
        (
            (GOOD, '{"prompt": "a", ', GOOD, "[1]"),
            Columns(),
            r"2 of 4 lines of .*: line 2: .*; line 4: a list, expected",
        ),
        ((GOOD, {"prompt": "a"}), Columns(), r"1 of 2 lines of .*: line 2: no 'completion', found 'prompt'"),
        ((GOOD, {"prompt": "a", "completion": 3}), Columns(), r"line 2: 'completion' is 3, expected a text"),
        ((GOOD, {"prompt": "a", "completion": " "}), Columns(), r"line 2: 'completion' is an empty text"),
        (({"body": "a"},), Columns(), r"line 1: expected 'messages' or 'prompt' and 'completion' or .*, found 'body'"),
        ((GOOD,), Columns(text="story"), r"line 1: expected 'story', found 'prompt', 'completion'; name yours"),
        (["{"] * 9, Columns(), r"9 of 9 lines .* line 5: .*; and 4 more; expected a JSON object on every line$"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_lines(tmp_path, lines, columns, message):
    with pytest.raises(ValueError, match=message):
        read_examples(written(tmp_path, *lines), columns)


def test_line_ends_and_the_byte_order_mark_of_windows_are_no_part_of_the_text(tmp_path):
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n{"prompt": "c", "completion": "d"}\r\n')
    assert read_examples(file, Columns()) == [Example("a", "b"), Example("c", "d")]


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_examples(tmp_path / "none.jsonl", Columns())
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"are not UTF-8: .*; save the file as UTF-8"):
        read_examples(tmp_path / "binary.jsonl", Columns())


@pytest.mark.parametrize(
    "given", [{"prompt": "a"}, {"completion": "a"}, {"text": "a", "prompt": "b", "completion": "c"}]
)
def test_half_named_columns_are_refused(given):
    with pytest.raises(ValueError, match="column"):
        Columns(**given)


CHAT = [{"role": "user", "content": "what is 1 plus 1 ?"}, {"role": "assistant", "content": "it is 2 ."}]
TEMPLATE = (
    "{% for m in messages %}{{ '<q> ' if m.role == 'user' else '<a> ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<a> {% endif %}"
)


def test_of_a_chat_the_last_answer_alone_is_in_the_loss(tmp_path):
    tokenizer = load_tokenizer()
    with pytest.raises(ValueError, match="need a chat template, and this tokenizer has none"):
        read_examples(written(tmp_path, {"messages": CHAT}), Columns(), tokenizer)
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="line 1: 'messages' is no chat"):
        read_examples(written(tmp_path, {"messages": CHAT[:1]}), Columns(), tokenizer)
    (example,) = read_examples(written(tmp_path, {"messages": CHAT}), Columns(), tokenizer)
    assert example == Example("<q> what is 1 plus 1 ? <a> ", "it is 2 . ", templated=True)
    (row,) = encode(tokenizer, [example], 64)
    kept = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(kept) == "it is 2 ."
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(ValueError, match="the chat template rewrites the question"):
        read_examples(written(tmp_path, {"messages": CHAT}), Columns(), tokenizer)


def test_the_answer_and_its_end_are_in_the_loss_and_nothing_else():
    tokenizer = load_tokenizer()
    (row,) = encode(tokenizer, [Example("<q> what is 1 plus 1 ? <a>", " it is 2 .")], 64)
    assert tokenizer.decode(row["input_ids"]) == "<q> what is 1 plus 1 ? <a> it is 2 . <e>"
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == "it is 2 . <e>"
    (plain,) = encode(tokenizer, [Example("", "it is 2 .")], 64)
    assert plain["labels"] == [-100, *plain["input_ids"][1:]]


def test_an_answer_that_ends_with_the_end_token_gets_no_second_one():
    tokenizer = load_tokenizer()
    rows = encode(tokenizer, [Example("<q> <a>", " it is 2 ."), Example("<q> <a>", " it is 2 . <e>")], 64)
    assert rows[0] == rows[1]


def test_a_text_is_cut_at_its_length_and_left_out_where_no_answer_is_left():
    tokenizer = load_tokenizer()
    examples = [Example("<q> what is 1 plus 1 ? <a>", " it is 2 ."), Example("<q> <a>", " it is 2 .")]
    (row,) = encode(tokenizer, examples, 4)
    assert tokenizer.decode(row["input_ids"]) == "<q> <a> it is"
    assert row["labels"] == [-100, -100, *row["input_ids"][2:]]


def test_every_example_is_seen_once_a_pass_and_the_same_seed_gives_the_same_batches():
    rows = [{"input_ids": [number, number], "labels": [-100, number]} for number in range(7)]
    taken = list(batches(rows, 2, 0, steps=7, seed=1))
    assert len(taken) == 7
    seen = torch.cat([batch["input_ids"][:, 0] for batch in taken]).tolist()
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    again = list(batches(rows, 2, 0, steps=7, seed=1))
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(taken, again, strict=True))
    other = torch.cat([batch["input_ids"][:, 0] for batch in batches(rows, 2, 0, steps=7, seed=2)]).tolist()
    assert other != seen


def test_padding_is_neither_attended_nor_in_the_loss():
    batch = collate([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [-100]}], pad=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, -100]]

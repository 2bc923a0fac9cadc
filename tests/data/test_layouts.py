# SPDX-License-Identifier: Apache-2.0
"""Text as people have it: tables, conversations, packed files, folders of `datasets` and of the Hub."""

import csv
import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.data import read_groups
from jaxneuro.data.documents import fingerprint_of
from jaxneuro.errors import UserError

ROWS = {"text": ["a", "b\nc", "d", " "], "group": ["x", "y", "x", "y"]}
TWO = {"x": ["a", "d"], "y": ["b\nc"]}


def content(groups):
    return {name: list(documents) for name, documents in groups.items()}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def records(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def separated(columns, delimiter=","):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return out.getvalue()


def features(**names):
    """What `datasets` keeps beside a schema."""
    found = {n: {"names": v, "_type": "ClassLabel"} for n, v in names.items()}
    return {b"huggingface": json.dumps({"info": {"features": found}}).encode()}


def saved(folder, table, n_files=2):
    """As `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{n_files:05d}.arrow" for i in range(n_files)]
    step = -(-len(table) // n_files)
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as f, pa.ipc.new_stream(f, table.schema) as out:
            out.write_table(table.slice(i * step, step), max_chunksize=2)
    write(folder / "state.json", json.dumps({"_data_files": [{"filename": n} for n in names], "_split": "train"}))
    write(folder / "dataset_info.json", "{}")
    return folder


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "json object"])
@pytest.mark.parametrize("packed", [False, True])
def test_one_file(kind, packed, tmp_path):
    lines = [json.dumps(r) for r in records(ROWS)]
    if kind == "parquet":
        pq.write_table(pa.table(ROWS), tmp_path / "all.parquet", row_group_size=3)
        raw = (tmp_path / "all.parquet").read_bytes()
    else:
        raw = {
            "csv": separated(ROWS),
            "tsv": separated(ROWS, "\t"),
            "json": f"[{','.join(lines)}]",
            "json object": f'{{"version": 1, "data": [{",".join(lines)}]}}',
            "jsonl": "\n".join(lines),
        }[kind].encode()
    path = write(tmp_path / f"all.{kind.split()[0]}{'.gz' if packed else ''}", gzip.compress(raw) if packed else raw)
    groups = read_groups(path)
    assert content(groups) == TWO
    assert groups["x"].fingerprint == fingerprint_of(["a", "d"])
    assert groups["y"][0] == "b\nc"  # read again, at random


def test_source_code_and_markdown_are_one_document_each(tmp_path):
    write(tmp_path / "code" / "a.py", "x = 1\n\n\ny = 2\n")
    write(tmp_path / "code" / "b.RS", "fn main() {}")
    write(tmp_path / "prose.md", "# One\n\ntwo")
    assert content(read_groups(tmp_path)) == {"code": ["x = 1\n\n\ny = 2\n", "fn main() {}"], "prose": ["# One\n\ntwo"]}


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6), delimiter=st.sampled_from([",", "\t"]))
def test_a_table_gives_back_every_text(tmp_path_factory, rows, delimiter):
    rows = [*rows, ("end", "z")]
    folder = tmp_path_factory.mktemp("table")
    raw = separated({"text": [t for t, _ in rows], "n": [n for _, n in rows]}, delimiter)
    write(folder / ("a.csv" if delimiter == "," else "a.tsv"), "\ufeff" + raw)
    documents = read_groups(folder)["a"]
    assert list(documents) == [t for t, _ in rows if t.strip()]


def test_a_cell_may_be_longer_than_the_csv_module_allows_by_default(tmp_path):
    write(tmp_path / "a.csv", separated({"text": ["x" * 200_000, "y"]}))
    assert [len(d) for d in read_groups(tmp_path)["a"]] == [200_000, 1]


def test_a_table_is_not_held_in_memory(tmp_path):
    write(tmp_path / "a.csv", separated({"text": ["word " * 400] * 4000}))
    tracemalloc.start()
    documents = read_groups(tmp_path)["a"]
    assert sum(map(len, documents)) == 8_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


def test_a_folder_of_save_to_disk(tmp_path):
    table = pa.table({"text": ["a", "b", "c", "d", "e"], "lang": [0, 1, 0, 0, 1]})
    folder = saved(tmp_path / "set", table.replace_schema_metadata(features(lang=["de", "en"])))
    write(folder / "data-00000-of-00009.arrow", "left over from another writing")
    groups = read_groups(folder, group_field="lang")
    assert content(groups) == {"de": ["a", "c", "d"], "en": ["b", "e"]}
    with pytest.raises(UserError, match=r"no field 'group'. Known: text, lang\. .*--group-field"):
        read_groups(folder)


def test_the_splits_of_a_saved_data_set(tmp_path):
    write(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    for i, split in enumerate(("train", "test")):
        saved(tmp_path / split, pa.table({"text": [split], "group": [f"g{i}"]}), n_files=1)
    assert content(read_groups(tmp_path)) == {"g0": ["train"]}
    assert content(read_groups(tmp_path, split="test")) == {"g1": ["test"]}
    with pytest.raises(UserError, match=r"no split 'tset'\. Did you mean 'test'\? Known: test, train\. .*--split"):
        read_groups(tmp_path, split="tset")


def test_the_layout_of_the_hub_is_one_data_set_not_a_group_of_name_data(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "README.md", "about")
    for i in range(2):
        part = pa.table({"text": [f"{i}a", f"{i}b"], "lang": ["x", "y"]})
        pq.write_table(part, tmp_path / "data" / f"train-{i:05d}-of-00002-0123456789abcdef.parquet")
    pq.write_table(pa.table({"text": ["t"], "lang": ["x"]}), tmp_path / "data" / "test-00000-of-00001.parquet")
    expected = {"x": ["0a", "1a"], "y": ["0b", "1b"]}
    assert content(read_groups(tmp_path, group_field="lang")) == expected
    assert content(read_groups(tmp_path / "data", group_field="lang")) == expected
    assert content(read_groups(tmp_path, group_field="lang", split="test")) == {"x": ["t"]}
    with pytest.raises(UserError, match=r"no field 'group'"):
        read_groups(tmp_path)


def test_configurations_of_a_data_set_are_groups(tmp_path):
    for name in ("de", "en"):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pq.write_table(pa.table({"text": [name + split]}), tmp_path / name / f"{split}-00000-of-00001.parquet")
    assert content(read_groups(tmp_path)) == {"de": ["detrain"], "en": ["entrain"]}


def test_names_of_classes(tmp_path):
    table = pa.table({"text": ["a", "b"], "group": [1, 0]})
    pq.write_table(table.replace_schema_metadata(features(group=["neg", "pos"])), tmp_path / "a.parquet")
    assert content(read_groups(tmp_path / "a.parquet")) == {"neg": ["b"], "pos": ["a"]}
    pq.write_table(table, tmp_path / "b.parquet")
    assert content(read_groups(tmp_path / "b.parquet")) == {"0": ["b"], "1": ["a"]}  # nothing names them
    pq.write_table(table.replace_schema_metadata(features(group=["one"])), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"row 0: the group is 1; the file names the classes 0 to 0"):
        read_groups(tmp_path / "c.parquet")


CHATS = {
    "roles": {"messages": [{"role": "system", "content": None}, {"role": "user", "content": "hi"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]},
}


@pytest.mark.parametrize("name", CHATS)
def test_conversations(name, tmp_path):
    write(tmp_path / "a.jsonl", json.dumps(CHATS[name]))

    def render(messages):
        return "|".join(f"{m['role']}:{m['content']}" for m in messages)

    assert read_groups(tmp_path)["a"][0].strip() == "hi"
    assert read_groups(tmp_path, render=render)["a"][0].split("|")[-1] == "user:hi"


def test_a_conversation_in_columns(tmp_path):
    talk = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    pq.write_table(pa.table({"messages": talk}), tmp_path / "a.parquet")
    assert list(read_groups(tmp_path)["a"]) == ["a\n\nb"]


def test_several_fields_as_one_text(tmp_path):
    rows = [{"instruction": "Add.", "input": None, "output": "3", "topic": 1}]
    path = write(tmp_path / "a.json", json.dumps(rows))
    text = "{instruction}\n{input}\n{output}"
    assert content(read_groups(path, text_field=text, group_field="topic")) == {"1": ["Add.\n\n3"]}
    pq.write_table(pa.table({"q": ["a"], "r": ["b"], "group": ["g"]}), tmp_path / "a.parquet")
    assert content(read_groups(tmp_path / "a.parquet", text_field="{q} {r}")) == {"g": ["a b"]}
    with pytest.raises(UserError, match=r"no field 'anser'"):
        read_groups(path, text_field="{instruction} {anser}", group_field="topic")
    for bad in ("{", "{}", "{a.b}", "{a!r}", "a}"):
        with pytest.raises(UserError, match=r"text_field = .*Write a field's name"):
            read_groups(path, text_field=bad)


def test_bad_records_are_passed_over_and_counted(tmp_path):
    lines = ['{"text": "a", "group": "x"}', "{", "[]", '{"group": "x"}', '{"text": 1, "group": "x"}', '{"text": "b"}']
    raw = "\n".join(lines).encode() + b'\n{"text": "\xe9", "group": "x"}\n{"text": "c", "group": "x"}\n'
    path = write(tmp_path / "a.jsonl", raw)
    groups = read_groups(path, skip_bad=True)
    assert content(groups) == {"x": ["a", "c"]}
    assert groups.n_skipped == 6
    assert "line 2: not valid JSON" in groups.skipped[0]
    write(tmp_path / "b.csv", "text,group\na,x\nb\nc,\nd,x\n")
    groups = read_groups(tmp_path / "b.csv", skip_bad=True)
    assert (content(groups), groups.n_skipped) == ({"x": ["a", "d"]}, 2)
    pq.write_table(pa.table({"text": ["a", None], "group": ["x", "x"]}), tmp_path / "c.parquet")
    assert read_groups(tmp_path / "c.parquet", skip_bad=True).n_skipped == 1
    with pytest.raises(UserError, match=r"no text in .* \(1 bad records, such as: .*line 1: not valid JSON"):
        read_groups(write(tmp_path / "d.jsonl", "{"), skip_bad=True)


def test_text_without_groups(tmp_path):
    write(tmp_path / "corpus.txt", "one\n\ntwo")
    assert content(read_groups(tmp_path / "corpus.txt", one_group=True)) == {"corpus": ["one", "two"]}
    path = write(tmp_path / "all.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b", "group": "g"}'))
    assert content(read_groups(path, one_group=True)) == {"all": ["a"], "g": ["b"]}
    folder = saved(tmp_path / "set", pa.table({"text": ["a"]}), n_files=1)
    assert content(read_groups(folder, one_group=True)) == {"set": ["a"]}

# SPDX-License-Identifier: Apache-2.0
import gzip
import json
import os
import sys
import tracemalloc
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneuro.data import Documents, Groups, read_groups, require_groups
from jaxneuro.data.documents import fingerprint_of
from jaxneuro.errors import UserError


def jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def parquet(path, columns, row_group_size=None):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def content(groups):
    return {name: list(documents) for name, documents in groups.items()}


def test_a_file_per_group(tmp_path):
    (tmp_path / "en.txt").write_bytes(b"\xef\xbb\xbfone\r\n  two\r\n\r\n \t\r\n\r\nthree\r\n")
    jsonl(tmp_path / "de.jsonl", [{"text": "Größe", "n": 1}, {"text": "  "}, {"text": "a\n\nb", "group": "x"}])
    parquet(tmp_path / "fr.PARQUET", {"text": ["été", "", "b"], "other": [1, 2, 3]})
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "NOTICE").write_text("licences")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "_notes.csv").write_text("x")
    groups = read_groups(tmp_path)
    assert list(groups) == ["de", "en", "fr"]  # sorted
    assert content(groups) == {"de": ["Größe", "a\n\nb"], "en": ["one\n  two", "three"], "fr": ["été", "b"]}
    assert isinstance(groups, Groups)
    assert groups.source == str(tmp_path)


def test_a_folder_per_group(tmp_path):
    (tmp_path / "en" / "more").mkdir(parents=True)
    (tmp_path / "en" / "b.txt").write_text("first\n\nsame document\n")
    (tmp_path / "en" / "a.jsonl").write_text('{"text": "line"}\n\n{"text": "line 2"}')
    (tmp_path / "en" / "more" / "c.txt").write_text("deep")
    (tmp_path / "en" / "README").write_text("not text")
    (tmp_path / "code.txt").write_text("x = 1")
    assert content(read_groups(tmp_path)) == {
        "code": ["x = 1"],
        "en": ["line", "line 2", "first\n\nsame document\n", "deep"],
    }


def test_one_file_with_a_group_field(tmp_path):
    records = [{"text": "a", "group": "x"}, {"text": "b", "group": 7}, {"text": "c", "group": "x"}]
    expected = {"7": ["b"], "x": ["a", "c"]}
    assert content(read_groups(jsonl(tmp_path / "all.jsonl", records))) == expected
    columns = {"text": ["a", "b", "c"], "group": ["x", "7", "x"]}
    assert content(read_groups(parquet(tmp_path / "all.parquet", columns, row_group_size=2))) == expected
    named = jsonl(tmp_path / "named.jsonl", [{"body": "a", "lang": "x"}])
    assert content(read_groups(named, text_field="body", group_field="lang")) == {"x": ["a"]}
    strings = pa.array(["u", "v", "u"]).dictionary_encode()
    parquet(tmp_path / "coded.parquet", {"text": pa.array(["a", "b", "c"], pa.large_string()), "group": strings})
    assert content(read_groups(tmp_path / "coded.parquet")) == {"u": ["a", "c"], "v": ["b"]}


def test_bundled_text():
    groups = read_groups("bundled")
    assert {"code", "de", "en", "ru"} <= set(groups)
    assert all(sum(map(len, documents)) > 10_000 for documents in groups.values())


def test_random_access(tmp_path):
    parquet(tmp_path / "a.parquet", {"text": [f"text {i}" for i in range(10)]}, row_group_size=3)
    documents = read_groups(tmp_path)["a"]
    assert isinstance(documents, Documents)
    assert [documents[i] for i in (9, 0, 5, -1)] == ["text 9", "text 0", "text 5", "text 9"]
    assert documents[2:8:3] == ["text 2", "text 5"]
    with pytest.raises(IndexError):
        documents[10]


def test_memory_is_one_row_group(tmp_path):
    parquet(tmp_path / "a.parquet", {"text": [f"text {i}" for i in range(10)]}, row_group_size=3)
    documents = read_groups(tmp_path)["a"]
    assert documents[4] == "text 4"
    assert len(documents._parts[0]._held[1]) == 3


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    size, paragraph = 8_000_000, "word " * 400
    line = f"{paragraph}\n\n" if name == "a.txt" else json.dumps({"text": paragraph}) + "\n"
    (tmp_path / name).write_text(line * (size // len(line)))
    tracemalloc.start()
    documents = read_groups(tmp_path)["a"]
    assert sum(map(len, documents)) > 0.9 * size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000  # Python's own file buffers and one document; the texts are 8 MB


def test_fingerprint_is_of_the_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    jsonl(tmp_path / "b.jsonl", [{"text": "one"}, {"text": "two"}])
    parquet(tmp_path / "c.parquet", {"text": ["on", "etwo"]})
    groups = read_groups(tmp_path)
    assert groups["a"].fingerprint == groups["b"].fingerprint == fingerprint_of(["one", "two"])
    assert groups["c"].fingerprint != groups["a"].fingerprint


lines = st.lists(st.sampled_from(["", " ", "\t", "a", " b ", "ü\u2028x", "\u3000", "€c", "\x0bd"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(lines=lines, end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_paragraphs_against_a_plain_definition(tmp_path_factory, lines, end, last):
    folder = tmp_path_factory.mktemp("paragraphs")
    (folder / "a.txt").write_bytes((end.join(lines) + (end if last else "")).encode())
    expected, held = [], []
    for line in [*lines, ""]:
        if line.strip():
            held.append(line)
        elif held:
            expected.append("\n".join(held))
            held = []
    if expected:
        assert list(read_groups(folder)["a"]) == expected
    else:
        with pytest.raises(UserError, match=r"no text in"):
            read_groups(folder)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=8))
def test_jsonl_gives_back_every_text(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("jsonl")
    jsonl(folder / "a.jsonl", [{"text": t} for t in [*texts, "end"]])
    documents = read_groups(folder)["a"]
    assert list(documents) == [t for t in [*texts, "end"] if t.strip()]
    assert documents.fingerprint == fingerprint_of(list(documents))


def write(name, data):
    def make(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return folder

    return make


def one_file(name, data):
    return lambda folder: write(name, data)(folder) / name


def table(name, columns):
    return lambda folder: parquet(folder / name, columns).parent


def both(*makers):
    def make(folder):
        for maker in makers:
            maker(folder)
        return folder

    return make


BAD = {
    "utf8": (write("a.txt", b"ab\ncd\xe9f"), r"a\.txt is not UTF-8: byte 0xe9 at byte offset 5 .*iconv"),
    "utf8 after a mark": (write("a.txt", b"\xef\xbb\xbfab\xff"), r"byte 0xff at byte offset 5"),
    "utf8 in a whole file": (
        write("g/a.txt", b"\xef\xbb\xbfabc\xfe"),
        r"a\.txt is not UTF-8: byte 0xfe at byte offset 6",
    ),
    "utf8 jsonl": (write("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n'), r"a\.jsonl is not UTF-8.*byte offset 24"),
    "json": (write("a.jsonl", '{"text": "a"}\n\n{"text": \n'), r"a\.jsonl, line 3: not valid JSON"),
    "no object": (write("a.jsonl", "[1]\n"), r"a\.jsonl, line 1: expected a JSON object.*found list"),
    "no text": (write("a.jsonl", '{"txt": "a"}'), r"line 1: no field 'text'\. Did you mean 'txt'\? Known: txt"),
    "text a number": (write("a.jsonl", '{"text": 3}'), r"line 1: the text is 3 \(int\); a string is needed"),
    "text null": (write("a.jsonl", '{"text": null}'), r"line 1: the text is empty; a string is needed"),
    "surrogate": (write("a.jsonl", '{"text": "a\\ud800"}'), r"line 1: .*half a surrogate pair at character 1"),
    "no group": (one_file("a.jsonl", '{"text": "a"}'), r"a\.jsonl, line 1: no field 'group'"),
    "group a list": (one_file("a.jsonl", '{"text": "a", "group": []}'), r"line 1: the group is \[\] \(list\)"),
    "group empty": (one_file("a.jsonl", '{"text": "a", "group": " "}'), r"line 1: the group is ' ' \(str\)"),
    "group a bool": (one_file("a.jsonl", '{"text": "a", "group": true}'), r"line 1: the group is True"),
    "group long": (
        one_file("a.jsonl", '{"text": "a", "group": "ok"}\n' + json.dumps({"text": "a", "group": "x\x1b" * 500_000})),
        r"a\.jsonl, line 2: the group's name 'x␛x␛x␛[^']{30,40}' has 1,000,000 characters; at most 200 are allowed",
    ),
    "group long in parquet": (
        lambda f: parquet(f / "a.parquet", {"text": ["a"], "group": ["y" * 201]}),
        r"a\.parquet, row 0: the group's name .* has 201 characters",
    ),
    "group long in a folder": (write("z" * 201 + ".txt", "x"), r"the group's name .* has 201 characters"),
    "no parquet": (write("a.parquet", "PAR1 no"), r"a\.parquet is not a readable parquet file"),
    "parquet field": (table("a.parquet", {"txt": ["a"]}), r"a\.parquet: no field 'text'. Did you mean 'txt'"),
    "parquet null": (table("a.parquet", {"text": ["a", None]}), r"a\.parquet, row 1: the text is empty"),
    "parquet number": (table("a.parquet", {"text": [1]}), r"a\.parquet, row 0: the text is 1 \(int\)"),
    "parquet binary": (table("a.parquet", {"text": [b"a"]}), r"row 0: the text is b'a' \(bytes\)"),
    "empty group": (both(write("a.txt", "x"), write("b.txt", " \n\n")), r"group 'b' has no text in"),
    "empty groups": (both(write("a.txt", ""), write("b.txt", " \n\n")), r"groups 'a', 'b' have no text in"),
    "empty in a field": (one_file("a.jsonl", '{"text": " ", "group": "z"}'), r"group 'z' has no text"),
    "empty file": (one_file("a.jsonl", ""), r"no text in .*a\.jsonl\. Expected a folder"),
    "empty folder": (lambda folder: folder, r"no text in .* Expected a folder with GROUP\.txt"),
    "empty sub-folder": (lambda f: (f / "de").mkdir() or f, r"the folder of group 'de' has no files"),
    "other files": (
        both(write("a.txt", "x"), write("b.pdf", "x"), write("c/d.zip", "x")),
        r"cannot read b\.pdf, c/d\.zip in",
    ),
    "group twice": (
        both(write("a.txt", "x"), write("a.jsonl", "x")),
        r"group 'a' is there twice, as a\.jsonl and a\.txt",
    ),
    "one txt": (one_file("a.txt", "x"), r"a\.txt is one text without groups"),
    "one pdf": (one_file("a.pdf", "x"), r"cannot read a\.pdf in"),
    "one markdown": (one_file("a.md", "x"), r"a\.md is one text without groups"),
    "csv field": (
        one_file("a.csv", "body,group\nx,y\n"),
        r"a\.csv, line 1: no field 'text'\. .*Known: body, group\. .*--field",
    ),
    "csv group": (one_file("a.csv", "text,lang\nx,y\n"), r"no field 'group'\. .*Known: text, lang\. .*group-field"),
    "csv twice": (one_file("a.csv", "text,text\nx,y\n"), r"names the field 'text' twice"),
    "csv ragged": (one_file("a.csv", "text,group\na,x\nb, c,y\n"), r"a\.csv, line 3: 3 fields, .* names 2 \(text"),
    "csv quote": (one_file("a.csv", 'text,group\na,x\n"b,y\n'), r"a\.csv, line 3: unexpected end of data"),
    "csv utf8": (one_file("a.csv", b"text,group\na\xe9,x\n"), r"not UTF-8: byte 0xe9 at byte offset 12"),
    "json an object": (one_file("a.json", '{"text": "a"}'), r"a\.json holds no array of records"),
    "json two arrays": (one_file("a.json", '{"a": [], "b": []}'), r"a\.json holds no array of records"),
    "json a number": (one_file("a.json", "[1]"), r"a\.json, record 0: expected a JSON object .*found int"),
    "deep jsonl": (one_file("a.jsonl", '{"text": ' + "[" * 50_000), r"a\.jsonl, line 1: not valid JSON"),
    "gzip": (write("a.jsonl.gz", "no gzip"), r"a\.jsonl\.gz is not a whole gzip file"),
    "gzip cut": (write("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99)[:-9]), r"is not a whole gzip file"),
    "messages": (write("a.jsonl", '{"messages": [{"who": "a"}]}'), r"line 1: a message has the fields who; needed are"),
    "messages a number": (
        write("a.jsonl", '{"messages": [{"role": "user", "content": 3}]}'),
        r"line 1: the text is 3 \(int\)",
    ),
    "messages empty": (write("a.jsonl", '{"messages": []}'), r"line 1: the text is \[\] \(list\)"),
    "arrow": (write("a.arrow", "no arrow"), r"a\.arrow is not a readable Arrow file"),
    "state": (both(write("state.json", "{}"), write("dataset_info.json", "{}")), r"state\.json names no files of rows"),
    "state elsewhere": (
        both(write("state.json", '{"_data_files": [{"filename": "../a"}]}'), write("dataset_info.json", "{}")),
        r"state\.json names no files of rows",
    ),
    "dangling link": (
        lambda f: (f / "a.txt").symlink_to(f / "gone") or f,
        r"cannot read .*a\.txt: No such file or directory",
    ),
    "pipe": (lambda f: os.mkfifo(f / "a.txt") or f, r"cannot read .*a\.txt: it is a pipe, not a file"),
    "missing": (lambda f: write("texts.jsonl", "x")(f) / "text.jsonl", r"Did you mean 'texts\.jsonl'\?.*hub:OWNER"),
    "missing folder": (lambda f: f / "no" / "where", r"no file or folder 'where'"),
    "hub form": (lambda f: "hub:a:b:c:d:e", r"expected hub:OWNER/NAME"),
    "hub empty": (lambda f: "hub:", r"expected hub:OWNER/NAME"),
}


def test_a_name_of_two_hundred_characters_is_a_name(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "group": "x" * 200}, {"text": "b", "group": "y"}])
    assert list(read_groups(path)) == ["x" * 200, "y"]


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path):
    make, message = BAD[case]
    with pytest.raises(UserError, match=message):
        read_groups(make(tmp_path))


def test_parquet_text_that_is_no_utf8(tmp_path):
    raw = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    parquet(tmp_path / "a.parquet", {"text": raw})
    with pytest.raises(UserError, match=r"a\.parquet: field 'text' is not UTF-8 in rows 0 to 0"):
        read_groups(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_file_that_changes_is_noticed(tmp_path, name):
    if name == "a.parquet":
        parquet(tmp_path / name, {"text": ["one"]})
    else:
        (tmp_path / name).write_text('{"text": "one"}\n')
    documents = read_groups(tmp_path)["a"]
    (tmp_path / name).write_text("another text, longer")
    with pytest.raises(UserError, match="changed while it was in use"):
        documents[0]
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="changed while it was in use"):
        documents[0]


def test_unknown_group_and_too_few(tmp_path):
    write("german.txt", "x")(tmp_path)
    groups = read_groups(tmp_path)
    assert "french" not in groups
    assert groups.get("french") is None
    with pytest.raises(UserError, match=r"no group 'germn'\. Did you mean 'german'"):
        groups["germn"]
    require_groups(groups, at_least=1)
    with pytest.raises(UserError, match=r"1 group in .* \(german\); at least 2 are needed to compare"):
        require_groups(groups)
    with pytest.raises(UserError, match=r"0 group \(none\)"):
        require_groups({})


class Label:
    def int2str(self, i):
        return ["neg", "pos"][i]


class Table:
    """The part of `datasets.Dataset` that is used."""

    def __init__(self, columns):
        self._columns = columns

    column_names = property(lambda self: list(self._columns))
    features = property(lambda self: {n: Label() if n == "label" else None for n in self._columns})

    def select_columns(self, names):
        return Table({n: self._columns[n] for n in names})

    def iter(self, batch_size):
        for i in range(0, len(next(iter(self._columns.values()))), batch_size):
            yield {n: c[i : i + batch_size] for n, c in self._columns.items()}

    def __getitem__(self, i):
        return {n: c[i] for n, c in self._columns.items()}


@pytest.fixture
def hub(monkeypatch):
    asked = []

    def load_dataset(*args, **kw):
        asked.append((args, kw))
        if args[0] == "owner/none":
            raise FileNotFoundError("Couldn't reach the Hub.\nmore")
        return Table(
            {"text": ["a", " ", "b", "c"], "lang": ["x", "x", "y", "x"], "n": [1, 2, 3, None], "label": [0, 0, 1, 1]}
        )

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_hub_dataset(hub):
    groups = read_groups("hub:owner/name/config:test:text:lang")
    assert hub == [(("owner/name", "config"), {"split": "test"})]
    assert content(groups) == {"x": ["a", "c"], "y": ["b"]}
    assert groups["x"].fingerprint == fingerprint_of(["a", "c"])
    assert content(read_groups("hub:owner/name", group_field="lang")) == content(groups)
    assert content(read_groups("hub:owner/name:train:text:label")) == {"neg": ["a"], "pos": ["b", "c"]}
    assert hub[1] == (("owner/name",), {"split": "train"})


def test_hub_errors(hub, monkeypatch):
    with pytest.raises(UserError, match=r"no field 'group'\. Known: text, lang, n, label"):
        read_groups("hub:owner/name")
    with pytest.raises(UserError, match=r"row 3: the group is empty"):
        read_groups("hub:owner/name:train:text:n")
    with pytest.raises(UserError, match=r"row 0: the text is 1 \(int\)"):
        read_groups("hub:owner/name:train:n:lang")
    with pytest.raises(
        UserError, match=r"cannot load hub:owner/none: FileNotFoundError: Couldn't reach the Hub\. Check"
    ):
        read_groups("hub:owner/none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package 'datasets'. Run: pip install 'jaxneuro\[hub\]'"):
        read_groups("hub:owner/name")

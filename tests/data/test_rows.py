"""Reading tables, and what their columns may hold."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedexperts.data.rows import columns, label_index, numbers, read_rows
from fedexperts.errors import InputError

DATA = Path(os.environ.get("FEDEXPERTS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TABLES = {
    "glue_sst2": (16000, {"sentence", "label"}),
    "glue_stsb": (4599, {"sentence1", "sentence2", "score"}),
    "mmlu": (8838, {"question", "choices", "answer", "subject"}),
}
ROWS = [{"text": "good", "label": 1, "choices": ["a", "b"]}, {"text": 'so "so",\nnöt 好', "label": 0, "choices": []}]
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1)


def write(path, text):
    path.write_bytes(text.encode())
    return path


def jsonl(path, *rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# ---- files


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "A.JSONL"])
def test_one_json_object_per_line(tmp_path, name):
    jsonl(tmp_path / name, *ROWS)
    assert read_rows(name, tmp_path) == ROWS


@pytest.mark.parametrize("codec", ["zstd", "snappy", "none"])
def test_parquet_gives_the_rows_that_were_written(tmp_path, codec):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", compression=codec, row_group_size=1)
    assert read_rows("a.parquet", tmp_path) == ROWS


def test_csv_has_a_header_and_quotes_and_knows_only_text(tmp_path):
    write(tmp_path / "a.csv", 'text,label\r\ngood,1\r\n\r\n"a, b\t ""c""\nd",0\r\n')
    assert read_rows("a.csv", tmp_path) == [{"text": "good", "label": "1"}, {"text": 'a, b\t "c"\nd', "label": "0"}]


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_survives_in_every_format(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"n": str(n), "text": text} for n, text in enumerate(texts)]
    jsonl(folder / "a.jsonl", *rows)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    quoted = "".join('{},"{}"\n'.format(row["n"], row["text"].replace('"', '""')) for row in rows)
    write(folder / "a.csv", "n,text\n" + quoted)
    assert read_rows("a.jsonl", folder) == read_rows("a.parquet", folder) == read_rows("a.csv", folder) == rows


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    write(tmp_path / "a.csv", "\ufefftext\ngood\n")
    write(tmp_path / "a.jsonl", '\ufeff{"text": "good"}\n')
    assert read_rows("a.csv", tmp_path) == read_rows("a.jsonl", tmp_path) == [{"text": "good"}]


def test_an_absolute_path_needs_no_base(tmp_path):
    assert read_rows(str(jsonl(tmp_path / "a.jsonl", *ROWS)), Path("/nowhere")) == ROWS


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    (tmp_path / "label=3").mkdir()
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "label=3" / "a.parquet")
    assert read_rows("label=3/a.parquet", tmp_path) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"a": 1}\nnot json\n', r"a\.jsonl, line 2: is not JSON .*; a file must hold one object on every line"),
        (
            "a.jsonl",
            '{"a": 1}\n\n[1]\n',
            r"a\.jsonl, line 3: holds \[1\]; must be an object: a file must hold one object on every",
        ),
        ("a.json", '"a"', r"a\.json, line 1: holds 'a'; must be an object"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv, line 3: 3 fields, but the header names 2; put double quotes"),
        ("a.csv", "a,b\n1\n", r"a\.csv, line 2: 1 fields, but the header names 2"),
        ("a.csv", "text;label\na film, good;1\n", r"a\.csv, line 1: 'text;label': semicolons seem to separate the columns"),
        ("a.csv", "text;a,b;label\nx;y;1\n", r"line 1: 'text;a,b;label': semicolons seem to .* write commas, or use JSONL"),
        ("a.csv", "text\tlabel\nx\t1\n", r"tabs seem to separate the columns, .* name it \.tsv, or"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv, line 1: column 'a' is there twice; rename one"),
        ("a.csv", 'a,b\n"never closed,2\n', r"a\.csv, line 2: .*; put double quotes"),
        ("a.csv", 'a,b\n"half" closed,2\n', r"a\.csv, line 2: .*; put double quotes"),
        ("a.tsv", "a\tb\n1\t2\t3\n", r"a\.tsv, line 2: 3 fields, but the header names 2; a field must not hold a tab"),
        ("a.tsv", "a\tb\ta\n", r"a\.tsv, line 1: column 'a' is there twice"),
        ("a.parquet", "text", r"a\.parquet': is damaged or not Parquet .*; fetch or write it again"),
        ("a.parquet", "", r"a\.parquet': is damaged or not Parquet"),
        ("a.txt", "text", r"a\.txt': of unknown kind; must end in \.jsonl, .* or be hub:org/name:split"),
        ("a.jsonl", "", r"a\.jsonl': holds no rows; every cluster needs data"),
        ("a.csv", "", r"a\.csv': holds no rows"),
        ("a.csv", "a,b\n", r"a\.csv': holds no rows"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path, name, text, words):
    write(tmp_path / name, text)
    with pytest.raises(InputError, match=words):
        read_rows(name, tmp_path)


def test_a_truncated_or_empty_parquet_file_is_refused(tmp_path):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS)[:0], tmp_path / "none.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"b\.parquet': is damaged"):
        read_rows("b.parquet", tmp_path)
    with pytest.raises(InputError, match=r"none\.parquet': holds no rows"):
        read_rows("none.parquet", tmp_path)


@pytest.mark.parametrize("name", ["no.jsonl", "no.csv", "no.parquet"])
def test_a_missing_file_is_refused_with_its_path(tmp_path, name):
    with pytest.raises(InputError, match=rf"data = '.*{name}': cannot be read \(.*No such file"):
        read_rows(name, tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_in_another_encoding_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes("text\nnöt\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"is not UTF-8 text .* save it as UTF-8"):
        read_rows(name, tmp_path)


@pytest.mark.parametrize("table", TABLES)
def test_real_tables(table):
    if not (DATA / table / "train.parquet").exists():
        pytest.skip(f"no {table}/train.parquet in $FEDEXPERTS_DATA (or ../shared/data)")
    rows, names = TABLES[table]
    read = read_rows(f"{table}/train.parquet", DATA)
    assert len(read) == rows
    assert names <= read[0].keys()
    assert all(len(values) == rows for values in columns(read, sorted(names), table))


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library: what was asked for, and what to answer with."""
    library, errors = ModuleType("datasets"), ModuleType("datasets.exceptions")
    errors.DatasetsError = type("DatasetsError", (Exception,), {})
    library.asked, library.answer = [], ROWS

    def load_dataset(name, config, split):
        library.asked.append((name, config, split))
        if isinstance(library.answer, Exception):
            raise library.answer
        return library.answer

    library.load_dataset, library.exceptions, library.__version__ = load_dataset, errors, "4.0.0"
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
    return library


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("hub:nyu-mll/glue:sst2:train", ("nyu-mll/glue", "sst2", "train")),
        ("hub:org/na.me:validation", ("org/na.me", None, "validation")),
        ("hub:org/name:train[:1000]", ("org/name", None, "train[:1000]")),
        ("hub:org/name:some-config:train[10%:20%]", ("org/name", "some-config", "train[10%:20%]")),
    ],
)
def test_a_name_on_the_hub_is_name_configuration_and_split(hub, spec, asked):
    assert read_rows(spec, Path()) == ROWS
    assert hub.asked == [asked]


@pytest.mark.parametrize("spec", ["hub:", "hub:org/name", "hub:name:train", "hub:../up:train", "hub:org/name:a:b:c"])
def test_a_malformed_name_on_the_hub_is_refused(hub, spec):
    with pytest.raises(InputError, match="must be hub:org/name:split or hub:org/name:config:split"):
        read_rows(spec, Path())
    assert hub.asked == []


@pytest.mark.parametrize("kind", [ConnectionError, FileNotFoundError, ValueError, None])
def test_what_the_hub_does_not_give_is_refused_with_a_remedy(hub, kind):
    hub.answer = (kind or hub.exceptions.DatasetsError)("Unknown split\nand more")
    with pytest.raises(InputError, match=r"hub:org/name:dev.*\(Unknown split\); correct the name.*unset HF_HUB_OFFLINE"):
        read_rows("hub:org/name:dev", Path())


def test_an_empty_split_is_refused(hub):
    hub.answer = []
    with pytest.raises(InputError, match="hub:org/name:dev': holds no rows"):
        read_rows("hub:org/name:dev", Path())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"data = 'hub:org/name:train': .* pip install 'fedexperts\[datasets\]'"):
        read_rows("hub:org/name:train", Path())


def test_code_that_comes_with_data_is_never_run(hub):
    """`load_dataset` of the fixture takes no ``trust_remote_code``; a script is an error of the input."""
    hub.answer = RuntimeError("Dataset scripts are no longer supported, but found name.py")
    with pytest.raises(InputError, match=r"hub:org/name:train': cannot be loaded .*scripts are no longer supported"):
        read_rows("hub:org/name:train", Path())
    hub.__version__ = "3.6.0"  # which would ask, or obey an environment variable
    with pytest.raises(InputError, match=r"datasets 3\.6\.0 runs code that comes with data; pip install 'datasets>=4'"):
        read_rows("hub:org/name:train", Path())
    assert len(hub.asked) == 1


def test_a_data_set_on_the_hub_is_bounded(hub, monkeypatch):
    monkeypatch.setattr("fedexperts.data.rows.MOST_ROWS", 1)
    with pytest.raises(InputError, match=r"hub:org/name:train': 2 rows; at most 1: take a slice"):
        read_rows("hub:org/name:train", Path())


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs the extra datasets: pip install -e '.[datasets]'")
def test_the_library_itself_refuses_a_script(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "name.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        read_rows("hub:org/name:train", Path())
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs the extra datasets: pip install -e '.[datasets]'")
def test_the_library_itself_knows_our_call():
    from inspect import signature

    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    signature(load_dataset).bind("org/name", None, split="train")
    assert issubclass(DatasetsError, Exception)


# ---- columns


def test_columns_come_in_the_order_asked_for():
    assert columns(ROWS, ["label", "text"], "here") == [[1, 0], [row["text"] for row in ROWS]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"a": 1, "b": 2}], "here: there is no column 'x'; the columns are 'a', 'b'"),
        ([{"x": 1}, {"y": 1}], "here, row 2: column 'x' has no value; fill it in, or leave the row out"),
        ([{"x": None}], "here, row 1: column 'x' has no value"),
        ([{"x": 0.5}, {"x": float("nan")}], "here, row 2: column 'x' holds nan"),
        ([{"x": "a"}, {"x": 1}], "here, row 2: column 'x' holds 1, a number, but a text in row 1 .'a'.; write all"),
        ([{"x": 0}, {"x": True}], "row 2: column 'x' holds True, a truth value, but a number in row 1"),
        ([{"x": ["a"]}, {"x": "a"}], "row 2: column 'x' holds 'a', a text, but a list in row 1"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(rows, words):
    with pytest.raises(InputError, match=words):
        columns(rows, ["x"], "here")


def test_a_field_left_empty_in_csv_is_no_value(tmp_path):
    write(tmp_path / "a.csv", "text,label\ngood,1\n,0\n")
    with pytest.raises(InputError, match="row 2: column 'text' has no value"):
        columns(read_rows("a.csv", tmp_path), ["text"], "here")


def test_whole_and_broken_numbers_are_of_one_kind():
    assert columns([{"x": 1}, {"x": 0.5}], ["x"], "here") == [[1, 0.5]]


# ---- scores and labels


def test_scores_may_be_spelled():
    assert numbers([1, 0.5, "2.5", "-1e-3"], "here") == [1.0, 0.5, 2.5, -0.001]


@pytest.mark.parametrize("value", ["good", "nan", float("inf"), True, None, [1]])
def test_what_is_no_number_is_no_score(value):
    with pytest.raises(InputError, match=r"here, row 2: score .* must be a finite number"):
        numbers([1, value], "here")


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ([2, 0, 1], None, ([2, 0, 1], [0, 1, 2])),
        ([2, 0], None, ([2, 0], [0, 1, 2])),
        (["b", "a", "b"], None, ([1, 0, 1], ["a", "b"])),
        (["b", "a", "b"], ["b", "c", "a"], ([0, 2, 0], ["b", "c", "a"])),
        ([5, 1], [1, 2, 3, 4, 5], ([4, 0], [1, 2, 3, 4, 5])),
        ([1, 0], ["no", "yes"], ([1, 0], ["no", "yes"])),
        ([True, False], None, ([1, 0], [0, 1])),
        ([True, False], ["no", "yes"], ([1, 0], ["no", "yes"])),
        ([1.0, 0.0], None, ([1, 0], [0, 1])),
        (["10", "0"], None, ([10, 0], list(range(11)))),
        (["1.0", "0.0"], None, ([1, 0], [0, 1])),
        (["5", "1"], [1, 5], ([1, 0], [1, 5])),
        (["5", "1"], ["1", "5"], ([1, 0], ["1", "5"])),
        (["1", "0"], ["no", "yes"], ([1, 0], ["no", "yes"])),
        (["1", "a"], None, ([0, 1], ["1", "a"])),
        ([], ["a"], ([], ["a"])),
    ],
)
def test_classes_of_labels(values, labels, expected):
    assert label_index(values, labels, "here") == expected


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        (["a", "x"], ["a", "b"], "here, row 2: label 'x' is not one of 'a', 'b'; correct it, or list all labels"),
        ([0, 2], ["a", "b"], "row 2: label 2 is not one of 0, 1"),
        ([0, -1], ["a", "b"], "row 2: label -1 is not one of 0, 1"),
        ([0, 2], [1, 2], "row 1: label 0 is not one of 1, 2"),
        (["a"], [1, 2], "row 1: label 'a' is not one of 1, 2"),
        ([0, -1], None, "row 2: label -1: must be from 0 to 9999 .*kept secret"),
        (["0", "-1"], None, "row 2: label -1: must be from 0 to 9999"),
        ([0, 10**9], None, "row 2: label 1000000000: must be from 0 to 9999"),
        ([0.0, 0.5], None, "row 2: label 0.5: must be a whole number or a text; .* a regression, task.metric = "),
        (["0", "0.5"], None, "row 2: label 0.5: must be a whole number"),
        ([None], None, "row 1: label has no value; fill it in, or leave the row out"),
        (["a", ""], None, "row 2: label '': is blank; fill it in, or leave the row out"),
        (["a", " "], ["a", " "], "row 2: label ' ': is blank"),
        ([["a"]], None, r"row 1: label \['a'\]: must be"),
        ([0, "a"], None, "here: labels are both numbers and texts .0, 'a'.; write all of them in one way"),
        (["a"], ["a", "a"], r"here: labels = \['a', 'a'\]: must name every class once"),
        (["a"], [], r"here: labels = \[\]: must name every class once"),
        ([f"free text {n}" for n in range(10_001)], None, "10001 different labels; at most 10000: is this the label's column"),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(values, labels, words):
    with pytest.raises(InputError, match=words):
        label_index(values, labels, "here")


@pytest.mark.filterwarnings("ignore::fedexperts.errors.InputWarning")  # of texts that all are numbers, and none is 0
@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "10", "2", "no"]), min_size=1))
def test_a_class_leads_back_to_its_label(values):
    index, labels = label_index(values, None, "here")
    assert [str(labels[n]) for n in index] == values

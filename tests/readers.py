"""Every reader of files that others wrote, once: a valid file and what reads it. The tests of each package fuzz its own, and
`make fuzz` all of them, longer (`fuzz`)."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import families
import small
import text
from example_scenarios import BOUNDED, EXAMPLES, NETWORKS, bounded, example, judged, planned, prepared, written
from fedexperts.contact.interchange import load_plan, plan_text
from fedexperts.contact.orbit import ecef, instants, read_omm, read_tle
from fedexperts.contact.plan import Contact, ContactPlan, Rates
from fedexperts.contact.schedule import contact_rows, statistics, verdict
from fedexperts.data import choice, classify, language
from fedexperts.data.choice import Columns
from fedexperts.data.images import pixels, read_images, size
from fedexperts.data.rows import columns, label_index, numbers, read_rows
from fedexperts.data.source import read_jsonl
from fedexperts.errors import InputError
from fedexperts.ledger import summary, tail
from fedexperts.moe.answer import answers
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.gate_rows import prompts_of
from fedexperts.moe.lora import A, B
from fedexperts.moe.parts import Piece
from fedexperts.moe.peft import parts_of, peft_adapter
from fedexperts.moe.size import Training, Work, describe
from fedexperts.moe.sized import named
from fedexperts.moe.store import Store
from fedexperts.moe.subset import load_full
from fedexperts.moe.tasks import read_tasks
from fedexperts.moe.tokenizer import load_tokenizer, tokenizer_notes
from fedexperts.moe.view import View
from fedexperts.peer.links import Links, best
from fedexperts.peer.peers_file import Network
from fedexperts.peer.tls import Authority, certificate_of, pem
from fedexperts.report.measured import bound_section, dense_rows
from fedexperts.report.work import peak_B
from fedexperts.runs import checkpoint
from fedexperts.runs.ended import scenario_of, what_lacks
from fedexperts.runs.owners_file import read_owners
from fedexperts.runs.sums import write_sums
from fedexperts.setup.experts_from import check_layers, choice_report, read_choice
from fedexperts.train import message as wire
from fedexperts.train import upload
from fedexperts.train.message import WireError
from fedexperts.train.task import Update
from mutate import Form, Reader, as_json, on_lines
from pictures import images

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def file(name: str, content: bytes | str) -> Callable[[Path], Path]:
    """What writes a file of that name."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


# ---- contact plans and elements

PLAN = ContactPlan(
    ("a", "b"),
    (
        Contact.of("a", 0, [Rates(10, 1e6, 2e6), Rates(20, 5e5, 0)], "s1"),
        Contact("b", 15, 60.5, 1e4, 2e4),
        Contact("a", 90, 95, 1, 8),
    ),
    100.0,
)
START = datetime(2026, 1, 1, tzinfo=UTC)
NODES = {"server": 1, "a": 2, "b": 3}
ION = "a contact 2026/01/01-00:02:00 2026/01/01-00:03:00 2 1 100\n@ +200\na contact +0 +9 3 1 50 1.0\n"
OMM = {
    "OBJECT_NAME": "ISS (ZARYA)",
    "OBJECT_ID": "1998-067A",
    "REF_FRAME": "TEME",
    "EPOCH": "2026-01-01T12:25:40.104192",
    "MEAN_MOTION": 15.72125391,
    "ECCENTRICITY": 0.0006703,
    "INCLINATION": 51.6416,
    "RA_OF_ASC_NODE": 247.4627,
    "ARG_OF_PERICENTER": 130.5360,
    "MEAN_ANOMALY": 325.0288,
    "EPHEMERIS_TYPE": 0,
    "NORAD_CAT_ID": 25544,
    "BSTAR": 0.11606e-4,
}
TLE = b"""ISS
1 25544U 98067A   26001.00000000  .00016717  00000-0  10270-3 0  9994
2 25544  51.6400 208.9163 0006317  69.9862  25.2906 15.50000000    10
NEXT
1 A5544U 98067A   26001.00000000  .00016717  00000-0  10270-3 0  9992
2 A5544  51.6400 208.9163 0006317  69.9862  25.2906 15.50000000    18
"""
XML = "<ndm><omm><body><segment><a>" + "".join(f"<{k}>{v}</{k}>" for k, v in OMM.items()) + "</a></segment></body></omm></ndm>"
KVN = "CCSDS_OMM_VERS = 2.0\n" + "".join(f"{k} = {v}\n" for k, v in OMM.items())
CSV = ",".join(OMM) + "\n" + ",".join(str(v) for v in OMM.values()) + "\n"


def plan(path: Path) -> None:
    """Read a plan, and do with it what `fedexperts plan` does."""
    found = load_plan(path, PLAN.clusters, NODES, START)
    assert json.dumps([contact_rows(found), statistics(found), found.cycle_ends_s], allow_nan=False)
    for cluster in found.clusters:
        assert verdict(found, cluster, 10**7)
    for kind in ("json", "csv", "hdtn"):
        plan_text(found, kind)


def flown(read: Callable[[Path], Iterable[Any]]) -> Callable[[Path], None]:
    """What flies the satellites of a file for a day."""

    def fly(path: Path) -> None:
        for satellite in read(path):
            position_km, _ = ecef(satellite, instants(START, np.linspace(0, 86400, 9)))
            assert np.all(np.linalg.norm(position_km, axis=1) < 2e6)

    return fly


def _plan(kind: str, name: str, form: Form = "bytes", more: str = "") -> Reader:
    return Reader(f"plan {kind}", file(name, plan_text(PLAN, kind) + more), plan, form)


UNSUMMED = b"\n".join(line[:68] for line in TLE.split(b"\n"))  # without checksums, which would catch most changes
CONTACT = (
    _plan("json", "plan.json", "json"),
    _plan("hdtn", "plan.json", "json"),
    _plan("csv", "plan.csv"),
    _plan("ion", "plan.rc", more=ION),
    Reader("tle", file("some.tle", TLE), flown(read_tle)),
    Reader("tle without sums", file("some.tle", UNSUMMED), flown(read_tle)),
    Reader("omm json", file("some.omm", as_json([OMM, OMM])), flown(read_omm), "json"),
    Reader("omm xml", file("some.omm", XML), flown(read_omm)),
    Reader("omm kvn", file("some.omm", KVN + KVN), flown(read_omm)),
    Reader("omm csv", file("some.omm", CSV), flown(read_omm)),
)

# ---- data

TOKENS: list[Any] = [{"input_ids": [1, 2], "label": 0}, {"input_ids": [3], "label": 1}]
ROWS: list[Any] = [{"text": "good", "label": 0, "score": 0.5}, {"text": "bäd", "label": 1, "score": -1}]
QUESTIONS: list[Any] = [
    {"question": "q?", "choices": ["a", "b", "c"], "answer": 0},
    {"question": "r", "choices": [1, 2], "answer": "B"},
]


def words(*texts: Any, **_: Any) -> dict[str, Any]:
    """A tokenizer: a token for each character."""
    if isinstance(texts[0], str):
        return {"input_ids": [ord(c) % 100 for c in texts[0]]}
    return {"input_ids": [[ord(c) % 100 for c in value] for value in texts[0]]}


words.bos_token_id = 0  # type: ignore[attr-defined]


def rows(path: Path) -> None:
    """Rows, and what a task of classification, regression or language makes of them."""
    found = read_rows(path.name, path.parent)
    assert found
    classify.encode(found, words, "text", None, 16)
    label_index(*columns(found, ["label"], "data"), None, "data")
    numbers(*columns(found, ["score"], "data"), "data")
    language.encode(found, words, "text", 16)


def questions(path: Path) -> None:
    """Rows, and what a task of multiple choice makes of them."""
    choice.encode(read_rows(path.name, path.parent), words, Columns(), 16)


def shown(path: Path) -> None:
    """All images of a file."""
    found = read_images(path.name, path.parent, "image", "label")
    label_index([label for one in found for label in one.labels], None, "data")
    pixels(found, range(size(found)))


def decoded(path: Path) -> None:
    """An encoded image in a Parquet file."""
    parquet.write_table(pa.table({"image": [path.read_bytes()], "label": [0]}), path.parent / "b.parquet")
    shown(path.parent / "b.parquet")


def table(found: list[Any], codec: str = "snappy") -> bytes:
    """Rows as Parquet."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(found), buffer, compression=codec)
    return buffer.getvalue()


def arrays(save: Callable[..., None]) -> bytes:
    """Images as npz."""
    x, y = images(3)
    buffer = io.BytesIO()
    save(buffer, x=x, y=y)
    return buffer.getvalue()


def image(form: str) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    Image.fromarray(images(1)[0][0]).save(buffer, form)
    return buffer.getvalue()


DATA = (
    Reader("tokens on lines", file("a.jsonl", on_lines(TOKENS)), read_jsonl, "lines"),
    Reader("tokens in a list", file("a.json", as_json(TOKENS)), read_jsonl, "json"),
    Reader("rows on lines", file("a.jsonl", on_lines(ROWS)), rows, "lines"),
    Reader("rows in a list", file("a.json", as_json(ROWS)), rows, "json"),
    Reader("questions", file("a.jsonl", on_lines(QUESTIONS)), questions, "lines"),
    Reader("csv", file("a.csv", 'text,label,score\r\n"go""od, so",0,0.5\r\nbäd,1,-1\r\n'), rows),
    Reader("tsv", file("a.tsv", 'text\tlabel\tscore\n"good\t0\t0.5\nbäd\t1\t-1\n'), rows),
    *(Reader(f"parquet {codec}", file("a.parquet", table(ROWS, codec)), rows) for codec in ("snappy", "zstd", "none")),
    Reader("parquet with lists", file("a.parquet", table([QUESTIONS[0]] * 2)), questions),
    Reader("npz", file("a.npz", arrays(np.savez)), shown),
    Reader("npz compressed", file("a.npz", arrays(np.savez_compressed)), shown),
    *(
        Reader(f"image {form}", file("a", image(form)), decoded)
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
    ),
)

# ---- runs

JOULES = {"radio_J": 0.5, "compute_J": 1.0, "idle_J": 2.0}
COSTS: dict[str, Any] = {"steps": 4, "uplink_B": 10, "downlink_B": 20, "accuracy": 0.25, "loss": 1.5}
COSTS["accuracy_by_cluster"] = {"a": 0.5, "b": 0.0}
LEDGER: list[Any] = [
    {"t_s": 0, "event": "run", "name": "r", "protocol": "ems-fl", "seed": 3, "clusters": {"a": [4, 4], "b": [4]}, "target": 0.5,
     "plateau": [2, 0.005]},
    {"t_s": 0, "event": "baselines", "clusters": {"a": {"majority": 0.5, "tfidf": None}}},
    {"t_s": 0, "event": "assignment", "experts": ["expert:0", "expert:1"], "clusters": ["a", "b"],
     "relevance": [[0.5, 0.5], [0.25, 0.75]], "assignment": {"a": [0], "b": ["0.1"]}, "gamma": {"a": 1.0, "b": 1.0},
     "advice": "-"},
    {"t_s": 0, "event": "evaluate", "cycle": 0, **COSTS},
    {"t_s": 1.5, "event": "align", "assigned": {"a": [0, 1]}, "sat_out": {"b": "away"}},
    {"t_s": 1.5, "event": "round", "load": [1.0, 2.0]},
    {"t_s": 2, "event": "energy", "cycle": 1, "per_device": {"a": JOULES, "b": JOULES}},
    {"t_s": 2, "event": "evaluate", "cycle": 1, **COSTS},
    {"t_s": 3, "event": "end", "cycles": 1, "late": True, "unsent_rounds": 0, "validation": {"accuracy": 0.5}, **COSTS},
]  # fmt: skip
COUNTS_LM = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [5, 5, 0, 0]])  # of 5 tokens with two picks each
CHOSEN: dict[str, Any] = {"experts": {"1": [3], "0": [0, 2]}, "shared_experts": False, "non_expert_modules": False}
TREE = {"a": torch.arange(6.0), "b": [1, (2, None)], "c": {("x", 1): {"y"}}, "version": "1"}


def ledger(path: Path) -> None:
    """What a run came to, and its last lines."""
    try:
        json.dumps(summary(path), allow_nan=False)
    finally:
        with contextlib.suppress(InputError):
            tail(path, "evaluate")


def _run(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "scenario.toml").write_text(small.scenario().to_toml())
        (folder / "runtime.jsonl").write_bytes(b'{"scenario_folder": "/data"}\n{"cycle": 1, "clock_s": 2.5}\n')
        return folder / name

    return make


def _ended(folder: Path) -> Path:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "scenario.toml").write_text(small.scenario().to_toml())
    (folder / "ledger.jsonl").write_bytes(on_lines(LEDGER))
    (folder / "model" / "config.json").write_text("{}")
    write_sums(folder, ("ledger.jsonl", "model/config.json", "scenario.toml"))
    return folder / "SHA256SUMS"


def _checkpoints(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        checkpoint.save(folder, 1, {**TREE, "b": "before"})
        checkpoint.save(folder, 2, TREE)
        return folder / "00000002" / name

    return make


def gone_on(path: Path) -> None:
    """The last checkpoint as it was written, or the one before it."""
    found = checkpoint.load(path.parent.parent)
    assert found is not None
    number, tree = found
    assert torch.equal(tree["a"], TREE["a"])  # type: ignore[arg-type]
    assert tree["b"] == ("before" if number == 1 else TREE["b"])


def compared(path: Path) -> None:
    """Experts that ESFT has chosen, beside our own."""
    found = read_choice(path)
    check_layers({"oslo": found}, [0, 1, 2])
    json.dumps(choice_report(found, COUNTS_LM, [0, 1, 2], frozenset({"expert:0"})), allow_nan=False)


def _adapters(folder: Path) -> Path:
    names = [f"expert:{m}/layers.0.mlp.experts.{name}_proj" for m in range(2) for name in ("gate", "up", "down")]
    save_file({name + end: torch.ones(2, 2) for name in names for end in (A, B)}, folder / "adapters.safetensors")
    return folder / "adapters.safetensors"


def adapters(path: Path) -> None:
    """Adapters as `fedexperts export` writes them for PEFT."""
    stored = Store({path: None})
    peft_adapter(parts_of({name: stored.tensor(name) for name in stored.shapes}), 2, 4.0)


BOUND = {
    **{scheme: {"published": 12.5, "corrected": None} for scheme in ("ems_fl", "sync")},
    "constants": {"grad_expert": 1.5, "grad_gate": 0.25},
}
JUDGED = {"models": [{"model": "law", "dense": True, "clusters": {"x": {"metric": "accuracy", "accuracy": 0.25}}}]}


def beside(path: Path) -> None:
    """What a report tells of dense models."""
    rows, told = dense_rows({"run": path.parent}, {"run": {"metric_by_cluster": {"x": "accuracy"}}})
    told.encode()  # as the page's bytes
    assert all(isinstance(score, float) for row in rows.values() for score in row.values())


RUNS = (
    Reader(
        "bound.json of a run",
        file("bound.json", as_json(BOUND)),
        lambda path: bound_section({"run": path.parent}).encode(),
        "json",
    ),
    Reader("eval.json of a run", file("eval.json", as_json(JUDGED)), beside, "json"),
    Reader("memory of a run", file("runtime.jsonl", b'{"peak_rss_B": 5e8}\n'), lambda path: peak_B(path.parent), "lines"),
    Reader("ledger", file("ledger.jsonl", on_lines(LEDGER)), ledger, "lines"),
    Reader("owners", file("owners.json", as_json({"assignment": {"x": [0], "y": ["1.3", "expert:4"]}})), read_owners, "json"),
    Reader("scenario of a run", _run("scenario.toml"), lambda path: scenario_of(path.parent), "toml"),
    Reader("runtime.jsonl", _run("runtime.jsonl"), lambda path: scenario_of(path.parent), "lines"),
    Reader("sums of a run", _ended, lambda path: what_lacks(path.parent)),
    Reader("state of a checkpoint", _checkpoints("state.json"), gone_on, "json", 0.5),
    Reader("tensors of a checkpoint", _checkpoints("tensors.safetensors"), gone_on, share=0.5),
    Reader("sums of a checkpoint", _checkpoints("SHA256SUMS"), gone_on, share=0.5),
    Reader("experts of ESFT", file("law.json", as_json(CHOSEN)), compared, "json"),
)

# ---- models


def _model(name: str) -> Callable[[Path], Path]:
    return lambda folder: text.saved(folder) / name


def _sharded(folder: Path) -> Path:
    return families.saved(families.plain("mixtral"), folder, "as published, sharded") / INDEX


def _classifier(folder: Path) -> Path:
    return families.saved(families.plain("mixtral"), folder) / "config.json"


def _two(folder: Path) -> Path:
    text.saved(folder / "base")
    shutil.copytree(folder / "base", folder / "other")
    return folder / "other" / "tokenizer.json"


def beside(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """What reads the folder that a file lies in."""
    return lambda path: read(path.parent)


def tokenized(folder: Path) -> None:
    """A tokenizer, and what it makes of a text."""
    found = load_tokenizer(folder)
    choice.encode([QUESTIONS[0]], found, Columns(), 16)


def inspected(path: Path) -> None:
    """What `fedexperts inspect` tells of a config."""
    model = named(str(path))
    json.dumps(describe(model, [0], Work(), Training(1)), allow_nan=False)


def weights(path: Path) -> None:
    """All tensors of a file."""
    store = Store({path: None})
    for name in store.shapes:
        store.tensor(name)


PROMPTS = b'["a", "b"]\n["c"]\n'
NAMED = {
    "moods": {"kind": "classification", "metric": "accuracy", "rows": [0, 1], "labels": ["bad", "good"], "text": "review"},
    "asked": {"kind": "multiple-choice", "prompt": "{question}", "options": ["A", "B"], "max_length": 9},
}


def tasks(path: Path) -> None:
    """Read tasks, and say what they are."""
    for task in read_tasks(path.parent).values():
        assert isinstance(task.answers(), str)


MODELS = (
    Reader(
        "config of a language model",
        _model("config.json"),
        beside(lambda f: View(load_full(f, AutoModelForCausalLM))),
        "json",
        0.4,
    ),
    Reader("config of a classifier", _classifier, beside(lambda f: View(load_full(f))), "json", 0.4),
    Reader("config inspected", file("config.json", as_json(small.CONFIG)), inspected, "json", 0.4),
    Reader("tokenizer.json", _model("tokenizer.json"), beside(tokenized), "json", 0.4),
    Reader("tokenizer_config.json", _model("tokenizer_config.json"), beside(tokenized), "json", 0.4),
    Reader("vocabularies", _two, lambda p: list(tokenizer_notes(p.parent.parent / "base", p.parent)), "json", 0.5),
    Reader("generation_config.json", _model("generation_config.json"), beside(lambda f: answers(f, f, ["a"], 1)), "json", 0.2),
    Reader("tasks.json", file("tasks.json", as_json(NAMED)), tasks, "json"),
    Reader("index of shards", _sharded, beside(Checkpoint), "json"),
    Reader("weights", _model(WEIGHTS), weights),
    Reader("weights loaded", lambda folder: _classifier(folder).with_name(WEIGHTS), beside(load_full), share=0.4),
    Reader("adapters", _adapters, adapters),
    Reader("prompts", file("prompts.jsonl", PROMPTS), lambda path: prompts_of(path, 2), "lines"),
)

# ---- peers

PEERS_TOML = """
run = "0123456789abcdef"
links = "links.toml"
[patience]
deadline_s = 1.5
channel_tolerance_s = 0.1
[[peer]]
client = 0
address = "127.0.0.1:7300"
[[peer]]
client = 1
address = "h:7301"
name = "n"
"""
LINKS_TOML = """
plan = "plan.json"
place = { 0 = "a", 1 = "b" }
begins = 1000.0
speed = 60.0
[default]
loss = 0.01
[[link]]
between = ["0", "1"]
rate_bps = 1e6
delay_s = 0.1
[[route]]
between = ["0", "1"]
listen = "127.0.0.1:7400"
to = "127.0.0.1:7301"
"""


def _peers(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "plan.json").write_text(plan_text(PLAN, "json"))
        (folder / "links.toml").write_text(LINKS_TOML)
        (folder / "peers.toml").write_text(PEERS_TOML)
        return folder / name

    return make


def linked(path: Path) -> None:
    """Links as a relay and a client take them."""
    links = Links(path)
    links.relays()
    if windows := links.windows("0", "1"):
        best({1: windows}, links.clock.now_s())


def message(path: Path) -> None:
    """A message; what is wrong with it is told to whoever sent it."""
    with contextlib.suppress(WireError):
        wire.decode(path.read_bytes(), {"a": (torch.float32, (None, 3)), "b": (torch.uint8, (None,))}, 100)


CHANGE = {"a": torch.ones(2, 3), "b": torch.tensor(2.0)}
UPLOAD = upload.pack(Update("a/0", Piece("gate", 1, {}), 2, 3, 4), CHANGE, "int8")


def uploaded(path: Path) -> None:
    """An upload of a node; so is what is wrong with it."""
    with contextlib.suppress(WireError):
        upload.opened(path.read_bytes(), {"gate": upload.promised(CHANGE, "int8")})


MESSAGE = wire.encode({"run": "x", "client": 1}, {"a": torch.ones(2, 3), "b": torch.ones(2, dtype=torch.uint8)})
PEERS = (
    Reader("peers.toml", _peers("peers.toml"), lambda path: Network(path, insecure=True), "toml"),
    Reader("links.toml", _peers("links.toml"), linked, "toml"),
    Reader("message between peers", file("message", MESSAGE), message),
    Reader("upload of a node", file("upload", UPLOAD), uploaded),
    Reader("certificate", file("ca.pem", pem(Authority.new("x", 1).certificate)), certificate_of),
)

# ---- scenarios

FULL = ("alignment-cifar10", "nmoe-fashion", "orbit")
"""Of these the values that nobody has written are changed, too."""

SCENARIOS = (
    *(Reader(f"network {name}", written(document), planned, "toml") for name, document in NETWORKS.items()),
    *(Reader(f"bounds of {name}", written(document), bounded, "toml", 0.4) for name, document in BOUNDED.items()),
    *(Reader(f"example {name}", example(name), prepared, "toml", 0.6) for name in EXAMPLES),
    *(Reader(f"in full {name}", example(name, in_full=True), prepared, "toml", 0.6) for name in FULL),
    Reader("tasks of eval", example("digits-small"), judged, "toml", 0.2),
)
READERS = {reader.name: reader for reader in (*CONTACT, *DATA, *RUNS, *MODELS, *PEERS, *SCENARIOS)}

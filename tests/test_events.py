"""The table of the ledger's events: what is written is in it, with these fields, and nothing else is; the page shows it."""

import json
import types
import typing
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import fedexperts.runs.run
import fingerprints
import pictures
import small
import text
import toy
from fedexperts import InputError, Scenario, run
from fedexperts.contact.plan import round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.events import EVENTS, FORMAT, Line
from fedexperts.ledger import Ledger, read, summary, tail
from fedexperts.lines import check, keys
from fedexperts.protocol.link import Link, Start
from fedexperts.protocol.sync import Sync
from fedexperts.values import Values
from scripts import loaded

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

FORMS = [(event, form) for event, forms in EVENTS.items() for form in forms]
NAMED = [f"{event} {form.__name__}" for event, form in FORMS]


def example(kind: Any) -> Any:
    """A value of a type, as JSON has it."""
    if isinstance(kind, type) and issubclass(kind, Values):
        return {field.alias or name: example(field.annotation) for name, field in kind.model_fields.items()}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [example(inner[0])] * 2
    if origin is dict:
        return {"a": example(inner[1])}
    if origin in (typing.Annotated, typing.Union, types.UnionType):
        return example(inner[0])
    if origin is typing.Literal:
        return inner[0]
    return {str: "a", int: 3, float: 0.5, bool: True}[kind]


def facts_of(form: type[Line]) -> dict[str, Any]:
    return {key: value for key, value in example(form).items() if key not in Line.model_fields}


@pytest.mark.parametrize(("event", "form"), FORMS, ids=NAMED)
def test_each_event_is_written_and_read_and_nothing_else(event: str, form: type[Line], tmp_path: Path) -> None:
    facts = facts_of(form) | ({"format": FORMAT} if event == "run" else {})
    least, most = keys(form)
    path = tmp_path / "ledger.jsonl"
    with closing(Ledger(path)) as ledger:
        ledger.write(event, 1.5, **facts)
        with pytest.raises(ValueError, match=f"event {event!r}: .*has another"):
            ledger.write(event, 2, **facts, another=1)
        for field in least:
            if event == "aggregate" and field == "version":
                continue  # without it a line has another of the forms
            with pytest.raises(ValueError, match=f"event {event!r}: .*lacks"):
                ledger.write(event, 2, **{key: value for key, value in facts.items() if key != field})
        ledger.write(event, 2.5, **{key: value for key, value in facts.items() if key in least})
    written = {"t_s": 1.5, "event": event, **facts}
    assert list(read(path)) == [written, {"t_s": 2.5, "event": event, **{k: v for k, v in facts.items() if k in least}}]
    assert set(facts) == most
    assert form.model_validate(written).model_dump(by_alias=True, exclude_unset=True) == written


def test_what_is_wrong_with_a_line_is_said() -> None:
    with pytest.raises(ValueError, match=r"^event 'trian': is not in fedexperts.events; add it to the table there$"):
        check("trian", {"cluster"})
    with pytest.raises(
        ValueError,
        match=r"^event 'trial': lacks tokens and has token; its fields are in docs/ledger.md \(fedexperts.events\); an",
    ):
        check("trial", {"cluster", "token", "uplink_B"})
    with pytest.raises(ValueError, match=r"^event 'refuse': lacks version;"):  # the nearest of its forms
        check("refuse", {"cluster", "part"})
    with pytest.raises(ValueError, match=r"^event 'aggregate': has clients;"):  # not two forms at once
        check("aggregate", {"cluster", "part", "digest", "version", "behind", "clients"})


WRITTEN = {
    "sync, faults": {"assignment", "contact", "lost", "flush"},
    "ems-fl, split again": {"trial", "split", "hand_over"},
    "ems-fl, adapters, refactor": {"train", "collect", "send", "aggregate"},
    "aligned, orbit": {"align", "round"},
    "networked, fedsc, rolling": {"privacy", "stage"},
    "networked, fedce, federated": {"evaluate", "energy", "end"},
    "networked, local": {"run"},
    "networked, faults": {"refuse"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("pictures")
    pictures.npz(base / "train.npz", 120)
    pictures.npz(base / "test.npz", 60, seed=1)
    return base


def check_lines(path: Path, least: set[str]) -> None:
    """Each line fits one form: its keys, its types, and the fields of all objects within."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["event"] for line in lines} >= least
    for line in lines:
        facts = line.keys() - {"t_s", "event"}
        (form,) = [form for form in EVENTS[line["event"]] if keys(form)[0] <= facts <= keys(form)[1]]
        assert form.model_validate(line).model_dump(by_alias=True, exclude_unset=True) == line


@pytest.mark.parametrize("name", WRITTEN)
def test_what_runs_write_is_in_the_table_with_these_fields(name: str, base: Path, tmp_path: Path) -> None:
    out = run(Scenario.parse(dict(fingerprints.scenarios())[name], base), tmp_path / "run").directory
    check_lines(out / "ledger.jsonl", WRITTEN[name])
    first = next(read(out / "ledger.jsonl"))
    assert (first["event"], first["format"]) == ("run", FORMAT)


def test_what_a_gate_on_its_round_writes_is_in_the_table(base: Path, tmp_path: Path) -> None:
    stages = {"extractor_cycles": 1, "expert_cycles": 1, "gate": "rolling", "gate_cycles": 3}
    document = fingerprints.merged(fingerprints.NETWORKED, {"networked": stages})
    check_lines(run(Scenario.parse(document, base), tmp_path / "run").directory / "ledger.jsonl", {"roll"})


def test_what_is_written_beside_text_is_in_the_table(tmp_path: Path) -> None:
    text.saved(tmp_path / "start")
    rows = [{"text": f"{word} {thing}", "label": word} for word in ("good", "bad") for thing in ("film", "day", "food", "song")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "name": "text",
        "protocol": "sync",
        "model": {"path": "start"},
        "task": {"text": "text", "metric": "f1"},
        "train": {"cycles": 1, "batch_size": 4},
        "cluster": [{"name": name, "data": "rows.jsonl", "test": "rows.jsonl"} for name in ("a", "b")],
    }
    check_lines(run(Scenario.parse(document, tmp_path), tmp_path / "run").directory / "ledger.jsonl", {"baselines"})


def test_what_going_on_with_other_rates_writes_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)

    def interrupt(line: dict[str, Any]) -> None:
        if line["event"] == "evaluate" and line["cycle"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small.scenario(protocol="sync"), tmp_path, listener=interrupt)
    other = small.scenario(protocol="sync", train={"lr_expert": 1e-4, "lr_gate": 1e-4})
    check_lines(run(other, tmp_path, resume=True).directory / "ledger.jsonl", {"rates"})


def test_what_is_written_of_numbers_that_are_not_finite_is_in_the_table(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0), toy.samples(0, float("inf"))], "b": [toy.samples(1, 4.0)]}
    play(tmp_path / "ledger.jsonl", Sync, data)
    check_lines(tmp_path / "ledger.jsonl", {"refuse"})


class Saying(Sync):
    """A protocol of one's own."""

    said: dict[str, dict[str, Any]] = {"mood": {"good": True}}  # noqa: RUF012  # set by the test

    async def contact(self, link: Link) -> None:
        for event, facts in self.said.items():
            link.log(event, **facts)
        await super().contact(link)


DATA = {"a": [toy.samples(0, 8.0)], "b": [toy.samples(1, 4.0)]}


def play(path: Path, protocol_class: type[Sync] = Saying, data: dict[str, list[dict[str, Tensor]]] = DATA) -> None:
    _, model, devices = toy.make(data)
    protocol, plan = (
        protocol_class(Start(model, ("a", "b"), frozenset({"head"}), {}, cycles=1)),
        round_robin(["a", "b"], 2, 1.0),
    )
    with closing(Ledger(path)) as ledger:
        Simulator(plan, toy.hosts(devices), Pace(1.0), 1, ledger, lambda model, cycle: {}).run(protocol)


def test_a_protocol_of_ones_own_may_write_other_events_but_not_others_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    play(path)
    assert [line for line in read(path) if line["event"] == "mood"] == [
        {"t_s": 0.0, "event": "mood", "cluster": "a", "good": True},
        {"t_s": 1.0, "event": "mood", "cluster": "b", "good": True},
    ]
    monkeypatch.setattr(Saying, "said", {"roll": {"held_loss": 0.5, "stalled": 1}})
    play(path)
    assert len([line for line in read(path) if line["event"] == "roll"]) == 2
    monkeypatch.setattr(Saying, "said", {"round": {"number": 1}})
    with pytest.raises(
        ValueError, match=r"event 'round': lacks cycle, load, usage and has number; .* of your own needs another name"
    ):
        play(path)


def first(path: Path, **facts: Any) -> Path:
    line = {"t_s": 0, "event": "run", **facts_of(EVENTS["run"][0]), **facts}
    end = {"t_s": 1, "event": "end", **facts_of(EVENTS["end"][0])}
    path.write_text(json.dumps(line) + "\n" + json.dumps(end) + "\n")
    return path


@pytest.mark.parametrize("reader", [summary, lambda path: list(read(path)), lambda path: tail(path, "end")])
def test_a_ledger_of_a_newer_format_is_refused_by_every_reader(reader: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first(path, format=FORMAT + 1, clusters="told in another way")
    newer = (
        rf"ledger.jsonl, line 1: written by a newer fedexperts \(format {FORMAT + 1}\); this one reads up to {FORMAT}; update"
    )
    with pytest.raises(InputError, match=newer):
        reader(path)
    for wrong in (0, -1, "2", 2.0, True, None, [2]):
        with pytest.raises(InputError, match=r"ledger.jsonl, line 1: format = .*: must be a whole number from 1 to"):
            reader(first(path, format=wrong))
    reader(first(path, format=FORMAT))


def test_the_page_is_made_from_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = loaded(Path(__file__).resolve().parent.parent / "docs" / "check.py", monkeypatch)
    assert module.made_faults() == []
    right = module.ledger_page.PAGE.read_text()
    assert all(f"\n## {event}\n" in right for event in EVENTS)
    (tmp_path / "ledger.md").write_text(right.replace("`rounds`", "`turns`"))
    for page in (tmp_path / "ledger.md", tmp_path / "none.md"):
        monkeypatch.setattr(module.ledger_page, "PAGE", page)
        assert module.made_faults() == ["docs/ledger.md: is not what the code says; run python docs/ledger_page.py"]

"""``fedexperts explain`` and docs/scenario.md: every key is told of, as it is declared, in every form that may be asked."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from fedexperts.cli.main import main
from fedexperts.contact.presets import PRESETS
from fedexperts.contact.radio import BOUNDS, Radio
from fedexperts.drive.classes import CLASSES
from fedexperts.events import EVENTS
from fedexperts.reference.index import find, overview
from fedexperts.reference.keys import full, names
from fedexperts.reference.topic import Topic
from fedexperts.reference.types import number
from fedexperts.scenario import Scenario
from fedexperts.tables import Evaluation, Train
from scripts import loaded

DOCS = Path(__file__).resolve().parents[2] / "docs"


def explained(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fedexperts", "explain", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(str(ended.value.code)), " ".join(out.split()), err


def inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from inner(one)


def declared(table: type[BaseModel] = Scenario, at: str = "") -> Iterator[str]:
    """Every key of every table, in full, from the declarations alone."""
    for name, field in table.model_fields.items():
        if name != "base":
            yield at + name
            for found in inner(field.annotation):
                yield from declared(found, f"{at}{name}.")


def told(topic: Topic) -> Iterator[Topic]:
    yield topic
    for one in (*topic.parts, *topic.choices):
        yield from told(one)


KEYS = list(declared())


def test_every_key_of_every_table_has_a_meaning_and_a_type() -> None:
    assert len(KEYS) > 150
    assert {"train.lr_expert", "cluster.tau", "model.lora.rank", "satellite.walker.total", "device.load", "seed"} <= set(KEYS)
    for key in KEYS:
        topic = find(key)
        assert topic.key == key
        assert topic.type
        assert topic.default
        assert topic.meaning.rstrip("}").endswith((".", ")", ":")) or topic.meaning.endswith("}."), (key, topic.meaning)
        assert topic.meaning[0] == topic.meaning[0].upper() or not topic.meaning[0].isascii() or topic.meaning[1] == ":", key


def test_the_radio_s_numbers_have_meanings_bounds_and_the_value_of_each_preset() -> None:
    parts = {topic.name: topic for topic in find("radio").parts}
    assert set(parts) == {"preset", *Radio.__dataclass_fields__}
    assert set(BOUNDS) == set(Radio.__dataclass_fields__)
    assert all(topic.meaning for topic in parts.values())
    assert parts["carrier_Hz"].default == "4e9 (paper, paper-range); 2e9 (s-band-handheld); 3e10 (ka-terminal)"
    assert parts["fixed_rate_bps"].default == "5e6 (paper); left out (paper-range, s-band-handheld, ka-terminal)"
    assert parts["implementation_efficiency"].type == "number, within (0, 1]"
    assert parts["margin_dB"].default == "0"
    assert parts["min_elevation_deg"].meaning == "θ_min of (14): below it the rate is 0."


def test_presets_and_classes_name_their_sources() -> None:
    presets = {topic.name: topic.meaning for topic in find("radio.preset").choices}
    assert list(presets) == list(PRESETS)
    assert presets["paper"].startswith("EMS-FL Sec. II-B and V-A.")
    assert "TR 38.821 Table 6.1.1.1-1 (set 1, LEO-600, Ka band" in presets["ka-terminal"]
    classes = {topic.name: topic for topic in find("device").choices}
    assert list(classes) == list(CLASSES)
    assert "Snapdragon 8 Gen 2" in classes["phone"].meaning
    assert "Iridium 9602" in classes["sensor-gateway"].meaning
    for topic in classes.values():
        assert topic.notes[0].startswith("Where the numbers come from; [E] marks an estimate.")
        assert topic.notes[1].startswith("LTE modem: In a USB dongle")
        assert topic.notes[-1].startswith("Capacity. Speeds are")
    numbers = {part.name: part.default for part in classes["phone"].parts}
    assert numbers["tx_power_W"] == "3.7"
    assert numbers["compute_J_per_FLOP"] == "2e-11"
    assert numbers["load"] == "left out"


def test_every_event_and_object_of_the_ledger_is_told_of() -> None:
    found = find("ledger")
    assert [topic.name for topic in found.parts] == list(EVENTS)
    assert {topic.name for topic in found.choices} >= {"Metrics", "Scores"}
    assert all(topic.meaning for topic in told(found))
    train = {topic.name: topic for topic in find("ledger.train").parts}
    assert list(train)[:3] == ["t_s", "event", "cluster"]
    assert train["phase"].type == '"connected" or "disconnected"'
    assert train["peer_B"].type == "whole number from 0, in some lines only"
    assert len(find("ledger.aggregate").choices) == len(EVENTS["aggregate"]) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["seed All chance of a run", "train Rounds and local training.", "ledger What ledger.jsonl says", "more of each"]),
        (["train"], ["[train] Rounds and local", "cycles Orbital cycles", "lr_expert Learning rate of experts", '"add" adds']),
        (["train.lr_expert"], ["Learning rate of experts, η^E. number from 1e-30 to 1e30; default 0.001"]),
        (["train.cycles"], ["whole number from 1 to 1e9; needed"]),
        (["train.batch_size"], ['whole number from 1 to 1e9 or "full"; default 32']),
        (["train.shared"], ['list of "gate", "backbone" or "head"; default ["gate"]']),
        (["seed"], ["whole number from 0 to below 2^63; default 0"]),
        (["name"], ["name of letters, digits, _, . and -; needed"]),
        (["plan.start"], ["time with a zone, as 2026-01-01T00:00:00Z; may be left out"]),
        (["plan.nodes"], ["table of whole numbers from 1 to below 2^63; may be left out"]),
        (["task.labels"], ["list of strings or whole numbers, 2 or more; may be left out"]),
        (["model"], ["[model]", "lora Experts are trained through low-rank adapters"]),
        (["model.lora.rank"], ["whole number from 1 to 2^20; needed"]),
        (["radio.preset"], ["radio.preset.paper EMS-FL Sec. II-B", "radio.preset.ka-terminal TR 38.821"]),
        (
            ["radio.carrier_Hz"],
            ["number, above 0; default 4e9 (paper, paper-range); 2e9 (s-band-handheld)"],
        ),
        (["device"], ["[device.<class>]", "tx_power_W Power of the whole device while it sends", "phone Radio as the modem"]),
        (["device.phone"], ["Snapdragon", "tx_power_W Power of the whole device", "default 3.7", "[E] marks an estimate"]),
        (["device.phone.memory_B"], ["default 2e9"]),
        (["device.mine.memory_B"], ["device.memory_B", "may be left out"]),
        (["cluster[1].data"], ["cluster.data Training data"]),
        (["cluster[0].task.kind"], ["task.kind", '"multiple-choice"']),
        (["ledger"], ["train Local rounds", "Metrics"]),
        (["ledger.train"], ["ledger.train Local rounds", "steps Gradient steps, summed over the devices. whole number from 0"]),
        (["ledger.aggregate"], ["One of 3 forms. EMS-FL and the", "ledger.aggregate.1", "ledger.aggregate.3", "behind"]),
        (["ledger"], ["refuse One of 4 forms. EMS-FL: an update that no version sent belongs to. Networked MoE: an extractor"]),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else "all",
)
def test_each_form(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = explained(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    for text in expected:
        assert text in out
    assert "`" not in out


@pytest.mark.parametrize("key", [None, "train", "train.lr_expert", "radio.preset", "device.phone", "ledger.aggregate"])
def test_json_is_one_object_with_the_same(
    key: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [] if key is None else [key]
    code, out, err = explained(*words, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    document = json.loads(out)
    topic = overview() if key is None else find(key)
    assert document["meaning"] == topic.meaning
    assert [part["key"] for part in document.get("parts", [])] == [part.key for part in topic.parts]
    assert [one["key"] for one in document.get("choices", [])] == [one.key for one in topic.choices]
    assert document.get("notes", []) == [note.replace("`", "") for note in topic.notes]
    if key == "train.lr_expert":
        meaning = "Learning rate of experts, η^E."
        assert document == {"key": key, "meaning": meaning, "type": "number from 1e-30 to 1e30", "default": "0.001"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("trian", "trian: unknown key; did you mean train? known are name, seed, protocol, plan,"),
        ("trian.lr_expert", "trian: unknown key; did you mean train?"),
        ("lr_expert", "lr_expert: is no table; did you mean train.lr_expert?"),
        ("patience", "patience: is no table; did you mean evaluation.patience or alignment.patience?"),
        ("lost", "lost: is no table; did you mean ledger.lost?"),
        ("round", "round: is no table; did you mean ledger.round?"),
        ("train.lr_exprt", "train.lr_exprt: unknown key; did you mean lr_expert? known are cycles, local_steps,"),
        ("train.cycles.x", "train.cycles.x: is not listed; train.cycles is a whole number from 1 to 1e9: Orbital cycles"),
        ("model.config.width", "model.config.width: is not listed; model.config is a table: What a config.json holds"),
        ("radio.carier_Hz", "radio.carier_Hz: unknown key; did you mean carrier_Hz? known are preset, carrier_Hz,"),
        ("device.fone", "device.fone: unknown key; did you mean phone?"),
        ("ledger.colect", "ledger.colect: unknown key; did you mean collect?"),
        ("base", "base: unknown key; known are name"),
        ("", "'': unknown key; known are name"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    key: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = explained(key, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err


def test_a_meaning_is_one_paragraph_however_its_source_is_broken() -> None:
    found = [topic for name in names() for topic in told(full(name))]
    assert len(found) > 150
    assert [topic.key for topic in found if "\n" in topic.meaning] == []


def test_an_unknown_class_of_devices_says_how_to_write_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = explained("device.kiosk", monkeypatch=monkeypatch, capsys=capsys)
    own = "a table of a scenario, [device.kiosk], with at least tx_power_W, rx_power_W, compute_J_per_FLOP, idle_power_W"
    assert own in " ".join(err.split())


def test_bounds_that_are_told_are_those_that_are_held() -> None:
    """Where a validator of our own stands before the type, it says the same."""
    for key, table, least, most in [
        ("batch_size", Train, 1, 10**9),
        ("seconds_per_round", Train, 0.001, 1e10),
        ("validation", Evaluation, 0, None),
    ]:
        given: dict[str, Any] = {"cycles": 1} if table is Train else {}
        for right in filter(lambda bound: bound is not None, (least, most)):
            table(**given, **{key: right})
            assert number(right) in find(f"{table.__name__.lower()}.{key}").type
        for wrong in (least - 0.1, 1 if most is None else most * 2):
            with pytest.raises(ValidationError):
                table(**given, **{key: wrong})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.0, "0"), (0.001, "0.001"), (1e-4, "1e-4"), (1e-30, "1e-30"), (0.7, "0.7"), (86400.0, "86400")),
        *((360e3, "3.6e5"), (10**9, "1e9"), (4.276020021, "4.27602"), (2**63, "2^63"), (2**20, "2^20"), (float("inf"), "inf")),
    ],
)
def test_numbers_are_written_as_by_hand(value: float, text: str) -> None:
    assert number(value) == text


def test_the_page_is_made_from_the_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = loaded(DOCS / "check.py", monkeypatch)
    assert module.made_faults() == []
    right = module.scenario_page.PAGE.read_text()
    for key in KEYS:
        name = key.rpartition(".")[2]
        assert f"\n| `{name}` | " in right or any(f"## {title}" in right for title in (f"[{key}]", f"[[{key}]]", f"[{key}."))
    assert "\n| `lr_expert` | number from 1e-30 to 1e30 | 0.001 | Learning rate of experts, η^E. |\n" in right
    (tmp_path / "scenario.md").write_text(right.replace("0.001", "0.01"))
    for page in (tmp_path / "scenario.md", tmp_path / "none.md"):
        monkeypatch.setattr(module.scenario_page, "PAGE", page)
        assert module.made_faults() == ["docs/scenario.md: is not what the code says; run python docs/scenario_page.py"]

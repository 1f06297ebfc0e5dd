"""The scenario: bad input is refused with the field's name and value, a good one survives a round trip."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

import small
from fedexperts.errors import InputError
from fedexperts.scenario import Scenario

TEXT = """
name = "three"
seed = 4
protocol = "ems-fl"

[model]
config = { model_type = "mixtral", hidden_size = 8 }

[train]
cycles = 3
lr_expert = 1e-2

[[cluster]]
name = "a"
devices = 2
data = "digits:plain"

[[cluster]]
name = "b"
devices = 1
data = "b.jsonl"
test = "t.jsonl"
partition = "by-label"
"""


def document(**changes: Any) -> dict[str, Any]:
    """The document above; a table is merged into what is there, anything else replaces it."""
    whole = tomllib.loads(TEXT)
    for key, value in changes.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    return whole


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in document().items() if k != key}


def cluster(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "a", "devices": 1, "data": "digits:plain", **changes}]


def fault(whole: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        Scenario.parse(whole)
    return str(error.value)


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(TEXT)
    return path


# ---- a good scenario


def test_a_file_is_read_as_written(file):
    scenario = Scenario.load(file)
    assert (scenario.name, scenario.seed, scenario.protocol) == ("three", 4, "ems-fl")
    assert (scenario.train.cycles, scenario.train.lr_expert) == (3, 0.01)
    assert [(c.name, c.devices, c.data, c.test, c.partition) for c in scenario.cluster] == [
        ("a", 2, "digits:plain", None, "iid"),
        ("b", 1, "b.jsonl", "t.jsonl", "by-label"),
    ]
    assert scenario.model.config == {"model_type": "mixtral", "hidden_size": 8}


def test_paths_are_relative_to_the_file(file):
    scenario = Scenario.load(file)
    assert scenario.file("b.jsonl") == file.parent.resolve() / "b.jsonl"
    assert scenario.file("/data/x") == Path("/data/x")


def test_the_shortest_scenario_names_model_cycles_and_one_cluster():
    scenario = Scenario.parse({"name": "x", "model": {"path": "m"}, "train": {"cycles": 1}, "cluster": cluster()})
    assert (scenario.seed, scenario.protocol, scenario.plan.kind) == (0, "ems-fl", "round-robin")
    assert scenario.train.shared == {"gate"}
    assert scenario.warmup is None


def test_whole_numbers_serve_as_real_ones():
    assert Scenario.parse(document(train={"lr_gate": 1})).train.lr_gate == 1.0


# ---- numbers out of range

OUT_OF_RANGE = [
    ("seed", {"seed": -1}, "seed = -1"),
    ("cycles 0", {"train": {"cycles": 0}}, "train.cycles = 0"),
    ("cycles -2", {"train": {"cycles": -2}}, "train.cycles = -2"),
    ("local_steps", {"train": {"local_steps": 0}}, "train.local_steps = 0"),
    ("batch_size 0", {"train": {"batch_size": 0}}, "train.batch_size = 0"),
    ("batch_size half", {"train": {"batch_size": "half"}}, "train.batch_size = 'half'"),
    ("lr_expert", {"train": {"lr_expert": 0.0}}, "train.lr_expert = 0.0"),
    ("lr_gate", {"train": {"lr_gate": -0.1}}, "train.lr_gate = -0.1"),
    ("lr inf", {"train": {"lr_gate": float("inf")}}, "train.lr_gate = inf"),
    ("lr nan", {"train": {"lr_gate": float("nan")}}, "train.lr_gate = nan"),
    ("weight_decay", {"train": {"weight_decay": -0.1}}, "train.weight_decay = -0.1"),
    ("weight_decay inf", {"train": {"weight_decay": float("inf")}}, "train.weight_decay = inf"),
    ("seconds_per_round", {"train": {"seconds_per_round": 0}}, "train.seconds_per_round = 0"),
    ("max_rounds", {"train": {"max_rounds": 0}}, "train.max_rounds = 0"),
    ("gate_tail_cycles", {"train": {"gate_tail_cycles": -1}}, "train.gate_tail_cycles = -1"),
    ("slot_s", {"plan": {"slot_s": 0.0}}, "plan.slot_s = 0.0"),
    ("idle_slots", {"plan": {"idle_slots": -1}}, "plan.idle_slots = -1"),
    ("noise_std", {"model": {"noise_std": -1.0}}, "model.noise_std = -1.0"),
    ("noise_std inf", {"model": {"noise_std": float("inf")}}, "model.noise_std = inf"),
    ("threshold", {"assignment": {"threshold": 1.5}}, "assignment.threshold = 1.5"),
    ("threshold negative", {"assignment": {"threshold": -0.5}}, "assignment.threshold = -0.5"),
    ("trial_samples", {"assignment": {"trial_samples": 0}}, "assignment.trial_samples = 0"),
    ("every_cycles", {"assignment": {"every_cycles": -1}}, "assignment.every_cycles = -1"),
    ("evaluation", {"evaluation": {"every_cycles": 0}}, "evaluation.every_cycles = 0"),
    ("target", {"evaluation": {"target": 85}}, "evaluation.target = 85"),
    ("warmup steps", {"warmup": {"data": ["digits:plain"], "steps": 0}}, "warmup.steps = 0"),
    ("warmup samples", {"warmup": {"data": ["digits:plain"], "samples": 0}}, "warmup.samples = 0"),
    ("warmup lr", {"warmup": {"data": ["digits:plain"], "lr": 0}}, "warmup.lr = 0"),
    ("gate_fit", {"warmup": {"data": ["digits:plain"], "gate_fit": -1}}, "warmup.gate_fit = -1"),
    ("gate_fit inf", {"warmup": {"data": ["digits:plain"], "gate_fit": float("inf")}}, "warmup.gate_fit = inf"),
    ("warmup data", {"warmup": {"data": []}}, "warmup.data = []"),
    ("devices", {"cluster": cluster(devices=0)}, "cluster[0].devices = 0"),
    ("devices negative", {"cluster": cluster(devices=-3)}, "cluster[0].devices = -3"),
    ("no cluster", {"cluster": []}, "cluster = []"),
]


@pytest.mark.parametrize(("change", "says"), [pytest.param(c, s, id=name) for name, c, s in OUT_OF_RANGE])
def test_a_number_out_of_range_is_refused_with_field_and_value(change, says):
    message = fault(document(**change))
    assert says in message
    assert len(message) > len(says) + 5  # and says what would be right


# ---- wrong kinds of values

WRONG_KIND = [
    ("protocol", {"protocol": "fedavg"}, "protocol = 'fedavg'", "ems-fl-enhanced"),
    ("plan kind", {"plan": {"kind": "sometimes"}}, "plan.kind = 'sometimes'", "'round-robin'"),
    ("optimizer", {"train": {"optimizer": "lion"}}, "train.optimizer = 'lion'", "'adamw'"),
    ("shared", {"train": {"shared": ["gate", "nose"]}}, "train.shared[1] = 'nose'", "'gate'"),
    ("partition", {"cluster": cluster(partition="random")}, "cluster[0].partition = 'random'", "'by-label'"),
    ("mask", {"model": {"mask": "off"}}, "model.mask = 'off'", "'zero'"),
    ("top1", {"model": {"top1": "hard"}}, "model.top1 = 'hard'", "'switch'"),
    ("order", {"assignment": {"order": "random"}}, "assignment.order = 'random'", "'literal'"),
    ("task", {"task": {"kind": "poetry"}}, "task.kind = 'poetry'", "'classification'"),
    ("text for a number", {"train": {"cycles": "3"}}, "train.cycles = '3'", "integer"),
    ("fraction for a whole", {"train": {"cycles": 2.5}}, "train.cycles = 2.5", "integer"),
    ("yes for a number", {"train": {"cycles": True}}, "train.cycles = True", "integer"),
    ("number for a name", {"name": 3}, "name = 3", "string"),
    ("text for a flag", {"assignment": {"repair": "yes"}}, "assignment.repair = 'yes'", "boolean"),
    ("number for a table", {"train": 3}, "train = 3", "must be a table of cycles, local_steps"),
    ("number for tables", {"device": 3}, "device = 3", "must be a table"),
    (
        "a class without its name",
        {"device": {"lora_rank": 3}},
        "device.lora_rank = 3",
        "say of which, as device.NAME.lora_rank",
    ),
    ("spaces in a name", {"name": "two words"}, "name = 'two words'", "pattern"),
    ("slash in a cluster's name", {"cluster": cluster(name="a/b")}, "cluster[0].name = 'a/b'", "pattern"),
    ("empty name", {"cluster": cluster(name="")}, "cluster[0].name = ''", "at least 1"),
]


@pytest.mark.parametrize(("change", "says", "bound"), [pytest.param(c, s, b, id=n) for n, c, s, b in WRONG_KIND])
def test_a_wrong_kind_of_value_is_refused_with_field_value_and_choice(change, says, bound):
    message = fault(document(**change))
    assert says in message
    assert bound in message


# ---- keys


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"sede": 1}, "sede"),
        ({"train": {"lr": 1}}, "train.lr"),
        ({"plan": {"slots": 1}}, "plan.slots"),
        ({"cluster": cluster(gadgets=3)}, "cluster[0].gadgets"),
        ({"antenna": {}}, "antenna"),
        ({"base": "elsewhere"}, "base"),
    ],
)
def test_an_unknown_key_is_refused_by_name(change, where):
    assert f"{where}: unknown key" in fault(document(**change))


@pytest.mark.parametrize("key", ["name", "model", "train", "cluster"])
def test_a_missing_table_is_named(key):
    assert f"{key}: is missing" in fault(without(key))


def test_missing_keys_within_tables_are_named():
    assert "train.cycles: is missing" in fault({**document(), "train": {}})
    assert "cluster[0].data: is missing" in fault(document(cluster=[{"name": "a", "devices": 1}]))


def test_all_faults_are_reported_at_once_one_per_line():
    message = fault(document(seed=-1, train={"cycles": 0}, sede=3))
    assert len(message.splitlines()) == 3
    assert all(name in message for name in ("seed = -1", "train.cycles = 0", "sede: unknown"))


# ---- what does not fit together


@pytest.mark.parametrize("model", [{}, {"path": "m", "config": {"model_type": "mixtral"}}])
def test_a_model_has_exactly_one_source(model):
    message = fault({**document(), "model": model})
    assert message.startswith("model:")
    assert "path" in message
    assert "config" in message


@pytest.mark.parametrize("plan", [{"kind": "file"}, {"kind": "round-robin", "path": "p.json"}, {"path": "p.json"}])
def test_a_plan_file_and_its_kind_go_together(plan):
    message = fault(document(plan=plan))
    assert message.startswith("plan:")
    assert "path" in message


def test_cluster_names_are_unique():
    message = fault(document(cluster=cluster() + cluster(name="b") + cluster(devices=3)))
    assert "name = a" in message
    assert "twice" in message


@pytest.mark.parametrize("tail", [3, 5])
def test_an_enhanced_run_needs_a_cycle_before_its_gate_tail(tail):
    message = fault(document(protocol="ems-fl-enhanced", train={"gate_tail_cycles": tail}))
    assert f"train.gate_tail_cycles = {tail}" in message
    assert "train.cycles = 3" in message


def test_a_tail_below_the_cycles_is_fine_and_only_the_enhanced_protocol_cares():
    enhanced = Scenario.parse(document(protocol="ems-fl-enhanced", train={"gate_tail_cycles": 2}))
    assert enhanced.train.gate_tail_cycles == 2
    assert Scenario.parse(document(protocol="sync", train={"gate_tail_cycles": 9})).protocol == "sync"


# ---- files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.toml: cannot be read \(No such file"):
        Scenario.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("content", [b"name = ", b"{}", b"a = 1\na = 2", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    (tmp_path / "broken.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.toml.*: is not (TOML|UTF-8)"):
        Scenario.load(tmp_path / "broken.toml")


# ---- overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.cycles=7", lambda s: s.train.cycles == 7),
        ("train.lr_expert=3e-4", lambda s: s.train.lr_expert == 3e-4),
        ("protocol=sync", lambda s: s.protocol == "sync"),
        ('protocol="sync"', lambda s: s.protocol == "sync"),
        (" train.cycles = 7 ", lambda s: s.train.cycles == 7),
        ('train.shared=["gate", "head"]', lambda s: s.train.shared == {"gate", "head"}),
        ("assignment.repair=false", lambda s: s.assignment.repair is False),
        ("plan.idle_slots=2", lambda s: s.plan.idle_slots == 2),
        ("model.config.hidden_size=16", lambda s: s.model.config == {"model_type": "mixtral", "hidden_size": 16}),
        ('warmup={data=["digits:plain"]}', lambda s: s.warmup.data == ("digits:plain",)),
    ],
)
def test_an_override_sets_one_value(file, override, value):
    scenario = Scenario.load(file, [override])
    assert value(scenario)
    assert scenario.name == "three"


def test_the_last_override_counts(file):
    assert Scenario.load(file, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["train.cycles", "=3", "", "  =1"])
def test_an_override_without_key_or_value_is_refused(file, override):
    with pytest.raises(InputError, match=r"--set .*must look like section\.key=value"):
        Scenario.load(file, [override])


def test_an_override_below_something_that_is_no_table_is_refused(file):
    with pytest.raises(InputError, match=r"--set name\.first=x: name is not a table"):
        Scenario.load(file, ["name.first=x"])


def test_one_of_several_tables_is_changed_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(document()))
    names = [cluster.name for cluster in Scenario.load(path).cluster]
    changed = Scenario.load(path, ["cluster.1.devices=7"])
    assert [cluster.name for cluster in changed.cluster] == names
    assert changed.cluster[1].devices == 7
    for wrong in ("cluster.9.devices=7", "cluster.lisbon.devices=7", "cluster.devices=7"):
        with pytest.raises(InputError, match=r"several .*tables; name one by its number, 0 to 1, as cluster\.0\.devices=2"):
            Scenario.load(path, [wrong])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.cycles=none", "train.cycles = 'none'"),
        ("train.cycles=0", "train.cycles = 0"),
        ("train.cycle=3", "train.cycle: unknown key"),
        ("trian.cycles=3", "trian: unknown key"),
        ("train.cycles=", "train.cycles = ''"),
    ],
)
def test_an_override_is_checked_like_the_file(file, override, says):
    with pytest.raises(InputError) as error:
        Scenario.load(file, [override])
    assert says in str(error.value)


# ---- copies and round trips


def test_changed_merges_tables_and_keeps_the_rest():
    scenario = Scenario.parse(document(), Path("/somewhere"))
    other = scenario.changed(seed=9, train={"cycles": 5})
    assert (other.seed, other.train.cycles, other.train.lr_expert, other.base) == (9, 5, 0.01, Path("/somewhere"))
    assert (scenario.seed, scenario.train.cycles) == (4, 3)
    assert other.cluster == scenario.cluster


def test_changed_without_changes_is_equal():
    scenario = Scenario.parse(document(warmup={"data": ["digits:plain"]}, train={"shared": ["gate", "head"]}))
    assert scenario.changed() == scenario


def test_changed_is_checked():
    with pytest.raises(InputError, match=r"train\.cycles = 0"):
        Scenario.parse(document()).changed(train={"cycles": 0})


def test_a_scenario_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Scenario.parse(document()).train.cycles = 5


def test_toml_has_every_default_filled_in():
    filled = tomllib.loads(Scenario.parse(document()).to_toml())
    assert filled["train"]["optimizer"] == "adamw"
    assert filled["plan"].items() >= {"kind": "round-robin", "slot_s": 60.0, "idle_slots": 0}.items()
    assert filled["train"]["shared"] == ["gate"]
    assert "base" not in filled


def test_toml_is_the_same_for_the_same_scenario_however_sets_are_ordered():
    a = Scenario.parse(document(train={"shared": ["gate", "head", "backbone"]}))
    b = Scenario.parse(document(train={"shared": ["head", "backbone", "gate"]}))
    assert a.to_toml() == b.to_toml()
    assert tomllib.loads(a.to_toml())["train"]["shared"] == ["backbone", "gate", "head"]


@st.composite
def documents(draw) -> dict[str, Any]:
    rate = st.floats(1e-6, 10)
    names = draw(st.lists(st.from_regex(r"[A-Za-z0-9_.\-]{1,8}", fullmatch=True), min_size=1, max_size=4, unique=True))
    whole: dict[str, Any] = {
        "name": "x",
        "seed": draw(st.integers(0, 2**31)),
        "protocol": draw(st.sampled_from(["sync", "ems-fl", "ems-fl-enhanced"])),
        "model": draw(st.sampled_from([{"path": "a/b"}, {"config": {"model_type": "mixtral", "x": [1, 2.5, "z"]}}])),
        "train": {
            "cycles": draw(st.integers(2, 50)),
            "batch_size": draw(st.sampled_from(["full", 1, 64])),
            "lr_expert": draw(rate),
            "shared": draw(st.lists(st.sampled_from(["gate", "backbone", "head"]), unique=True)),
        },
        "cluster": [{"name": name, "devices": draw(st.integers(1, 9)), "data": draw(st.text(max_size=5))} for name in names],
    }
    if draw(st.booleans()):
        whole["warmup"] = {"data": ["digits:plain", "ä\n\"x'.jsonl"], "gate_fit": draw(st.floats(0, 5))}
    if draw(st.booleans()):
        whole["assignment"] = {"threshold": draw(st.floats(0, 1)), "order": "literal"}
    return whole


@settings(deadline=None, max_examples=60)
@given(documents())
def test_a_scenario_survives_its_toml(whole):
    scenario = Scenario.parse(whole)
    text = scenario.to_toml()
    again = Scenario.parse(tomllib.loads(text))
    assert again == scenario
    assert again.to_toml() == text


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"task": {"metric": "mathews"}}, "task.metric = 'mathews': input should be .*; did you mean 'matthews'?"),
        ({"trian": {"cycles": 3}}, "trian: unknown key; did you mean train? known are name, seed, plan, satellite"),
        ({"train": {"cycels": 3}}, "train.cycels: unknown key; did you mean cycles? known are cycles, local_steps"),
        (
            {"model": {"config": {}, "lora": {"rnk": 4, "alpha": 1.0, "rank": 2}}},
            "model.lora.rnk: unknown key; did you mean rank?",
        ),
        ({"cluster": [{"name": "a", "devces": 3}]}, r"cluster\[0\].devces: unknown key; did you mean devices? known are name,"),
        ({"satellite": {"altitude": 3}}, "satellite.*altitude: unknown key; did you mean altitude_km?"),
        (
            {"device": {"phone": {"flops": 1.0}}},
            "device.phone.flops: unknown key; did you mean flops_per_s? known are tx_",
        ),
        ({"train": {"lr": 1.0}}, "train.lr: unknown key; did you mean lr_expert or lr_gate? known are cycles,"),
        ({"train": {"size": 1.0}}, "train.size: unknown key; did you mean batch_size?"),
        ({"faults": {"zzz": 1.0}}, "faults.zzz: unknown key; known are drop, corrupt, early_close"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unknown_key_names_the_nearest_and_all_that_are_known(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        Scenario.parse({**small.document(), **table})

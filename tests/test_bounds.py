"""Sizes that a typing error makes: refused by field, value and bound before any work, and what a user may want is not."""

from __future__ import annotations

import gc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

import small
import text
from example_scenarios import ORBIT, example, planned
from fedexperts import run
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.data.digits import load
from fedexperts.errors import InputError
from fedexperts.method.methods import prepare
from fedexperts.moe.auto import new_model
from fedexperts.moe.checkpoint import resolve
from fedexperts.moe.lora import A, B
from fedexperts.moe.meta import meta_view, read_config
from fedexperts.moe.peft import parts_of, peft_adapter
from fedexperts.moe.tokenizer import load_tokenizer
from fedexperts.scenario import Network, Scenario
from fedexperts.setup.clients import client_plan, clients, device_classes
from fedexperts.setup.plan import network_plan, orbit
from fedexperts.tables import MOST
from fedexperts.train.task import Task
from plans import planned_B

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

START = datetime(2026, 1, 1, tzinfo=UTC)
COUNTED = {
    "train": ("cycles", "local_steps", "batch_size", "max_rounds", "gate_tail_cycles"),
    "assignment": ("trial_samples", "every_cycles"),
    "alignment": ("patience", "max_experts", "min_load", "max_load", "appraisal_samples"),
    "networked": ("extractor_cycles", "expert_cycles", "gate_cycles", "gate_top_k", "gate_patience", "correlation_samples"),
    "evaluation": ("every_cycles", "patience"),
}


@pytest.mark.parametrize("number", [MOST + 1, 2**63 - 1, 10**400, 10**5000], ids=["most", "2^63", "400 digits", "5000 digits"])
@pytest.mark.parametrize(("table", "field"), [(table, field) for table, fields in COUNTED.items() for field in fields])
def test_what_is_counted_has_a_bound(table: str, field: str, number: int) -> None:
    with pytest.raises(InputError, match=rf"{table}\.{field} = [\w.]+: .*(1000000000|1,000,000,000)") as raised:
        small.scenario(**{table: {field: number}})
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("field", ["devices", "samples", "test_samples", "from_cycle", "until_cycle"])
def test_what_is_counted_of_a_cluster_has_a_bound(field: str) -> None:
    with pytest.raises(InputError, match=rf"cluster\[0\]\.{field} = \d+: input should be less than or equal to 1000000000"):
        small.scenario(cluster=[{"name": "a", "data": "digits:plain", field: 10**12}])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"train": {"seconds_per_round": 10**400}}, r"train\.seconds_per_round = \d+\.\.\.: must be from 0\.001 to 1e\+10"),
        ({"train": {"seconds_per_round": 1e-300}}, r"train\.seconds_per_round = 1e-300: must be from 0\.001"),
        ({"train": {"cache_MB": 1e308}}, r"train\.cache_MB = 1e\+308: input should be less than or equal to 1000000000"),
        ({"train": {"lr_expert": -1.0}}, r"train\.lr_expert = -1\.0: input should be greater than or equal to 1e-30$"),
        ({"train": {"lr_expert": 1e300}}, r"train\.lr_expert = 1e\+300: input should be less than or equal to 1e\+30"),
        ({"device": {"phone": {"tx_power_W": 1e308}}}, r"device\.phone\.tx_power_W = 1e\+308: input should be less than"),
        ({"device": {"phone": {"flops_per_s": 5e-324}}}, r"device\.phone\.flops_per_s = 5e-324: input should be greater than"),
        ({"model": {"lora": {"rank": 2**21, "alpha": 1.0}}}, r"model\.lora\.rank = 2097152: input should be less than"),
        ({"networked": {"prior": [1e308, 1e308]}}, r"networked\.prior\.\[0\] = 1e\+308|networked\.prior\[0\] = 1e\+308"),
    ],
)
def test_numbers_whose_products_would_overflow(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small.scenario(**tables)


@pytest.mark.parametrize("digits", ["0x" + "f" * 5000, "9" * 5000, "9223372036854775808", "-9223372036854775809"])
def test_whole_numbers_that_toml_does_not_have(digits: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(small.document()).replace("seed = 3", f"seed = {digits}"))
    said = r"(\(a whole number of thousands of digits\)|seed = [-\w.]+: must be a whole number of 64 bits)"
    with pytest.raises(InputError, match=r"s\.toml: .*" + said):
        Scenario.load(path)
    path.write_text(tomli_w.dumps(small.document()))
    with pytest.raises(InputError, match=r"--set.*" + said):
        Scenario.load(path, [f"seed={digits}"])


def test_brackets_without_end_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document()))
    with pytest.raises(InputError, match=r"--set.*(is no value|nested deeper)"):
        Scenario.load(tmp_path / "s.toml", ["seed=" + "[" * 5000 + "]" * 5000])


def test_steps_without_end() -> None:
    wanted = small.scenario(train={"seconds_per_round": 0.01, "cycles": 10_000}, plan={"kind": "always-on", "slot_s": 1e5})
    with pytest.raises(
        InputError, match=r"train\.seconds_per_round = 0\.01: 1e\+09 s .* 4e\+14 gradient steps; at most 1e\+12: take"
    ):
        prepare(wanted.changed(train={"local_steps": 1000}))
    prepare(wanted.changed(train={"local_steps": 1000, "max_rounds": 10}))


def test_what_a_user_may_want_is_not_refused() -> None:
    """A year of hourly rounds of ten thousand devices, and a year of one satellite over them."""
    devices = 10_000
    year = small.scenario(
        protocol="sync",
        train={"cycles": 8760, "local_steps": 10, "seconds_per_round": 600.0},
        plan={"kind": "always-on", "slot_s": 3600.0},
        cluster=[{"name": "a", "devices": devices, "data": "digits:plain"}],
    )
    assert len(network_plan(year, year.train.cycles).contacts) == 8760
    plan = orbit(Network.parse({**ORBIT, "plan": {**ORBIT["plan"], "days": 365.0}})).plan()
    assert len(plan.contacts) > 1000


def test_contacts_of_clients_are_counted_before_they_are_made() -> None:
    cluster = [{"name": "a", "devices": 1000, "data": "digits:plain"}]
    given = small.scenario(protocol="aligned", cluster=cluster)
    plan = ContactPlan(("a",), tuple(Contact("a", 10.0 * k, 10.0 * k + 5) for k in range(201)), 3e4)
    group = clients(given, device_classes(given))
    with pytest.raises(InputError, match=r"protocol = .aligned.: .* 201,000 in all; at most 200,000: take fewer devices"):
        client_plan(plan, group, given)


def test_shells_are_counted_together() -> None:
    shell = {"total": 60_000, "planes": 100, "altitude_km": 600.0, "inclination_deg": 53.0}
    satellites = [{"name": name, "walker": shell} for name in ("a", "b")]
    with pytest.raises(InputError, match=r"satellite\.walker: the shells have 120,000 satellites together; at most 100,000"):
        orbit(Network.parse({**ORBIT, "satellite": satellites}))


def test_any_seed_splits_the_digits() -> None:
    for seed in (2**32 - 1, 2**32, 2**63 - 1):
        assert len(load("plain", seed)[0]["labels"])


def test_measuring_activations_keeps_none_of_them() -> None:
    device = small.devices(prepare(small.scenario()))["plain"][0]

    def held() -> int:
        assert device.activations_B(Task(frozenset({"expert:0", "gate"}))) > 0
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert held() == held()


# ---- models


@pytest.mark.parametrize("name", ["nmoe-cifar10", "nmoe-fashion", "alignment-cifar10", "digits-small"])
def test_the_plan_of_an_example_knows_its_upload(name: str, tmp_path: Path) -> None:
    planned(example(name)(tmp_path))


def test_a_config_of_our_own_encoder_is_a_classifier() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert meta_view({"model_type": "bert_moe", "num_experts": 2, "num_experts_per_tok": 1, **sizes}).experts == 2


@pytest.mark.parametrize("config", [{}, {"a": 1}])
def test_a_config_without_model_type_is_refused_by_plan(config: dict[str, Any]) -> None:
    given = small.document()
    given["model"] = {"config": config}
    network = Network.parse(given)
    assert network.model is not None
    with pytest.raises(InputError, match=r"model_type = None: transformers .* has no such model"):
        planned_B(network)


@pytest.mark.parametrize("path", ["a\0b", "a" * 300, "x/" * 3000])
def test_what_is_no_path_is_no_model(path: str) -> None:
    with pytest.raises(InputError, match=r"model\.path = '"):
        resolve(path, Path())
    with pytest.raises(InputError, match=r"no such file or folder|cannot be read|no config\.json"):
        read_config(path)


def test_a_model_that_fits_once_and_not_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    size_B = 4 * sum(tensor.numel() for tensor in new_model(small.CONFIG, 0).parameters())
    monkeypatch.setattr("fedexperts.moe.config.machine_B", lambda: int(1.5 * size_B))
    with pytest.raises(InputError, match=r"this machine has .* GB, and a run holds them 2 times; take a smaller model"):
        new_model(small.CONFIG, 0)


def test_labels_in_a_config_are_those_of_the_tasks() -> None:
    names = {"0": "a", "1": "b", "2": "c"}
    config = {key: value for key, value in small.CONFIG.items() if key != "num_labels"}
    with pytest.raises(InputError, match=r"model\.config: id2label = .*: the tasks have 2 labels; leave it out"):
        new_model({**config, "id2label": names}, 0, outputs=2)
    with pytest.raises(InputError, match=r"model\.config: num_labels = 3: the tasks have 2 labels; leave it out"):
        new_model({**config, "num_labels": 3}, 0, outputs=2)
    assert new_model({**config, "id2label": names}, 0, outputs=3).config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_classifier_without_padding_is_judged_by_the_mask(tmp_path: Path) -> None:
    """Where no sequence is padded it learns what one with a padding token learns."""
    given = small.document(train={"cycles": 1})
    padded = run(Scenario.parse(given), tmp_path / "padded").summary
    given["model"] = {"config": {key: value for key, value in small.CONFIG.items() if key != "pad_token_id"}}
    assert run(Scenario.parse(given), tmp_path / "none").summary["history"] == padded["history"]


def test_a_warm_up_for_some_clusters_alone(tmp_path: Path) -> None:
    text.saved(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text("".join(f'{{"t": "word {i}", "label": {i % 2}}}\n' for i in range(20)))
    cluster = [{"name": n, "data": "a.jsonl", "test": "a.jsonl", "task": {"text": "t"}} for n in ("x", "y", "z")]
    given = small.document(cluster=cluster, warmup={"data": ["a.jsonl", "a.jsonl"]}, evaluation={"validation": 0.2})
    given["model"] = {"path": "model"}
    with pytest.raises(InputError, match=r"warmup\.data: has 2 entries for 3 clusters, and \[task\] names no column of text"):
        prepare(Scenario.parse(given, tmp_path))
    given["warmup"] = {"data": ["a.jsonl"] * 3}
    prepare(Scenario.parse(given, tmp_path))


# ---- files of models


def test_brackets_in_a_tokenizer_are_counted_before_it_is_parsed(tmp_path: Path) -> None:
    text.tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    right = path.read_text()
    for deep in ("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000):
        path.write_text(right.replace('"truncation": null', f'"truncation": {deep}'))
        assert path.read_text() != right
        with pytest.raises(InputError, match=r"tokenizer\.json', line \d+: is nested deeper than 64 levels"):
            load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text.tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr("fedexperts.moe.tokenizer.TOKENIZER_B", 1000)
    with pytest.raises(InputError, match=r"tokenizer\.json': is larger than 1,000 bytes"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_whose_length_is_no_number(tmp_path: Path) -> None:
    text.tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(
        path.read_text().replace("{", '{"model_max_length": {"a": [3]},', 1).replace('"model_max_length": 1', '"x": 1')
    )
    with pytest.raises(InputError, match=r"tokenizer_config\.json: model_max_length = .*: must be a number; correct it"):
        load_tokenizer(tmp_path)


def factors(rank: int = 2) -> dict[str, torch.Tensor]:
    names = [f"expert:{m}/layers.0.mlp.experts.{name}_proj" for m in range(2) for name in ("gate", "up", "down")]
    return {name + end: torch.ones(shape) for name in names for end, shape in ((A, (rank, 3)), (B, (3, rank)))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert:1/layers.0.mlp.experts.up_proj" + B: None}, r"expert:1/.*up_proj: must have two factors of rank 2"),
        ({"expert:1/layers.0.mlp.experts.up_proj" + B: torch.ones(3)}, r"must have two factors of rank 2"),
        ({"expert:1/layers.0.mlp.experts.up_proj" + A: torch.ones(4, 3)}, r"must have two factors of rank 2"),
        ({"expert:1/layers.0.mlp.experts.up_proj" + A: torch.ones(2, 5)}, r"has another shape than other experts"),
        ({"expert:99999999/layers.0.mlp.experts.up_proj" + A: torch.ones(2, 3)}, r"is not called <part>/<name>"),
        ({"expert:x/layers.0.mlp.experts.up_proj" + A: torch.ones(2, 3)}, r"is not called <part>/<name>"),
        ({"expert:": torch.ones(2, 3)}, r"is not called <part>/<name>"),
        ({"": torch.ones(2, 3)}, r"is not called <part>/<name>"),
    ],
)
def test_a_damaged_file_of_adapters(change: dict[str, torch.Tensor | None], message: str) -> None:
    config, _ = peft_adapter(parts_of(factors()), 2, 4.0)
    assert config["r"] == 4
    tensors = {name: tensor for name, tensor in {**factors(), **change}.items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        peft_adapter(parts_of(tensors), 2, 4.0)


def test_a_head_and_experts_of_single_layers_are_parts_of_adapters() -> None:
    assert set(parts_of({"head/score.weight": torch.ones(1), "gate/a": torch.ones(1), "expert:3.1/x": torch.ones(1)})) == {
        "head",
        "gate",
        "expert:3.1",
    }

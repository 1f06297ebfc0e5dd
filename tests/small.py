"""A scenario that runs in about a second: real digits, a tiny Mixtral."""

from typing import Any

from fedexperts import Scenario
from fedexperts.data.digits import DOMAINS, VOCABULARY
from fedexperts.setup.prepare import Prepared
from fedexperts.train.device import Device
from fedexperts.train.host import LocalHost

CONFIG: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_labels": 10,
    "pad_token_id": VOCABULARY - 1,
    "max_position_embeddings": 64,
}


def document(**tables: Any) -> dict[str, Any]:
    """The scenario as plain data; tables given here are merged into it."""
    base: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "protocol": "ems-fl",
        "model": {"config": CONFIG},
        "train": {"cycles": 3, "local_steps": 2, "batch_size": 8, "lr_expert": 3e-3, "lr_gate": 3e-3},
        "assignment": {"trial_samples": 8},
        "evaluation": {"target": 0.5},
        "cluster": [{"name": name, "devices": 2, "data": f"digits:{name}"} for name in DOMAINS[:2]],
    }
    for key, value in tables.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return base


def scenario(**tables: Any) -> Scenario:
    """The checked scenario."""
    return Scenario.parse(document(**tables))


def devices(prepared: Prepared) -> dict[str, list[Device]]:
    """The devices of a prepared scenario, which are all in this process."""
    found = {}
    for name, host in prepared.hosts.items():
        assert isinstance(host, LocalHost)
        found[name] = list(host.group.values())
    return found

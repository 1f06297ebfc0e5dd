"""Networked MoE: clients joined to a network, what the server is told, what is stated of privacy, and the network judged.

Shapes: T images of a client, D numbers of a latent, E experts, K picks, L labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.metrics import macro_auc, macro_f1, over_clients
from ..data.source import Samples
from ..errors import InputError
from ..ledger import Ledger
from ..moe.parts import BACKBONE, Piece, expert, is_expert
from ..moe.resnet import NetworkedMoEForImageClassification, all_latents, log_mixture, opinions
from ..protocol.link import ServerProtocol, Start
from ..protocol.networked import Networked, Stages
from ..scenario import Scenario
from ..setup.clients import clients, device_classes
from ..setup.devices import Judges
from ..setup.prepare import Prepared
from ..setup.prepare import prepare as prepare_devices
from ..train.gating import random_picks
from ..train.member import NetworkClient, call_B
from ..train.privacy import guarantee
from . import told
from .ladder import ladders
from .method import Beginning, Method

CLIENT_FIELDS = ("norm", "sigma", "correlation_samples", "balance", "gate_top_k", "gate_lr", "expert_cache")


def prepare(scenario: Scenario, only: str | None = None) -> Prepared:
    """Clients of a network: each has its expert, by its place among all, and answers for it.

    Raises:
        InputError: as `setup.prepare.prepare`; the model is of another kind, has not one expert for each client, or picks more
            experts than there are; noise is asked for, and the accountant is not installed.
    """
    prepared = prepare_devices(scenario, by_client=True, even=True, only=only)
    group = [client.name for client in clients(scenario, device_classes(scenario))]
    _check(prepared, len(group))
    if shares_matrices(scenario):
        privacy_facts(scenario)  # refuses where there is no accountant
    table = scenario.networked
    for name, host in prepared.hosts.items():
        own = 0 if table.control == "fedavg" else group.index(name)
        given = {field: getattr(table, field) for field in CLIENT_FIELDS}
        host.join(NetworkClient(own, home_share=table.share, **given))
        if table.control is None:
            prepared.homes.experts[expert(own)] = name
    if table.control == "local" and scenario.model.path is None:
        start_alike(prepared)
    return prepared


def start_alike(prepared: Prepared) -> None:
    """All experts begin as the first: what is averaged once (`install_average`) must come from one initialisation."""
    first = list(prepared.view.export(expert(0)).values())
    for part in filter(is_expert, prepared.view.parts):
        tensors = dict(zip(prepared.view.parts[part], first, strict=True))
        prepared.view.install(part, tensors)
        prepared.model[part] = Piece(part, 0, tensors)
    for host in prepared.hosts.values():
        host.begin(prepared.model)


def _check(prepared: Prepared, clients: int) -> None:
    """Raises: InputError."""
    table, view = prepared.scenario.networked, prepared.view
    if not isinstance(view.model, NetworkedMoEForImageClassification):
        raise InputError(
            f'protocol = "networked": needs a model of model_type "networked_moe" with an extractor, not '
            f"{type(view.model).__name__}; set model.config or another model.path"
        )
    told.check_experts(prepared.scenario, view.experts, clients)
    for name, k in (("networked.gate_top_k", table.gate_top_k), ("model.config.num_experts_per_tok", view.top_k)):
        if k is not None and k > view.experts and table.control is None:
            raise InputError(f"{name} = {k}: must be at most the number of clients, {view.experts}; each has one expert")
    if table.prior is not None and (len(table.prior) != clients or not sum(table.prior) > 0):
        raise InputError(
            f"networked.prior = {list(table.prior)}: must be {clients} weights, one for each client, and not all 0"
        )


def stages(prepared: Prepared) -> Stages:
    """What the server is told of the scenario and its clients."""
    config: Any = prepared.view.model.config
    samples = {name: sum(host.samples) for name, host in prepared.hosts.items()}
    return told.stages(prepared.scenario, samples, int(config.representation_size), int(config.latent_size))


SIMULATED = "The noise of a simulated run comes from the scenario's seed: it shows what noise costs, and hides nothing."


def shares_matrices(scenario: Scenario) -> bool:
    """Whether clients share correlation matrices in a run."""
    table = scenario.networked
    return table.extractor == "fedsc" and table.control is None and table.extractor_cycles > 0


def privacy_facts(scenario: Scenario) -> dict[str, Any]:
    """(ε, δ) of all shared correlation matrices of the run; without noise there is no such guarantee.

    Raises:
        InputError: noise is asked for, and the accountant is not installed.
    """
    table = scenario.networked
    if table.sigma == 0:
        return {"sigma": 0.0, "epsilon": None, "note": "no noise on the shared correlation matrices, so no (ε, δ)"}
    found = guarantee(table.sigma, table.extractor_cycles, table.delta)
    return {"sigma": table.sigma, "epsilon": round(found.epsilon, 6), "delta": found.delta, "note": f"{found} {SIMULATED}"}


def inference_facts(prepared: Prepared, judges: Judges) -> dict[str, Any]:
    """How the network infers: each client's images through the shared extractor and gate, and the experts that it asks.

    ``accuracy``, ``loss``, ``macro_f1`` and ``macro_auc`` are over all clients' data, ``mean_…`` are means over clients;
    ``…_left_out`` counts the classes, or clients, that have no AUC. ``personal_…`` is a client with its own expert alone.
    ``routing`` has for each client the share of picks that go to each expert, ``local_ratio`` the mean share that stays at
    home, and ``inference_B`` the bytes between clients for one image. ``accuracy_by_k`` is what other numbers of picks would
    give, without training again. ``even_test`` has the same for even shares of all data. Controls ask nobody; where each client
    has a classifier of its own, ``one_shot`` is the average of all of them, FedAvg after a single round.
    """
    facts = _judged(prepared, judges.own)
    even = _judged(prepared, judges.even)
    keys = ["accuracy", "macro_f1", "macro_auc", "macro_auc_left_out", "mean_f1", "mean_auc", "mean_auc_left_out"]
    keys += ["local_ratio", "personal_accuracy", "accuracy_by_k"]
    facts["even_test"] = {key: even[key] for key in keys if key in even}
    if prepared.scenario.networked.control == "local":
        install_average(prepared)
        even = _one_for_all(prepared, judges.even)
        facts["one_shot"] = {**_one_for_all(prepared, judges.own), "even_test": even}
    return facts


def _judged(prepared: Prepared, tests: Mapping[str, Samples]) -> dict[str, Any]:
    view = prepared.view
    view.model.eval()
    view.route(None)
    clients = list(tests)
    log_p: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    by_k: dict[int, dict[str, Tensor]] = {k: {} for k in _ks(view.experts)}
    picks_CE = np.zeros((len(clients), view.experts))
    for i, client in enumerate(clients):
        _install_own(prepared, client)
        log_q_TEL, gate_TE = _opinions(prepared, tests[client])
        at = 0 if view.experts == 1 else i
        own[client] = log_q_TEL[:, at]
        if prepared.scenario.networked.control is not None:
            log_p[client], indices_TK = own[client], torch.full((len(log_q_TEL), 1), at)
        else:
            weights_TK, indices_TK = _picks(prepared, client, gate_TE, view.top_k)
            log_p[client] = _combined(log_q_TEL, weights_TK, indices_TK)
            for k, found in by_k.items():
                found[client] = _combined(log_q_TEL, *_picks(prepared, client, gate_TE, k))
        picks_CE[i] = np.bincount(indices_TK.flatten().numpy(), minlength=view.experts)
    routing_CE = picks_CE / picks_CE.sum(axis=1, keepdims=True)
    local = [float(routing_CE[i, 0 if view.experts == 1 else i]) for i in range(len(clients))]
    asked = float(np.mean([1 - share for share in local]))
    k = 1 if prepared.scenario.networked.control else view.top_k
    personal, by_client = _accuracy(own, tests)
    return {
        **_scores(log_p, tests),
        "personal_accuracy": personal,
        "personal_by_client": by_client,
        **({} if prepared.scenario.networked.control else {"accuracy_by_k": _accuracies(by_k, tests)}),
        "local_ratio": round(float(np.mean(local)), 6),
        "inference_B": round(asked * k * call_B(view), 1),
        "routing": np.round(routing_CE, 4).tolist(),
    }


def _ks(experts: int) -> list[int]:
    """Numbers of picks that are tried."""
    return [k for k in (1, 2, 3, 5, 10) if k <= experts]


def _accuracies(by_k: Mapping[int, Mapping[str, Tensor]], tests: Mapping[str, Samples]) -> dict[str, float]:
    return {str(k): round(_accuracy(found, tests)[0], 6) for k, found in by_k.items()}


def _combined(log_q_TEL: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
    """Log-probabilities of the picked experts together (1)."""
    picked_TKL = log_q_TEL.gather(1, indices_TK.unsqueeze(-1).expand(-1, -1, log_q_TEL.shape[-1]))
    return picked_TKL[:, 0] if indices_TK.shape[1] == 1 else log_mixture(picked_TKL, weights_TK)


def install_average(prepared: Prepared) -> None:
    """One classifier from all clients' own: extractor and expert, each averaged by samples, in the place of expert 0."""
    hosts = list(prepared.hosts.values())
    shares, view = [host.samples[0] / sum(h.samples[0] for h in hosts) for host in hosts], prepared.view
    for target, parts in ((BACKBONE, [BACKBONE] * len(hosts)), (expert(0), [expert(i) for i in range(len(hosts))])):
        names = list(view.parts[target])
        own = [prepared.homes.of(link, part).tensors for link, part in zip(prepared.hosts, parts, strict=True)]
        tensors = {
            name: sum((share * list(t.values())[n] for share, t in zip(shares, own, strict=True)), torch.zeros(()))
            for n, name in enumerate(names)
        }
        view.install(target, tensors)


def _one_for_all(prepared: Prepared, tests: Mapping[str, Samples]) -> dict[str, Any]:
    """Every client with expert 0 on the extractor that is installed."""
    return _scores({client: _opinions(prepared, tests[client])[0][:, 0] for client in tests}, tests)


def _install_own(prepared: Prepared, client: str) -> None:
    """A control's client has an extractor of its own, and what it made of its expert."""
    if prepared.scenario.networked.control != "local":
        return
    for part in (BACKBONE, expert(list(prepared.hosts).index(client))):
        prepared.view.install(part, prepared.homes.of(client, part).tensors)


@torch.no_grad()
def _opinions(prepared: Prepared, samples: Samples) -> tuple[Tensor, Tensor]:
    """What every expert makes of the images, log q_TEL, and the gate's logits_TE."""
    model: Any = prepared.view.model
    latents_TD = all_latents(model, samples["pixel_values"])
    return opinions(model, latents_TD), model.moe.gate(latents_TD.to(model.device)).cpu()


def _picks(prepared: Prepared, client: str, gate_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Weights and experts of each image: the gate's, or drawn from the prior."""
    table = prepared.scenario.networked
    if table.gate != "random":
        p_TE = gate_TE.float().softmax(dim=-1)
        indices_TK = p_TE.topk(k, dim=-1).indices
        weights_TK = p_TE.gather(-1, indices_TK)
        return weights_TK / weights_TK.sum(dim=-1, keepdim=True), indices_TK
    seed = zlib.crc32(f"{prepared.scenario.seed}/{client}".encode())
    able = prepared.view.experts if table.prior is None else sum(weight > 0 for weight in table.prior)
    return random_picks(seed, len(gate_TE), prepared.view.experts, min(k, able), table.prior)


def _accuracy(log_p: Mapping[str, Tensor], tests: Mapping[str, Samples]) -> tuple[float, dict[str, float]]:
    """Over all clients, and of each."""
    right = {c: float((log_p[c].argmax(dim=1) == tests[c]["labels"]).double().mean()) for c in log_p}
    counts = {c: len(log_p[c]) for c in log_p}
    return sum(counts[c] * right[c] for c in right) / sum(counts.values()), right


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _scores(log_p: Mapping[str, Tensor], tests: Mapping[str, Samples]) -> dict[str, Any]:
    """Accuracy, macro F1 and macro AUC over all clients, and their means over clients."""
    labels = {client: tests[client]["labels"].numpy() for client in log_p}
    p = {client: values.exp().double().numpy() for client, values in log_p.items()}
    hard: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {c: (labels[c], p[c].argmax(axis=1)) for c in p}
    accuracy, by_client = _accuracy(log_p, tests)
    losses = [float(F.nll_loss(log_p[c], tests[c]["labels"], reduction="sum")) for c in log_p]
    f1 = over_clients(macro_f1, hard)
    auc = over_clients(lambda of, scores: macro_auc(of, scores).value, {client: (labels[client], p[client]) for client in p})
    classes = macro_auc(np.concatenate(list(labels.values())), np.concatenate(list(p.values())))
    return {
        "accuracy": accuracy,
        "loss": sum(losses) / sum(len(pair[0]) for pair in hard.values()),
        "accuracy_by_cluster": by_client,
        "macro_f1": _rounded(f1.pooled),
        "macro_auc": _rounded(classes.value),
        "macro_auc_left_out": classes.left_out,
        "mean_f1": _rounded(f1.mean),
        "mean_auc": _rounded(auc.mean),
        "mean_auc_left_out": auc.left_out,
    }


def _begin(prepared: Prepared, ledger: Ledger) -> Beginning:
    if shares_matrices(prepared.scenario):
        ledger.write("privacy", 0, **privacy_facts(prepared.scenario))
    return Beginning()


def _protocol(prepared: Prepared, start: Start) -> Networked:
    return Networked(start, stages(prepared))


def _judge(prepared: Prepared, protocol: ServerProtocol, judges: Judges) -> dict[str, Any]:
    """With the rungs beside it where test data are judged."""
    facts = inference_facts(prepared, judges)
    if judges is prepared.tests and prepared.scenario.networked.control is None:
        facts["ladder"], facts["even_test"]["ladder"] = ladders(prepared, judges.own, judges.even)
    return facts


def _finish(prepared: Prepared) -> None:
    if prepared.scenario.networked.control == "local":
        install_average(prepared)


def _alike(scenario: Scenario, cycles: int) -> int:
    """Stages are as long as they are; controls have none."""
    return 0 if scenario.networked.control is None else cycles


NETWORKED = Method(prepare, _protocol, begin=_begin, judge=_judge, alike=_alike, finish=_finish)

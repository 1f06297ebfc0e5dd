"""The same tiny work for simulator_peers.py: by a plain loop over a resident model, by pfl's simulator, by Flower's.

Needs torch and NumPy, and pfl or Flower where these are asked for, but no fedexperts. In a round every client makes one step of
plain descent on its own 32 samples from the same perceptron of 32-64-10, and what they make of it is averaged. Prints one line
of JSON: when each round ended on a clock, how many steps were made, by which versions; weights of each round go to a file.

Usage: python simulator_same.py plain|pfl|flower WORK.npz WEIGHTS.npz ROUNDS
"""

import json
import os
import sys
import time
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

SIZES, BATCH, RATE = (32, 64, 10), 32, 0.1
Weights = dict[str, Tensor]
Rounds = tuple[list[float], list[Weights], int]
"""When the work began and each round ended, the weights before it and after each round, and the steps made."""


def perceptron() -> nn.Sequential:
    inputs, hidden, classes = SIZES
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def make(clients: int, seed: int = 0) -> dict[str, Any]:
    """Clients' samples and the first weights."""
    torch.manual_seed(seed)
    x, y = torch.randn(clients, BATCH, SIZES[0]), torch.randint(0, SIZES[2], (clients, BATCH))
    return {"x": x.numpy(), "y": y.numpy(), **{name: value.numpy() for name, value in perceptron().state_dict().items()}}


@lru_cache(maxsize=1)
def work(path: str) -> tuple[Tensor, Tensor, nn.Sequential]:
    """The samples, and a model with the first weights; read once by each process."""
    torch.set_num_threads(1)
    file, model = np.load(path), perceptron()
    model.load_state_dict({name: torch.from_numpy(file[name]) for name in model.state_dict()})
    return torch.from_numpy(file["x"]), torch.from_numpy(file["y"]), model


def weights_of(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def plain(path: str, rounds: int) -> Rounds:
    """Weights are copied into the one model, it makes a step, and the sum grows."""
    x_NBD, y_NB, model = work(path)
    optimizer, leaves = torch.optim.SGD(model.parameters(), lr=RATE), list(model.parameters())
    now, seen, steps = [leaf.detach().clone() for leaf in leaves], [weights_of(model)], 0
    ended_s = [time.perf_counter()]
    for _ in range(rounds):
        total = [torch.zeros_like(leaf) for leaf in now]
        for x_BD, y_B in zip(x_NBD, y_NB, strict=True):
            with torch.no_grad():
                for leaf, value in zip(leaves, now, strict=True):
                    leaf.copy_(value)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x_BD), y_B).backward()
            optimizer.step()
            with torch.no_grad():
                for one, leaf in zip(total, leaves, strict=True):
                    one += leaf
            steps += 1
        now = [one / len(x_NBD) for one in total]
        ended_s.append(time.perf_counter())
        seen.append(dict(zip(seen[0], now, strict=True)))
    return ended_s, seen, steps


def pfl(path: str, rounds: int) -> Rounds:
    """Its federated averaging over its simulated backend, without postprocessors; it always judges in the first round."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    x_NBD, y_NB, first = work(path)

    class Learner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = first

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.net(x), y.long())

        def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            with torch.no_grad():
                return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}

    class Watch(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            ended_s.append(time.perf_counter())
            seen.append(weights_of(first))
            return False, Metrics()

    clients = [PyTorchTensorDataset([x, y]) for x, y in zip(x_NBD, y_NB, strict=True)]
    data = FederatedDataset(lambda number: clients[number], get_user_sampler("minimize_reuse", list(range(len(clients)))))
    learner = Learner()
    central, seen, made = torch.optim.SGD(learner.parameters(), lr=1.0), [weights_of(first)], []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: made.append(optimizer is not central))
    ended_s = [time.perf_counter()]
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**6,
            train_cohort_size=len(clients),
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        PyTorchModel(learner, torch.optim.SGD, central),
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE),
        NNEvalHyperParams(local_batch_size=BATCH),
        [Watch()],
        send_metrics_to_platform=False,
    )
    hook.remove()
    return ended_s, seen, sum(made)


def flower_step(message: Any, context: Any) -> Any:
    """What a client of Flower does: its model is resident in each of Ray's workers."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    x_NBD, y_NB, model = work(os.environ["SAME_WORK"])
    number = int(context.node_config["partition-id"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    F.cross_entropy(model(x_NBD[number]), y_NB[number]).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    content = {"arrays": ArrayRecord(weights_of(model)), "metrics": MetricRecord({"num-examples": BATCH})}
    return Message(RecordDict(content), reply_to=message)


def flower(path: str, rounds: int) -> Rounds:
    """Its strategy FedAvg over its simulation with Ray, one CPU for each worker as it is by default."""
    from flwr.app import ArrayRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    os.environ["SAME_WORK"] = path
    x_NBD, _, model = work(path)
    ended_s: list[float] = []
    seen: list[Weights] = []
    replied: list[int] = []

    class Watched(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            replied.append(sum(not reply.has_error() for reply in replies))
            return super().aggregate_train(server_round, replies)

    def ended(number: int, arrays: Any) -> None:
        ended_s.append(time.perf_counter())
        seen.append({name: value.clone() for name, value in arrays.to_torch_state_dict().items()})

    def serve(grid: Any, context: Any) -> None:
        many = len(x_NBD)
        while len(list(grid.get_node_ids())) < many:
            time.sleep(0.1)
        strategy = Watched(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=many, min_available_nodes=many)
        strategy.start(grid, ArrayRecord(weights_of(model)), num_rounds=rounds, evaluate_fn=ended)

    server, client = ServerApp(), ClientApp()
    server.main()(serve)
    import simulator_same  # by its name, so that workers import it and keep what it has read

    client.train()(simulator_same.flower_step)
    run_simulation(server, client, num_supernodes=len(x_NBD))
    return ended_s, seen, sum(replied)


PROGRAMS = {"plain": (plain, ()), "pfl": (pfl, ("pfl",)), "flower": (flower, ("flwr", "ray"))}


def main() -> None:
    name, path, weights, rounds = sys.argv[1:]
    program, packages = PROGRAMS[name]
    ended_s, seen, steps = program(path, int(rounds))
    np.savez(weights, **{f"{i}/{key}": value.numpy() for i, one in enumerate(seen) for key, value in one.items()})
    versions = {package: version(package) for package in ("torch", *packages)}
    print(json.dumps({"ended_s": ended_s, "steps": steps, "versions": versions}), flush=True)


if __name__ == "__main__":
    main()

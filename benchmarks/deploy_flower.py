"""Flower's own round, for deploy.py: its strategy FedAvg and NumPy arrays, on the same nodes, model and training as ours.

The text below is the app; it is written into a folder and handed to a SuperLink by ``flwr run``.
"""

SERVER = """import json
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes, rounds = int(context.run_config["nodes"]), int(context.run_config["rounds"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.1)
    from fedexperts_bench import model

    with open(context.run_config["out"], "w") as file:

        def judge(number, arrays):
            size_B = sum(array.numpy().nbytes for array in arrays.values())
            print(json.dumps({"round": number, "s": time.monotonic(), "size_B": size_B}), file=file, flush=True)

        initial = ArrayRecord({name: Array(value) for name, value in model.arrays(model.build()).items()})
        FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes).start(
            grid, initial, num_rounds=rounds, evaluate_fn=judge
        )
"""
CLIENT = """from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    from fedexperts_bench import model

    network = model.build()
    values = {name: array.numpy() for name, array in message.content["arrays"].items()}
    model.train(network, values)
    arrays = ArrayRecord({name: Array(value) for name, value in model.arrays(network).items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
"""
MODEL = """import json
import os

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

torch.set_num_threads(1)
PARTS = ("experts", ".gate.")


def build():
    torch.manual_seed(0)
    config = json.loads(os.environ["FEDEXPERTS_BENCH_MODEL"])
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config))


def moving(network):
    return {name: tensor for name, tensor in network.named_parameters() if any(part in name for part in PARTS)}


def arrays(network):
    return {name: tensor.detach().numpy() for name, tensor in moving(network).items()}


def train(network, values):
    leaves = moving(network)
    network.requires_grad_(False)
    with torch.no_grad():
        for name, tensor in leaves.items():
            tensor.copy_(torch.from_numpy(values[name].copy()))
            tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(leaves.values(), lr=1e-3)
    ids = torch.randint(0, network.config.vocab_size - 1, (8, 32), generator=torch.Generator().manual_seed(1))
    loss = torch.nn.functional.cross_entropy(network(input_ids=ids).logits, torch.arange(8))
    loss.backward()
    optimizer.step()
"""
FILES = {
    "fedexperts_bench/__init__.py": "",
    "fedexperts_bench/server.py": SERVER,
    "fedexperts_bench/client.py": CLIENT,
    "fedexperts_bench/model.py": MODEL,
}

"""hivemind's server and client with the same expert: what ``peers.py --hivemind PYTHON`` starts, in an environment of its own.

Needs hivemind (1.1.12 was tried) and no fedexperts. The server has four handlers, as its authors advise, and
no optimizer; client and server are processes of this machine, each with hivemind's own daemon. Prints one line of JSON.

Usage: python peers_hivemind.py EXPERT.npz ROUNDS AT_ONCE
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

UID, HANDLERS, HERE = "expert.0", 4, "/ip4/127.0.0.1/tcp/0"


def expert(path: str) -> tuple[nn.Module, torch.Tensor]:
    """A perceptron with these weights, and what it is asked of."""
    file = np.load(path)
    weights = [torch.from_numpy(file[f"p{i}"]) for i in range(len(file.files) - 1)]
    layers: list[nn.Module] = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.LogSoftmax(dim=-1)), torch.from_numpy(file["latents"])


def serve(path: str) -> None:
    """Until stdin ends."""
    import hivemind
    from hivemind.moe import ModuleBackend, Server
    from hivemind.utils.tensor_descr import BatchTensorDescriptor

    module, latents = expert(path)
    dht = hivemind.DHT(start=True, host_maddrs=[HERE])
    backend = ModuleBackend(UID, module, args_schema=(BatchTensorDescriptor(latents.shape[1]),), max_batch_size=4096)
    server = Server(dht, {UID: backend}, num_connection_handlers=HANDLERS, device=torch.device("cpu"), start=True)
    print(dht.get_visible_maddrs()[0], flush=True)
    sys.stdin.read()
    server.shutdown()
    dht.shutdown()


def asked(dht: Any) -> Any:
    """The remote expert, when the server has said that it is there."""
    from hivemind.moe.client.expert import create_remote_experts
    from hivemind.moe.server.dht_handler import get_experts

    for _ in range(100):
        (found,) = create_remote_experts(get_experts(dht, [UID]), dht)
        if found is not None:
            return found
        time.sleep(0.2)
    sys.exit("the server's expert was not announced within 20 s")


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "--server":
        return serve(sys.argv[2])
    import hivemind

    path, rounds, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _, latents = expert(path)
    words = [sys.executable, str(Path(__file__)), "--server", path]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        dht = hivemind.DHT(initial_peers=[server.stdout.readline().strip()], start=True, host_maddrs=[HERE])
        remote, took_s = asked(dht), []
        with torch.no_grad():
            for _ in range(rounds + 20):
                began_s = time.perf_counter()
                log_p = remote(latents)
                took_s.append(time.perf_counter() - began_s)

        def once(_: int) -> None:
            with torch.no_grad():
                remote(latents)

        with ThreadPoolExecutor(at_once) as pool:
            began_s = time.perf_counter()
            many = len(list(pool.map(once, range(rounds))))
            per_s = many / (time.perf_counter() - began_s)
        dht.shutdown()
    finally:
        server.stdin.close()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
    print(json.dumps({"took_s": took_s[20:], "per_s": per_s, "log_p": log_p.tolist()}), flush=True)
    return None


if __name__ == "__main__":
    main()

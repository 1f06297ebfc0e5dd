"""FedProx (Li et al., 2020) in one function: a proximal term holds what a device trains to what it received.

Run it with: fedexperts run examples/digits-small.toml --set train.local_loss=fedprox:proximal
"""

from collections.abc import Mapping

from torch import Tensor

MU = 0.1


def proximal(loss: Tensor, trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor:
    """The batch's loss, and µ/2 times the squared distance over all that is trained."""
    return loss + MU / 2 * sum((now - received[name]).square().sum() for name, now in trained.items())

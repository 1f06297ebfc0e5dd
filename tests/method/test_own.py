"""A class of one's own, handed to `run`: by clusters, or with each device a link of its own."""

from pathlib import Path
from typing import Any

import small
from everything import Everything
from fedexperts import run
from fedexperts.ledger import read


class OneByOne(Everything):
    """The same, with devices as links."""

    by_client = True


class Ownerless(Everything):
    """Has no use for who owns what."""

    needs_owners = False


class Placed(OneByOne):
    """Says what each client would hold at inference."""

    def placement(self) -> dict[str, frozenset[str]]:
        return {link: frozenset({"expert:0"}) for link in self.links}


def played(kind: Any, path: Path) -> list[dict[str, Any]]:
    return list(read(run(small.scenario(train={"cycles": 1}), path / kind.__name__, protocol=kind).directory / "ledger.jsonl"))


def test_a_class_is_by_clusters_unless_it_says_so(tmp_path: Path) -> None:
    clusters, clients, placed, ownerless = (played(kind, tmp_path) for kind in (Everything, OneByOne, Placed, Ownerless))
    assert clusters[0]["clusters"].keys() == {"plain", "inverted"}
    assert clients[0]["clusters"].keys() == {"plain/0", "plain/1", "inverted/0", "inverted/1"}
    assert [line["event"] for line in clusters].count("assignment") == 1
    assert [line["event"] for line in clients].count("assignment") == 0
    assert [line["event"] for line in ownerless].count("assignment") == 0
    assert ownerless[-1]["uplink_B"] < clusters[-1]["uplink_B"]  # by the trial's counts
    trained = {line["cluster"] for line in clients if line["event"] == "train"}
    assert trained == clients[0]["clusters"].keys()
    assert "personal_accuracy" not in clients[-1]
    assert placed[-1]["personal_by_client"].keys() == clients[0]["clusters"].keys()

"""What is warned of from a ledger's lines alone: results below the majority, experts that nobody asks, clients left out."""

from typing import Any

from fedexperts.caveats import caveats, never_trained, refused_updates, who_never_trained

RUN = {"event": "run", "clusters": {"a": [4], "b": [4]}, "links": "clients"}
USUAL = {"event": "baselines", "clusters": {"a": {"majority": 0.5, "tfidf": None}, "b": {"majority": 0.25, "tfidf": None}}}


def end(**facts: Any) -> dict[str, Any]:
    return {"event": "end", "cycles": 1, "steps": 1, "unsent_rounds": 0, "accuracy_by_cluster": {"a": 0.6, "b": 0.4}, **facts}


def told(line: dict[str, Any]) -> list[str]:
    return caveats([RUN, USUAL, line], RUN, line)


def test_a_result_that_is_not_above_the_majority() -> None:
    assert told(end()) == []
    (text,) = told(end(accuracy_by_cluster={"a": 0.5, "b": 0.4}))
    assert text == "on 1 of 2 test sets the final model is not above the majority's answer: a (0.500, 0.500)"


def test_an_expert_that_nobody_asks() -> None:
    by_k = {"1": 0.5}
    (text,) = told(end(accuracy_by_k=by_k, routing=[[1.0, 0.0, 0.0], [0.4, 0.0, 0.6]]))
    assert text == "the gate never picks expert 1 on test data"
    assert told(end(accuracy_by_k=by_k, routing=[[1.0, 0.0], [0.0, 1.0]])) == []
    assert told(end(routing=[[1.0, 0.0], [1.0, 0.0]])) == []  # a control


def test_who_never_trained_and_why() -> None:
    lines: list[dict[str, Any]] = [
        {"event": "contact", "cluster": "a"},
        {"event": "contact", "cluster": "b"},
        {"event": "align", "sat_out": {"c": "memory", "d": "away"}},
        {"event": "align", "sat_out": {"c": "memory", "d": "memory"}},
        {"event": "align", "sat_out": {"d": "away"}},
    ]
    assert never_trained(lines, list("abcde")) == {}  # nobody did, which is another warning
    lines.append({"event": "train", "cluster": "a", "steps": 3})
    found = never_trained(lines, list("abcde"))
    assert found == {"b": "no round fitted", "c": "memory", "d": "away", "e": "no contact"}
    assert who_never_trained({"c": "memory"}, 5, "clients") == "1 of 5 clients never trained (memory)"
    two = {"c": "memory", "d": "memory", "e": "away"}
    assert who_never_trained(two, 5, "clients") == "3 of 5 clients never trained (memory 2, away 1)"


def test_updates_that_were_not_let_in() -> None:
    def refused(device: str, reason: str) -> dict[str, Any]:
        return {"event": "refuse", "t_s": 1.0, "cluster": "a", "device": device, "part": "gate", "reason": reason}

    lines = [refused("a/0", "is not finite"), refused("a/0", "comes twice"), refused("a/1", "is not finite")]
    assert refused_updates(lines) == {"a/0": 2, "a/1": 1}
    assert caveats([RUN, USUAL, *lines, end()], RUN, end()) == [
        "a/0: 2 of its updates not let in, first gate: is not finite",
        "a/1: 1 of its updates not let in, first gate: is not finite",
    ]
    many = [refused(f"a/{i}", "is not finite") for i in range(9) for _ in range(2)]
    assert caveats([RUN, USUAL, *many, end()], RUN, end())[4:] == ["10 updates of 5 other devices not let in"]
    assert refused_updates([{"event": "refuse", "cluster": "a", "part": "gate", "version": 1}]) == {}

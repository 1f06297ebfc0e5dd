"""Grids of values and tuning over them: which runs there are, what is chosen by what, and what is refused before any."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import small
from fedexperts import InputError, Scenario, compare
from fedexperts.runs import comparison
from fedexperts.runs.grid import Done, Grid, Key, job_name
from fedexperts.runs.parallel import folder

RATES = {"train.lr_expert": ("1e-3", "3e-3"), "train.local_steps": ("1", "2")}
CELLS = [f"train.lr_expert={rate}, train.local_steps={steps}" for rate in ("1e-3", "3e-3") for steps in (1, 2)]
Scores = dict[tuple[str, str], Sequence[float | None]]


def grid(varied: dict[str, Any] = RATES, protocols: Sequence[str] = ("sync", "ems-fl"), **words: Any) -> Grid:
    return comparison.grid(small.scenario(), protocols, (), words.pop("seeds", 2), varied, **words)


def test_every_protocol_has_every_combination_with_every_seed() -> None:
    jobs = grid().jobs
    assert set(jobs) == {(f"{name}, {cell}", seed) for name in ("sync", "ems-fl") for cell in CELLS for seed in (3, 4)}
    one = jobs["sync, train.lr_expert=3e-3, train.local_steps=1", 4]
    assert (one.protocol, one.seed, one.train.lr_expert, one.train.local_steps) == ("sync", 4, 3e-3, 1)
    assert len({folder(job_name(key)) for key in jobs}) == len(jobs)
    assert len({job.to_toml() for job in jobs.values()}) == len(jobs)


def test_values_are_those_of_set() -> None:
    varied = {"cluster.0.devices": ("1", "3"), "train.shared": ('["gate"]', '["gate", "head"]')}
    jobs = grid(varied, ["sync"], seeds=1).jobs
    assert [(job.cluster[0].devices, job.cluster[1].devices, sorted(job.train.shared)) for job in jobs.values()] == [
        (n, 2, shared) for n in (1, 3) for shared in (["gate"], ["gate", "head"])
    ]


def test_policies_are_varied_too() -> None:
    scenario = small.scenario(protocol="aligned")
    found = comparison.grid(scenario, (), ("random", "greedy"), 1, {"train.lr_expert": ("1e-3", "1e-2")})
    assert found.kind == "policies"
    assert [job.alignment.policy for job in found.jobs.values()] == ["random"] * 2 + ["greedy"] * 2


@pytest.mark.parametrize(
    ("varied", "words", "message"),
    [
        ({"train.lr_expret": ("1e-3",)}, {}, r"train\.lr_expret: unknown key; did you mean lr_expert"),
        ({"trian.lr_expert": ("1e-3",)}, {}, r"trian: unknown key; did you mean train"),
        ({"train.lr_expert": ("1e-3", "-1")}, {}, r"train\.lr_expert = -1: .*greater than"),
        ({"train.lr_expert": ("1e-3", "big")}, {}, r"train\.lr_expert = 'big': .*number"),
        ({"train.local_steps": ("1", "1.5")}, {}, r"train\.local_steps = 1\.5: .*integer"),
        ({"cluster.devices": ("1",)}, {}, r"--grid cluster\.devices=1: there are several such tables; name one by its number"),
        ({"cluster.7.devices": ("1",)}, {}, r"--grid cluster\.7\.devices=1: there is no 7 among several tables"),
        (
            {"train.lr_expert": ("1e-3", "0.001")},
            {},
            r"'sync, train\.lr_expert=0\.001, seed 3': are the same scenario and seed",
        ),
        ({"seed": ("1", "2")}, {}, r"--grid seed: is not varied like this; use --seeds"),
        ({"protocol": ("sync",)}, {}, r"--grid protocol: is not varied like this; use --protocol"),
        ({"train.cycles": tuple(map(str, range(1, 6000)))}, {}, r"--grid: 23,996 runs; at most 10,000"),
        (
            RATES,
            {"baseline": "sync"},
            r"--baseline sync: is none of what is compared; choose from sync, train\.lr_expert=1e-3, ",
        ),
        ({}, {"baseline": "aligned"}, r"--baseline aligned: is none of what is compared; choose from sync; ems-fl"),
        ({}, {"tune": 2}, r"--tune: needs --grid"),
        (
            {"evaluation.validation": ("0.2", "0.4")},
            {"tune": 1},
            r"--grid evaluation\.validation: would be judged by other data",
        ),
        ({"cluster.0.devices": ("1", "2")}, {"tune": 1}, r"--grid cluster\.0\.devices: would be judged by other data"),
    ],
)
def test_what_cannot_be_is_refused_with_field_value_and_bound(
    varied: dict[str, Any], words: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        grid(varied, **words)


def test_values_that_a_folder_cannot_tell_apart_are_refused_and_signs_it_can() -> None:
    assert folder("sync, x.y=-1, seed 3") == "sync-x.y-minus-1-seed-3"
    assert folder("sync, train.lr_expert=1e-3, seed 3") == "sync-train.lr-expert-1e-3-seed-3"
    with pytest.raises(InputError, match="of the same folder"):
        grid({"cluster.0.data": ("digits:plain", "digits-plain")}, ["sync"])


def test_a_scenario_without_validation_data_cannot_be_tuned() -> None:
    scenario = small.scenario(evaluation={"validation": 0.0})
    with pytest.raises(InputError, match=r"evaluation\.validation = 0: --tune .* none of plain, inverted; set a share"):
        comparison.grid(scenario, ["sync"], (), 1, RATES, 1)


# tuning: summaries without runs


def ended(key: Key, validation: float | None, test: float) -> Done:
    if validation is None:
        return Done(Path("/nowhere"), {"diverged": "it has"})
    history = [{"accuracy": 0.0}, {"accuracy": validation}]
    return Done(Path("/nowhere"), {"history": history, "final_accuracy": test, "metric": "accuracy", "judged_on": "validation"})


def played(found: Grid, scores: Scores) -> dict[Key, Done]:
    """Tuning runs that end as told, by protocol and values; on test data each is the worse the better it is here."""
    done = {}
    for key in found.jobs:
        _, name, cell, seed = key
        score = scores[name, cell][seed - 5]
        done[key] = ended(key, score, 0.0 if score is None else 1 - score)
    return done


SCORES: Scores = {
    ("sync", CELLS[0]): (0.5, 0.5),
    ("sync", CELLS[1]): (0.9, None),  # half of it diverged
    ("sync", CELLS[2]): (0.5, 0.75),
    ("sync", CELLS[3]): (0.75, 0.5),  # as good as the one before
    ("ems-fl", CELLS[0]): (0.8, 0.8),
    ("ems-fl", CELLS[1]): (0.1, 0.1),
    ("ems-fl", CELLS[2]): (None, None),
    ("ems-fl", CELLS[3]): (0.95, 0.6),
}


def test_all_protocols_are_tuned_alike_on_seeds_that_are_not_reported() -> None:
    found = grid(tune=2)
    assert found.tunes
    assert {key[-1] for key in found.jobs} == {5, 6}  # above 3 and 4, which are reported
    assert [sum(key[1] == name for key in found.jobs) for name in ("sync", "ems-fl")] == [8, 8]
    assert len({job.to_toml() for job in found.jobs.values()}) == 16
    assert all(job.seed == key[-1] for key, job in found.jobs.items())


def test_the_best_on_validation_data_is_run_with_the_reported_seeds() -> None:
    found = grid(tune=2)
    assert found.then is not None
    second = found.then(played(found, SCORES))
    assert set(second) == {(name, seed) for name in ("sync", "ems-fl") for seed in (3, 4)}
    chosen = {key: (job.protocol, job.seed, job.train.lr_expert, job.train.local_steps) for key, job in second.items()}
    assert chosen["sync", 4] == ("sync", 4, 3e-3, 1)  # of two as good the first
    assert chosen["ems-fl", 3] == ("ems-fl", 3, 1e-3, 1)
    done = played(found, SCORES) | {key: ended(key, 0.5, 0.5) for key in second}
    assert {name: len(runs) for name, runs in found.reported(done).items()} == {"sync": 2, "ems-fl": 2}


def test_all_cells_are_told_and_nothing_of_their_test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    found = grid(tune=2)
    assert found.then is not None
    first = played(found, SCORES)
    monkeypatch.setattr(
        comparison, "medians", lambda summaries, baseline: {name: len(rows) for name, rows in summaries.items()}
    )
    document = found.fill(first | {key: ended(key, 0.5, 0.5) for key in found.then(first)})
    assert document["protocols"] == {"sync": 2, "ems-fl": 2}
    tuned = document["tuned"]
    assert (tuned["judged_on"], tuned["metric"], tuned["better"], tuned["seeds"]) == (
        "validation",
        "accuracy",
        "higher",
        [5, 6],
    )
    assert tuned["grid"] == {key: list(values) for key, values in RATES.items()}
    assert tuned["chosen"]["ems-fl"] == {"train.lr_expert": "1e-3", "train.local_steps": "1"}
    cells = tuned["cells"]["sync"]
    assert [cell["score"] for cell in cells] == [0.5, None, 0.625, 0.625]
    assert [cell["by_seed"] for cell in cells] == [list(SCORES["sync", cell]) for cell in CELLS]
    assert [cell["chosen"] for cell in cells] == [False, False, True, False]
    assert all(set(cell) == {"values", "score", "by_seed", "chosen"} for cell in cells)


def test_where_all_values_diverge_there_is_nothing_to_choose() -> None:
    found = grid(tune=2)
    assert found.then is not None
    with pytest.raises(InputError, match=r"--grid: sync has diverged with each of train\.lr_expert=1e-3, .*; give lower"):
        found.then(played(found, {key: (None, None) if key[0] == "sync" else values for key, values in SCORES.items()}))


def test_a_tuning_run_that_was_judged_on_test_data_chooses_nothing() -> None:
    found = grid(tune=2)
    assert found.then is not None
    done = played(found, SCORES)
    one = next(iter(done))
    done[one].summary["judged_on"] = "test"
    with pytest.raises(InputError, match="has no validation data to be chosen by"):
        found.then(done)


def test_of_a_metric_for_which_lower_is_better_the_lowest_is_chosen() -> None:
    found = grid(tune=2)
    assert found.then is not None
    done = played(found, SCORES)
    for one in done.values():
        one.summary["metric"] = "perplexity"
    chosen = {key[0]: (job.train.lr_expert, job.train.local_steps) for key, job in found.then(done).items()}
    assert chosen == {"sync": (1e-3, 1), "ems-fl": (1e-3, 2)}


# the call of Python


def test_the_call_takes_values_as_python_has_them_and_as_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Scenario] = {}

    def made(jobs: dict[str, Scenario], *_: Any, **__: Any) -> dict[str, Any]:
        asked.update(jobs)
        raise InterruptedError

    monkeypatch.setattr("fedexperts.runs.grid.run_many", made)
    vary: dict[str, Any] = {"train.lr_expert": [1e-3, "3e-3"], "train.shared": [["gate"], ["gate", "head"]]}
    with pytest.raises(InterruptedError):
        compare(small.scenario(), protocols=["sync"], vary=vary, out=tmp_path / "out")
    assert {(job.train.lr_expert, len(job.train.shared)) for job in asked.values()} == {
        (rate, n) for rate in (1e-3, 3e-3) for n in (1, 2)
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seeds": 0}, "--seeds 0, --tune 0: must be at least 1 and 0"),
        ({"tune": -1}, "--seeds 1, --tune -1"),
        ({"jobs": 0}, "--jobs 0: must be at least 1"),
        ({"jobs": 2, "ray": "auto"}, "leave out --jobs or --ray"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        compare(small.scenario(), protocols=["sync"], out=tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()

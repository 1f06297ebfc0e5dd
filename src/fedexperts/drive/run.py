"""One run: a scenario, a protocol, a run directory.

A run directory holds ``scenario.toml`` (resolved), ``ledger.jsonl``, ``runtime.jsonl``, ``checkpoints/`` and, at the end,
``model/`` (the global model, written by save_pretrained, with the tokenizer) and ``SHA256SUMS`` of all that. After training
through adapters these are in ``adapters.safetensors``, and the model below them, unless it is the scenario's checkpoint, in
``base/``. While a process is at work there, ``run.lock`` says which.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.objective import evaluate
from ..errors import InputError
from ..ledger import Ledger, Listener, beginning, summary
from ..moe.checkpoint import resolve
from ..moe.load import copy_tokenizer
from ..moe.parts import GATE, Piece, Tensors, in_order, is_expert
from ..protocol.aligned import Aligned
from ..protocol.ems_fl import EmsFl, EnhancedEmsFl
from ..protocol.link import ServerProtocol, Start
from ..protocol.networked import Networked
from ..protocol.sync import Sync
from ..scenario import Scenario
from ..train.host import Trial, latest
from ..writing import on_disk, write_whole
from . import checkpoint
from .align import alignment, most_experts
from .baselines import baselines
from .clients import personal
from .cluster import Pace
from .directory import FILES, appended, check_directory, header, seal
from .export import ADAPTERS, save_adapters
from .faults import Faults
from .finished import FOLDER, what_lacks
from .inference import install_average, network_facts
from .lock import LEFTOVERS, LOCK, claimed
from .network import privacy_facts, shares_matrices, stages
from .prepare import Judges, Prepared, counted, prepare
from .rates import apart_from_rates, changed_rates, rates
from .samples import reads_text
from .simulate import Simulator
from .split import assignment_report, check_caps, split_experts
from .sums import SUMS

log = logging.getLogger(__name__)
PROTOCOLS: dict[str, Callable[[Start], ServerProtocol]] = {
    "sync": Sync,
    "ems-fl": EmsFl,
    "ems-fl-enhanced": EnhancedEmsFl,
    "aligned": Aligned,
    "networked": Networked,
}
CHECKPOINT_EVERY_S = 2.0
"""Wall-clock seconds between checkpoints at least; results do not depend on it."""
GO_ON = "make room, or mend what is said there, and go on with the same command and --resume"


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, and its summary with the keys of ``fedexperts run --json``."""

    directory: Path
    summary: dict[str, Any]


def run(
    scenario: Scenario | str | Path,
    out: str | Path | None = None,
    protocol: str | Callable[[Start], ServerProtocol] | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Result:
    """Run a scenario.

    Args:
        scenario: a scenario or the path of its file.
        out: run directory; default ``runs/<name>-<protocol>-<seed>``.
        protocol: a name that overrides the scenario's, or a class of your own that is built from a `Start`.
        resume: go on with the run in ``out`` from its last checkpoint; begin it if it was stopped before it began. Learning
            rates may be others than before, as after `Diverged`; the ledger says from when on.
        listener: called with every ledger line as it is written.

    Raises:
        InputError: the scenario cannot work, ``out`` holds another run or one that is damaged, or another process is at work
            there. Nothing has been written then.
        RunError: the machine refuses, as a full disk does; what was written before stays valid, and ``resume`` goes on.
        Diverged: training has left the finite numbers.
    """
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    if isinstance(protocol, str):
        scenario = scenario.changed(protocol=protocol)
    build = protocol if callable(protocol) else PROTOCOLS[scenario.protocol]
    label = getattr(build, "__name__", "custom") if callable(protocol) else scenario.protocol
    directory = Path(out) if out else Path("runs") / f"{scenario.name}-{label}-{scenario.seed}"
    check_directory(directory, scenario, label, resume)
    with ExitStack() as stack:
        if there := directory.exists():  # before the work of preparing, which another process may be doing as well
            stack.enter_context(claimed(directory))
            check_directory(directory, scenario, label, resume)
        torch.set_num_threads(1)  # sums in a fixed order: a run repeats bit for bit
        prepared = _prepare(scenario)
        if not there:
            stack.enter_context(claimed(directory))
            check_directory(directory, scenario, label, resume)
        with on_disk(directory, GO_ON):
            _finish(prepared, build, label, directory, listener)
        return Result(directory, summary(directory / "ledger.jsonl"))


def _prepare(scenario: Scenario) -> Prepared:
    prepared = prepare(scenario)
    if not prepared.lora:  # what adapters take is known when they are attached
        _check_capacity(prepared)
    if shares_matrices(scenario):
        privacy_facts(scenario)  # refuses where there is no accountant
    return prepared


def _finish(
    prepared: Prepared, build: Callable[[Start], ServerProtocol], label: str, directory: Path, listener: Listener | None
) -> None:
    """Begin a run, or go on with it, unless it has ended; a run that is refused as it begins leaves nothing."""
    begun = (directory / "scenario.toml").exists()
    if begun and (lacks := what_lacks(directory)) is None:
        if not (directory / SUMS).exists():
            seal(directory)
        return
    if begun and (directory / "model").exists():
        log.warning("warning: %s: had ended, but %s; going on from the last checkpoint", directory, lacks)
    if not begun:
        for name in LEFTOVERS - {LOCK}:
            (directory / name).unlink(missing_ok=True)
    text = header(label) + prepared.scenario.to_toml()
    if not begun or (directory / "scenario.toml").read_text() != text:  # going on with other rates
        write_whole(directory / "scenario.toml", text)
    try:
        _Run(prepared, build, label, directory, listener).play()
    except InputError:
        if not begun and not (directory / "checkpoints").exists():
            for name in FILES:
                (directory / name).unlink(missing_ok=True)
        raise


def _check_capacity(prepared: Prepared) -> None:
    """Refuse loads that clients, or experts that clusters, cannot carry."""
    if prepared.scenario.by_client:
        alignment(prepared)
    elif (most := most_experts(prepared)) is not None:
        check_caps(prepared.scenario.assignment.policy, list(most.values()), sum(map(is_expert, prepared.view.parts)))


class _Run:
    """The parts of a run that live as long as it does."""

    def __init__(
        self,
        prepared: Prepared,
        build: Callable[[Start], ServerProtocol],
        label: str,
        directory: Path,
        listener: Listener | None,
    ):
        self.prepared, self.build, self.label, self.directory, self.listener = (
            prepared,
            build,
            label,
            directory,
            listener,
        )
        self.scenario = prepared.scenario
        self.scenario_sha256 = hashlib.sha256((header(label) + apart_from_rates(self.scenario)).encode()).hexdigest()
        self.checkpoints = directory / "checkpoints"
        self.saved_at_s = time.monotonic()

    def play(self) -> None:
        """From the last checkpoint, or from the beginning, to the end."""
        found = checkpoint.load(self.checkpoints, self._fault)
        self.number, saved = found if found else (0, None)
        for name in (SUMS, "model"):  # they say that the run has ended
            checkpoint.remove(self.directory / name)
        start_at = saved["ledger_B"] if saved else 0
        with (
            closing(appended(self.directory / "runtime.jsonl")) as self.runtime,
            closing(Ledger(self.directory / "ledger.jsonl", start_at, self.listener)) as self.ledger,
        ):
            model = self._play(saved)
        self._save_model(model)
        seal(self.directory)

    def _fault(self, saved: dict[str, Any]) -> str | None:
        """Why a checkpoint cannot be gone on from."""
        if (version := saved["version"]) != __version__:
            return f"of fedexperts {version}, and this is {__version__}"
        if saved["scenario_sha256"] != self.scenario_sha256:
            return "of another scenario than scenario.toml"
        so_far = beginning(self.directory / "ledger.jsonl", saved["ledger_B"])
        if so_far is None or so_far.hexdigest() != saved["ledger_sha256"]:
            return f"the first {saved['ledger_B']:,} bytes of ledger.jsonl are not as they were written"
        return None

    def _play(self, saved: dict[str, Any] | None) -> dict[str, Piece]:
        self.runtime.write(json.dumps({FOLDER: str(self.scenario.base.resolve())}) + "\n")
        self.trial_uplink_B = 0
        if not saved or self.prepared.lora:  # weights under adapters are in no checkpoint, but repeat bit for bit
            self.prepared.begin()
        owned = saved["owned"] if saved else self._begin()
        protocol = self.protocol = self.build(self._start(owned))
        train = self.scenario.train
        self.simulator = Simulator(
            self.prepared.plan,
            self.prepared.hosts,
            Pace(None if train.seconds_per_round == "device" else train.seconds_per_round, train.max_rounds),
            train.cycles,
            self.ledger,
            self._evaluate,
            train.final_flush,
            faults=Faults(**self.scenario.faults.model_dump(), seed=self.scenario.seed),
            kinds=self.prepared.kinds,
            trial_B=self._trial_B,
            first_uplink_B=self.trial_uplink_B,
            owners=self.prepared.owners,
        )
        if saved:
            vars(protocol).update(saved["protocol"])
            self.simulator.restore(saved["simulator"])
            self._say_rates(saved["rates"])
        else:
            self.ledger.write("evaluate", 0, cycle=0, **self.simulator.books.totals, **self._evaluate(protocol.model, 0))
        self.simulator.run(protocol, lambda: self._pause(protocol, owned))
        return protocol.model

    def _say_rates(self, before: dict[str, float]) -> None:
        """Learning rates that are others than in the checkpoint, to whoever reads the ledger or the terminal."""
        now = rates(self.scenario)
        if other := changed_rates(before, now):
            self.ledger.write("rates", self.simulator.now_s, **other)
            for name, rate in other.items():
                log.warning("warning: going on with %s = %g (%g before)", name, rate, before[name])

    def _begin(self) -> dict[str, frozenset[str]]:
        """Trial pass and Algorithm 1, before round 0 (Algorithms 2 and 3: "Initialize")."""
        prepared, train = self.prepared, self.scenario.train
        host = next(iter(prepared.hosts.values()))
        self.ledger.write(
            "run",
            0,
            name=self.scenario.name,
            protocol=self.label,
            seed=self.scenario.seed,
            version=__version__,
            clusters={name: list(host.samples) for name, host in prepared.hosts.items()},
            parts_B={part: prepared.model[part].size_B for part in in_order(prepared.model)},
            upload_B={part: host.upload_B(part) for part in in_order(prepared.model)},
            shared=in_order(train.shared),
            cycles=train.cycles,
            local_steps=train.local_steps,
            target=self.scenario.evaluation.target,
            validation=self.scenario.evaluation.validation,
            plateau=[self.scenario.evaluation.patience, self.scenario.evaluation.min_gain],
        )
        if any(reads_text(self.scenario.task_of(i)) for i in range(len(self.scenario.cluster))):
            self.ledger.write("baselines", 0, clusters=baselines(self.scenario, prepared.data))
        if shares_matrices(self.scenario):
            self.ledger.write("privacy", 0, **privacy_facts(self.scenario))
        if self.scenario.by_client:
            return {}
        trials = prepared.trials()
        counts = counted(trials)
        owned = split_experts(self.scenario, counts, most_experts(prepared))
        if self.label != "sync":  # the baseline has no use for the trial; for it the report is only there to be read
            self.trial_uplink_B = sum(self._trial_B(one) for rows in trials.values() for one in rows)
        report = assignment_report(self.scenario, counts, owned)
        self.ledger.write("assignment", 0, trial_uplink_B=self.trial_uplink_B, **report)
        return owned

    def _trial_B(self, trial: Trial) -> int:
        """Counts are uploaded, or, as the paper may mean, the trial samples themselves."""
        return trial.counts_LM.nbytes if self.scenario.assignment.trial == "device" else trial.samples_B

    def _start(self, owned: dict[str, frozenset[str]]) -> Start:
        scenario = self.scenario
        cycles = min(scenario.train.cycles, len(self.prepared.plan.cycle_ends_s))
        return Start(
            model=self.prepared.model,
            clusters=tuple(self.prepared.hosts),
            shared=frozenset(scenario.train.shared),
            owned=owned,
            cycles=cycles,
            gate_tail_cycles=scenario.train.gate_tail_cycles,
            split=lambda counts, number: split_experts(scenario, counts, most_experts(self.prepared), number),
            every_cycles=scenario.assignment.every_cycles,
            trial_samples=scenario.assignment.trial_samples,
            lora=self.prepared.lora,
            weights=scenario.train.weights,
            overlap=scenario.train.overlap or ("mean" if scenario.plan.kind == "always-on" else "add"),
            first_cycle=scenario.train.first_cycle,
            max_rounds=scenario.train.max_rounds,
            alignment=alignment(self.prepared) if scenario.protocol == "aligned" else None,
            stages=stages(self.prepared) if scenario.protocol == "networked" else None,
        )

    def _evaluate(self, model: dict[str, Piece], cycle: int | None) -> dict[str, Any]:
        """Facts for the ledger: of a cycle on the validation data, at the end (None) on the test data, beside these."""
        if cycle is not None and cycle % self.scenario.evaluation.every_cycles:
            return {}
        began_s, prepared = time.monotonic(), self.prepared
        facts = self._judged(model, prepared.validation if cycle is not None else prepared.tests)
        if cycle is None and prepared.validation is not prepared.tests:
            facts["validation"] = self._judged(model, prepared.validation)
        now_s = time.monotonic()
        peak_B = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {
            "cycle": cycle,
            "clock_s": round(now_s, 3),
            "evaluate_s": round(now_s - began_s, 3),
            "peak_rss_B": peak_B,
        }
        self.runtime.write(json.dumps(line) + "\n")
        self.runtime.flush()
        return facts

    def _judged(self, model: dict[str, Piece], judges: Judges) -> dict[str, Any]:
        self._install(model)
        prepared = self.prepared
        if isinstance(self.protocol, Networked):
            return network_facts(prepared, judges)
        facts = evaluate(prepared.view, prepared.objectives, judges.own)
        if isinstance(self.protocol, Aligned):
            facts |= personal(prepared.view, prepared.objectives, judges.own, self.protocol.placement(), self._gates())
        return facts

    def _gates(self) -> dict[str, Tensors]:
        """Gates that belong to clients alone."""
        if self.scenario.alignment.gate != "per-client":
            return {}
        own = {name: host.own(GATE)[1] for name, host in self.prepared.hosts.items()}
        return {name: gate for name, gate in own.items() if gate is not None}

    def _pause(self, protocol: ServerProtocol, owned: dict[str, frozenset[str]]) -> None:
        if time.monotonic() - self.saved_at_s < CHECKPOINT_EVERY_S:
            return
        self.number += 1
        tree = {
            "version": __version__,
            "scenario_sha256": self.scenario_sha256,
            "rates": rates(self.scenario),
            "ledger_B": self.ledger.position(),
            "ledger_sha256": self.ledger.sha256.hexdigest(),
            "owned": owned,
            "protocol": {k: v for k, v in vars(protocol).items() if not k.startswith("_")},
            "simulator": self.simulator.state(),
        }
        checkpoint.save(self.checkpoints, self.number, tree)
        self.saved_at_s = time.monotonic()

    def _save_model(self, model: dict[str, Piece]) -> None:
        """The global model; under adapters also these, and the model below them where no path leads to it."""
        lora, scenario = self.prepared.lora, self.scenario
        if lora is not None and lora.average != "merge":
            save_adapters(self.directory / ADAPTERS, model, scenario.task.classifies)
            if scenario.warmup is not None or scenario.model.path is None:
                self._install(self.prepared.model)
                self._write("base")
        self._install(model)
        if scenario.protocol == "networked" and scenario.networked.control == "local":
            install_average(self.prepared)
        self.prepared.view.merge()
        self._write("model")

    def _install(self, model: dict[str, Piece]) -> None:
        view = self.prepared.view
        for part, piece in model.items():
            if part in view.parts:
                view.install(part, piece.tensors)
        for part, host in self.prepared.owners.items():
            view.install(part, latest(host, part))

    def _write(self, name: str) -> None:
        """The model now in the view, and its tokenizer if there is one, as a checkpoint folder."""
        temporary, table = self.directory / f"{name}.unfinished", self.scenario.model
        for folder in (temporary, self.directory / name):  # left by a run that was killed here
            checkpoint.remove(folder)
        self.prepared.view.model.save_pretrained(temporary)  # type: ignore[operator]  # a Hugging Face model
        for weights in temporary.glob("*.safetensors"):  # safetensors leaves them to their owner alone
            shutil.copymode(temporary / "config.json", weights)
        if source := table.tokenizer or table.path:
            copy_tokenizer(resolve(source, self.scenario.base), temporary)
        temporary.rename(self.directory / name)

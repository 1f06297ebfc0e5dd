"""One run: a scenario, a protocol, a run directory.

A run directory holds ``scenario.toml`` (resolved), ``ledger.jsonl``, ``runtime.jsonl``, ``checkpoints/`` and, at the end,
``model/`` (the global model, written by save_pretrained, with the tokenizer) and ``SHA256SUMS`` of all that. After training
through adapters these are in ``adapters.safetensors``, and the model below them, unless it is the scenario's checkpoint, in
``base/``. While a process is at work there, ``run.lock`` says which.
"""

from __future__ import annotations

import json
import logging
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..drive.cluster import Pace
from ..drive.faults import NO_FAULTS, Faults
from ..drive.simulate import Simulator
from ..errors import InputError, overheard
from ..events import FORMAT
from ..ledger import Ledger, Listener, summary
from ..method.elsewhere import check_loads
from ..method.method import Beginning, Method, start
from ..method.methods import of, own
from ..moe.checkpoint import resolve
from ..moe.parts import MAX_UPDATE_NORM, Piece, in_order
from ..moe.tasks import write_tasks
from ..moe.tokenizer import copy_tokenizer
from ..own import named
from ..protocol.link import ServerProtocol, Start
from ..scenario import Scenario
from ..setup.baselines import of_links
from ..setup.devices import Judges
from ..setup.named import named_tasks
from ..setup.prepare import Prepared, trial_B
from ..train.host import Host
from ..writing import on_disk, write_whole
from . import checkpoint
from .ahead import ahead, check_jobs
from .directory import FILES, appended, check_directory, has_ended, seal
from .ended import ADAPTERS, FOLDER, what_lacks
from .export import save_adapters
from .header import environment, header
from .lock import LEFTOVERS, LOCK, claimed, forget_dead
from .longer import LONGER, digest, fault, go_on_longer
from .rates import changed_rates, rates
from .sums import SUMS

log = logging.getLogger(__name__)
CHECKPOINT_EVERY_S, CHECKPOINT_S = 5.0, 0.1
"""Wall-clock seconds between checkpoints at least, where one takes at most so many; in proportion more where it takes longer,
so that they cost a fiftieth of the time. Results do not depend on it."""
CHECKPOINT_WITHIN_S = 300.0
"""However long one takes; a kill loses no more, unless contacts overlap for longer."""
GO_ON = "make room, or mend what is said there, and go on with the same command and --resume"


Evaluate = Callable[[dict[str, Piece], int | None], dict[str, Any]]
"""From the global model, and the cycle or None at the end, to facts for the ledger."""


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
    hosts: Callable[[Prepared], Mapping[str, Host]] | None = None,
    jobs: int = 1,
) -> Result:
    """Run a scenario.

    Args:
        scenario: a scenario or the path of its file.
        out: run directory; default ``runs/<name>-<protocol>-<seed>``.
        protocol: a name that overrides the scenario's, as ``"sync"`` or ``"module:Class"``, or a class of your own, built from
            a `Start`.
        resume: go on with the run in ``out`` from its last checkpoint; begin it if it was stopped before it began. Learning
            rates may be others than before, as after `Diverged`, and a run that has ended goes on to more ``train.cycles``; the
            ledger says from when on.
        listener: called with every ledger line as it is written.
        hosts: Hosts that take the place of those in this process, by link.
        jobs: processes that share the links, each with a model of its own, and train at the same time what need not wait; with
            1 all is done in this one. Results are the same to the byte, and a run goes on with any number.

    Raises:
        InputError: the scenario cannot work, ``out`` holds another run or one that is damaged, or another process is at work
            there. Nothing has been written then.
        RunError: the machine refuses, as a full disk does, or ends a process of ``jobs``; what was written before stays valid,
            and ``resume`` goes on.
        Diverged: training has left the finite numbers.
    """
    check_jobs(jobs, hosts is not None)
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    if isinstance(protocol, str):
        scenario = scenario.changed(protocol=protocol)
    elif protocol is not None:
        scenario = scenario.changed(protocol=named(protocol))
    method = own(protocol, scenario) if callable(protocol) else of(scenario)
    label = scenario.label
    directory = Path(out) if out else default_directory(scenario)
    other = check_directory(directory, scenario, label, resume)
    if resume and not other and has_ended(directory):  # nothing is loaded then
        forget_dead(directory)
        return Result(directory, summary(directory / "ledger.jsonl"))
    with ExitStack() as stack:
        if there := directory.exists():  # before the work of preparing, which another process may be doing as well
            stack.enter_context(claimed(directory))
            check_directory(directory, scenario, label, resume)
        torch.set_num_threads(1)  # sums in a fixed order: a run repeats bit for bit
        with overheard() as warned:
            prepared = ready(scenario, method)
        if hosts is not None:
            prepared.hosts = dict(hosts(prepared))
        if not there:
            stack.enter_context(claimed(directory))
            check_directory(directory, scenario, label, resume)
        if jobs > 1 and len(prepared.hosts) > 1:
            prepared.hosts = stack.enter_context(ahead(prepared, method.prepare, jobs))
        with on_disk(directory, GO_ON):
            _finish(_Run(prepared, method, label, directory, listener, warned))
        return Result(directory, summary(directory / "ledger.jsonl"))


def ready(scenario: Scenario, method: Method) -> Prepared:
    """Everything that can be refused before any training, and what it leaves.

    Raises:
        InputError: with the field, the value, the bound and the remedy.
    """
    check_loads(scenario, method)
    prepared = method.prepare(scenario)
    if not prepared.lora:  # what adapters take is known when they are attached
        method.check(prepared)
    return prepared


def simulator(
    prepared: Prepared, hosts: Mapping[str, Host], first_uplink_B: int, ledger: Ledger, evaluate: Evaluate, alike: int = 0
) -> Simulator:
    """Simulated time as the scenario has it, for these Hosts; ``alike``: first cycles that a longer run would make alike."""
    scenario, train = prepared.scenario, prepared.scenario.train
    return Simulator(
        prepared.plan,
        hosts,
        Pace(None if train.seconds_per_round == "device" else train.seconds_per_round, train.max_rounds),
        train.cycles,
        ledger,
        evaluate,
        train.final_flush,
        faults=NO_FAULTS if prepared.at_home else Faults(**scenario.faults.model_dump(), seed=scenario.seed),
        kinds=prepared.kinds,
        trial_B=partial(trial_B, scenario),
        first_uplink_B=first_uplink_B,
        homes=prepared.homes,
        alike=alike,
        max_update_norm=train.max_update_norm or MAX_UPDATE_NORM,
        fitted=prepared.fitted,
    )


def default_directory(scenario: Scenario) -> Path:
    """Where a run goes that is not told where."""
    return Path("runs") / f"{scenario.name}-{scenario.label}-{scenario.seed}"


def _finish(one: _Run) -> None:
    """Begin a run, or go on with it, unless it has ended; a run that is refused as it begins leaves nothing."""
    directory = one.directory
    begun = (directory / "scenario.toml").exists()
    if begun and (lacks := what_lacks(directory)) is None:
        if not (directory / SUMS).exists():
            seal(directory)
        if not go_on_longer(directory, one.label, one.scenario, len(one.prepared.plan.cycle_ends_s)):
            return
    elif begun and (directory / "model").exists():
        log.warning("warning: %s: had ended, but %s; going on from the last checkpoint", directory, lacks)
    if not begun:
        for name in LEFTOVERS - {LOCK}:
            (directory / name).unlink(missing_ok=True)
    text = header(one.label) + one.scenario.to_toml()
    if not begun or (directory / "scenario.toml").read_text() != text:  # going on with other rates
        write_whole(directory / "scenario.toml", text)
    try:
        one.play()
    except InputError:
        if not begun and not (directory / "checkpoints").exists():
            for name in FILES:
                (directory / name).unlink(missing_ok=True)
        raise


class _Run:
    """The parts of a run that live as long as it does."""

    def __init__(
        self,
        prepared: Prepared,
        method: Method,
        label: str,
        directory: Path,
        listener: Listener | None,
        warned: Sequence[str],
    ):
        self.prepared, self.method, self.label = prepared, method, label
        self.directory, self.listener, self.warned = directory, listener, warned
        self.scenario = prepared.scenario
        self.scenario_sha256 = digest(label, self.scenario)
        self.checkpoints = directory / "checkpoints"
        self.saved_at_s, self.saving_s = time.monotonic(), 0.0  # when the last checkpoint was, and how long it took

    def play(self) -> None:
        """From the last checkpoint, or from the beginning, to the end."""
        found = checkpoint.load(self.checkpoints, partial(fault, self.directory, self.scenario_sha256))
        self.number, saved = found if found else (0, None)
        for name in ("model", SUMS):  # they say that the run has ended; without sums a model would be enough
            checkpoint.remove(self.directory / name)
        start_at = saved["ledger_B"] if saved else 0
        with (
            closing(appended(self.directory / "runtime.jsonl")) as self.runtime,
            closing(Ledger(self.directory / "ledger.jsonl", start_at, self.listener)) as self.ledger,
        ):
            model = self._play(saved)
        self._save_model(model)
        seal(self.directory)

    def _play(self, saved: dict[str, Any] | None) -> dict[str, Piece]:
        self.runtime.write(json.dumps({FOLDER: str(self.scenario.base.resolve()), "environment": environment()}) + "\n")
        if not saved or self.prepared.lora:  # weights under adapters are in no checkpoint, but repeat bit for bit
            self.prepared.begin()
        begun = Beginning(saved["owned"]) if saved else self._begin()
        protocol = self.protocol = self.method.protocol(self.prepared, start(self.prepared, begun.owned))
        cycles = min(self.scenario.train.cycles, len(self.prepared.plan.cycle_ends_s))
        alike = self.method.alike(self.scenario, cycles)
        self.simulator = simulator(self.prepared, self.prepared.hosts, begun.uplink_B, self.ledger, self._evaluate, alike)
        if saved:
            vars(protocol).update(saved["protocol"])
            self.simulator.restore(saved["simulator"])
            self._say_rates(saved["rates"])
            self._say_cycles(saved.get("cycles"))
        else:
            self.ledger.write("evaluate", 0, cycle=0, **self.simulator.books.totals, **self._evaluate(protocol.model, 0))
        self.simulator.run(protocol, lambda: self._pause(protocol, begun.owned))
        return protocol.model

    def _say_rates(self, before: dict[str, float]) -> None:
        """Learning rates that are others than in the checkpoint, to whoever reads the ledger or the terminal."""
        now = rates(self.scenario)
        if other := changed_rates(before, now):
            self.ledger.write("rates", self.simulator.now_s, **other)
            for name, rate in other.items():
                log.warning("warning: going on with %s = %g (%g before)", name, rate, before[name])

    def _say_cycles(self, before: int | None) -> None:
        """That the run goes on beyond what it was to be."""
        if before not in (None, now := self.scenario.train.cycles):
            self.ledger.write("longer", self.simulator.now_s, cycle=self.simulator.books.cycle, before=before, cycles=now)
            log.warning("warning: going on from cycle %d, to %d (%d before)", self.simulator.books.cycle, now, before)

    def _begin(self) -> Beginning:
        """What there is to know before the first contact, in the ledger's first lines."""
        prepared, train = self.prepared, self.scenario.train
        hosts, lora, own = prepared.hosts.values(), prepared.lora, prepared.fitted.ranks
        ranks = {"ranks": {name: own.get(name, lora.rank) for name in prepared.hosts}} if lora and own else {}
        self.ledger.write(
            "run",
            0,
            format=FORMAT,
            name=self.scenario.name,
            protocol=self.label,
            seed=self.scenario.seed,
            version=__version__,
            clusters={name: list(host.samples) for name, host in prepared.hosts.items()},
            used=prepared.used(),
            links="clients" if prepared.by_client else "clusters",
            parts_B={part: prepared.model[part].size_B for part in in_order(prepared.model)},
            upload_B={part: max(host.upload_B(part) for host in hosts) for part in in_order(prepared.model)},
            **ranks,
            shared=in_order(train.shared),
            cycles=train.cycles,
            local_steps=train.local_steps,
            target=self.scenario.evaluation.target,
            validation=self.scenario.evaluation.validation,
            plateau=[self.scenario.evaluation.patience, self.scenario.evaluation.min_gain],
        )
        for text in self.warned:
            self.ledger.write("warning", 0, text=text)
        if beside := of_links(prepared):
            self.ledger.write("baselines", 0, clusters=beside)
        return self.method.begin(prepared, self.ledger)

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
        return self.method.judge(self.prepared, self.protocol, judges)

    def _pause(self, protocol: ServerProtocol, owned: Mapping[str, frozenset[str]]) -> None:
        parting = self.simulator.parting()
        began_s = time.monotonic()
        apart_s = min(CHECKPOINT_EVERY_S * max(1.0, self.saving_s / CHECKPOINT_S), CHECKPOINT_WITHIN_S)
        due = began_s - self.saved_at_s >= apart_s
        if not parting and not due:
            return
        tree = {
            "version": __version__,
            "scenario_sha256": self.scenario_sha256,
            "rates": rates(self.scenario),
            "cycles": self.scenario.train.cycles,
            "ledger_B": self.ledger.position(),
            "ledger_sha256": self.ledger.sha256.hexdigest(),
            "owned": dict(owned),
            "protocol": {k: v for k, v in vars(protocol).items() if not k.startswith("_")},
            "simulator": self.simulator.state(),
        }
        if parting:  # first, or a run that is resumed from the other would not pass here again
            checkpoint.save(self.checkpoints / LONGER, 1, tree, last=True)
        if due:
            self.number += 1
            checkpoint.save(self.checkpoints, self.number, tree)
            self.saved_at_s = time.monotonic()
            self.saving_s = self.saved_at_s - began_s

    def _save_model(self, model: dict[str, Piece]) -> None:
        """The global model; under adapters also these, and the model below them where no path leads to it."""
        lora, scenario = self.prepared.lora, self.scenario
        if lora is not None and lora.average != "merge":
            save_adapters(self.directory / ADAPTERS, model, scenario.task.classifies)
            if scenario.warmup is not None or scenario.model.path is None:
                self._install(self.prepared.model)
                self._write("base")
        self._install(model)
        self.method.finish(self.prepared)
        self.prepared.view.merge()
        self._write("model")

    def _install(self, model: dict[str, Piece]) -> None:
        view, homes = self.prepared.view, self.prepared.homes
        for part, piece in model.items():
            if part in view.parts:
                view.install(part, piece.tensors)
        for part, link in homes.experts.items():
            view.install(part, homes.of(link, part).tensors)

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
        if name == "model":
            write_tasks(temporary, named_tasks(self.scenario, self.prepared.data))
        temporary.rename(self.directory / name)

"""What a protocol will probably ask of a link's devices next: what it asked the last time after the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..moe.parts import in_order, is_expert
from .orders import Command, following

MOST_FORESEEN = 40
OVER = ("part", ())
"""What comes after the last command of a contact."""
Then = tuple[str, tuple[Any, ...]]
"""A verb, and what it is asked."""


class Habits:
    """Of one link; nothing hangs on them but how many messages a contact takes."""

    def __init__(self, devices: Sequence[str]):
        self.devices = devices
        self.then: dict[str, Then] = {}
        self.varying: set[str] = set()  # after what the last two were not alike: a guess would be trained in vain
        self.last: Command | None = None
        self.received = 0  # how often in this contact

    def learn(self, command: Command) -> None:
        """This was decided."""
        if self.last is not None:
            key, then = self._key(self.last), (command.verb, command.args)
            self.varying = self.varying - {key} if self.then.get(key, then) == then else self.varying | {key}
            self.then[key] = then
        self.last = command
        self.received += command.verb == "receive"

    def over(self) -> None:
        """The contact has ended as it should."""
        if self.last is not None:
            self.then[self._key(self.last)] = OVER

    def likely(self, command: Command) -> list[Command]:
        """What will probably be decided after a command that was, or might be."""
        found: list[Command] = []
        while (then := self._next(command)) is not None and len(found) < MOST_FORESEEN:
            command = following(command.id, *then)
            found.append(command)
        return found

    def ends(self, command: Command) -> bool:
        """Whether the contact is over after a command, as it was the last time; at first, a guess, with the second send."""
        if command.verb == "own":
            return True
        key = self._key(command)
        return self.then[key] == OVER if key in self.then else command.verb == "receive" and self.received > 0

    def _key(self, command: Command) -> str:
        """What a habit goes by."""
        if command.verb == "train":
            return repr(("train", in_order(command.args[0].parts), command.args[0].rounds is None))
        if command.verb == "receive":  # the how manieth of a contact; one that is not decided is the next
            return repr(("receive", self.received + (command is not self.last)))
        return command.verb

    def _next(self, command: Command) -> Then | None:
        if command.verb == "snapshot":  # of one device after the other
            device, parts = command.args
            at = self.devices.index(device) + 1
            return ("snapshot", (self.devices[at], parts)) if at < len(self.devices) else None
        if (then := self.then.get(self._key(command))) is not None:
            return then if then[0] == "snapshot" or (then[0] == "train" and self._key(command) not in self.varying) else None
        if command.verb == "train":  # a guess: in contact shared parts are collected after it, and all after an absence
            task = command.args[0]
            parts = in_order(task.parts - task.keeps)
            wanted = [part for part in parts if task.rounds is None or not is_expert(part)]
            return ("snapshot", (self.devices[0], wanted)) if wanted else None
        return None

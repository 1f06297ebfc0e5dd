"""The circuit breaker over a clock of one's own."""

from fedexperts.peer.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def broken() -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(first_s=1.0, most_s=5.0, clock=clock), clock


def test_a_failure_suspects_and_what_was_on_its_way_counts_once() -> None:
    breaker, clock = broken()
    assert breaker.failed("late")
    assert not breaker.failed("late too")
    assert (breaker.suspected, breaker.failures, breaker.reason, breaker.left_s) == (True, 1, "late", 1.0)
    clock.now += 0.25
    assert breaker.left_s == 0.75


def test_suspicion_doubles_up_to_a_bound() -> None:
    breaker, _ = broken()
    breaker.failed("late")
    found = []
    for _ in range(4):
        breaker.probed("still late")
        found.append(breaker.left_s)
    assert found == [2.0, 4.0, 5.0, 5.0]
    for _ in range(5000):
        breaker.probed("still late")
    assert breaker.left_s == 5.0


def test_a_probe_ends_the_suspicion_and_only_an_answer_forgets_the_failures() -> None:
    breaker, _ = broken()
    breaker.failed("late")
    breaker.probed(None)
    assert not breaker.suspected
    breaker.failed("late again")
    assert breaker.left_s == 2.0
    breaker.probed(None)
    breaker.answered()
    breaker.failed("late")
    assert breaker.left_s == 1.0


def test_an_answer_that_was_on_its_way_ends_no_suspicion() -> None:
    breaker, _ = broken()
    breaker.failed("late")
    breaker.answered()
    assert (breaker.suspected, breaker.failures) == (True, 1)

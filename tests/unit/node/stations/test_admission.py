"""Room that is promised before it is taken, who is put off and who is refused, and how long a case may take."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from engines.inference.estimate import Estimate
from node.errors import DeviceBusy, DoesNotFit, TooLong
from node.stations.admission import LEAST_BUDGET_S, Admission, Promises, budget_s
from node.stations.memory import Memory

GB = 1_000_000_000


class Machine:
    """So much memory, of which this process holds some."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.alone = limit, 0, True
        self.promises = Promises(lambda: self.held)
        self.allowed: list[float] = []

    def case(self) -> Admission:
        return Admission(self.promises, self.memory, lambda: self.alone, self.allowed.append)

    def memory(self) -> Memory:
        return Memory(self.limit - self.held, self.limit)


def told(memory: float, seconds: float | None = 1.0) -> Estimate:
    return Estimate(int(memory * GB), 0, seconds, 10)


def test_what_is_promised_is_not_free_for_others() -> None:
    """Two that fit one by one: the second asks before the first has taken anything."""
    machine = Machine(4 * GB)
    with machine.case().computing(told(2.0)):
        machine.alone = False
        with (
            pytest.raises(DeviceBusy, match=r"1.6 GB are free now: it is tried again alone"),
            machine.case().loading(2 * GB),
        ):
            pytest.fail("it was let in")
        with machine.case().loading(GB):
            assert machine.promises.outstanding == 3_600_000_000
    with machine.case().loading(3 * GB):
        pass


def test_what_was_taken_is_counted_once() -> None:
    """A case that has grown by what it was promised takes nothing more; images that came meanwhile are not its own."""
    machine = Machine(10 * GB)
    with ExitStack() as first:
        first.enter_context(machine.case().computing(told(5.0)))
        with machine.case().loading(GB):
            machine.held += GB
        assert machine.promises.outstanding == pytest.approx(6 * GB, abs=0.2 * GB)
        machine.held += 5 * GB
        assert machine.promises.outstanding == pytest.approx(GB, abs=0.2 * GB)
        with machine.case().loading(2 * GB):
            pass
    assert machine.promises.outstanding == 0


def test_images_are_counted_whole_until_they_are_there() -> None:
    machine = Machine(4 * GB)
    machine.alone = False
    with machine.case().loading(2 * GB), pytest.raises(DeviceBusy), machine.case().loading(2 * GB):
        pytest.fail("it was let in")
    with pytest.raises(ZeroDivisionError), machine.case().loading(2 * GB):
        raise ZeroDivisionError
    assert machine.promises.outstanding == 0


@pytest.mark.parametrize("what", ["loading", "computing"])
def test_only_who_is_alone_is_refused_for_good(what: str) -> None:
    """Beside others a case comes again; alone it is told how much there is, and how much it would take."""
    machine = Machine(2 * GB)

    def ask() -> Any:
        return machine.case().loading(3 * GB) if what == "loading" else machine.case().computing(told(3.0))

    machine.alone = False
    with pytest.raises(DeviceBusy, match=r"3.0 GB .* tried again alone"), ask():
        pytest.fail("it was let in")
    machine.alone = True
    with pytest.raises(DoesNotFit, match=r"3.0 GB .* allows 2.0 GB in all"), ask():
        pytest.fail("it was let in")
    machine.limit, machine.held = 8 * GB, 7 * GB
    with pytest.raises(DeviceBusy, match=r"1.0 GB are free now, and no other"), ask():
        pytest.fail("it was let in")


def test_a_fifth_is_kept_in_reserve() -> None:
    machine = Machine(2_300_000_000)
    with pytest.raises(DoesNotFit), machine.case().computing(told(2.0)):
        pytest.fail("it was let in")


@pytest.mark.parametrize(("seconds", "allowed"), [(None, []), (10.0, [LEAST_BUDGET_S]), (20_000.0, [60_000.0])])
def test_a_case_may_take_three_times_what_was_told(seconds: float | None, allowed: list[float]) -> None:
    machine = Machine(8 * GB)
    with machine.case().computing(told(1.0, seconds)):
        assert machine.allowed == allowed
    assert (budget_s(0.0), budget_s(20_000.0)) == (LEAST_BUDGET_S, 60_000.0)


def test_what_takes_longer_than_a_day_is_refused_with_the_figure() -> None:
    machine = Machine(8 * GB)
    with (
        pytest.raises(TooLong, match="about 50 hours here, 10 patches"),
        machine.case().computing(told(1.0, 180_000.0)),
    ):
        pytest.fail("it was let in")
    assert machine.allowed == []

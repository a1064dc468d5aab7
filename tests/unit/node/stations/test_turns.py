"""Places and the device: how many at a time, in which order, and who is alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.stations.turns import VOLUMES, Turns

LIMIT_S = 30.0


class Guest:
    """A job in a thread: comes, stays until it is told to go."""

    def __init__(
        self, pool: ThreadPoolExecutor, come: Callable[[Guest], contextlib.AbstractContextManager[None]]
    ) -> None:
        self.rests, self.inside, self.go = threading.Event(), threading.Event(), threading.Event()
        self._done = pool.submit(self._stay, come)

    def _stay(self, come: Callable[[Guest], contextlib.AbstractContextManager[None]]) -> None:
        with come(self):
            self.inside.set()
            assert self.go.wait(LIMIT_S)

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        self.rests.set()
        yield

    def leave(self) -> None:
        self.go.set()
        self._done.result(LIMIT_S)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as opened:
        yield opened


def place(turns: Turns, alone: bool = False) -> Callable[[Guest], contextlib.AbstractContextManager[None]]:
    return lambda guest: turns.place(alone, guest.rest)


def device(turns: Turns) -> Callable[[Guest], contextlib.AbstractContextManager[None]]:
    return lambda guest: turns.device(guest.rest)


def test_no_more_than_the_places(pool: ThreadPoolExecutor) -> None:
    turns = Turns()
    first = [Guest(pool, place(turns)) for _ in range(VOLUMES)]
    assert all(guest.inside.wait(LIMIT_S) for guest in first)
    late = Guest(pool, place(turns))
    assert late.rests.wait(LIMIT_S)
    assert not late.inside.is_set()
    first[1].leave()
    assert late.inside.wait(LIMIT_S)
    assert turns.inside == VOLUMES
    for guest in (first[0], first[2], late):
        guest.leave()
    assert turns.inside == 0


def test_who_is_alone_waits_for_all_and_all_wait_for_him(pool: ThreadPoolExecutor) -> None:
    turns = Turns()
    before = Guest(pool, place(turns))
    assert before.inside.wait(LIMIT_S)
    alone = Guest(pool, place(turns, alone=True))
    assert alone.rests.wait(LIMIT_S)
    after = Guest(pool, place(turns))
    assert after.rests.wait(LIMIT_S), "whoever comes later does not overtake"
    assert not alone.inside.is_set()
    before.leave()
    assert alone.inside.wait(LIMIT_S)
    assert not after.inside.is_set()
    alone.leave()
    assert after.inside.wait(LIMIT_S)
    after.leave()


def test_two_that_must_be_alone_go_one_after_the_other(pool: ThreadPoolExecutor) -> None:
    turns = Turns()
    both = [Guest(pool, place(turns, alone=True)) for _ in range(2)]
    deadline = time.monotonic() + LIMIT_S
    while not any(guest.inside.is_set() for guest in both) and time.monotonic() < deadline:
        time.sleep(0.01)
    first, second = sorted(both, key=lambda guest: not guest.inside.is_set())
    assert second.rests.wait(LIMIT_S)
    assert not second.inside.is_set()
    first.leave()
    assert second.inside.wait(LIMIT_S)
    second.leave()


def test_the_device_goes_to_who_came_first(pool: ThreadPoolExecutor) -> None:
    turns = Turns()
    guests: list[Guest] = []
    for number in range(4):
        guests.append(Guest(pool, device(turns)))
        assert (guests[-1].rests if number else guests[-1].inside).wait(LIMIT_S)
    for number, guest in enumerate(guests):
        assert guest.inside.wait(LIMIT_S)
        assert not any(later.inside.is_set() for later in guests[number + 1 :])
        guest.leave()


def test_an_error_gives_place_and_device_back() -> None:
    turns = Turns(1)
    for _ in range(3):
        with (
            pytest.raises(ZeroDivisionError),
            turns.place(False, contextlib.nullcontext),
            turns.device(contextlib.nullcontext),
        ):
            raise ZeroDivisionError
    assert turns.inside == 0


def test_places_go_to_who_came_first(pool: ThreadPoolExecutor) -> None:
    """Also where the first in line must be alone: whoever came behind it stays behind it."""
    turns = Turns(1)
    guests: list[Guest] = []
    for number, alone in enumerate((False, False, True, False)):
        guests.append(Guest(pool, place(turns, alone)))
        assert (guests[-1].rests if number else guests[-1].inside).wait(LIMIT_S)
    for number, guest in enumerate(guests):
        assert guest.inside.wait(LIMIT_S)
        assert not any(later.inside.is_set() for later in guests[number + 1 :])
        guest.leave()


@contextlib.contextmanager
def _fails_to_rest() -> Iterator[None]:
    raise ZeroDivisionError
    yield


@contextlib.contextmanager
def _fails_after(leaves: Callable[[], None]) -> Iterator[None]:
    leaves()
    yield
    raise ZeroDivisionError


@pytest.mark.parametrize("what", ["alone", "place", "device"])
@pytest.mark.parametrize("late", [False, True])
def test_an_error_while_one_waits_blocks_nobody(pool: ThreadPoolExecutor, what: str, late: bool) -> None:
    """Whether the wait does not begin, or ends in an error: the line moves on."""
    turns = Turns(1)
    come = {"alone": place(turns, True), "place": place(turns), "device": device(turns)}[what]
    first = Guest(pool, come)
    assert first.inside.wait(LIMIT_S)
    turn = turns.device if what == "device" else lambda rest: turns.place(what == "alone", rest)
    with (
        pytest.raises(ZeroDivisionError),
        turn((lambda: _fails_after(first.go.set)) if late else _fails_to_rest),
    ):
        pytest.fail("it got in")
    first.leave()

    def come_after() -> None:
        with turns.device(contextlib.nullcontext) if what == "device" else turns.place(False, contextlib.nullcontext):
            pass

    after = threading.Thread(target=come_after, daemon=True)
    after.start()
    after.join(LIMIT_S)
    assert not after.is_alive(), "it waits behind a ghost"
    assert turns.inside == 0

"""Places for connections: never more than there are, and whoever was waited for the longest makes room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.crowd import Crowd


class Connection:
    def __init__(self, address: str) -> None:
        self.address = address
        self.pushed_out = False

    def make_room(self) -> None:
        self.pushed_out = True


def test_the_longest_waiting_makes_room_and_one_that_is_answered_does_not():
    crowd = Crowd(3, 3)
    busy, slow, idle = (Connection(name) for name in "abc")
    assert all(crowd.enter(each) for each in (busy, slow, idle))
    crowd.works(busy)
    crowd.works(slow)
    crowd.waits(slow)  # it has had an answer: it waits less long than `idle`
    assert crowd.enter(Connection("d")) and idle.pushed_out and not busy.pushed_out
    assert crowd.enter(Connection("e")) and slow.pushed_out and len(crowd) == 3


def test_where_all_are_being_answered_there_is_no_place():
    crowd = Crowd(2, 2)
    both = [Connection("a"), Connection("b")]
    for each in both:
        crowd.enter(each)
        crowd.works(each)
    assert not crowd.enter(Connection("c")) and not any(each.pushed_out for each in both)
    crowd.leave(both[0])
    assert crowd.enter(Connection("c"))


def test_an_address_pushes_out_its_own():
    crowd = Crowd(10, 2)
    other, first = Connection("good"), Connection("bad")
    assert crowd.enter(other) and crowd.enter(first)
    assert all(crowd.enter(Connection("bad")) for _ in range(20))
    assert first.pushed_out and not other.pushed_out and len(crowd) == 3


ACTS = st.lists(st.tuples(st.sampled_from(["enter", "leave", "waits", "works"]), st.integers(0, 30), st.sampled_from("abc")), max_size=120)


@given(ACTS, st.integers(1, 6), st.integers(1, 4))
def test_the_bounds_hold_whatever_happens(acts, most, most_per_address):
    """Who is inside was let in, and neither left nor was pushed out."""
    crowd, inside = Crowd(most, most_per_address), []
    for act, number, address in acts:
        if act == "enter":
            newcomer = Connection(address)
            entered = crowd.enter(newcomer)
            inside = [each for each in inside if not each.pushed_out] + [newcomer] * entered
        elif inside:
            each = inside[number % len(inside)]
            getattr(crowd, act)(each)
            inside = [one for one in inside if act != "leave" or one is not each]
        assert len(crowd) == len(inside) <= most
        assert all(sum(each.address == name for each in inside) <= most_per_address for name in "abc")

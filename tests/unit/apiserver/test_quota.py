"""How much is taken of a peer."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from apiserver.admission import OUTSIDE_POD_CIDRS
from apiserver.quarantine import Quarantine
from apiserver.quota import OVER_BYTES, OVER_RECORDS, Pace, changes
from clustermesh.kube.objects import PeerQuota
from clustermesh.wire.keys import Kind
from tests.integration.apiserver.exports import FIRST_IDENTITY, address, identity, node
from tests.unit.apiserver.judging import Judged

ID, A, N = Kind.IDENTITIES, Kind.ADDRESSES, Kind.NODES
FIRST, SECOND, THIRD = (str(FIRST_IDENTITY + number) for number in range(3))


def test_a_record_too_many_waits_until_another_one_goes() -> None:
    red = Judged(quota=PeerQuota(records=2))
    assert [red.say(ID, name, identity()) for name in (FIRST, SECOND, THIRD)] == [None, None, OVER_RECORDS]
    assert red.say(ID, FIRST, identity(app="other")) is None, "one that is there may change"
    red.say(ID, FIRST, None)
    assert red.sees(ID, THIRD) and red.reason(ID, THIRD) is None
    assert red.admission.usage.records == 2


def test_bytes_beyond_the_quota_wait_and_the_last_good_value_stays() -> None:
    small, large = identity(app="a"), identity(app="a" * 500)
    red = Judged(quota=PeerQuota(bytes=2 * len(small) + 100))
    assert red.say(ID, FIRST, small) is None
    assert red.say(ID, SECOND, large) == OVER_BYTES
    assert red.say(ID, FIRST, large) == OVER_BYTES
    assert red.readers.seen[ID, FIRST] == small
    assert red.say(ID, SECOND, small) is None
    assert red.say(ID, FIRST, small) is None


def test_the_first_in_line_comes_in_first() -> None:
    red = Judged(quota=PeerQuota(records=1))
    for name in (FIRST, SECOND, THIRD):
        red.say(ID, name, identity())
    red.say(ID, FIRST, None)
    assert red.sees(ID, SECOND) and red.reason(ID, THIRD) == OVER_RECORDS


def test_a_list_made_anew_keeps_who_was_there_first() -> None:
    red = Judged(quota=PeerQuota(records=1))
    red.say(ID, SECOND, identity())
    red.admission.begin(ID)
    for name in (FIRST, SECOND):
        red.say(ID, name, identity())
    red.admission.complete(ID)
    red.admission.finish()
    assert red.sees(ID, SECOND) and red.reason(ID, FIRST) == OVER_RECORDS


def test_what_was_forgotten_is_read_again_once_it_may_be_right() -> None:
    red = Judged(quarantine=Quarantine("red", most=1))
    red.say(N, "red-1", node("red-1"))
    assert red.say(A, "10.5.2.7", address("10.5.2.7")) == OUTSIDE_POD_CIDRS
    assert red.say(A, "10.5.2.8", address("10.5.2.8")) is None
    assert not red.sees(A, "10.5.2.8")
    assert red.admission.quarantine.view().total == 2
    assert not red.readers.asked_again
    red.say(N, "red-2", node("red-2", "10.5.2.0/24", "192.0.2.22"))
    assert red.readers.asked_again[A] and red.sees(A, "10.5.2.7")
    red.admission.begin(A)
    for ip in ("10.5.2.7", "10.5.2.8"):
        red.say(A, ip, address(ip))
    red.admission.complete(A)
    assert red.sees(A, "10.5.2.8") and red.admission.quarantine.view().total == 0


def test_a_hostile_peer_cannot_make_us_remember_everything() -> None:
    red = Judged(quarantine=Quarantine("red", most=100))
    for number in range(1000):
        red.admission.take(A, f"key-{number}".encode(), b"{")
        red.admission.take(Kind.SERVICES, b"\xff" * number, b"x")
    red.admission.finish()
    admission = red.admission
    assert sum(1 for kind in Kind for _ in admission.quarantine.tails(kind)) == 100
    assert admission.quarantine.view().total == 2000
    assert not list(admission._mentions()) and not admission._line


def test_a_large_value_counts_as_several_changes() -> None:
    assert changes([None, b"", b"x" * 511]) == 3
    assert changes([b"x" * 512]) == 2
    assert changes([b"x" * 1_000_000]) == 1954


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pace(clock: _Clock, rate: float, burst: float) -> Pace:
    return Pace(rate, burst=burst, clock=clock, sleep=clock.sleep)


async def test_a_burst_passes_and_what_follows_waits_for_the_rate() -> None:
    clock = _Clock()
    limit = pace(clock, 10, 50)
    await limit.spend(50)
    assert not clock.slept
    await limit.spend(20)
    assert clock.slept == [2.0]
    clock.now += 1
    await limit.spend(10)
    assert clock.slept == [2.0]
    assert limit.waited == 2.0


async def test_who_is_quiet_saves_no_more_than_a_burst() -> None:
    clock = _Clock()
    limit = pace(clock, 10, 50)
    await limit.spend(1)
    clock.now += 1000
    await limit.spend(60)
    assert clock.slept == [1.0]


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 10)), min_size=1, max_size=30))
async def test_no_stretch_of_time_sees_more_than_burst_and_rate(steps: list[tuple[int, float]]) -> None:
    clock = _Clock()
    limit = pace(clock, 10, 50)
    passed = [(0.0, 0)]
    total = 0
    for amount, pause in steps:
        await limit.spend(amount)
        total += amount
        passed.append((clock.now, total))
        clock.now += pause
    for (earlier, _), (now, done) in pairwise(passed):
        assert done <= 50 + 10 * now + 1e-6
        assert now >= earlier

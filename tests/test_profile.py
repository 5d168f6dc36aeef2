"""Profiles: regions' own times add up to all of it, and cost nothing while none is taken."""

import threading
import time

import pytest

from rdm.timing.regions import OTHER, Profile, profiled, region


@region("within")
def within() -> None:
    time.sleep(0.02)


def step() -> None:
    with region(OTHER):
        with region("around"):
            time.sleep(0.01)
            within()
            within()
        thread = threading.Thread(target=within)  # of another thread nothing is counted
        thread.start()
        thread.join()


def test_regions_have_their_own_time_and_add_up():
    taken = Profile()
    with profiled(taken):
        within()  # before the first step
        began = time.perf_counter()
        step()
        step()
        whole = time.perf_counter() - began
    within()
    assert taken.steps == 2 and taken.calls["within"] == 4 and taken.calls["around"] == 2
    assert taken.seconds["within"] >= 4 * 0.02 and taken.seconds["around"] >= 2 * 0.01 and taken.seconds[OTHER] >= 0.04
    assert sum(taken.seconds.values()) == pytest.approx(whole, rel=0.02)
    assert sum(float(row[3].rstrip("%")) for row in taken.rows()) == pytest.approx(100, abs=0.3)
    assert taken.record()["regions"]["within"]["calls"] == 4


def test_outside_is_what_is_no_region_of_the_work():
    taken = Profile()
    with profiled(taken), region(OTHER):
        for name in ("generator, backward", "encoder pixels", "statistics", "distances", "clipping"):
            with region(name):
                time.sleep(0.01)
    outside = taken.seconds[OTHER] + taken.seconds["clipping"]
    assert taken.outside == pytest.approx(outside / sum(taken.seconds.values()))
    assert 0.15 < taken.outside < 0.5


def test_a_region_costs_next_to_nothing_when_no_profile_is_taken():
    inside = region("inside")
    began = time.process_time()
    for _ in range(10_000):
        with inside:
            pass
    assert time.process_time() - began < 0.1  # 10 us each; about 0.2 us

"""What is read ahead comes in order, early, and never hides an error."""

import threading
import time

import pytest

from fedhess.base.prefetching import read_ahead


def test_what_comes_next_is_read_before_it_is_asked_for() -> None:
    read: list[int] = []
    third = threading.Event()

    def note(item: int) -> int:
        read.append(item)
        if item == 2:
            third.set()
        return 10 * item

    results = read_ahead(note, range(5), ahead=2)
    assert next(results) == 0
    assert third.wait(5), "two more are read while the first is worked on"
    assert read == [0, 1, 2]
    assert list(results) == [10, 20, 30, 40]
    assert read == [0, 1, 2, 3, 4]


def test_reading_happens_in_another_thread_only_if_ahead() -> None:
    here = threading.get_ident()
    assert set(read_ahead(lambda _: threading.get_ident(), range(3), ahead=0)) == {here}
    others = set(read_ahead(lambda _: threading.get_ident(), range(3), ahead=1))
    assert len(others) == 1
    assert here not in others


def test_an_error_comes_where_its_result_would_have() -> None:
    results = read_ahead(lambda item: 1 // item, [1, 1, 0, 1], ahead=2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_asking_leaves_no_thread_behind() -> None:
    results = read_ahead(lambda item: item, range(100), ahead=3)
    assert next(results) == 0
    results.close()
    for _ in range(100):
        if not any(thread.name.startswith("fedhess-reader") for thread in threading.enumerate()):
            return
        time.sleep(0.05)
    pytest.fail("the reading thread is still there")

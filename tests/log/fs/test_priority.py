"""The lowest priority is that of one thread; the others of its process keep theirs."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from mldb.log.fs.priority import be_last, go_first
from tests.support.processes import Child, Line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells them apart")


def _act(line: Line) -> None:
    def work() -> None:
        be_last()
        be_last()  # again, nothing happens
        own = threading.get_native_id()
        line.say(os.sched_getscheduler(own), os.getpriority(os.PRIO_PROCESS, own))

    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    line.say((os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before)
    go_first()
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        line.say(file.read().strip())


def test_only_the_thread_that_asks_comes_last_and_the_process_goes_first() -> None:
    with Child(_act) as child:
        assert child.hear() == [str(os.SCHED_BATCH), "19"]
        assert child.hear() == ["True"]
        assert child.hear() == ["500"]
        assert child.wait() == 0

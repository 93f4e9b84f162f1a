# SPDX-License-Identifier: Apache-2.0
"""Containers that their first connection starts, and that nobody's interest stops."""

from __future__ import annotations

import itertools

from tests.host.hosts import Host
from tests.host.service import Service, kill_agent
from tests.host.test_handles import define
from tests.host.test_sockets import ask

STREAM = '[[socket]]\nname = "http"\nlisten_stream = "127.0.0.1:8081"\non_demand = true\n'
DATAGRAM = '[[socket]]\nname = "dg"\nlisten_datagram = "127.0.0.1:8082"\non_demand = true\n'
ADDRESS = "TCP4:127.0.0.1:8081"


def test_first_connection_starts_it(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM)
    clean.reload()
    assert service.status["state"] == "inactive"
    assert service.status["status_text"] == "listening on 127.0.0.1:8081"
    assert ask(clean, ADDRESS) == "hello lazy"
    service.event("socket-triggered")
    assert service.status["state"] == "running"


def test_first_datagram_starts_it_and_is_not_lost(clean: Host) -> None:
    service = Service(clean, "lazy").define(DATAGRAM)
    clean.reload()
    clean.run("for i in 1 2 3; do echo $i | socat -u - UDP4:127.0.0.1:8082; done")
    service.started()
    service.tell("fds", "fds", "fds")
    assert service.datagrams() == ["1", "2", "3"]


def test_a_burst_while_it_starts(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM)
    clean.reload()
    burst = f"for i in $(seq 40); do (echo $i | socat -t20 - {ADDRESS}) & done; wait"
    answers = clean.run(burst, timeout=40).stdout.splitlines()
    assert sorted(answers) == sorted(f"{i} lazy" for i in range(1, 41))
    assert len(clean.journal("CLEAT_CONTAINER=lazy", "CLEAT_EVENT=started")) == 1
    assert service.status["restarts"] == 0


def test_idle_stops_and_demand_starts_again(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM + 'stop_idle_sec = "400ms"\n')
    clean.reload()
    for _ in range(3):
        mark = clean.cursor()
        assert ask(clean, ADDRESS) == "hello lazy"
        service.event("idle", since=mark)
        service.event("stopped", since=mark)
    assert service.status["state"] == "inactive"


def test_datagrams_keep_it(clean: Host) -> None:
    """They are read at once, and are no connections: what keeps it is that they came."""
    service = Service(clean, "lazy").define(DATAGRAM + 'stop_idle_sec = "600ms"\n')
    clean.reload()
    clean.run("for i in $(seq 12); do echo $i | socat -u - UDP4:127.0.0.1:8082; sleep 0.2; done")
    assert len(clean.journal("CLEAT_CONTAINER=lazy", "CLEAT_EVENT=started")) == 1
    assert not clean.journal("CLEAT_CONTAINER=lazy", "CLEAT_EVENT=idle")
    service.event("stopped")
    assert service.datagrams() == [str(i) for i in range(1, 13)]
    assert service.status["state"] == "inactive"


def test_a_connection_keeps_it(clean: Host) -> None:
    """payload.py answers and hangs up; one that holds its connection is cat's."""
    root = clean.rootfs("nc", "/usr/bin/socat")
    clean.definition(
        "held",
        f'rootfs = "{root}"\ncommand = ["/bin/socat", "-t60", "ACCEPT-FD:3", "EXEC:/bin/cat"]\n'
        '[service]\nrestart = "no"\n' + STREAM + 'stop_idle_sec = "300ms"\n',
    )
    other = Service(clean, "other").define(DATAGRAM + 'stop_idle_sec = "1s"\n')
    clean.reload()
    with clean.start(["socat", "-t60", "-", ADDRESS]) as client:
        assert client.stdin is not None
        client.stdin.write(b"x\n")
        client.stdin.flush()
        clean.wait_event("held", "started")
        clean.run("echo 1 | socat -u - UDP4:127.0.0.1:8082")
        other.event("idle")
        assert clean.status("held")["state"] == "running"
        client.stdin.close()
        client.terminate()
    clean.wait_event("held", "stopped" if clean.status("held")["state"] == "running" else "exited")


def test_a_stop_by_a_person_is_final_until_a_start(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM)
    clean.reload()
    ask(clean, ADDRESS)
    clean.cleat("stop", "lazy")
    with clean.start(["socat", "-t20", "-", ADDRESS]) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"anybody\n")
        client.stdin.close()
        clean.run("until ss -Htn state connected 'sport = 8081' | grep -q .; do :; done")
        clean.reload()
        kill_agent(clean)
        assert service.status["state"] == "inactive"
        assert len(clean.journal("CLEAT_CONTAINER=lazy", "CLEAT_EVENT=socket-triggered")) == 1
        clean.cleat("start", "lazy")
        assert client.stdout.read() == b"anybody lazy\n"


def test_stop_before_the_first_connection(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM)
    clean.reload()
    clean.cleat("stop", "lazy")
    with clean.start(["socat", "-t20", "-", ADDRESS]):
        clean.run("until ss -Htn state connected 'sport = 8081' | grep -q .; do :; done")
        clean.reload()
        assert service.status["state"] == "inactive"


def test_listens_on_after_the_agent(clean: Host) -> None:
    Service(clean, "lazy").define(STREAM)
    clean.reload()
    kill_agent(clean)
    assert ask(clean, ADDRESS) == "hello lazy"
    clean.run("systemctl stop cleat; systemctl start cleat")
    clean.cleat("kill", "-s", "KILL", "lazy")
    assert ask(clean, ADDRESS) == "hello lazy"


def test_a_changed_definition_is_listened_for(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM)
    clean.reload()
    service.define(STREAM.replace("8081", "8083"))
    clean.reload()
    assert service.status["status_text"] == "listening on 127.0.0.1:8083"
    assert ask(clean, "TCP4:127.0.0.1:8083") == "hello lazy"
    clean.cleat("kill", "-s", "TERM", "lazy")
    service.event("exited")
    service.define(STREAM.replace("on_demand = true", ""))
    mark = clean.cursor()
    clean.reload()
    service.started(since=mark)


def test_a_start_that_fails_does_not_spin(clean: Host) -> None:
    """The connection that waits would start it again and again: the delays of restarts hold here too."""
    clean.rootfs("busybox")
    clean.definition(
        "broken",
        'rootfs = "/srv/busybox"\ncommand = ["/bin/false"]\n[service]\nrestart = "no"\nrestart_sec = "200ms"\n'
        + STREAM,
    )
    clean.reload()
    with clean.start(["socat", "-t30", "-", ADDRESS]):
        count = itertools.count(1)
        third = clean.wait_journal("CLEAT_CONTAINER=broken", "CLEAT_EVENT=exited", where=lambda _: next(count) == 3)
    starts = clean.journal("CLEAT_CONTAINER=broken", "CLEAT_EVENT=socket-triggered")
    first = int(starts[0]["__REALTIME_TIMESTAMP"])
    assert int(third["__REALTIME_TIMESTAMP"]) - first > 600_000


def test_trigger_limit(clean: Host) -> None:
    """One that ends well at once and never takes its connection is given up, as by systemd."""
    clean.rootfs("busybox")
    clean.definition(
        "useless",
        'rootfs = "/srv/busybox"\ncommand = ["/bin/true"]\n'
        + STREAM
        + 'trigger_limit_interval_sec = "30s"\ntrigger_limit_burst = 4\n',
    )
    clean.reload()
    with clean.start(["socat", "-t30", "-", ADDRESS]):
        clean.wait_event("useless", "socket-trigger-limit")
        assert clean.status("useless")["state"] == "failed"
        assert "too often" in clean.status("useless")["error"]
    assert len(clean.journal("CLEAT_CONTAINER=useless", "CLEAT_EVENT=started")) == 4


def test_what_it_requires_is_started_first_and_what_conflicts_stopped(clean: Host) -> None:
    service = Service(clean, "lazy")
    service.define(STREAM, keys='requires = ["db"]\nafter = ["db"]\nconflicts = ["rival"]')
    define(clean, "db", "sleep 0.3", service='type = "oneshot"\nrestart = "no"')
    define(clean, "rival")
    clean.reload()
    assert (service.status["state"], clean.status("db")["state"]) == ("inactive", "inactive")
    clean.cleat("start", "rival")
    assert ask(clean, ADDRESS) == "hello lazy"
    assert [clean.status(name)["state"] for name in ("db", "rival", "lazy")] == ["exited", "inactive", "running"]
    finished = clean.journal("CLEAT_EVENT=exited", "CLEAT_CONTAINER=db")[0]["__MONOTONIC_TIMESTAMP"]
    began = clean.journal("CLEAT_EVENT=started", "CLEAT_CONTAINER=lazy")[0]["__MONOTONIC_TIMESTAMP"]
    assert int(finished) <= int(began)
    # And as with any start: what it requires stops it.
    clean.cleat("start", "db")
    clean.cleat("stop", "db")
    assert service.status["state"] == "inactive"


def test_a_requirement_that_fails_is_tried_again(clean: Host) -> None:
    """The connection waits in the socket's queue, with the delays of restarts between the attempts."""
    service = Service(clean, "lazy").define(STREAM, keys='requires = ["db"]')
    define(clean, "db", "test -e /ok", service='type = "oneshot"\nrestart = "no"')
    clean.run(["rm", "-f", "/srv/bb/ok"])
    clean.reload()
    with clean.start(["socat", "-t20", "-", ADDRESS]) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"anybody\n")
        client.stdin.close()
        service.event("dependency-failed")
        assert service.status["state"] == "failed"
        assert "db is required and failed" in service.status["error"]
        clean.run(["touch", "/srv/bb/ok"])
        assert client.stdout.read() == b"anybody lazy\n"
    assert service.status["state"] == "running"


def test_a_stop_while_it_waits_for_what_it_requires(clean: Host) -> None:
    service = Service(clean, "lazy").define(STREAM, keys='requires = ["db"]')
    define(clean, "db", "while test ! -e /ok; do sleep 0.1; done", service='type = "oneshot"\nrestart = "no"')
    clean.run(["rm", "-f", "/srv/bb/ok"])
    clean.reload()
    with clean.start(["socat", "-t20", "-", ADDRESS]):
        clean.wait_event("db", "started")
        clean.cleat("stop", "lazy")
        clean.cleat("exec", "db", "--", "touch", "/ok")
        clean.wait_event("db", "exited")
        assert service.status["state"] == "inactive"
    assert clean.journal("CLEAT_CONTAINER=lazy", "CLEAT_EVENT=started") == []

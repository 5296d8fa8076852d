"""Seats at a shared engine: each front end is a process of its own here, as it is in Triton."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.topology import front_ends
from triton_vllm.topology.front_ends import EngineAddresses, FrontEndSlot
from triton_vllm.topology.rendezvous import is_held, rendezvous_dir

PACKAGE = Path(front_ends.__file__).parents[2]

# Takes a slot, says which, then does what its standard input asks for.
FRONT_END = """
import asyncio
import json, sys
from pathlib import Path
from triton_vllm.errors import SettingsError
from triton_vllm.topology.front_ends import EngineAddresses, FrontEndSlot

slot = FrontEndSlot.claim(Path(sys.argv[1]), int(sys.argv[2]))
print(json.dumps([slot.cohort.name, slot.index]), flush=True)
for line in sys.stdin:
    if line == "publish\\n":
        slot.publish(EngineAddresses(["in"], ["out"], None, [1]))
        print("published", flush=True)
    elif line == "wait\\n":
        try:
            print(asyncio.run(slot.wait_for_engine()).inputs, flush=True)
        except SettingsError as error:
            print(error, flush=True)
    elif line == "give up\\n":
        slot.announce_restarts_exhausted()
        print(slot.restarts_exhausted, flush=True)
    elif line == "leave\\n":
        slot.release()
        print("left", flush=True)
"""


class FrontEnd:
    """A process that sits at a shared engine."""

    def __init__(self, directory: Path, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FRONT_END, str(directory), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PACKAGE)},
        )
        self.cohort, self.index = json.loads(self.answer())

    def answer(self) -> str:
        """Return the next line that it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        """Ask for something and return what it says."""
        self.tell(what)
        return self.answer()

    def tell(self, what: str) -> None:
        """Ask for something."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def die(self) -> None:
        """Die as a crashed process does: without a word."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sit(tmp_path: Path) -> Iterator[Callable[..., FrontEnd]]:
    """Start front ends; all are ended after the test."""
    started: list[FrontEnd] = []

    def start(count: int = 2, directory: Path = tmp_path) -> FrontEnd:
        started.append(FrontEnd(directory, count))
        return started[-1]

    yield start
    for each in started:
        each.die()


def slot_of(front_end: FrontEnd) -> tuple[str, int]:
    return front_end.cohort, front_end.index


def test_the_first_leads_and_the_others_follow(sit: Callable[..., FrontEnd]) -> None:
    """Front ends fill one cohort in the order in which they come."""
    assert [("0-of-3", 0), ("0-of-3", 1), ("0-of-3", 2)] == [slot_of(sit(3)) for _ in range(3)]


def test_a_full_generation_is_followed_by_another(sit: Callable[..., FrontEnd]) -> None:
    """A reload, whose front ends start while the old ones live, gets an engine of its own."""
    old = [sit(), sit()]
    new = [sit(), sit()]
    assert ["0-of-2", "0-of-2"] == [each.cohort for each in old]
    assert [("1-of-2", 0), ("1-of-2", 1)] == [slot_of(each) for each in new]


def test_other_counts_never_mix(sit: Callable[..., FrontEnd]) -> None:
    """A reload with another number of front ends does not fill up the old cohort."""
    assert ("0-of-2", 0) == slot_of(sit(2))
    assert ("1-of-3", 0) == slot_of(sit(3))


@pytest.mark.parametrize("how", ["leave", "die"])
def test_a_generation_that_lost_one_admits_nobody(sit: Callable[..., FrontEnd], how: str) -> None:
    """A load that failed half way is never joined by the front ends of the next one."""
    lost, _ = sit(3), sit(3)
    if how == "leave":
        lost.ask("leave")
    else:
        lost.die()
    assert ("1-of-3", 0) == slot_of(sit(3))


def test_nothing_is_left_when_all_have_left(sit: Callable[..., FrontEnd], tmp_path: Path) -> None:
    """The last one to leave removes the cohort's folder."""
    for each in [sit(), sit()]:
        each.ask("leave")
    assert [] == list(tmp_path.glob("*-of-*"))


def test_what_a_crash_left_is_removed(sit: Callable[..., FrontEnd], tmp_path: Path) -> None:
    """The addresses of a dead cohort are never seen by a living one."""
    leader = sit()
    leader.ask("publish")
    leader.die()
    assert ("1-of-2", 0) == slot_of(sit())
    assert ["1-of-2"] == [path.name for path in tmp_path.glob("*-of-*")]


def test_a_follower_gets_what_the_leader_publishes(sit: Callable[..., FrontEnd]) -> None:
    """A front end that comes early waits; one that comes late does not."""
    leader, follower = sit(), sit()
    follower.tell("wait")
    assert "published" == leader.ask("publish")
    assert "['in']" == follower.answer()
    assert "['in']" == leader.ask("wait")


def test_a_follower_does_not_wait_for_a_dead_leader(sit: Callable[..., FrontEnd]) -> None:
    """When the leader dies while it starts the engine, the others fail with a line."""
    leader, follower = sit(), sit()
    follower.tell("wait")
    leader.die()
    assert "the front end that starts the shared engine has failed" in follower.answer()


def test_a_follower_does_not_wait_for_a_leader_that_gave_up(sit: Callable[..., FrontEnd]) -> None:
    """Out of tries the leader lives on, and tells."""
    leader, follower = sit(), sit()
    assert "False" == follower.ask("give up")  # which is not for it to say
    follower.tell("wait")
    assert "True" == leader.ask("give up")
    assert "the front end that starts the shared engine has failed" in follower.answer()


def test_nobody_waits_in_a_model_that_is_being_unloaded(tmp_path: Path) -> None:
    """Not even for an engine that another front end is starting."""
    slot = FrontEndSlot.claim(tmp_path, 2)
    slot.stop_waiting()
    with pytest.raises(SettingsError, match="the model is being unloaded"):
        asyncio.run(slot.wait_for_engine())
    slot.release()


def test_a_seat_that_somebody_has_just_removed_is_free(tmp_path: Path) -> None:
    """Front ends that start together clean up together, and none of them stumbles over it."""
    assert not is_held(tmp_path / "slot-0")


def test_a_seat_in_this_process(tmp_path: Path) -> None:
    """The leader's own view: it leads, publishes, reads back, and announces the end."""
    slot = FrontEndSlot.claim(tmp_path, 2)
    addresses = EngineAddresses(["ipc://a", "ipc://b"], ["ipc://c", "ipc://d"], "tcp://e", [7, 8])
    slot.publish(addresses)
    assert (True, 0, os.getpid()) == (slot.is_leader, slot.index, slot.leader_pid())
    assert not slot.is_closing
    slot.announce_closing()
    assert slot.is_closing
    slot.release()
    assert [] == list(tmp_path.glob("*-of-*"))


def test_models_and_versions_meet_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models, or two versions of one, have folders of their own under that of the server."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    places = {rendezvous_dir(m, v) for m, v in [("a", "1"), ("a", "2"), ("b", "1")]}
    assert 3 == len(places)
    assert 1 == len({place.parents[1] for place in places})


def test_folders_of_dead_servers_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's folder goes with the next one's start; one with our id but older is not ours."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = rendezvous_dir("m", "1").parents[2]
    (root / f"{os.getppid()}-1" / "m" / "1").mkdir(parents=True)
    (root / "4194305-77" / "m" / "1").mkdir(parents=True)  # above the largest process id
    rendezvous_dir("m", "1")
    assert 1 == len(list(root.iterdir()))


def test_the_folder_of_a_server_elsewhere_stays(
    sit: Callable[..., FrontEnd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in another container that shares the temporary directory keeps its folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = rendezvous_dir("m", "1").parents[2] / "4194305-77" / "m" / "1"
    elsewhere.mkdir(parents=True)
    sit(directory=elsewhere)
    rendezvous_dir("m", "1")
    assert elsewhere.exists()


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of our name that another user made under the temporary directory is not used."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / f"triton_vllm-{os.getuid()}").symlink_to(target)
    with pytest.raises(SettingsError, match="belongs to another user"):
        rendezvous_dir("m", "1")


def test_addresses_survive_the_file(tmp_path: Path) -> None:
    """What the leader writes is what a follower reads."""
    given: dict[str, Any] = {"inputs": ["a"], "outputs": ["b"], "stats_update": None}
    slot = FrontEndSlot.claim(tmp_path, 2)
    slot.publish(EngineAddresses(**given, processes=[1, 2]))
    assert EngineAddresses(**given, processes=[1, 2]) == EngineAddresses(
        **json.loads((tmp_path / "0-of-2/engine.json").read_text())
    )
    slot.release()


def test_front_ends_clean_up_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a dead server left is removed by whoever comes first, and the others do not mind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = rendezvous_dir("m", "1").parents[2]
    for pid in range(200):
        cohort = root / f"{4194305 + pid}-77" / "m" / "1" / "0-of-2"
        (cohort / "metrics").mkdir(parents=True)
        (cohort / "slot-0").touch()
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: rendezvous_dir("m", "1"), range(4)))
    assert 1 == len(set(places))
    assert [places[0].parents[1]] == list(root.iterdir())


def test_the_last_word_needs_no_folder(tmp_path: Path) -> None:
    """Something may have tidied it up; the engine is out of tries all the same."""
    slot = FrontEndSlot.claim(tmp_path / "engines", 1)
    shutil.rmtree(slot.cohort)
    slot.announce_restarts_exhausted()
    slot.release()

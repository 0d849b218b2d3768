"""Steps: what is run again and what is not, exit codes, and how a signal ends them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.experiment import steps
from ds_train.experiment.steps import Records, Step, run_steps
from tests.support.holding import holder_of
from tests.support.waiting import wait_until


class Commands:
    """Steps of shell commands that note in a file that they ran."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.records = directory, Records(directory / "steps")

    def step(self, name: str, more: str = "", trains: bool = False, **values) -> Step:
        script = f"cd {self.directory} && echo {name} >> ran && touch {name} && {more or 'true'}"
        run = self.directory / f"run_{name}" if trains else None
        command = ["bash", "-c", script]
        return Step(name, name, f"{name} {more}", command, self.directory / name, run=run, **values)

    def run(self, *wanted: Step) -> int:
        return run_steps(lambda: wanted, self.records)

    @property
    def ran(self) -> list[str]:
        """What ran since this was last asked."""
        path = self.directory / "ran"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def send_when(self, file: str, *numbers: int) -> threading.Thread:
        """Send signals to this process, one after the other, once a step has made a file."""

        def send() -> None:
            wait_until((self.directory / file).exists, file)
            for number in numbers:
                os.kill(os.getpid(), number)

        thread = threading.Thread(target=send)
        thread.start()
        return thread


@pytest.fixture(autouse=True)
def signals_count() -> Iterator[None]:
    """A process ignores these from its start where the tests run in the background, or under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_what_ended_well_is_not_run_again(commands: Commands) -> None:
    a, b, always = commands.step("a"), commands.step("b"), commands.step("c", always_run=True)
    assert commands.run(a, b, always) == 0 and commands.ran == ["a", "b", "c"]
    assert commands.run(a, b, always) == 0 and commands.ran == ["c"]


def chain(commands: Commands, more: str = "") -> list[Step]:
    """Steps a, b, c, of which c needs b, and b needs a; and d, which needs none."""
    a = commands.step("a", more)
    b = commands.step("b", needs=(a,))
    return [a, b, commands.step("c", needs=(b,)), commands.step("d")]


def test_a_changed_step_is_run_again_with_all_that_need_it(commands: Commands) -> None:
    assert commands.run(*chain(commands)) == 0 and commands.ran == ["a", "b", "c", "d"]
    changed = chain(commands, "echo other")
    assert commands.run(changed[0]) == 0 and commands.ran == ["a"]
    assert commands.run(*changed) == 0 and commands.ran == ["b", "c"]
    assert commands.run(*chain(commands)) == 0 and commands.ran == ["a", "b", "c"]


def test_a_lost_result_is_made_again(commands: Commands) -> None:
    """It comes out the same, so what was made from it stays good."""
    assert commands.run(*chain(commands)) == 0 and commands.ran == ["a", "b", "c", "d"]
    (commands.directory / "b").unlink()
    assert commands.run(*chain(commands)) == 0 and commands.ran == ["b"]


def test_steps_run_in_any_order(commands: Commands) -> None:
    a, b, c, d = chain(commands)
    assert commands.run(d, a) == commands.run(a, b, c, d) == 0 and commands.ran == ["d", "a", "b", "c"]


def test_what_a_step_does_may_follow_from_an_earlier_one(commands: Commands) -> None:
    def plan() -> list[Step]:
        number = len(list(commands.directory.glob("a")))
        return [commands.step("a"), commands.step("b", f"echo {number} > found")]

    assert run_steps(plan, commands.records) == 0
    assert (commands.directory / "found").read_text() == "1\n"


@pytest.mark.parametrize("has_succeeded", [False, True])
def test_a_step_of_another_process_is_waited_for(
    has_succeeded: bool, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = commands.step("a"), commands.step("b")
    holder, sleep = holder_of(commands.directory / "steps" / ".running" / "a"), time.sleep

    def end_the_other(seconds: float) -> None:
        if holder.poll() is None:
            if has_succeeded:
                (commands.directory / "a").touch()
                commands.records.add(a, 1.0)
            holder.communicate()
        sleep(min(seconds, 0.01))

    monkeypatch.setattr(time, "sleep", end_the_other)
    assert commands.run(a, b) == 0
    assert commands.ran == (["b"] if has_succeeded else ["a", "b"])
    assert f"in use by process {holder.pid} on" in capsys.readouterr().out
    assert not list((commands.directory / "steps" / ".running").glob("*")), "only what was held is left"


def test_another_launcher_is_the_same_step(commands: Commands) -> None:
    a = commands.step("a")
    assert commands.run(a) == 0
    assert commands.run(replace(a, command=["false"])) == 0


@pytest.mark.parametrize(("ending", "code"), [("exit 1", 1), ("exit 86", 86), ("kill -9 $$", 137)])
def test_a_step_that_fails_ends_all_and_is_tried_again(commands: Commands, ending: str, code: int) -> None:
    a, b, c = commands.step("a"), commands.step("b", f"[ -e fixed ] || {ending}"), commands.step("c")
    assert commands.run(a, b, c) == code and commands.ran == ["a", "b"]
    (commands.directory / "fixed").touch()
    assert commands.run(a, b, c) == 0 and commands.ran == ["b", "c"]


def test_checks_come_first_and_only_where_the_step_is_to_run(commands: Commands) -> None:
    def refuse() -> None:
        raise UserError("no such thing")

    a, b = commands.step("a"), commands.step("b", check=refuse)
    with pytest.raises(UserError, match="no such thing"):
        commands.run(a, b)
    assert commands.ran == ["a"]
    assert commands.run(a, commands.step("b")) == 0
    assert commands.run(a, b) == 0 and commands.ran == ["b"]


TRAIN = "until [ -e run_{0}/STOP ]; do sleep 0.02; done; "


def test_nohup_is_respected(commands: Commands) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert commands.run(commands.step("a", "kill -HUP $PPID"), commands.step("b")) == 0


def test_an_interrupt_counts_in_the_background_as_well(commands: Commands) -> None:
    """Shells start background jobs with SIGINT ignored; trainers take it all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert commands.run(commands.step("a", "kill -INT $PPID"), commands.step("b")) == 85


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_trainer_through_its_file(commands: Commands, number: int) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)]
    a = commands.step("a", TRAIN.format("a") + "rm run_a/STOP; exit 86", trains=True)
    sender = commands.send_when("a", number)
    assert commands.run(a, commands.step("b")) == 85 and commands.ran == ["a"]
    sender.join()
    assert list((commands.directory / "run_a").iterdir()) == [] and not commands.records.is_done(a)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)]


def test_a_trainer_that_was_about_to_end_has_ended(commands: Commands) -> None:
    """Its STOP would end the next launch of the run."""
    a = commands.step("a", TRAIN.format("a"), trains=True)
    sender = commands.send_when("a", signal.SIGUSR1)
    assert commands.run(a, commands.step("b")) == 85 and commands.ran == ["a"]
    sender.join()
    assert list((commands.directory / "run_a").iterdir()) == []
    assert commands.records.is_done(a)


def test_an_error_after_a_signal_is_an_error(commands: Commands) -> None:
    a = commands.step("a", TRAIN.format("a") + "exit 1", trains=True)
    sender = commands.send_when("a", signal.SIGUSR1)
    assert commands.run(a) == 1
    sender.join()


def test_a_signal_ends_other_steps_at_once(commands: Commands) -> None:
    a = commands.step("a", "sleep 600")
    sender = commands.send_when("a", signal.SIGUSR1)
    assert commands.run(a, commands.step("b")) == 85 and commands.ran == ["a"]
    sender.join()


def test_a_second_signal_kills(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BURST_S", -1.0)
    a = commands.step("a", "sleep 600", trains=True)
    sender = commands.send_when("a", signal.SIGUSR1, signal.SIGTERM)
    assert commands.run(a) == 85
    sender.join()


def test_signals_that_come_together_are_one(commands: Commands) -> None:
    a = commands.step("a", TRAIN.format("a") + "touch saved; exit 86", trains=True)
    sender = commands.send_when("a", signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    assert commands.run(a) == 85
    sender.join()
    assert (commands.directory / "saved").exists()


@pytest.mark.parametrize("content", [b"[", b"", b"7", b"null", b"\xff"])
def test_after_a_damaged_record_its_step_is_run_again(
    commands: Commands, content: bytes, capsys: pytest.CaptureFixture
) -> None:
    record = commands.directory / "steps" / "a.json"
    record.parent.mkdir()
    record.write_bytes(content)
    assert commands.run(commands.step("a"), commands.step("b")) == 0
    assert commands.ran == ["a", "b"] and f"{record} cannot be read" in capsys.readouterr().out
    assert commands.run(commands.step("a"), commands.step("b")) == 0 and commands.ran == []

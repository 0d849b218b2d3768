"""Two hosts with sshd on this machine, each with its own network, processes, name and mounts, joined by a switch.

They are nothing but processes in unnamed namespaces: when their first process dies, everything of a host is gone.
"""

import os
import signal
import subprocess
from pathlib import Path

from tests.support.launching import REPOSITORY
from tests.support.waiting import wait_until

PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "ip": "iproute2"}
NAMES = ("worker-0", "worker-1")
_NAMESPACES = ("--net", "--uts", "--mount", "--pid")


class Hosts:
    """Both hosts; `start` them, and `stop` in any state."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        directory = self._directory
        directory.chmod(0o700)
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
        (directory / "user_key.pub").rename(directory / "authorized_keys")
        addresses = "".join(f"10.77.0.1{number} {name}\n" for number, name in enumerate(NAMES))
        (directory / "hosts").write_text(f"127.0.0.1 localhost\n{addresses}")
        (directory / "ssh_config").write_text(
            f"Host *\n User root\n IdentityFile {directory}/user_key\n IdentitiesOnly yes\n BatchMode yes\n"
            " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        )
        (directory / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES))
        switch = "ip link add bridge type bridge && ip link set bridge up && exec sleep infinity"
        self._processes["switch"] = subprocess.Popen(
            ["unshare", "--net", "--kill-child", "--fork", "sh", "-c", switch], start_new_session=True
        )
        wait_until(lambda: self._run_in_switch("ip link show bridge", check=False) == 0, "the switch")
        for name in NAMES:
            self.start_one(name)

    @property
    def hostfile(self) -> Path:
        return self._directory / "hostfile"

    def start_one(self, name: str) -> None:
        """Switch a host on, and wait until it answers."""
        options = [*_NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
        with (self._directory / f"{name}.log").open("a") as log:
            self._processes[name] = subprocess.Popen(
                ["unshare", *options, "sh", Path(__file__).with_name("node.sh"), self._directory, name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        first = wait_until(lambda: _child_of(self._processes[name].pid), f"first process of {name}")
        wait_until(lambda: _in_own_network(first), f"network of {name}")
        number = NAMES.index(name)
        # The hardware address stays the host's, or the other one would keep talking to the former.
        self._run_in_switch(
            f"ip link del port{number} 2>/dev/null; "
            f"ip link add port{number} type veth peer name eth0 address 02:00:00:00:00:1{number} netns {first} "
            f"&& ip link set port{number} master bridge && ip link set port{number} up"
        )
        ssh = ["ssh", "-o", "ConnectTimeout=2", name, "true"]
        wait_until(lambda: self.run(NAMES[0], ssh) == 0, f"sshd of {name}")

    def kill_one(self, name: str) -> None:
        """Kill all processes of a host at one instant; the kernel closes their connections."""
        first = _child_of(self._processes[name].pid)
        assert first
        os.kill(first, signal.SIGKILL)
        self._processes.pop(name).wait()

    def cut_off(self, name: str) -> None:
        """Pull a host's network cable: its connections stay open and silent."""
        self._run_in_switch(f"ip link set port{NAMES.index(name)} down")

    def command(self, name: str, command: list[str]) -> list[str]:
        """The command line that runs a command on a host, as its user would."""
        first = _child_of(self._processes[name].pid)
        return ["nsenter", "-t", str(first), *_NAMESPACES, f"--wdns={REPOSITORY}", *command]

    def run(self, name: str, command: list[str]) -> int:
        return subprocess.run(self.command(name, command), capture_output=True).returncode

    def stop(self) -> None:
        for process in self._processes.values():
            first = _child_of(process.pid)
            if first:
                os.kill(first, signal.SIGKILL)
            process.kill()
            process.wait()

    def _run_in_switch(self, command: str, check: bool = True) -> int:
        first = _child_of(self._processes["switch"].pid)
        if first is None:
            return 1
        done = subprocess.run(
            ["nsenter", "-t", str(first), "--net", "sh", "-c", command], capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stderr
        return done.returncode


def _child_of(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _in_own_network(pid: int) -> bool:
    return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()

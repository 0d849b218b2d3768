"""A real Slurm of two nodes with eight pretended GPUs each, on this machine, in a separate process namespace."""

import os
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}

# A requeued job waits until the credentials of its former start have expired: two minutes, here the least possible.
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait={kill_wait_s}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=64 RealMemory=1000 Gres=gpu:8
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=64 RealMemory=1000 Gres=gpu:8
PartitionName=tests Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
_DAEMONS = """
munged --force --key-file=$1/munge.key --socket=$1/munge.socket --pid-file=$1/munge.pid --log-file=$1/munge.log \
    --seed-file=$1/munge.seed || exit
slurmctld -D -c & slurmd -D -c -N n1 & slurmd -D -c -N n2 & wait
"""
KILL_WAIT_S = 20


@dataclass
class Job:
    """What `scontrol show job` says."""

    fields: dict[str, str]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.fields["Restarts"])

    @property
    def exit_code(self) -> int:
        return int(self.fields["ExitCode"].split(":")[0])


class Slurm:
    """Start it with `start`; everything that runs in it ends with `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.variables = {"SLURM_CONF": str(directory / "slurm.conf")}

    def start(self) -> None:
        directory = self.directory
        directory.chmod(0o755)
        (directory / "state").mkdir()
        (directory / "munge.key").write_bytes(os.urandom(1024))
        (directory / "munge.key").chmod(0o400)
        (directory / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={directory}/gpu[0-7]\n")
        for gpu in range(8):
            (directory / f"gpu{gpu}").touch()
        for node in ("n1", "n2"):
            (directory / f"spool.{node}").mkdir()
        config = _CONFIG.format(
            host=socket.gethostname().split(".")[0], directory=directory, ports=_free_ports(3), kill_wait_s=KILL_WAIT_S
        )
        (directory / "slurm.conf").write_text(config)
        with (directory / "daemons.log").open("w") as log:
            self._daemons = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", _DAEMONS, "sh", directory],
                env={**os.environ, **self.variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: self("sinfo", "-h", "-t", "idle", "-o", "%D", check=False) == "2", "two idle nodes", 60)

    def stop(self) -> None:
        self._daemons.kill()
        self._daemons.wait()

    def __call__(self, *command: str, check: bool = True, **settings: Any) -> str:
        """Run a command of Slurm; returns what it printed, stripped."""
        environment = {**settings.pop("env", os.environ), **self.variables}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, **settings)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> Job:
        return Job(dict(re.findall(r"(\S+?)=(\S*)", self("scontrol", "show", "job", "-o", number))))

    def cancel_all(self) -> None:
        """End all jobs, so that none is left for the next test to wait for."""
        self("scancel", "--user=root")
        wait_until(lambda: not self("squeue", "-h"), "all jobs to end", 60)

    def wait_for_end(self, number: str, timeout_s: float = 120.0) -> Job:
        """Wait until a job has left the nodes and will not come back by itself."""

        def ended() -> Job | None:
            job = self.job(number)
            return None if job.state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED") else job

        return wait_until(ended, f"end of job {number}: {self.job(number)}", timeout_s)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports

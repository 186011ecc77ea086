"""Real processes for tests: started once, given one task after another, never waited for in vain.

    with Ranks(2) as ranks:
        ranks.run(task, 1, 2)            # [task(1, 2) of rank 0, task(1, 2) of rank 1]

A task is a function at the top of a module; it imports what is heavy inside, so that the test
process stays light. Results travel by pickle: numbers, strings and numpy arrays.
"""

import contextlib
import json
import multiprocessing as mp
import os
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

LAST_LINES = 30


class Ranks:
    """`world_size` processes; with `is_joined`, the members of one gloo group.

    A task that fails anywhere ends all processes, since the others may wait for the failed one in
    a collective; the next task starts new ones.
    """

    def __init__(self, world_size: int, *, is_joined: bool = True) -> None:
        self.world_size = world_size
        self.is_joined = is_joined
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, task: Callable[..., Any], *args: Any, deadline_s: float = 240) -> list[Any]:
        """The results of `task(*args)` on every rank; a failure shows the ranks' last lines."""
        self.begin(task, *args)
        return self.results(deadline_s)

    def begin(self, task: Callable[..., Any], *args: Any) -> None:
        """Hand out a task without waiting for it."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((task, args))

    def results(self, deadline_s: float) -> list[Any]:
        """Wait for the task that was handed out last."""
        answers: dict[int, Any] = {}
        end = time.monotonic() + deadline_s
        try:
            while len(answers) < self.world_size:
                waiting = {self.pipes[r]: r for r in range(self.world_size) if r not in answers}
                ready = wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
                if not ready:
                    raise TimeoutError(f"ranks {sorted(waiting.values())} took over {deadline_s} s")
                for pipe in ready:
                    assert isinstance(pipe, Connection)
                    answers[waiting[pipe]] = self._answer(waiting[pipe], pipe)
        except BaseException:
            self.close()
            raise
        return [answers[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """Kill the processes; they hold nothing that is worth a farewell."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(10)
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []

    def _start(self) -> None:
        context = mp.get_context("spawn")
        port = free_port()
        for rank in range(self.world_size):
            mine, theirs = context.Pipe()
            settings = (rank, self.world_size, port, self.is_joined, str(self._log(rank)))
            process = context.Process(target=_serve, args=(theirs, *settings), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(mine)

    def _answer(self, rank: int, pipe: Connection) -> Any:
        try:
            is_ok, value = pipe.recv()
        except EOFError:
            raise RuntimeError(f"rank {rank} died\n{self._last_lines(rank)}") from None
        if not is_ok:
            raise RuntimeError(f"rank {rank} failed\n{self._last_lines(rank)}\n{value}")
        return value

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"rank-{rank}.log"

    def _last_lines(self, rank: int) -> str:
        log = self._log(rank)
        return "\n".join(log.read_text().splitlines()[-LAST_LINES:]) if log.exists() else ""


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(
    pipe: Connection, rank: int, world_size: int, port: int, is_joined: bool, log: str
) -> None:
    """The life of one process: join the group, then answer tasks until the test process leaves."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )
    if is_joined:
        import torch.distributed as dist

        dist.init_process_group("gloo")
    with contextlib.suppress(EOFError):
        while True:
            task, args = pipe.recv()
            try:
                answer = (True, task(*args))
            except Exception:  # noqa: BLE001 - the test process raises it again
                answer = (False, traceback.format_exc())
            pipe.send(answer)


def read_steps(run_dir: Path) -> list[int]:
    """Steps in metrics.jsonl, in the order of its lines; a line being written is left out."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run's learner has finished `step`; fails once `process` ends before."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if len(read_steps(run_dir)) >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise TimeoutError(f"step {step} was not reached")


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it at this moment."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def heard_from_afar(processes: list[psutil.Process]) -> list[str]:
    """Names of those that listen where other machines could reach them."""
    return [
        " ".join(process.cmdline())[:80]
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and not connection.laddr.ip.removeprefix("::ffff:").startswith(("127.", "::1"))
    ]


def living(processes: list[psutil.Process]) -> list[str]:
    """Their command lines."""
    return [
        f"{process.pid} {' '.join(process.cmdline())[:80]}"
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    """Whether all of them end within that time."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

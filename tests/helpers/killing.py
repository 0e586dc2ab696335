"""Processes that are killed before one of the changes that they make to the file system."""

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

import torch

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}  # audited by Python
Step = Callable[[], None]


def call_at_every_step(step: Step) -> None:
    """Call `step` before each change that this process makes to the file system, from now on."""

    def audited(event: str, arguments: tuple[object, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int)
        if event in CHANGES or (opened and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            step()

    def stepping(plain: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            step()
            return plain(*arguments)

        return call

    sys.addaudithook(audited)
    os.pwrite, os.write = stepping(os.pwrite), stepping(os.write)


def run_in_child(act: Callable[[Step], None], steps: int) -> tuple[int, int]:
    """Run `act(step)` in another process, which dies at a step; return exit code and steps taken.

    `act` arranges that `step` is called, by `call_at_every_step` for example.
    """
    context = multiprocessing.get_context("fork")
    taken = context.Value("i", 0)

    def run() -> None:
        count = itertools.count()

        def step() -> None:
            taken.value = now = next(count)
            if now >= steps:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.dont_write_bytecode = True  # a module that is imported only now is no step
        torch.set_num_threads(1)  # renews the pool, which two threads cannot do at once
        act(step)

    child = context.Process(target=run)
    child.start()
    child.join()
    return child.exitcode or 0, taken.value

"""What must survive and what must not: calls to the outside, and threads that a process needs."""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import ParamSpec

log = logging.getLogger("specpipe")

P = ParamSpec("P")


def harmless(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
    """Call what may fail without harm; log what it raises, and tell whether it raised nothing."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        log.error("a call that should not fail failed", exc_info=error)
        return False
    return True


def start_vital_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread whose failure ends the process, with the traceback on stderr.

    Without it the process would accept requests and never answer them; whoever watches the process
    can start it again.
    """

    def run_or_end() -> None:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            sys.stderr.write(f"specpipe: the thread {name!r} failed; the process ends\n")
            sys.stderr.flush()
            os._exit(1)

    thread = threading.Thread(target=run_or_end, name=name, daemon=True)
    thread.start()
    return thread

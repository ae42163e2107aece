"""Worker processes: what one of them owes to the process that started it."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that happened.

    To be called once in a process that `multiprocessing` started. Without it, the workers of a parent that was killed would
    go on computing for nobody.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Who may write into a run's folder: one command at a time.

A file `lock` in the folder is held with `flock` as long as the command runs. The kernel lets go of it when the process ends,
however it ends, so there is nothing to clean up behind a killed run.

On one machine this is certain. Between machines that share a folder it is as good as the file system's locks: NFS 4 and most
cluster file systems have them; where a file system has none (`OSError` from `flock`), the command says so and goes on.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import TextIO

from mmunlearn.errors import RunError
from mmunlearn.run import Run, explain_disk_errors

if sys.platform != "win32":  # there is no flock; a folder is then not guarded
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

_PATIENCE, _PAUSE = 0.5, 0.05
"""Seconds: somebody who only looks holds a lock for a moment."""
_held: dict[Path, TextIO] = {}
"""By folder: what this process holds."""


@contextmanager
def locked(run: Run, *, main: bool = True) -> Iterator[None]:
    """Keep a run's folder to this process. Nested calls for one folder are one lock; an empty new folder goes at the end.

    Args:
        run: the folder, which need not exist.
        main: whether this is the process that writes (rank 0); others hold nothing.

    Raises:
        RunError: another command is using the folder.
    """
    place = run.root.resolve()
    if not main or place in _held or sys.platform == "win32":
        yield
        return
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    with explain_disk_errors(run.lock):
        place.mkdir(parents=True, exist_ok=True)
        file = _acquired(run)
    try:
        if file is not None:
            _held[place] = file
        yield
    finally:
        if file is not None and _held.pop(place, None) is not None:  # a forked worker holds nothing
            run.lock.unlink(missing_ok=True)  # before it is let go: nobody can have taken it yet
            file.close()
        with suppress(OSError):  # somebody has written there
            for folder in made:
                folder.rmdir()


def is_locked(run: Run) -> bool:
    """Whether another command is using a folder now."""
    if sys.platform == "win32" or run.root.resolve() in _held:
        return False
    try:
        with run.lock.open(encoding="utf-8") as file:
            flock(file, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or there are no locks
        return False
    return False


def _acquired(run: Run) -> TextIO | None:
    """The open file, held and with our name in it; None where the file system has no locks.

    Raises:
        RunError: another command holds it.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        file = run.lock.open("a+", encoding="utf-8")
        try:
            flock(file, LOCK_EX | LOCK_NB)
            if _is_there(file, run.lock):
                file.truncate(0)
                json.dump(_ourselves(), file)
                file.flush()
                return file
            file.close()  # whoever held it has ended and taken it away: try the new one
        except BlockingIOError as error:
            with file:
                if time.monotonic() > until:
                    raise RunError(_in_use(run)) from error
            time.sleep(_PAUSE)
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            sys.stderr.write(
                f"mmunlearn: {run.root} lies on a file system without locks ({error.strerror}), so nothing keeps another "
                "command out of it. Give each command a run.dir of its own.\n"
            )
            return None


def _is_there(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that now has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _ourselves() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": gethostname(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _in_use(run: Run) -> str:
    """Says who holds a folder."""
    try:
        who = json.loads(run.lock.read_text(encoding="utf-8"))
        by = f"process {who['pid']} on {who['host']} since {who['started']} ({who['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or has just gone
        by = "another command"
    return f"{run.root} is in use by {by}. Wait for its end or stop it, or choose another run.dir. Nothing was changed."


def _let_go_in_child() -> None:
    """A forked worker must not hold on to what its parent holds, or it would outlive the parent's end."""
    for file in _held.values():
        file.close()
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go_in_child)

"""Starts `mmunlearn predict`, kills it at random moments and starts it again, until it comes to its end.

    python killing.py KILLS SEED FOLDER WORD...

It forks, so that the seconds which loading torch takes are spent once. A kill strikes either within the first second or some
time after the run has written a few more answers. Prints a JSON object: how often it was killed, how many of the kills came
after new answers and how many left a line cut in two.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from mmunlearn.cli import guarded

DEADLINE = 500.0


def start(words: list[str], log: Path) -> int:
    """A process of its own that runs a verb; returns its number."""
    child = os.fork()
    if child:
        return child
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["mmunlearn"]
    os._exit(guarded(words))


def ended(child: int) -> int | None:
    """The exit code, or None while the process runs."""
    number, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None


def files_of(folder: Path) -> list[bytes]:
    """The contents of all files of answers, merged or not; some vanish while we look."""
    found = []
    for path in (folder / "predictions").glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            found.append(path.read_bytes())
    return found


def lines_in(folder: Path) -> int:
    """Different complete lines in all files of answers: while they are merged, some are there twice."""
    return len({line for content in files_of(folder) for line in content.split(b"\n")[:-1]})


def cut_lines_in(folder: Path) -> int:
    """Files whose last line has no end."""
    return sum(bool(content) and not content.endswith(b"\n") for content in files_of(folder))


def struck(child: int, folder: Path, dice: random.Random) -> bool:
    """Whether the process was killed before it came to its end."""
    before, wanted = lines_in(folder), dice.randint(1, 25)
    blind = time.monotonic() + dice.uniform(0.0, 1.0) if dice.random() < 0.2 else None
    deadline = time.monotonic() + DEADLINE
    while blind is None or time.monotonic() < blind:
        code = ended(child)
        if code is not None:
            assert code == 0, f"ended with {code}"
            return False
        if blind is None and lines_in(folder) >= before + wanted:
            time.sleep(dice.uniform(0.0, 0.1))
            break
        assert time.monotonic() < deadline, "no answers come"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    """Kill as often as wished, then let it end."""
    kills, seed, folder, *words = sys.argv[1:]
    dice, log = random.Random(int(seed)), Path(folder).with_suffix(".log")
    words = ["predict", *words, f"run.dir={folder}"]
    done = {"kills": 0, "after_answers": 0, "cut_lines": 0}
    for _ in range(int(kills)):
        before = lines_in(Path(folder))
        if not struck(start(words, log), Path(folder), dice):
            break
        done["kills"] += 1
        done["after_answers"] += lines_in(Path(folder)) > before
        done["cut_lines"] += cut_lines_in(Path(folder))
    code = os.waitstatus_to_exitcode(os.waitpid(start(words, log), 0)[1])
    assert code == 0, log.read_text()[-4000:]
    sys.stdout.write(json.dumps(done) + "\n")


if __name__ == "__main__":
    main()

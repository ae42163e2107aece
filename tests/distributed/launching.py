"""Starts a script twice: as one process, and on two ranks over gloo."""

import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def on_one_and_two_ranks(script, folder):
    """Run `script folder` both ways side by side; both must end well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    started = [start([*launcher, str(script), str(folder)]), start([sys.executable, str(script), str(folder)])]
    try:
        for process in started:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output[-4000:]
    finally:
        for process in started:
            process.kill()

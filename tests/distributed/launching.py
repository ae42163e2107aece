"""Starts a script as one process, and on two ranks over gloo."""

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
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def on_ranks(words, ranks=2):
    """The command that starts `words` (a script and its arguments, or -m and a module) on several ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(free_port()), *words]


def run_engines(script, folder, engines):
    """Run `script folder ENGINE` side by side: `replicated` as one process, others on two ranks; all must end well."""
    words = [[str(script), str(folder), engine] for engine in engines]
    all_end_well([start([sys.executable, *own] if own[-1] == "replicated" else on_ranks(own)) for own in words])


def all_end_well(started):
    """Wait for processes; the output of the first that failed is shown. Returns what each wrote."""
    try:
        outputs = []
        for process in started:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output[-4000:]
            outputs.append(output)
        return outputs
    finally:
        for process in started:
            process.kill()

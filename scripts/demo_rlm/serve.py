"""`python -m demo_rlm.serve WEIGHTS`: the OpenAI protocol on 127.0.0.1 until stdin is closed.

A process of its own, so that native code can neither crash the demo nor hold it up at its end. The
first line of stdin is the key that requests must show (no argument: those are for all to see); the
first line of stdout is the URL. It imports nothing of the demo: it has to start fast.
"""

from __future__ import annotations

import os
import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until stdin ends, which it does when the demo ends, however that comes about."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which ends this one
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.api_keys = [sys.stdin.readline().strip()]
    params.n_ctx = 4096
    # On a CPU one call after the other is as fast. Alone, and without what an earlier prompt has
    # left in the cache, a call also gets the same answer every time.
    params.n_parallel = 1
    params.cache_prompt = False
    params.cpuparams.n_threads = min(8, os.cpu_count() or 1)
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()
    os._exit(0)  # its destructor was seen to wait for ever


if __name__ == "__main__":
    main()

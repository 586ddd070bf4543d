"""Runs cases of Autobahn's WebSocket test suite against a server that echoes what it is sent.

    tests/web/.venv/bin/python tests/web/autobahn.py ws://127.0.0.1:PORT CASE[,CASE...] [AT_ONCE]

A case is an id or ends in `*`. Prints one line of JSON a case: its id, both verdicts, and why.
"""

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient


async def main() -> None:
    url, cases, *more = sys.argv[1:]
    try:
        results = await run_fuzzingclient(url, cases.split(","), concurrency=int(more[0]) if more else 1)
    except FailureError as failure:
        results = failure.results
    for it in results:
        row = {
            "case": it.case_id,
            "behavior": it.behavior.value,
            "close": it.behavior_close.value,
            "code": it.remote_close_code,
            "ms": it.duration,
            "why": f"{it.result} {it.result_close} received {it.received!r:.300} of {it.expected!r:.300}",
        }
        print(json.dumps(row))
    sys.stdout.flush()
    # The package's threads are still at work, and crash now and then when the interpreter ends in good order.
    os._exit(0)


asyncio.run(main())

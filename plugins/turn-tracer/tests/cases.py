"""The cases in `cases/`, one for each item of the checklist that they are named after. The host's suite runs the same
files against the component.

A case has `config`, `saved` (content type and state) and `steps`: `events` in one batch, `flush` with a reason, or
`restart`. What is expected is everything: `refused` (what `load` says), `failed` (which step failed and how), the rows,
what was emitted, and the state at the end.
"""

import json
import pathlib

from millrace import Failure, Refused, Saved, format_time
from millrace.testing import Driver, Failed, event

FOLDER = pathlib.Path(__file__).parent / "cases"
TIMES = ("started_at", "ended_at")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def run(case, processor, singly=False):
    """What came out, in the shape of `expected`."""
    saved = case.get("saved")
    if saved is not None:
        state = saved["state"] if isinstance(saved["state"], str) else json.dumps(saved["state"])
        saved = Saved(saved["content_type"], state.encode())
    try:
        driver = Driver(processor, config=case.get("config"), saved=saved)
    except Refused as refused:
        return {"refused": str(refused)}
    failed = []
    for number, step in enumerate(case["steps"]):
        try:
            if "events" in step:
                events = [_event(**members) for members in step["events"]]
                (driver.send_singly if singly else driver.send)(events)
            elif "flush" in step:
                driver.flush(step["flush"])
            else:
                driver.restart()
        except (Failed, Failure) as error:
            failure = getattr(error, "failure", error)
            failed.append({"step": number, "kind": failure.kind, "says": failure.message})
    return {
        "failed": failed,
        "turns": {key: _row(row) for key, row in driver.rows("turns").items()},
        "passed_entries": {key: dict(row) for key, row in driver.rows("passed_entries").items()},
        "emitted": [
            {"type": e.type, "agg_id": e.agg_id, "version": e.version, "at": format_time(e.at), "payload": e.json()}
            for e in driver.emitted
        ],
        "state": json.loads(driver.saved().state),
    }


def _event(type, at, payload, cursor="", agg_id="1", version=1):
    kind = type.split(".")[0]
    return event(
        type, agg_id, version, payload, at=at, cursor=cursor, kind=kind if cursor else "", id=f"e-{cursor or at}"
    )


def _row(row):
    return {name: format_time(value) if name in TIMES else value for name, value in row.items()}

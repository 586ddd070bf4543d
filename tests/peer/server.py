"""A server of memory.v1 for tests, of its own making: grpcio, and `memory.proto` beside it.

It says `{"port": …}` on standard output once it serves. Then each line of standard input is a command, and each answer
is a line of standard output; `faults.py` has the commands. The end of its input ends it politely.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import sys
import time

import grpc
from google.protobuf import duration_pb2, json_format, struct_pb2

from faults import World

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
messages, services = grpc.protos_and_services("memory.proto")

LOST = "cursor beyond retention window"
ADMIN = messages.EVENT_SCOPE_ADMIN


def varint(number):
    """A number as the wire has it."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def retry_details(code, message, retry_ms):
    """`google.rpc.Status` with a `RetryInfo`: the packages that have them are not needed for two messages."""
    delay = duration_pb2.Duration(seconds=retry_ms // 1000, nanos=retry_ms % 1000 * 1_000_000)
    info = field(1, delay.SerializeToString())
    detail = field(1, b"type.googleapis.com/google.rpc.RetryInfo") + field(2, info)
    return varint(1 << 3) + varint(code) + field(2, message.encode()) + field(3, detail)


class Peer(services.EventStreamServiceServicer, services.AdminCheckpointServiceServicer):
    def __init__(self, world, keys):
        self.world, self.keys = world, keys

    def fail(self, context, code, message, retry_ms=None):
        status = grpc.StatusCode[code]
        if retry_ms is not None:
            details = retry_details(status.value[0], message, retry_ms)
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(status, message)

    def refused(self, context, method):
        refusal = self.world.refusal(method)
        if refusal:
            self.fail(context, *refusal)

    def client(self, context):
        """Who asks: none where nobody needs to say."""
        if not self.keys:
            return None
        key = dict(context.invocation_metadata()).get("x-api-key")
        if key not in self.keys:
            self.fail(context, "PERMISSION_DENIED", "admin role required")
        return self.keys[key]

    # Checkpoints.

    def own(self, request, context, method):
        with self.world.lock:
            self.world.asked[method].append(request.client_id)
            while self.world.hangs == method and context.is_active():
                self.world.lock.wait(0.2)
            if not context.is_active():
                # Nobody waits for it any more: it has no effect.
                self.fail(context, "CANCELLED", "given up")
            self.refused(context, method)
        client = self.client(context)
        if not request.client_id.strip():
            self.fail(context, "INVALID_ARGUMENT", "client_id is required")
        if client is not None and client != request.client_id:
            self.fail(context, "NOT_FOUND", "checkpoint not found")

    def answer(self, client_id, kept):
        value = json_format.ParseDict(kept["value"], struct_pb2.Value())
        answer = messages.AdminCheckpoint(client_id=client_id, content_type=kept["content_type"], value=value)
        answer.updated_at.FromSeconds(int(kept["updated_at"]))
        return answer

    def GetCheckpoint(self, request, context):
        self.own(request, context, "get")
        with self.world.lock:
            kept = self.world.checkpoints.get(request.client_id)
        if kept is None:
            self.fail(context, "NOT_FOUND", "checkpoint not found")
        return self.answer(request.client_id, kept)

    def PutCheckpoint(self, request, context):
        self.own(request, context, "put")
        if not request.content_type.strip() or not request.HasField("value"):
            self.fail(context, "INVALID_ARGUMENT", "content_type and value are required")
        kept = {
            "content_type": request.content_type,
            "value": json_format.MessageToDict(request.value),
            "updated_at": time.time(),
        }
        with self.world.lock:
            self.world.checkpoints[request.client_id] = kept
            self.world.keep()
        return self.answer(request.client_id, kept)

    # Events.

    def SubscribeEvents(self, request, context):
        after = request.after_cursor if request.HasField("after_cursor") else None
        headers = dict(context.invocation_metadata())
        with self.world.lock:
            self.world.asked["subscribe"].append(
                {
                    "after_cursor": after,
                    "kinds": list(request.kinds),
                    "detail": request.detail,
                    "scope": request.scope,
                    "justification": request.justification,
                    "entry_channels": list(request.entry_channels),
                    "entry_content_types": list(request.entry_content_types),
                    "entry_roles": list(request.entry_roles),
                    "headers": {name: value for name, value in headers.items() if name.startswith(("x-", "auth"))},
                }
            )
            modes = dict(self.world.modes)
            self.refused(context, "subscribe")
            self.client(context)
            if after is not None and modes["no_outbox"]:
                self.fail(context, "UNIMPLEMENTED", "replay needs the outbox")
            if request.detail not in ("", "summary", "full"):
                self.fail(context, "INVALID_ARGUMENT", "detail is summary or full")
            inbox = collections.deque()
            self.world.streams[id(inbox)] = inbox
            replay = None
            if after == "start":
                replay = list(self.world.rows)
            elif after is not None and any(row["cursor"] == after for row in self.world.rows):
                replay = [row for row in self.world.rows if int(row["cursor"]) > int(after)]
        try:
            if after is not None and replay is None:
                yield self.about("invalidate", {"reason": LOST})
                return
            yield from self.stream(request, context, inbox, replay, modes)
        finally:
            with self.world.lock:
                self.world.streams.pop(id(inbox), None)

    def stream(self, request, context, inbox, replay, modes):
        if modes["end_at_once"]:
            return
        last, seen = None, set()
        if replay is not None:
            if not modes["no_phases"]:
                yield self.about("phase", {"phase": "replay"})
            for row in replay:
                seen.add(row["cursor"])
                if self.wanted(request, row):
                    last = row["cursor"]
                    yield self.notification(request, row, False, modes)
        if not modes["no_phases"]:
            yield self.about("phase", {"phase": "live"})
        if replay and modes["duplicate_at_switch"]:
            for row in replay[-3:]:
                yield self.notification(request, row, True, modes)
        while context.is_active():
            with self.world.lock:
                if not inbox:
                    self.world.lock.wait(0.2)
                    continue
                what, *rest = inbox.popleft()
            if what == "event":
                (row,) = rest
                if row["cursor"] in seen:
                    seen.discard(row["cursor"])
                elif self.wanted(request, row):
                    last = row["cursor"]
                    yield self.notification(request, row, True, modes)
            elif what == "abort":
                self.fail(context, *rest)
            elif what == "end":
                return
            elif what == "invalidate":
                yield self.about("invalidate", {"reason": rest[0]})
                if rest[0] == LOST:
                    return
            elif what == "evict":
                reason, cursor = rest
                yield self.about("evicted", {"reason": reason}, cursor or last)
                return

    def about(self, event, data, cursor=None):
        return messages.EventNotification(event=event, kind="stream", data=json.dumps(data).encode(), cursor=cursor)

    def wanted(self, request, row):
        if request.kinds and row["kind"] not in request.kinds:
            return False
        if row["kind"] != "entry" or row["summary"] is None:
            return True
        about = json.loads(row["summary"])
        channels = [channel.lower() for channel in request.entry_channels] or ["history"]
        types, roles = list(request.entry_content_types), [role.lower() for role in request.entry_roles]
        return (
            about.get("entry_channel", "history").lower() in channels
            and (not types or about.get("entry_content_type") in types)
            and (not roles or about.get("entry_role", "").lower() in roles)
        )

    def notification(self, request, row, live, modes):
        short = request.detail != "full" or (live and modes["summary_live"] and row["kind"] == "entry")
        data = row["summary"] if short and row["summary"] is not None else row["data"]
        cursor = None if modes["no_outbox"] else row["cursor"]
        return messages.EventNotification(event=row["event"], kind=row["kind"], data=data.encode(), cursor=cursor)


def say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--state", help="a file that outlives the process")
    parser.add_argument("--keys", default="{}", help="API keys and whose they are, as JSON")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--client-ca", help="clients need a certificate of this authority")
    parser.add_argument("--unix", help="a socket in the file system that it serves, too")
    parser.add_argument("--pings", action="store_true", help="clients may ask as often as they like whether it lives")
    options = parser.parse_args()
    world = World(options.state)
    settings = [("grpc.so_reuseport", 0)]
    if options.pings:
        settings.append(("grpc.http2.max_ping_strikes", 0))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=64), options=settings)
    peer = Peer(world, json.loads(options.keys))
    services.add_EventStreamServiceServicer_to_server(peer, server)
    services.add_AdminCheckpointServiceServicer_to_server(peer, server)
    address = f"127.0.0.1:{options.port}"
    if options.cert:
        with open(options.key, "rb") as key, open(options.cert, "rb") as cert:
            pair = (key.read(), cert.read())
        authority = None
        if options.client_ca:
            with open(options.client_ca, "rb") as file:
                authority = file.read()
        credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
        port = server.add_secure_port(address, credentials)
    else:
        port = server.add_insecure_port(address)
    if options.unix:
        server.add_insecure_port(f"unix:{options.unix}")
    server.start()
    say({"port": port})
    for line in sys.stdin:
        try:
            say(world.control(json.loads(line)))
        except Exception as error:  # A test sees what was wrong with its command.
            say({"error": f"{type(error).__name__}: {error}"})
    server.stop(0.5).wait()


if __name__ == "__main__":
    main()

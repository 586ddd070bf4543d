"""A client of another make that does what it is told, with grpcio: checkpoints, and streams of events that have names.

Each line of standard input is a command, and each line of standard output what came of it. A call that is refused is told
by its code, its details, and when to come again. `client.py` is a whole processor; this one shows what such a client sees.
"""

import argparse
import json
import os
import sys

import grpc
from google.protobuf import json_format

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
messages, services = grpc.protos_and_services("memory.proto")
details = grpc.protos("details.proto")

# Seconds. What does not come for so long does not come.
PATIENCE = 120

# A server that comes back is found soon.
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]


def refused(error):
    code, text, retry_ms = error.code(), error.details(), None
    for name, value in error.trailing_metadata() or ():
        if name != "grpc-status-details-bin":
            continue
        told = details.Status.FromString(value)
        if (told.code, told.message) != (code.value[0], text):
            raise ValueError(f"the status says {code} {text}, and its details {told}")
        for detail in told.details:
            info = details.RetryInfo()
            if detail.Unpack(info):
                retry_ms = info.retry_delay.ToMilliseconds()
    return {"code": code.name, "details": text, "retry_ms": retry_ms}


def shown(kept):
    return {
        "client_id": kept.client_id,
        "content_type": kept.content_type,
        "value": json_format.MessageToDict(kept.value) if kept.HasField("value") else "none",
        "updated_at": kept.updated_at.ToSeconds(),
    }


def headers(command):
    """Names may come twice."""
    return [tuple(pair) for pair in command.get("headers", [])]


class Caller:
    def __init__(self, endpoint):
        channel = grpc.insecure_channel(endpoint, options=CHANNEL)
        self.events = services.EventStreamServiceStub(channel)
        self.checkpoints = services.AdminCheckpointServiceStub(channel)
        self.call_bytes = channel.unary_unary
        self.streams = {}

    def do_get(self, command):
        request = messages.GetCheckpointRequest(client_id=command["client"])
        return shown(self.checkpoints.GetCheckpoint(request, metadata=headers(command), timeout=PATIENCE))

    def do_put(self, command):
        """A value, a text of so many bytes, or none."""
        request = messages.PutCheckpointRequest(client_id=command["client"], content_type=command["content_type"])
        if "bytes" in command:
            request.value.string_value = "x" * command["bytes"]
        elif "value" in command:
            json_format.ParseDict(command["value"], request.value)
        return shown(self.checkpoints.PutCheckpoint(request, metadata=headers(command), timeout=PATIENCE))

    def do_send(self, command):
        """A message byte for byte, to any method."""
        call = self.call_bytes(command["method"])
        answer = call(bytes.fromhex(command["hex"]), metadata=headers(command), timeout=PATIENCE)
        return {"hex": answer.hex()}

    def do_open(self, command):
        """One stream, or several whose names are numbered; these are waited for until each has said something."""
        request = json_format.ParseDict(command["asked"], messages.SubscribeEventsRequest())
        name, count = command["stream"], command.get("count")
        names = [name] if count is None else [f"{name}{number}" for number in range(count)]
        for each in names:
            self.streams[each] = self.events.SubscribeEvents(request, metadata=headers(command), timeout=PATIENCE)
        if count is not None:
            for each in names:
                next(self.streams[each])
        return {}

    def do_read(self, command):
        """Up to so many messages, or events, or until the stream is live, or to its end: whatever is first."""
        stream, said, events = self.streams[command["stream"]], [], 0
        while True:
            try:
                event = next(stream)
            except StopIteration:
                said.append({"end": True})
                break
            except grpc.RpcError as error:
                said.append(refused(error))
                break
            cursor = event.cursor if event.HasField("cursor") else None
            data = json.loads(event.data)
            said.append({"kind": event.kind, "event": event.event, "data": data, "cursor": cursor})
            events += event.kind != "stream"
            is_live = event.kind == "stream" and data == {"phase": "live"}
            if len(said) == command.get("messages") or events == command.get("events"):
                break
            if is_live and command.get("live"):
                break
        return {"said": said}

    def do_cancel(self, command):
        self.streams.pop(command["stream"]).cancel()
        return {}

    def carry_out(self, command):
        try:
            return getattr(self, "do_" + command["do"])(command)
        except grpc.RpcError as error:
            return refused(error)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    caller = Caller(parser.parse_args().endpoint)
    for line in sys.stdin:
        try:
            answer = caller.carry_out(json.loads(line))
        except Exception as error:  # A test sees what was wrong with its command.
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

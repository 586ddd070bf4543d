"""A processor of another make: the loop that clients of memory.v1 run, with grpcio.

It counts events. Each line of standard output is JSON: first where it begins, then each event, before its checkpoint is put.
The end of its input ends it politely, with a last put. Without `--better` it has the habits of the reference: one put an
event, and an error of the stream or of a put ends it. With it, it puts every hundred events and comes back after errors.
"""

import argparse
import json
import os
import sys
import threading
import time

import grpc
from google.protobuf import json_format

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
messages, services = grpc.protos_and_services("memory.proto")

CONTENT_TYPE = "application/vnd.count+json;v=1"

# A server that comes back is found soon.
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]


def say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Processor:
    def __init__(self, options):
        self.options = options
        channel = grpc.insecure_channel(options.endpoint, options=CHANNEL)
        self.events = services.EventStreamServiceStub(channel)
        self.checkpoints = services.AdminCheckpointServiceStub(channel)
        self.metadata = [("x-client-id", options.client_id)]
        if options.api_key:
            self.metadata.append(("x-api-key", options.api_key))
        self.handled, self.cursor, self.saved = 0, options.after_cursor, None
        self.stream, self.stopping = None, False

    def load(self):
        request = messages.GetCheckpointRequest(client_id=self.options.client_id)
        try:
            kept = self.checkpoints.GetCheckpoint(request, metadata=self.metadata)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return
        if kept.content_type != CONTENT_TYPE:
            raise SystemExit(f'checkpoint content type mismatch: got "{kept.content_type}"')
        value = json_format.MessageToDict(kept.value)
        self.handled, self.saved = int(value["handled"]), value
        self.cursor = value.get("lastEventCursor") or self.cursor

    def put(self):
        state = {"handled": self.handled, "lastEventCursor": self.cursor}
        if state == self.saved:
            return
        request = messages.PutCheckpointRequest(client_id=self.options.client_id, content_type=CONTENT_TYPE)
        json_format.ParseDict(state, request.value)
        self.checkpoints.PutCheckpoint(request, metadata=self.metadata)
        self.saved = state

    def follow(self):
        request = messages.SubscribeEventsRequest(detail="full", scope=messages.EVENT_SCOPE_ADMIN)
        request.kinds.extend(self.options.kinds)
        if self.cursor:
            request.after_cursor = self.cursor
        self.stream = self.events.SubscribeEvents(request, metadata=self.metadata)
        if self.stopping:
            # Whoever stops it may have seen no stream to cancel.
            self.stream.cancel()
        for event in self.stream:
            if event.kind == "stream":
                say({"stream": event.event, "data": json.loads(event.data)})
                if self.options.better and event.event == "invalidate":
                    self.cursor = "start"
                continue
            say({"kind": event.kind, "event": event.event, "data": json.loads(event.data), "cursor": event.cursor})
            self.handled += 1
            self.cursor = event.cursor
            if not self.options.better or self.handled % 100 == 0:
                self.put()

    def run(self):
        self.load()
        say({"from": self.cursor, "handled": self.handled})
        wait = 0.02
        while not self.stopping:
            before = self.handled
            try:
                self.follow()
            except grpc.RpcError as error:
                if not self.stopping and not self.options.better:
                    say({"error": error.code().name, "message": error.details()})
                    raise SystemExit(1) from error
            wait = 0.02 if self.handled > before else min(wait * 2, 1)
            time.sleep(0 if self.stopping else wait)
        self.put()

    def stop_at_the_end_of_input(self):
        sys.stdin.read()
        self.stopping = True
        if self.stream is not None:
            self.stream.cancel()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--client-id", required=True)
    parser.add_argument("--api-key")
    parser.add_argument("--after-cursor", default="")
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--better", action="store_true")
    processor = Processor(parser.parse_args())
    threading.Thread(target=processor.stop_at_the_end_of_input, daemon=True).start()
    processor.run()


if __name__ == "__main__":
    main()

// What a page would write that uses live queries without our client. Each function is whole by itself: it is also
// sent to a browser, as text.

/** Follows a query with an `EventSource`. Frames of a commit are applied when its last one has come. */
export function follow(EventSource, address) {
  const it = { rows: [], frames: [], errors: [], opens: 0, losses: 0, waiting: [] };
  const source = new EventSource(address);
  it.close = () => source.close();
  source.onopen = () => {
    it.opens += 1;
    it.waiting = [];
  };
  const places = {
    reset: () => (it.rows = []),
    enter: ({ row, new_index }) => it.rows.splice(new_index, 0, row),
    leave: ({ old_index }) => it.rows.splice(old_index, 1),
    move: ({ row, old_index, new_index }) => (it.rows.splice(old_index, 1), it.rows.splice(new_index, 0, row)),
    update: ({ row, new_index }) => (it.rows[new_index] = row),
  };
  for (const op of ["reset", "enter", "leave", "move", "update", "ready", "gap"]) {
    source.addEventListener(op, ({ data, lastEventId }) => {
      const frame = JSON.parse(data);
      it.waiting.push(frame);
      if (lastEventId !== frame.stream_id) return;
      for (const frame of it.waiting) places[frame.op]?.(frame);
      it.frames.push(...it.waiting);
      it.waiting = [];
    });
  }
  // The host's last word has data; a lost connection has none.
  source.addEventListener("error", ({ data }) => (data ? it.errors.push(JSON.parse(data).code) : (it.losses += 1)));
  return it;
}

/** Speaks over a WebSocket, and keeps what it hears. */
export function converse(WebSocket, address, protocol) {
  const socket = protocol ? new WebSocket(address, protocol) : new WebSocket(address);
  const it = { heard: [], windows: {}, tokens: {}, closed: null, protocol: null, socket };
  const opened = new Promise((done) => {
    socket.onopen = () => {
      it.protocol = socket.protocol;
      done();
    };
  });
  it.say = (command) => opened.then(() => socket.send(JSON.stringify(command)));
  it.apply = (id, frame) => {
    const rows = (it.windows[id] ??= []);
    const { op, row, old_index, new_index } = frame;
    if (op === "reset") rows.length = 0;
    if (op === "leave" || op === "move") rows.splice(old_index, 1);
    if (op === "enter" || op === "move") rows.splice(new_index, 0, row);
    if (op === "update") rows[new_index] = row;
    if (frame.stream_id) it.tokens[id] = frame.stream_id;
  };
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    it.heard.push(message);
    if (message.type === "batch") for (const frame of message.deltas) it.apply(message.id, frame);
    else if (message.op) it.apply("", message);
  };
  socket.onclose = ({ code }) => (it.closed = code);
  return it;
}

// As much of RFC 6455 as the tests need, for Node versions without a WebSocket: a client with the browser's
// interface, and the server's side of an upgrade.

import { createHash, randomBytes } from "node:crypto";
import http from "node:http";

const accept = (key) => createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");

/** One message as a frame; a client's are masked. */
function encode(opcode, payload, masked) {
  const { length } = payload;
  const size = length < 126 ? Buffer.from([length]) : Buffer.alloc(length < 65536 ? 3 : 9, length < 65536 ? 126 : 127);
  if (size.length === 3) size.writeUInt16BE(length, 1);
  if (size.length === 9) size.writeBigUInt64BE(BigInt(length), 1);
  if (!masked) return Buffer.concat([Buffer.from([0x80 | opcode]), size, payload]);
  size[0] |= 0x80;
  const mask = randomBytes(4);
  const hidden = Buffer.from(payload.map((byte, at) => byte ^ mask[at % 4]));
  return Buffer.concat([Buffer.from([0x80 | opcode]), size, mask, hidden]);
}

/** Calls `onmessage`, `onclose` for what comes from a socket. */
class Peer {
  readyState = 1;
  #parts = [];
  #chunks = [];
  #held = 0;
  #wanted = 2;

  attach(socket, masked) {
    this.socket = socket;
    this.masked = masked;
    socket.on("data", (chunk) => this.#read(chunk));
    socket.on("error", () => this.#ended(1006));
    socket.on("close", () => this.#ended(1006));
  }

  send(text) {
    if (this.readyState === 1) this.socket.write(encode(1, Buffer.from(text), this.masked));
  }

  close() {
    if (this.readyState === 1) this.socket.end(encode(8, Buffer.from([3, 232]), this.masked));
    this.readyState = Math.max(this.readyState, 2);
  }

  #ended(code) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    this.socket.destroy();
    this.onclose?.({ code });
  }

  // Chunks are joined once there are enough bytes: a large message comes in very many.
  #read(chunk) {
    this.#chunks.push(chunk);
    this.#held += chunk.length;
    if (this.#held < this.#wanted) return;
    let rest = Buffer.concat(this.#chunks);
    this.#wanted = 2;
    while (rest.length >= this.#wanted) {
      const short = rest[1] & 127;
      const masked = rest[1] >> 7;
      const start = 2 + (short === 126 ? 2 : short === 127 ? 8 : 0) + 4 * masked;
      if (rest.length < start) {
        this.#wanted = start;
        break;
      }
      const size = short === 126 ? rest.readUInt16BE(2) : short === 127 ? Number(rest.readBigUInt64BE(2)) : short;
      if (rest.length < start + size) {
        this.#wanted = start + size;
        break;
      }
      const payload = Buffer.from(rest.subarray(start, start + size));
      if (masked) for (const at of payload.keys()) payload[at] ^= rest[start - 4 + (at % 4)];
      this.#frame(rest[0] & 15, Boolean(rest[0] & 128), payload);
      rest = rest.subarray(start + size);
      this.#wanted = 2;
    }
    this.#chunks = [rest];
    this.#held = rest.length;
  }

  #frame(opcode, last, payload) {
    if (opcode === 8) return this.close(), this.#ended(payload.length >= 2 ? payload.readUInt16BE(0) : 1005);
    if (opcode === 9) return void this.socket.write(encode(10, payload, this.masked));
    if (opcode === 10) return;
    this.#parts.push(payload);
    if (!last) return;
    const data = Buffer.concat(this.#parts).toString("utf8");
    this.#parts = [];
    this.onmessage?.({ data });
  }
}

/** The browser's `WebSocket`, over `http` only. */
export class WebSocket extends Peer {
  readyState = 0;

  constructor(href, protocol) {
    super();
    const key = randomBytes(16).toString("base64");
    const headers = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key };
    if (protocol) headers["Sec-WebSocket-Protocol"] = protocol;
    this.request = http.get(String(href).replace(/^ws/, "http"), { headers });
    const fail = () => {
      this.readyState = 3;
      this.onclose?.({ code: 1006 });
    };
    this.request.on("error", fail);
    this.request.on("response", fail);
    this.request.on("upgrade", (response, socket, head) => {
      if (response.headers["sec-websocket-accept"] !== accept(key)) return socket.destroy(), fail();
      this.readyState = 1;
      this.attach(socket, true);
      this.onopen?.();
      if (head.length > 0) socket.unshift(head);
    });
  }

  close() {
    if (this.readyState === 0) this.request.destroy();
    else super.close();
  }
}

/** The server's side of an `upgrade` event. */
export function upgrade(request, socket, head) {
  const protocol = request.headers["sec-websocket-protocol"];
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      `Sec-WebSocket-Accept: ${accept(request.headers["sec-websocket-key"])}\r\n` +
      `${protocol ? `Sec-WebSocket-Protocol: ${protocol}\r\n` : ""}\r\n`,
  );
  const peer = new Peer();
  peer.attach(socket, false);
  if (head.length > 0) socket.unshift(head);
  return peer;
}

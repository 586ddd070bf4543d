// A table and a window over it, by sorting everything at each step: what the client must have, and frames that say so.

import { numbers } from "./fakes.mjs";

const before = (a, b) => a.rank - b.rank || (a.key < b.key ? -1 : a.key > b.key ? 1 : 0);

export class Oracle {
  #rows = new Map();
  #version = 0;

  constructor(seed, limit) {
    this.limit = limit;
    this.random = numbers(seed);
  }

  window() {
    return [...this.#rows.values()].sort(before).slice(0, this.limit);
  }

  snapshot() {
    return [{ op: "reset", old_index: 0, new_index: 0 }, ...this.window().map((row, at) => this.#enter(row, at))];
  }

  /** Changes one to five rows. Answers the frames of the commit, perhaps none. */
  commit() {
    const frames = [];
    for (let changes = 1 + this.random(5); changes > 0; changes -= 1) frames.push(...this.#change());
    return frames;
  }

  #change() {
    const old = this.window();
    const key = `k${this.random(this.limit * 3)}`;
    if (this.random(4) === 0) this.#rows.delete(key);
    else {
      const kept = this.#rows.get(key);
      const rank = kept && this.random(3) === 0 ? kept.rank : this.random(40);
      this.#rows.set(key, { key, rank, note: this.random(1000) });
    }
    return this.#difference(old, this.window());
  }

  // At most one row comes, at most one goes, at most one moves: a commit is a row of such steps.
  #difference(old, next) {
    const frames = [];
    const now = [...old];
    const keys = new Set(next.map((row) => row.key));
    const place = (key) => now.findIndex((row) => row.key === key);
    const gone = old.find((row) => !keys.has(row.key));
    const leave = () => {
      if (!gone) return;
      const at = place(gone.key);
      now.splice(at, 1);
      frames.push({ op: "leave", agg_id: gone.key, row: gone, old_index: at, new_index: -1 });
    };
    // What is pushed out of a full window may leave after the other has come.
    const late = gone && this.#rows.get(gone.key) === gone && this.random(2) === 0;
    if (!late) leave();
    for (const [at, row] of next.entries()) {
      const from = place(row.key);
      if (from === -1) {
        now.splice(at, 0, row);
        frames.push(this.#enter(row, at));
      } else if (now[from] !== row) {
        now.splice(from, 1);
        now.splice(at, 0, row);
        const op = from === at ? "update" : "move";
        frames.push({ op, agg_id: row.key, version: ++this.#version, row, old_index: from, new_index: at });
      }
    }
    if (late) leave();
    if (now.some((row, at) => row !== next[at]) || now.length !== next.length) throw new Error("the oracle is wrong");
    return frames;
  }

  #enter(row, at) {
    return { op: "enter", agg_id: row.key, version: ++this.#version, row, old_index: -1, new_index: at };
  }
}

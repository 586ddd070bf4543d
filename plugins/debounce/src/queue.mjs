// A queue of numbered keys by time: the earliest first, and of two at the same time the one whose key is first.

function isBefore(a, b) {
  return a.at < b.at || (a.at === b.at && a.key < b.key);
}

export class Queue {
  constructor() {
    this.heap = [];
  }

  get length() {
    return this.heap.length;
  }

  /** The time of the first one; infinite where there is none. */
  get earliest() {
    return this.heap.length > 0 ? this.heap[0].at : Infinity;
  }

  push(at, key, number) {
    const { heap } = this;
    const item = { at, key, number };
    let place = heap.length;
    while (place > 0) {
      const above = (place - 1) >> 1;
      if (!isBefore(item, heap[above])) break;
      heap[place] = heap[above];
      place = above;
    }
    heap[place] = item;
  }

  /** Takes the first one. */
  pop() {
    const { heap } = this;
    const first = heap[0];
    const item = heap.pop();
    if (heap.length === 0) return first;
    let place = 0;
    for (;;) {
      let below = place * 2 + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && isBefore(heap[below + 1], heap[below])) below += 1;
      if (!isBefore(heap[below], item)) break;
      heap[place] = heap[below];
      place = below;
    }
    heap[place] = item;
    return first;
  }
}

// Lines of a list, kept by key: what stays is moved to its place, what comes and goes does so visibly.

const still = matchMedia("(prefers-reduced-motion: reduce)");
const MOVE = { duration: 450, easing: "cubic-bezier(0.2, 0, 0, 1)" };

// Another query may answer the same row as another object.
const equal = (a, b) => a === b || (a !== null && Object.keys(b).every((name) => a[name] === b[name]));

// `make` answers an empty line, `fill` writes a row to it. Rows have a `key`.
export function keyed(parent, make, fill) {
  const lines = new Map();

  function place(row) {
    let line = lines.get(row.key);
    const isNew = !line;
    if (isNew) {
      line = { element: make(), row: null };
      lines.set(row.key, line);
    }
    const isChanged = !equal(line.row, row);
    if (isChanged) fill(line.element, row);
    line.row = row;
    return { element: line.element, isNew, isChanged };
  }

  // Takes no room any more, and fades where it was.
  function leave(element, top, height, animated) {
    if (!animated) return element.remove();
    element.classList.add("gone");
    element.setAttribute("aria-hidden", "true");
    Object.assign(element.style, { top: `${top}px`, height: `${height}px` });
    const end = () => element.remove();
    element.animate([{ opacity: 1 }, { opacity: 0, transform: "translateX(2rem)" }], { ...MOVE, fill: "forwards" }).finished.then(end, end);
  }

  return function show(rows, animated) {
    const moving = animated && !still.matches && !document.hidden;
    const base = parent.getBoundingClientRect().top;
    const before = new Map();
    if (moving) {
      for (const [key, { element }] of lines) {
        const { top, height } = element.getBoundingClientRect();
        before.set(key, { top: top - base, height });
      }
    }
    const keys = new Set(rows.map((row) => row.key));
    // When nearly everything is another, there is nothing to follow with the eyes.
    const few = rows.length / 2;
    const calm = [...lines.keys()].filter((key) => !keys.has(key)).length <= few;
    for (const [key, { element }] of lines) {
      if (keys.has(key)) continue;
      lines.delete(key);
      leave(element, before.get(key)?.top, before.get(key)?.height, moving && calm);
    }
    let next = parent.firstElementChild;
    const placed = rows.map((row) => {
      const line = place(row);
      while (next?.classList.contains("gone")) next = next.nextElementSibling;
      if (line.element === next) next = next.nextElementSibling;
      else parent.insertBefore(line.element, next);
      return { ...line, key: row.key };
    });
    if (!moving || !calm) return;
    const flashes = placed.filter(({ isNew, isChanged }) => isChanged && !isNew).length <= few;
    const ground = parent.getBoundingClientRect().top;
    for (const { element, key, isNew, isChanged } of placed) {
      const way = (before.get(key)?.top ?? 0) - (element.getBoundingClientRect().top - ground);
      if (isNew) element.animate([{ opacity: 0, transform: "translateX(-1.5rem)" }, { opacity: 1, transform: "none" }], MOVE);
      else if (Math.abs(way) > 1) element.animate([{ transform: `translateY(${way}px)` }, { transform: "none" }], MOVE);
      if (isChanged && !isNew && flashes) element.animate([{ backgroundColor: "#4a3a14" }, {}], { duration: 1200 });
    }
  };
}

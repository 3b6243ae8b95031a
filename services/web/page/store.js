// A value that several parts of the page show.

import { useEffect, useState } from "./html.js";

/** @template T @param {T} value */
export function store(value) {
  const listeners = new Set();
  return {
    get value() {
      return value;
    },
    set value(next) {
      value = next;
      for (const listener of listeners) listener(next);
    },
    /** @param {(value: T) => void} listener @returns {() => void} which ends it */
    listen(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** The value of a store, for a view that is shown anew with each. */
export function useStore(of) {
  const [value, setValue] = useState(of.value);
  useEffect(() => {
    setValue(of.value);
    return of.listen((next) => setValue(next));
  }, [of]);
  return value;
}

// Server-sent events for as long as somebody looks: a tab in the background holds no connection.

import { useEffect, useRef } from "./html.js";
import { store } from "./store.js";

/** Whether what is shown live is live now: a connection that was lost is made again by itself. */
export const connected = store(true);

const lost = new Set();

/** That a source of what is shown live was lost, or is there (again). */
export function tell(source, isLost) {
  isLost ? lost.add(source) : lost.delete(source);
  const all = lost.size === 0;
  if (connected.value !== all) connected.value = all;
}

const AGAIN = 2_000; // ms, after an answer that is none; the browser itself goes on after lost connections

/**
 * Hear the events of an address.
 *
 * @param {string | null} path None is heard while it is null.
 * @param {Record<string, (data: any) => void>} handlers By the name of the event.
 * @param {() => void} [opened] Whenever there is a connection.
 * @param {() => string} [onward] The address with which to go on after a pause, so that nothing is missed.
 */
export function useEvents(path, handlers, opened, onward) {
  const latest = useRef();
  latest.current = { handlers, opened, onward };
  useEffect(() => {
    if (!path) return;
    const key = {};
    let source, timer;
    let address = path;
    let begun = false;
    const close = () => {
      clearTimeout(timer);
      source?.close();
      source = undefined;
    };
    const open = () => {
      if (source || document.visibilityState === "hidden") return;
      if (begun) address = latest.current.onward?.() ?? path;
      begun = true;
      const mine = (source = new EventSource(address));
      mine.onopen = () => {
        tell(key, false);
        latest.current.opened?.();
      };
      mine.onerror = () => {
        if (mine !== source) return;
        tell(key, true);
        if (mine.readyState !== EventSource.CLOSED) return;
        close();
        timer = setTimeout(open, AGAIN);
      };
      for (const name of Object.keys(handlers)) {
        mine.addEventListener(name, (event) => latest.current.handlers[name](JSON.parse(event.data)));
      }
    };
    const look = () => (document.visibilityState === "hidden" ? close() : open());
    document.addEventListener("visibilitychange", look);
    open();
    return () => {
      document.removeEventListener("visibilitychange", look);
      close();
      tell(key, false);
    };
  }, [path]);
}

// What a view shows, asked for when it is opened, and again when the server was away.

import { useCallback, useEffect, useRef, useState } from "./html.js";
import { ask, Problem } from "./ask.js";

const PAUSES = [1_000, 2_000, 5_000, 10_000]; // ms

/**
 * The answer to a question: `{ data, problem, again, set }`. While neither is there, it is under way. What was there
 * stays while it is asked `again`; a server that is away is asked until it is back.
 *
 * @param {string | null} path Nothing is asked while it is null.
 */
export function useData(path) {
  const [state, setState] = useState({ path });
  const asked = useRef();
  const again = useCallback(async () => {
    asked.current?.abort();
    const mine = (asked.current = new AbortController());
    for (let tries = 0; path && !mine.signal.aborted; tries++) {
      try {
        const data = await ask(path, { signal: mine.signal });
        if (!mine.signal.aborted) setState({ path, data });
        return;
      } catch (error) {
        if (mine.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(0, { detail: String(error) });
        setState((before) => ({ path, problem, data: before.path === path ? before.data : undefined }));
        if (problem.status && problem.status !== 503) return;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSES[Math.min(tries, PAUSES.length - 1)]));
    }
  }, [path]);
  useEffect(() => {
    again();
    return () => asked.current?.abort();
  }, [again]);
  const set = useCallback((data) => setState({ path, data }), [path]);
  return { ...(state.path === path ? state : {}), again, set };
}

/** A list that comes in pages: `{ items, problem, more, busy, again, change }`; `more` is null at its end. */
export function usePages(path) {
  const first = useData(path);
  const [rest, setRest] = useState({ items: [] });
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState(null);
  useEffect(() => setRest({ items: [] }), [first.data]);
  const cursor = rest.cursor !== undefined ? rest.cursor : first.data?.next_cursor;
  const more = async () => {
    setBusy(true);
    setProblem(null);
    try {
      const next = await ask(`${path}${path.includes("?") ? "&" : "?"}cursor=${encodeURIComponent(cursor)}`);
      setRest(({ items }) => ({ items: [...items, ...next.items], cursor: next.next_cursor }));
    } catch (error) {
      setProblem(error);
    } finally {
      setBusy(false);
    }
  };
  return {
    items: first.data && [...first.data.items, ...rest.items],
    problem: first.problem ?? problem,
    more: cursor ? more : null,
    busy,
    again: first.again,
  };
}

/** Do something once at a time: `[run, busy, problem, clear]`. What it throws is the problem. */
export function useDeed(deed) {
  const [state, setState] = useState({ busy: false, problem: null });
  const busy = useRef(false);
  const run = async (...given) => {
    if (busy.current) return undefined;
    busy.current = true;
    setState({ busy: true, problem: null });
    try {
      const done = await deed(...given);
      setState({ busy: false, problem: null });
      return done;
    } catch (error) {
      if (!(error instanceof Problem)) console.error(error);
      setState({ busy: false, problem: error instanceof Problem ? error : new Problem(0, { detail: String(error) }) });
      return undefined;
    } finally {
      busy.current = false;
    }
  };
  return [run, state.busy, state.problem, () => setState({ busy: false, problem: null })];
}

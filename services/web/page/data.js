// What a view shows, asked for when it is opened, and again when the server was away.

import { useCallback, useEffect, useRef, useState } from "./html.js";
import { ask, Problem } from "./ask.js";
import { tell } from "./live.js";

const PAUSES = [1_000, 2_000, 5_000, 10_000]; // ms
const OFTEN = 10; // looks at the beginning, twice as often: what is short is seen to move too

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

const never = () => false;

/**
 * The answer to a question that is asked again and again, until it `isOver`: `{ data, problem, again, set }`. A server
 * that is away is asked until it is back; what was there stays. A tab that nobody sees asks nothing, and asks at once when
 * it is seen again.
 *
 * @param {string | null} path Nothing is asked while it is null.
 * @param {{ every?: number, isOver?: (data: any) => boolean }} [how] `every`: ms.
 */
export function useWatch(path, { every = 1_000, isOver = never } = {}) {
  const [state, setState] = useState({ path });
  const watch = useRef({});
  useEffect(() => {
    if (!path) return undefined;
    const key = {};
    let timer, asked;
    let lost = 0;
    let looks = 0;
    let last;
    const next = (data) => {
      clearTimeout(timer);
      if (!isOver(data)) timer = setTimeout(look, looks++ < OFTEN ? every / 2 : every);
    };
    const look = async () => {
      clearTimeout(timer);
      asked?.abort();
      if (document.visibilityState === "hidden") return;
      const mine = (asked = new AbortController());
      try {
        last = await ask(path, { signal: mine.signal });
        if (mine.signal.aborted) return;
        lost = 0;
        tell(key, false);
        setState({ path, data: last });
        next(last);
      } catch (error) {
        if (mine.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(0, { detail: String(error) });
        const passes = !problem.status || problem.status === 429 || problem.status >= 500;
        setState((before) => ({ path, problem, data: before.path === path ? before.data : undefined }));
        tell(key, passes);
        if (passes) timer = setTimeout(look, PAUSES[Math.min(lost++, PAUSES.length - 1)]);
      }
    };
    const set = (data) => {
      asked?.abort();
      setState({ path, data: (last = data) });
      next(data);
    };
    const seen = () => (last && isOver(last) && !lost ? undefined : look());
    watch.current = { again: look, set };
    document.addEventListener("visibilitychange", seen);
    look();
    return () => {
      document.removeEventListener("visibilitychange", seen);
      clearTimeout(timer);
      asked?.abort();
      tell(key, false);
    };
  }, [path]);
  const again = useCallback(() => watch.current.again?.(), []);
  const set = useCallback((data) => watch.current.set?.(data), []);
  return { ...(state.path === path ? state : {}), again, set };
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

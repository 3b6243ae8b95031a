// What a view shows, asked for when it is opened, and again when the server was away.

import { useCallback, useEffect, useRef, useState } from "./html.js";
import { ask, isAway, pause, pauseAfter, Problem } from "./ask.js";
import { tell } from "./live.js";

const OFTEN = 10; // looks at the beginning, twice as often: what is short is seen to move too

/**
 * The answer to a question: `{ data, problem, again, set }`. While neither is there, it is under way. What was there
 * stays while it is asked `again`; a server that is away is asked until it is back.
 *
 * @param {string | null} path Nothing is asked while it is null.
 * @param {typeof ask} [load] What asks.
 */
export function useData(path, load = ask) {
  const [state, setState] = useState({ path });
  const asked = useRef();
  const latest = useRef();
  latest.current = load;
  const again = useCallback(async () => {
    asked.current?.abort();
    const mine = (asked.current = new AbortController());
    for (let tries = 0; path && !mine.signal.aborted; tries++) {
      try {
        const data = await latest.current(path, { signal: mine.signal });
        if (!mine.signal.aborted) setState({ path, data });
        return;
      } catch (error) {
        if (mine.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(0, { detail: String(error) });
        setState((before) => ({ path, problem, data: before.path === path ? before.data : undefined }));
        if (problem.status && problem.status !== 503) return;
      }
      await pause(tries);
    }
  }, [path]);
  useEffect(() => {
    again();
    return () => asked.current?.abort();
  }, [again]);
  const set = useCallback((data) => {
    asked.current?.abort(); // what is on its way is older
    setState({ path, data });
  }, [path]);
  return { ...(state.path === path ? state : {}), again, set };
}

const PAGE = 20; // items that come at a time
const MOST = 100; // items of one answer

/**
 * A list that comes in pages: `{ items, problem, more, busy, again }`; `more` is null at its end. As many pages as were
 * wanted are there when it is asked `again`, and for whoever comes back to this place in the browser's history.
 */
export function usePages(path) {
  const wanted = useRef({ path, pages: history.state?.pages ?? 1 });
  if (wanted.current.path !== path) wanted.current = { path, pages: 1 };
  const load = async (_, how) => {
    const items = [];
    for (let cursor = ""; ; ) {
      const limit = Math.min(MOST, wanted.current.pages * PAGE - items.length);
      const page = await ask(`${path}${path.includes("?") ? "&" : "?"}${new URLSearchParams({ limit, ...(cursor && { cursor }) })}`, how);
      items.push(...page.items);
      cursor = page.next_cursor;
      if (!cursor || items.length >= wanted.current.pages * PAGE) return { items, isAll: !cursor };
    }
  };
  const { data, problem, again } = useData(path, load);
  const [more, busy] = useDeed(async () => {
    wanted.current.pages += 1;
    history.replaceState({ ...history.state, pages: wanted.current.pages }, "");
    await again();
  });
  return { items: data?.items, problem, more: data && !data.isAll ? more : null, busy, again };
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
        const passes = isAway(problem);
        setState((before) => ({ path, problem, data: before.path === path ? before.data : undefined }));
        tell(key, passes);
        if (passes) timer = setTimeout(look, pauseAfter(lost++));
      }
    };
    const set = (data) => {
      asked?.abort();
      lost = 0;
      tell(key, false);
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

/** Ask again and again, for as long as `wanted`; `every` ms after each answer. */
export function useLook(wanted, again, every) {
  useEffect(() => {
    let timer;
    let over = !wanted;
    const look = async () => {
      await again();
      if (!over) timer = setTimeout(look, every);
    };
    if (wanted) look();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [wanted, every]);
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

// Notices: what the server tells whoever is logged in here, over one connection for each tab.

import { useEffect, useRef } from "./html.js";
import { ask, isAway, pause } from "./ask.js";
import { tell as tellLost } from "./live.js";
import { me, whoIsIt } from "./session.js";
import { store } from "./store.js";

/** How they are heard: `{ state, transport, reason, was }`; `was`: whether there has been a connection before. */
export const line = store({ state: "off" });

/** What was heard in this tab, newest first. */
export const heard = store([]);

/** How many are unread; null while that is not known. */
export const unread = store(null);

/** What was read since the page was opened: some by their ids, and all up to a cursor. */
export const read = store({ ids: new Set(), to: 0 });

/** What came while the page is open, and is still to be shown; oldest first. */
export const news = store([]);

export const isRead = ({ id, cursor }, { ids, to } = read.value) => ids.has(id) || cursor <= to;

const CLIENT = "/api/notifications/client.js";
const REFUSED = 30_000; // ms until a server that refuses is asked again
const KEPT = 500; // of what was heard
const COUNT_AFTER = 50; // notices by which the count was changed here

const takers = new Set();
const tabs = new BroadcastChannel("boxoffice-notices"); // of this browser, where the same may be read

let user = null; // who is listened for
let over; // an AbortController, by which that ends
let listen, listening; // the module's, and what it returned
let left; // where a tab in the background stopped listening
let counted; // `{ unread, newest }`, as the server has it; what is newer was heard here
let counts = 0;
let since; // the newest when the page was opened: what is not newer is no news

/**
 * Have a view hear notices. `take` is given nothing where some may have been missed: ask again for what is shown.
 *
 * @param {(notice?: object) => void} take
 */
export function useNotices(take) {
  const latest = useRef();
  latest.current = take;
  useEffect(() => {
    const taker = (notice) => latest.current(notice);
    takers.add(taker);
    return () => takers.delete(taker);
  }, []);
}

/** Listen whenever somebody is logged in. */
export function followLogin() {
  me.listen(follow);
  follow(me.value);
  document.addEventListener("visibilitychange", () => {
    look();
    if (counted && document.visibilityState === "visible") count().catch(() => {}); // what was read elsewhere meanwhile
  });
  tabs.onmessage = ({ data }) => data.user === user && note(data.id, data.to);
}

/** Do what ends the login, while nothing listens. */
export async function quietly(deed) {
  end();
  try {
    await deed();
  } finally {
    follow(me.value);
  }
}

/** You have read this one. Throws a Problem. */
export async function markRead({ id }) {
  await ask(`/api/notifications/${id}/read`, { method: "POST" });
  tabs.postMessage({ user, id });
  await note(id);
}

/** You have read all there are. Throws a Problem. */
export async function markAllRead() {
  const to = Math.max(counted?.newest ?? 0, heard.value[0]?.cursor ?? 0);
  await ask("/api/notifications/read", { method: "POST", json: { cursor: to } });
  tabs.postMessage({ user, to });
  await note(undefined, to);
}

async function note(id, to = 0) {
  const { ids, to: before } = read.value;
  read.value = { ids: id ? new Set([...ids, id]) : ids, to: Math.max(to, before) };
  tell();
  await count().catch(() => {}); // it is counted again with the next connection
}

function follow(who) {
  const next = who?.user_id ?? null;
  if (next === user) return;
  end();
  user = next;
  if (user) begin();
}

async function begin() {
  const { signal } = (over = new AbortController());
  line.value = { state: "connecting" };
  const newest = await until(signal, async () => (await count(), counted?.newest));
  if (signal.aborted) return;
  since = newest;
  const module = await until(signal, (tries) => import(tries ? `${CLIENT}?${tries}` : CLIENT));
  if (signal.aborted) return;
  listen = module.listen;
  connect();
}

/** What a deed comes to, however often that takes; nothing if it is over before. */
async function until(signal, deed) {
  for (let tries = 0; !signal.aborted; tries++) {
    try {
      return await deed(tries);
    } catch (error) {
      if (signal.aborted) return undefined;
      line.value = { state: "waiting", reason: error.message, was: true };
    }
    await pause(tries);
  }
  return undefined;
}

/** Listen, from where it was left. */
function connect({ after, log } = {}) {
  const { signal } = over;
  const unlessOver = (callback) => (given) => (signal.aborted ? undefined : callback(given));
  const mine = (listening = listen({
    after,
    log,
    onNotification: unlessOver(take),
    onResumed: unlessOver(resumed),
    onState: unlessOver((state) => mine === listening && turn(state)),
  }));
}

function end() {
  over?.abort();
  listening?.close();
  listening = left = counted = since = undefined;
  user = null;
  counts += 1; // what is on its way is of somebody else
  line.value = { state: "off" };
  heard.value = news.value = [];
  read.value = { ids: new Set(), to: 0 };
  unread.value = null;
}

function turn(state) {
  const { was } = line.value;
  line.value = { ...state, was: was || state.state === "open" };
  if (state.state === "ended") startAgain();
  else look();
  if (state.state === "waiting") untilBack();
}

let looking = false;

/** Tell that the server is away, if it is; and as soon as it is back, the module, which may wait much longer by then. */
async function untilBack() {
  if (looking) return;
  looking = true;
  for (let tries = 0; line.value.state === "waiting"; tries++) {
    try {
      await ask("/clock");
      if (tries) dispatchEvent(new Event("online"));
      break;
    } catch (error) {
      tellLost(untilBack, isAway(error));
      await pause(Math.min(tries, 1));
    }
  }
  tellLost(untilBack, false);
  looking = false;
}

/** After the end: is it still the same person, and does the server take them by now? */
async function startAgain() {
  const { signal } = over;
  const place = { after: listening.cursor, log: listening.log };
  const ended = line.value.why;
  listening = undefined;
  if (ended === "unauthorized") await whoIsIt().catch(() => {});
  setTimeout(() => !signal.aborted && connect(place), REFUSED);
}

/** A tab that nobody sees holds no HTTP connection: a browser has six for a server. WebSockets are none of them. */
function look() {
  const { state, transport } = line.value;
  if (document.visibilityState === "hidden") {
    if (!listening || state !== "open" || transport === "websocket") return;
    const mine = listening;
    left = { user, after: mine.cursor, log: mine.log };
    listening = undefined;
    mine.close();
    line.value = { state: "connecting", was: false };
  } else if (left) {
    const place = left;
    left = undefined;
    if (place.user === user) connect(place);
  }
}

/** How many are unread, by the server. Throws a Problem. */
async function count() {
  const mine = ++counts;
  const { unread: some, items } = await ask("/api/notifications/inbox?limit=1", { signal: over?.signal });
  if (mine !== counts) return;
  counted = { unread: some, newest: items[0]?.notification.cursor ?? 0 };
  tell();
}

const uncounted = () => (counted ? heard.value.filter((notice) => notice.cursor > counted.newest && !isRead(notice)).length : 0);

function tell() {
  unread.value = counted ? counted.unread + uncounted() : null;
}

function take(notice) {
  if (heard.value.some(({ id }) => id === notice.id)) return;
  heard.value = [notice, ...heard.value].sort((a, b) => b.cursor - a.cursor).slice(0, KEPT);
  if (notice.cursor > since) news.value = [...news.value, notice];
  tell();
  if (uncounted() > COUNT_AFTER) count().catch(() => {});
  pass(notice);
}

function resumed({ recovered }) {
  if (!recovered) {
    heard.value = news.value = []; // their cursors are of another log
    read.value = { ids: new Set(), to: 0 };
    since = counted = undefined;
  }
  const first = !line.value.was || !recovered;
  count()
    .then(() => (since ??= counted?.newest))
    .catch(() => {});
  if (first) pass();
}

function pass(notice) {
  for (const taker of takers) {
    try {
      taker(notice);
    } catch (error) {
      console.error(error); // it is taken all the same, by the others
    }
  }
}

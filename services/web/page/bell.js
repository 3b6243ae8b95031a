// The bell in the header, and what has just happened.

import { html, useEffect, useRef, useState } from "./html.js";
import { isRead, line, markRead, news, read, unread } from "./notices.js";
import { useStore } from "./store.js";
import { place } from "./way.js";
import { number } from "./words.js";

const TRANSPORTS = { websocket: "WebSocket", sse: "server-sent events", poll: "long-polling" };

/** How notices come, in words. */
export function lineOf({ state, transport, was }) {
  if (state === "open") return `Live over ${TRANSPORTS[transport]}.`;
  return was ? "The connection for notices is lost; it is tried again." : "Connecting…";
}

const LINKS = { order: ["/orders/", "See the order"], batch: ["/jobs/", "See the job"], ticket: ["/sell/", "See the ticket"] };

/** What a notice is about: `{ path, words }`; undefined where there is no view of it. */
export function linkOf({ kind, about }) {
  const [path, words] = LINKS[kind.slice(0, kind.indexOf("."))] ?? [];
  return path && { path: path + about, words };
}

/** How many are unread; leads to them. */
export function Bell() {
  const count = useStore(unread);
  const how = useStore(line);
  const { pathname } = useStore(place);
  const lost = how.state !== "open" && how.was;
  const name = count ? `Notices, ${number(count)} unread` : "Notices";
  return html`<a class="bell ${lost ? "lost" : ""}" href="/notices" aria-label=${name} aria-describedby="bell-line" title=${lineOf(how)}
    aria-current=${pathname.startsWith("/notices") ? "page" : undefined}>
    <svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true">
      <path d="M12 3a6 6 0 0 0-6 6v4l-2 4h16l-2-4V9a6 6 0 0 0-6-6zM9.5 19a2.5 2.5 0 0 0 5 0z" fill="currentColor" />
    </svg>
    ${count > 0 && html`<span class="count" aria-hidden="true">${count > 99 ? "99+" : count}</span>`}
    <span id="bell-line" hidden>${lineOf(how)}</span>
  </a>`;
}

const most = () => (matchMedia("(max-width: 30rem)").matches ? 1 : 3); // shown at a time: they cover what is below
const LONG = 10_000; // ms that they stay after the last one came, unless somebody is at them

/** What came while somebody looks at something else, told and shown for a while. */
export function News() {
  const all = useStore(news);
  const readNow = useStore(read);
  const { pathname } = useStore(place);
  const [held, setHeld] = useState(false);
  const isOnScreen = (notice) => pathname === "/notices" || pathname === linkOf(notice)?.path;
  useEffect(() => {
    if (all.some(isOnScreen)) news.value = all.filter((notice) => !isOnScreen(notice));
  }, [all, pathname]);
  useEffect(() => {
    if (!all.length || held) return;
    const timer = setTimeout(() => (news.value = []), LONG);
    return () => clearTimeout(timer);
  }, [all, held]);
  const shown = all.filter((notice) => !isOnScreen(notice) && !isRead(notice, readNow));
  useEffect(() => {
    if (!shown.length) setHeld(false); // nobody can leave what is not there
  }, [shown.length]);
  const room = most();
  const first = useRef(null); // of those that are on screen: while somebody is at them, none is pushed out
  const indexOf = (id) => shown.findIndex((notice) => notice.id === id);
  if (!held || indexOf(first.current) < 0) first.current = shown.slice(-room)[0]?.id;
  const from = Math.max(0, indexOf(first.current));
  const drop = (notice, { currentTarget }) => {
    const box = currentTarget.closest(".message");
    const beside = [box.nextElementSibling, box.previousElementSibling].map((each) => each?.querySelector("button"));
    (beside.find(Boolean) ?? document.getElementById("main")).focus({ preventScroll: true });
    if (notice.id === first.current) first.current = (shown[from + 1] ?? shown[from - 1])?.id;
    news.value = news.value.filter(({ id }) => id !== notice.id);
  };
  return html`<aside class="news" aria-label="New notices" hidden=${pathname === "/notices"}
    onMouseEnter=${() => setHeld(true)} onMouseLeave=${() => setHeld(false)}
    onfocusin=${() => setHeld(true)} onfocusout=${() => setHeld(false)}>
    <div role="status">
      ${shown.slice(from, from + room).map((notice) => html`<${Message} key=${notice.id} notice=${notice} drop=${drop} />`)}
      ${shown.length > room && html`<p key="more" class="message"><a href="/notices">${number(shown.length - room)} more in Notices</a></p>`}
    </div>
  </aside>`;
}

function Message({ notice, drop }) {
  const link = linkOf(notice);
  return html`<div class="message">
    <p id="news-${notice.id}">${notice.text}</p>
    ${link && html`<a href=${link.path} aria-describedby="news-${notice.id}" onClick=${() => markRead(notice).catch(() => {})}>${link.words}</a>`}
    <button type="button" class="quiet small" aria-describedby="news-${notice.id}" onClick=${(event) => drop(notice, event)}>Dismiss</button>
  </div>`;
}

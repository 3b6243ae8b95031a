// The frame of the page: which view is shown, who is logged in, and whether the server is there.

import { html, render, useEffect, useErrorBoundary, useRef, useState } from "./html.js";
import { Deed, Login, Trouble, Waiting } from "./parts.js";
import { Problem } from "./ask.js";
import { Bell, News } from "./bell.js";
import { keepTime } from "./clock.js";
import { connected } from "./live.js";
import { followLogin, quietly } from "./notices.js";
import { followOtherTabs, learnWho, logOut, may, me, switches } from "./session.js";
import { useDeed } from "./data.js";
import { useStore } from "./store.js";
import { followLinks, place, scrollToPlace } from "./way.js";

/** Each view by its address: `[pattern, title, module]`. The server knows the same addresses (`services/web/api.py`). */
const VIEWS = [
  ["/", "Tickets", () => import("./shop.js")],
  ["/tickets/:id", "Ticket", () => import("./ticket.js")],
  ["/orders", "My orders", () => import("./orders.js")],
  ["/orders/:id", "Order", () => import("./order.js")],
  ["/sell", "Sell", () => import("./sell.js")],
  ["/sell/upload", "Upload", () => import("./upload.js")],
  ["/sell/new", "Put a ticket on sale", () => import("./listing.js")],
  ["/sell/:id", "Change a ticket", () => import("./listing.js")],
  ["/jobs", "Jobs", () => import("./jobs.js")],
  ["/jobs/kinds", "Kinds of job", () => import("./pauses.js")],
  ["/jobs/templates", "Templates", () => import("./templates.js")],
  ["/jobs/templates/new", "New template", () => import("./template.js")],
  ["/jobs/templates/:id", "Template", () => import("./template.js")],
  ["/jobs/:id", "Job", () => import("./job.js")],
  ["/notices", "Notices", () => import("./inbox.js")],
  ["/notices/preferences", "What you are told live", () => import("./preferences.js")],
  ["/notices/webhooks", "Webhooks", () => import("./webhooks.js")],
  ["/notices/webhooks/new", "New webhook", () => import("./new_webhook.js")],
  ["/notices/webhooks/:id", "Webhook", () => import("./webhook.js")],
  ["/system", "System", () => import("./system.js")],
  ["/system/dead", "Dead letters", () => import("./dead.js")],
  ["/time", "Time machine", () => import("./time.js")],
  ["/time/trace/:id", "Trace", () => import("./trace.js")],
  ["/time/past", "At a past moment", () => import("./past.js")],
  ["/time/:service/:id", "History", () => import("./history.js")],
];

const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const AGAIN = 2_000; // ms until what could not be loaded is asked for again

/** What the menu leads to, and for whom it is. */
const MENU = [
  ["/", "Shop"],
  ["/orders", "My orders", "buyer"],
  ["/sell", "Sell", "seller"],
  ["/jobs", "Jobs", "seller"],
  ["/system", "System", "operator"],
  ["/time", "Time machine", "operator"],
];

/** The view of an address, and what its pattern found; undefined if it is none of ours. */
function viewOf({ pathname }) {
  for (const [pattern, title, load] of VIEWS) {
    const names = [];
    const found = new RegExp(`^${pattern.replace(/:(\w+)/g, (_, name) => (names.push(name), "([^/]+)"))}/?$`).exec(pathname);
    if (!found) continue;
    try {
      const given = Object.fromEntries(names.map((name, at) => [name, decodeURIComponent(found[at + 1])]));
      if (given.id && !pattern.startsWith("/time") && !ID.test(given.id)) return undefined;
      return { title, load, given };
    } catch {
      return undefined; // it is no text
    }
  }
  return undefined;
}

/** A view, whose module is fetched when it is first shown. */
function View({ title, load, given }) {
  const [state, setState] = useState({});
  const [failure, forget] = useErrorBoundary((error) => console.error(error));
  const key = `${title} ${Object.values(given).join(" ")}`;
  useEffect(() => {
    document.title = title === "Tickets" ? "Boxoffice" : `${title} · Boxoffice`;
    let timer;
    const come = () =>
      load().then(
        (module) => setState({ load, View: module.default }),
        () => {
          setState({ load, problem: new Problem(0) });
          timer = setTimeout(come, AGAIN);
        },
      );
    come();
    return () => clearTimeout(timer);
  }, [load]);
  if (failure) {
    const again = () => (forget(), location.reload());
    return html`<h1>${title}</h1><${Trouble} problem=${new Problem(0, { detail: "This view failed. Its address is still good." })} again=${again} />`;
  }
  if (state.load !== load) return html`<${Waiting} />`;
  if (state.problem) return html`<h1>${title}</h1><${Trouble} problem=${state.problem} />`;
  return html`<${state.View} key=${key} ...${given} />`;
}

/** Who is logged in, and the way out. */
function Who({ login }) {
  const who = useStore(me);
  const [out, busy, problem] = useDeed(() => quietly(logOut));
  if (who === undefined) return null;
  if (who === null) return html`<button type="button" class="quiet small" onClick=${login}>Log in</button>`;
  return html`<${Bell} />
    <span class="who"><a href="/login" title="Account, keys and logins">${who.name ?? who.user_id}</a></span>
    <${Deed} class="quiet small" busy=${busy} onClick=${out}>Log out<//>
    ${problem && html`<span role="alert">${problem.message}</span>`}`;
}

function Frame() {
  const url = useStore(place);
  const live = useStore(connected);
  const who = useStore(me);
  const user = useStore(switches);
  const [isAnother, setIsAnother] = useState(false); // told until another view is gone to
  const main = useRef(null);
  const first = useRef(true);
  const [asking, setAsking] = useState(false); // who they are
  const view = viewOf(url);
  useEffect(() => setIsAnother(user > 0), [user]);
  useEffect(() => setIsAnother(false), [url.pathname]);
  useEffect(() => {
    const stop = scrollToPlace();
    if (first.current) {
      first.current = false; // who opened the page is at its beginning
      return stop;
    }
    main.current.focus({ preventScroll: true });
    return stop;
  }, [url.pathname]);
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), main.current.focus())}>Skip to content</a>
    <header>
      <a class="brand" href="/">Boxoffice</a>
      <nav aria-label="Main">
        ${MENU.filter(([, , role]) => !role || may(who, role)).map(
          ([path, name]) => html`<a href=${path} aria-current=${isIn(url, path) ? "page" : undefined}>${name}</a>`,
        )}
      </nav>
      <div class="account"><${Who} login=${() => setAsking(true)} /></div>
    </header>
    ${asking && who === null && html`<div class="ask"><${Login} why="Log in to Boxoffice." done=${() => setAsking(false)} /></div>`}
    <p class="connection" role="status">${live ? "" : "Connection lost. What you see may be old; it is tried again."}</p>
    <p class="connection" role="status">${isAnother && who ? `You are ${who.name ?? who.user_id} now: somebody has logged in with this browser meanwhile.` : ""}</p>
    <main id="main" tabindex="-1" ref=${main}>
      ${view
        ? html`<${View} key=${user} ...${view} />`
        : html`<h1>Nothing is here</h1><p>There is nothing at this address. <a href="/">To the shop</a></p>`}
    </main>
    <${News} />`;
}

const isIn = (url, path) => (path === "/" ? url.pathname === "/" || url.pathname.startsWith("/tickets/") : url.pathname.startsWith(path));

followLinks((url) => viewOf(url) !== undefined);
keepTime();
followLogin();
followOtherTabs();
addEventListener("load", () => setTimeout(() => VIEWS.forEach(([, , load]) => load().catch(() => {})), AGAIN)); // before they are needed
render(html`<${Frame} />`, document.getElementById("page"));
learnWho();

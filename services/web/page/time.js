// The time machine: find what happened by any id, and watch what happens now.

import { html, useCallback, useRef, useState } from "./html.js";
import { Deed, Field, For, Nothing, Told, Trouble, Waiting } from "./parts.js";
import { ask, Problem, withQuery } from "./ask.js";
import { serverNow } from "./clock.js";
import { useData, useDeed } from "./data.js";
import { asWritten, ending, historyOf, named, PLACES, said, short, Time, traceOf, WHO } from "./events.js";
import { useEvents } from "./live.js";
import { useStore } from "./store.js";
import { go, place, setParameter, useTyped } from "./way.js";
import { number, plural } from "./words.js";

const ROWS = 200; // that are shown, and kept while it is paused
const BEFORE = 50; // of those that came before, which are shown at once
const KNOWN = 5_000; // events of which it is known that they came
const OVERLAP = 10_000; // ms; clocks of who appends differ, and what was appended in one moment comes in any order
const ASIDE = new Set(["type", "version", "at", ...WHO]);

export default function TimeMachine() {
  return html`<h1>Time machine</h1><${For} role="operator" why="Log in to look at what happened."><${Desk} /><//>`;
}

function Desk() {
  return html`<${Find} /><p><a href="/time/past">How was it at a past moment?</a></p><${Tail} />`;
}

const addressOf = ({ id, service, at }) => (service ? withQuery(`/time/${service}/${encodeURIComponent(id)}`, { at }) : traceOf(id));

/** One field for every id; what it is, the server knows. */
function Find() {
  const [found, setFound] = useState(null);
  const [looked, setLooked] = useState(""); // for what
  const [find, busy, problem, clear] = useDeed(async (wanted) => {
    setFound(null);
    setLooked(wanted);
    const leads = await ask(`/api/events/find/${encodeURIComponent(wanted)}`);
    leads.length === 1 ? go(addressOf(leads[0])) : setFound(leads);
  });
  const submit = (event) => {
    event.preventDefault();
    const wanted = asWritten(new FormData(event.target).get("wanted").trim());
    if (wanted) find(wanted);
  };
  return html`<form onSubmit=${submit} role="search" aria-label="Find by id">
      <${Field} label="Id" name="wanted" required maxlength="200" autocomplete="off" spellcheck=${false} onInput=${clear}
        hint="Of an order, a ticket, a batch, an event, or the correlation id of a click." problem=${problem?.message} />
      <div><${Deed} type="submit" busy=${busy}>Find<//></div>
      ${problem?.status === 404 && html`<p>Is it somebody? <a href=${withQuery("/time", { user: looked })}>See the last events that name the user ${looked}</a></p>`}
      <${Told}>${busy ? "Looking through the log…" : found ? `It is in ${plural(found.length, "place")}.` : ""}<//>
    </form>
    ${found && html`<ul class="rows" aria-label="Found">${found.map((each) => html`<li><a href=${addressOf(each)}>
      <strong>${PLACES[each.service] ?? `In ${each.service}`}</strong><small>${each.service} ${each.id}</small></a></li>`)}</ul>`}`;
}

/** What is appended, as it happens. */
function Tail() {
  const query = useStore(place).searchParams;
  const { data: types, problem, again } = useData("/api/events/types");
  if (!types) return html`<${Trouble} problem=${problem} again=${again} />`;
  const known = (name, all) => (all.includes(query.get(name)) ? query.get(name) : "");
  const service = known("service", Object.keys(types));
  const offered = service ? types[service] : Object.values(types).flat().sort();
  const wanted = { service, type: known("type", offered), user: query.get("user") ?? "" };
  return html`<h2 id="now">What happens now</h2>
    <${Filters} types=${types} offered=${offered} wanted=${wanted} />
    <${Lines} key=${JSON.stringify(wanted)} wanted=${wanted} />`;
}

function Filters({ types, offered, wanted }) {
  const [user, type] = useTyped("user");
  const choose = (name) => (event) => setParameter(name, event.target.value);
  const option = (value) => html`<option key=${value} value=${value} selected=${value === wanted.service || value === wanted.type}>${named(value)}</option>`;
  return html`<div class="filters" role="group" aria-label="Which events">
    <${Field} label="Service" value=${wanted.service} onChange=${choose("service")}><option value="">All</option>${Object.keys(types).map(option)}<//>
    <${Field} label="Event" value=${wanted.type} onChange=${choose("type")}><option value="">All</option>${offered.map(option)}<//>
    <${Field} label="User" value=${user} maxlength="200" autocomplete="off" spellcheck=${false} onInput=${(event) => type(event.target.value)} />
  </div>`;
}

/** The rows. While it is paused what comes is kept aside, so that what is read stays where it is. */
function Lines({ wanted }) {
  const [rows, setRows] = useState([]);
  const [aside, setAside] = useState(null); // while it is paused: what came since
  const [ended, setEnded] = useState(null);
  const [begun, setBegun] = useState(false); // whether those of before are here
  const seen = useRef(new Set()); // ids of events
  const latest = useRef(null);
  const begin = useRef(performance.now());
  const [path] = useState(() => withQuery("/api/events/stream", { ...wanted, last: BEFORE }));
  const isBegun = useRef(false);
  const onward = useCallback(() => {
    if (!isBegun.current) return path;
    const last = latest.current ?? serverNow() - (performance.now() - begin.current);
    const since = new Date(last - OVERLAP).toISOString();
    return withQuery("/api/events/stream", { ...wanted, since });
  }, []);
  const coming = useRef([]);
  const paused = useRef(false);
  const take = () => {
    const fresh = coming.current;
    coming.current = [];
    const add = (before) => ({ count: (before?.count ?? 0) + fresh.length, rows: [...fresh.reverse(), ...(before?.rows ?? [])].slice(0, ROWS) });
    paused.current ? setAside(add) : setRows((before) => add({ rows: before }).rows);
  };
  const event = (line) => {
    if (seen.current.has(line.event_id)) return;
    seen.current.add(line.event_id);
    if (seen.current.size > KNOWN) seen.current.delete(seen.current.values().next().value);
    latest.current = Math.max(latest.current ?? 0, Date.parse(line.time));
    if (coming.current.push(line) === 1) requestAnimationFrame(take); // what comes together is shown together
  };
  const start = () => setBegun((isBegun.current = true));
  useEvents(path, { event, begun: start, ended: ({ reason }) => setEnded(reason) }, () => setEnded(null), onward);
  const turn = () => {
    if (paused.current) setRows((before) => [...aside.rows, ...before].slice(0, ROWS));
    paused.current = !paused.current;
    setAside(paused.current ? { count: 0, rows: [] } : null);
  };
  return html`<div class="choices">
      <button type="button" class="quiet" aria-pressed=${aside ? "true" : "false"} onClick=${turn}>${aside ? "Go on" : "Pause"}</button>
      <${Told}>${aside ? `Paused. ${aside.count ? `${plural(aside.count, "event")} came since.` : "Nothing came since."}` : ""}<//>
    </div>
    <${Trouble} problem=${ended && new Problem(0, { detail: ended })} />
    ${!rows.length && !begun && !ended && html`<${Waiting} what="Looking at the last events" />`}
    ${!rows.length && begun && html`<${Nothing} title=${Object.values(wanted).some(Boolean) ? "None of the last events is like this" : "Nothing has happened yet"}>
      <p>Each event appears here as it is appended. Reserve a ticket in <a href="/">the shop</a> to see some.</p><//>`}
    <ol class="tail" aria-labelledby="now">${rows.map((line) => html`<${Line} key=${line.event_id} line=${line} />`)}</ol>
    ${rows.length === ROWS && html`<p class="quiet">The last ${number(ROWS)} are shown.</p>`}`;
}

function Line({ line }) {
  const { subject, sequence, type, time, correlation_id, event, stream } = line;
  const body = event && typeof event === "object" ? event : { body: event };
  const facts = Object.entries(body).filter(([name, value]) => !ASIDE.has(name) && value !== null && value !== "");
  const who = WHO.find((name) => body[name]);
  return html`<li>
    <p><strong class=${ending(type)}>${named(type)}</strong> ${who && html`<span>${who === "by" ? "by" : "of"} ${body[who]} </span>`}
      <small><${Time} of=${time} /></small></p>
    <p class="facts">${facts.slice(0, 8).map(([name, value]) => `${name} ${said(value)}`).join(", ")}</p>
    <p class="links"><a href=${historyOf(subject, sequence)}>${stream.toLowerCase()} ${short(subject.split(".").at(-1))} <span class="quiet">at ${number(sequence)}</span></a>
      ${correlation_id && html`<a href=${traceOf(correlation_id, time)}>Trace <span class="quiet">${short(correlation_id)}</span></a>`}</p>
  </li>`;
}

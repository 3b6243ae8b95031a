// The history of one aggregate: what happened, and how it was after each event.

import { html, useEffect, useMemo, useRef, useState } from "./html.js";
import { For, Told, Waiting } from "./parts.js";
import { withQuery } from "./ask.js";
import { useData } from "./data.js";
import { ending, named, Refused, short, Time, traceOf } from "./events.js";
import { ENTRIES, State } from "./state.js";
import { useStore } from "./store.js";
import { place, setParameter } from "./way.js";
import { number, plural, precisely, span } from "./words.js";

const PAGE = 100; // events that are in the document at a time
const SETTLED = 150; // ms; what is passed over faster is not asked for

export default function History({ service, id }) {
  return html`<p><a href="/time">‹ Time machine</a></p>
    <h1>History <small>${service} ${short(id.split(".").at(-1))}</small></h1>
    <${For} role="operator" why="Log in to look at what happened."><${Window} service=${service} id=${id} /><//>`;
}

/** The newest events, or those up to the sequence that the address names. */
function Window({ service, id }) {
  const query = useStore(place).searchParams;
  const path = `/api/events/history/${encodeURIComponent(service)}/${encodeURIComponent(id)}`;
  const until = query.get("until");
  const wanted = Number(query.get("at")) || null;
  const { data: history, problem, again } = useData(withQuery(path, { at: until, entries: ENTRIES }));
  const [news, setNews] = useState("");
  const isBefore = history?.earlier > 0 && wanted !== null && wanted < history.steps[0].sequence;
  useEffect(() => {
    if (isBefore) setParameter("until", wanted);
  }, [isBefore]);
  if (!history || isBefore) return problem ? html`<${Refused} problem=${problem} again=${again} />` : html`<${Waiting} what="Reading the history" />`;
  const show = (sequence) => {
    setParameter("at", null);
    setParameter("until", sequence);
  };
  const refresh = async () => {
    setNews("");
    await again();
    setNews("This is how it is now.");
  };
  return html`<p class="quiet id">${history.subject}</p>
    <${Refused} problem=${problem} />
    <div class="choices">
      ${history.earlier > 0 && html`<button type="button" class="quiet small" onClick=${() => show(history.steps[0].sequence - 1)}>
        Show earlier events (${number(history.earlier)})</button>`}
      ${until
        ? html`<button type="button" class="quiet small" onClick=${() => show(null)}>Show the newest events</button>`
        : html`<button type="button" class="quiet small" onClick=${refresh}>Look again</button>`}
      <${Told}>${news}<//>
    </div>
    <${Steps} key=${until} path=${path} history=${history} wanted=${wanted} />`;
}

/** One of the events is looked at; the slider, the list and the buttons all choose which. */
function Steps({ path, history, wanted }) {
  const { steps } = history;
  const [chosen, setChosen] = useState(wanted); // a sequence; null for the last
  const last = steps.length - 1;
  const index = chosen === null ? last : Math.max(0, steps.findLastIndex(({ sequence }) => sequence <= chosen));
  useEffect(() => {
    if (chosen === wanted) return;
    const timer = setTimeout(() => setParameter("at", chosen), SETTLED);
    return () => clearTimeout(timer);
  }, [chosen]);
  const choose = (to) => setChosen(steps[Math.max(0, Math.min(last, to))].sequence);
  return html`<${Slider} steps=${steps} index=${index} choose=${choose} />
    <${Moment} path=${path} history=${history} step=${steps[index]} isFirst=${index === 0 && history.earlier === 0} />
    <${Forms} path=${path} history=${history} index=${index} choose=${choose} />`;
}

function Slider({ steps, index, choose }) {
  const { type, sequence, time } = steps[index];
  const where = `Event ${number(index + 1)} of ${number(steps.length)}: ${named(type)}`;
  const at = (to) => to < 0 || to >= steps.length;
  const step = (by, name) => html`<button type="button" class="quiet small" aria-disabled=${at(index + by) ? "true" : undefined}
    onClick=${() => choose(index + by)}>${name}</button>`;
  return html`<section class="slider" aria-label="Moment">
    <label for="moment">Moment</label>
    <input id="moment" type="range" min="0" max=${steps.length - 1} step="1" value=${index}
      aria-valuetext="${where}, ${precisely(time)}" onInput=${(event) => choose(Number(event.target.value))} />
    <div class="choices">${step(-1, "‹ Before")} ${step(1, "Next ›")}
      <output for="moment"><strong class=${ending(type)}>${where}</strong> <small>sequence ${number(sequence)}</small></output></div>
  </section>`;
}

/** What happened then: who, how long after, what it changed, and the state after it. */
function Moment({ path, history, step, isFirst }) {
  const { type, version, time, waited, who, event, correlation_id, causation_id, changes } = step;
  return html`<dl class="facts">
      <div><dt>When</dt><dd><${Time} of=${time} /></dd></div>
      ${waited !== null && html`<div><dt>After the event before</dt><dd>${span(waited * 1000)}</dd></div>`}
      ${who && html`<div><dt>${event.by ? "By" : "Of"}</dt><dd class="id">${who}</dd></div>`}
      <div><dt>Version</dt><dd>${number(version)}</dd></div>
      <div><dt>Caused by</dt><dd><a href=${traceOf(correlation_id, time)} aria-label="Trace of ${named(type)}">
        ${causation_id === correlation_id ? "a request" : `event ${short(causation_id)}`}, see the trace</a></dd></div>
    </dl>
    <div class="sides">
      <section aria-labelledby="difference"><h2 id="difference">What it changed</h2><${Changes} changes=${changes} isFirst=${isFirst} /></section>
      <section aria-labelledby="state"><h2 id="state">The state after it</h2><${StateAt} path=${path} history=${history} step=${step} /></section>
    </div>`;
}

const MOST = 50; // changes that are shown at first

function Changes({ changes, isFirst }) {
  const [all, setAll] = useState(false);
  useEffect(() => setAll(false), [changes]);
  if (!changes.length) return html`<p>Nothing: the state is as it was.</p>`;
  return html`${isFirst && html`<p class="quiet">It is the first event.</p>`}
    <ul class="changes">${changes.slice(0, all ? undefined : MOST).map((change) => html`<${Change} key=${change.path} change=${change} />`)}</ul>
    ${!all && changes.length > MOST && html`<button type="button" class="quiet small" onClick=${() => setAll(true)}>
      Show ${number(changes.length - MOST)} more</button>`}`;
}

/** In what way a part of the state differs. */
const kindOf = (change) => (!("before" in change) ? "added" : !("after" in change) ? "removed" : "changed");

const SIGNS = { added: "+", changed: "~", removed: "−" };

function Change({ change }) {
  const kind = kindOf(change);
  return html`<li class=${kind}>
    <span class="mark"><span aria-hidden="true">${SIGNS[kind]}</span> ${kind}</span> <code title=${change.path}>${change.path.split(".").map(short).join(".") || "state"}</code>
    ${kind === "changed" && html`<div><span class="quiet">from</span> <code>${written(change.before)}</code></div>
      <div><span class="quiet">to</span> <code>${written(change.after)}</code></div>`}
    ${kind === "added" && html`<div><code>${written(change.after)}</code></div>`}
    ${kind === "removed" && html`<div><code>${written(change.before)}</code></div>`}
  </li>`;
}

const LONGEST = 4_000; // characters

function written(value) {
  const text = JSON.stringify(value, null, 1);
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
}

/** The state as the server has folded it. While another is on the way, the one before stays. */
function StateAt({ path, history, step }) {
  const [settled, setSettled] = useState(step.sequence);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(step.sequence), SETTLED);
    return () => clearTimeout(timer);
  }, [step.sequence]);
  const isKnown = step === history.steps.at(-1);
  const { data, problem, again } = useData(isKnown ? null : withQuery(path, { at: settled, last: 1, entries: ENTRIES }));
  const shown = useRef(null);
  if (isKnown) shown.current = { step, ...history };
  else if (data && settled === step.sequence) shown.current = { step, ...data };
  const isOld = shown.current?.step !== step;
  if (isOld && problem) return html`<${Refused} problem=${problem} again=${again} />`;
  if (!shown.current) return html`<${Waiting} what="Folding the events" />`;
  const { state, left_out, step: of } = shown.current;
  return html`<div class=${isOld ? "old" : ""} aria-busy=${isOld ? "true" : "false"} data-at=${of.sequence}>
    <${State} state=${state} changes=${of.changes} leftOut=${left_out} /></div>`;
}

const FORMS = [
  ["list", "List"],
  ["timeline", "Timeline"],
  ["raw", "Raw JSON"],
];

/** The events in three forms. Tabs (ARIA APG): arrows go from one to the next. */
function Forms({ path, history, index, choose }) {
  const query = useStore(place).searchParams;
  const tabs = useRef(null);
  const as = FORMS.some(([name]) => name === query.get("as")) ? query.get("as") : "list";
  const turn = (event) => {
    const at = FORMS.findIndex(([name]) => name === as);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + FORMS.length, Home: 0, End: FORMS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    setParameter("as", FORMS[to % FORMS.length][0]);
    tabs.current.children[to % FORMS.length].focus();
  };
  const { steps } = history;
  const from = Math.floor(index / PAGE) * PAGE;
  const page = useMemo(() => steps.slice(from, from + PAGE), [steps, from]);
  const Form = { list: List, timeline: Timeline, raw: Raw }[as];
  return html`<h2>Events</h2>
    <div class="tabs" role="tablist" aria-label="Form" ref=${tabs} onKeyDown=${turn}>${FORMS.map(
      ([name, title]) => html`<button type="button" role="tab" id="tab-${name}" aria-controls="form" class="quiet"
        aria-selected=${name === as ? "true" : "false"} tabindex=${name === as ? 0 : -1} onClick=${() => setParameter("as", name)}>${title}</button>`,
    )}</div>
    <div id="form" role="tabpanel" aria-labelledby="tab-${as}" tabindex="0">
      <${Form} path=${path} steps=${page} chosen=${steps[index]} choose=${(step) => choose(steps.indexOf(step))} />
    </div>
    ${steps.length > PAGE && html`<${Pager} from=${from} steps=${steps} choose=${choose} />`}`;
}

function Pager({ from, steps, choose }) {
  const to = Math.min(from + PAGE, steps.length);
  return html`<nav class="choices" aria-label="Pages of events">
    <button type="button" class="quiet small" aria-disabled=${from === 0 ? "true" : undefined} onClick=${() => from > 0 && choose(from - 1)}>‹ Earlier</button>
    <span role="status">${number(from + 1)} to ${number(to)} of ${number(steps.length)}</span>
    <button type="button" class="quiet small" aria-disabled=${to === steps.length ? "true" : undefined}
      onClick=${() => to < steps.length && choose(to)}>Later ›</button>
  </nav>`;
}

/** An event's name, which shows the moment when it is pressed. */
function Pick({ step, chosen, choose }) {
  return html`<button type="button" class="pick ${ending(step.type)}" aria-current=${step === chosen ? "true" : undefined}
    onClick=${() => choose(step)}>${named(step.type)}</button>`;
}

function List({ steps, chosen, choose }) {
  return html`<ol class="steps">${steps.map(
    (step) => html`<li key=${step.sequence} class=${step === chosen ? "chosen" : ""}>
      <${Pick} step=${step} chosen=${chosen} choose=${choose} />
      <small>${number(step.sequence)} · <${Time} of=${step.time} />${step.waited !== null && ` · ${span(step.waited * 1000)} later`}
        ${step.who && ` · ${step.event.by ? "by" : "of"} ${step.who}`} · ${step.changes.length ? plural(step.changes.length, "change") : "no change"}</small>
      <small><a href=${traceOf(step.correlation_id, step.time)} aria-label="Trace of ${named(step.type)}, ${number(step.sequence)}">Trace</a></small>
    </li>`,
  )}</ol>`;
}

const TALLEST = 6; // rem

/** From top to bottom; the longer nothing happened, the longer the line (by its logarithm: some wait 1 ms, some a day). */
function Timeline({ steps, chosen, choose }) {
  const size = (waited) => Math.log10(1 + Math.max(0, waited ?? 0) * 1000);
  const most = Math.max(1, ...steps.map(({ waited }) => size(waited)));
  return html`<ol class="timeline">${steps.map(
    ({ waited }, at) => html`<li key=${steps[at].sequence} class=${steps[at] === chosen ? "chosen" : ""}>
      ${waited !== null && html`<span class="gap" style=${{ height: `${1.5 + (TALLEST * size(waited)) / most}rem` }}>${span(waited * 1000)}</span>`}
      <${Pick} step=${steps[at]} chosen=${chosen} choose=${choose} />
      <small><${Time} of=${steps[at].time} /></small>
    </li>`,
  )}</ol>`;
}

function Raw({ path, steps, chosen }) {
  const whole = withQuery(path, { at: chosen.sequence });
  return html`<p><a href=${whole} target="_blank" rel="noopener">All of it up to the chosen event, as the API answers</a></p>
    <pre>${JSON.stringify(steps, null, 2)}</pre>`;
}


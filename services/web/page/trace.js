// Everything that one click caused, in all services: what followed from what, and how long it took.

import { html, useState } from "./html.js";
import { For, Field, Waiting } from "./parts.js";
import { withQuery } from "./ask.js";
import { useData } from "./data.js";
import { ending, historyOf, named, Refused, short, Time } from "./events.js";
import { useStore } from "./store.js";
import { place, setParameter } from "./way.js";
import { number, plural, span } from "./words.js";

const ALIKE = 10; // events of one type that one cause has at first
const STEP = 100;
const DEEPEST = 6; // levels that are indented: a phone is narrow

const WITHIN = [
  ["", "a day"],
  ["604800", "a week"],
  ["2592000", "30 days"],
];

export default function Trace({ id }) {
  return html`<p><a href="/time">‹ Time machine</a></p>
    <h1>Trace <small>${short(id)}</small></h1>
    <${For} role="operator" why="Log in to look at what happened."><${Traces} id=${id} /><//>`;
}

function Traces({ id }) {
  const query = useStore(place).searchParams;
  const within = Number(query.get("within")) > 0 ? query.get("within") : "";
  const path = withQuery(`/api/events/trace/${encodeURIComponent(id)}`, { since: query.get("since"), within });
  const { data: traces, problem, again } = useData(path);
  const offered = WITHIN.some(([value]) => value === within) ? WITHIN : [...WITHIN, [within, span(Number(within) * 1000)]];
  return html`<div class="choices">
      <${Field} label="What happened within" value=${within} onChange=${(event) => setParameter("within", event.target.value)}>
        ${offered.map(([value, name]) => html`<option key=${value} value=${value} selected=${value === within}>${name}</option>`)}
      <//>
      <button type="button" class="quiet" onClick=${() => again()}>Look again</button>
    </div>
    <${Refused} problem=${problem} again=${again} />
    ${!traces && !problem && html`<${Waiting} what="Looking through the log" />`}
    ${traces?.map((each) => html`<${Conversation} key=${each.correlation_id} trace=${each} />`)}`;
}

/** All events of a trace, without the tree. */
const flat = (caused) => caused.flatMap((each) => [each, ...flat(each.caused)]);

function Conversation({ trace }) {
  const events = flat(trace.roots.flatMap(({ caused }) => caused));
  const times = [...events.map(({ time }) => Date.parse(time)), ...trace.roots.filter(({ time }) => time).map(({ time }) => Date.parse(time))];
  const [begin, end] = times.reduce(([low, high], at) => [Math.min(low, at), Math.max(high, at)], [Infinity, -Infinity]);
  const services = new Set(events.map(({ stream }) => stream));
  return html`<section aria-label="Trace ${short(trace.correlation_id)}">
    <p>${plural(events.length, "event")} in ${plural(services.size, "service")}, over ${span(end - begin)}.
      <small class="id"> Correlation id ${trace.correlation_id}</small></p>
    <${Roots} roots=${trace.roots} scale=${{ begin, length: Math.max(1, end - begin) }} />
    ${trace.more > 0 && html`<p>${plural(trace.more, "more event")} of this trace came later and are not shown.</p>`}
  </section>`;
}

function Roots({ roots, scale }) {
  const [shown, setShown] = useState(ALIKE);
  return html`<ol class="trace">${roots.slice(0, shown).map(
      (root) => html`<li key=${root.causation_id}>
        <p><strong>${root.is_event ? "Event shown above" : root.time ? "Request" : "Cause"}</strong>
          ${" "}<small class="id">${short(root.causation_id)}${root.time && html` · <${Time} of=${root.time} />`}</small></p>
        <${Effects} caused=${root.caused} from=${root.time} scale=${scale} depth=${1} />
      </li>`,
    )}</ol>
    ${roots.length > shown && html`<button type="button" class="quiet small" onClick=${() => setShown(shown + STEP)}>
      Show more of ${plural(roots.length, "cause")}</button>`}`;
}

/** What something caused. Of many that are alike the first, until somebody wants more. */
function Effects({ caused, from, scale, depth }) {
  const [most, setMost] = useState(ALIKE);
  if (!caused.length) return null;
  const counts = {};
  const shown = caused.filter(({ type }) => (counts[type] = (counts[type] ?? 0) + 1) <= most);
  return html`<ol class=${depth > DEEPEST ? "flat" : ""}>${shown.map(
      (each) => html`<${Effect} key="${each.stream} ${each.sequence}" effect=${each} from=${from} scale=${scale} depth=${depth} />`,
    )}</ol>
    ${caused.length > shown.length && html`<button type="button" class="quiet small" onClick=${() => setMost(most + STEP)}>
      Show ${number(caused.length - shown.length)} more like these</button>`}`;
}

function Effect({ effect, from, scale, depth }) {
  const { stream, sequence, subject, type, time, waited, through, error, caused } = effect;
  const [left, right] = [from ?? time, time].map((at) => ((Date.parse(at) - scale.begin) / scale.length) * 100);
  return html`<li>
    <p><strong class=${error ? "bad" : ending(type)}>${error ? `Given up: ${named(type)}` : named(type)}</strong>
      ${waited !== null && html` <span class="waited">${span(waited * 1000)} later</span>`}
      ${through.length === 1 && html` <small>through ${through[0]}</small>`}</p>
    <div class="bar" aria-hidden="true"><span style=${{ left: `min(${Math.min(left, right)}%, 100% - 4px)`, width: `${Math.abs(right - left)}%` }}></span></div>
    <p class="links">${error
      ? html`<a href="/system/dead">Dead letter ${number(sequence)}</a> <span class="bad">${error}</span>`
      : html`<a href=${historyOf(subject, sequence)}>${stream.toLowerCase()} ${short(subject.split(".").at(-1))} <span class="quiet">at ${number(sequence)}</span></a>`}
      ${" "}<small><${Time} of=${time} /></small></p>
    <${Effects} caused=${caused} from=${time} scale=${scale} depth=${depth + 1} />
  </li>`;
}

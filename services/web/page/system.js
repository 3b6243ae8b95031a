// How the system is, as it runs: services, the flow of events, streams and who listens.

import { html, useEffect, useRef, useState } from "./html.js";
import { For, Trouble, Waiting } from "./parts.js";
import { Chart } from "./charts.js";
import { useWatch } from "./data.js";
import { Flow } from "./flow.js";
import { Table } from "./table.js";
import { exactly, number, plural, rate, size, span } from "./words.js";

const WINDOW = 60_000; // ms that the charts show

export default function System() {
  return html`<h1>System</h1>
    <${For} role="operator" why="Log in as an operator to see how the system is."><${Running} /><//>`;
}

/** What happened between two answers, per second: of streams and consumers, by name. Null where nobody can say. */
export function ratesOf(before, after) {
  const seconds = before ? (Date.parse(after.at) - Date.parse(before.at)) / 1000 : 0;
  const of = (things, earlier, field) =>
    Object.fromEntries(
      things.map((thing) => {
        const was = earlier?.find(({ name }) => name === thing.name);
        const more = was && thing.there ? thing[field] - was[field] : -1; // less than before: of another log
        return [thing.name, seconds > 0 && more >= 0 ? more / seconds : null];
      }),
    );
  return { streams: of(after.streams, before?.streams, "sequence"), consumers: of(after.consumers, before?.consumers, "delivered") };
}

/** The last answers as what the charts show: `{ system, rates, samples }`. */
function useSamples(system) {
  const [shown, setShown] = useState({ samples: [] });
  const last = useRef();
  useEffect(() => {
    if (!system || system.at === last.current?.at) return;
    const rates = ratesOf(last.current, system);
    last.current = system;
    const known = Object.values(rates.streams).filter((each) => each !== null);
    const sample = {
      at: Date.parse(system.at),
      events: known.length ? known.reduce((sum, each) => sum + each, 0) : null,
      lag: system.consumers.reduce((sum, { lag }) => sum + lag, 0),
    };
    setShown(({ samples }) => ({ system, rates, samples: [...samples.filter(({ at }) => at >= sample.at - WINDOW - 5_000), sample] }));
  }, [system]);
  return shown;
}

function Running() {
  const { data, problem, again } = useWatch("/api/system", { every: 2_000 });
  const { system, rates, samples } = useSamples(data);
  if (!system) return problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`;
  const until = samples.at(-1).at;
  const late = system.expirations.map(({ at, late_ms }) => ({ at: Date.parse(at), value: late_ms }));
  return html`<${Trouble} problem=${problem} again=${again} />
    <p class=${problem ? "wrong" : "quiet"}>As of <time dateTime=${system.at}>${exactly(system.at)}</time>${problem ? ", and nothing newer is known." : "."}</p>
    <p><${Dead} system=${system} /></p>
    <div class="charts">
      <${Chart} title="Events" unit="" until=${until} window=${WINDOW} format=${rate}
        points=${samples.map(({ at, events }) => ({ at, value: events }))} />
      <${Chart} title="Waiting to be heard" unit="events" until=${until} window=${WINDOW} format=${number}
        points=${samples.map(({ at, lag }) => ({ at, value: lag }))} />
      <${Chart} title="Expirations too late by" unit="" until=${until} window=${WINDOW} format=${(value) => span(Math.max(0, value))} dots
        points=${late} none="No order expired in the last minute." />
    </div>
    <${Flow} system=${system} rates=${rates} />
    <${Services} services=${system.services} consumers=${system.consumers} />
    <${Streams} streams=${system.streams} rates=${rates} />
    <${Consumers} consumers=${system.consumers} rates=${rates} at=${system.at} />
    <${ReadModels} models=${system.read_models} />`;
}

function Dead({ system: { dead, dead_open } }) {
  if (dead === 0) return html`<a href="/system/dead">Dead letters</a>: no listener has given up on an event.`;
  const open = dead_open === null ? "it is not known how many are open" : `${number(dead_open)} open`;
  return html`<a href="/system/dead" class=${dead_open ? "wrong" : ""}>${plural(dead, "dead letter")}, ${open}</a>`;
}

const STATES = { up: "Up", silent: "Does not answer any more", away: "Nobody answers", unasked: "Answers no requests" };

/** How far something is behind, in events. */
const behind = (lag) => html`<span class=${lag ? "lagging" : ""}>${number(lag)}</span>`;

const UNKNOWN = html`<span class="wrong">Not known</span>`;

/** How many events the listeners of a service have still to hear. */
function lagOf(service, consumers) {
  const own = consumers.filter((each) => each.service === service);
  if (own.length === 0) return "–";
  return own.every(({ there }) => there) ? behind(own.reduce((sum, { lag }) => sum + lag, 0)) : UNKNOWN;
}

function Services({ services, consumers }) {
  const rows = services.map(({ name, state, processes, instances }) => {
    const points = instances.flatMap(({ endpoints }) => endpoints);
    const total = (field) => points.reduce((sum, each) => sum + each[field], 0);
    const wrong = points.map(({ last_error }) => last_error).filter(Boolean).at(-1);
    const asked = total("requests");
    const took = asked ? points.reduce((sum, each) => sum + each.average_ms * each.requests, 0) / asked : null;
    return {
      key: name,
      class: state === "up" || state === "unasked" ? "" : "bad",
      name,
      state: html`<span class="health ${state}">${STATES[state]}</span>`,
      processes: state === "unasked" ? "–" : number(processes),
      version: [...new Set(instances.map(({ version }) => version))].join(", ") || "–",
      lag: lagOf(name, consumers),
      since: instances.length ? exactly(instances[0].started) : "–",
      asked: state === "unasked" ? "–" : number(asked),
      took: took === null ? "–" : took < 1 ? "< 1 ms" : span(took),
      errors: state === "unasked" ? "–" : html`${number(total("errors"))}${wrong && html`<small class="last-error">${wrong}</small>`}`,
    };
  });
  return html`<${Table} caption="Services" rows=${rows}
    columns=${[["name", "Service"], ["state", "State"], ["processes", "Processes", "number"], ["version", "Version"], ["lag", "Lag", "number"], ["since", "Since"], ["asked", "Requests", "number"], ["took", "Took", "number"], ["errors", "Errors", "number"]]} />
    <p class="quiet">Lag: events that have not come to its listeners yet, those of each added up. Requests
      are what other services asked it over NATS since it started. The history service has told you this, and the web service
      brought you the page: nobody asks them over NATS.</p>`;
}

const MISSING = html`<span class="wrong">Missing: run boxoffice migrate</span>`;

function Streams({ streams, rates }) {
  const rows = streams.map((stream) => ({
    key: stream.name,
    class: stream.there ? "" : "bad",
    name: stream.name,
    messages: stream.there ? number(stream.messages) : MISSING,
    rate: rate(rates.streams[stream.name]),
    bytes: size(stream.bytes),
    sequences: stream.messages ? `${number(stream.first_sequence)} – ${number(stream.sequence)}` : "–",
    first: stream.first_at ? exactly(stream.first_at) : "–",
    last: stream.last_at ? exactly(stream.last_at) : "–",
    replicas: html`${number(stream.replicas)}${stream.replicas > 1 && stream.leader && html`<small> led by ${stream.leader}</small>`}`,
  }));
  return html`<${Table} caption="Streams" rows=${rows}
    columns=${[["name", "Stream"], ["messages", "Events", "number"], ["rate", "Now", "number"], ["bytes", "Size", "number"], ["sequences", "Sequences", "number"], ["first", "First"], ["last", "Last"], ["replicas", "Copies", "number"]]} />`;
}

function Consumers({ consumers, rates, at }) {
  const rows = consumers.map((each) => ({
    key: each.name,
    class: each.there ? "" : "bad",
    name: each.name,
    stream: html`${each.stream}${each.subject && html`<small> ${each.subject}</small>`}`,
    lag: each.there ? behind(each.lag) : MISSING,
    rate: rate(rates.consumers[each.name]),
    pending: number(each.ack_pending),
    redelivered: number(each.redelivered),
    active: each.last_active ? `${span(Math.max(0, Date.parse(at) - Date.parse(each.last_active)))} ago` : "never",
    dead: each.dead ? html`<a href="/system/dead?listener=${encodeURIComponent(each.name)}">${number(each.dead)}</a>` : each.dead === null ? "–" : "0",
  }));
  return html`<${Table} caption="Listeners" rows=${rows}
    columns=${[["name", "Listener"], ["stream", "Hears"], ["lag", "Lag", "number"], ["rate", "Now", "number"], ["pending", "Being heard", "number"], ["redelivered", "Again", "number"], ["active", "Last"], ["dead", "Dead", "number"]]} />
    <p class="quiet">Lag: events that have not come to it yet. Being heard: those that have, and are not done with, also
      if they wait for their time. Again: those of them that came more than once.</p>`;
}

function ReadModels({ models }) {
  const rows = models.map((each) => ({
    key: `${each.name} ${each.stream}`,
    class: each.problem || each.lag === null ? "bad" : "",
    name: each.name,
    service: each.service,
    stream: each.stream,
    sequence: each.sequence === null ? "–" : number(each.sequence),
    lag: each.lag === null ? UNKNOWN : behind(each.lag),
    problem: each.problem || "–",
  }));
  return html`<${Table} caption="Read models" rows=${rows}
    columns=${[["name", "Read model"], ["service", "Service"], ["stream", "Stream"], ["sequence", "Up to", "number"], ["lag", "Lag", "number"], ["problem", "Problem"]]} />
    <p class="quiet">Read models are what services show, written from streams. Lag: events of the stream that are not in it yet. It is
      not known while the service does not answer, or none of its processes writes the read model.</p>`;
}

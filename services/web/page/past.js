// How something was at a moment: what is in the log about it, folded up to then.

import { html } from "./html.js";
import { Deed, Field, For, Waiting } from "./parts.js";
import { withQuery } from "./ask.js";
import { useData } from "./data.js";
import { asWritten, historyOf, named, PLACES, Refused, short, Time, traceOf } from "./events.js";
import { ENTRIES, State } from "./state.js";
import { useStore } from "./store.js";
import { go, place } from "./way.js";

export default function Past() {
  return html`<p><a href="/time">‹ Time machine</a></p><h1>At a past moment</h1>
    <${For} role="operator" why="Log in to look at what was."><${Desk} /><//>`;
}

/** A moment as the field for it has it: in the time of this place. */
function local(text) {
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? "" : new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 23);
}

function Desk() {
  const query = useStore(place).searchParams;
  const [id, at] = [query.get("id") ?? "", query.get("at") ?? ""];
  const isMoment = !Number.isNaN(new Date(at).getTime());
  const submit = (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    go(withQuery("/time/past", { id: asWritten(given.id.trim()), at: new Date(given.at).toISOString() }));
  };
  return html`<form onSubmit=${submit} key="${id} ${at}" aria-label="What, and when">
      <${Field} label="Id" name="id" required maxlength="200" autocomplete="off" spellcheck=${false} value=${id}
        hint="Of an order, a ticket or a batch." />
      <${Field} label="When" name="at" type="datetime-local" step="0.001" required value=${local(at)}
        problem=${at && !isMoment ? "The address has no moment." : undefined} />
      <div><${Deed} type="submit">Show<//></div>
    </form>
    ${id && at && isMoment && html`<${Found} key="${id} ${at}" id=${id} at=${new Date(at).toISOString()} />`}
    <p class="quiet">A whole read model as it was, in tables of its own beside today's:
      ${" "}<code>boxoffice replay projection orders --until ${isMoment && at ? new Date(at).toISOString() : "15m"}</code></p>`;
}

/** A ticket is in two services: its listing, and its order book. */
function Found({ id, at }) {
  const { data: leads, problem, again } = useData(`/api/events/find/${encodeURIComponent(id)}`);
  if (!leads) return problem ? html`<${Refused} problem=${problem} again=${again} />` : html`<${Waiting} what="Looking through the log" />`;
  return leads.map((lead) =>
    lead.service
      ? html`<${AsItWas} key=${lead.service} lead=${lead} at=${at} />`
      : html`<p>This is a click, which has no state. <a href=${traceOf(lead.id)}>See what it caused</a></p>`,
  );
}

/** Of an order's book only the order: the rest is of others. */
const partOf = (state, id) => (state?.orders?.[id] ? state.orders[id] : state);

function AsItWas({ lead, at }) {
  const path = `/api/events/history/${encodeURIComponent(lead.service)}/${encodeURIComponent(lead.id)}`;
  const { data, problem, again } = useData(withQuery(path, { at_time: at, last: 1, entries: ENTRIES }));
  const title = PLACES[lead.service] && data?.subject === `${lead.service}.${lead.id}` ? PLACES[lead.service] : `${lead.service} ${short(lead.id)}`;
  if (!data) return html`<h2>${title}</h2>${problem ? html`<${Refused} problem=${problem} again=${again} />` : html`<${Waiting} />`}`;
  const step = data.steps.at(-1);
  const part = partOf(data.state, lead.id);
  return html`<section aria-label=${title}><h2>${title}</h2>
    <p>The last event before was <a href=${historyOf(lead.id.includes(".") ? lead.id : `${lead.service}.${lead.id}`, step.sequence)}>${named(step.type)}</a>,
      ${" "}<${Time} of=${step.time} />.</p>
    <${State} state=${part} changes=${[]} leftOut=${part === data.state ? data.left_out : {}} /></section>`;
}

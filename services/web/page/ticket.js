// One ticket, and how it is reserved.

import { html, useRef, useState } from "./html.js";
import { Deed, Field, Login, Trouble, Waiting } from "./parts.js";
import { ask, newKey } from "./ask.js";
import { useData, useDeed } from "./data.js";
import { useEvents } from "./live.js";
import { may, me } from "./session.js";
import { Left } from "./shop.js";
import { useStore } from "./store.js";
import { go } from "./way.js";
import { moment, money } from "./words.js";

export default function Ticket({ id }) {
  const who = useStore(me);
  const { data, problem, again, set } = useData(`/api/tickets/${encodeURIComponent(id)}`);
  useEvents(data ? `/api/tickets/stream?id=${id}` : null, { ticket: set });
  if (!data) {
    return html`<h1>Ticket</h1>${problem ? html`<${Trouble} problem=${problem} again=${again} /><p><a href="/">To the shop</a></p>` : html`<${Waiting} />`}`;
  }
  const { title, venue, starts_at, price, currency } = data;
  return html`<p><a href="/">‹ All tickets</a></p>
    <h1>${title}</h1>
    <dl class="facts">
      ${venue && html`<div><dt>Where</dt><dd>${venue}</dd></div>`}
      ${starts_at && html`<div><dt>When</dt><dd>${moment(starts_at)}</dd></div>`}
      <div><dt>Price</dt><dd>${money(price, currency)}</dd></div>
      <div><dt>Left</dt><dd aria-live="polite"><${Left} ticket=${data} /></dd></div>
    </dl>
    ${data.available > 0
      ? html`<${Reserve} ticket=${data} />`
      : data.status === "on_sale" &&
        html`<p class="nothing">All seats are sold or reserved. One that is not paid in time comes back: wait here, it appears by itself.</p>`}
    ${may(who, "operator") &&
    html`<p><a href="/time/orders/${id}">What became of its seats</a>, <a href="/time/tickets/${id}">how it was changed</a></p>`}`;
}

const isRefused = ({ status }) => status && status < 500;

/** What to do where nobody knows what became of it. */
const inDoubt = () => ({
  message: html`It is not known whether your seats are reserved. Press Reserve again: nothing is ordered twice. Or look at <a href="/orders">My orders</a>.`,
});

function Reserve({ ticket }) {
  const who = useStore(me);
  const [quantity, setQuantity] = useState(1);
  const [asking, setAsking] = useState(false); // who they are
  const key = useRef(null); // of this wish: what is sent again is no second order
  const most = Math.min(ticket.max_per_order, ticket.available);
  const [reserve, busy, problem] = useDeed(async () => {
    key.current ??= newKey();
    try {
      const json = { ticket_id: ticket.id, quantity: Number(quantity) };
      const order = await ask("/api/orders", { method: "POST", json, headers: { "Idempotency-Key": key.current } });
      go(`/orders/${order.id}`);
    } catch (error) {
      if (isRefused(error)) key.current = null; // the next one is another wish
      if (error.status !== 401) throw error;
      setAsking(true); // nobody was logged in, or not any more
    }
  });
  const submit = (event) => {
    event.preventDefault();
    who === null ? setAsking(true) : reserve(); // as long as nobody knows who it is, the server does
  };
  return html`<form class="reserve" onSubmit=${submit}>
      <${Field} label="How many?" type="number" min="1" max=${most} required inputmode="numeric" value=${quantity}
        hint="${most} at most" onInput=${(event) => (setQuantity(event.target.value), (key.current = null))} />
      <p class="total">${Number(quantity) >= 1 && Number(quantity) <= most && money(ticket.price * Number(quantity), ticket.currency)}</p>
      <${Deed} type="submit" busy=${busy}>Reserve<//>
      <${Trouble} problem=${!problem || isRefused(problem) ? problem : inDoubt()} />
    </form>
    ${asking && !who && html`<${Login} why="Tell us who you are, so that the seats are yours." done=${reserve} />`}`;
}

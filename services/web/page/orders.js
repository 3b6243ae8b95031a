// A buyer's orders.

import { html, useState } from "./html.js";
import { For, More, Nothing, Trouble, Waiting } from "./parts.js";
import { useNow } from "./clock.js";
import { useLook, usePages } from "./data.js";
import { useNotices } from "./notices.js";
import { clockface, moment, money, plural } from "./words.js";

/** What became of an order, in words. `now`: the server's time in ms, or null. */
export function statusOf({ status, paying, reason, expires_at }, now) {
  if (status === "complete") return "Paid";
  if (status === "cancelled") return reason === "expired" ? "Not paid in time" : "Cancelled";
  const left = Date.parse(expires_at) - (now ?? NaN);
  if (left <= 0) return "The time to pay is over…";
  if (paying) return "A payment is under way…";
  return left > 0 ? `Reserved, ${clockface(left)} left to pay` : "Reserved";
}

const LOOK = 2_000; // ms between two looks at what is about to change, or has changed already

export default function Orders() {
  return html`<h1>My orders</h1><${For} why="Log in to see your orders."><${List} /><//>`;
}

function List() {
  const pages = usePages("/api/orders");
  const now = useNow(1_000);
  const [told, setTold] = useState(null); // the last notice of an order: it may be here before the list has what it tells
  useNotices((notice) => {
    pages.again();
    if (notice?.kind.startsWith("order.")) setTold(notice);
  });
  const order = pages.items?.find(({ id }) => id === told?.about);
  const isBehind = told && pages.items && (told.kind === "order.created" ? !order : order && !order.closed_at);
  const ends = isBehind || pages.items?.some(({ closed_at, paying, expires_at }) => !closed_at && (paying || Date.parse(expires_at) <= now));
  useLook(Boolean(ends), pages.again, LOOK);
  if (!pages.items) return pages.problem ? html`<${Trouble} problem=${pages.problem} again=${pages.again} />` : html`<${Waiting} />`;
  if (!pages.items.length) {
    return html`<${Nothing} title="You have no orders yet"><p>Choose a ticket in <a href="/">the shop</a> and reserve it.</p><//>`;
  }
  return html`<ul class="rows">
      ${pages.items.map(
        (order) => html`<li key=${order.id} class=${order.status}>
          <a href="/orders/${order.id}">
            <strong>${order.title}</strong>
            <span>${plural(order.quantity, "seat")}, ${money(order.total, order.currency)}</span>
            <span>${statusOf(order, now)}</span>
            <small>${moment(order.created_at)}</small>
          </a>
        </li>`,
      )}
    </ul>
    <${Trouble} problem=${pages.problem} />
    <${More} pages=${pages} />`;
}

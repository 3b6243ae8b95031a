// A buyer's orders.

import { html } from "./html.js";
import { For, More, Nothing, Trouble, Waiting } from "./parts.js";
import { useNow } from "./clock.js";
import { usePages } from "./data.js";
import { clockface, moment, money, plural } from "./words.js";

/** What became of an order, in words. `now`: the server's time in ms, or null. */
export function statusOf({ status, reason, expires_at }, now) {
  if (status === "complete") return "Paid";
  if (status === "cancelled") return reason === "expired" ? "Not paid in time" : "Cancelled";
  const left = Date.parse(expires_at) - (now ?? NaN);
  return left > 0 ? `Reserved, ${clockface(left)} left to pay` : "Reserved";
}

export default function Orders() {
  return html`<h1>My orders</h1><${For} why="Log in to see your orders."><${List} /><//>`;
}

function List() {
  const pages = usePages("/api/orders");
  const now = useNow(1_000);
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

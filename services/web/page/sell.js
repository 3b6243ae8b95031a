// What a seller has put on sale, and how it sells.

import { html } from "./html.js";
import { For, More, Nothing, Trouble, Waiting } from "./parts.js";
import { useTickets } from "./shop.js";
import { moment, money, number } from "./words.js";

export default function Sell() {
  return html`<h1>Sell</h1><${For} role="seller" why="Log in as a seller to put tickets on sale."><${Mine} /><//>`;
}

/** How much of a ticket is sold, and left. */
export function Sales({ ticket }) {
  const { status, quantity, available, taken } = ticket;
  const of = `${number(taken)} of ${number(quantity)} sold or reserved`;
  if (status === "withdrawn") return html`<span class="left gone">Withdrawn</span> <span>${of}</span>`;
  const left = available ? html`<span class="left ${available <= 10 ? "few" : ""}">${number(available)} left</span>` : html`<span class="left gone">Sold out</span>`;
  return html`${left} <span>${of}</span>`;
}

function Mine() {
  const pages = useTickets("/api/tickets/mine");
  const tickets = pages.items;
  if (!tickets) return pages.problem ? html`<${Trouble} problem=${pages.problem} again=${pages.again} />` : html`<${Waiting} />`;
  const ways = html`<p class="choices">
    <a class="button" href="/sell/new">Put a ticket on sale</a>
    <a class="button quiet" href="/sell/upload">Upload a file</a>
  </p>`;
  if (!tickets.length) {
    return html`<${Nothing} title="You sell nothing yet">
      <p>Put your first ticket on sale: it is in the shop at once. If you have many, upload a file of them.</p>
      ${ways}
    <//>`;
  }
  return html`${ways}
    <ul class="rows">
      ${tickets.map(
        (ticket) => html`<li key=${ticket.id}>
          <a href="/sell/${ticket.id}">
            <strong>${ticket.title}</strong>
            <span class="facts">${[ticket.venue, ticket.starts_at && moment(ticket.starts_at)].filter(Boolean).join(", ")}</span>
            <span class="price">${money(ticket.price, ticket.currency)}</span>
            <span class="sales"><${Sales} ticket=${ticket} /></span>
          </a>
        </li>`,
      )}
    </ul>
    <${Trouble} problem=${pages.problem} />
    <${More} pages=${pages} />`;
}

// What is on sale, with what is left of it as it changes.

import { html, useEffect, useMemo, useRef, useState } from "./html.js";
import { More, Nothing, Trouble, Waiting } from "./parts.js";
import { withQuery } from "./ask.js";
import { usePages } from "./data.js";
import { useEvents } from "./live.js";
import { may, me } from "./session.js";
import { useStore } from "./store.js";
import { place, useTyped } from "./way.js";
import { moment, money, number } from "./words.js";

const MOST_NAMED = 100; // tickets that a connection may be asked for; of more it tells what becomes of any
const NONE_SHOWN = 1_000; // ms that what is heard is collected, before a list with nothing in it is asked for again

/** Tickets that come in pages, as they change. */
export function useTickets(address) {
  const [news, setNews] = useState({}); // by id; what was heard since it was asked
  const pages = usePages(address);
  const shown = pages.items?.map(({ id }) => id) ?? [];
  const path = useMemo(() => pages.items && withQuery("/api/tickets/stream", { id: shown.length > MOST_NAMED ? [] : shown }), [!pages.items, shown.join()]);
  const timer = useRef();
  const again = useRef();
  again.current = pages.again;
  const look = () => {
    timer.current = undefined;
    again.current();
  };
  useEffect(() => () => clearTimeout(timer.current), []);
  useEvents(path ?? null, {
    ticket: (ticket) => {
      if (shown.includes(ticket.id)) setNews((before) => ({ ...before, [ticket.id]: ticket }));
      if (!shown.length) timer.current ??= setTimeout(look, NONE_SHOWN);
    },
  });
  return { ...pages, items: pages.items?.map((ticket) => (news[ticket.id]?.version >= ticket.version ? news[ticket.id] : ticket)) };
}

/** How many are left, in words. */
export function Left({ ticket }) {
  const { status, available } = ticket;
  if (status === "withdrawn") return html`<span class="left gone">Not on sale any more</span>`;
  if (available === 0) return html`<span class="left gone">Sold out</span>`;
  return html`<span class="left ${available <= 10 ? "few" : ""}">${number(available)} left</span>`;
}

function Ticket({ ticket }) {
  return html`<li class="ticket ${ticket.available ? "" : "over"}">
    <a href="/tickets/${ticket.id}">
      <strong>${ticket.title}</strong>
      <span class="facts">${[ticket.venue, ticket.starts_at && moment(ticket.starts_at)].filter(Boolean).join(", ")}</span>
      <span class="price">${money(ticket.price, ticket.currency)}</span>
      <${Left} ticket=${ticket} />
    </a>
  </li>`;
}

export default function Shop() {
  const q = useStore(place).searchParams.get("q") ?? "";
  const who = useStore(me);
  const [words, type] = useTyped("q");
  const pages = useTickets(withQuery("/api/tickets", { q }));
  const found = useRef(); // what was found before stays until the answer is there, and so does whoever is at one of them
  found.current = pages.items ?? found.current;
  const tickets = found.current;
  return html`<h1>Tickets</h1>
    <search>
      <label for="search">Search</label>
      <input id="search" type="search" maxlength="200" value=${words} onInput=${(event) => type(event.target.value)} />
    </search>
    <${Trouble} problem=${pages.problem} again=${pages.again} />
    ${!tickets && !pages.problem && html`<${Waiting} />`}
    ${pages.items?.length === 0 &&
    (q
      ? html`<${Nothing} title="Nothing has “${q}” in its title"><p>Try fewer letters.</p><//>`
      : html`<${Nothing} title="Nothing is on sale yet">
          <p>${may(who, "seller") ? html`<a href="/sell/new">Put a ticket on sale</a>` : "It appears here as soon as somebody sells a ticket."}</p>
        <//>`)}
    <ul class="tickets" aria-busy=${pages.items ? "false" : "true"}>${tickets?.map((ticket) => html`<${Ticket} key=${ticket.id} ticket=${ticket} />`)}</ul>
    <${More} pages=${pages} />`;
}

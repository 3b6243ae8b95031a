// Somebody's webhooks: where their programs are told.

import { html } from "./html.js";
import { For, Nothing, Trouble, Waiting } from "./parts.js";
import { useData } from "./data.js";
import { kindOf } from "./notice_kinds.js";
import { moment } from "./words.js";

/** Whether anything is posted to a webhook, in words. */
export function stateOf({ enabled, disabled_because }) {
  if (enabled) return "Active";
  return disabled_because === "gone" ? "Paused: it answered that it is gone for good (410)" : "Paused";
}

/** What a webhook is told of, in words. */
export const toldOf = ({ kinds }) => (kinds ? kinds.map(kindOf).join("; ") : "Everything");

export default function Webhooks() {
  return html`<p><a href="/notices">‹ Notices</a></p>
    <h1>Webhooks</h1>
    <p>What you are told is posted to an address of yours too, signed, and again until it is taken.</p>
    <${For} why="Log in to see your webhooks."><${List} /><//>`;
}

function List() {
  const { data, problem, again } = useData("/api/webhooks");
  if (!data) return problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`;
  const make = html`<p><a class="button" href="/notices/webhooks/new">New webhook</a></p>`;
  if (!data.items.length) {
    return html`<${Nothing} title="You have no webhooks yet">
      <p>A program of yours that listens on the internet can be told of your orders, sales and jobs.</p>${make}
    <//>`;
  }
  return html`${make}
    <ul class="rows">
      ${data.items.map(
        (webhook) => html`<li key=${webhook.id}>
          <a href="/notices/webhooks/${webhook.id}">
            <strong>${webhook.url}</strong>
            <span>${stateOf(webhook)}</span>
            <span>${toldOf(webhook)}</span>
            <small>${moment(webhook.created_at)}</small>
          </a>
        </li>`,
      )}
    </ul>
    <${Trouble} problem=${problem} />`;
}

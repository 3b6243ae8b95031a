// What people can be told of, in words.

import { html } from "./html.js";

export const KINDS = [
  ["order.created", "You reserved seats"],
  ["order.completed", "Your order is paid"],
  ["order.cancelled", "Your order was cancelled, or not paid in time"],
  ["ticket.sold_out", "A ticket of yours is sold out"],
  ["batch.completed", "A job of yours is complete"],
  ["batch.failed", "A job of yours has failed"],
];

export const kindOf = (kind) => KINDS.find(([name]) => name === kind)?.[1] ?? kind;

/** Which kinds, as a webhook has them: a list, or null for all there are and will be. */
export function Kinds({ chosen, choose, problem }) {
  const all = chosen === null;
  const toggle = (kind, on) => choose(on ? [...chosen, kind] : chosen.filter((each) => each !== kind));
  return html`<fieldset>
    <legend>What it is told of</legend>
    <label class="check"><input type="radio" name="which" checked=${all} onChange=${() => choose(null)} /> Everything, also what there will be one day</label>
    <label class="check"><input type="radio" name="which" checked=${!all} onChange=${() => all && choose([])} /> Only some things</label>
    ${!all &&
    html`<div class="inner">
      ${KINDS.map(
        ([kind, words]) => html`<label class="check">
          <input type="checkbox" checked=${chosen.includes(kind)} onChange=${(event) => toggle(kind, event.target.checked)} /> ${words}
        </label>`,
      )}
    </div>`}
    ${problem && html`<small class="wrong" role="alert">${problem}</small>`}
  </fieldset>`;
}

// What listeners gave up on, and what is done about it.

import { html } from "./html.js";

export default function Dead() {
  return html`<h1>Dead letters</h1>`;
}

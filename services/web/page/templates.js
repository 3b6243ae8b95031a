// The templates that documents are made of.

import { html } from "./html.js";
import { For, More, Nothing, Trouble, Waiting } from "./parts.js";
import { usePages } from "./data.js";
import { moment } from "./words.js";

export default function Templates() {
  return html`<p><a href="/jobs">‹ Jobs</a></p>
    <h1>Templates</h1>
    <${For} why="Log in to see your templates."><${List} /><//>`;
}

function List() {
  const pages = usePages("/api/templates");
  if (!pages.items) return pages.problem ? html`<${Trouble} problem=${pages.problem} again=${pages.again} />` : html`<${Waiting} />`;
  const another = html`<p><a class="button" href="/jobs/templates/new">Write a template</a></p>`;
  if (!pages.items.length) {
    return html`<${Nothing} title="You have no templates yet">
      <p>A template becomes a document for each row of a file: e-tickets, letters, badges. Write one, and try it with data of your own.</p>
      ${another}
    <//>`;
  }
  return html`${another}
    <ul class="rows">
      ${pages.items.map(
        ({ id, name, format, version, saved_at }) => html`<li key=${id}>
          <a href="/jobs/templates/${id}">
            <strong>${name}</strong>
            <span>${format.toUpperCase()}, version ${version}</span>
            <small>Saved on ${moment(saved_at)}</small>
          </a>
        </li>`,
      )}
    </ul>
    <${Trouble} problem=${pages.problem} />
    <${More} pages=${pages} />`;
}

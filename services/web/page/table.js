// A table, that is a list of cards where there is no room for its columns.

import { html } from "./html.js";

/**
 * @param {{ caption: string, columns: [string, string, string?][], rows: Record<string, any>[] }} given Of each column its
 *   name in the rows, its title, and "number" for figures; of each row a `key`, and a `class` perhaps.
 */
export function Table({ caption, columns, rows }) {
  const [[first]] = columns;
  return html`<table class="table" role="table">
    <caption>${caption}</caption>
    <thead role="rowgroup">
      <tr role="row">
        ${columns.map(([name, title, kind]) => html`<th key=${name} role="columnheader" scope="col" class=${kind}>${title}</th>`)}
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${rows.map(
        (row) => html`<tr key=${row.key} role="row" class=${row.class}>
          ${columns.map(([name, title, kind]) =>
            name === first
              ? html`<th key=${name} role="rowheader" scope="row">${row[name]}</th>`
              : html`<td key=${name} role="cell" class=${kind} data-title=${title}><span>${row[name]}</span></td>`,
          )}
        </tr>`,
      )}
    </tbody>
  </table>`;
}

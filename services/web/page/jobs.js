// One's jobs: what was handed in in bulk, and how far it has come.

import { html } from "./html.js";
import { Field, For, More, Nothing, Trouble, Waiting } from "./parts.js";
import { withQuery } from "./ask.js";
import { usePages, useWatch } from "./data.js";
import { isOver, Progress, statusOf } from "./job.js";
import { useStore } from "./store.js";
import { place, setParameter } from "./way.js";
import { jobOf, moment, number, percent, plural } from "./words.js";

const STATUSES = [
  ["", "All"],
  ["PENDING", "Waiting to begin"],
  ["RUNNING", "Running"],
  ["COMPLETED", "Done"],
  ["COMPLETED_WITH_ERRORS", "Done, with errors"],
  ["FAILED", "Failed"],
  ["CANCELLED", "Cancelled"],
];
const LOOK = 2_000; // ms between two looks at what still runs

export default function Jobs() {
  return html`<h1>Jobs</h1>
    <p>A job is a file of things to be done: tickets to be put on sale, prices to be changed, documents to be made.</p>
    <p class="choices"><a class="button" href="/sell/upload">Upload a file</a>
      <a class="button quiet" href="/jobs/kinds">Kinds of job</a>
      <a class="button quiet" href="/jobs/templates">Templates</a></p>
    <${For} role="seller" why="Log in as a seller to see your jobs."><${Mine} /><//>`;
}

function Mine() {
  const asked = useStore(place).searchParams.get("status") ?? "";
  const status = STATUSES.some(([each]) => each === asked) ? asked : "";
  const path = withQuery("/api/batches", { status });
  const pages = usePages(path);
  const watched = useWatch(path, { every: LOOK, isOver: (page) => page.items.every(isOver) });
  const items = merged(pages.items, watched.data?.items);
  return html`<div class="form"><${Field} label="Show" value=${status} onChange=${(event) => setParameter("status", event.target.value)}>
      ${STATUSES.map(([value, name]) => html`<option value=${value} selected=${value === status}>${name}</option>`)}
    <//></div>
    <${Trouble} problem=${pages.problem} again=${pages.again} />
    ${!items && !pages.problem && html`<${Waiting} />`}
    ${items?.length === 0 &&
    (status
      ? html`<${Nothing} title="No job is so"><p>Choose “All” to see every job.</p><//>`
      : html`<${Nothing} title="You have no jobs yet">
          <p><a href="/sell/upload">Upload a file</a>: there is a sample of each kind to begin with.</p>
        <//>`)}
    <ul class="rows jobs">${items?.map((job) => html`<li key=${job.id}><${Row} job=${job} /></li>`)}</ul>
    <${More} pages=${pages} />`;
}

/** The pages as they were asked for, with what was seen since. */
function merged(items, seen) {
  if (!items || !seen) return items ?? seen;
  const latest = new Map(seen.map((job) => [job.id, job]));
  const known = new Set(items.map(({ id }) => id));
  return [...seen.filter(({ id }) => !known.has(id)), ...items.map((job) => latest.get(job.id) ?? job)];
}

function Row({ job }) {
  const { refused, failed, operations } = job.counts;
  return html`<a href="/jobs/${job.id}">
    <strong>${jobOf(job.kind)}</strong>
    <span>${statusOf(job)}, ${percent(job.progress)} of ${plural(operations, "operation")}</span>
    <${Progress} job=${job} label="Progress of ${jobOf(job.kind)}" />
    ${refused + failed > 0 && html`<span class="wrong">${number(refused + failed)} went wrong</span>`}
    <small>${moment(job.created_at)}, priority ${job.priority}</small>
  </a>`;
}

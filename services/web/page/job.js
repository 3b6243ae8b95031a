// One job: how far it has come, what is wrong with which row, and what can be done about it.

import { html, useEffect, useMemo, useRef, useState } from "./html.js";
import { Deed, For, Sure, Trouble, Told, Waiting } from "./parts.js";
import { ask, withQuery } from "./ask.js";
import { rowsOf } from "./csv.js";
import { useData, useDeed, useWatch } from "./data.js";
import { chosen, sent } from "./files.js";
import { useStore } from "./store.js";
import { go, place } from "./way.js";
import { exactly, jobOf, number, percent, plural, span } from "./words.js";

const WINDOW = 15_000; // ms of what was seen, for the rate
const SHOWN = 50; // rows on a page
const MOST_MENDED = 5_000; // rows

const WORDS = {
  PENDING: "Waiting to begin",
  RUNNING: "Running",
  COMPLETED: "Done",
  COMPLETED_WITH_ERRORS: "Done, with errors",
  FAILED: "Failed",
  CANCELLED: "Cancelled",
};

export const isOver = (job) => job.completed_at !== null;

/** What a job is doing, in words. */
export function statusOf(job) {
  if (job.paused) return "Paused by an operator";
  if (job.status === "PENDING" && !job.submitted_at) return "Coming in";
  return WORDS[job.status] ?? job.status;
}

/** How far a job has come. */
export function Progress({ job, label }) {
  const { operations, pending } = job.counts;
  return html`<progress aria-label=${label} max=${operations || 1} value=${operations - pending}></progress>`;
}

export default function Job({ id }) {
  return html`<p><a href="/jobs">‹ Jobs</a></p><${For} role="seller" why="Log in to see your job."><${Mine} id=${id} /><//>`;
}

function Mine({ id }) {
  const path = `/api/batches/${encodeURIComponent(id)}`;
  const { data: job, problem, again, set } = useWatch(path, { isOver });
  const speed = useSpeed(job);
  if (!job) return html`<h1>Job</h1>${problem ? html`<${Trouble} problem=${problem} again=${again} />` : html`<${Waiting} />`}`;
  const { kind, priority, counts } = job;
  return html`<h1>${jobOf(kind)}</h1>
    <dl class="facts">
      <div><dt>Status</dt><dd class="status">${statusOf(job)}</dd></div>
      <div><dt>Priority</dt><dd>${priority}</dd></div>
      <div><dt>Handed in</dt><dd>${exactly(job.created_at)}</dd></div>
      ${job.completed_at && html`<div><dt>Ended</dt><dd>${exactly(job.completed_at)}</dd></div>`}
    </dl>
    <section class="far" aria-label="Progress">
      <${Progress} job=${job} label="Progress" />
      <p class="amount"><strong>${percent(job.progress)}</strong>, ${number(counts.operations - counts.pending)} of ${plural(counts.operations, "operation")}</p>
      <p class="quiet pace"><${Pace} job=${job} speed=${speed} /></p>
    </section>
    <${Outcome} job=${job} />
    <${Counts} job=${job} />
    ${job.trouble &&
    html`<p class="notice">${plural(job.trouble.operations, "operation is", "operations are")} tried again,
      after ${plural(job.trouble.attempts, "attempt")}: ${job.trouble.error}</p>`}
    <${Deeds} job=${job} path=${path} set=${set} />
    <${Takers} job=${job} />
    <${Errors} job=${job} path=${path} />
    <${Trouble} problem=${problem} again=${problem?.status ? again : undefined} />`;
}

/** Operations a second, as they were seen to end here lately; null while that cannot be said. */
function useSpeed(job) {
  const seen = useRef([]);
  return useMemo(() => {
    if (!job) return null;
    const at = performance.now();
    const ended = job.counts.operations - job.counts.pending;
    if (ended < seen.current.at(-1)?.ended || job.paused) seen.current = []; // it was retried
    seen.current = [...seen.current.filter((each) => at - each.at < WINDOW), { at, ended }];
    const [first] = seen.current;
    return at - first.at > 500 && ended > first.ended ? ((ended - first.ended) / (at - first.at)) * 1000 : null;
  }, [job]);
}

/** A number of operations a second: of a slow job with its tenths. */
const perSecond = (rate) => `${number(rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate))} operations a second`;

function Pace({ job, speed }) {
  if (isOver(job)) return job.rate ? `${perSecond(job.rate)} on the whole` : "";
  if (job.paused) return "It goes on when an operator resumes this kind.";
  if (job.run_at && job.status === "PENDING") return `It begins on ${exactly(job.run_at)}.`;
  const rate = speed ?? job.rate;
  if (!rate) return "How fast it goes is not known yet.";
  return `${perSecond(rate)}, ${span((job.counts.pending / rate) * 1000)} left`;
}

function Counts({ job }) {
  const { succeeded, failed, refused, pending, cancelled } = job.counts;
  const all = [["Done", succeeded, "good"], ["Failed", failed, "bad"], ["Refused", refused, "bad"], ["Waiting", pending, ""]];
  if (cancelled) all.push(["Never run", cancelled, ""]);
  return html`<dl class="counts">
    ${all.map(([name, count, look]) => html`<div class=${count ? look : ""}><dt>${name}</dt><dd>${number(count)}</dd></div>`)}
  </dl>`;
}

/** What became of it, told also to whoever does not see it change. */
function Outcome({ job }) {
  const shown = useRef(null);
  const over = isOver(job);
  const before = useRef(over);
  useEffect(() => {
    if (over && !before.current && document.activeElement === document.body) shown.current?.focus(); // what had it is gone
    before.current = over;
  }, [over]);
  if (!over) return html`<${Told} />`;
  const { succeeded, failed, refused } = job.counts;
  return html`<div class="outcome ${job.status === "COMPLETED" ? "complete" : ""}" tabindex="-1" ref=${shown} role="status">
    <p><strong>${statusOf(job)}.</strong> ${job.detail ?? `${plural(succeeded, "operation is", "operations are")} done.`}</p>
    ${failed > 0 && html`<p>${number(failed)} failed: put right what they say below, and try them again.</p>`}
    ${refused > 0 && html`<p>${plural(refused, "row was", "rows were")} refused: ${job.submitted_at ? "mend what they say below, and send only those rows again" : "mend the file, and send all of it again"}.</p>`}
  </div>`;
}

/** What may be done about it now. */
function Deeds({ job, path, set }) {
  const [retry, retrying, notRetried] = useDeed(async () => set(await ask(`${path}/retry`, { method: "POST" })));
  const cancel = async () => set(await ask(`${path}/cancel`, { method: "POST" }));
  const over = isOver(job);
  return html`<div class="choices deeds">
      <a class="button quiet" href=${job.report} download="job-${job.id}.csv">Download the report (CSV)</a>
      ${over && job.counts.failed > 0 && html`<${Deed} busy=${retrying} onClick=${retry}>Try again what failed<//>`}
    </div>
    <${Trouble} problem=${notRetried} />
    ${!over &&
    html`<${Sure} name="Cancel the job" question="Cancel this job?" yes="Cancel it" no="Let it run" deed=${cancel}>
      What is done stays done. What waits is never run: ${plural(job.counts.pending, "operation")} now.
    <//>`}`;
}

const TAKERS = [
  ["operations", "The database, which this page shows"],
  ["report", "The report"],
];

/** The two that take results off the log, each at its own pace. */
function Takers({ job }) {
  return html`<section aria-labelledby="takers">
    <h2 id="takers">Where results are written</h2>
    <dl class="takers">
      ${TAKERS.filter(([name]) => name in job.written).map(
        ([name, what]) => html`<div>
          <dt>${what}</dt>
          <dd><progress aria-label=${what} max=${job.counts.operations || 1} value=${job.written[name]}></progress>
            <span class="amount">${number(job.written[name])} of ${number(job.counts.operations)}</span></dd>
        </div>`,
      )}
    </dl>
  </section>`;
}

/** Rows that went wrong so far, page by page; as long as there is the file they came in, with what stands in it. */
function Errors({ job, path }) {
  const after = useStore(place).searchParams.get("after") ?? "";
  const { failed, refused } = job.counts;
  const count = failed + refused;
  const { data, problem, again } = useData(count ? withQuery(`${path}/errors`, { limit: SHOWN, cursor: after }) : null);
  const title = useRef(null);
  const first = useRef(true);
  const found = useRowsOf(sent.get(job.id), data?.items);
  useEffect(() => {
    if (data) again(); // there are more, or others
  }, [count, job.completed_at]);
  useEffect(() => {
    if (!first.current) title.current?.focus(); // what was pressed is gone
    first.current = false;
  }, [after]);
  if (!count) return null;
  const to = (cursor) => withQuery(place.value.pathname, { after: cursor });
  return html`<section aria-labelledby="errors">
    <h2 id="errors" tabindex="-1" ref=${title}>${plural(count, "row")} went wrong</h2>
    <p class="quiet">Rows are counted without the header and blank lines: row 1 is what stands first below the header.</p>
    ${isOver(job) && refused > 0 && html`<${Mend} job=${job} path=${path} />`}
    ${!data && !problem && html`<${Waiting} />`}
    <${Trouble} problem=${problem} again=${again} />
    <ol class="wrongs">
      ${data?.items.map((each) => html`<${Wrong} key=${each.row} error=${each} there=${found.get(each.row)} />`)}
    </ol>
    <p class="choices">
      ${after && html`<a href=${to("")}>‹ First rows</a>`}
      ${data?.next_cursor && html`<a href=${to(data.next_cursor)}>Next rows ›</a>`}
    </p>
  </section>`;
}

function Wrong({ error: { row, status, column, error }, there }) {
  return html`<li class="wrong-row">
    <span><strong>Row ${number(row)}${there && `, line ${number(there.line)}`}</strong>, ${status}</span>
    <span>${column && html`<code>${column}</code>: `}${error}</span>
    ${there && html`<code class="as-sent">${there.text.slice(0, 500)}</code>`}
  </li>`;
}

const NONE = new Map();

/** What stands in a file in the rows of these errors. */
function useRowsOf(file, errors) {
  const [found, setFound] = useState(NONE);
  const rows = errors?.map(({ row }) => row) ?? [];
  useEffect(() => {
    let mine = true;
    if (file && rows.length) rowsOf(file.file, new Set(rows), file.csv).then((all) => mine && setFound(all));
    return () => (mine = false);
  }, [file, rows.join()]);
  return found;
}

/** What is to be sent next: the rows that were refused, under their header; of a job that never ran, all of its file. */
function Mend({ job, path }) {
  const file = sent.get(job.id);
  const all = !job.submitted_at;
  const query = { kind: job.kind, priority: job.priority, wrong: job.on_invalid === "reject" ? "reject" : "" };
  const [mend, busy, problem] = useDeed(async () => {
    if (all) {
      chosen.value = { file: file.file, name: file.name, mends: true };
      return go(withQuery("/sell/upload", query));
    }
    const rows = new Set(file.csv ? [0] : []);
    for (let cursor = "", page; cursor !== null && rows.size < MOST_MENDED; cursor = page.next_cursor) {
      page = await ask(withQuery(`${path}/errors`, { limit: 1000, cursor }));
      for (const { row, status } of page.items) if (status === "refused") rows.add(row);
    }
    const found = await rowsOf(file.file, rows, file.csv);
    const text = [...found.values()].map((each) => `${each.text}\n`).join("");
    chosen.value = { file: new Blob([text]), name: file.name.replace(/(\.\w+)?$/, "-mended$1"), text, mends: true };
    return go(withQuery("/sell/upload", query));
  });
  if (!file) {
    return html`<p>This page does not have the file any more, as it was loaded anew:
      choose ${all ? "it once more" : "a file of only the refused rows"}, mended, to
      ${" "}<a href=${withQuery("/sell/upload", query)}>send ${all ? "the file" : "the refused rows"} again</a>.</p>`;
  }
  return html`<p><${Deed} class="quiet" busy=${busy} onClick=${mend}>${all ? "Mend the file and send it" : "Mend the refused rows and send them"}<//></p><${Trouble} problem=${problem} />`;
}

// Small charts of the last minute, and what they say in words.

import { html, useId } from "./html.js";

const WIDTH = 300;
const HEIGHT = 80;
const GAP = 7_000; // ms without a point: nobody looked, so there is no line

/** What a chart says: now, the most and the least of what it shows. */
export function inWords(points, format, unit, none = "Nothing is known yet.") {
  if (!points.length) return none;
  const values = points.map(({ value }) => value);
  const of = unit && ` ${unit}`;
  return `Now ${format(values.at(-1))}${of}; in the last minute at most ${format(Math.max(...values))}, at least ${format(Math.min(...values))}.`;
}

/** A round number that is at least this, for the top of a chart. */
export function roundUp(value) {
  if (value <= 0) return 1;
  const ten = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= value) ?? value;
}

/**
 * @param {{ title: string, points: { at: number, value: number | null }[], until: number, window: number, dots?: boolean }} given
 */
export function Chart({ title, unit, points, until, window, format, dots, none }) {
  const id = useId();
  const known = points.filter(({ at, value }) => value !== null && at > until - window && at <= until + GAP);
  const top = roundUp(Math.max(0, ...known.map(({ value }) => value)));
  const x = ({ at }) => Math.min(WIDTH, ((at - until + window) / window) * WIDTH).toFixed(1);
  const y = ({ value }) => (HEIGHT - (Math.max(0, value) / top) * HEIGHT).toFixed(1);
  const step = (point, place) => {
    if (dots) return `M${x(point)} ${y(point)}h0.01`;
    const begins = place === 0 || point.at - known[place - 1].at > GAP;
    return `${begins ? `M${x(point)} ${y(point)}h0.01M` : "L"}${x(point)} ${y(point)}`;
  };
  return html`<figure class="chart" data-points=${known.length}>
    <figcaption id=${id}>
      <strong>${title}</strong>
      <span class="now">${known.length ? format(known.at(-1).value) : "–"}</span>
    </figcaption>
    <div class="plot">
      <span class="top" aria-hidden="true">${format(top)}</span>
      <svg viewBox="0 -4 ${WIDTH} ${HEIGHT + 8}" preserveAspectRatio="none" role="img" aria-labelledby=${id}>
        <path class="axis" d="M0 0H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT}H${WIDTH}" />
        <path class=${dots ? "dots" : "line"} d=${known.map(step).join("")} />
      </svg>
    </div>
    <p class="quiet">${inWords(known, format, unit, none)}</p>
  </figure>`;
}

// How events flow, drawn from the topology that the server tells: who publishes where, and who hears it.

import { html, useEffect, useId, useRef, useState } from "./html.js";
import { Table } from "./table.js";
import { number, rate } from "./words.js";

const WIDE = 640; // px; with less there is one column
const NODE = 34; // px high
const SPACE = 10;
const BAND = 22; // between one stream and the next

/** The streams, each with who publishes to it and who listens. */
function bandsOf({ streams, consumers }, rates) {
  return streams.map((stream) => ({
    stream,
    rate: rates.streams[stream.name],
    writers: stream.writers,
    hearers: consumers
      .filter((each) => each.stream === stream.name)
      .map((each) => ({ consumer: each, name: each.name, more: each.lag ? `${number(each.lag)} behind` : "", rate: rates.consumers[each.name] })),
    readers: stream.readers,
  }));
}

/** How wide an element is, now and when that changes. */
function useWidth() {
  const element = useRef(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const observer = new ResizeObserver(([{ contentRect }]) => setWidth(Math.floor(contentRect.width)));
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return [element, width];
}

const cut = (text, width) => {
  const most = Math.floor((width - 16) / 7.4);
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;
};

/** A box with a name, and a word at its right end. */
function Node({ x, y, width, kind, name, more = "", ...data }) {
  const shown = cut(name, width - (more ? more.length * 7 + 8 : 0));
  return html`<g class="node ${kind}" ...${data}>
    ${shown !== name && html`<title>${name}</title>`}
    <rect x=${x} y=${y} width=${width} height=${NODE} rx="6" />
    <text x=${x + 9} y=${y + NODE / 2 + 5}>${shown}</text>
    ${more && html`<text class="more" x=${x + width - 9} y=${y + NODE / 2 + 5} text-anchor="end">${more}</text>`}
  </g>`;
}

/** An arrow to the right or down, with how much goes along it. */
function Arrow({ d, tip, down, rate: much, at, kind = "" }) {
  const [x, y] = tip;
  const head = down ? `M${x} ${y}l-5 -9h10z` : `M${x} ${y}l-9 -5v10z`;
  return html`<g class="arrow ${kind} ${much > 0 ? "flows" : ""}">
    <path class="shaft" d=${d} /><path class="head" d=${head} />
    ${much !== undefined && html`<text x=${at[0]} y=${at[1]} text-anchor=${at[2] ?? "end"}>${rate(much)}</text>`}
  </g>`;
}

const readersOf = ({ readers }) => (readers.length > 3 ? `read by ${readers.length} services` : `read by ${readers.join(", ")}`);
const countOf = ({ stream }) => (stream.there ? number(stream.messages) : "missing");

/** Three columns: who publishes, the stream, who hears it. */
function wide(bands, width) {
  const [first, second, third] = [Math.round(width * 0.16), Math.round(width * 0.23), Math.round(width * 0.33)];
  const [streamAt, lastAt] = [Math.round(width * 0.27), width - third];
  const step = NODE + SPACE;
  let top = 0;
  const drawn = bands.map((band) => {
    const right = band.hearers.length + (band.readers.length ? 1 : 0);
    const rows = Math.max(right, band.writers.length, 1);
    const [begin, middle] = [top, top + (rows * step - SPACE) / 2];
    top += rows * step - SPACE + BAND;
    const from = (count, place) => begin + ((rows - count) * step) / 2 + place * step;
    const curve = (x, y, toX, toY) => `M${x} ${y}C${(x + toX) / 2} ${y} ${(x + toX) / 2} ${toY} ${toX - 8} ${toY}`;
    const end = streamAt + second;
    return html`<g key=${band.stream.name}>
      ${band.writers.map((writer, place) => {
        const y = from(band.writers.length, place);
        const alone = band.writers.length === 1;
        return html`<${Arrow} d=${curve(first, y + NODE / 2, streamAt, middle)} tip=${[streamAt, middle]} kind=${alone ? "" : "some"}
            rate=${place === 0 ? band.rate : undefined} at=${[streamAt - 12, middle - 7]} />
          <${Node} x=${1} y=${y} width=${first - 1} kind="service" name=${writer} />`;
      })}
      ${band.hearers.map(({ name, more, rate: much }, place) => {
        const y = from(right, place);
        return html`<${Arrow} d=${curve(end, middle, lastAt, y + NODE / 2)} tip=${[lastAt, y + NODE / 2]} rate=${much} at=${[lastAt - 12, y + NODE / 2 - 6]} />
          <${Node} x=${lastAt} y=${y} width=${third - 1} kind="hearer" name=${name} more=${more} data-consumer=${name} />`;
      })}
      ${band.readers.length > 0 &&
      html`<${Arrow} d=${curve(end, middle, lastAt, from(right, right - 1) + NODE / 2)} tip=${[lastAt, from(right, right - 1) + NODE / 2]} kind="reads" />
        <${Node} x=${lastAt} y=${from(right, right - 1)} width=${third - 1} kind="reader" name=${readersOf(band)} />`}
      <${Node} x=${streamAt} y=${middle - NODE / 2} width=${second} kind="stream" name=${band.stream.name} more=${countOf(band)} data-stream=${band.stream.name} />
    </g>`;
  });
  return [drawn, top - BAND];
}

/** One column: who publishes, below it the stream, and below that who hears it. */
function narrow(bands, width) {
  const [columns, indent] = [3, 44];
  const each = Math.floor((width - (columns - 1) * 6) / columns);
  let top = 0;
  const drawn = bands.map((band) => {
    const begin = top;
    const lines = Math.ceil(band.writers.length / columns);
    const streamY = begin + lines * (NODE + 6) - 6 + 30;
    const places = [...band.hearers, ...(band.readers.length ? [null] : [])];
    const y = (place) => streamY + NODE + SPACE + place * (NODE + SPACE);
    top = y(places.length) - SPACE + BAND;
    return html`<g key=${band.stream.name}>
      ${band.writers.map(
        (writer, place) =>
          html`<${Node} x=${1 + (place % columns) * (each + 6)} y=${begin + Math.floor(place / columns) * (NODE + 6)} width=${each - 2} kind="service" name=${writer} />`,
      )}
      <${Arrow} down d=${`M20 ${streamY - 30}V${streamY - 8}`} tip=${[20, streamY]} rate=${band.rate} at=${[32, streamY - 10, "start"]} />
      ${places.map((hearer, place) =>
        hearer
          ? html`<${Arrow} d=${`M20 ${streamY + NODE}V${y(place) + NODE / 2}H${indent - 8}`} tip=${[indent, y(place) + NODE / 2]} kind=${hearer.rate > 0 ? "flows" : ""} />
              <${Node} x=${indent} y=${y(place)} width=${width - indent - 1} kind="hearer" name=${hearer.name} more=${rate(hearer.rate)} data-consumer=${hearer.name} />`
          : html`<${Arrow} d=${`M20 ${streamY + NODE}V${y(place) + NODE / 2}H${indent - 8}`} tip=${[indent, y(place) + NODE / 2]} kind="reads" />
              <${Node} x=${indent} y=${y(place)} width=${width - indent - 1} kind="reader" name=${readersOf(band)} />`,
      )}
      <${Node} x=${1} y=${streamY} width=${width - 2} kind="stream" name=${band.stream.name} more=${countOf(band)} data-stream=${band.stream.name} />
    </g>`;
  });
  return [drawn, top - BAND];
}

export function Flow({ system, rates }) {
  const [element, width] = useWidth();
  const title = useId();
  const bands = bandsOf(system, rates);
  const [drawn, height] = width ? (width < WIDE ? narrow : wide)(bands, width) : [null, 0];
  const flowing = bands.filter((band) => band.rate > 0).map((band) => `${band.stream.name} ${rate(band.rate)}`);
  return html`<section class="flow">
    <h2 id=${title}>How events flow</h2>
    <p class="quiet">A service publishes to a stream; listeners hear it, each on its own. Rates are of the last seconds.</p>
    <div ref=${element}>
      ${drawn &&
      html`<svg width=${width} height=${height + 2} viewBox="0 -1 ${width} ${height + 2}" role="img"
        aria-label="Services publish to ${bands.length} streams, which ${system.consumers.length} listeners hear. Now: ${flowing.join(", ") || "nothing flows"}. The table below says the same.">${drawn}</svg>`}
    </div>
    <details>
      <summary>The same as a table</summary>
      <${Table} caption="Who publishes, and who listens" rows=${bands.map(rowOf)}
        columns=${[["stream", "Stream"], ["writers", "Published by"], ["rate", "Now", "number"], ["hearers", "Heard by"], ["readers", "Read by"]]} />
    </details>
  </section>`;
}

function rowOf({ stream, writers, rate: much, hearers, readers }) {
  return {
    key: stream.name,
    stream: stream.name,
    writers: writers.join(", "),
    rate: rate(much),
    hearers: hearers.length ? html`<ul class="plain">${hearers.map((each) => html`<li key=${each.name}>${each.name} ${rate(each.rate)}</li>`)}</ul>` : "–",
    readers: readers.join(", ") || "–",
  };
}

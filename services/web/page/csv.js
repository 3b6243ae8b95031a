// Files of rows: what a kind's columns are, and where in a file its rows are.

import { number } from "./words.js";

/** The columns of a kind: `[{ name, required, about, example }]`, out of the JSON schema of its operation. */
export function columnsOf({ fields }) {
  const of = (schema) => (schema?.$ref ? of(fields.$defs[schema.$ref.split("/").pop()]) : (schema ?? {}));
  const operation = of(fields);
  return Object.entries(operation.properties ?? {}).map(([name, schema]) => {
    const plain = of(of(schema).anyOf?.find((each) => each.type !== "null") ?? schema);
    const required = operation.required?.includes(name) ?? false;
    const told = plain.description?.replace(/\d{5,}/g, number);
    const isNumber = plain.type === "integer" || plain.type === "number"; // whose limits are told as well
    const about = [told, (!told || (isNumber && !told.includes("number"))) && kindOf(plain)].filter(Boolean).join(". ");
    return { name, required, about, example: exampleOf(name, plain, of(schema).default) };
  });
}

function kindOf({ type, format, minimum, maximum, maxLength }) {
  if (format === "uuid") return "An id";
  if (format === "date-time") return "A time";
  if (type === "integer" || type === "number") {
    const what = type === "integer" ? "A whole number" : "A number";
    if (minimum !== undefined && maximum !== undefined) return `${what} from ${number(minimum)} to ${number(maximum)}`;
    return minimum === undefined ? what : `${what}, ${number(minimum)} or more`;
  }
  if (type === "object") return "A JSON object";
  return maxLength ? `Text of up to ${number(maxLength)} characters` : "Text";
}

const ID = "01920c3c-7a3e-7cc4-8a3e-3d1f0c5b9a10";

function exampleOf(name, schema, byDefault) {
  if (schema.examples?.length) return String(schema.examples[0]);
  if (schema.type === "object") return "{}";
  if (byDefault !== undefined && byDefault !== null) return String(byDefault);
  if (schema.enum) return String(schema.enum[0]);
  if (schema.format === "uuid") return ID;
  if (schema.format === "date-time") return "2030-12-31T20:00:00Z";
  if (schema.type === "integer" || schema.type === "number") return String(schema.minimum ?? 1);
  return name;
}

/** A cell as it stands in a file. */
const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

const line = (cells) => `${cells.map(cell).join(",")}\r\n`;

/** A small file of a kind. */
export function sampleOf(columns) {
  return line(columns.map(({ name }) => name)) + line(columns.map(({ example }) => example));
}

const LARGEST = 64_000_000; // bytes of a file that is looked through
const START = 0, PLAIN = 1, QUOTED = 2, QUOTE = 3; // where in a value of CSV

/**
 * Some rows of a file as they were sent, by their numbers: `{ line, text }`, counted as the server counts (blank lines
 * and the header of CSV are no rows); the header is row 0. Empty for a file that is too large or cannot be read.
 *
 * @param {Blob} file @param {Set<number>} wanted
 */
export async function rowsOf(file, wanted, csv = true) {
  const found = new Map();
  if (!file || file.size > LARGEST) return found;
  const last = Math.max(...wanted);
  let row = csv ? -1 : 0; // of the last one that ended
  let lines = 1;
  let begin = 1; // the line where the row begins
  let place = START;
  let text = "";
  const end = () => {
    if (text.replace(/[\r\n]+$/, "")) {
      row += 1;
      if (wanted.has(row)) found.set(row, { line: begin, text: text.replace(/\r?\n$/, "") });
    }
    text = "";
    begin = lines;
    place = START;
  };
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      let from = 0;
      for (let at = 0; at < value.length; at++) {
        const sign = value[at];
        if (sign === "\n") lines += 1;
        if (sign === "\n" && place !== QUOTED) {
          text += value.slice(from, at + 1);
          from = at + 1;
          end();
        } else if (!csv) {
          continue;
        } else if (place === START) {
          place = sign === '"' ? QUOTED : sign === "," ? START : PLAIN;
        } else if (place === QUOTED) {
          if (sign === '"') place = QUOTE;
        } else if (place === QUOTE && sign === '"') {
          place = QUOTED;
        } else {
          place = sign === "," ? START : PLAIN;
        }
      }
      text += value.slice(from);
      if (row >= last) break;
    }
    end();
  } catch {
    found.clear(); // it was changed or taken away meanwhile
  } finally {
    reader.cancel().catch(() => {});
  }
  return found;
}

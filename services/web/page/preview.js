// A page that somebody wrote, shown so that nothing of it runs, leads away, or comes from elsewhere.
//
// What is harmless is copied into a frame that may run no scripts. The frame has the policy of this page too, which
// would stop all else; but who writes a template is to see what is left out in words, not in the console.

import { html, useState } from "./html.js";
import { plural } from "./words.js";

const words = (text) => new Set(text.trim().split(/\s+/));

const ELEMENTS = words(`
  a abbr address article aside b bdi bdo big blockquote br caption center cite code col colgroup data dd del details dfn
  div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hgroup hr i img ins kbd li main mark nav ol p pre
  q rp rt ruby s samp section small span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var
  wbr`);
const ATTRIBUTES = words(`
  align alt bgcolor border cellpadding cellspacing class color colspan dir face height hidden id lang nowrap open
  reversed rowspan scope size span start title type valign value width`);

/** Elements that are left out with all that is in them. Of others that are not copied, what is in them is. */
const WHOLE = words("applet audio canvas datalist embed iframe noembed noframes noscript object script select template textarea title video");

const SCRIPT = "script";
const PICTURE = "picture from elsewhere";
const STYLE = "style that loads something";

/** What is left out, and how one of it and several are called. */
const LEFT_OUT = [
  ["script", SCRIPT, "scripts"],
  ["form, input, button, select, textarea", "part of a form", "parts of forms"],
  ["iframe, frame, object, embed, applet", "page in the page", "pages in the page"],
  ["audio, video, canvas", "film, sound or drawing", "films, sounds or drawings"],
  ["[background], source[srcset]", PICTURE, "pictures from elsewhere"],
  ["link[rel*=stylesheet i]", STYLE, "styles that load something"],
  ["meta[http-equiv=refresh i]", "jump to another page", "jumps to other pages"],
  ["a[href]", "link that can be followed", "links that can be followed"],
];

const RULES = words(`
  CSSContainerRule CSSKeyframeRule CSSKeyframesRule CSSLayerBlockRule CSSLayerStatementRule CSSMediaRule
  CSSNestedDeclarations CSSPageRule CSSStyleRule CSSSupportsRule`);
const FUNCTIONS =
  /^(|rgba?|hsla?|hwb|(ok)?lab|(ok)?lch|color(-mix)?|light-dark|var|calc|min|max|clamp|minmax|repeat|fit-content|counters?|(repeating-)?(linear|radial|conic)-gradient|(translate|rotate|scale|skew)([xyz]|3d)?|matrix(3d)?|perspective|circle|ellipse|inset|polygon|cubic-bezier|steps|blur|brightness|contrast|drop-shadow|grayscale|hue-rotate|invert|opacity|saturate|sepia)$/i;

const MARK = "\uFDD0"; // no character: no text has it

/**
 * The same page, in which a parser meets no style, script or base address: the browser would hold each against this
 * page's policy, also in a document that nobody sees. The elements become old ones that are read alike and do nothing.
 */
const marked = (source) =>
  source
    .replaceAll(MARK, "")
    .replace(/<(\/?)style(?=[\s/>])/gi, "<$1noframes")
    .replace(/<base(?=[\s/>])/gi, "<basefont")
    .replace(/(?<=[\s"']|(?<!<)\/)(?=on|style)/gi, MARK);

const unmarked = (text) => text.replaceAll(MARK, "").replace(/<(\/?)noframes(?=[\s/>])/gi, "<$1style");

/** Whether styles, as the browser writes them, load nothing. What it did not read may be written with escapes. */
const loadsNothing = (css) => !css.includes("\\") && [...css.matchAll(/([^\s()"',:;/*+]*)\(/g)].every(([, name]) => FUNCTIONS.test(name));

/** Take out of declarations what might load something; how many. */
function clean(style) {
  let out = 0;
  for (const name of [...style]) {
    if (loadsNothing(style.getPropertyValue(name))) continue;
    style.removeProperty(name);
    out++;
  }
  if (loadsNothing(style.cssText)) return out;
  style.cssText = ""; // of what has a variable in it, only the whole can be read
  return out + 1;
}

/** The same with the rules of a sheet that nothing has yet. */
function cleanRules(owner) {
  let out = 0;
  for (let at = owner.cssRules.length - 1; at >= 0; at--) {
    const rule = owner.cssRules[at];
    if (!RULES.has(rule.constructor.name)) {
      owner.deleteRule(at);
      out++;
      continue;
    }
    if (rule.style) out += clean(rule.style);
    if (rule.cssRules) out += cleanRules(rule);
  }
  return out;
}

/** Whether an address is that of a picture which is all in it. */
function isPicture(address) {
  const [, base64, content] = /^data:image\/[\w.+-]+(?:;[\w=-]+?)*?(;base64)?,(.*)$/is.exec(address) ?? [];
  try {
    return content !== undefined && (!base64 || atob(decodeURIComponent(content)) !== "");
  } catch {
    return false; // the browser would complain of it
  }
}

/** Show a page in an empty frame; what is left out, as it is called, and how often. */
function show(source, { contentDocument: frame, contentWindow: { CSSStyleSheet } }) {
  const parsed = new DOMParser().parseFromString(marked(source), "text/html");
  const left = new Map(LEFT_OUT.map(([selector, name]) => [name, parsed.querySelectorAll(selector).length]));
  const leave = (name, count = 1) => left.set(name, left.get(name) + count);

  const dress = (made, node) => {
    for (const { name, value } of node.attributes) {
      if (ATTRIBUTES.has(name)) made.setAttribute(name, unmarked(value));
      else if (name === `${MARK}style`) {
        made.style.cssText = unmarked(value);
        leave(STYLE, clean(made.style));
      }
    }
    return made;
  };
  const picture = (address, node) => {
    const made = dress(frame.createElement("img"), node);
    if (isPicture(address)) made.setAttribute("src", address);
    else if (address) leave(PICTURE);
    return made;
  };
  const copyAll = (from, into) => from.childNodes.forEach((node) => copy(node, into));
  const copy = (node, into) => {
    const name = node.localName;
    if (node.nodeType === Node.TEXT_NODE) into.append(unmarked(node.data));
    else if (node.nodeType !== Node.ELEMENT_NODE || WHOLE.has(name)) return;
    else if (name === "svg") into.append(picture(drawing(node), node));
    else if (name === "img") into.append(picture(unmarked(node.getAttribute("src") ?? ""), node));
    else if (!ELEMENTS.has(name)) copyAll(node, into);
    else {
      const made = dress(frame.createElement(name), node);
      if (node.hasAttribute("href")) made.title = unmarked(node.getAttribute("href"));
      copyAll(node, made);
      into.append(made);
    }
  };
  const sheet = (node) => {
    const text = unmarked(node.textContent);
    const made = new CSSStyleSheet({ media: unmarked(node.getAttribute("media") ?? "") });
    made.replaceSync(`x{}${text}`); // behind a rule, an @import is passed over
    leave(STYLE, cleanRules(made) + (text.match(/@import/gi) ?? []).length);
    return made;
  };

  for (const node of parsed.querySelectorAll("*")) {
    leave(SCRIPT, [...node.attributes].filter(({ name }) => name.startsWith(`${MARK}on`)).length);
  }
  dress(frame.documentElement, parsed.documentElement);
  copyAll(parsed.body, dress(frame.body, parsed.body));
  frame.adoptedStyleSheets = [...parsed.querySelectorAll("noframes:not(svg *, noscript *)")].map(sheet);
  return left;
}

/** A drawing as a picture, in which browsers run and load nothing. */
function drawing(svg) {
  const text = unmarked(new XMLSerializer().serializeToString(svg));
  return `data:image/svg+xml,${encodeURIComponent(text)}`;
}

/** A page in a frame, and under it what of it is left out there. */
export function Page({ source }) {
  const [left, setLeft] = useState(new Map());
  const told = LEFT_OUT.filter(([, name]) => left.get(name)).map(([, name, many]) => plural(left.get(name), name, many));
  return html`<iframe class="preview" title="Preview" sandbox="allow-same-origin" srcdoc="<!doctype html>"
      onLoad=${({ target }) => setLeft(show(source, target))}></iframe>
    ${told.length > 0 && html`<p class="quiet">Left out here: ${told.join(", ")}. The download has all of it.</p>`}`;
}

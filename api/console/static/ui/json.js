// Data as a tree that opens level by level.
import { parse } from "../lib/exact.js"
import { plain } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { Code, Copy } from "./parts.js"

const MOST_ITEMS = 100
const MOST_CHARACTERS = 20_000

/** Return the value of a text that is JSON; the text itself if it is not. @param {string} text */
export function parsed(text) {
  if (!/^\s*[[{]/.test(text)) return text
  try {
    return parse(text)
  } catch {
    return text
  }
}

/** @param {{value: unknown, label?: string}} props */
export function Data({ value, label }) {
  if (typeof value === "string") return html`<${Long} text=${value} label=${label} />`
  const isSimple = value === null || typeof value !== "object"
  if (isSimple || Object.keys(value).length === 0) return html`<${Code} text=${JSON.stringify(value)} label=${label} />`
  return html`<div class="code"><div class="code-head"><span>${label ?? "JSON"}</span>
    <${Copy} text=${JSON.stringify(value, null, 2)} /></div>
    <div class="tree" tabindex="0" role="group" aria-label=${label ?? "JSON"}><${Members} value=${value} depth=${0} /></div></div>`
}

/** @param {{text: string, label?: string}} props */
function Long({ text, label }) {
  const [isWhole, setWhole] = useState(false)
  const shown = isWhole ? text : text.slice(0, MOST_CHARACTERS)
  return html`<${Code} text=${shown} whole=${text} label=${label} />
    ${shown.length < text.length && html`<button type="button" class="link" onClick=${() => setWhole(true)}>
      Show all ${text.length.toLocaleString("en")} characters</button>`}`
}

/** @param {{value: any, depth: number}} props */
function Members({ value, depth }) {
  const [most, setMost] = useState(MOST_ITEMS)
  const entries = Object.entries(value)
  return html`<ul>${entries.slice(0, most).map(([name, one]) => html`<${Member} key=${name} name=${name} value=${one}
    depth=${depth} isIndex=${Array.isArray(value)} />`)}
    ${entries.length > most && html`<li><button type="button" class="link" onClick=${() => setMost(most + 10 * MOST_ITEMS)}>
      ${entries.length - most} more</button></li>`}</ul>`
}

/** @param {{name: string, value: any, depth: number, isIndex: boolean}} props */
function Member({ name, value, depth, isIndex }) {
  const [isOpen, setOpen] = useState(depth < 2)
  const isNested = value !== null && typeof value === "object" && Object.keys(value).length > 0
  const label = html`<span class=${isIndex ? "index" : "name"}>${plain(name)}</span>`
  if (!isNested) return html`<li>${label} <span class=${`value ${value instanceof Number ? "number" : typeof value}`}>${plain(JSON.stringify(value) ?? "")}</span></li>`
  const size = Object.keys(value).length
  return html`<li><button type="button" class="fold" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
    ${label} <span class="faint">${Array.isArray(value) ? `[${size}]` : `{${size}}`}</span></button>
    ${isOpen && html`<${Members} value=${value} depth=${depth + 1} />`}</li>`
}
